//! Small guests on filesystems of their own.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use cow_hooks::sys::inode::{Inode, Time};
use cow_hooks::sys::xattr::{self, Xattrs};
use rustix::fs::IFlags;

/// The filesystems everything must hold on.
pub const FILESYSTEMS: [&str; 3] = ["ext4", "xfs", "btrfs"];

/// Whether privileged tests can run; says so if not.
pub fn privileged() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

/// A filesystem on a loop device; gone when dropped.
pub struct Filesystem {
    mount: tempfile::TempDir,
    _image: tempfile::NamedTempFile,
}

impl Filesystem {
    pub fn new(kind: &str, megabytes: u64) -> Filesystem {
        let image = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
        image.as_file().set_len(megabytes << 20).unwrap();
        let mount = tempfile::tempdir_in("/var/tmp").unwrap();
        run(Command::new(format!("mkfs.{kind}"))
            .arg(if kind == "ext4" { "-F" } else { "-f" })
            .arg(image.path()));
        run(Command::new("mount").args(["-o", "loop"]).arg(image.path()).arg(mount.path()));
        Filesystem { mount, _image: image }
    }

    pub fn path(&self) -> &Path {
        self.mount.path()
    }
}

impl Drop for Filesystem {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.mount.path()).status();
    }
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
        let guest = self.first();
        for program in [
            env!("CARGO_BIN_EXE_cow-prepare"),
            env!("CARGO_BIN_EXE_cow-status"),
            env!("CARGO_BIN_EXE_cow-dpkg"),
        ] {
            fs::copy(program, guest.join(Path::new(program).file_name().unwrap())).unwrap();
        }
        let listed = run(Command::new("ldd").arg(env!("CARGO_BIN_EXE_cow-dpkg")));
        for word in text(&listed).split_whitespace().filter(|word| word.starts_with('/')) {
            let to = guest.join(word.trim_start_matches('/'));
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(word, to).unwrap();
        }
    }

    /// A program of ours, run in the first guest.
    pub fn program(&self, name: &str) -> Command {
        let mut command = Command::new("chroot");
        command.arg(self.first()).arg(format!("/{name}")).stdin(Stdio::null());
        command
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

impl Drop for Guests {
    fn drop(&mut self) {}
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
    let mut found = BTreeMap::new();
    let mut waiting = vec![top.to_path_buf()];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let entry = entry.unwrap();
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                waiting.push(entry.path());
            } else if kind.is_file() {
                found.insert(entry.path().strip_prefix(top).unwrap().to_path_buf(), seen(&entry.path()));
            }
        }
    }
    found
}

/// Names of ours that should not be there: temporary names beside files, and what is left in the stash.
pub fn litter(guest: &Path) -> Vec<PathBuf> {
    let names = files(guest).into_keys();
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

pub fn os(text: &str) -> OsString {
    OsString::from(text)
}
