//! What rpm keeps of an installed package: a header, as in the package's file, without the magic number before it
//! (<https://rpm-software-management.github.io/rpm/manual/format_header.html>).
//!
//! Only the few tags are read that tell of files. Names are bytes, and a header may be of any content: it is a guest's.

use std::io;
use std::path::PathBuf;

use super::malformed;
use crate::package::absolute;
use crate::sys::budget::{self, Exceeded};

/// Tags (rpm's `rpmtag.h`).
const NAME: u32 = 1000;
const INSTALLTIME: u32 = 1008;
const FILESTATES: u32 = 1029;
const FILEFLAGS: u32 = 1037;
const DIRINDEXES: u32 = 1116;
const BASENAMES: u32 = 1117;
const DIRNAMES: u32 = 1118;

/// What is signed of a header, and what of a signature.
const REGIONS: [u32; 2] = [62, 63];

/// Flags of a file (rpm's `rpmfiles.h`).
const CONFIG: u32 = 1 << 0;
const GHOST: u32 = 1 << 6;
/// The state of a file that is there, and not replaced by another package's or left out (rpm's `rpmfiles.h`).
const NORMAL: u8 = 0;

/// Types of values (rpm's `rpmtag.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    Byte = 1,
    Word = 4,
    Text = 6,
    Texts = 8,
}

/// The header of an installed package.
#[derive(Debug)]
pub struct Header<'b> {
    /// Entries: tag, type, offset in the data, count.
    index: &'b [[u8; 16]],
    data: &'b [u8],
}

/// A file a package lists.
#[derive(Debug)]
pub struct HeaderFile<'b> {
    dir: &'b [u8],
    name: &'b [u8],
    flags: u32,
    state: u8,
}

impl<'b> Header<'b> {
    /// Reads a header of rpm's database.
    pub fn parse(blob: &'b [u8]) -> io::Result<Header<'b>> {
        let cut_off = || malformed("a header is truncated");
        let (counts, rest) = blob.split_at_checked(8).ok_or_else(cut_off)?;
        let (entries, length) = (word(counts, 0) as usize, word(counts, 1) as usize);
        let (index, rest) = rest.split_at_checked(entries.saturating_mul(16)).ok_or_else(cut_off)?;
        let data = rest.get(..length).ok_or_else(cut_off)?;
        Ok(Header { index: index.as_chunks().0, data })
    }

    /// Checks what rpm asks of a package's file (`hdrblobVerifyInfo` in its `lib/header.c`): each value lies within the
    /// data, one behind the other.
    ///
    /// # Errors
    /// `InvalidData` if it is not so.
    pub fn check(&self) -> io::Result<()> {
        let mut end = 0;
        for (at, entry) in self.index.iter().enumerate() {
            let [tag, kind, offset, count] = [0, 1, 2, 3].map(|at| word(entry, at));
            let (offset, count) = (offset as usize, count as usize);
            let data = self.data.get(offset..).unwrap_or_default();
            // The first entry tells of the whole: its own data is the last.
            let is_region = at == 0 && REGIONS.contains(&tag);
            let length = length(data, kind, count).filter(|_| is_region || offset >= end);
            let length = length.filter(|length| (1..=data.len()).contains(length));
            let length = length.ok_or_else(|| odd(tag))?;
            if !is_region {
                end = offset + length;
            }
        }
        Ok(())
    }

    /// The package's name.
    pub fn name(&self) -> io::Result<&'b [u8]> {
        let (value, _) = self.value(NAME, Type::Text)?;
        Ok(texts(value).next().unwrap_or_default())
    }

    /// When it was installed, in seconds since 1970; 0 if that is not known.
    pub(crate) fn install_time(&self) -> io::Result<i64> {
        let (value, count) = self.value(INSTALLTIME, Type::Word)?;
        Ok(if count > 0 { i64::from(word(value, 0)) } else { 0 })
    }

    /// The files it lists, directories included.
    ///
    /// # Errors
    /// If the lists that together tell of files do not fit.
    pub fn files(&self) -> io::Result<impl Iterator<Item = HeaderFile<'b>> + use<'b>> {
        let (names, count) = self.value(BASENAMES, Type::Texts)?;
        Exceeded::check_count(count, budget::PACKAGE_FILES, "files of one package")?;
        let (dirs, dir_count) = self.value(DIRNAMES, Type::Texts)?;
        let (indexes, index_count) = self.value(DIRINDEXES, Type::Word)?;
        let (flags, flag_count) = self.value(FILEFLAGS, Type::Word)?;
        let (states, state_count) = self.value(FILESTATES, Type::Byte)?;
        // What is not said of any file is not there at all.
        let fits = |many: usize| many == count || many == 0;
        let counts_fit = index_count == count && fits(flag_count) && fits(state_count) && dir_count <= count;
        let dirs: Vec<&[u8]> = texts(dirs).take(if counts_fit { dir_count } else { 0 }).collect();
        let is_sound = counts_fit
            && dirs.len() == dir_count
            && texts(names).take(count).count() == count
            && (0..count).all(|at| (word(indexes, at) as usize) < dirs.len());
        if !is_sound {
            return Err(malformed("the file lists of a package contradict each other"));
        }
        Ok(texts(names).take(count).enumerate().map(move |(at, name)| HeaderFile {
            dir: dirs[word(indexes, at) as usize],
            name,
            flags: if flag_count > 0 { word(flags, at) } else { 0 },
            state: if state_count > 0 { states[at] } else { NORMAL },
        }))
    }

    /// The value of a tag and how many it is of; of none where the package has no such tag.
    ///
    /// Numbers are there as many as are said; texts are not counted yet.
    fn value(&self, tag: u32, kind: Type) -> io::Result<(&'b [u8], usize)> {
        // rpm takes what stands behind the package's own part of the header for newer.
        let Some(entry) = self.index.iter().rfind(|entry| word(*entry, 0) == tag) else {
            return Ok((&[], 0));
        };
        let [offset, count] = [2, 3].map(|at| word(entry, at) as usize);
        let data =
            self.data.get(offset..).filter(|_| word(entry, 1) == kind as u32).ok_or_else(|| odd(tag))?;
        let size = match kind {
            Type::Byte => count,
            Type::Word => count.saturating_mul(4),
            // The NUL bytes at their ends.
            Type::Text | Type::Texts => count,
        };
        if size > data.len() { Err(odd(tag)) } else { Ok((data, count)) }
    }
}

impl HeaderFile<'_> {
    /// Its path; `None` where there can be no such file.
    pub fn path(&self) -> Option<PathBuf> {
        absolute(&[self.dir, self.name].concat())
    }

    /// Whether it is the administrator's to change.
    pub(crate) fn is_configuration(&self) -> bool {
        self.flags & CONFIG != 0
    }

    /// Whether the package does not bring it: something makes it later on.
    pub fn is_ghost(&self) -> bool {
        self.flags & GHOST != 0
    }

    /// Whether the file that has this name is this package's.
    pub fn is_installed(&self) -> bool {
        self.state == NORMAL
    }
}

fn odd(tag: u32) -> io::Error {
    malformed(format!("tag {tag} of a header is invalid"))
}

/// How many bytes `count` values of a type take, which stand at the beginning of `data`; `None` if there is no such type.
fn length(data: &[u8], kind: u32, count: usize) -> Option<usize> {
    match kind {
        1 | 2 | 7 => Some(count),
        3 => count.checked_mul(2),
        4 => count.checked_mul(4),
        5 => count.checked_mul(8),
        6 | 8 | 9 if kind != 6 || count == 1 => {
            let mut texts = texts(data);
            (0..count).try_fold(0, |length, _| Some(length + texts.next()?.len() + 1))
        }
        _ => None,
    }
}

/// The number at a place of a list, which is there.
fn word(list: &[u8], at: usize) -> u32 {
    list.as_chunks().0.get(at).map_or(0, |&bytes| u32::from_be_bytes(bytes))
}

/// The texts at the beginning of `data`, each ended by a NUL byte.
fn texts(data: &[u8]) -> impl Iterator<Item = &[u8]> {
    data.split_inclusive(|&byte| byte == 0).map_while(|text| text.strip_suffix(&[0]))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;
    use crate::package::testing::rpm_header;

    fn sample() -> Vec<u8> {
        let files = [
            (&b"/usr/bin/a"[..], 0, 0),
            (b"/etc/a.conf", CONFIG | 1 << 4, 0),
            (b"/var/log/a", GHOST, 0),
            (b"/usr/lib/\xff\n", 0, 3),
            (b"/usr", 0, 0),
        ];
        rpm_header("a", 1_700_000_000, &files)
    }

    /// All that is to be known of a header.
    fn read(blob: &[u8]) -> io::Result<Vec<HeaderFile<'_>>> {
        let header = Header::parse(blob)?;
        header.name()?;
        header.install_time()?;
        Ok(header.files()?.collect())
    }

    #[test]
    fn files_have_paths_of_any_bytes_flags_and_states() {
        let blob = sample();
        let files = read(&blob).unwrap();
        let paths: Vec<PathBuf> = files.iter().filter_map(HeaderFile::path).collect();
        let bytes: [&[u8]; 5] = [b"/usr/bin/a", b"/etc/a.conf", b"/var/log/a", b"/usr/lib/\xff\n", b"/usr"];
        assert_eq!(paths, bytes.map(|path| Path::new(OsStr::from_bytes(path))));
        assert!(files.iter().map(|file| file.is_configuration()).eq([false, true, false, false, false]));
        assert!(files.iter().map(|file| file.is_ghost()).eq([false, false, true, false, false]));
        assert!(files.iter().map(|file| file.is_installed()).eq([true, true, true, false, true]));
        let header = Header::parse(&blob).unwrap();
        assert_eq!((header.name().unwrap(), header.install_time().unwrap()), (&b"a"[..], 1_700_000_000));
    }

    #[test]
    fn a_package_may_have_no_files() {
        assert!(read(&rpm_header("gpg-pubkey", 1, &[])).unwrap().is_empty());
    }

    #[test]
    fn what_rpm_added_later_counts() {
        let mut blob = sample();
        let entries = u32::from_be_bytes(blob[..4].try_into().unwrap());
        let (at, length) = (8 + 16 * entries as usize, blob.len());
        blob[..4].copy_from_slice(&(entries + 1).to_be_bytes());
        let data = (length - at) as u32;
        blob[4..8].copy_from_slice(&(data + 4).to_be_bytes());
        blob.splice(at..at, [INSTALLTIME, 4, data, 1].into_iter().flat_map(u32::to_be_bytes));
        blob.extend(7u32.to_be_bytes());
        assert_eq!(Header::parse(&blob).unwrap().install_time().unwrap(), 7);
    }

    #[test]
    fn lists_that_do_not_fit_are_an_error() {
        // The index's entries, in the order they are written: what is said to be their number.
        for entry in 2..7 {
            for count in [0_u32, 1, 4, 6, u32::MAX] {
                let mut blob = sample();
                blob[8 + 16 * entry + 12..][..4].copy_from_slice(&count.to_be_bytes());
                let may_lack = [2, 4].contains(&entry);
                assert_eq!(read(&blob).is_ok(), may_lack && count == 0, "{entry} {count}");
            }
        }
        let mut blob = sample();
        let indexes = 8 + 16 * 7 + 2 + 4 + 4 * 5;
        blob[indexes..indexes + 4].copy_from_slice(&9_u32.to_be_bytes());
        assert!(read(&blob).is_err(), "a directory that is not listed");
    }

    #[test]
    fn a_header_may_be_cut_off_anywhere() {
        let blob = sample();
        for length in 0..blob.len() {
            assert!(read(&blob[..length]).is_err(), "{length}");
        }
    }

    proptest! {
        #[test]
        fn any_header_is_read_without_panic(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..9),
        ) {
            let mut blob = sample();
            for (at, byte) in changes {
                let at = at.index(blob.len());
                blob[at] = byte;
            }
            let _ = read(&blob).map(|files| files.iter().filter_map(HeaderFile::path).count());
        }

        #[test]
        fn any_bytes_are_read_without_panic(data in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = read(&data);
        }
    }
}
