//! Which pools have their filesystem guarded: the host remembers each with the filesystem's UUID, so that one whose
//! filesystem is mounted after the guard was loaded is guarded, too.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::report::{Reason, Shown};
use crate::state::store::STATE_DIR;
use crate::sys::budget;
use crate::sys::file::uuid::Uuid;
use crate::sys::path::dirfd;
use crate::sys::path::resolve::is_absent;
use crate::sys::path::root::Root;

/// The host's list, in its state directory: UUID, a space and a path, each pool ended by a NUL byte.
const LIST: &str = "guarded-pools";
/// The same: without the list, nothing protects the files of its pools after the next boot.
const COPY: &str = "guarded-pools.copy";

/// A pool, and the filesystem that it is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegisteredPool {
    /// From the host's root.
    pub path: PathBuf,
    /// The filesystem's.
    pub uuid: Uuid,
}

/// The pools in the host's list, or in its copy if the list is lost or damaged.
///
/// # Errors
/// If there is a list that cannot be read, or is damaged (`InvalidData`), and no copy.
pub fn read() -> io::Result<Vec<RegisteredPool>> {
    let why = match read_one(LIST) {
        Ok(Some(pools)) => return Ok(pools),
        Ok(None) => None,
        Err(e) => Some(e),
    };
    match (read_one(COPY), why) {
        (Ok(Some(pools)), why) => {
            let why = why.map_or("lost".to_owned(), |e| Reason(e).to_string());
            log::warn!("{}: {why}; its copy is taken instead", Shown(&path()));
            Ok(pools)
        }
        (_, Some(e)) => Err(e),
        (_, None) => Ok(Vec::new()),
    }
}

/// Whether the list and its copy hold these pools.
pub fn holds(pools: &[RegisteredPool]) -> bool {
    [LIST, COPY].iter().all(|name| match read_one(name) {
        Ok(Some(written)) => written == pools,
        Ok(None) => pools.is_empty(),
        Err(_) => false,
    })
}

/// None if there is no such list.
fn read_one(name: &str) -> io::Result<Option<Vec<RegisteredPool>>> {
    match Root::open(Path::new("/"))?.read(&Path::new(STATE_DIR).join(name), budget::OWN) {
        Ok(text) => parse(&text)
            .map(Some)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "this list of pools is damaged")),
        Err(e) if is_absent(&e) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Where the list is.
pub fn path() -> PathBuf {
    Path::new(STATE_DIR).join(LIST)
}

/// Replaces the host's list, then its copy.
pub fn write(pools: &[RegisteredPool]) -> io::Result<()> {
    let dir = dirfd::make_dir(&Root::open(Path::new("/"))?, Path::new(STATE_DIR))?;
    [LIST, COPY].iter().try_for_each(|name| dirfd::replace_file(&dir, OsStr::new(name), &text(pools)))
}

pub(crate) fn parse(text: &[u8]) -> Option<Vec<RegisteredPool>> {
    let parse = |line: &[u8]| {
        let (uuid, path) = line.split_at_checked(line.iter().position(|&byte| byte == b' ')?)?;
        let uuid = std::str::from_utf8(uuid).ok()?.parse().ok()?;
        Some(RegisteredPool { path: OsString::from_vec(path[1..].to_vec()).into(), uuid })
    };
    let lines = text.split(|&byte| byte == 0).collect::<Vec<_>>();
    let (end, lines) = lines.split_last()?;
    if end.is_empty() { lines.iter().map(|line| parse(line)).collect() } else { None }
}

pub(crate) fn text(pools: &[RegisteredPool]) -> Vec<u8> {
    let line = |pool: &RegisteredPool| {
        [pool.uuid.to_string().as_bytes(), b" ", pool.path.as_os_str().as_bytes(), &[0]].concat()
    };
    pools.iter().flat_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let uuid: Uuid = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9".parse().unwrap();
        let pools = ["/srv/.cow-pool", "/a b\nc"].map(|path| RegisteredPool { path: path.into(), uuid });
        assert_eq!(parse(&text(&pools)), Some(pools.to_vec()));
        assert_eq!(parse(b""), Some(Vec::new()));
        for damaged in ["no uuid\0", "\0", "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9 /x"] {
            assert_eq!(parse(damaged.as_bytes()), None, "{damaged}");
        }
    }
}
