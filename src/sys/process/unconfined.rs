//! A thread that keeps its root directory, and stays free of seccomp filters, when another thread of the process calls
//! `chroot(2)` or installs a filter for itself.

#![allow(unsafe_code)]

use std::io;
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;

use rustix::thread::UnshareFlags;

use crate::sys::seccomp::filter;

type Work = Box<dyn FnOnce() + Send>;

/// The thread. It ends when this is dropped.
#[derive(Debug)]
pub struct UnconfinedThread {
    /// Whose thread it is: a child of that process, forked since, has none.
    process: u32,
    queue: Option<Sender<Work>>,
    thread: Option<JoinHandle<()>>,
}

impl UnconfinedThread {
    /// Starts the thread, with root and working directory of the caller as they are now.
    ///
    /// # Errors
    /// If no thread can be started, or it may not have a root of its own (`unshare(2)` behind a filter).
    pub fn start() -> io::Result<UnconfinedThread> {
        if ![libc::SYS_unshare, libc::SYS_clone3, libc::SYS_prctl].into_iter().all(filter::permits) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let (queue, works) = mpsc::channel::<Work>();
        let (started, has_started) = mpsc::channel();
        let thread = std::thread::Builder::new().name("unconfined".into()).spawn(move || {
            // SAFETY: no descriptors are unshared: root, working directory and umask alone become the thread's own.
            let unshared = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) };
            let fine = unshared.is_ok();
            let _ = started.send(unshared);
            if fine {
                works.iter().for_each(|work| work());
            }
        })?;
        let unconfined =
            UnconfinedThread { process: std::process::id(), queue: Some(queue), thread: Some(thread) };
        has_started.recv().map_err(io::Error::other)??;
        Ok(unconfined)
    }

    /// Does `work` in the thread, and waits for it. A forked child does not do it.
    pub fn run(&self, work: impl FnOnce() + Send + 'static) {
        if self.process != std::process::id() {
            return;
        }
        let (done, is_done) = mpsc::channel::<()>();
        let work = move || {
            let _done = done;
            work();
        };
        if self.queue.as_ref().is_some_and(|queue| queue.send(Box::new(work)).is_ok()) {
            // Nothing is ever sent: the other end is dropped, after a panic too.
            let _ = is_done.recv();
        }
    }
}

impl Drop for UnconfinedThread {
    fn drop(&mut self) {
        drop(self.queue.take());
        if let Some(thread) = self.thread.take().filter(|_| self.process == std::process::id()) {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn the_directory_of_another_thread_is_its_own() {
        let seen = Arc::new(Mutex::new(None));
        let (result, before) = (Arc::clone(&seen), std::env::current_dir().unwrap());
        // A thread of its own for the caller, too: other tests run in this process.
        std::thread::spawn(move || {
            // SAFETY: as above.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }.unwrap();
            let unconfined = UnconfinedThread::start().unwrap();
            rustix::process::chdir("/").unwrap();
            unconfined.run(move || *result.lock().unwrap() = Some(std::env::current_dir().unwrap()));
        })
        .join()
        .unwrap();
        assert_eq!(seen.lock().unwrap().take(), Some(before));
    }

    #[test]
    fn a_forked_child_waits_for_no_thread() {
        let unconfined = UnconfinedThread::start().unwrap();
        // SAFETY: the child only gives up what it has of the thread, and ends.
        let nix::unistd::ForkResult::Parent { child } = (unsafe { nix::unistd::fork() }).unwrap() else {
            unconfined.run(|| ());
            drop(unconfined);
            // SAFETY: ends the process at once.
            unsafe { libc::_exit(7) }
        };
        assert_eq!(crate::sys::process::wait(child.as_raw()).unwrap(), Some(7));
    }

    #[test]
    fn a_panic_does_not_leave_the_caller_waiting() {
        let unconfined = UnconfinedThread::start().unwrap();
        unconfined.run(|| panic!("on purpose"));
        unconfined.run(|| ());
    }
}
