//! All package managers of a guest, as one.

use std::path::PathBuf;

use super::dpkg::Admindir;
use super::dpkg::after::Dpkg;
use super::installed::{Database, Error, Visit};
use super::pacman::Pacman;
use super::rpm::Rpm;
use crate::sys::path::root::Root;

/// All package managers of a guest, as one.
pub struct Managers<'r> {
    root: &'r Root,
    databases: [Box<dyn Database + 'r>; 3],
}

impl<'r> Managers<'r> {
    /// Those of the guest at `root`, their databases in the usual places.
    pub fn new(root: &'r Root) -> Managers<'r> {
        let databases: [Box<dyn Database>; 3] = [
            Box::new(Dpkg::new(root, Admindir::usual())),
            Box::new(Rpm::new(root, None)),
            Box::new(Pacman::new(root, None)),
        ];
        Managers { root, databases }
    }
}

impl Database for Managers<'_> {
    fn root(&self) -> &Root {
        self.root
    }

    fn each(&self, visit: &mut Visit<'_>) -> Result<bool, Error> {
        let mut found = false;
        for database in &self.databases {
            found |= database.each(visit)?;
        }
        Ok(found)
    }

    fn witnesses(&self) -> Vec<PathBuf> {
        self.databases.iter().flat_map(|database| database.witnesses()).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;
    use crate::package::PackageManager;
    use crate::package::testing::Guest;
    use crate::sys::file::times::TICK;

    #[test]
    fn a_guest_may_have_several_package_managers() {
        let guest = Guest::new();
        let root = guest.root();
        guest.install("a", "all", "Conffiles:\n /etc/a 00", &["/usr/bin/a"]);
        guest.install_rpm("bash", 1, &[(b"/usr/bin/b", 0, 0), (b"/etc/b", 1, 0), (b"/var/b", 1 << 6, 0)]);
        guest.write("/var/lib/pacman/local/c-1/desc", b"%NAME%\nc\n");
        guest.write("/var/lib/pacman/local/d-1/files", b"%FILES%\nusr/bin/d\n\n%BACKUP%\netc/d\t00\n");
        std::thread::sleep(TICK);
        let managers = Managers::new(&root);
        let packages = managers.after_run(0).unwrap();
        let configuration: BTreeSet<_> = packages.configuration.iter().map(PathBuf::as_path).collect();
        assert!(configuration.into_iter().eq(["/etc/a", "/etc/b", "/etc/d", "/var/b"].map(Path::new)));
        assert!(packages.unfinished.iter().eq([Path::new("/usr/bin/d")]));
        let unpacked = ["/etc/b", "/usr/bin/a", "/usr/bin/b", "/usr/bin/d", "/var/b"];
        assert!(packages.unpacked.iter().eq(unpacked.map(Path::new)), "{packages:?}");
        assert_eq!(managers.essential().unwrap().len(), 3);
    }

    #[test]
    fn a_guest_may_have_none() {
        let guest = Guest::bare();
        let root = guest.root();
        let managers = Managers::new(&root);
        assert!(!managers.each(&mut |_| Ok(())).unwrap());
        assert!(managers.after_run(0).unwrap().unpacked.is_empty());
    }

    #[test]
    fn a_database_that_is_not_read_keeps_no_run_from_being_settled() {
        let guest = Guest::new();
        guest.install("a", "all", "", &["/usr/bin/a"]);
        guest.write("/var/lib/rpm/Packages", b"");
        let root = guest.root();
        let managers = Managers::new(&root);
        assert!(managers.each(&mut |_| Ok(())).unwrap_err().is_unsupported());
        assert_eq!(managers.after_run(0).unwrap().unpacked.len(), 1);
        assert!(managers.essential().is_ok());
    }
}
