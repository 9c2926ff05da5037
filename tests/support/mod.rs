//! Small guests on filesystems of their own.

pub mod anywhere;
pub mod bed;
pub mod booted;
pub mod chroots;
pub mod cowops;
pub mod farm;
pub mod faults;
pub mod machine;
pub mod pair;
pub mod strace;
pub mod tiny;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use cow_hooks::sys::file::inode::{Inode, Kind, Time};
use cow_hooks::sys::file::xattr::{self, Xattrs};
use rustix::fs::IFlags;

/// The filesystems everything must hold on.
pub const FILESYSTEMS: [&str; 3] = ["ext4", "xfs", "btrfs"];

/// What a command said that must have ended with this code.
#[track_caller]
pub fn ended(output: &Output, code: i32, what: &str) -> String {
    assert_eq!(output.status.code(), Some(code), "{what}:\n{}", text(output));
    text(output)
}

/// Says what a test does not show on this machine, past the harness, which hides what passing tests print.
pub fn note_left_out(what: &str, why: &str) {
    std::io::stderr().write_all(format!("left out: {what}: {why}\n").as_bytes()).unwrap();
}

/// A filesystem on a loop device; gone when dropped, by a panic too.
///
/// Its image has no name, so it vanishes with the mount, which vanishes with the mount namespace at the latest.
pub struct Filesystem {
    mount: PathBuf,
    image: fs::File,
    _directory: Option<tempfile::TempDir>,
}

impl Filesystem {
    /// Mounted somewhere.
    pub fn new(kind: &str, megabytes: u64) -> Filesystem {
        Filesystem::somewhere(|mount| Filesystem::at(kind, megabytes, mount))
    }

    /// Mounted on this directory.
    pub fn at(kind: &str, megabytes: u64, mount: &Path) -> Filesystem {
        let image = image_file();
        image.as_file().set_len(megabytes << 20).unwrap();
        run(Command::new(format!("mkfs.{kind}"))
            .arg(if kind == "ext4" { "-F" } else { "-f" })
            .arg(image.path()));
        Filesystem::mounted(image, mount)
    }

    /// A copy of an image, mounted somewhere.
    pub fn copy_of(image: &fs::File) -> Filesystem {
        Filesystem::somewhere(|mount| Filesystem::copy_at(image, mount))
    }

    /// A copy of an image, mounted on this directory.
    pub fn copy_at(image: &fs::File, mount: &Path) -> Filesystem {
        let copy = image_file();
        run(Command::new("cp").args(["--sparse=always", &path_of(image)]).arg(copy.path()));
        Filesystem::mounted(copy, mount)
    }

    /// A path of the image, which has no name.
    pub fn image_path(&self) -> String {
        path_of(&self.image)
    }

    /// Unmounts it, and gives its image.
    ///
    /// A mount namespace that another test has just made may have it still: so all is on the disk before.
    pub fn into_image(self) -> fs::File {
        // A filesystem that was shut down cannot be opened, and has nothing more to write.
        if let Ok(top) = fs::File::open(&self.mount) {
            let _ = rustix::fs::syncfs(&top);
        }
        run(Command::new("umount").arg(&self.mount));
        self.image.try_clone().unwrap()
    }

    fn somewhere(mounted: impl FnOnce(&Path) -> Filesystem) -> Filesystem {
        let directory = tempfile::tempdir_in("/var/tmp").unwrap();
        let mut filesystem = mounted(directory.path());
        filesystem._directory = Some(directory);
        filesystem
    }

    fn mounted(image: tempfile::NamedTempFile, mount: &Path) -> Filesystem {
        run(Command::new("mount").args(["-o", "loop"]).arg(image.path()).arg(mount));
        Filesystem { mount: mount.to_path_buf(), image: image.into_file(), _directory: None }
    }

    /// Unmounts it, and mounts it with these options.
    pub fn mount_again(&self, options: &str) {
        run(Command::new("umount").arg(&self.mount));
        let image = self.image_path();
        // Another test may take the free device that this one was told.
        let set_up = (0..50).find_map(|_| {
            let output = Command::new("losetup").args(["--find", "--show", &image]).output().unwrap();
            if !output.status.success() {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            output.status.success().then_some(output)
        });
        let device = text(&set_up.expect("no loop device"));
        run(Command::new("mount").args(["-o", options, device.trim()]).arg(&self.mount));
        // It goes with the mount.
        run(Command::new("losetup").args(["--detach", device.trim()]));
    }

    pub fn path(&self) -> &Path {
        &self.mount
    }

    /// Bytes that can still be allocated.
    pub fn available(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.mount).unwrap();
        stat.f_bavail * stat.f_frsize
    }

    /// Leaves nothing free.
    pub fn fill(&self) {
        let file = fs::File::create(self.mount.join("filler")).unwrap();
        let (mut at, mut size) = (0, 1 << 26);
        while size >= 4096 {
            match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), at, size) {
                Ok(()) => at += size,
                Err(_) => size /= 2,
            }
        }
    }

    pub fn remount(&self, option: &str) {
        run(Command::new("mount").args(["-o", &format!("remount,{option}")]).arg(&self.mount));
    }
}

impl Drop for Filesystem {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-q", "--lazy"]).arg(&self.mount).status();
        forget(&self.mount);
    }
}

/// A path of a file that this process has open.
fn path_of(file: &fs::File) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd())
}

/// Removes what the host has written down of guests and pools below this directory.
fn forget(top: &Path) {
    let state = Path::new("/var/lib/cow-hooks");
    let Ok(dir) = fs::File::open(state) else { return };
    let key = top.to_str().unwrap().trim_start_matches('/').replace('/', "%2f");
    for root in fs::read_dir(state.join("roots")).into_iter().flatten().flatten() {
        if root.file_name().as_bytes().starts_with(key.as_bytes()) {
            let _ = fs::remove_dir_all(root.path());
        }
    }
    let _ = rustix::fs::flock(&dir, rustix::fs::FlockOperation::LockExclusive);
    let list = state.join("pools");
    let Ok(pools) = fs::read(&list) else { return };
    let is_other = |pool: &&[u8]| !pool.starts_with(top.as_os_str().as_bytes());
    let others: Vec<&[u8]> = pools.split_inclusive(|&byte| byte == 0).filter(is_other).collect();
    let _ = if others.is_empty() { fs::remove_file(list) } else { fs::write(list, others.concat()) };
}

/// Where an image goes: to memory, where that has much room, for nobody then waits for a disk.
fn image_file() -> tempfile::NamedTempFile {
    const MUCH: u64 = 8 << 30;
    let memory = fs::read_to_string("/proc/meminfo").unwrap();
    let available =
        memory.lines().find_map(|line| line.strip_prefix("MemAvailable:")?.split_whitespace().next());
    let free = rustix::fs::statvfs("/dev/shm").map_or(0, |stat| stat.f_bavail * stat.f_frsize);
    let has_room = available.is_some_and(|kib| kib.parse::<u64>().unwrap() << 10 >= MUCH) && free >= MUCH;
    tempfile::NamedTempFile::new_in(if has_room { "/dev/shm" } else { "/var/tmp" }).unwrap()
}

/// Runs a command that must succeed.
pub fn run(command: &mut Command) -> Output {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", text(&output));
    output
}

/// What a command printed, both streams.
pub fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Two guests that share the files of `/usr`, and the pool the shared inodes come from.
pub struct Guests {
    pub filesystem: Filesystem,
}

impl Guests {
    /// Guests with `count` unified files in `/usr`, protected or not, and our programs in the first of them.
    pub fn new(kind: &str, count: usize, protected: bool) -> Guests {
        let guests = Guests { filesystem: Filesystem::new(kind, 512) };
        for guest in [guests.first(), guests.second()] {
            for dir in ["usr/bin", "usr/share/doc", "etc", "tmp", "var/lib/dpkg/info", "proc"] {
                fs::create_dir_all(guest.join(dir)).unwrap();
            }
            std::os::unix::fs::symlink("usr/bin", guest.join("bin")).unwrap();
        }
        fs::create_dir(guests.pool()).unwrap();
        for number in 0..count {
            let dir = if number % 2 == 0 { "usr/bin" } else { "usr/share/doc" };
            guests.share(
                &format!("{dir}/file-{number}"),
                format!("content of {number}\n").repeat(100).as_bytes(),
            );
        }
        if protected {
            guests.protect();
        }
        guests.install();
        guests
    }

    pub fn first(&self) -> PathBuf {
        self.filesystem.path().join("g1")
    }

    pub fn second(&self) -> PathBuf {
        self.filesystem.path().join("g2")
    }

    pub fn pool(&self) -> PathBuf {
        self.filesystem.path().join("pool")
    }

    /// Makes a file that both guests share.
    pub fn share(&self, path: &str, content: &[u8]) {
        let object = self.pool().join(path.replace('/', "%"));
        fs::write(&object, content).unwrap();
        fs::set_permissions(&object, fs::Permissions::from_mode(0o755)).unwrap();
        set_mtime(&object, Time { secs: 1_600_000_000, nanos: 123_456_789 });
        for guest in [self.first(), self.second()] {
            fs::hard_link(&object, guest.join(path)).unwrap();
        }
    }

    /// Sets +i on every object of the pool.
    pub fn protect(&self) {
        for object in fs::read_dir(self.pool()).unwrap() {
            set_immutable(&object.unwrap().path(), true);
        }
    }

    /// Puts our programs and what they are linked with into the first guest.
    fn install(&self) {
        install(&self.first());
    }

    /// A program of ours, run in the first guest.
    pub fn program(&self, name: &str) -> Command {
        chroot(&[], &self.first(), name)
    }

    /// `cow-prepare` with these arguments, run to its end in the first guest.
    pub fn prepare(&self, arguments: &[&str]) -> Output {
        self.program("cow-prepare").args(arguments).output().unwrap()
    }

    /// The result of `cow-prepare --json`.
    pub fn prepared(&self, arguments: &[&str]) -> serde_json::Value {
        let output = self.program("cow-prepare").arg("--json").args(arguments).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(&output)))
    }

    /// Writes a file of the first guest, with the directories above it.
    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.first().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    /// Sets the first guest's policy.
    pub fn policy(&self, text: &str) {
        self.write("etc/cow-hooks/cow-hooks.toml", text);
    }

    /// The paths in the first guest's spool.
    pub fn spool(&self) -> Vec<String> {
        let content = fs::read(self.first().join("var/lib/cow-hooks/spool/changed")).unwrap_or_default();
        let paths = content.split(|&b| b == 0).filter(|path| !path.is_empty());
        paths.map(|path| String::from_utf8_lossy(path).into_owned()).collect()
    }

    /// Whether the name `path` is still the shared inode in the first guest, and in the second.
    pub fn shared(&self, path: &str) -> bool {
        same_inode(&self.first().join(path), &self.second().join(path))
    }

    /// Makes the first guest's dpkg own these paths, as one installed package.
    pub fn own(&self, package: &str, paths: &[String]) {
        let dpkg = self.first().join("var/lib/dpkg");
        let status = format!(
            "Package: {package}\nStatus: install ok installed\nArchitecture: all\nVersion: 1\nMaintainer: x\nDescription: x\n\n"
        );
        let mut file = fs::OpenOptions::new().append(true).create(true).open(dpkg.join("status")).unwrap();
        file.write_all(status.as_bytes()).unwrap();
        fs::write(dpkg.join(format!("info/{package}.list")), paths.join("\n") + "\n").unwrap();
    }
}

/// What was built with this test, by its path from where the programs are.
pub fn built(path: &str) -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_cow-hooks")).parent().unwrap().join(path)
}

/// The program of a guest that was built with this test, by a name that it is called by.
pub fn program(name: &str) -> &'static str {
    let link = built("names").join(name);
    fs::create_dir_all(link.parent().unwrap()).unwrap();
    // Each test makes the same link.
    if let Err(e) = std::os::unix::fs::symlink("../cow-hooks", &link) {
        assert_eq!(e.kind(), std::io::ErrorKind::AlreadyExists, "{}: {e}", link.display());
    }
    link.into_os_string().into_string().unwrap().leak()
}

/// Puts our programs and what they are linked with into a root tree.
pub fn install(root: &Path) {
    for name in ["cow-prepare", "cow-status", "cow-dpkg"] {
        fs::copy(program(name), root.join(name)).unwrap();
    }
    install_libraries(root, &built("cow-hooks"));
}

/// Puts what a program is linked with into a root tree.
pub fn install_libraries(root: &Path, program: &Path) {
    let listed = run(Command::new("ldd").arg(program));
    for word in text(&listed).split_whitespace().filter(|word| word.starts_with('/')) {
        let to = root.join(word.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(word, to).unwrap();
    }
}

/// A program in a root tree, run by `wrapper`, a command that runs another.
pub fn chroot(wrapper: &[&str], root: &Path, program: &str) -> Command {
    let mut words = wrapper.iter().copied().chain(["chroot"]);
    let mut command = Command::new(words.next().unwrap());
    command.args(words).arg(root).arg(format!("/{program}")).stdin(Stdio::null());
    command
}

/// apt's stream for the removal of one package.
pub fn removal(package: &str) -> String {
    format!("VERSION 3\nAPT::Architecture=amd64\n\n{package} 1 all none > - - none **REMOVE**\n")
}

/// Runs a command with something on its standard input.
pub fn feed(command: &mut Command, input: &[u8]) -> Output {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A program that was killed, or that does not read, closes the pipe.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

pub fn set_immutable(path: &Path, immutable: bool) {
    let file = fs::File::open(path).unwrap();
    let mut flags = rustix::fs::ioctl_getflags(&file).unwrap();
    flags.set(IFlags::IMMUTABLE, immutable);
    rustix::fs::ioctl_setflags(&file, flags).unwrap();
}

pub fn set_mtime(path: &Path, time: Time) {
    let time = rustix::fs::Timespec { tv_sec: time.secs, tv_nsec: time.nanos.into() };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

pub fn inode(path: &Path) -> Inode {
    let dir = fs::File::open(path.parent().unwrap()).unwrap();
    Inode::at(&dir, path.file_name().unwrap()).unwrap()
}

/// All that one guest can see of a file another guest must not change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub content: Vec<u8>,
    pub mode: u32,
    pub owner: (u32, u32),
    pub mtime: Time,
    pub xattrs: Xattrs,
    pub immutable: bool,
}

pub fn seen(path: &Path) -> Seen {
    let inode = inode(path);
    let file = fs::File::open(path).unwrap();
    Seen {
        content: fs::read(path).unwrap(),
        mode: inode.mode,
        owner: (inode.uid, inode.gid),
        mtime: inode.mtime,
        xattrs: xattr::read(&file).unwrap(),
        immutable: inode.immutable,
    }
}

/// Every regular file below `top`, by its path from there.
pub fn files(top: &Path) -> BTreeMap<PathBuf, Seen> {
    let regular = entries(top).into_iter().filter(|(_, inode)| inode.kind == Kind::Regular);
    regular.map(|(path, _)| (path.clone(), seen(&top.join(path)))).collect()
}

/// Everything below `top`, by its path from there; what is mounted there, too.
pub fn entries(top: &Path) -> BTreeMap<PathBuf, Inode> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![top.to_path_buf()];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let inode = inode(&path);
            if inode.kind == Kind::Directory {
                waiting.push(path.clone());
            }
            found.insert(path.strip_prefix(top).unwrap().to_path_buf(), inode);
        }
    }
    found
}

/// All there is to see of a tree but times of access, and but what is ours: to find that nothing has changed.
pub fn picture(top: &Path) -> BTreeMap<PathBuf, String> {
    let ours = Path::new("var/lib/cow-hooks");
    let shown = |(path, inode): (PathBuf, Inode)| {
        // The directories that ours is made in.
        let above = ours.starts_with(&path);
        let full = top.join(&path);
        let more = match inode.kind {
            Kind::Regular => format!("{:?}", seen(&full)),
            Kind::Symlink => format!("{:?}", fs::read_link(&full).unwrap()),
            _ => String::new(),
        };
        let times = if above { None } else { Some((inode.mtime, inode.ctime)) };
        let nlink = if inode.kind == Kind::Directory { 0 } else { inode.nlink };
        let about = (inode.id, inode.kind, inode.mode, inode.uid, inode.gid, nlink, inode.size);
        let about = if above { String::new() } else { format!("{about:?}") };
        (path, format!("{about} {times:?} {more}"))
    };
    entries(top).into_iter().filter(|(path, _)| !path.starts_with(ours)).map(shown).collect()
}

/// Asserts that two pictures are the same; says what differs.
pub fn assert_same(before: &BTreeMap<PathBuf, String>, after: &BTreeMap<PathBuf, String>, what: &str) {
    for (path, then) in before {
        let now = after.get(path).map(String::as_str);
        assert_eq!(Some(then.as_str()), now, "{what}: {}", path.display());
    }
    let new: Vec<_> = after.keys().filter(|path| !before.contains_key(*path)).collect();
    assert!(new.is_empty(), "{what}: something new: {new:?}");
}

/// Names of ours that should not be there: temporary names beside files, and what is left in the stash.
pub fn litter(guest: &Path) -> Vec<PathBuf> {
    let names =
        entries(guest).into_iter().filter(|(_, inode)| inode.kind != Kind::Directory).map(|(path, _)| path);
    let ours = |path: &PathBuf| {
        let name = path.file_name().unwrap().as_bytes();
        name.starts_with(b".cow-") || path.components().any(|part| part.as_os_str() == OsStr::new("stash"))
    };
    names.filter(ours).collect()
}

pub fn same_inode(a: &Path, b: &Path) -> bool {
    let id = |path: &Path| fs::symlink_metadata(path).map(|m| (m.dev(), m.ino())).unwrap();
    id(a) == id(b)
}
