//! The backend of the `log` crate: lines on standard error, for a person or for systemd's journal.
//!
//! Standard output belongs to a command's results, and in a hook to the package manager: never used here.

use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, Ordering};

use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::report::without_progress;

/// Sends what is logged to standard error under the name `program`, from now on.
///
/// `quiet` and `verbose` count the options `-q` and `-v`: without any, results and worse are shown; with `-q`
/// warnings and worse, with `-qq` errors alone; `-v` adds what is done and why, `-vv` everything.
/// A second call changes nothing but that.
pub fn init(program: &'static str, quiet: u8, verbose: u8) {
    log::set_max_level(level(quiet, verbose));
    let style = if journal_listens() { Style::Journal } else { Style::Plain };
    // It fails only if a logger is set already, and that one will do.
    let _ = log::set_boxed_logger(Box::new(Stderr { program, style }));
}

/// Somebody else's progress stands on the line: the next message begins with a line feed.
pub fn break_line() {
    BREAK.store(true, Ordering::Relaxed);
}

static BREAK: AtomicBool = AtomicBool::new(false);

fn level(quiet: u8, verbose: u8) -> LevelFilter {
    match i16::from(verbose) - i16::from(quiet) {
        ..=-2 => LevelFilter::Error,
        -1 => LevelFilter::Warn,
        0 => LevelFilter::Info,
        1 => LevelFilter::Debug,
        2.. => LevelFilter::Trace,
    }
}

/// Whether standard error is the very stream systemd has connected to its journal. The variable
/// alone says little: it is inherited by children whose output goes elsewhere.
fn journal_listens() -> bool {
    let Some(stream) = std::env::var_os("JOURNAL_STREAM") else { return false };
    let Ok(stat) = rustix::fs::fstat(io::stderr()) else { return false };
    stream.as_bytes() == format!("{}:{}", stat.st_dev, stat.st_ino).as_bytes()
}

#[derive(Debug)]
struct Stderr {
    program: &'static str,
    style: Style,
}

#[derive(Debug, Clone, Copy)]
enum Style {
    /// `cow-prepare: warning: ...`
    Plain,
    /// `<4>...`, as in `sd-daemon(3)`; the journal knows the program.
    Journal,
}

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let mut lines = format(self.style, self.program, record.level(), &record.args().to_string());
            if BREAK.swap(false, Ordering::Relaxed) {
                lines.insert(0, '\n');
            }
            // Nowhere is left to report that standard error is closed, and it must not end a transaction.
            without_progress(|| {
                let _ = io::stderr().write_all(lines.as_bytes());
            });
        }
    }

    fn flush(&self) {}
}

/// One string, to be written by one call: lines of concurrent programs do not mix.
fn format(style: Style, program: &str, level: Level, message: &str) -> String {
    match style {
        Style::Plain => {
            let label = match level {
                Level::Error => "error: ",
                Level::Warn => "warning: ",
                Level::Info => "",
                Level::Debug => "debug: ",
                Level::Trace => "trace: ",
            };
            format!("{program}: {label}{message}\n")
        }
        // Each line is an entry of its own there, and needs a priority of its own.
        Style::Journal => {
            let priority = match level {
                Level::Error => 3,
                Level::Warn => 4,
                Level::Info => 6,
                Level::Debug | Level::Trace => 7,
            };
            message.lines().map(|line| format!("<{priority}>{line}\n")).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_sees_the_program_and_what_is_wrong() {
        let plain = |level| format(Style::Plain, "cow-hooks", level, "text");
        assert_eq!(plain(Level::Info), "cow-hooks: text\n");
        assert_eq!(plain(Level::Warn), "cow-hooks: warning: text\n");
        assert_eq!(plain(Level::Error), "cow-hooks: error: text\n");
    }

    #[test]
    fn the_journal_sees_a_priority_on_every_line() {
        assert_eq!(format(Style::Journal, "cow-hooks", Level::Warn, "a\nb"), "<4>a\n<4>b\n");
        assert_eq!(format(Style::Journal, "cow-hooks", Level::Info, "a"), "<6>a\n");
    }

    #[test]
    fn quiet_and_verbose_move_the_level() {
        assert_eq!(level(0, 0), LevelFilter::Info);
        assert_eq!(level(1, 0), LevelFilter::Warn);
        assert_eq!(level(9, 0), LevelFilter::Error);
        assert_eq!(level(0, 1), LevelFilter::Debug);
        assert_eq!(level(0, 255), LevelFilter::Trace);
        assert_eq!(level(1, 1), LevelFilter::Info);
    }
}
