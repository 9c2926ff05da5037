//! rpm's own format of database, `Packages.db`, as SUSE has it: slots that say where each header is
//! (rpm, `lib/backend/ndb/rpmpkg.c`). All numbers are little-endian.

use std::io;
use std::os::fd::OwnedFd;

use super::{checked_size, malformed};
use crate::sys::budget::{self, Exceeded};
use crate::sys::file::content::fill;

/// Bytes of a slot, and of the blocks that blobs are made of.
const UNIT: usize = 16;
/// Slots stand in pages of this size, after the header in the first of them.
const PAGE: usize = 4096;
const HEADER: usize = 32;
/// Bytes before and behind a blob.
const HEAD: usize = 16;
const TAIL: usize = 12;

/// Where a blob is, in blocks.
struct Slot {
    package: u32,
    start: u64,
    blocks: u64,
}

/// The headers in a database.
pub(crate) fn blobs(file: OwnedFd) -> io::Result<impl Iterator<Item = io::Result<Vec<u8>>>> {
    let size = checked_size(&file)?;
    let mut header = [0; HEADER];
    if fill(&file, &mut header, 0)? < HEADER || !header.starts_with(b"RpmP") {
        return Err(malformed("not a database of rpm"));
    }
    if word(&header, 4) != 0 {
        return Err(malformed("unknown version"));
    }
    let slots = slots(&file, size, u64::from(word(&header, 12)))?;
    Ok(slots.into_iter().map(move |slot| blob(&file, &slot)))
}

/// The slots that are in use, of so many pages of them.
fn slots(file: &OwnedFd, size: u64, pages: u64) -> io::Result<Vec<Slot>> {
    let odd = || malformed("invalid slots");
    if pages * PAGE as u64 > size {
        return Err(odd());
    }
    let mut slots = Vec::new();
    let mut bytes_left = size;
    let mut page = [0; PAGE];
    for number in 0..pages {
        fill(file, &mut page, number * PAGE as u64)?;
        for slot in page.as_chunks::<UNIT>().0.iter().skip(if number == 0 { HEADER / UNIT } else { 0 }) {
            let [package, start, blocks] = [4, 8, 12].map(|at| word(slot, at));
            if !slot.starts_with(b"Slot") {
                return Err(odd());
            }
            if start == 0 {
                continue;
            }
            let slot = Slot { package, start: start.into(), blocks: blocks.into() };
            // No two have the same block: together, they are no larger than the file.
            bytes_left = bytes_left.checked_sub(slot.blocks * UNIT as u64).ok_or_else(odd)?;
            slots.push(slot);
            Exceeded::check_count(slots.len(), budget::PACKAGES, "packages")?;
        }
    }
    Ok(slots)
}

fn blob(file: &OwnedFd, slot: &Slot) -> io::Result<Vec<u8>> {
    let odd = || malformed(format!("the entry of package {} is invalid", slot.package));
    let start = slot.start * UNIT as u64;
    let mut head = [0; HEAD];
    let read = fill(file, &mut head, start)?;
    let length = word(&head, 12) as usize;
    let is_sound = read == HEAD
        && head.starts_with(b"BlbS")
        && word(&head, 4) == slot.package
        && length <= budget::HEADER
        && (HEAD + length + TAIL).div_ceil(UNIT) as u64 == slot.blocks;
    if !is_sound {
        return Err(odd());
    }
    let mut blob = vec![0; length];
    if fill(file, &mut blob, start + HEAD as u64)? < length { Err(odd()) } else { Ok(blob) }
}

/// The number at `at`, which is there.
fn word(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |&bytes| u32::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    /// A database as rpm writes it, of the blobs in these slots.
    fn database(blobs: &[Option<&[u8]>]) -> Vec<u8> {
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
        let pages = (blobs.len() + 2).div_ceil(PAGE / UNIT);
        let mut slots = [&b"RpmP"[..], &words(&[0, 1, pages as u32, 9, 0, 0, 0])].concat();
        let mut data = Vec::new();
        for (number, blob) in (1..).zip(blobs) {
            let mut place = [0; 3];
            if let Some(blob) = blob {
                let start = (pages * PAGE + data.len()) / UNIT;
                data.extend([&b"BlbS"[..], &words(&[number, 1, blob.len() as u32]), blob].concat());
                data.resize((data.len() + TAIL).next_multiple_of(UNIT) - TAIL, 0);
                data.extend([&words(&[0, blob.len() as u32])[..], b"BlbE"].concat());
                place = [number, start as u32, ((pages * PAGE + data.len()) / UNIT - start) as u32];
            }
            slots.extend([&b"Slot"[..], &words(&place)].concat());
        }
        slots.resize_with(pages * PAGE, Default::default);
        let used = 2 + blobs.len();
        for slot in slots.as_chunks_mut::<UNIT>().0.iter_mut().skip(used) {
            slot[..4].copy_from_slice(b"Slot");
        }
        [slots, data].concat()
    }

    fn read(database: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), database).unwrap();
        blobs(fs::File::open(file.path()).unwrap().into())?.collect()
    }

    #[test]
    fn blobs_of_all_slots_in_use_are_read() {
        let long = vec![7; 5000];
        let database = database(&[Some(b"a"), None, Some(&long), Some(b"")]);
        assert_eq!(read(&database).unwrap(), [b"a".to_vec(), long, Vec::new()]);
    }

    #[test]
    fn slots_may_take_several_pages() {
        let blobs = [Some(&b"abc"[..]); 700];
        assert_eq!(read(&database(&blobs)).unwrap().len(), 700);
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let sound = database(&[Some(b"abc"), Some(b"def")]);
        assert_eq!(read(&sound).unwrap().len(), 2);
        let second = HEADER + UNIT + 8..HEADER + UNIT + 16;
        let blob = PAGE + HEAD;
        for (place, value) in [
            (0, 0),
            (4, 1),
            (12, 2),
            (second.start, 1 << 20),
            (second.end - 4, 1 << 20),
            (PAGE, 1),
            (PAGE + 4, 9),
            (blob - 4, 90),
        ] {
            let mut odd = sound.clone();
            odd[place..place + 4].copy_from_slice(&u32::to_le_bytes(value));
            assert!(read(&odd).is_err(), "{place}");
        }
        for length in 0..blob {
            assert!(read(&sound[..length]).is_err(), "{length}");
        }
    }

    proptest! {
        #[test]
        fn any_database_is_read_without_panic(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..9),
        ) {
            let mut database = database(&[Some(&[7; 300]), Some(b"abc")]);
            for (at, byte) in changes {
                let at = at.index(HEADER + 4 * UNIT);
                database[at] = byte;
            }
            let read = read(&database).map(|blobs| blobs.iter().map(Vec::len).sum::<usize>());
            prop_assert!(read.unwrap_or(0) <= database.len());
        }
    }
}
