//! The registers of x86-64 (`arch/x86/kernel/signal.c`, `arch_do_signal_or_restart`).
//!
//! While a process is stopped on its way out of an interrupted system call, `rax` has `-ERESTARTSYS`, `orig_rax` the
//! number of the call, and `rip` points behind the instruction; what is done about it is decided from these registers
//! when the process goes on.

/// All that system calls use and change.
pub use libc::user_regs_struct as Registers;

/// `EM_X86_64` of `linux/elf-em.h`.
pub(crate) const MACHINE: u16 = 62;
/// `syscall`.
pub(crate) const INSTRUCTION: [u8; 2] = [0x0f, 0x05];

/// `__USER_CS` of `arch/x86/include/asm/segment.h`: 64-bit code.
const USER_CS: u64 = 0x33;
/// `ERESTARTSYS` of `linux/errno.h`, the kernel's own one.
const ERESTARTSYS: i64 = 512;
/// `orig_rax` outside of system calls: there is nothing to restart.
const NO_CALL: u64 = u64::MAX;

/// Number of the system call that was interrupted and would be begun again, and where its instruction is.
pub fn interrupted(registers: &Registers) -> Option<(libc::c_long, u64)> {
    let restarts = registers.cs == USER_CS && registers.rax.cast_signed() == -ERESTARTSYS;
    restarts.then(|| (registers.orig_rax.cast_signed(), registers.rip.wrapping_sub(2)))
}

/// Where the stack ends.
pub(crate) fn stack(registers: &Registers) -> u64 {
    registers.rsp
}

/// About to make a system call of ours by the instruction `at`.
pub fn calling(saved: &Registers, at: u64, number: libc::c_long, arguments: [u64; 3]) -> Registers {
    let [rdi, rsi, rdx] = arguments;
    Registers { rip: at, rax: number.cast_unsigned(), orig_rax: NO_CALL, rdi, rsi, rdx, ..*saved }
}

/// About to make the interrupted system call again.
pub fn again(saved: &Registers, at: u64) -> Registers {
    Registers { rip: at, rax: saved.orig_rax, orig_rax: NO_CALL, ..*saved }
}

/// What a system call returned; `None` if it was itself interrupted.
pub fn result(registers: &Registers, _at: u64) -> Option<i64> {
    // ERESTARTSYS to ERESTART_RESTARTBLOCK of linux/errno.h.
    let result = registers.rax.cast_signed();
    (!(-516..=-512).contains(&result)).then_some(result)
}
