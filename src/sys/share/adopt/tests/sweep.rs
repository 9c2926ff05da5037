//! Many rounds: files that are adopted while others do to them whatever they can.
//!
//! Needs the guard (`COW_TESTS_ADOPT_IN`). `COW_TESTS_ADOPT_ROUNDS` files, 400 by default.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, RwLock};

use super::*;
use crate::sys::file::traits::Traits;
use crate::sys::file::xattr;

/// Files adopted in one batch.
const BATCH: usize = 200;
/// Descriptors and mappings that an attacker keeps.
const KEPT: usize = 8;

const OPERATIONS: [&str; 14] = [
    "write",
    "write later",
    "map",
    "map later",
    "chmod",
    "chown",
    "setxattr",
    "truncate",
    "flags",
    "utimes",
    "process_vm_writev",
    "link again",
    "io_uring",
    "access mode 3",
];

/// Whatever the next guest would see of a file.
#[derive(Debug, PartialEq)]
struct Picture {
    content: Vec<u8>,
    metadata: (u32, u32, u32, u64, i64, i64),
    xattrs: xattr::Xattrs,
    traits: Traits,
    marked: bool,
}

impl Picture {
    fn of(file: &OwnedFd) -> Picture {
        let file = File::from(file.try_clone().unwrap());
        let stat = file.metadata().unwrap();
        let mut content = vec![0; stat.len() as usize];
        file.read_exact_at(&mut content, 0).unwrap();
        Picture {
            content,
            metadata: (stat.mode(), stat.uid(), stat.gid(), stat.len(), stat.mtime(), stat.mtime_nsec()),
            xattrs: xattr::read(&file).unwrap(),
            traits: Traits::of(&file).unwrap(),
            marked: mark::is_set(&file).unwrap(),
        }
    }
}

/// Takes a capability from the calling thread.
fn drop_capability(number: u32) {
    let header = [0x2008_0522u32, 0];
    let mut sets = [[0u32; 3]; 2];
    // SAFETY: the two structures of `linux/capability.h`.
    unsafe {
        assert_eq!(libc::syscall(libc::SYS_capget, &header, &mut sets), 0);
        sets[0].iter_mut().for_each(|set| *set &= !(1 << number));
        assert_eq!(libc::syscall(libc::SYS_capset, &header, &sets), 0);
    }
}

/// An `io_uring` of one entry, with kernel threads that do the work.
struct Ring {
    fd: OwnedFd,
    submit: usize,
    complete: usize,
    entries: usize,
    offsets: [u32; 30],
}

impl Ring {
    fn new() -> Option<Ring> {
        let mut params = [0u32; 30];
        // SAFETY: `struct io_uring_params` of `linux/io_uring.h`, and mappings at addresses that the kernel chooses.
        unsafe {
            let fd = libc::syscall(libc::SYS_io_uring_setup, 4, &mut params);
            if fd < 0 {
                return None;
            }
            let fd = OwnedFd::from_raw_fd(fd as i32);
            let map = |offset: i64| {
                let (both, kind) =
                    (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_POPULATE);
                let map = libc::mmap(std::ptr::null_mut(), PAGE, both, kind, fd.as_raw_fd(), offset);
                assert_ne!(map, libc::MAP_FAILED);
                map as usize
            };
            let (submit, complete, entries) = (map(0), map(0x800_0000), map(0x1000_0000));
            Some(Ring { fd, submit, complete, entries, offsets: params })
        }
    }

    /// Writes a byte by a kernel thread, and closes the file before that is done.
    fn write(&self, file: File, byte: &'static u8) -> bool {
        let at = |base: usize, offset: u32| (base + offset as usize) as *mut u32;
        let (head, tail, mask) = (self.offsets[10], self.offsets[11], self.offsets[12]);
        let array = self.offsets[16];
        let (done_head, done_tail) = (self.offsets[20], self.offsets[21]);
        let (done_mask, done) = (self.offsets[22], self.offsets[25]);
        let _ = head;
        // SAFETY: the places that the kernel has told, in mappings of above; only this thread uses the ring.
        unsafe {
            let next = at(self.submit, tail).read_volatile();
            let index = next & at(self.submit, mask).read_volatile();
            let entry = (self.entries + index as usize * 64) as *mut u64;
            std::ptr::write_bytes(entry, 0, 8);
            // IORING_OP_WRITE, IOSQE_ASYNC.
            entry.write_volatile(23 | 16 << 8 | (file.as_raw_fd() as u64) << 32);
            entry.add(2).write_volatile(std::ptr::from_ref(byte) as u64);
            entry.add(3).write_volatile(1);
            at(self.submit, array).add(index as usize).write_volatile(index);
            std::sync::atomic::fence(Ordering::SeqCst);
            at(self.submit, tail).write_volatile(next.wrapping_add(1));
            libc::syscall(libc::SYS_io_uring_enter, self.fd.as_raw_fd(), 1, 0, 0, 0, 0);
            drop(file);
            libc::syscall(libc::SYS_io_uring_enter, self.fd.as_raw_fd(), 0, 1, 1, 0, 0);
            let seen = at(self.complete, done_head).read_volatile();
            if seen == at(self.complete, done_tail).read_volatile() {
                return false;
            }
            let index = seen & at(self.complete, done_mask).read_volatile();
            let result = at(self.complete, done).add(index as usize * 4 + 2).read_volatile() as i32;
            at(self.complete, done_head).write_volatile(seen.wrapping_add(1));
            result == 1
        }
    }
}

/// A mapping that is written to.
struct Map(usize);

impl Map {
    fn of(path: &Path) -> io::Result<Map> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        if file.metadata()?.len() == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let both = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping.
        let at =
            unsafe { libc::mmap(std::ptr::null_mut(), PAGE, both, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Map(at as usize)) }
    }

    /// By the kernel, which fails if a file has become too short.
    fn write(&self, byte: u8) -> io::Result<()> {
        let own = [byte];
        let local = libc::iovec { iov_base: own.as_ptr() as *mut _, iov_len: 1 };
        let remote = libc::iovec { iov_base: self.0 as *mut _, iov_len: 1 };
        // SAFETY: the kernel looks at both addresses itself.
        let done = unsafe { libc::process_vm_writev(std::process::id() as i32, &local, 1, &remote, 1, 0) };
        if done == 1 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the mapping of above.
        unsafe { libc::munmap(self.0 as *mut _, PAGE) };
    }
}

struct Attacker {
    random: u64,
    files: VecDeque<File>,
    maps: VecDeque<Map>,
    ring: Option<Ring>,
    done: BTreeMap<&'static str, u64>,
}

impl Attacker {
    fn new(seed: u64) -> Attacker {
        let (files, maps) = (VecDeque::new(), VecDeque::new());
        Attacker { random: seed * 2 + 1, files, maps, ring: Ring::new(), done: BTreeMap::new() }
    }

    fn random(&mut self, below: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 16) as usize % below
    }

    fn attack(&mut self, path: &Path) {
        let operation = OPERATIONS[self.random(OPERATIONS.len())];
        let byte = self.random(256) as u8;
        if self.operate(operation, path, byte).is_ok() {
            *self.done.entry(operation).or_default() += 1;
        }
    }

    fn operate(&mut self, operation: &str, path: &Path, byte: u8) -> io::Result<()> {
        static BYTE: u8 = 0xee;
        let writing = || OpenOptions::new().write(true).open(path);
        match operation {
            "write" => writing()?.write_all_at(&[byte], 0),
            "write later" => {
                self.files.push_back(writing()?);
                if self.files.len() > KEPT {
                    self.files.pop_front();
                }
                let kept = self.random(self.files.len());
                self.files[kept].write_all_at(&[byte], 1)
            }
            "map" => Map::of(path)?.write(byte),
            "map later" => {
                self.maps.push_back(Map::of(path)?);
                if self.maps.len() > KEPT {
                    self.maps.pop_front();
                }
                let kept = self.random(self.maps.len());
                self.maps[kept].write(byte)
            }
            "chmod" => std::fs::set_permissions(path, PermissionsExt::from_mode(u32::from(byte) | 0o600)),
            "chown" => std::os::unix::fs::chown(path, Some(0), Some(byte.into())),
            "setxattr" => {
                let value = [byte];
                Ok(rustix::fs::setxattr(path, "user.attack", &value, rustix::fs::XattrFlags::empty())?)
            }
            "truncate" => {
                let path = CString::new(path.as_os_str().as_bytes())?;
                // SAFETY: a string that ends with zero.
                match unsafe { libc::truncate(path.as_ptr(), 1 + i64::from(byte)) } {
                    0 => Ok(()),
                    _ => Err(io::Error::last_os_error()),
                }
            }
            "flags" => {
                let file = File::open(path)?;
                let mut flags = rustix::fs::ioctl_getflags(&file)?;
                flags.toggle(rustix::fs::IFlags::NODUMP);
                flags.set(rustix::fs::IFlags::NOATIME, byte & 1 == 0);
                Ok(rustix::fs::ioctl_setflags(&file, flags)?)
            }
            "utimes" => File::open(path)?.set_modified(std::time::SystemTime::UNIX_EPOCH),
            "process_vm_writev" => {
                let map = Map::of(path)?;
                std::thread::scope(|scope| {
                    let writing = scope.spawn(|| map.write(byte));
                    std::thread::yield_now();
                    writing.join().unwrap()
                })
            }
            "link again" => {
                let file = File::open(path)?;
                std::fs::remove_file(path)?;
                // With one name fewer, by the descriptor.
                let own = format!("/proc/self/fd/{}", file.as_raw_fd());
                let written =
                    OpenOptions::new().write(true).open(&own).and_then(|f| f.write_all_at(&[byte], 2));
                rustix::fs::linkat(rustix::fs::CWD, own, rustix::fs::CWD, path, AtFlags::SYMLINK_FOLLOW)?;
                written
            }
            "io_uring" => {
                let ring = self.ring.as_ref().ok_or(io::ErrorKind::Unsupported)?;
                if ring.write(writing()?, &BYTE) { Ok(()) } else { Err(io::ErrorKind::Other.into()) }
            }
            _ => {
                let path = CString::new(path.as_os_str().as_bytes())?;
                // SAFETY: a string that ends with zero; a new descriptor.
                let file = unsafe {
                    match libc::open(path.as_ptr(), libc::O_RDWR | libc::O_WRONLY | libc::O_CLOEXEC) {
                        fd if fd >= 0 => OwnedFd::from_raw_fd(fd),
                        _ => return Err(io::Error::last_os_error()),
                    }
                };
                Ok(rustix::fs::ioctl_setflags(&file, rustix::fs::IFlags::empty())?)
            }
        }
    }
}

/// What is attacked.
struct Targets {
    paths: RwLock<Vec<PathBuf>>,
    over: AtomicBool,
    rounds: AtomicUsize,
}

fn attack(seed: u64, targets: &Targets) -> BTreeMap<&'static str, u64> {
    // CAP_LINUX_IMMUTABLE: the guard lets those who have it change flags.
    drop_capability(9);
    let mut attacker = Attacker::new(seed);
    while !targets.over.load(Ordering::Relaxed) {
        let path = {
            let paths = targets.paths.read().unwrap();
            let at = attacker.random(paths.len().max(1));
            paths.get(at).cloned()
        };
        match path {
            Some(path) => attacker.attack(&path),
            None => std::thread::yield_now(),
        }
        targets.rounds.fetch_add(1, Ordering::Relaxed);
    }
    attacker.done
}

/// One batch of files under attack. How many were adopted, and what has changed of these.
fn batch(number: usize, targets: &Targets, changes: &FlagChanges, naive: bool) -> (usize, Vec<String>) {
    let dir = tempfile::tempdir_in(place()).unwrap();
    let (guest, host) = (dir.path().join("guest"), dir.path().join("host"));
    std::fs::create_dir(&guest).unwrap();
    std::fs::create_dir(&host).unwrap();
    let (guest_dir, host) = (File::open(&guest).unwrap(), File::open(&host).unwrap());
    let paths: Vec<PathBuf> = (0..BATCH).map(|at| guest.join(at.to_string())).collect();
    for path in &paths {
        std::fs::write(path, vec![number as u8; 300]).unwrap();
    }
    filesystem::sync(&host).unwrap();
    *targets.paths.write().unwrap() = paths.clone();
    let from = targets.rounds.load(Ordering::Relaxed);
    while targets.rounds.load(Ordering::Relaxed) < from + BATCH / 4 {
        std::thread::yield_now();
    }
    let mut held: Vec<Candidate> = Vec::new();
    for (at, path) in paths.iter().enumerate() {
        let [one, two] = [format!("{at}.1"), format!("{at}.2")];
        let names = [&one, &two].map(|name| Name { dir: host.as_fd(), name: OsStr::new(name) });
        let name = Name { dir: guest_dir.as_fd(), name: path.file_name().unwrap() };
        let held_now = name.open().map_err(Refusal::from).and_then(|file| Candidate::hold(file, name, names));
        held.extend(held_now);
    }
    let adopted: Vec<(&Candidate, Picture)> = if naive {
        let is_leased = |held: &&Candidate| Lease::take(held.as_fd()).unwrap().is_some();
        held.iter().filter(is_leased).map(|held| (held, Picture::of(&held.file))).collect()
    } else {
        let settled = settle(&host, changes, held.iter_mut());
        let proven = held.iter().zip(settled).filter_map(|(held, settled)| {
            settled.ok()?;
            let proof = held.prove().ok()?;
            let picture = Picture::of(&held.file);
            held.stands(proof).ok()?;
            Some((held, picture))
        });
        proven.collect()
    };
    std::thread::sleep(Duration::from_millis(30));
    let from = targets.rounds.load(Ordering::Relaxed);
    while targets.rounds.load(Ordering::Relaxed) < from + BATCH {
        std::thread::yield_now();
    }
    let changed = adopted.iter().filter_map(|(held, before)| {
        let now = Picture::of(&held.file);
        (now != *before).then(|| format!("{before:?} -> {now:?}"))
    });
    let changed = changed.collect();
    targets.paths.write().unwrap().clear();
    (adopted.len(), changed)
}

#[test]
#[ignore = "needs root"]
fn privileged_nothing_changes_what_has_been_adopted() {
    let Some(changes) = FlagChanges::find() else {
        eprintln!("skipped: no guard is loaded");
        return;
    };
    let rounds = std::env::var("COW_TESTS_ADOPT_ROUNDS").map_or(400, |rounds| rounds.parse().unwrap());
    let naive = std::env::var_os("COW_TESTS_ADOPT_NAIVE").is_some();
    let over = AtomicBool::new(false);
    let targets = Targets { paths: RwLock::default(), over, rounds: AtomicUsize::new(0) };
    let all_done: Mutex<BTreeMap<&str, u64>> = Mutex::default();
    let (mut tried, mut adopted, mut changed) = (0, 0, Vec::new());
    std::thread::scope(|scope| {
        for seed in 1..5 {
            let (targets, all_done) = (&targets, &all_done);
            scope.spawn(move || {
                for (operation, times) in attack(seed, targets) {
                    *all_done.lock().unwrap().entry(operation).or_default() += times;
                }
            });
        }
        while tried < rounds {
            let (now, different) = batch(tried, &targets, &changes, naive);
            (tried, adopted) = (tried + BATCH, adopted + now);
            changed.extend(different);
        }
        targets.over.store(true, Ordering::Relaxed);
    });
    let attacks = targets.rounds.load(Ordering::Relaxed);
    eprintln!("{tried} files, {adopted} adopted, {attacks} attacks, {} changed afterwards", changed.len());
    eprintln!("attacks that changed a file: {:?}", all_done.into_inner().unwrap());
    if naive {
        return;
    }
    assert!(adopted > 0);
    assert_eq!(changed, Vec::<String>::new());
}
