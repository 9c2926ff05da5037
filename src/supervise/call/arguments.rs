//! What the arguments of a call say.

use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;

use rustix::fs::ResolveFlags;

use super::lookup::OwnedName;
use super::waiting::WaitingCall;
use crate::sys::file::inode::Time;
use crate::sys::seccomp::calls::{Follow, Shape, shape};

/// The largest value of an attribute (`XATTR_SIZE_MAX`, `linux/limits.h`).
pub(super) const LARGEST_ATTRIBUTE: usize = 1 << 16;

/// `AUDIT_ARCH_I386` of `linux/audit.h`.
const I386_AUDIT: u32 = 0x4000_0003;
/// Number of `utimensat_time64` for 32-bit programs.
const UTIMENSAT_TIME64: u32 = 412;

/// Size of `struct open_how` (`openat2(2)`), and what the kernel takes at most.
const KNOWN: usize = 24;
const PAGE: usize = 4096;

/// Number of `setxattrat`, the same on all architectures.
const SETXATTRAT: u32 = 463;

/// Number of `truncate64` for 32-bit programs.
const TRUNCATE64: u32 = 193;

/// Numbers of `lchown`, `fchown` and `chown` with ids of 16 bits for 32-bit programs.
const CHOWN16: [u32; 3] = [16, 95, 182];

/// What a call that sets times is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Times {
    /// Both become the time of the call.
    Now,
    /// Time of access and time of change, if the arguments of this call are read.
    Given([Moment; 2]),
    /// Nothing: they stay, or the kernel will refuse them.
    Kept,
}

/// What becomes of one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// It stays.
    Kept,
    /// It is set to this.
    At(Time),
    /// It is set to a time that is not known here.
    Unknown,
}

impl WaitingCall<'_> {
    pub(super) fn number(&self, index: u8) -> i32 {
        self.call.arguments[usize::from(index)] as i32
    }

    /// The directory's descriptor and the path that begin at argument `first`.
    pub(super) fn path(&self, at: bool, first: u8) -> io::Result<(i32, Vec<u8>)> {
        let dir = if at { self.number(first) } else { libc::AT_FDCWD };
        let path = self.task.string(self.call.arguments[usize::from(first) + usize::from(at)])?;
        Ok((dir, path))
    }

    pub(super) fn entry(&self, at: bool, first: u8) -> io::Result<Option<OwnedName>> {
        let (dir, path) = self.path(at, first)?;
        self.lookup.entry(dir, &path)
    }

    /// What directory and path of a `*at` call lead to; with the descriptor, if `AT_EMPTY_PATH` makes that the file.
    pub(super) fn subject(&self, flags: i32, follow: bool) -> io::Result<(OwnedFd, Option<i32>)> {
        let (dir, path) = self.path(true, 0)?;
        if path.is_empty() && flags & libc::AT_EMPTY_PATH != 0 {
            return Ok((self.task.descriptor(dir)?, Some(dir)));
        }
        Ok((self.file(dir, &path, follow, ResolveFlags::empty())?, None))
    }

    /// What a descriptor is open on; `None` for a place only (`O_PATH`), which calls on descriptors refuse.
    pub(super) fn open_descriptor(&self, number: i32) -> io::Result<Option<OwnedFd>> {
        if self.task.open_file(number)?.flags & libc::O_PATH as u32 != 0 {
            return Ok(None);
        }
        self.task.descriptor(number).map(Some)
    }

    /// Flags and restrictions of `openat2(2)`; `None` for what the kernel will refuse, as far as we know.
    pub(super) fn how(&self) -> io::Result<Option<(u64, ResolveFlags)>> {
        // A longer structure is a newer one: known, if all that we do not know of it is zero.
        let (mut how, size) = ([0; PAGE], self.call.arguments[3] as usize);
        if !(KNOWN..=PAGE).contains(&size)
            || self.task.memory(self.call.arguments[2], &mut how[..size])? < size
        {
            return Ok(None);
        }
        Ok(parse_how(&how[..size]))
    }

    /// What a call that sets times is to do.
    pub(super) fn times(&self, argument: u8) -> io::Result<Times> {
        let is_utimensat = matches!(
            shape(self.call.audit, self.call.number),
            Some(Shape::Change { follow: Follow::Flags(_), .. })
        );
        let address = self.call.arguments[usize::from(argument)];
        if address == 0 {
            return Ok(Times::Now);
        }
        if !is_utimensat {
            return Ok(Times::Given([Moment::Unknown; 2]));
        }
        // Two pairs of seconds and nanoseconds, of 32 bits each in the older of the calls of 32-bit x86.
        let size = if self.call.audit == I386_AUDIT && self.call.number != UTIMENSAT_TIME64 { 8 } else { 16 };
        let mut times = vec![0; 2 * size];
        self.task.memory(address, &mut times)?;
        Ok(parse_times(&times))
    }

    /// Whether `truncate(2)` is to give a file less than nothing.
    pub(super) fn is_length_negative(&self) -> bool {
        let [_, length, upper_half, ..] = self.call.arguments;
        match (self.call.audit, self.call.number) {
            (I386_AUDIT, TRUNCATE64) => (upper_half as i32) < 0,
            (I386_AUDIT, _) => (length as i32) < 0,
            _ => (length as i64) < 0,
        }
    }

    /// The owner and the group that `chown(2)` and its like are to set, in the caller's numbering.
    pub(super) fn new_owner(&self, first: u8) -> [Option<u32>; 2] {
        let is_narrow = self.call.audit == I386_AUDIT && CHOWN16.contains(&self.call.number);
        [first, first + 1].map(|at| {
            let id = self.call.arguments[usize::from(at)];
            let (id, none) =
                if is_narrow { (u32::from(id as u16), u32::from(u16::MAX)) } else { (id as u32, u32::MAX) };
            (id != none).then_some(id)
        })
    }

    /// The value, and the flags, that `setxattr(2)` and its like are to give the attribute whose name is this argument.
    /// `None` for what the kernel refuses before it looks at the file.
    pub(super) fn new_attribute(&self, name: u8) -> io::Result<Option<(Vec<u8>, i32)>> {
        let after = |count: usize| self.call.arguments[usize::from(name) + count];
        let (address, size, flags) = if self.call.number == SETXATTRAT {
            // `struct xattr_args`: the value's address, its size, flags.
            let mut bytes = [0; 16];
            if self.task.memory(after(1), &mut bytes)? < bytes.len() {
                return Ok(None);
            }
            let word =
                |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
            let address = bytes.first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes));
            (address, u64::from(word(8)), word(12) as i32)
        } else {
            (after(1), after(2), after(3) as i32)
        };
        let Some(size) = usize::try_from(size).ok().filter(|size| *size <= LARGEST_ATTRIBUTE) else {
            return Ok(None);
        };
        let mut value = vec![0; size];
        let complete = size == 0 || self.task.memory(address, &mut value)? == size;
        let known = flags & !(libc::XATTR_CREATE | libc::XATTR_REPLACE) == 0;
        Ok((complete && known).then_some((value, flags)))
    }
}

/// A `struct open_how` of at least the size that is known; see [`WaitingCall::how`].
pub(crate) fn parse_how(how: &[u8]) -> Option<(u64, ResolveFlags)> {
    let (words, newer) = how.split_at_checked(KNOWN)?;
    let [flags, mode, resolve] = *words.as_chunks().0 else { return None };
    let [flags, mode, resolve] = [flags, mode, resolve].map(u64::from_ne_bytes);
    let makes = flags & (libc::O_CREAT | libc::O_TMPFILE) as u64 != 0;
    let valid = flags <= u64::from(u32::MAX) && (mode == 0 || makes && mode <= 0o7777);
    ResolveFlags::from_bits(resolve)
        .filter(|_| valid && newer.iter().all(|&byte| byte == 0))
        .map(|resolve| (flags, resolve))
}

/// Two pairs of seconds and nanoseconds, one after the other; each half of the whole.
pub(crate) fn parse_times(pairs: &[u8]) -> Times {
    const NOW: u32 = libc::UTIME_NOW as u32;
    const OMIT: u32 = libc::UTIME_OMIT as u32;
    const VALID: Range<u32> = 0..1_000_000_000;
    let size = pairs.len() / 2;
    let nanoseconds =
        |at: usize| pairs[at..].first_chunk().map_or(u32::MAX, |&bytes| u32::from_ne_bytes(bytes));
    let seconds = |at: usize| match pairs[at..at + size / 2] {
        [a, b, c, d] => i32::from_ne_bytes([a, b, c, d]).into(),
        [a, b, c, d, e, f, g, h] => i64::from_ne_bytes([a, b, c, d, e, f, g, h]),
        _ => 0,
    };
    let moment = |at: usize| match nanoseconds(at + size / 2) {
        OMIT => Moment::Kept,
        nanos if VALID.contains(&nanos) => Moment::At(Time { secs: seconds(at), nanos }),
        _ => Moment::Unknown,
    };
    match [nanoseconds(size / 2), nanoseconds(size + size / 2)] {
        [NOW, NOW] => Times::Now,
        [OMIT, OMIT] => Times::Kept,
        pair if pair.iter().all(|time| VALID.contains(time) || [NOW, OMIT].contains(time)) => {
            Times::Given([0, size].map(moment))
        }
        _ => Times::Kept,
    }
}
