//! The dpkg that a hook was called by, and its database.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use cow_hooks::hook::caller::Caller;
use cow_hooks::package::dpkg::after::Dpkg;
use cow_hooks::package::dpkg::apt::Stream;
use cow_hooks::package::dpkg::{Admindir, Invocation};
use cow_hooks::report::{Reason, Shown};
use cow_hooks::state::members::Member;
use cow_hooks::sys::process::Process;

/// The name that the hooks are called by.
pub const NAME: &str = "cow-dpkg";

/// A caller, and where its dpkg keeps its database.
#[derive(Debug)]
pub struct DpkgCaller {
    /// Who called.
    pub caller: Caller,
    /// dpkg's database; none if it was told of none.
    admindir: Option<Admindir>,
}

impl DpkgCaller {
    /// apt, which works on the root it runs in.
    pub fn of_apt() -> io::Result<DpkgCaller> {
        Ok(DpkgCaller { caller: Caller::of(Path::new("/"))?, admindir: None })
    }

    /// dpkg as its hooks' environment describes it (`DPKG_ROOT`, `DPKG_ADMINDIR`, dpkg(1)): what came of its options,
    /// of its configuration files and of the environment it was started with. Both paths are meant as dpkg itself
    /// opens them, from its working directory, which is the hook's, too.
    pub fn of_dpkg() -> io::Result<DpkgCaller> {
        let named = |path: &Path, e| io::Error::other(format!("{}: {}", Shown(path), Reason(e)));
        let root = variable("DPKG_ROOT").map_or_else(|| Ok(PathBuf::from("/")), absolute)?;
        let caller = Caller::of(&root).map_err(|e| named(&root, e))?;
        let admindir = match variable("DPKG_ADMINDIR") {
            Some(dir) => {
                Some(Admindir::of_process(&caller.root, &absolute(dir)?).map_err(|e| named(&root, e))?)
            }
            None => None,
        };
        Ok(DpkgCaller { caller, admindir })
    }

    /// The dpkg that runs the hook.
    pub fn dpkg(&self) -> Option<&Process> {
        self.caller.running("dpkg")
    }

    /// Where it keeps its database.
    pub fn admindir(&self) -> &Admindir {
        self.admindir.as_ref().unwrap_or(Admindir::usual())
    }

    /// Whether it works on the root it runs in, with the database that is there: as apt takes for granted.
    pub fn is_usual(&self) -> bool {
        self.caller.root.is_own() && self.admindir().is_usual()
    }

    /// The living member that has planned for this dpkg, or has it supervised. Nobody has for one that works elsewhere
    /// than it is taken for granted.
    pub fn covered_by(&self) -> Option<Member> {
        self.caller.covered_by().filter(|_| self.is_usual())
    }

    /// The guest's dpkg.
    pub fn manager(&self) -> Dpkg<'_> {
        Dpkg::new(&self.caller.root, self.admindir())
    }
}

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// A path as it is meant from here, `..` included.
fn absolute(path: PathBuf) -> io::Result<PathBuf> {
    if path.is_absolute() {
        return Ok(path);
    }
    let here = std::env::current_dir();
    let here = here.map_err(|e| {
        io::Error::other(format!("{}: the working directory has no path: {}", Shown(&path), Reason(e)))
    })?;
    Ok(here.join(path))
}

/// Whether the dpkg of this apt works on another root or database than the usual ones, by an option of apt's, by its
/// environment, or by its own configuration.
pub fn has_other_root(stream: &Stream) -> bool {
    let mut options = vec![OsString::from("dpkg")];
    options.extend(stream.config("DPkg::Options::").map(ToOwned::to_owned));
    let invocation = Invocation::parse(&options);
    invocation.instdir.is_some()
        || invocation.admindir.is_some()
        || variable("DPKG_ROOT").is_some()
        || variable("DPKG_ADMINDIR").is_some()
        || is_configured()
}

/// Whether one of dpkg's configuration files says so.
fn is_configured() -> bool {
    let home = variable("HOME").map(|home| home.join(".dpkg.cfg"));
    let parts = std::fs::read_dir("/etc/dpkg/dpkg.cfg.d").into_iter().flatten().flatten();
    let files = parts.map(|part| part.path()).chain([PathBuf::from("/etc/dpkg/dpkg.cfg")]).chain(home);
    files.filter_map(|file| std::fs::read(file).ok()).any(|text| names_root(&text))
}

/// Whether an option in this file names a root or a database.
pub(super) fn names_root(text: &[u8]) -> bool {
    let is_end = |byte: &u8| *byte == b'=' || byte.is_ascii_whitespace();
    let mut options = text.split(|&byte| byte == b'\n').map(|line| {
        let line = line.trim_ascii_start();
        line.split(is_end).next().unwrap_or(line)
    });
    options.any(|option| [&b"root"[..], b"instdir", b"admindir"].contains(&option))
}

/// Where apt changes its root to before it runs dpkg and its hooks, if it does.
pub fn chroot_of(stream: &Stream) -> Option<PathBuf> {
    // apt puts RootDir before what its other options name.
    let value = |key| stream.config(key).last().map(OsStr::as_bytes).unwrap_or_default();
    let path = [value("RootDir"), b"/", value("DPkg::Chroot-Directory")].concat();
    let path: PathBuf = Path::new(OsStr::from_bytes(&path)).components().collect();
    (path != Path::new("/")).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_is_named_in_any_way_the_parser_of_dpkg_takes() {
        for text in ["root=/x", "admindir /x", "# x\n  instdir = /x\n", "log=/x\nadmindir=\n"] {
            assert!(names_root(text.as_bytes()), "{text}");
        }
        for text in ["", "#root=/x", "pre-invoke=dpkg --root=/x", "rootless", "no-debsig\n"] {
            assert!(!names_root(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn the_root_that_apt_changes_to_is_made_of_two_settings() {
        let chroot = |config: &str| {
            let stream = Stream::read(format!("VERSION 3\n{config}\n").as_bytes()).unwrap();
            chroot_of(&stream).map(|path| path.into_os_string().into_string().unwrap())
        };
        assert_eq!(chroot(""), None);
        assert_eq!(chroot("RootDir=/\nDPkg::Chroot-Directory=/\n"), None);
        assert_eq!(chroot("DPkg::Chroot-Directory=/g/\n").as_deref(), Some("/g"));
        assert_eq!(chroot("RootDir=/g\n").as_deref(), Some("/g"));
        assert_eq!(chroot("RootDir=/a\ndpkg::chroot-directory=/b\n").as_deref(), Some("/a/b"));
    }
}
