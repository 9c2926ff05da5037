//! System calls of ours that a traced process makes: it installs the filter and sends us the listener.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};

use super::arch::{self, Registers};
use super::channel::{Channel, Image, is_listener};
use super::refusal::{lost, of_seccomp, pretended};
use super::target::{SPIN, Target};

/// How often it tries to send the listener, which has worked with another descriptor just before.
const SEND_TRIES: u32 = 100;

/// A process that makes system calls of ours.
pub(super) struct Caller<'t, 'fd> {
    pub(super) target: &'t mut Target<'fd>,
    pub(super) saved: &'t Registers,
    /// Where the instruction is that makes them.
    pub(super) at: u64,
}

impl Caller<'_, '_> {
    /// Has it install the filter and send the listener. It goes on whatever comes of that, but not of tracing it.
    pub(super) fn send_listener(
        &mut self,
        image: &Image,
        channel: &Channel,
        flags: libc::c_ulong,
    ) -> io::Result<io::Result<OwnedFd>> {
        let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        let socket = match self.call(libc::SYS_socket, [libc::AF_UNIX as u64, kind as u64, 0])? {
            Ok(socket) => socket as u64,
            Err(e) => return Ok(Err(e)),
        };
        let sent = self.send_through(socket, image, channel, flags)?;
        // It cannot fail: `program` lets it pass.
        let _ = self.call(libc::SYS_close, [socket, 0, 0])?;
        Ok(sent)
    }

    fn send_through(
        &mut self,
        socket: u64,
        image: &Image,
        channel: &Channel,
        flags: libc::c_ulong,
    ) -> io::Result<io::Result<OwnedFd>> {
        let address = [socket, image.address, channel.address().len() as u64];
        if let Err(e) = self.call(libc::SYS_connect, address)? {
            return Ok(Err(e));
        }
        let connection = match channel.accept(self.target.pid.as_raw()) {
            Ok(connection) => connection,
            Err(e) => return Ok(Err(e)),
        };
        // First any descriptor: while nothing is changed that cannot be changed back.
        if let Err(e) = self.send(socket, socket, image)?.and_then(|()| connection.receive()) {
            return Ok(Err(e));
        }
        let mode = libc::c_ulong::from(libc::SECCOMP_SET_MODE_FILTER);
        let install = [mode, flags | libc::SECCOMP_FILTER_FLAG_NEW_LISTENER, image.filter];
        let listener = match self.call(libc::SYS_seccomp, install)? {
            Ok(listener) => listener as u64,
            Err(e) => return Ok(Err(of_seccomp(e))),
        };
        let mut sent = Err(ErrorKind::BrokenPipe.into());
        for _ in 0..SEND_TRIES {
            sent = self.send(socket, listener, image)?.and_then(|()| connection.receive());
            if sent.is_ok() {
                break;
            }
            std::thread::sleep(SPIN);
        }
        let listener_is = match sent {
            Ok(sent) if is_listener(sent.as_fd()) => Ok(sent),
            Ok(_) => return Ok(Err(pretended())),
            Err(e) => Err(lost(e)),
        };
        let _ = self.call(libc::SYS_close, [listener, 0, 0])?;
        Ok(listener_is)
    }

    /// Has it send its descriptor `number`.
    fn send(&mut self, socket: u64, number: u64, image: &Image) -> io::Result<io::Result<()>> {
        self.target.write(image.descriptor, &(number as u32).to_ne_bytes())?;
        let flags = (libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) as u64;
        Ok(self.call(libc::SYS_sendmsg, [socket, image.message, flags])?.map(drop))
    }

    /// Has it make a system call; what comes of it.
    fn call(&mut self, number: libc::c_long, arguments: [u64; 3]) -> io::Result<io::Result<i64>> {
        let after = self.target.run(&arch::calling(self.saved, self.at, number, arguments))?;
        Ok(match arch::result(&after, self.at) {
            None => Err(ErrorKind::Interrupted.into()),
            Some(error @ -4095..0) => Err(io::Error::from_raw_os_error(-error as i32)),
            Some(result) => Ok(result),
        })
    }
}
