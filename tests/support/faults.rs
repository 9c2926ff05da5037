//! Operations run again and again, each time with a fault at another of their calls: a kill, an error, a power cut.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::Duration;

use cow_hooks::sys::file::inode::{Inode, InodeId, Kind, Time};
use rustix::fs::IFlags;

use super::bed::with_shell;
use super::{Filesystem, Seen, built, entries, feed, install_libraries, litter, program, run, seen, text};

/// What a call may fail with: number, and what a person reads.
pub const ERRORS: [(i32, &str); 7] = [
    (libc::ENOSPC, "ENOSPC"),
    (libc::EIO, "EIO"),
    (libc::EMLINK, "EMLINK"),
    (libc::EPERM, "EPERM"),
    (libc::EROFS, "EROFS"),
    (libc::EDQUOT, "EDQUOT"),
    (libc::EINTR, "EINTR"),
];

/// The guests; the third has no part in anything.
pub const GUESTS: [&str; 3] = ["g1", "g2", "g3"];

/// `support/steps.c`, compiled.
pub fn steps() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("steps");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/steps.c");
        // Another process of these tests may be running it.
        let fresh = program.with_extension(std::process::id().to_string());
        run(Command::new("cc").args(["-O2", "-Wall", "-static", "-o"]).arg(&fresh).arg(source));
        fs::rename(&fresh, &program).unwrap();
        program
    })
}

/// Three guests, their pool and the host's own state, all on one filesystem.
pub struct World {
    filesystem: Filesystem,
    /// Whether cow-unify takes the guard for loaded.
    guard: bool,
}

/// A command line, and where it is run.
#[derive(Clone)]
pub enum Line {
    /// `cow-unify` with these words.
    Host(Vec<&'static str>),
    /// A program of ours in the first guest, with these words and this input.
    Guest(Vec<&'static str>, String),
    /// A line of shell in the first guest, which has a process table of its own.
    Shell(&'static str),
}

impl World {
    /// Guests without files.
    pub fn new(kind: &str, mount: &Path) -> World {
        let megabytes = match kind {
            "ext4" => 96,
            "xfs" => 320,
            _ => 160,
        };
        let world = World { filesystem: Filesystem::at(kind, megabytes, mount), guard: false };
        for guest in GUESTS {
            for dir in
                ["usr/lib", "var/lib/dpkg/info", "var/lib/dpkg/updates", "var/lib/cow-hooks/spool", "tmp"]
            {
                fs::create_dir_all(world.path(guest).join(dir)).unwrap();
            }
        }
        fs::create_dir_all(world.path("state/cow-hooks")).unwrap();
        fs::create_dir(world.path("state/proc")).unwrap();
        let first = world.path("g1");
        for dir in ["programs", "proc", "dev", "usr/libexec/cow-hooks", "etc/cow-hooks/conf.d"] {
            fs::create_dir_all(first.join(dir)).unwrap();
        }
        run(Command::new("mknod").arg(first.join("dev/null")).args(["c", "1", "3"]));
        for name in ["cow-prepare", "cow-run", "cow-dpkg"] {
            program(name);
        }
        std::os::unix::fs::symlink("/programs/names/cow-dpkg", first.join("usr/libexec/cow-hooks/cow-dpkg"))
            .unwrap();
        // By itself, /proc being there, a hook would leave files to its supervisor.
        fs::write(first.join("etc/cow-hooks/conf.d/test.toml"), "supervise = 'never'\n").unwrap();
        with_shell(&first, &["/bin/mv", "/bin/ln", "/bin/rm", "/bin/chmod", "/bin/cat"]);
        install_libraries(&first, &built("cow-hooks"));
        world
    }

    /// With cow-unify that takes the guard for loaded.
    pub fn with_guard(self, guard: bool) -> World {
        World { guard, ..self }
    }

    /// A copy of what an image holds.
    pub fn copy(image: &fs::File, mount: &Path, guard: bool) -> World {
        World { filesystem: Filesystem::copy_at(image, mount), guard }
    }

    pub fn into_image(self) -> fs::File {
        self.filesystem.into_image()
    }

    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.filesystem.path().join(path)
    }

    /// Runs a line by `wrapper`, with these words after it.
    fn command(&self, wrapper: &[String], line: &Line, after: &[String]) -> Output {
        let mut command = Command::new("unshare");
        let mut script = String::from(
            "mount --bind state /var/lib && mount --bind \"$0\" g1/programs && mount -t proc proc g1/proc && ",
        );
        let (words, input): (Vec<String>, &str) = match line {
            Line::Host(words) => {
                let program = env!("CARGO_BIN_EXE_cow-unify");
                let fixed = ["--jobs", "1", "--pool", ".cow-pool"];
                ([program].iter().chain(words).chain(&fixed).map(|&word| word.into()).collect(), "")
            }
            Line::Guest(words, input) => {
                let program = format!("/programs/names/{}", words[0]);
                let words = words[1..].iter().map(|&word| word.to_owned());
                (["chroot".into(), "g1".into(), program].into_iter().chain(words).collect(), input)
            }
            Line::Shell(script) => (["chroot", "g1", "/bin/sh", "-c", script].map(String::from).to_vec(), ""),
        };
        if matches!(line, Line::Shell(_)) {
            command.args(["--pid", "--fork", "--kill-child"]);
            script.push_str("mount --bind /proc state/proc && mount -t proc proc /proc && ");
        }
        script.push_str("exec timeout -s KILL 120 \"$@\"");
        command.args(["--mount", "sh", "-c", &script]).arg(built("")).args(wrapper).args(words).args(after);
        command.current_dir(self.filesystem.path()).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        if self.guard {
            command.env("COW_TESTS_PRETEND_GUARD", "1");
        }
        feed(&mut command, input.as_bytes())
    }

    /// What a line comes to.
    pub fn run(&self, line: &Line) -> Output {
        // What has only just changed is left for the next run.
        std::thread::sleep(Duration::from_millis(20));
        self.command(&["env".into()], line, &[])
    }

    #[track_caller]
    pub fn succeed(&self, line: &Line) -> String {
        super::ended(&self.run(line), 0, "what comes before")
    }

    /// Runs a line with a fault at one of its calls; 0: none.
    pub fn faulted(&self, line: &Line, at: usize, fault: &Fault) -> Ran {
        std::thread::sleep(Duration::from_millis(20));
        let mut wrapper = vec![steps().display().to_string(), "-c".into()];
        if matches!(line, Line::Shell(script) if script.starts_with("exec /programs")) {
            wrapper.extend(["-o", "cow-hooks"].map(String::from));
        }
        let mut hook: Vec<String> = Vec::new();
        match fault {
            Fault::Error(number) => wrapper.extend(["fail".into(), at.to_string(), number.to_string()]),
            _ => wrapper.extend(["run".into(), at.to_string()]),
        }
        match fault {
            Fault::Cut(to) => {
                // The kernel may write meanwhile: again, until nothing has changed.
                let script = "until cp --sparse=always \"$1\" \"$2\" && cmp -s \"$1\" \"$2\"; do :; done";
                hook.extend(["--", "sh", "-c", script, "sh"].map(String::from));
                let host = if matches!(line, Line::Shell(_)) { "state" } else { "" };
                hook.extend([format!("{host}{}", self.filesystem.image_path()), to.display().to_string()]);
            }
            Fault::Shutdown => {
                let top = self.filesystem.path().display().to_string();
                hook.extend(["--".into(), steps().display().to_string(), "shutdown".into(), top]);
            }
            _ => {}
        }
        Ran::of(self.command(&wrapper, line, &hook))
    }

    /// Ends this filesystem, and mounts what is on its disk, or what is in this image.
    pub fn after_power_cut(self, image: Option<&Path>, mount: &Path) -> World {
        let guard = self.guard;
        let own = self.into_image();
        match image {
            Some(image) => World::copy(&fs::File::open(image).unwrap(), mount, guard),
            None => World::copy(&own, mount, guard),
        }
    }

    /// All there is to see in the guests below these directories, but what is ours and how files are protected.
    pub fn look(&self, below: &[&str]) -> Names {
        let mut names = Names::new();
        for guest in GUESTS {
            for part in below {
                let top = self.path(guest).join(part);
                for (path, inode) in entries(&top) {
                    let full = top.join(&path);
                    names.insert(Path::new(guest).join(part).join(path), look(&full, &inode));
                }
            }
        }
        names
    }

    /// Inodes that are in more than one guest or in the pool and that are open to writers; and objects that are.
    fn unprotected(&self) -> Vec<String> {
        let mut places: BTreeMap<InodeId, (BTreeSet<&str>, PathBuf)> = BTreeMap::new();
        for place in ["g1", "g2", "g3", ".cow-pool/objects"] {
            let top = self.path(place);
            let found = if top.exists() { entries(&top) } else { BTreeMap::new() };
            for (path, inode) in found {
                // An object with one name is of nobody's yet.
                if inode.kind == Kind::Regular && inode.nlink > 1 {
                    places
                        .entry(inode.id)
                        .or_insert_with(|| (BTreeSet::new(), top.join(path)))
                        .0
                        .insert(place);
                }
            }
        }
        let shared = places.into_values().filter(|(places, _)| places.len() > 1);
        let open = shared.filter(|(_, path)| {
            let flags = rustix::fs::ioctl_getflags(fs::File::open(path).unwrap()).unwrap();
            let mark = if self.guard { IFlags::NOATIME | IFlags::IMMUTABLE } else { IFlags::IMMUTABLE };
            !flags.intersects(mark)
        });
        open.map(|(_, path)| format!("{} is shared and not protected", path.display())).collect()
    }

    /// What should not be there: temporary files, links in the stash, intents.
    fn left_over(&self) -> Vec<String> {
        let mut found = Vec::new();
        for guest in GUESTS {
            let guest = self.path(guest);
            found.extend(
                litter(&guest).into_iter().map(|path| format!("{} is left", guest.join(path).display())),
            );
            let ledger = guest.join("var/lib/cow-hooks/ledger.db");
            if ledger.exists() {
                let ledger = rusqlite::Connection::open(ledger).unwrap();
                let entries: i64 =
                    ledger.query_row("SELECT count(*) FROM entry", [], |row| row.get(0)).unwrap_or(0);
                if entries > 0 {
                    found.push(format!("{entries} entries are left in a ledger"));
                }
            }
        }
        let runs = self.path(".cow-pool/runs");
        for run in fs::read_dir(&runs).into_iter().flatten() {
            found.push(format!("{} is left", run.unwrap().path().display()));
        }
        found
    }

    /// What must hold once the next run has ended what was begun.
    pub fn wrong(&self) -> Vec<String> {
        let mut wrong = self.unprotected();
        wrong.extend(self.left_over());
        if self.path(".cow-pool/objects").exists() {
            let output = self.run(&Line::Host(vec!["verify"]));
            if output.status.code() != Some(0) {
                wrong.push(format!("cow-unify verify: {}", text(&output)));
            }
        }
        wrong
    }
}

/// What happens at a call.
#[derive(Clone)]
pub enum Fault {
    /// The program and all it has started is killed.
    Kill,
    /// The call is not made, and fails with this number.
    Error(i32),
    /// The power fails: what is on the disk then is kept here.
    Cut(PathBuf),
    /// The filesystem is shut down: what is in memory is lost.
    Shutdown,
}

/// How a program ended that had a fault.
pub struct Ran {
    /// The call that the fault came to, if there was one of this number.
    pub call: Option<String>,
    /// Its exit code and how many calls it has made, unless it was killed.
    pub ended: Option<(i32, usize)>,
    /// All it said.
    pub said: String,
}

impl Fault {
    /// Whether the program dies of it.
    pub fn is_kill(&self) -> bool {
        matches!(self, Fault::Kill)
    }
}

impl Ran {
    fn of(output: Output) -> Ran {
        let said = text(&output);
        assert!(output.status.success(), "steps: {} {said}", output.status);
        let line = |start: &str| said.lines().filter_map(|line| line.strip_prefix(start)).next_back();
        let call = line("step ").map(|rest| rest.split(' ').nth(1).unwrap().to_owned());
        let ended = line("ended ").map(|rest| {
            let words: Vec<&str> = rest.split(' ').collect();
            (words[0].parse().unwrap(), words[2].parse().unwrap())
        });
        Ran { call, ended, said }
    }
}

/// What a name is, to a person who looks.
#[derive(Clone, Debug, PartialEq)]
pub enum Look {
    /// A regular file, whatever protects it.
    File(Box<Seen>),
    /// A directory: mode and owner.
    Directory(u32, (u32, u32)),
    /// Something else, with what it leads to.
    Other(String),
}

/// Every name, by its path from the filesystem's root.
pub type Names = BTreeMap<PathBuf, Look>;

/// Times after this are those of a test's own changes, another each time.
const LATER: i64 = 1_700_000_000;

fn look(path: &Path, inode: &Inode) -> Look {
    match inode.kind {
        Kind::Regular => {
            let mut seen = Seen { immutable: false, ..seen(path) };
            if seen.mtime.secs > LATER {
                seen.mtime = Time { secs: LATER, nanos: 0 };
            }
            Look::File(Box::new(seen))
        }
        Kind::Directory => Look::Directory(inode.mode, (inode.uid, inode.gid)),
        _ => Look::Other(format!("{:?}", fs::read_link(path))),
    }
}

/// By which names two pictures of the guests differ: each name must be as in one of these states.
pub fn strange(states: &[Names], now: &Names) -> Vec<String> {
    let all: BTreeSet<&PathBuf> = states.iter().chain([now]).flat_map(BTreeMap::keys).collect();
    let is_known = |path: &&PathBuf| states.iter().any(|state| state.get(*path) == now.get(*path));
    let wrong = all.into_iter().filter(|path| !is_known(path));
    wrong
        .map(|path| format!("{}: {}", path.display(), difference(states[0].get(path), now.get(path))))
        .collect()
}

fn difference(before: Option<&Look>, now: Option<&Look>) -> String {
    match (before, now) {
        (_, None) => "missing".into(),
        (None, Some(_)) => "new".into(),
        (Some(Look::File(before)), Some(Look::File(now))) => {
            let parts = [
                ("content", before.content != now.content),
                ("mode", before.mode != now.mode),
                ("owner", before.owner != now.owner),
                ("mtime", before.mtime != now.mtime),
                ("xattrs", before.xattrs != now.xattrs),
            ];
            let parts: Vec<_> = parts.iter().filter(|part| part.1).map(|part| part.0).collect();
            format!(
                "another {} ({} bytes, were {})",
                parts.join(", "),
                now.content.len(),
                before.content.len()
            )
        }
        (before, now) => format!("{now:?}, was {before:?}"),
    }
}

/// Whether a message says what failed, and which file.
pub fn names_a_file(said: &str) -> bool {
    let is_message = |line: &&str| {
        let path =
            line.split([' ', '\'', '"']).any(|word| word.contains('/') || OsStr::new(word) == ".cow-pool:");
        path && (line.contains("error") || line.contains("warning") || line.contains(": "))
    };
    said.lines()
        .filter(|line| !line.starts_with("step ") && !line.starts_with("ended "))
        .any(|line| is_message(&line))
}
