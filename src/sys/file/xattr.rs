//! All extended attributes of an open file.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::AsFd;

use rustix::io::Errno;

/// Names and values of extended attributes, POSIX ACLs and file capabilities among them.
pub type Xattrs = BTreeMap<CString, Vec<u8>>;

/// Reads every extended attribute of the open file; none if the filesystem has none.
pub fn read(fd: impl AsFd) -> io::Result<Xattrs> {
    let mut all = Xattrs::new();
    for name in names(&fd)? {
        let value = sized(|buf| rustix::fs::fgetxattr(&fd, &name, buf));
        match value {
            Ok(value) => drop(all.insert(name, value)),
            // Removed since it was listed.
            Err(e) if e.raw_os_error() == Some(libc::ENODATA) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(all)
}

/// Makes the extended attributes of the open file exactly `wanted`.
///
/// `security.evm` is left to the kernel, which computes it from the rest.
pub fn write(fd: impl AsFd, wanted: &Xattrs) -> io::Result<()> {
    let present = read(&fd)?;
    for name in present.keys().filter(|name| !wanted.contains_key(*name) && !computed(name)) {
        rustix::fs::fremovexattr(&fd, name)?;
    }
    for (name, value) in wanted.iter().filter(|(name, _)| !computed(name)) {
        if present.get(name) != Some(value) {
            rustix::fs::fsetxattr(&fd, name, value, rustix::fs::XattrFlags::empty())?;
        }
    }
    Ok(())
}

fn computed(name: &CStr) -> bool {
    name == c"security.evm"
}

fn names(fd: impl AsFd) -> io::Result<Vec<CString>> {
    let list = match sized(|buf| rustix::fs::flistxattr(&fd, buf)) {
        Ok(list) => list,
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let names = list.split(|&b| b == 0).filter(|name| !name.is_empty());
    Ok(names.filter_map(|name| CString::new(name).ok()).collect())
}

/// Calls `get` with a small buffer first, with ever larger ones while it says `ERANGE`.
fn sized(get: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> io::Result<Vec<u8>> {
    let mut buf = vec![0; 256];
    loop {
        match get(&mut buf) {
            Ok(len) => {
                buf.truncate(len);
                return Ok(buf);
            }
            Err(Errno::RANGE) => buf.resize(buf.len() * 4, 0),
            Err(e) => return Err(e.into()),
        }
    }
}
