//! Gives one parser inputs that libFuzzer makes; its name is in the variable PARSER. Called by tests/fuzz/run.

#![no_main]

#[path = "../../hooks/dpkg/caller.rs"]
#[expect(dead_code, reason = "a parser of the hook's is called, and nothing else")]
mod dpkg_caller;
#[path = "../../hooks/zypp/cow-zypp.rs"]
#[expect(dead_code, reason = "a parser of the plugin's is called, and nothing else")]
mod zypp;

use std::alloc::System;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cap::Cap;
use cow_hooks::fuzzing::{PARSERS, Parser};
use nix::time::{ClockId, clock_gettime};
use zypp::Event;

/// As much memory as one input may take, in bytes, beyond what there was before; Rust's share of it. What C libraries take
/// counts for the whole program (`-rss_limit_mb`).
const MOST_MEMORY: usize = 64 << 20;
/// As much of a processor's time as one input may take. The time that goes by says nothing on a busy machine.
const MOST_TIME: Duration = Duration::from_secs(1);

#[global_allocator]
static MEMORY: Cap<System> = Cap::new(System, usize::MAX);

/// Parsers of entry points, which are not in the library.
const OF_ENTRY_POINTS: [Parser; 2] =
    [("dpkg-configuration", dpkg_configuration), ("zypp-frames", zypp_frames)];

fn dpkg_configuration(data: &[u8]) {
    dpkg_caller::names_root(data);
}

fn zypp_frames(data: &[u8]) {
    let (mut output, mut open, mut told) = (Vec::new(), false, 0);
    zypp::converse(data, &mut output, |event| {
        open = event == Event::Begins;
        told += 1;
    });
    assert!(!open, "a run that has begun was not ended");
    let frames = data.iter().filter(|&&byte| byte == 0).count();
    assert!(output.iter().filter(|&&byte| byte == 0).count() <= frames && told <= frames + 1);
}

fn parsers() -> impl Iterator<Item = &'static Parser> {
    PARSERS.iter().chain(&OF_ENTRY_POINTS)
}

/// The parser that is asked for; if there is none, all names are printed, and nothing else is done.
fn chosen() -> fn(&[u8]) {
    let name = std::env::var("PARSER").unwrap_or_default();
    match parsers().find(|(parser, _)| *parser == name) {
        Some((_, parse)) => *parse,
        None => {
            parsers().for_each(|(parser, _)| println!("{parser}"));
            std::process::exit(if name.is_empty() { 0 } else { 2 })
        }
    }
}

/// What this thread has had of a processor.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from).unwrap_or_default()
}

/// Says how much memory an input takes, whenever that is twice as much as any before.
fn note(taken: usize) {
    static MOST: AtomicUsize = AtomicUsize::new(1 << 20);
    if taken >= 2 * MOST.load(Ordering::Relaxed) {
        MOST.store(taken, Ordering::Relaxed);
        eprintln!("an input of this parser takes {} KiB", taken >> 10);
    }
}

static CHOSEN: OnceLock<fn(&[u8])> = OnceLock::new();

libfuzzer_sys::fuzz_target!(init: { CHOSEN.set(chosen()).ok() }, |data: &[u8]| {
    let Some(parse) = CHOSEN.get() else { return };
    let before = MEMORY.allocated();
    let limited = MEMORY.set_limit(before + MOST_MEMORY);
    let begun = processor_time();
    parse(data);
    let taken = processor_time().saturating_sub(begun);
    assert!(taken <= MOST_TIME, "this input takes {taken:?}");
    note(MEMORY.max_allocated().saturating_sub(before));
    if limited.is_ok() {
        MEMORY.set_limit(usize::MAX).unwrap();
    }
});
