//! A progress bar, for a person who watches.

use std::fmt::{self, Write};
use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use super::{count, size};

/// The bar on the screen, so that a message can be printed around it.
static SHOWN: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Files and bytes done so far; a bar on standard error if that is a terminal, else nothing at all.
///
/// [`Progress::add`] may be called from any thread. The bar disappears when the value is dropped.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    bytes: Arc<AtomicU64>,
}

impl Progress {
    /// Starts a bar labelled `action`, counting to `files` if that is known. With `quiet`, nothing is
    /// drawn.
    pub fn new(action: &'static str, files: Option<u64>, quiet: bool) -> Progress {
        if quiet || !std::io::stderr().is_terminal() {
            return Progress::hidden();
        }
        let bar = ProgressBar::with_draw_target(files, ProgressDrawTarget::stderr());
        let bytes = Arc::new(AtomicU64::new(0));
        let progress = Progress { bar, bytes: Arc::clone(&bytes) };
        let template = match files {
            Some(_) => "{msg} [{bar:30}] {pos}/{files}, {size}",
            None => "{spinner} {msg}: {files}, {size}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            let written = move |_: &ProgressState, out: &mut dyn Write| {
                // A write to a string does not fail, and this signature could not say so.
                let _ = out.write_str(&size(bytes.load(Ordering::Relaxed)));
            };
            let counted = |state: &ProgressState, out: &mut dyn Write| {
                let _ = out.write_str(&count(state.len().unwrap_or(state.pos()), "file"));
            };
            let style = style.with_key("size", written).with_key("files", counted);
            progress.bar.set_style(style.progress_chars("=> "));
        }
        progress.bar.set_message(action);
        // One large file is no reason to look dead.
        progress.bar.enable_steady_tick(Duration::from_millis(200));
        *SHOWN.lock().unwrap_or_else(PoisonError::into_inner) = Some(progress.bar.clone());
        progress
    }

    /// Counts, and draws nothing.
    pub fn hidden() -> Progress {
        Progress { bar: ProgressBar::hidden(), bytes: Arc::default() }
    }

    /// `files` more are done, which took `bytes` copied bytes.
    pub fn add(&self, files: u64, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.bar.inc(files);
    }

    /// Files done so far.
    pub fn files(&self) -> u64 {
        self.bar.position()
    }

    /// Bytes copied so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if !self.bar.is_hidden() {
            *SHOWN.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        self.bar.finish_and_clear();
    }
}

/// Is told how far some work has got.
pub trait Watch: Sync + fmt::Debug {
    /// Some work begins, on so many files; 0: it is not known yet on how many.
    fn begin(&self, action: &'static str, files: u64);
    /// So many files and bytes more are done.
    fn add(&self, files: u64, bytes: u64);
    /// The work has ended.
    fn end(&self);
}

/// Shows nothing.
#[derive(Clone, Copy, Debug)]
pub struct Silent;

impl Watch for Silent {
    fn begin(&self, _: &'static str, _: u64) {}
    fn add(&self, _: u64, _: u64) {}
    fn end(&self) {}
}

/// Runs `print`, which writes to standard error, with the progress bar out of the way.
pub fn without_progress(print: impl FnOnce()) {
    let bar = SHOWN.lock().unwrap_or_else(PoisonError::into_inner).clone();
    match bar {
        Some(bar) => bar.suspend(print),
        None => print(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_add_to_one_count() {
        let progress = Progress::hidden();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|_| progress.add(1, 10)));
            }
        });
        assert_eq!((progress.files(), progress.bytes()), (4000, 40_000));
    }

    #[test]
    fn a_quiet_bar_is_not_drawn() {
        let progress = Progress::new("copying", Some(3), true);
        progress.add(1, 1);
        assert!(progress.bar.is_hidden());
    }
}
