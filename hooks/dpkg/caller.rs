//! The dpkg that a hook was called by, and its database.

use std::io;
use std::path::{Path, PathBuf};

use cow_hooks::hook::caller::Caller;
use cow_hooks::package::dpkg::after::Dpkg;
use cow_hooks::sys::process::Process;

/// A caller, and where its dpkg keeps its database.
#[derive(Debug)]
pub struct DpkgCaller {
    /// Who called.
    pub caller: Caller,
    /// dpkg's database, as a path of the guest.
    admindir: Option<PathBuf>,
}

impl DpkgCaller {
    /// apt, which works on the root it runs in.
    pub fn of_apt() -> io::Result<DpkgCaller> {
        Ok(DpkgCaller { caller: Caller::of(Path::new("/"))?, admindir: None })
    }

    /// dpkg as its hooks' environment describes it (`DPKG_ROOT`, `DPKG_ADMINDIR`, dpkg(1)).
    pub fn of_dpkg() -> io::Result<DpkgCaller> {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let root = set("DPKG_ROOT").unwrap_or_else(|| PathBuf::from("/"));
        // dpkg names the directory as it sees it itself, from outside the root.
        let admindir = set("DPKG_ADMINDIR").map(|dir| match dir.strip_prefix(&root) {
            Ok(inside) => Path::new("/").join(inside),
            Err(_) => dir,
        });
        Ok(DpkgCaller { caller: Caller::of(&root)?, admindir })
    }

    /// The dpkg that runs the hook.
    pub fn dpkg(&self) -> Option<&Process> {
        self.caller.running("dpkg")
    }

    /// The guest's dpkg.
    pub fn manager(&self) -> Dpkg<'_> {
        Dpkg::new(&self.caller.root, self.admindir.clone())
    }
}
