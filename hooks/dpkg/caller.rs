//! Who called the hook: apt, or dpkg, through a shell or not.

use std::io;
use std::path::{Path, PathBuf};

use cow_hooks::ledger::store::Store;
use cow_hooks::package::dpkg::after::Dpkg;
use cow_hooks::policy::Policy;
use cow_hooks::report::Reason;
use cow_hooks::sys::process::{Process, Processes};
use cow_hooks::sys::root::Root;
use cow_hooks::transaction::members::{Member, Members};

/// Programs that stand between a package manager and its hook.
const SHELLS: [&str; 5] = ["sh", "dash", "bash", "ash", "busybox"];

/// The guest that is worked on, and who works on it.
#[derive(Debug)]
pub struct Caller {
    /// The guest's root.
    pub root: Root,
    /// dpkg's database, as a path of the guest.
    pub admindir: Option<PathBuf>,
    /// The process table; none in a chroot without `/proc` where we may not make one.
    pub processes: Option<Processes>,
    /// The hook's ancestors, the nearest first.
    pub ancestors: Vec<Process>,
}

impl Caller {
    /// The caller, and the guest at `root`.
    pub fn of(root: &Path, admindir: Option<PathBuf>) -> io::Result<Caller> {
        let processes =
            Processes::open().inspect_err(|e| log::debug!("no process table: {}", Reason(e))).ok();
        let ancestors = processes.as_ref().and_then(|p| p.ancestors().ok()).unwrap_or_default();
        Ok(Caller { root: Root::open(root)?, admindir, processes, ancestors })
    }

    /// The caller as dpkg's environment describes it (`DPKG_ROOT`, `DPKG_ADMINDIR`, dpkg(1)).
    pub fn of_dpkg() -> io::Result<Caller> {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let root = set("DPKG_ROOT").unwrap_or_else(|| PathBuf::from("/"));
        // dpkg names the directory as it sees it itself, from outside the root.
        let admindir = set("DPKG_ADMINDIR").map(|dir| match dir.strip_prefix(&root) {
            Ok(inside) => Path::new("/").join(inside),
            Err(_) => dir,
        });
        Caller::of(&root, admindir)
    }

    /// The nearest ancestor that is no shell: apt, or whatever uses its library.
    pub fn front_end(&self) -> Option<&Process> {
        self.ancestors.iter().find(|process| !SHELLS.iter().any(|shell| process.command == *shell))
    }

    /// The dpkg that runs the hook.
    pub fn dpkg(&self) -> Option<&Process> {
        self.ancestors.iter().find(|process| process.command == "dpkg")
    }

    /// The living member that has already planned for what this hook's caller is about to do.
    pub fn covered_by(&self) -> Option<Member> {
        let store = Store::existing(&self.root).ok()??;
        Members::open(&store).ok()?.covering(&self.ancestors).ok()?
    }

    /// The guest's policy; the built-in one, with a warning, where its files make no sense.
    pub fn policy(&self) -> Option<Policy> {
        match Policy::load(&self.root) {
            Ok(policy) => Some(policy),
            Err(e) => {
                log::warn!("{e}; the built-in policy is used");
                Policy::builtin().inspect_err(|e| log::error!("{e}")).ok()
            }
        }
    }

    /// The guest's dpkg.
    pub fn manager(&self) -> Dpkg<'_> {
        Dpkg::new(&self.root, self.admindir.clone())
    }
}
