//! Programs killed by strace at the entry of a system call.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use super::feed;

/// What changes a file, a name, a flag or a database, or makes it durable.
const MUTATING: [&str; 14] = [
    "renameat2",
    "renameat",
    "unlinkat",
    "linkat",
    "ioctl",
    "fchown",
    "fchmod",
    "utimensat",
    "ftruncate",
    "copy_file_range",
    "syncfs",
    "pwrite64",
    "fdatasync",
    "mkdirat",
];

/// How often a run is done again that has not come to the call it was to die at.
const TRIES: u32 = 10;

/// How often a thread made each call at most.
pub type Calls = BTreeMap<String, usize>;

/// Runs `command` under strace, with `input`; with `kill`, it dies at the entry of that call. Returns the calls it made,
/// and whether it died.
pub fn traced(command: &Command, input: &[u8], kill: Option<(&str, usize)>) -> (Calls, bool) {
    let log = tempfile::NamedTempFile::new().unwrap();
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-o"]).arg(log.path());
    strace.arg("-e").arg(format!("trace={}", MUTATING.join(",")));
    if let Some((call, nth)) = kill {
        strace.arg("-e").arg(format!("inject={call}:signal=KILL:when={nth}"));
    }
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    strace.args(words.map(OsStr::to_os_string));
    strace.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    if let Some(dir) = command.get_current_dir() {
        strace.current_dir(dir);
    }
    let status = feed(&mut strace, input).status;
    let died = status.signal() == Some(9) || status.code() == Some(128 + 9);
    // "PID call(...": each thread counts for itself.
    let mut by_thread: BTreeMap<(String, String), usize> = BTreeMap::new();
    for line in std::fs::read_to_string(log.path()).unwrap().lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(thread), Some(call)) = (words.next(), words.next()) else { continue };
        // strace may not know which call a thread ended in: "???(".
        if let Some((call, _)) = call.split_once('(').filter(|(call, _)| MUTATING.contains(call)) {
            *by_thread.entry((thread.to_owned(), call.to_owned())).or_default() += 1;
        }
    }
    let mut calls = Calls::new();
    for ((_, call), count) in by_thread {
        let most = calls.entry(call).or_default();
        *most = count.max(*most);
    }
    (calls, died)
}

/// Has `round` run a program that dies at each of these calls, the first, the last and some between; it returns what
/// [`traced`] does. Returns how often.
pub fn killed_at_each(calls: &Calls, mut round: impl FnMut(&str, usize) -> (Calls, bool)) -> usize {
    let mut killed = 0;
    for (call, &count) in calls {
        for mut nth in points(count) {
            let died = (0..TRIES).any(|_| {
                let (made, died) = round(call, nth);
                // Threads share the calls in another way each time: the last one now.
                nth = made.get(call).map_or(nth, |&made| made.min(nth));
                died
            });
            assert!(died, "{TRIES} runs ended before {call} {nth}");
            killed += 1;
        }
    }
    killed
}

/// The calls that a first run makes oftener than a later one.
pub fn beyond(first: Calls, later: &Calls) -> Calls {
    first.into_iter().filter(|(call, count)| later.get(call).is_none_or(|later| count > later)).collect()
}

/// The calls to die at: all of them on demand, else the first, the last and some between.
fn points(count: usize) -> Vec<usize> {
    if std::env::var_os("COW_TESTS_EVERY_CALL").is_some() {
        return (1..=count).collect();
    }
    let mut points = vec![1, 2, count / 3, count / 2, count.saturating_sub(1), count];
    points.retain(|&n| n > 0);
    points.sort_unstable();
    points.dedup();
    points
}
