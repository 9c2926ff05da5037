//! Attacks on adoption. Those of one moment are seen to succeed against the mark and a lease alone, with or without a guard.

#![allow(unsafe_code)]

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use super::*;

mod sweep;

/// Where the files are: not in /tmp, a tmpfs has no flags. In the emulated machine, the filesystem that the guard guards.
fn place() -> PathBuf {
    std::env::var_os("COW_TESTS_ADOPT_IN").map_or_else(|| "/var/tmp".into(), PathBuf::from)
}

/// A file of a guest, and a directory of the host.
struct House {
    _dir: tempfile::TempDir,
    guest: PathBuf,
    host: File,
}

const PAGE: usize = 4096;

impl House {
    fn new(content: &[u8]) -> House {
        let dir = tempfile::tempdir_in(place()).unwrap();
        let guest = dir.path().join("guest");
        std::fs::write(&guest, content).unwrap();
        File::open(&guest).unwrap().sync_all().unwrap();
        std::fs::create_dir(dir.path().join("host")).unwrap();
        let host = File::open(dir.path().join("host")).unwrap();
        House { _dir: dir, guest, host }
    }

    fn names(&self) -> [Name<'_>; 2] {
        ["1", "2"].map(|name| Name { dir: self.host.as_fd(), name: OsStr::new(name) })
    }

    fn hold(&self) -> Result<Candidate, Refusal> {
        let dir = File::open(self.guest.parent().unwrap()).unwrap();
        let name = Name { dir: dir.as_fd(), name: self.guest.file_name().unwrap() };
        Candidate::hold(name.open()?, name, self.names())
    }

    fn read(&self) -> Vec<u8> {
        std::fs::read(&self.guest).unwrap()
    }
}

/// The guard's list, or one that is empty.
fn changes() -> (Option<tempfile::NamedTempFile>, FlagChanges) {
    if let Some(changes) = FlagChanges::find() {
        return (None, changes);
    }
    let empty = tempfile::NamedTempFile::new().unwrap();
    let changes = FlagChanges::at(empty.path());
    (Some(empty), changes)
}

fn adopt(house: &House) -> Result<Candidate, Refusal> {
    let (_empty, changes) = changes();
    let mut candidate = house.hold()?;
    settle(&house.host, &changes, [&mut candidate].into_iter()).remove(0)?;
    let proof = candidate.prove()?;
    house.read();
    candidate.stands(proof)?;
    Ok(candidate)
}

/// What an earlier design did: the mark, then a lease.
fn adopt_by_lease_alone(house: &House) -> bool {
    let candidate = house.hold().unwrap();
    let begun = std::time::Instant::now();
    // A child of another test has this one's descriptors until it has executed its program.
    while Lease::take(candidate.as_fd()).unwrap().is_none() {
        if begun.elapsed() > Duration::from_secs(5) {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}

/// A page that comes when it is told to: what reads it in the kernel waits until then.
struct SlowPage {
    at: usize,
    faults: OwnedFd,
}

impl SlowPage {
    fn new() -> SlowPage {
        // SAFETY: a new mapping; a new descriptor; the structures are those of `linux/userfaultfd.h`.
        unsafe {
            let at = libc::mmap(
                std::ptr::null_mut(),
                PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            ) as usize;
            let fd = libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK);
            assert!(fd >= 0, "{}", io::Error::last_os_error());
            let faults = OwnedFd::from_raw_fd(fd as i32);
            let mut api = [0xaau64, 0, 0];
            assert_eq!(libc::ioctl(faults.as_raw_fd(), 0xc018_aa3f, &mut api), 0);
            let mut register = [at as u64, PAGE as u64, 1, 0];
            assert_eq!(libc::ioctl(faults.as_raw_fd(), 0xc020_aa00, &mut register), 0);
            SlowPage { at, faults }
        }
    }

    /// Waits until somebody waits for the page.
    fn wait(&self) {
        let mut poll = libc::pollfd { fd: self.faults.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one structure.
        let ready = unsafe { libc::poll(&mut poll, 1, 10_000) };
        assert_eq!((ready, poll.revents), (1, libc::POLLIN));
    }

    fn come(&self, content: &[u8; PAGE]) {
        let mut copy = [self.at as u64, content.as_ptr() as u64, PAGE as u64, 0, 0];
        // SAFETY: `struct uffdio_copy`; the page is of this size.
        assert_eq!(unsafe { libc::ioctl(self.faults.as_raw_fd(), 0xc028_aa03, &mut copy) }, 0);
    }
}

/// Pins the first page of a file through a shared mapping; mapping and descriptor are gone when it returns. The page is
/// written to when the slow page comes.
fn pin(path: &Path, slow: &SlowPage) -> JoinHandle<isize> {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let local = slow.at;
    // SAFETY: a new mapping, which nothing of Rust's points into.
    let map = unsafe {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        libc::mmap(std::ptr::null_mut(), PAGE, protection, libc::MAP_SHARED, file.as_raw_fd(), 0) as usize
    };
    let writer = std::thread::spawn(move || {
        let local = libc::iovec { iov_base: local as *mut _, iov_len: PAGE };
        let remote = libc::iovec { iov_base: map as *mut _, iov_len: PAGE };
        // SAFETY: the kernel looks at both addresses itself.
        unsafe { libc::process_vm_writev(std::process::id() as i32, &local, 1, &remote, 1, 0) }
    });
    slow.wait();
    // SAFETY: the mapping of above.
    unsafe { libc::munmap(map as *mut _, PAGE) };
    writer
}

#[test]
#[ignore = "needs root"]
fn privileged_a_page_that_is_pinned_outlives_the_lease_but_not_the_eviction() {
    for naive in [true, false] {
        let (house, slow) = (House::new(&[1; PAGE]), SlowPage::new());
        let writer = pin(&house.guest, &slow);
        let adopted = if naive { adopt_by_lease_alone(&house) } else { adopt(&house).is_ok() };
        let before = house.read();
        slow.come(&[2; PAGE]);
        assert_eq!(writer.join().unwrap(), PAGE as isize);
        assert_ne!(house.read(), before, "the attack has not worked");
        assert_eq!(adopted, naive);
    }
}

/// Begins to clear the flags of a file; they are cleared when the slow page comes.
fn begin_to_clear(path: &Path, slow: &SlowPage) -> JoinHandle<i32> {
    let (file, at) = (File::open(path).unwrap(), slow.at);
    let clearing = std::thread::spawn(move || {
        // SAFETY: the kernel looks at the address itself.
        unsafe { libc::ioctl(file.as_raw_fd(), libc::FS_IOC_SETFLAGS, at as *mut libc::c_void) }
    });
    slow.wait();
    clearing
}

#[test]
#[ignore = "needs root"]
fn privileged_an_ioctl_that_is_held_outlives_the_mark_but_not_the_list() {
    let guarded = FlagChanges::find().is_some();
    for naive in [true, false] {
        let (house, slow) = (House::new(&[1; PAGE]), SlowPage::new());
        let clearing = begin_to_clear(&house.guest, &slow);
        let held = if naive {
            assert!(adopt_by_lease_alone(&house));
            None
        } else {
            Some(adopt(&house))
        };
        slow.come(&[0; PAGE]);
        let cleared = clearing.join().unwrap() == 0;
        // Since Linux 6.17 the guard is asked again.
        if naive && cleared {
            assert!(!mark::is_set(File::open(&house.guest).unwrap()).unwrap());
        }
        // Without the guard there is no list to tell.
        if guarded && let Some(adopted) = held {
            assert!(matches!(adopted, Err(Refusal::FlagChange)), "{adopted:?}");
        }
        eprintln!("naive: {naive}, flags cleared after the mark: {cleared}");
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_a_file_at_rest_is_adopted_and_can_be_released() {
    let house = House::new(&[7; 3 * PAGE + 1]);
    // A running guest reads it.
    house.read();
    let candidate = adopt(&house).unwrap();
    assert!(mark::is_set(&candidate).unwrap() && candidate.is_ours());
    candidate.release(house.names()).unwrap();
    assert!(!mark::is_set(&candidate).unwrap());
    assert_eq!(Inode::of(&candidate).unwrap().nlink, 1);
}

#[test]
#[ignore = "needs root"]
fn privileged_the_administrators_own_flag_stays() {
    let house = House::new(b"own");
    mark::set(File::open(&house.guest).unwrap()).unwrap();
    let candidate = house.hold().unwrap();
    candidate.release(house.names()).unwrap();
    assert!(!candidate.is_ours() && mark::is_set(&candidate).unwrap());
}

#[test]
#[ignore = "needs root"]
fn privileged_what_others_have_open_for_writing_or_mapped_is_refused() {
    let house = House::new(&[1; PAGE]);
    let writer = OpenOptions::new().write(true).open(&house.guest).unwrap();
    let refused = adopt(&house);
    assert!(matches!(refused, Err(Refusal::Writer)), "{refused:?}");
    drop(writer);

    for (protection, kind) in [(libc::PROT_READ, libc::MAP_PRIVATE), (libc::PROT_WRITE, libc::MAP_SHARED)] {
        let house = House::new(&[1; PAGE]);
        let file = OpenOptions::new().read(true).write(kind == libc::MAP_SHARED).open(&house.guest).unwrap();
        // SAFETY: a new mapping; one byte of it is read.
        let map = unsafe {
            let map = libc::mmap(std::ptr::null_mut(), PAGE, protection, kind, file.as_raw_fd(), 0);
            if protection == libc::PROT_READ {
                std::ptr::read_volatile(map.cast::<u8>());
            }
            map
        };
        drop(file);
        let refused = adopt(&house);
        let expected = |refusal: &Refusal| match kind {
            libc::MAP_SHARED => matches!(refusal, Refusal::Writer),
            _ => matches!(refusal, Refusal::PagesStay),
        };
        assert!(refused.as_ref().is_err_and(expected), "{refused:?}");
        // SAFETY: the mapping of above.
        unsafe { libc::munmap(map, PAGE) };
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_what_a_writer_has_left_is_written_to_the_disk() {
    let house = House::new(&[1; PAGE]);
    let (_empty, changes) = changes();
    let candidate = {
        let writer = OpenOptions::new().write(true).open(&house.guest).unwrap();
        let mut candidate = house.hold().unwrap();
        settle(&house.host, &changes, [&mut candidate].into_iter()).remove(0).unwrap();
        // Has passed the guard before the mark, goes on, and leaves: the time of change tells.
        writer.write_all_at(&[2; PAGE], 0).unwrap();
        candidate
    };
    // A child that another test forks just now has the writer's descriptor until it executes its program.
    let proof = loop {
        match candidate.prove() {
            Err(Refusal::Writer) => std::thread::sleep(Duration::from_millis(1)),
            proof => break proof.unwrap(),
        }
    };
    assert!(matches!(candidate.stands(proof), Err(Refusal::Changed)));
}

#[test]
#[ignore = "needs root"]
fn privileged_another_file_of_the_same_name_is_not_held() {
    let (house, other) = (House::new(b"one"), House::new(b"two"));
    let file = File::open(&other.guest).unwrap().into();
    let dir = File::open(house.guest.parent().unwrap()).unwrap();
    let name = Name { dir: dir.as_fd(), name: house.guest.file_name().unwrap() };
    assert!(matches!(Candidate::hold(file, name, house.names()), Err(Refusal::Changed)));
    assert_eq!(
        std::fs::metadata(&house.guest).map(|m| std::os::unix::fs::MetadataExt::nlink(&m)).unwrap(),
        1
    );
}
