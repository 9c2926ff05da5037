//! Where listed files are: beyond the symlinks in their directory part.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::sys::budget;
use crate::sys::path::resolve::Resolver;
use crate::sys::path::root::Root;

/// Makes listed paths comparable: a package may list `/bin/bash` where the file is `/usr/bin/bash`.
///
/// Only the directory part is made canonical, by a function of the caller's, asked once per directory; the last
/// component is the file itself, symlink or not.
pub struct Canonical<'f> {
    directory: Box<dyn FnMut(&Path) -> PathBuf + 'f>,
    /// By listed directory; `None` for one that is canonical.
    known: HashMap<OsString, Option<PathBuf>>,
    /// Bytes that it takes.
    bytes: usize,
}

impl<'f> Canonical<'f> {
    /// Uses `directory` to make a directory's path canonical; it returns what it cannot find as it is.
    pub fn new(directory: impl FnMut(&Path) -> PathBuf + 'f) -> Canonical<'f> {
        Canonical { directory: Box::new(directory), known: HashMap::new(), bytes: 0 }
    }

    /// Resolves the directories of the guest at `root`; one that is not there, or cannot be looked at, stays as it is.
    pub fn beneath(root: &'f Root) -> Canonical<'f> {
        let mut resolver = Resolver::new(root);
        Canonical::new(move |dir| resolver.directory(dir).ok().flatten().unwrap_or_else(|| dir.to_path_buf()))
    }

    /// `path`, an absolute one, with its directory part made canonical.
    pub fn path(&mut self, path: PathBuf) -> PathBuf {
        let bytes = path.as_os_str().as_bytes();
        let Some(slash) = bytes.iter().rposition(|&byte| byte == b'/') else { return path };
        let (parent, name) =
            (OsStr::from_bytes(&bytes[..slash.max(1)]), OsStr::from_bytes(&bytes[slash + 1..]));
        let canonical = match self.known.get(parent) {
            Some(canonical) => canonical,
            None => {
                let canonical = (self.directory)(Path::new(parent));
                let changed = canonical.as_os_str() != parent;
                self.bytes += parent.len() + canonical.as_os_str().len() + 2 * budget::ENTRY;
                if self.bytes > budget::RESOLVED {
                    self.known.clear();
                    self.bytes = 0;
                }
                self.known.entry(parent.to_os_string()).or_insert(changed.then_some(canonical))
            }
        };
        canonical.as_ref().map(|directory| directory.join(name)).unwrap_or(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_resolved_once_and_a_file_never() {
        let mut asked = 0;
        let mut canonical = Canonical::new(|dir: &Path| {
            asked += 1;
            if dir == Path::new("/bin") { "/usr/bin".into() } else { dir.to_path_buf() }
        });
        for (listed, real) in
            [("/bin/sh", "/usr/bin/sh"), ("/bin/x", "/usr/bin/x"), ("/bin", "/bin"), ("/etc", "/etc")]
        {
            assert_eq!(canonical.path(listed.into()), Path::new(real));
        }
        drop(canonical);
        assert_eq!(asked, 2);
    }
}
