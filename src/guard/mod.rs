//! The guard: BPF programs in the host's kernel that refuse every change of a marked inode
//! (`sys::share::mark`) and no change of its names.
//!
//! From the outside in; each knows only those below it:
//!
//! - [`loader`]: loads and unloads all programs, and tries whether they can be.
//! - [`programs`]: which of them fit the running kernel.
//! - [`pins`]: what keeps them in the kernel when no process of ours runs.
//! - [`kernel`], [`registered`]: the running kernel; the pools whose filesystems are guarded.

pub mod kernel;
pub mod loader;
pub mod pins;
pub mod programs;
pub mod registered;

use std::fmt;
use std::io;
use std::path::PathBuf;

use aya::programs::ProgramError;
use aya::programs::links::LinkError;

use crate::report::{Reason, Shown};

/// Why the guard is not loaded, or not unloaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel calls no BPF programs before it changes files.
    #[error("BPF is none of the kernel's active security modules ({})", active.join(","))]
    NotActive {
        /// Those that are.
        active: Vec<String>,
    },
    /// The kernel would not ask every time.
    #[error("the kernel {}", .0)]
    LeavesOut(&'static str),
    /// The kernel asks nobody.
    #[error("sysctl kernel.ftrace_enabled is 0, so the kernel calls no BPF programs before it changes files")]
    Stopped,
    /// The kernel does not describe its structures.
    #[error("the kernel does not show its types (/sys/kernel/btf/vmlinux): {}", Reason(.0))]
    NoTypes(#[source] io::Error),
    /// What describes them is of a form that is not known.
    #[error("the kernel's types cannot be read: {0}")]
    Types(#[source] aya::BtfError),
    /// The kernel lacks a question.
    #[error("the kernel has no hook {hook} for BPF programs")]
    NoHook {
        /// Its name.
        hook: &'static str,
    },
    /// The kernel asks otherwise than any that is known.
    #[error("the kernel's hook {hook} has {parameters} parameters, which this version does not know")]
    UnknownHook {
        /// Its name.
        hook: &'static str,
        /// How many it has.
        parameters: u32,
    },
    /// The programs do not fit the kernel.
    #[error("the programs do not fit this kernel: {}", first_line(.0))]
    Object(#[source] Box<aya::EbpfError>),
    /// The kernel takes a program not in.
    #[error("the kernel refuses the program {program}: {}", Refusal::of(source))]
    Refused {
        /// Its name.
        program: &'static str,
        /// What the kernel says.
        source: Box<ProgramError>,
    },
    /// A program cannot be kept.
    #[error("the program's link cannot be kept: {0}")]
    Link(#[source] Box<LinkError>),
    /// A program gets no name.
    #[error("{}: {source}", Shown(path))]
    Pin {
        /// The name.
        path: PathBuf,
        /// What the kernel says.
        source: aya::pin::PinError,
    },
    /// The list of filesystems is full.
    #[error("{filesystems} filesystems have pools, but at most {most} can be guarded")]
    TooMany {
        /// How many there are.
        filesystems: usize,
        /// How many can be guarded.
        most: usize,
    },
    /// The BPF filesystem.
    #[error("/sys/fs/bpf: {}", Reason(.0))]
    Pins(#[source] io::Error),
}

impl Error {
    /// What a person can do about it, if that is more than the message says.
    pub fn remedy(&self) -> Option<String> {
        let is = |e: &io::Error, number| e.raw_os_error() == Some(number);
        Some(match self {
            Error::NotActive { active } => format!(
                "boot with the parameter `lsm={},bpf`; a kernel without CONFIG_BPF_LSM cannot run the guard: use \
                 `cow-unify --protection immutable` there",
                active.join(",")
            ),
            Error::LeavesOut(_) => "boot Linux 6.2 or newer, or without the parameter `preempt=full`".to_owned(),
            Error::Stopped => "run `sysctl kernel.ftrace_enabled=1`, then `cow-guard load`".to_owned(),
            Error::NoTypes(_) | Error::Types(_) => {
                "mount /sys, or boot a kernel with CONFIG_DEBUG_INFO_BTF, as distributions build it".to_owned()
            }
            Error::NoHook { .. } => "boot Linux 6.1 or newer with CONFIG_BPF_LSM".to_owned(),
            Error::UnknownHook { .. } | Error::Object(_) => {
                "install a newer cow-guard; until then use `cow-unify --protection immutable`".to_owned()
            }
            Error::Refused { source, .. } if Refusal::of(source).number() == Some(libc::EPERM) => {
                "run it as root of the host, outside of containers, with CAP_SYS_ADMIN; if it is, this kernel or the \
                 machine's hypervisor forbids such programs: use `cow-unify --protection immutable`"
                    .to_owned()
            }
            Error::Pins(e) if is(e, libc::EPERM) || is(e, libc::EACCES) => {
                "run it as root of the host, outside of containers".to_owned()
            }
            Error::Pins(e) if is(e, libc::ENODEV) => {
                "boot a kernel with CONFIG_BPF_SYSCALL, as distributions build it".to_owned()
            }
            Error::Pins(e) if e.kind() == io::ErrorKind::TimedOut => {
                "wait until the other cow-guard has ended".to_owned()
            }
            Error::Pins(e) if e.kind() == io::ErrorKind::NotFound => "mount /sys".to_owned(),
            _ => return None,
        })
    }
}

/// Without the kernel's report, which follows; with what is behind it.
fn first_line(error: &aya::EbpfError) -> String {
    let mut lines = Vec::new();
    let mut next: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        log::debug!("{text}");
        lines.extend(text.lines().next().map(str::to_owned));
        next = error.source();
    }
    lines.dedup();
    lines.join(": ")
}

/// What the kernel says about a program, in one line.
pub struct Refusal<'a>(&'a ProgramError);

impl<'a> Refusal<'a> {
    /// What is behind this error.
    pub fn of(error: &'a ProgramError) -> Refusal<'a> {
        Refusal(error)
    }

    fn number(&self) -> Option<i32> {
        match self.0 {
            ProgramError::LoadError { io_error, .. } => io_error.raw_os_error(),
            ProgramError::SyscallError(e) => e.io_error.raw_os_error(),
            _ => None,
        }
    }
}

impl fmt::Display for Refusal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ProgramError::LoadError { io_error, verifier_log } => {
                log::debug!("what the kernel's verifier says: {verifier_log}");
                write!(f, "{}", Reason(io_error))
            }
            ProgramError::SyscallError(e) => write!(f, "{}: {}", e.call, Reason(&e.io_error)),
            other => write!(f, "{other}"),
        }
    }
}
