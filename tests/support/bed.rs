//! A place for `cow-run`: two guests' directories that share files, in a mount namespace with a state of its own.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Filesystem, Seen, files, litter, run, same_inode, set_immutable};

/// Nothing here takes so long, on a busy machine either.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// Where the first guest's directory is in the namespace.
pub const FIRST: &str = "/var/lib/g1";

/// The filesystem is `/var/lib` in the namespace, so that the state directory is beside the guests. Its processes are
/// killed when it is dropped, and nothing else.
pub struct Bed {
    /// Open as long as its processes are looked for: no other namespace has its number meanwhile.
    namespace: fs::File,
    pub filesystem: Filesystem,
    holder: Child,
    shared: BTreeMap<PathBuf, Seen>,
}

/// A command that runs.
pub struct Running {
    pub child: Child,
    out: fs::File,
    err: fs::File,
}

impl Bed {
    /// With `count` shared, protected files: `f000` and so on.
    pub fn new(count: usize) -> Bed {
        Bed::with(count, true)
    }

    /// With files that are protected or not.
    pub fn with(count: usize, protected: bool) -> Bed {
        let filesystem = Filesystem::new("ext4", 256);
        let (first, second) = (filesystem.path().join("g1"), filesystem.path().join("g2"));
        fs::create_dir(&first).unwrap();
        fs::create_dir(&second).unwrap();
        for number in 0..count {
            let name = file(number);
            fs::write(second.join(&name), format!("content of {number}\n")).unwrap();
            fs::hard_link(second.join(&name), first.join(&name)).unwrap();
            if protected {
                set_immutable(&second.join(&name), true);
            }
        }
        // Other tests' filesystems must not live on here when they are unmounted there.
        let script = "mount --bind \"$1\" /var/lib || exit; \
                      awk '$2 ~ \"^/var/tmp/\" { print $2 }' /proc/self/mounts | xargs -r umount --quiet --lazy; \
                      echo ready && exec sleep infinity";
        let mut holder = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"])
            .arg(filesystem.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let namespace = fs::File::open(format!("/proc/{}/ns/mnt", holder.id())).unwrap();
        let shared = files(&second);
        let bed = Bed { namespace, filesystem, holder, shared };
        assert_eq!(line, "ready\n");
        bed
    }

    pub fn first(&self, name: impl AsRef<Path>) -> PathBuf {
        self.filesystem.path().join("g1").join(name)
    }

    pub fn second(&self, name: impl AsRef<Path>) -> PathBuf {
        self.filesystem.path().join("g2").join(name)
    }

    /// A command of the namespace, in the first guest's directory; it keeps the number of the process.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.holder.id()));
        command.args(["env", "-C", FIRST]).args(words);
        command
    }

    /// `cow-run` with these arguments.
    pub fn cow_run(&self, words: &[&str]) -> Running {
        start(&mut self.command(&[&[super::program("cow-run"), "-v"], words].concat()))
    }

    /// What `cow-run` with these arguments comes to.
    pub fn ran(&self, words: &[&str]) -> Output {
        self.cow_run(words).done()
    }

    /// What a script under `cow-run` comes to.
    pub fn script(&self, script: &str) -> Output {
        self.ran(&["sh", "-c", script])
    }

    /// `cow-prepare --recover`.
    pub fn recover(&self) {
        let output = start(&mut self.command(&[super::program("cow-prepare"), "--recover"])).done();
        assert!(output.status.success(), "{}", super::text(&output));
    }

    /// A program compiled from a source of `tests/support`, as the namespace names it.
    pub fn compiled(&self, source: &str) -> String {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support").join(source);
        let name = format!("bin-{source}").replace(".c", "");
        let to = self.filesystem.path().join(&name);
        run(Command::new("cc").args(["-O1", "-Wall", "-pthread", "-o"]).arg(to).arg(from));
        format!("/var/lib/{name}")
    }

    /// The processes of the namespace that are called so, each with its parent.
    fn processes(&self, name: Option<&str>) -> Vec<(i32, i32)> {
        let mut found = Vec::new();
        let here = self.namespace.metadata().unwrap();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let is_here = fs::metadata(entry.path().join("ns/mnt")).is_ok_and(|ns| ns.ino() == here.ino());
            let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
            let (Some(open), Some(close)) = (stat.find('('), stat.rfind(')')) else { continue };
            let mut fields = stat[close + 1..].split_ascii_whitespace();
            let is_dead = fields.next() == Some("Z");
            let parent = fields.next().unwrap().parse().unwrap();
            if is_here && !is_dead && name.is_none_or(|name| name == &stat[open + 1..close]) {
                found.push((pid, parent));
            }
        }
        found
    }

    /// The processes of supervisors, each with its parent.
    pub fn supervisors(&self) -> Vec<(i32, i32)> {
        self.processes(Some("cow-run"))
    }

    /// The process that answers, where there is one.
    pub fn worker(&self) -> Option<i32> {
        let all = self.supervisors();
        all.iter().find(|(_, parent)| all.iter().any(|(pid, _)| pid == parent)).map(|(pid, _)| *pid)
    }

    /// The process that starts workers.
    pub fn guardian(&self) -> Option<i32> {
        let all = self.supervisors();
        let worker = self.worker()?;
        all.iter().find(|(pid, _)| *pid == worker).map(|(_, parent)| *parent)
    }

    /// Kills the process that answers, once there is one that is none of these.
    pub fn kill_worker(&self, before: &[i32]) -> i32 {
        let fresh = || self.worker().filter(|pid| !before.contains(pid));
        let mut found = None;
        wait_for("a worker", || {
            found = fresh();
            found.is_some()
        });
        let worker = found.unwrap();
        send(worker, Signal::SIGKILL);
        worker
    }

    /// Kills both processes of the supervisor.
    pub fn kill_both(&self) {
        wait_for("a worker", || self.worker().is_some());
        let (guardian, worker) = (self.guardian().unwrap(), self.worker().unwrap());
        send(guardian, Signal::SIGKILL);
        send(worker, Signal::SIGKILL);
        wait_for("the supervisor's death", || self.supervisors().is_empty());
    }

    /// Asserts that the supervisor ends by itself.
    pub fn assert_over(&self) {
        wait_for("the supervisor's end", || self.supervisors().is_empty());
    }

    /// Whether the name has a file of its own in the first guest.
    pub fn is_private(&self, name: &str) -> bool {
        !same_inode(&self.first(name), &self.second(name))
    }

    /// Asserts that the other guest's files are what they were, protection and all.
    pub fn assert_untouched(&self) {
        let now = files(&self.second(""));
        for (path, seen) in &self.shared {
            assert_eq!(now.get(path), Some(seen), "{}", path.display());
        }
    }

    /// Asserts that the other guest's files are what they were, and that nothing of ours lies about.
    pub fn assert_clean(&self) {
        self.assert_untouched();
        assert_eq!(litter(self.filesystem.path()), Vec::<PathBuf>::new());
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(20) {
            let left = self.processes(None);
            if left.is_empty() {
                break;
            }
            left.iter().for_each(|(pid, _)| {
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            });
            let _ = self.holder.try_wait();
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.holder.wait();
    }
}

/// Name of a shared file.
pub fn file(number: usize) -> String {
    format!("f{number:03}")
}

/// Starts a command whose output goes to files: what outlives it holds no pipe.
pub fn start(command: &mut Command) -> Running {
    let (out, err) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    let child = command
        .stdin(Stdio::null())
        .stdout(out.try_clone().unwrap())
        .stderr(err.try_clone().unwrap())
        .spawn()
        .unwrap();
    Running { child, out, err }
}

impl Running {
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// What it has printed so far.
    pub fn printed(&self) -> String {
        contents(&self.out)
    }

    /// Waits until it has printed so many lines, or has ended.
    pub fn wait_for_lines(&mut self, count: usize) {
        wait_for("lines", || {
            self.printed().lines().count() >= count || self.child.try_wait().unwrap().is_some()
        });
    }

    /// Waits for its end.
    pub fn done(mut self) -> Output {
        let mut status = None;
        let begun = Instant::now();
        while status.is_none() {
            assert!(begun.elapsed() < PATIENCE, "it hangs: {}{}", contents(&self.out), contents(&self.err));
            status = self.child.try_wait().unwrap();
            std::thread::sleep(Duration::from_millis(5));
        }
        let (stdout, stderr) = (contents(&self.out).into_bytes(), contents(&self.err).into_bytes());
        Output { status: status.unwrap(), stdout, stderr }
    }
}

fn contents(file: &fs::File) -> String {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Waits for something that must happen.
pub fn wait_for(what: &str, mut happened: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !happened() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn send(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

/// Makes a directory a root that has a shell, and these programs.
pub fn with_shell(root: &Path, programs: &[&str]) {
    for program in ["/bin/sh"].iter().chain(programs) {
        let listed = super::text(&run(Command::new("ldd").arg(program)));
        let libraries = listed.split_whitespace().filter(|word| word.starts_with('/'));
        let name = Path::new(program).file_name().unwrap();
        fs::create_dir_all(root.join("bin")).unwrap();
        fs::copy(program, root.join("bin").join(name)).unwrap();
        for library in libraries {
            let to = root.join(library.trim_start_matches('/'));
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(library, to).unwrap();
        }
    }
    fs::create_dir_all(root.join("proc")).unwrap();
}
