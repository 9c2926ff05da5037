//! The registers of 64-bit Arm (`arch/arm64/kernel/signal.c`, `do_signal`).
//!
//! While a process is stopped on its way out of an interrupted system call, `pc` points to the instruction again and
//! `x0` has its first argument back. That the call was interrupted, and what a signal changes about it, the kernel
//! knows apart from these registers, and only until the process goes on; `NT_ARM_SYSTEM_CALL` says -1 already.

/// All that system calls use and change.
pub use libc::user_regs_struct as Registers;

/// `EM_AARCH64` of `linux/elf-em.h`.
pub(crate) const MACHINE: u16 = 183;
/// `svc #0`.
pub(crate) const INSTRUCTION: [u8; 4] = 0xd400_0001_u32.to_le_bytes();

/// The register with the number of a system call.
const NUMBER: usize = 8;

/// Number of the system call that was interrupted and would be begun again, and where its instruction is.
pub fn interrupted(registers: &Registers) -> Option<(libc::c_long, u64)> {
    Some((registers.regs[NUMBER].cast_signed(), registers.pc))
}

/// Where the stack ends.
pub(crate) fn stack(registers: &Registers) -> u64 {
    registers.sp
}

/// About to make a system call of ours by the instruction `at`.
pub fn calling(saved: &Registers, at: u64, number: libc::c_long, arguments: [u64; 3]) -> Registers {
    let mut registers = Registers { pc: at, ..*saved };
    registers.regs[..3].copy_from_slice(&arguments);
    registers.regs[NUMBER] = number.cast_unsigned();
    registers
}

/// About to make the interrupted system call again.
pub fn again(saved: &Registers, at: u64) -> Registers {
    Registers { pc: at, ..*saved }
}

/// What a system call returned; `None` if it was itself interrupted.
pub fn result(registers: &Registers, at: u64) -> Option<i64> {
    (registers.pc != at).then_some(registers.regs[0].cast_signed())
}
