//! What somebody else can do to a shared inode while its immutable flag is clear: nothing that stays.

use std::cell::RefCell;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use cow_hooks::sys::file::inode::{Inode, Time};
use cow_hooks::sys::share::gate;
use cow_hooks::sys::share::swap::{Name, Shared, SwapReport};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, Timestamps, XattrFlags};

use crate::support::{
    FILESYSTEMS, Filesystem, Seen, note_left_out, run, seen, set_immutable, set_mtime, text,
};

const PATIENCE: Duration = Duration::from_secs(30);

/// A way to change a file; `true` where it went through.
type Attack = fn(&Path) -> bool;

/// Writes to a file that was opened; what is written is not what was there.
fn opened(path: &Path, flags: OFlags) -> bool {
    let opened = rustix::fs::openat(CWD, path, flags | OFlags::CLOEXEC, Mode::empty());
    written(opened)
}

fn written(opened: rustix::io::Result<std::os::fd::OwnedFd>) -> bool {
    // Not only the open counts: ext4 gives a descriptor that takes no writes.
    opened.is_ok_and(|fd| File::from(fd).write_at(b"corrupt", 0).is_ok())
}

const ATTACKS: [(&str, Attack); 12] = [
    ("open for reading and writing", |path| opened(path, OFlags::RDWR)),
    ("open for writing, not waiting", |path| opened(path, OFlags::WRONLY | OFlags::NONBLOCK)),
    ("open for appending", |path| opened(path, OFlags::WRONLY | OFlags::APPEND)),
    ("open for writing, truncate", |path| opened(path, OFlags::WRONLY | OFlags::TRUNC)),
    ("open for reading, truncate", |path| {
        rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::TRUNC | OFlags::CLOEXEC, Mode::empty()).is_ok()
    }),
    ("openat2", |path| {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        written(rustix::fs::openat2(CWD, path, flags, Mode::empty(), ResolveFlags::empty()))
    }),
    ("open, and write later", |path| {
        thread_local!(static KEPT: RefCell<Vec<File>> = const { RefCell::new(Vec::new()) });
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        KEPT.with_borrow_mut(|kept| {
            if kept.len() < 100
                && let Ok(fd) = rustix::fs::openat(CWD, path, flags, Mode::empty())
            {
                kept.push(fd.into());
            }
            kept.iter().any(|file| file.write_at(b"corrupt", 0).is_ok())
        })
    }),
    ("truncate", |path| nix::unistd::truncate(path, 3).is_ok()),
    ("chmod", |path| fs::set_permissions(path, fs::Permissions::from_mode(0o4777)).is_ok()),
    ("chown", |path| std::os::unix::fs::chown(path, Some(7), Some(8)).is_ok()),
    ("utimensat", |path| {
        let time = rustix::fs::Timespec { tv_sec: 1, tv_nsec: 2 };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, path, &times, AtFlags::empty()).is_ok()
    }),
    ("setxattr", |path| rustix::fs::setxattr(path, "user.plain", b"changed", XattrFlags::empty()).is_ok()),
];

/// A protected inode with a name in the pool and in each of two guests, and the first guest's private copy.
struct Field {
    filesystem: Filesystem,
    before: Seen,
}

impl Field {
    fn new(kind: &str) -> Field {
        let filesystem = Filesystem::new(kind, 512);
        let pool = filesystem.path().join("pool");
        fs::write(&pool, "content\n".repeat(1000)).unwrap();
        fs::set_permissions(&pool, fs::Permissions::from_mode(0o755)).unwrap();
        run(Command::new("setfattr").args(["-n", "user.plain", "-v", "value"]).arg(&pool));
        set_mtime(&pool, Time { secs: 1_600_000_000, nanos: 123_456_789 });
        for guest in ["g1", "g2"] {
            fs::hard_link(&pool, filesystem.path().join(guest)).unwrap();
        }
        fs::write(filesystem.path().join("copy"), "private").unwrap();
        set_immutable(&pool, true);
        let before = seen(&pool);
        Field { filesystem, before }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.filesystem.path().join(name)
    }

    /// Takes the first guest's name from the shared inode or gives it back, time after time.
    fn windows(&self, count: usize) -> Tally {
        let dir = File::open(self.filesystem.path()).unwrap();
        let name = |name| Name { dir: dir.as_fd(), name };
        let (first, copy) = (name("g1".as_ref()), name("copy".as_ref()));
        let mut tally = Tally::default();
        for _ in 0..count {
            let shared = Shared::try_lock_at(&dir, "pool".as_ref(), PATIENCE).unwrap();
            let exchange = || {
                rustix::fs::renameat_with(
                    &dir,
                    copy.name,
                    &dir,
                    first.name,
                    rustix::fs::RenameFlags::EXCHANGE,
                )
            };
            tally.add(shared.change_names(exchange).unwrap());
        }
        tally
    }

    /// The same while somebody attacks the other guest's name, and somebody else reads it.
    fn attacked(&self, attack: Attack, count: usize) -> Tally {
        let (over, through, failed) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
        let (ready, name) = (std::sync::Barrier::new(3), self.path("g2"));
        let spin = |work: &dyn Fn()| {
            ready.wait();
            while !over.load(Relaxed) {
                work();
            }
        };
        let mut tally = std::thread::scope(|scope| {
            scope.spawn(|| spin(&|| count_if(attack(&name), &through)));
            scope.spawn(|| {
                let read = || fs::read(&name).is_ok_and(|content| content == self.before.content);
                spin(&|| count_if(!read(), &failed));
            });
            ready.wait();
            let tally = self.windows(count);
            gate::wait_for_late_openers();
            over.store(true, Relaxed);
            tally
        });
        (tally.through, tally.failed) = (through.into_inner(), failed.into_inner());
        tally
    }
}

fn count_if(what: bool, count: &AtomicU64) {
    count.fetch_add(what.into(), Relaxed);
}

/// What came of a number of windows.
#[derive(Debug, Default)]
struct Tally {
    leaked: usize,
    /// Attacks that went through, if only for a moment.
    through: u64,
    /// Readers who saw anything but the content.
    failed: u64,
}

impl Tally {
    fn add(&mut self, change: SwapReport) {
        assert!(change.window);
        self.leaked += usize::from(change.leaked);
    }
}

/// How many windows to open on each filesystem.
fn rounds() -> usize {
    std::env::var("COW_TESTS_ROUNDS").map_or(1000, |rounds| rounds.parse().unwrap())
}

/// Whether `truncate(2)` asks whether it may: since Linux 6.14.
fn truncate_asks() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.trim().parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(14))
}

#[test]
#[ignore = "needs root"]
fn privileged_nobody_changes_a_shared_inode_in_its_window() {
    let mut attacks = ATTACKS.to_vec();
    if !truncate_asks() {
        attacks.retain(|(what, _)| *what != "truncate");
        note_left_out("truncate(2) in a window", "Linux before 6.14 lets it through");
    }
    for kind in FILESYSTEMS {
        let field = Field::new(kind);
        for &(what, attack) in &attacks {
            let tally = field.attacked(attack, rounds().div_ceil(ATTACKS.len()));
            assert_eq!(field.before, seen(&field.path("pool")), "{kind} {what}: {tally:?}");
            assert_eq!((tally.leaked, tally.failed), (0, 0), "{kind} {what}: {tally:?}");
        }
    }
}

/// The children of this process that keep its gates. The kernel's own lists of children may leave some out
/// (`proc_pid_task(5)`).
fn keepers() -> Vec<Pid> {
    let parent = format!("PPid:\t{}", std::process::id());
    let is_keeper = |pid: &i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.starts_with("Name:\tcow-gate\n") && status.lines().any(|line| line == parent)
    };
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let found: Vec<Pid> = pids.filter(is_keeper).map(Pid::from_raw).collect();
    assert!(!found.is_empty(), "no keeper");
    found
}

fn send(keepers: &[Pid], signal: Signal) {
    keepers.iter().for_each(|keeper| kill(*keeper, signal).unwrap());
}

#[test]
#[ignore = "needs root"]
fn privileged_a_keeper_that_is_late_turns_nobody_away_who_has_waited_for_the_window_to_pass() {
    const ALONE: &str = "COW_TESTS_ALONE";
    // In a process of its own: this one's other tests need the keeper.
    if std::env::var_os(ALONE).is_none() {
        let name =
            "race::privileged_a_keeper_that_is_late_turns_nobody_away_who_has_waited_for_the_window_to_pass";
        let mut test = Command::new(std::env::current_exe().unwrap());
        let said = text(&run(test.args(["--include-ignored", "--exact", name]).env(ALONE, "1")));
        assert!(said.contains(" 1 passed;"), "{said}");
        return;
    }
    for kind in FILESYSTEMS {
        let field = Field::new(kind);
        let path = field.path("pool");
        let file = File::open(&path).unwrap();
        let inode = Inode::of(&file).unwrap().id;
        for _ in 0..20 {
            let closed = gate::close(file.as_fd(), inode).unwrap();
            let keepers = keepers();
            send(&keepers, Signal::SIGSTOP);
            drop(closed);
            gate::wait_until_opens_pass(|| Some(inode));
            let opened = std::thread::scope(|scope| {
                let opener = scope.spawn(|| {
                    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
                    rustix::fs::openat2(CWD, &path, flags, Mode::empty(), ResolveFlags::empty()).map(drop)
                });
                std::thread::sleep(Duration::from_millis(10));
                send(&keepers, Signal::SIGCONT);
                opener.join().unwrap()
            });
            assert_eq!(opened, Ok(()), "{kind}");
        }
        gate::wait_for_late_openers();
    }
}
