//! The running kernel: what it is, which security modules are active, and the types of its functions.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use crate::sys::budget;
use crate::sys::path::root::{Root, read_at};

/// Where the kernel shows the types of its functions and structures.
const TYPES: &str = "/sys/kernel/btf/vmlinux";
/// What the function is called that a program for a hook is attached to.
const HOOK_PREFIX: &[u8] = b"bpf_lsm_";
/// `BTF_MAGIC` of `linux/btf.h`.
const MAGIC: u16 = 0xeb9f;
/// `BTF_KIND_FUNC` and `BTF_KIND_FUNC_PROTO`.
const FUNCTION: u32 = 12;
const SIGNATURE: u32 = 13;

/// The kernel's release, as `uname -r` prints it.
pub fn release() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    text.trim_end().to_owned()
}

/// Why programs of hooks can be passed by on this kernel; none if they cannot.
///
/// Before Linux 6.2 (commit 271de525e1d7, also in 6.1.54) the kernel leaves out a program that another task was
/// interrupted in on the same processor. That takes a kernel that interrupts tasks in the kernel.
pub fn leaves_out_programs() -> Option<&'static str> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    may_leave_out(&read("/proc/version"), &read("/proc/cmdline"))
}

fn may_leave_out(version: &str, command_line: &str) -> Option<&'static str> {
    let release = version.split_whitespace().nth(2).unwrap_or_default();
    let mut numbers = release.split(['.', '-', '+']).map(|number| number.parse::<u32>().unwrap_or(0));
    if (numbers.next()?, numbers.next()?) >= (6, 2) {
        return None;
    }
    let built_so = version.contains("PREEMPT_RT") || version.contains(" PREEMPT ");
    if built_so || command_line.split_whitespace().any(|word| word == "preempt=full") {
        Some("is older than 6.2 and fully preemptible, and such a kernel may leave out programs")
    } else {
        None
    }
}

/// Whether sysctl `kernel.ftrace_enabled` has stopped all programs of hooks.
pub fn has_stopped_programs() -> bool {
    std::fs::read_to_string("/proc/sys/kernel/ftrace_enabled").is_ok_and(|text| text.trim_end() == "0")
}

/// The active security modules, in their order, as the kernel's parameter `lsm=` names them.
///
/// # Errors
/// If the kernel has no securityfs, or this process may neither read nor mount it.
pub fn security_modules() -> io::Result<Vec<String>> {
    let text = security_file("lsm")?;
    // Always there, and no word of the parameter.
    let names = text.split(',').map(str::trim).filter(|name| *name != "capability");
    Ok(names.map(str::to_owned).collect())
}

/// The lockdown that is in force: `none`, `integrity` or `confidentiality`; nothing if the kernel knows none.
pub fn lockdown() -> Option<String> {
    let text = security_file("lockdown").ok()?;
    let (_, rest) = text.split_once('[')?;
    Some(rest.split_once(']')?.0.to_owned())
}

/// A file of securityfs, mounted or not.
fn security_file(name: &str) -> io::Result<String> {
    let text = match Root::open(Path::new("/sys/kernel/security"))?.read(Path::new(name), budget::SMALL) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            read_at(securityfs()?, OsStr::new(name), budget::SMALL)?
        }
        Err(e) => return Err(e),
    };
    String::from_utf8(text).map_err(io::Error::other)
}

/// Securityfs, mounted nowhere: it goes with its descriptor.
fn securityfs() -> io::Result<OwnedFd> {
    let context = fsopen("securityfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
}

/// How many parameters each hook of the kernel has to which BPF programs can be attached, by the hook's name.
///
/// # Errors
/// If the kernel does not show its types (`CONFIG_DEBUG_INFO_BTF`).
pub fn hooks() -> io::Result<HashMap<String, u32>> {
    let data = Root::open(Path::new("/"))?.read(Path::new(TYPES), budget::OWN)?;
    parse(&data)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "types of a kind that is not known"))
}

/// Reads the format of `linux/btf.h`, in the byte order of this machine; `None` if it is not that.
pub(crate) fn parse(data: &[u8]) -> Option<HashMap<String, u32>> {
    let word = |data: &[u8], at: usize| Some(u32::from_ne_bytes(*data.get(at..)?.first_chunk()?));
    if u16::from_ne_bytes(*data.first_chunk()?) != MAGIC {
        return None;
    }
    let field = |at: usize| word(data, at).map(|field| field as usize);
    let body = data.get(field(4)?..)?;
    let types = body.get(field(8)?..)?.get(..field(12)?)?;
    let names = body.get(field(16)?..)?.get(..field(20)?)?;
    // Numbers of types begin with 1.
    let (mut parameters, mut functions) = (vec![None], Vec::new());
    let mut at = 0;
    while at < types.len() {
        let (name, info, target) = (word(types, at)?, word(types, at + 4)?, word(types, at + 8)?);
        let (kind, members) = (info >> 24 & 0x1f, info & 0xffff);
        parameters.push((kind == SIGNATURE).then_some(members));
        if kind == FUNCTION && names.get(name as usize..)?.starts_with(HOOK_PREFIX) {
            let name = names[name as usize + HOOK_PREFIX.len()..].split(|&byte| byte == 0).next()?;
            functions.push((String::from_utf8(name.to_vec()).ok()?, target));
        }
        at += 12 + size_of_rest(kind, members as usize)?;
    }
    let counted =
        functions.into_iter().map(|(name, target)| Some((name, (*parameters.get(target as usize)?)?)));
    counted.collect()
}

/// Bytes that follow the three words of every type.
fn size_of_rest(kind: u32, members: usize) -> Option<usize> {
    Some(match kind {
        // Integers, variables, tags of declarations.
        1 | 14 | 17 => 4,
        // Arrays.
        3 => 12,
        // Structures, unions, sections, enumerations of 64 bits.
        4 | 5 | 15 | 19 => members * 12,
        // Enumerations, signatures.
        6 | SIGNATURE => members * 8,
        2 | 7..=FUNCTION | 16 | 18 => 0,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An integer, a signature of two parameters, a function of a hook, and one of none.
    fn example() -> Vec<u8> {
        let names = b"\0bpf_lsm_file_open\0other\0";
        let types: Vec<u32> = [
            &[0, 1 << 24, 4, 32][..],
            &[0, SIGNATURE << 24 | 2, 1, 0, 1, 0, 1],
            &[1, FUNCTION << 24, 2],
            &[19, FUNCTION << 24, 2],
        ]
        .concat();
        let types: Vec<u8> = types.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let sizes = [24, 0, types.len(), types.len(), names.len()];
        let header = MAGIC.to_ne_bytes().into_iter().chain([1, 0]);
        let header = header.chain(sizes.iter().flat_map(|size| (*size as u32).to_ne_bytes()));
        header.chain(types).chain(names.iter().copied()).collect()
    }

    #[test]
    fn parameters_of_hooks_are_counted() {
        assert_eq!(parse(&example()), Some(HashMap::from([("file_open".to_owned(), 2)])));
    }

    #[test]
    fn old_kernels_that_interrupt_themselves_leave_out_programs() {
        let debian =
            "Linux version 6.1.0-50-amd64 (a@b) (gcc, ld) #1 SMP PREEMPT_DYNAMIC Debian 6.1.176-1 (date)";
        assert_eq!(may_leave_out(debian, "quiet"), None);
        assert!(may_leave_out(debian, "quiet preempt=full").is_some());
        assert_eq!(may_leave_out(&debian.replace("6.1.0-50", "6.12.1"), "preempt=full"), None);
        assert!(may_leave_out(&debian.replace("PREEMPT_DYNAMIC", "PREEMPT_RT"), "").is_some());
        assert!(may_leave_out(&debian.replace("PREEMPT_DYNAMIC", "PREEMPT"), "").is_some());
    }

    #[test]
    fn damaged_types_are_refused() {
        let whole = example();
        for length in 0..whole.len() - 1 {
            assert_eq!(parse(&whole[..length]), None, "{length}");
        }
    }

    #[test]
    fn the_running_kernel_has_the_hooks() {
        if let Ok(hooks) = hooks() {
            assert_eq!(hooks.get("file_open"), Some(&1));
        }
    }
}
