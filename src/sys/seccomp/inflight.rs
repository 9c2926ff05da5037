//! Calls that were received and not yet answered, where another process can see them.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::mm::{MapFlags, ProtFlags};

/// Most threads that answer.
pub const SLOTS: usize = 8;

/// Most calls that wait for a thread.
pub const PLACES: usize = 1015;

/// Calls that threads answer, those that wait, and the highest number of all.
type Page = [AtomicU64; SLOTS + PLACES + 1];
const HIGHEST: usize = SLOTS + PLACES;

/// A page that this process and those it forks share.
#[derive(Debug)]
pub struct InFlight {
    page: &'static Page,
}

impl InFlight {
    /// A page with nothing on it. It lives as long as the process.
    pub fn new() -> io::Result<InFlight> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory there is.
        let page = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                size_of::<Page>(),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
            )?
        };
        // SAFETY: the mapping is zeroed, large enough, aligned to a page, and never unmapped; all access is atomic.
        Ok(InFlight { page: unsafe { &*page.cast() } })
    }

    /// A call was received by the thread of `slot`, or is answered by it from now on.
    pub fn begin(&self, slot: usize, id: u64) {
        self.page[slot].store(id, Ordering::SeqCst);
        self.page[HIGHEST].fetch_max(id, Ordering::SeqCst);
    }

    /// It was answered, or waits.
    pub fn end(&self, slot: usize) {
        self.page[slot].store(0, Ordering::SeqCst);
    }

    /// A call waits in one of the [`PLACES`]; to be called before it leaves its slot.
    pub fn wait(&self, place: usize, id: u64) {
        self.page[SLOTS + place].store(id, Ordering::SeqCst);
    }

    /// It waits no more; to be called once it has a slot again.
    pub fn leave(&self, place: usize) {
        self.page[SLOTS + place].store(0, Ordering::SeqCst);
    }

    /// Every call that may wait for an answer of a process that is no more: those that were noted, and those that
    /// were received next, before they could be.
    ///
    /// The kernel numbers calls in order, from a random number on (`seccomp_next_notify_id` of `kernel/seccomp.c`).
    pub fn left(&self) -> Vec<u64> {
        let noted =
            self.page[..HIGHEST].iter().map(|slot| slot.swap(0, Ordering::SeqCst)).filter(|id| *id != 0);
        let last = self.page[HIGHEST].load(Ordering::SeqCst);
        let mut left: Vec<u64> = noted.collect();
        if last != 0 {
            left.extend(last.saturating_sub(SLOTS as u64)..=last.saturating_add(SLOTS as u64));
        }
        left.sort_unstable();
        left.dedup();
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_answered_is_not_left() {
        let calls = InFlight::new().unwrap();
        assert_eq!(calls.left(), Vec::<u64>::new());
        calls.begin(0, 1000);
        calls.begin(1, 5000);
        calls.end(1);
        let left = calls.left();
        assert!(left.contains(&1000) && left.contains(&5001));
    }

    #[test]
    fn what_waits_is_left() {
        let calls = InFlight::new().unwrap();
        calls.begin(0, 7);
        calls.wait(PLACES - 1, 7);
        calls.begin(0, 5000);
        assert!(calls.left().contains(&7));
        calls.begin(0, 7);
        calls.wait(0, 7);
        calls.end(0);
        calls.leave(0);
        assert!(!calls.left().contains(&7));
    }
}
