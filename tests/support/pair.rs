//! Two real guests that share their files, on a filesystem of their own: a copy of one that is made once.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use super::{Filesystem, ended, run, text};

/// What the guests share, and how it is protected.
#[derive(Clone, Copy)]
pub enum Scope {
    /// What packages own, immutable: the default.
    Owned,
    /// The same as plain hard links.
    Plain,
    /// Everything but `/var`, by accident.
    Wide,
}

/// The filesystems of one kind of guests, each made when it is first wanted.
pub type Images = [OnceLock<File>; 3];

/// Two guests that share their files.
pub struct Pair {
    pub filesystem: Filesystem,
    /// The script that restores these guests, and runs commands in them.
    tool: &'static str,
}

impl Pair {
    /// A pair of `tool`'s guests; `install` puts into them what they have besides, `finish` what comes after unifying.
    pub fn of(
        tool: &'static str,
        images: &'static Images,
        scope: Scope,
        install: fn(&Pair, &str),
        finish: fn(&Pair),
    ) -> Pair {
        Pair::copy_of(tool, &images[scope as usize], |pair| {
            for guest in ["g1", "g2"] {
                run(support(tool).arg("restore").arg(pair.path(guest)));
                install(pair, guest);
            }
            pair.unify_in(scope);
            finish(pair);
        })
    }

    /// A copy of what `make` makes in an empty filesystem when it is first wanted.
    pub fn copy_of(tool: &'static str, image: &'static OnceLock<File>, make: impl FnOnce(&Pair)) -> Pair {
        let image = image.get_or_init(|| {
            let pair = Pair { filesystem: Filesystem::new("ext4", 6 << 10), tool };
            make(&pair);
            pair.filesystem.into_image()
        });
        Pair { filesystem: Filesystem::copy_of(image), tool }
    }

    /// Makes the guests share what `scope` says.
    pub fn unify_in(&self, scope: Scope) {
        let mut unify = self.unify(&["--allow-setid"]);
        unify.args(["--protection", if matches!(scope, Scope::Plain) { "none" } else { "immutable" }]);
        if matches!(scope, Scope::Wide) {
            unify.args(["--scope", "all", "--exclude-from"]).arg(support("wide").get_program());
        }
        run(unify.args([self.path("g1"), self.path("g2")]));
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.filesystem.path().join(name)
    }

    /// Adds to the policy of the first guest.
    pub fn policy(&self, text: &str) {
        fs::write(self.path("g1/etc/cow-hooks/conf.d/test.toml"), text).unwrap();
    }

    /// `cow-unify` with these arguments, and the guests' pool.
    pub fn unify(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cow-unify"));
        command.args(arguments).arg("--pool").arg(self.path("pool"));
        command
    }

    /// Runs a line of shell in the first guest.
    pub fn run(&self, line: &str) -> Output {
        self.run_in("g1", line)
    }

    pub fn run_in(&self, guest: &str, line: &str) -> Output {
        let mut command = self.command_in(guest, line);
        let output = command.stdin(Stdio::null()).output().unwrap();
        println!("{guest}$ {line}\n{}", text(&output));
        output
    }

    pub fn command(&self, line: &str) -> Command {
        self.command_in("g1", line)
    }

    pub fn command_in(&self, guest: &str, line: &str) -> Command {
        let mut command = support(self.tool);
        command.arg("run").arg(self.path(guest)).args(["--", "sh", "-c", line]);
        command
    }

    #[track_caller]
    pub fn succeed(&self, line: &str) -> String {
        self.exits(0, line)
    }

    #[track_caller]
    pub fn exits(&self, code: i32, line: &str) -> String {
        ended(&self.run(line), code, line)
    }

    /// Lets apt in the first guest look at another archive.
    pub fn sources(&self, archive: &str) {
        self.sources_in("g1", archive);
    }

    pub fn sources_in(&self, guest: &str, archive: &str) {
        run(support(self.tool).arg("sources").arg(self.path(guest)).arg(archive));
    }

    /// Asserts that `work` leaves the pair clean and nothing pending; tells what was shared below `/usr` and still is.
    #[track_caller]
    pub fn watch(&self, work: impl FnOnce()) -> Shared {
        let state = tempfile::tempdir_in(self.filesystem.path()).unwrap();
        let check = |action: &str, option: Option<&str>| {
            let mut command = support("clean-check");
            command.arg(action).arg(state.path().join("state")).args([self.path("g1"), self.path("g2")]);
            command.arg("--pool").arg(self.path("pool")).args(option);
            command.output().unwrap()
        };
        let recorded = check("record", None);
        assert!(recorded.status.success(), "{}", text(&recorded));
        work();
        let verified = check("verify", None);
        assert!(verified.status.success(), "{}", text(&verified));
        self.assert_settled("it is settled");
        let counts = text(&check("verify", Some("--counts")));
        let count = |name: &str| {
            let line = counts.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|value| value.parse().ok()).unwrap()
        };
        Shared { before: count("shared_before="), now: count("shared_now=") }
    }

    /// Asserts that the transaction owes nothing, and has left nothing.
    #[track_caller]
    pub fn assert_settled(&self, line: &str) {
        assert_eq!(self.pending(), (0, 0, 0), "{line}: ledger entries, originals in the stash, members");
        assert!(!self.exists("/var/lib/cow-hooks/planned"), "{line}: its plan");
    }

    /// What the transaction still owes: entries in the ledger, files in the stash, members.
    pub fn pending(&self) -> (i64, usize, usize) {
        let state = self.path("g1/var/lib/cow-hooks");
        let names = |dir: &str| fs::read_dir(state.join(dir)).map_or(0, |names| names.count());
        let ledger = state.join("ledger.db");
        let entries = if ledger.exists() {
            let ledger = rusqlite::Connection::open(ledger).unwrap();
            ledger.query_row("SELECT count(*) FROM entry", [], |row| row.get(0)).unwrap()
        } else {
            0
        };
        (entries, names("stash"), names("members"))
    }

    /// The files below `/usr` that cow-status takes for unified.
    pub fn unified(&self) -> u64 {
        let status: serde_json::Value =
            serde_json::from_str(&self.succeed("cow-status --json /usr")).unwrap();
        status["trees"][0]["unified"]["files"].as_u64().unwrap()
    }

    pub fn exists(&self, path: &str) -> bool {
        fs::symlink_metadata(self.path("g1").join(path.trim_start_matches('/'))).is_ok()
    }
}

/// How many files below `/usr` the guests shared before, and how many of these they share now.
#[derive(Clone, Copy, Debug)]
pub struct Shared {
    pub before: u64,
    pub now: u64,
}

pub fn support(script: &str) -> Command {
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support").join(script))
}

/// The lines we printed.
pub fn ours(output: &str) -> Vec<&str> {
    output.lines().filter(|line| line.starts_with("cow-hooks: ")).collect()
}
