//! The filter: which calls the kernel stops, in classic BPF (`seccomp(2)`).
//!
//! It stops as little as it can. A call that reads, or that makes a new file, never changes one that is there.

use libc::sock_filter;
use rustix::ioctl::{Opcode, opcode};

use super::calls::{ABIS, Abi, Shape};

/// Offsets in `struct seccomp_data`; of an argument the lower half, which is all that flags have.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// What x32 programs add to the numbers of x86-64 (`__X32_SYSCALL_BIT`).
const X32: u32 = 0x4000_0000;

/// `__O_TMPFILE` of `asm-generic/fcntl.h`: `O_TMPFILE` without the bit of `O_DIRECTORY`.
const TMPFILE: u32 = 0o20_000_000;

/// `FS_IOC_SETFLAGS` of `linux/fs.h`.
pub(crate) const SET_FLAGS: Opcode = opcode::write::<u64>(b'f', 2);
/// `FS_IOC_SETFLAGS` of 32-bit programs.
pub(crate) const SET_FLAGS_32: Opcode = opcode::write::<u32>(b'f', 2);
/// `FS_IOC_FSSETXATTR` of `linux/fs.h`, with the 28 bytes of a `struct fsxattr`.
pub(crate) const FS_SET_XATTR: Opcode = opcode::write::<[u32; 7]>(b'X', 32);
/// Requests that change an inode.
const REQUESTS: [Opcode; 3] = [SET_FLAGS, SET_FLAGS_32, FS_SET_XATTR];

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const NOTIFY: u32 = libc::SECCOMP_RET_USER_NOTIF;
const NO_SUCH_CALL: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

/// Which calls are stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watched {
    /// Those that change a file or its names.
    FilesAndNames,
    /// Those that change a file: nothing keeps the kernel from changing names (the host's guard).
    Files,
}

/// The filter for every ABI of this machine.
pub fn program(watched: Watched) -> Vec<sock_filter> {
    let mut code = vec![load(ARCHITECTURE)];
    for abi in ABIS {
        code.extend(unless_equal(abi.audit, section(abi, watched)));
    }
    code.push(ret(ALLOW));
    code
}

fn section(abi: &Abi, watched: Watched) -> Vec<sock_filter> {
    let mut code = vec![load(NUMBER)];
    if cfg!(target_arch = "x86_64") {
        code.extend(unless_at_least(X32, vec![ret(NO_SUCH_CALL)]));
    }
    let is_watched = |(_, shape): &&(u32, Shape)| watched == Watched::FilesAndNames || !shape.is_of_names();
    code.extend(search(&abi.calls.iter().filter(is_watched).copied().collect::<Vec<_>>()));
    code
}

/// A binary search: most calls are none of ours, and should learn that soon.
fn search(calls: &[(u32, Shape)]) -> Vec<sock_filter> {
    if let [(number, shape)] = calls {
        let mut code = unless_equal(*number, verdict(*shape));
        code.push(ret(ALLOW));
        return code;
    }
    let (lower, upper) = calls.split_at(calls.len() / 2);
    let mut code = unless_at_least(upper[0].0, search(upper));
    code.extend(search(lower));
    code
}

fn verdict(shape: Shape) -> Vec<sock_filter> {
    match shape {
        Shape::Absent => vec![ret(NO_SUCH_CALL)],
        Shape::Ioctl => {
            let mut code = vec![load(argument(1))];
            for request in REQUESTS {
                code.extend(unless_equal(request, vec![ret(NOTIFY)]));
            }
            code.push(ret(ALLOW));
            code
        }
        Shape::Open { flags, .. } => opening(flags),
        _ => vec![ret(NOTIFY)],
    }
}

fn opening(flags: u8) -> Vec<sock_filter> {
    const NEW: u32 = (libc::O_CREAT | libc::O_EXCL) as u32;
    let load = load(argument(flags));
    let mut code = vec![load];
    code.extend(unless_any(libc::O_PATH as u32 | TMPFILE, vec![ret(ALLOW)]));
    // Made here or not opened at all.
    let mut new = vec![statement(libc::BPF_ALU | libc::BPF_AND, NEW)];
    new.extend(unless_equal(NEW, vec![ret(ALLOW)]));
    new.push(load);
    code.extend(new);
    code.extend(unless_any((libc::O_ACCMODE | libc::O_TRUNC) as u32, vec![ret(NOTIFY)]));
    code.push(ret(ALLOW));
    code
}

fn argument(index: u8) -> u32 {
    ARGUMENTS + 8 * u32::from(index) + if cfg!(target_endian = "big") { 4 } else { 0 }
}

fn statement(code: u32, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

fn load(offset: u32) -> sock_filter {
    statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset)
}

fn ret(action: u32) -> sock_filter {
    statement(libc::BPF_RET | libc::BPF_K, action)
}

fn unless_equal(value: u32, then: Vec<sock_filter>) -> Vec<sock_filter> {
    when(libc::BPF_JEQ, value, then)
}

fn unless_at_least(value: u32, then: Vec<sock_filter>) -> Vec<sock_filter> {
    when(libc::BPF_JGE, value, then)
}

fn unless_any(bits: u32, then: Vec<sock_filter>) -> Vec<sock_filter> {
    when(libc::BPF_JSET, bits, then)
}

/// Runs `then` if the comparison holds, else goes on behind it. A conditional jump reaches 255 instructions, an
/// unconditional one any.
fn when(comparison: u32, k: u32, then: Vec<sock_filter>) -> Vec<sock_filter> {
    let jump = sock_filter { code: (libc::BPF_JMP | comparison | libc::BPF_K) as u16, jt: 1, jf: 0, k };
    let mut code = vec![jump, statement(libc::BPF_JMP | libc::BPF_JA, then.len() as u32)];
    code.extend(then);
    code
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;
    use crate::sys::seccomp::calls::{I386, X86_64};

    /// What the kernel would do: the instructions that [`program`] uses, run.
    fn run(program: &[sock_filter], audit: u32, number: u32, arguments: &[u64]) -> u32 {
        let word = |offset: u32| match offset {
            NUMBER => number,
            ARCHITECTURE => audit,
            _ => arguments.get((offset - ARGUMENTS) as usize / 8).copied().unwrap_or(0) as u32,
        };
        let (mut at, mut a) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            at += 1;
            let code = u32::from(code);
            let class = code & 7;
            if class == libc::BPF_LD {
                a = word(k);
            } else if class == libc::BPF_ALU {
                a &= k;
            } else if class == libc::BPF_RET {
                return k;
            } else if code & 0xf0 == libc::BPF_JA {
                at += k as usize;
            } else {
                let holds = match code & 0xf0 {
                    libc::BPF_JEQ => a == k,
                    libc::BPF_JGE => a >= k,
                    _ => a & k != 0,
                };
                at += usize::from(if holds { jt } else { jf });
            }
        }
    }

    fn native(number: libc::c_long, arguments: &[u64]) -> u32 {
        run(&program(Watched::FilesAndNames), X86_64.audit, number as u32, arguments)
    }

    #[test]
    fn opening_stops_where_a_file_that_is_there_may_change() {
        let open = |flags: libc::c_int| native(libc::SYS_openat, &[0, 0, flags as u64]);
        for flags in
            [libc::O_WRONLY, libc::O_RDWR, libc::O_RDONLY | libc::O_TRUNC, libc::O_WRONLY | libc::O_CREAT]
        {
            assert_eq!(open(flags), NOTIFY, "{flags:o}");
        }
        let new = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL;
        for flags in [
            libc::O_RDONLY,
            libc::O_PATH,
            libc::O_RDWR | libc::O_TMPFILE,
            new,
            libc::O_RDONLY | libc::O_CREAT,
        ] {
            assert_eq!(open(flags), ALLOW, "{flags:o}");
        }
    }

    #[test]
    fn every_call_of_the_tables_and_no_other_is_stopped() {
        let program = program(Watched::FilesAndNames);
        for abi in [X86_64, I386] {
            for number in 0..600 {
                let known = abi.calls.iter().find(|(call, _)| *call == number).map(|(_, shape)| *shape);
                let expected = match known {
                    None => ALLOW,
                    Some(Shape::Absent) => NO_SUCH_CALL,
                    Some(Shape::Open { .. } | Shape::Ioctl) => continue,
                    Some(_) => NOTIFY,
                };
                assert_eq!(run(&program, abi.audit, number, &[]), expected, "{number}");
            }
        }
    }

    #[test]
    fn where_names_are_free_only_calls_that_change_a_file_are_stopped() {
        let (all, files) = (program(Watched::FilesAndNames), program(Watched::Files));
        let mut free = 0;
        for abi in [X86_64, I386] {
            for (number, shape) in abi.calls {
                let stopped = run(&files, abi.audit, *number, &[]);
                let expected = if shape.is_of_names() { ALLOW } else { run(&all, abi.audit, *number, &[]) };
                assert_eq!(stopped, expected, "{number}");
                free += usize::from(shape.is_of_names());
            }
        }
        assert_eq!(free, 16);
        let write = [0, 0, (libc::O_WRONLY | libc::O_TRUNC) as u64];
        assert_eq!(run(&files, X86_64.audit, libc::SYS_openat as u32, &write), NOTIFY);
        assert_eq!(run(&files, X86_64.audit, libc::SYS_renameat2 as u32, &[]), ALLOW);
    }

    #[test]
    fn only_requests_that_change_an_inode_are_stopped() {
        assert_eq!(native(libc::SYS_ioctl, &[3, 0x4008_6602]), NOTIFY);
        assert_eq!(native(libc::SYS_ioctl, &[3, 0x8008_6601]), ALLOW);
        assert_eq!(native(libc::SYS_ioctl, &[1, libc::TCGETS]), ALLOW);
    }

    #[test]
    fn programs_of_other_numbering_cannot_slip_through() {
        assert_eq!(native(libc::SYS_chmod | libc::c_long::from(X32 as i32), &[]), NO_SUCH_CALL);
    }
}
