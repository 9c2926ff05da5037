//! How supervision begins.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

use super::guardian::Guardian;
use super::options::Options;
use crate::report::Reason;
use crate::sys::seccomp::filter;
use crate::sys::seccomp::message::Message;
use crate::sys::seccomp::program::Watched;
use crate::sys::seccomp::{self, program};
use crate::sys::{process, ptrace};

/// Who supervises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Supervised {
    /// A supervisor that has just begun.
    Now,
    /// One that was there before.
    Already,
}

/// Why there is no supervision.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another program listens to the calls of the process, or traces it: a container's manager, a debugger.
    #[error("another program already intercepts its system calls")]
    ForeignListener,
    /// A filter of the container's or the service's forbids this system call.
    #[error("a system call filter forbids {0}")]
    Forbidden(&'static str),
    /// The kernel or the container lets us have no filter.
    #[error("no system call filter can be installed: {}", Reason(.0))]
    Filter(#[source] io::Error),
    /// No process could be started.
    #[error("the supervisor could not be started: {}", Reason(.0))]
    Supervisor(#[source] io::Error),
    /// The filter is there, and the supervisor is not: calls that it is to answer fail.
    #[error("the supervisor ended before it was ready: {}", Reason(.0))]
    Lost(#[source] io::Error),
    /// There is one already that works in another root, and no process has two.
    #[error("it already has a supervisor, which was started in another root")]
    Elsewhere,
    /// There is no table of system calls for this processor.
    #[error("supervision is not available on this processor")]
    Processor,
}

impl Error {
    /// What a person can do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Error::ForeignListener => {
                "switch off that program's system call interception, or prepare the files with `cow-prepare \
                 PATH...`"
            }
            Error::Forbidden(_) => {
                "allow it in the filter of the container or the service, or prepare the files with \
                 `cow-prepare PATH...`"
            }
            Error::Filter(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                "run it as root, with CAP_SYS_ADMIN in the container"
            }
            Error::Filter(_) => {
                "use Linux 5.9 or later with CONFIG_SECCOMP_FILTER, or prepare the files with `cow-prepare \
                 PATH...`"
            }
            Error::Supervisor(_) | Error::Lost(_) => {
                "free some memory or end some processes, then run the \
                command again"
            }
            Error::Elsewhere => "start cow-run in this root, or run the command without cow-run",
            Error::Processor => "prepare the files with `cow-prepare PATH...`",
        }
    }
}

/// Whether the calling process has a supervisor of ours, and that lives.
pub fn is_supervised() -> bool {
    Message::Ping.send()
}

/// Whether the calling process has a supervisor of ours that began in the same root, so that what it keeps can be settled
/// there.
///
/// # Errors
/// If there is one that began in another root.
pub fn inherited() -> Result<bool, Error> {
    if !is_supervised() {
        return Ok(false);
    }
    if Message::IsSameRoot.send() { Ok(true) } else { Err(Error::Elsewhere) }
}

/// Has the supervisor of the calling process let its calls pass from now on: the process changes unified files itself,
/// which must not be done a second time. The supervisor first writes down which names are one file.
pub fn pause() {
    Message::Exempt.send();
}

/// Has the supervisor of the calling process look at its calls again, which passed while it changed unified files itself.
pub fn resume() {
    Message::Supervise.send();
}

/// Supervises the calling thread and all it starts, from now on and for good.
///
/// The process must have no other thread: it forks, and the child goes on in Rust.
///
/// # Errors
/// With [`Error::Lost`] the thread is behind a filter that nobody listens to; it should end.
pub fn this_thread(options: Options) -> Result<Supervised, Error> {
    if is_supervised() {
        return Ok(Supervised::Already);
    }
    available()?;
    let watched = if options.guarded { Watched::Files } else { Watched::FilesAndNames };
    Waiting::fork(options)?.listen(|| install(watched))
}

/// Supervises the calling thread, as [`this_thread`], from any process: `command` is to call [`serve`].
pub fn this_thread_by(mut command: Command) -> Result<Supervised, Error> {
    if inherited()? {
        resume();
        return Ok(Supervised::Already);
    }
    available()?;
    unless_lost(|| Waiting::run(&mut command)?.listen(|| install(Watched::FilesAndNames)))
}

/// Supervises the process `pid`, which waits for a child that is, or waits for, the calling process. `command` is to
/// call [`serve`].
pub fn process(pid: i32, mut command: Command) -> Result<Supervised, Error> {
    if inherited()? {
        return Ok(Supervised::Already);
    }
    available()?;
    let listen =
        || ptrace::listen_in(pid, &program::program(Watched::FilesAndNames), seccomp::KILLABLE).map_err(why);
    unless_lost(|| Waiting::run(&mut command)?.listen(listen))
}

/// Begins, and once more if the listener is lost: the later filter is the one that is asked.
fn unless_lost(mut begin: impl FnMut() -> Result<Supervised, Error>) -> Result<Supervised, Error> {
    match begin() {
        Err(Error::Lost(_)) => begin(),
        begun => begun,
    }
}

/// Whether [`this_thread_by`] could supervise the calling thread, if it has the privileges.
pub fn may_supervise_this_thread() -> Result<(), Error> {
    if inherited()? { Ok(()) } else { available() }
}

/// Whether [`process()`] could supervise the process `pid`, once it waits for a child.
pub fn may_supervise(pid: i32) -> Result<(), Error> {
    if inherited()? {
        return Ok(());
    }
    available()?;
    ptrace::may_listen_in(pid).map_err(why)
}

/// Whether this machine can supervise at all, and no filter forbids what that needs.
fn available() -> Result<(), Error> {
    if seccomp::calls::ABIS.is_empty() {
        return Err(Error::Processor);
    }
    filter::against_supervision().map_or(Ok(()), |call| Err(Error::Forbidden(call)))
}

/// What [`this_thread_by`] and [`process()`] start: the supervisor, whose socket is standard input. Returns when it goes on by itself.
pub fn serve(options: Options) -> io::Result<()> {
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    process::spawn_detached(move || guard(&socket, &options))
}

/// A supervisor that waits for its listener.
struct Waiting {
    socket: OwnedFd,
}

impl Waiting {
    fn fork(options: Options) -> Result<Waiting, Error> {
        let (ours, theirs) = pair()?;
        process::spawn_detached(move || guard(&theirs, &options)).map_err(Error::Supervisor)?;
        Waiting { socket: ours }.rehearsed()
    }

    fn run(command: &mut Command) -> Result<Waiting, Error> {
        let (ours, theirs) = pair()?;
        let status = command.stdin(theirs).stdout(Stdio::null()).status().map_err(Error::Supervisor)?;
        if status.success() {
            return Waiting { socket: ours }.rehearsed();
        }
        Err(Error::Supervisor(io::Error::other(format!("{} failed", command.get_program().display()))))
    }

    /// Hands another descriptor over: once there is a filter, nothing may fail that can fail before.
    fn rehearsed(self) -> Result<Waiting, Error> {
        match self.hand_over(self.socket.as_fd()) {
            Ok(()) => Ok(self),
            Err(e) => Err(Error::Supervisor(e)),
        }
    }

    /// Hands the listener over that `listen` makes. Without one the supervisor ends.
    fn listen(self, listen: impl FnOnce() -> Result<OwnedFd, Error>) -> Result<Supervised, Error> {
        self.hand_over(listen()?.as_fd()).map_err(Error::Lost)?;
        Ok(Supervised::Now)
    }

    /// Sends a descriptor, and waits until the supervisor has done with it what it is for.
    fn hand_over(&self, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        send(&self.socket, descriptor)?;
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.socket, &mut [0; 1][..]))? {
            1 => Ok(()),
            _ => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

/// The supervisor's life, in a process of its own.
fn guard(socket: &OwnedFd, options: &Options) {
    process::close_all_but(&[socket.as_fd()], options.talk.is_some());
    let Ok(guardian) = Guardian::new() else { return };
    let answer = || rustix::io::write(socket, b"!");
    // Nothing comes after the first if the filter could not be installed.
    if receive(socket).is_err() || answer().is_err() {
        return;
    }
    let Ok(listener) = receive(socket) else { return };
    guardian.guard(listener, options, || {
        let _ = answer();
        let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
    });
}

fn install(watched: Watched) -> Result<OwnedFd, Error> {
    seccomp::install(&program::program(watched)).map_err(why)
}

/// Why there is no listener.
fn why(e: io::Error) -> Error {
    match e.raw_os_error() {
        Some(libc::EBUSY) => Error::ForeignListener,
        _ if e.kind() == io::ErrorKind::ResourceBusy => Error::ForeignListener,
        _ if e.kind() == io::ErrorKind::BrokenPipe => Error::Lost(e),
        _ => Error::Filter(e),
    }
}

fn pair() -> Result<(OwnedFd, OwnedFd), Error> {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .map_err(|e| Error::Supervisor(e.into()))
}

fn send(socket: &OwnedFd, listener: BorrowedFd<'_>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let listener = [listener];
    control.push(SendAncillaryMessage::ScmRights(&listener));
    rustix::net::sendmsg(socket, &[IoSlice::new(b"!")], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive(socket: &OwnedFd) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    let mut descriptors = control.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect::<Vec<_>>(),
        _ => Vec::new(),
    });
    descriptors.next().ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}
