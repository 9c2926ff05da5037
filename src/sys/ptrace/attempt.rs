//! One attempt to install a filter in a process that waits.

use std::io::{self, ErrorKind, Read};
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::thread::CapabilitySet;

use super::arch;
use super::calls::Caller;
use super::channel::{Channel, Image};
use super::refusal::{ended, if_ended, not_waiting, refusal, unprivileged};
use super::target::Target;
use crate::sys::process::{Processes, Status};

/// The system calls that wait for a child.
pub(super) const WAITS: [libc::c_long; 2] = [libc::SYS_wait4, libc::SYS_waitid];
/// Bytes below the stack that functions may use without moving its end (the ABI of x86-64; none on Arm).
const RED_ZONE: u64 = 128;

/// Installs the filter in a process that waits at this moment.
pub(super) fn attempt(
    processes: &Processes,
    pidfd: BorrowedFd<'_>,
    pid: i32,
    program: &[libc::sock_filter],
    flags: libc::c_ulong,
) -> io::Result<OwnedFd> {
    untraced(&fit(processes, pid)?, pid)?;
    let waits = |number| WAITS.contains(&number);
    if !processes.system_call(pid)?.is_some_and(|call| waits(call.number)) {
        return Err(not_waiting(pid));
    }
    let mut target = Target::seize(pid, pidfd)?;
    target.halt()?;
    // Nobody else can have this number while this process is there.
    if target.has_ended() {
        return Err(ended());
    }
    fit(processes, pid)?;
    let saved = target.registers()?;
    let Some((_, at)) = arch::interrupted(&saved).filter(|&(number, _)| waits(number)) else {
        return Err(not_waiting(pid));
    };
    if target.read(at, arch::INSTRUCTION.len())? != arch::INSTRUCTION {
        return Err(not_waiting(pid));
    }

    let channel = Channel::open()?;
    let len = Image::new(0, program, channel.address())?.bytes.len() as u64;
    let room = arch::stack(&saved).saturating_sub(RED_ZONE + len) & !15;
    let image = Image::new(room, program, channel.address())?;
    let kept = target.read(room, image.bytes.len())?;
    target.write(room, &image.bytes)?;

    target.change()?;
    let listener =
        Caller { target: &mut target, saved: &saved, at }.send_listener(&image, &channel, flags)?;
    // Nobody needs what is below the stack; only a debugger would see any.
    let _ = target.write(room, &kept);
    target.run(&arch::again(&saved, at))?;
    target.restore()?;
    listener
}

/// Whether the process is one whose registers and memory we understand, and which may install a filter.
pub(super) fn fit(processes: &Processes, pid: i32) -> io::Result<Status> {
    let status = processes.status(pid).map_err(if_ended)?;
    if status.threads != 1 {
        return Err(refusal(ErrorKind::Unsupported, format!("process {pid} has {} threads", status.threads)));
    }
    let mut head = [0; 20];
    std::fs::File::from(processes.program(pid).map_err(if_ended)?).read_exact(&mut head)?;
    if !is_native(&head) {
        return Err(refusal(
            ErrorKind::Unsupported,
            format!("process {pid} runs a program for another machine"),
        ));
    }
    if !status.capabilities.contains(CapabilitySet::SYS_ADMIN) && !status.no_new_privileges {
        return Err(unprivileged());
    }
    Ok(status)
}

pub(super) fn untraced(status: &Status, pid: i32) -> io::Result<()> {
    match status.tracer {
        0 => Ok(()),
        tracer => Err(refusal(ErrorKind::ResourceBusy, format!("process {pid} is traced by {tracer}"))),
    }
}

/// Whether this is the beginning of a program for the same machine and ABI as ours (`elf(5)`).
fn is_native(head: &[u8; 20]) -> bool {
    let machine = u16::from_ne_bytes([head[18], head[19]]);
    head.starts_with(b"\x7fELF") && head[4] == libc::ELFCLASS64 && machine == arch::MACHINE
}
