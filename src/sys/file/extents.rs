//! Which blocks of a filesystem hold a file (`FS_IOC_FIEMAP`): what files share, and what would be free without one.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsFd;

use rustix::ioctl::{Opcode, Updater, opcode};

/// `FS_IOC_FIEMAP` of `linux/fs.h`, which counts the structure without its extents.
const FIEMAP: Opcode = opcode::read_write::<[u64; 4]>(b'f', 11);
/// `FIEMAP_FLAG_SYNC` of `linux/fiemap.h`: what is in memory only gets its blocks first.
const SYNC: u32 = 1;
/// `FIEMAP_EXTENT_LAST`, `_UNKNOWN`, `_DELALLOC`, `_ENCODED`, `_DATA_INLINE` and `_SHARED`.
const LAST: u32 = 1;
const NOWHERE: u32 = 0x2 | 0x4 | 0x200;
const ENCODED: u32 = 0x8;
const SHARED: u32 = 0x2000;
/// Extents asked for at a time.
const EXTENTS_AT_ONCE: usize = 256;

/// `struct fiemap_extent`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Raw {
    logical: u64,
    physical: u64,
    length: u64,
    reserved: [u64; 2],
    flags: u32,
    reserved_too: [u32; 3],
}

/// `struct fiemap` with room for extents.
#[repr(C)]
struct Map {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
    extents: [Raw; EXTENTS_AT_ONCE],
}

/// A range of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Its first byte on the filesystem.
    pub start: u64,
    /// The byte after its last.
    pub end: u64,
    /// Other files have it, too.
    pub shared: bool,
    /// It is compressed: how many bytes it takes is not known.
    pub encoded: bool,
}

/// The blocks of an open file, once all it holds has some; none for what lies within its inode.
///
/// # Errors
/// `EOPNOTSUPP` if the filesystem does not tell.
pub fn of(file: impl AsFd) -> io::Result<Vec<Extent>> {
    let mut found = Vec::new();
    let mut start = 0;
    loop {
        let mut map = Map {
            start,
            length: u64::MAX - start,
            flags: SYNC,
            mapped: 0,
            count: EXTENTS_AT_ONCE as u32,
            reserved: 0,
            extents: [Raw::default(); EXTENTS_AT_ONCE],
        };
        // SAFETY: `map` has the layout the kernel reads and writes, and room for as many extents as `count` says.
        unsafe { rustix::ioctl::ioctl(&file, Updater::<FIEMAP, Map>::new(&mut map)) }?;
        let mapped = &map.extents[..(map.mapped as usize).min(EXTENTS_AT_ONCE)];
        found.extend(mapped.iter().filter(|raw| raw.flags & NOWHERE == 0).map(|raw| Extent {
            start: raw.physical,
            end: raw.physical.saturating_add(raw.length),
            shared: raw.flags & SHARED != 0,
            encoded: raw.flags & ENCODED != 0,
        }));
        match mapped.last() {
            Some(last) if last.flags & LAST == 0 => start = last.logical.saturating_add(last.length),
            _ => return Ok(found),
        }
    }
}

/// Whether a file has no block that another one has as well.
pub fn is_alone(file: impl AsFd) -> io::Result<bool> {
    Ok(!of(file)?.iter().any(|extent| extent.shared))
}

/// Whether all blocks of `a` are blocks of `b`; they are told by where they begin.
pub fn is_within(a: &[Extent], b: &[Extent]) -> bool {
    sweep(&[a], b).iter().all(|part| part.kept || part.holders == 0)
}

/// Bytes that are free once the files that have `before` have the blocks `after` instead. What is shared with other files
/// than these is not, nor is what is compressed counted.
pub fn freed(before: &[&[Extent]], after: &[Extent]) -> u64 {
    let is_freed = |part: &&Part| part.holders > 0 && !part.kept && (!part.shared || part.holders > 1);
    sweep(before, after).iter().filter(is_freed).map(|part| part.length).sum()
}

/// Bytes that `after` takes beside what the files have that have `before`.
pub fn taken(before: &[&[Extent]], after: &[Extent]) -> u64 {
    sweep(before, after).iter().filter(|part| part.kept && part.holders == 0).map(|part| part.length).sum()
}

/// A range of blocks that the same files have.
struct Part {
    length: u64,
    /// How many of the files have it.
    holders: u32,
    /// It is among those that are kept.
    kept: bool,
    shared: bool,
}

fn sweep(files: &[&[Extent]], kept: &[Extent]) -> Vec<Part> {
    // A place, and what begins or ends there: a file, one that shares, what is kept.
    let mut edges: Vec<(u64, [i32; 3])> = Vec::new();
    let all = files.iter().map(|file| (*file, 1, 0)).chain([(kept, 0, 1)]);
    for (extents, file, kept) in all {
        for extent in extents {
            // A compressed extent is told by its first block alone.
            let end = if extent.encoded { extent.start + 1 } else { extent.end };
            let shared = i32::from(extent.shared) * file;
            edges.push((extent.start, [file, shared, kept]));
            edges.push((end, [-file, -shared, -kept]));
        }
    }
    edges.sort_unstable_by_key(|(at, _)| *at);
    let mut parts = Vec::new();
    let mut now = [0; 3];
    for pair in edges.windows(2) {
        let [(at, change), (next, _)] = *pair else { continue };
        for (now, change) in now.iter_mut().zip(change) {
            *now += change;
        }
        if next > at && now != [0; 3] {
            let holders = u32::try_from(now[0]).unwrap_or(0);
            let length = if next - at == 1 { 0 } else { next - at };
            parts.push(Part { length, holders, kept: now[2] > 0, shared: now[1] > 0 });
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(start: u64, end: u64, shared: bool) -> Extent {
        Extent { start, end, shared, encoded: false }
    }

    #[test]
    fn only_what_nobody_has_any_more_is_free() {
        let object = [extent(0, 100, true)];
        let own = [extent(200, 300, false)];
        assert_eq!(freed(&[&own, &object], &object), 100);
        assert_eq!(freed(&[&own, &own], &object), 100);
        // Two of the files share it with each other; one shares it with somebody else.
        let both = [extent(200, 300, true)];
        assert_eq!((freed(&[&both, &both], &object), freed(&[&both], &object)), (100, 0));
        // The filesystem may split extents anywhere.
        let cut = [extent(0, 40, true), extent(40, 100, true)];
        assert!(is_within(&cut, &object) && is_within(&object, &cut) && !is_within(&own, &object));
        assert_eq!(freed(&[&cut], &object), 0);
        assert_eq!((taken(&[&own], &object), taken(&[&own, &cut], &object)), (100, 0));
    }

    #[test]
    fn compressed_blocks_are_known_and_not_counted() {
        let encoded = |start| Extent { start, end: start + 131_072, shared: false, encoded: true };
        assert!(is_within(&[encoded(4096)], &[encoded(4096), encoded(8192)]));
        assert!(!is_within(&[encoded(4096)], &[encoded(8192)]));
        assert_eq!(freed(&[&[encoded(4096)]], &[encoded(8192)]), 0);
    }
}
