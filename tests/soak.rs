//! Random transactions of apt and dpkg in six guests, killed at random, with passes of cow-unify between and beside them,
//! killed as well, and a hostile guest that shares their files: in the end everything is in order.
//!
//! `COW_TESTS_SOAK` says how many transactions; 200 take an hour or two. `COW_TESTS_SEED` repeats a run's choices, though
//! not what processes do meanwhile.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

use crate::guests::{DEBS, deb};
use crate::hostile::Hostile;
use crate::support::pair::support;
use crate::support::{Filesystem, litter, note_left_out, run, text};

const GUESTS: [&str; 6] = ["g1", "g2", "g3", "g4", "g5", "g6"];
/// Its root tries to change what it shares; nobody asks what becomes of its own files.
const HOSTILE: &str = "hostile";

/// Packages that come and go.
const ADDED: [&str; 12] = [
    "hello",
    "screen",
    "tmux",
    "mc",
    "vim",
    "iproute2",
    "hicolor-icon-theme",
    "xml-core",
    "emacsen-common",
    "git",
    "texinfo",
    "shared-mime-info",
];
/// Packages that are installed again as they are.
const AGAIN: [&str; 10] = [
    "bash",
    "coreutils",
    "libc6",
    "perl-base",
    "sudo",
    "man-db",
    "tzdata",
    "debconf",
    "python3-minimal",
    "systemd",
];
/// Packages of which there are two versions; those of one line go together.
const VERSIONS: [&str; 10] = [
    "bash",
    "coreutils",
    "login",
    "passwd",
    "sudo",
    "tzdata",
    "man-db",
    "iputils-ping",
    "adduser",
    "cron cron-daemon-common",
];
/// Packages of `support/debs`, versions 1 and 2.
const ODD: [&str; 5] = ["cow-plain", "cow-links", "cow-odd", "cow-shape", "cow-conf"];

/// What the hostile guest does, and to which of its names.
const WAYS: [&str; 7] = ["chmod", "chown", "setcap", "truncate", "truncate-openat", "write", "lock"];
const TARGETS: [&str; 6] = [
    "usr/bin/bash",
    "usr/bin/ls",
    "usr/bin/sudo",
    "usr/bin/passwd",
    "usr/bin/perl",
    "usr/share/zoneinfo/UTC",
];
const DIRECTORIES: [&str; 3] = ["usr/bin", "usr/sbin", "usr/share/zoneinfo/Europe"];

/// What a kill may hit beside a transaction as a whole: the names of processes, cut as the kernel cuts them.
const VICTIMS: [&str; 6] = ["apt-get", "dpkg", "dpkg-deb", "cow-dpkg", "cow-run", "cow-hooks"];

/// Numbers that look random; SplitMix64.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, count: usize) -> usize {
        usize::try_from(self.next() % count as u64).unwrap()
    }

    /// Once in so many times.
    fn once_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.below(of.len())]
    }

    /// One to three of them.
    fn some(&mut self, of: &[&str]) -> String {
        let count = 1 + self.below(3);
        (0..count).map(|_| self.one(of)).collect::<Vec<_>>().join(" ")
    }

    /// Short times as often as long ones.
    fn time(&mut self) -> Duration {
        let doublings = i32::try_from(self.below(9)).unwrap();
        Duration::from_secs_f64(0.04 * 2f64.powi(doublings) * (1.0 + self.below(100) as f64 / 100.0))
    }

    /// A line of shell that changes packages.
    fn transaction(&mut self) -> String {
        const OPTIONS: &str = "apt-get -o Dpkg::Options::=--force-confold";
        match self.below(8) {
            0 | 1 => format!("{OPTIONS} install {}", self.some(&ADDED)),
            2 => format!("{OPTIONS} remove {}", self.some(&ADDED)),
            3 => format!("{OPTIONS} purge {} && {OPTIONS} autoremove --purge", self.some(&ADDED)),
            4 => format!("{OPTIONS} install --reinstall {}", self.some(&AGAIN)),
            5 => format!("{OPTIONS} install {}", self.some(&VERSIONS)),
            6 => {
                let versions =
                    "apt-cache madison $package | cut -d '|' -f 2 | tr -d ' ' | grep -v cow1 | head -n 1";
                format!(
                    "{OPTIONS} install --allow-downgrades $(for package in {}; do echo $package=$({versions}); done)",
                    self.one(&VERSIONS)
                )
            }
            _ => {
                let package = |dice: &mut Dice| format!("{}_{}.deb", dice.one(&ODD), 1 + dice.below(2));
                format!("cd {DEBS} && dpkg --force-confold -i {}", package(self))
            }
        }
    }
}

/// Brings packages into order after a kill. What was half unpacked is installed anew.
const MEND: &str = "
    for round in 1 2 3; do
        dpkg --force-confold --configure -a
        stuck=$(dpkg-query -W -f '${db:Status-Abbrev}|${Package}\\n' | grep -v '^\\(ii\\|rc\\|un\\) ' | cut -d '|' -f 2)
        theirs=
        for package in $stuck; do
            case $package in
            cow-hooks) dpkg -i /root/cow-hooks.deb ;;
            cow-*) dpkg --force-confold -i /root/debs/${package}_2.deb ;;
            *) theirs=\"$theirs $package\" ;;
            esac
        done
        if [ -n \"$theirs\" ]; then apt-get install --reinstall $theirs; fi
        if apt-get -f install && [ -z \"$(dpkg --audit)\" ]; then exit 0; fi
    done
    dpkg --audit
    exit 1";

/// How often what has happened.
#[derive(Default, Debug)]
struct Tally {
    transactions: usize,
    /// Transactions that failed by themselves.
    refused: usize,
    killed: BTreeMap<String, usize>,
    mended: usize,
    passes: usize,
    killed_passes: usize,
    beside: usize,
    hostile: BTreeMap<&'static str, usize>,
}

/// The lines of `support/snapshot`, by path, but what a pass may change: flags, and what is ours.
type Picture = BTreeMap<String, String>;

struct Soak {
    filesystem: Filesystem,
    dice: Dice,
    tally: Tally,
    /// The guests as they were after their own last transactions.
    pictures: BTreeMap<&'static str, Picture>,
}

impl Soak {
    /// Equal guests with cow-hooks, two versions of packages, and a pool.
    fn new(seed: u64) -> Soak {
        let filesystem = Filesystem::new("ext4", 12 << 10);
        let soak = Soak { filesystem, dice: Dice(seed), tally: Tally::default(), pictures: BTreeMap::new() };
        let first = soak.path("g1");
        run(support("guests").arg("restore").arg(&first));
        run(support("debs").arg(first.join(&DEBS[1..])));
        fs::copy(deb(), first.join("root/cow-hooks.deb")).unwrap();
        run(support("guests").arg("sources").arg(&first).arg("newer"));
        let odd = ODD.map(|package| format!("{DEBS}/{package}_1.deb")).join(" ");
        run(&mut soak.command("g1", &format!("dpkg -i {odd} && apt-get install /root/cow-hooks.deb")));
        for guest in GUESTS[1..].iter().chain(&[HOSTILE]) {
            run(Command::new("cp").arg("-a").arg(&first).arg(soak.path(guest)));
        }
        assert!(soak.pass(&["--protection", "immutable"], &soak.path("log")).wait().unwrap().success());
        soak
    }

    fn path(&self, name: &str) -> PathBuf {
        self.filesystem.path().join(name)
    }

    /// A line of shell in a guest.
    fn command(&self, guest: &str, line: &str) -> Command {
        let mut command = support("guests");
        command.arg("run").arg(self.path(guest)).args(["--", "sh", "-c", line]);
        command
    }

    fn pass(&self, more: &[&str], log: &Path) -> Child {
        let log = File::create(log).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_cow-unify"));
        command.current_dir(self.filesystem.path()).args(["--allow-setid", "--pool", ".cow-pool"]);
        command.args(more).args(GUESTS).arg(HOSTILE).stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
    }

    fn picture(&self, guest: &str) -> Picture {
        let lines = text(&run(support("snapshot").arg(self.path(guest))));
        let kept = lines.lines().filter_map(|line| {
            let (path, fields) = line.split_once('\t')?;
            let fields: Vec<&str> = fields.split('\t').collect();
            let is_ours = Path::new(path).starts_with("/var/lib/cow-hooks");
            (!is_ours).then(|| (path.to_owned(), [&fields[..6], &fields[7..]].concat().join("\t")))
        });
        kept.collect()
    }

    /// Asserts that a guest is as it was after its own last transaction.
    fn assert_untouched(&mut self, guest: &'static str) {
        let Some(before) = self.pictures.remove(guest) else { return };
        let now = self.picture(guest);
        let paths = before.keys().chain(now.keys());
        let mut changed: Vec<_> = paths
            .filter(|path| before.get(*path) != now.get(*path))
            .map(|path| format!("{path}: {:?}, was {:?}", now.get(path), before.get(path)))
            .collect();
        changed.dedup();
        assert!(changed.is_empty(), "{guest} was changed from without:\n{}", changed.join("\n"));
    }

    /// One transaction, with what happens beside it.
    fn round(&mut self, number: usize) {
        let guest = self.dice.one(&GUESTS);
        self.assert_untouched(guest);
        let hostile = self.hostile();
        let pass = self.dice.once_in(3).then(|| self.some_pass());
        self.tally.beside += usize::from(pass.is_some());
        let line = self.dice.transaction();
        let kill = self.dice.once_in(3).then(|| self.dice.time());
        let begun = Instant::now();
        let (status, killed) = self.transact(guest, &line, kill);
        self.tally.transactions += 1;
        let is_killed = killed.is_some();
        println!(
            "{number} {guest} {line}: {status}, killed {killed:?}, {:.1} s",
            begun.elapsed().as_secs_f32()
        );
        if let Some(name) = killed {
            *self.tally.killed.entry(name).or_default() += 1;
        } else if !status.success() {
            self.tally.refused += 1;
            println!("{}", fs::read_to_string(self.path("log")).unwrap());
        }
        if is_killed && self.dice.once_in(4) {
            let time = self.dice.time();
            self.transact(guest, MEND, Some(time));
        }
        if !status.success() || is_killed {
            self.mend(guest);
        }
        if let Some(pass) = pass {
            self.pass_ends(pass);
        }
        if self.dice.once_in(2) {
            let pass = self.some_pass();
            self.pass_ends(pass);
        }
        drop(hostile);
        let picture = self.picture(guest);
        self.pictures.insert(guest, picture);
    }

    fn hostile(&mut self) -> Hostile {
        let way = self.dice.one(&WAYS);
        *self.tally.hostile.entry(way).or_default() += 1;
        let target = if way == "lock" { self.dice.one(&DIRECTORIES) } else { self.dice.one(&TARGETS) };
        Hostile::starts(way, &self.path(HOSTILE).join(target))
    }

    /// How a line ends in a guest, and what was killed after this time.
    fn transact(&self, guest: &str, line: &str, kill: Option<Duration>) -> (ExitStatus, Option<String>) {
        let log = File::create(self.path("log")).unwrap();
        let mut command = self.command(guest, line);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let mut child = command.spawn().unwrap();
        let mut killed = None;
        if let Some(time) = kill {
            std::thread::sleep(time);
            if child.try_wait().unwrap().is_none() {
                killed = Some(kill_one(&mut child, time));
            }
        }
        (child.wait().unwrap(), killed)
    }

    #[track_caller]
    fn mend(&mut self, guest: &str) {
        let (status, _) = self.transact(guest, MEND, None);
        self.tally.mended += 1;
        let said = fs::read_to_string(self.path("log")).unwrap();
        assert!(status.success(), "{guest} cannot be mended: {said}");
    }

    /// A pass of the day, or one of what has changed; and when it is killed, if at all.
    fn some_pass(&mut self) -> (Child, Option<Duration>) {
        let more: &[&str] = if self.dice.once_in(2) { &["--changed"] } else { &["--gc"] };
        let kill = self.dice.once_in(3).then(|| self.dice.time());
        self.tally.passes += 1;
        (self.pass(more, &self.path("pass-log")), kill)
    }

    fn pass_ends(&mut self, (mut pass, kill): (Child, Option<Duration>)) {
        if let Some(time) = kill {
            std::thread::sleep(time);
            if pass.try_wait().unwrap().is_none() {
                pass.kill().unwrap();
                self.tally.killed_passes += 1;
                pass.wait().unwrap();
                return;
            }
        }
        let status = pass.wait().unwrap();
        let said = fs::read_to_string(self.path("pass-log")).unwrap();
        assert!(matches!(status.code(), Some(0 | 1)), "a pass: {status}: {said}");
    }

    /// What a guest's dpkg says to a question, both streams.
    fn dpkg(&self, guest: &str, question: &str) -> String {
        text(&self.command(guest, &format!("dpkg {question}")).output().unwrap())
    }

    fn check(&self, words: &[&str]) -> (Option<i32>, String) {
        let mut command = support("unify-check");
        command.current_dir(self.filesystem.path()).args(words).args(GUESTS).arg(HOSTILE);
        let output = command.output().unwrap();
        (output.status.code(), text(&output))
    }

    /// The last pass, and whether all is in order then.
    fn ends(mut self, verified: &str) {
        for guest in GUESTS {
            self.assert_untouched(guest);
            // Whoever was killed last leaves to the next one what it had begun.
            self.mend(guest);
            assert_eq!(self.dpkg(guest, "--audit"), "", "{guest}");
            assert_eq!(self.dpkg(guest, "--verify"), verified, "{guest}");
            assert_eq!(litter(&self.path(guest)), [""; 0].map(PathBuf::from), "{guest}");
        }
        // The first ends what others have begun, and what is judged is what the second does.
        self.pass(&[], &self.path("pass-log")).wait().unwrap();
        let state = self.path("state");
        let state = state.to_str().unwrap();
        assert_eq!(self.check(&["record", state]), (Some(0), String::new()));
        let status = self.pass(&["--gc"], &self.path("pass-log")).wait().unwrap();
        let said = fs::read_to_string(self.path("pass-log")).unwrap();
        assert!(status.success(), "the last pass: {said}");
        let (_, told) = self.check(&["verify", state, "--allow-setid", "--json", "--pool", ".cow-pool"]);
        let told: Value = serde_json::from_str(told.trim()).unwrap_or_else(|e| panic!("{e}: {told}"));
        for (what, lines) in told["wrong"].as_object().unwrap() {
            // How much is not one inode is judged below.
            assert!(what == "equal" || lines.as_array().unwrap().is_empty(), "{what}: {lines}");
        }
        let bytes = |name: &str| told[name].as_u64().unwrap();
        let (saved, missed) = (bytes("saved_bytes"), bytes("missed_bytes"));
        println!("{:?}", self.tally);
        println!("{saved} bytes are saved by sharing, of {} at best", saved + missed);
        assert!(missed * 100 <= saved + missed, "{}", told["wrong"]["equal"]);
        let mut verify = Command::new(env!("CARGO_BIN_EXE_cow-unify"));
        verify.current_dir(self.filesystem.path()).args(["verify", "--pool", ".cow-pool"]);
        run(verify.args(GUESTS));
    }
}

/// Kills a transaction as a whole, or one process of it, and tells which.
fn kill_one(transaction: &mut Child, time: Duration) -> String {
    let inside = descendants(transaction.id());
    let victims: Vec<_> = inside.iter().filter(|(_, name)| VICTIMS.contains(&name.as_str())).collect();
    // As random as the time is.
    let at = usize::try_from(time.subsec_micros() / 100).unwrap() % (victims.len() + 1);
    let Some((pid, name)) = victims.get(at) else {
        transaction.kill().unwrap();
        return "all".into();
    };
    // It may have ended by itself.
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::Signal::SIGKILL);
    name.clone()
}

/// The processes that a process has started, and those that they have, with their names.
fn descendants(of: u32) -> Vec<(i32, String)> {
    let mut all: BTreeMap<i32, Vec<(i32, String)>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let (Some(begin), Some(end)) = (stat.find('('), stat.rfind(')')) else { continue };
        let pid = stat[..begin].trim().parse().unwrap();
        let parent = stat[end + 1..].split_whitespace().nth(1).unwrap().parse().unwrap();
        all.entry(parent).or_default().push((pid, stat[begin + 1..end].to_owned()));
    }
    let mut found = Vec::new();
    let mut waiting = vec![i32::try_from(of).unwrap()];
    while let Some(parent) = waiting.pop() {
        for child in all.remove(&parent).unwrap_or_default() {
            waiting.push(child.0);
            found.push(child);
        }
    }
    found
}

#[test]
#[ignore = "needs root"]
fn privileged_random_transactions_with_kills_beside_a_hostile_guest_leave_all_in_order() {
    let wanted = std::env::var("COW_TESTS_SOAK").ok().and_then(|number| number.parse().ok());
    let Some(transactions) = wanted else {
        return note_left_out("random transactions in six guests", "COW_TESTS_SOAK does not say how many");
    };
    let now = || SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let seed = std::env::var("COW_TESTS_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(now);
    println!("COW_TESTS_SEED={seed} COW_TESTS_SOAK={transactions}");
    let mut soak = Soak::new(seed);
    let verified = soak.dpkg("g1", "--verify");
    println!("dpkg --verify in a fresh guest: {verified}");
    for number in 1..=transactions {
        soak.round(number);
    }
    soak.ends(&verified);
}
