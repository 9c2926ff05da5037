//! What a process asks the keeper of its gates, one message of 25 bytes each; an answer is one byte.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};

use crate::sys::file::inode::InodeId;

const LENGTH: usize = 25;

/// How long an opener may take from the kernel's first question to the second.
pub const GRACE_PERIOD: Duration = Duration::from_millis(50);

/// A window that is open for so long is closed by the keeper: its owner has been stopped.
pub const LONGEST_WINDOW: Duration = Duration::from_secs(1);

/// An answer.
pub const YES: u8 = b'+';
/// An answer.
pub const NO: u8 = b'-';
/// As [`YES`], but others must get out of the way first, which takes [`GRACE_PERIOD`] at most.
pub const AFTER_OTHERS: u8 = b'~';

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Close the gate of the inode that is open as the descriptor that comes with it. Answered.
    Close(InodeId),
    /// Whether somebody was turned away from the inode. Answered.
    WasTried(InodeId),
    /// Open the gate again, since that long after the keeper was started. Not answered.
    Open(InodeId, Duration),
}

impl Request {
    fn encode(self) -> [u8; LENGTH] {
        let (kind, inode, when) = match self {
            Request::Close(inode) => (0, inode, Duration::ZERO),
            Request::WasTried(inode) => (1, inode, Duration::ZERO),
            Request::Open(inode, when) => (2, inode, when),
        };
        let when = u64::try_from(when.as_nanos()).unwrap_or(u64::MAX);
        let mut bytes = [kind; LENGTH];
        for (at, word) in [(1, inode.dev), (9, inode.ino), (17, when)] {
            bytes[at..at + 8].copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8; LENGTH]) -> Option<Request> {
        let word = |at: usize| bytes[at..].first_chunk().map(|word| u64::from_ne_bytes(*word));
        let inode = InodeId { dev: word(1)?, ino: word(9)? };
        match bytes[0] {
            0 => Some(Request::Close(inode)),
            1 => Some(Request::WasTried(inode)),
            2 => Some(Request::Open(inode, Duration::from_nanos(word(17)?))),
            _ => None,
        }
    }
}

/// Sends a request, with a descriptor if it needs one.
///
/// # Errors
/// `EAGAIN` if so many have been sent that the keeper must be stopped; `EPIPE` if it has ended.
pub fn send(socket: impl AsFd, request: Request, file: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files: Vec<BorrowedFd<'_>> = file.into_iter().collect();
    if !files.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&files));
    }
    let bytes = request.encode();
    rustix::io::retry_on_intr(|| {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        rustix::net::sendmsg(&socket, &[IoSlice::new(&bytes)], &mut control, flags)
    })?;
    Ok(())
}

/// Receives a request.
///
/// # Errors
/// `UnexpectedEof` if the other end has been closed.
pub fn receive(socket: impl AsFd) -> io::Result<(Request, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; LENGTH];
    let received = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(
            &socket,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )
    })?;
    let file = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    match Request::decode(&bytes).filter(|_| received.bytes == LENGTH) {
        Some(request) => Ok((request, file)),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Sends an answer.
pub fn answer(socket: impl AsFd, answer: u8) -> io::Result<()> {
    rustix::io::retry_on_intr(|| rustix::io::write(&socket, &[answer]))?;
    Ok(())
}

/// Waits for an answer.
///
/// # Errors
/// `TimedOut` if there is none within `patience`; `UnexpectedEof` if the keeper has ended.
pub fn answered(socket: impl AsFd, patience: Duration) -> io::Result<u8> {
    let deadline = Instant::now() + patience;
    loop {
        let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now())).ok();
        match poll(&mut [PollFd::new(&socket, PollFlags::IN)], left.as_ref()) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => break,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    let mut answer = [0];
    match rustix::io::retry_on_intr(|| rustix::io::read(&socket, &mut answer[..]))? {
        1 => Ok(answer[0]),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_arrives_as_it_was_sent() {
        use rustix::net::{AddressFamily, SocketFlags, SocketType};
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .unwrap();
        let inode = InodeId { dev: 7 << 40, ino: u64::MAX - 1 };
        let when = Duration::from_nanos(u64::MAX - 2);
        for request in [Request::Close(inode), Request::WasTried(inode), Request::Open(inode, when)] {
            let file = matches!(request, Request::Close(_)).then(|| ours.as_fd());
            send(&ours, request, file).unwrap();
            let (received, with) = receive(&theirs).unwrap();
            assert_eq!((received, with.is_some()), (request, file.is_some()));
        }
        drop(ours);
        assert_eq!(receive(&theirs).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
