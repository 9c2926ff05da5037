//! Many Debian guests that have drifted apart a little, judged by a script that reads and compares everything itself.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;

use crate::guests::deb;
use crate::support::pair::support;
use crate::support::{Filesystem, run, text};

/// How many guests there are.
fn count() -> usize {
    std::env::var("COW_TESTS_GUESTS").ok().and_then(|count| count.parse().ok()).unwrap_or(4)
}

/// Whether each has the packages of a server, 30 000 names and 1 GB.
fn large() -> Option<&'static str> {
    std::env::var_os("COW_TESTS_LARGE").map(|_| "--large")
}

struct Many {
    filesystem: Filesystem,
    guests: Vec<PathBuf>,
}

impl Many {
    fn new() -> Many {
        let gigabytes = 1 + count() as u64 * if large().is_some() { 2 } else { 1 };
        let filesystem = Filesystem::new("ext4", gigabytes << 10);
        run(support("guests").arg("many").args(large()).arg(count().to_string()).arg(filesystem.path()));
        let guests = (1..=count()).map(|number| filesystem.path().join(format!("g{number}"))).collect();
        Many { filesystem, guests }
    }

    /// Unifies, and has it judged; what cow-unify and the judge say.
    fn unify(&self, arguments: &[&str]) -> String {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        let pool = self.filesystem.path().join(".cow-pool");
        run(support("unify-check").arg("record").arg(&state).args(&self.guests));
        let mut unify = Command::new(env!("CARGO_BIN_EXE_cow-unify"));
        let said = text(&run(unify.args(arguments).args(&self.guests)));
        let mut judge = support("unify-check");
        judge.arg("verify").arg(&state).args(&self.guests).arg("--pool").arg(pool);
        let judged = judge.output().unwrap();
        eprintln!("{said}{}", text(&judged));
        assert!(judged.status.success(), "{said}{}", text(&judged));
        said
    }

    fn run_in(&self, guest: &PathBuf, line: &str) {
        run(support("guests").arg("run").arg(guest).args(["--", "sh", "-c", line]));
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_all_that_is_equal_is_one_inode_before_and_after_upgrades() {
    let many = Many::new();
    many.unify(&[]);
    for guest in &many.guests[..2] {
        std::io::copy(
            &mut File::open(deb()).unwrap(),
            &mut File::create(guest.join("root/cow-hooks.deb")).unwrap(),
        )
        .unwrap();
        many.run_in(guest, "apt-get install /root/cow-hooks.deb");
        run(support("guests").arg("sources").arg(guest).arg("newer"));
        many.run_in(guest, "apt-get upgrade");
    }
    many.unify(&[]);
    assert!(many.unify(&[]).contains(" 0 linked"));
}
