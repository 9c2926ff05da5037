//! How a descriptor of the other process comes to us (`unix(7)`, `SCM_RIGHTS`).

#![allow(unsafe_code)]

use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::mem::{MaybeUninit, offset_of};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

/// A control message with one descriptor is so long, and takes so much room (`cmsg(3)`).
const CONTROL: usize = size_of::<libc::cmsghdr>() + size_of::<u32>();
const CONTROL_ROOM: usize = CONTROL.next_multiple_of(align_of::<libc::cmsghdr>());

/// A socket with an address that has no file, and that the other process connects to.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
    address: Vec<u8>,
}

/// Our end of a connection with one process.
#[derive(Debug)]
pub struct Connection(OwnedFd);

impl Channel {
    /// The kernel chooses the address.
    pub fn open() -> io::Result<Channel> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::bind(&socket, &SocketAddrUnix::new_unnamed())?;
        rustix::net::listen(&socket, libc::SOMAXCONN)?;
        let bound = SocketAddrUnix::try_from(rustix::net::getsockname(&socket)?)?;
        let name = bound.abstract_name().ok_or(ErrorKind::AddrNotAvailable)?;
        let mut address = (libc::AF_UNIX as libc::sa_family_t).to_ne_bytes().to_vec();
        address.push(0);
        address.extend(name);
        Ok(Channel { socket, address })
    }

    /// The address, as `connect(2)` takes it.
    pub fn address(&self) -> &[u8] {
        &self.address
    }

    /// The connection that the process `pid` has made; those of others are closed.
    pub(crate) fn accept(&self, pid: i32) -> io::Result<Connection> {
        loop {
            let connection = rustix::net::accept_with(&self.socket, SocketFlags::CLOEXEC)?;
            if peer(&connection)? == pid {
                return Ok(Connection(connection));
            }
        }
    }
}

impl Connection {
    /// The descriptor that has been sent.
    pub fn receive(&self) -> io::Result<OwnedFd> {
        receive(&self.0)
    }
}

/// The number of the process that has connected; 0 for one in another process namespace, which rustix has no value for.
fn peer(connection: &OwnedFd) -> io::Result<i32> {
    let mut who = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: at most `len` bytes are written to `who`; both live through the call.
    let result = unsafe {
        libc::getsockopt(
            connection.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut who).cast(),
            &raw mut len,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(who.pid) }
}

fn receive(socket: &OwnedFd) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, flags)?;
    let mut descriptors = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    descriptors.next().ok_or_else(|| ErrorKind::UnexpectedEof.into())
}

/// Two sockets that are connected.
pub fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
}

/// Passes a descriptor from one of them to the other; nothing but system calls.
pub fn pass(pair: &(OwnedFd, OwnedFd), descriptor: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor];
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    rustix::net::sendmsg(&pair.0, &[IoSlice::new(b"!")], &mut control, SendFlags::NOSIGNAL)?;
    match receive(&pair.1) {
        Ok(_) => Ok(()),
        Err(e) => Err(Errno::from_io_error(&e).unwrap_or(Errno::IO)),
    }
}

/// Whether it is the listener of a seccomp filter (`seccomp_unotify(2)`).
pub(crate) fn is_listener(fd: BorrowedFd<'_>) -> bool {
    let nobody = 0_u64;
    // SAFETY: reads a number that outlives the call.
    let result =
        unsafe { libc::ioctl(fd.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &raw const nobody) };
    result == 0 || io::Error::last_os_error().raw_os_error() == Some(libc::ENOENT)
}

/// What the other process needs in its memory: the filter, the address, and a message with a descriptor.
#[derive(Debug)]
pub struct Image {
    /// All of it.
    pub bytes: Vec<u8>,
    /// Where the argument of `seccomp(2)` is.
    pub filter: u64,
    /// Where the address is.
    pub address: u64,
    /// Where the argument of `sendmsg(2)` is.
    pub message: u64,
    /// Where the number of the descriptor is that is sent.
    pub descriptor: u64,
}

impl Image {
    /// Lies at `start`.
    pub fn new(start: u64, program: &[libc::sock_filter], address: &[u8]) -> io::Result<Image> {
        let mut writer = Writer { start, bytes: Vec::new() };
        let len = u16::try_from(program.len()).map_err(|_| ErrorKind::InvalidInput)?;
        let mut code = Vec::with_capacity(size_of_val(program));
        for step in program {
            code.extend(step.code.to_ne_bytes());
            code.extend([step.jt, step.jf]);
            code.extend(step.k.to_ne_bytes());
        }
        let code = writer.put(&code);
        let filter = writer.put(&structure(
            size_of::<libc::sock_fprog>(),
            &[
                (offset_of!(libc::sock_fprog, len), &len.to_ne_bytes()),
                (offset_of!(libc::sock_fprog, filter), &code.to_ne_bytes()),
            ],
        ));
        let (address, byte) = (writer.put(address), writer.put(b"!"));
        let parts = writer.put(&structure(
            size_of::<libc::iovec>(),
            &[
                (offset_of!(libc::iovec, iov_base), &byte.to_ne_bytes()),
                (offset_of!(libc::iovec, iov_len), &1_u64.to_ne_bytes()),
            ],
        ));
        let control = writer.put(&structure(
            CONTROL_ROOM,
            &[
                (offset_of!(libc::cmsghdr, cmsg_len), &(CONTROL as u64).to_ne_bytes()),
                (offset_of!(libc::cmsghdr, cmsg_level), &libc::SOL_SOCKET.to_ne_bytes()),
                (offset_of!(libc::cmsghdr, cmsg_type), &libc::SCM_RIGHTS.to_ne_bytes()),
            ],
        ));
        let message = writer.put(&structure(
            size_of::<libc::msghdr>(),
            &[
                (offset_of!(libc::msghdr, msg_iov), &parts.to_ne_bytes()),
                (offset_of!(libc::msghdr, msg_iovlen), &1_u64.to_ne_bytes()),
                (offset_of!(libc::msghdr, msg_control), &control.to_ne_bytes()),
                (offset_of!(libc::msghdr, msg_controllen), &(CONTROL_ROOM as u64).to_ne_bytes()),
            ],
        ));
        let descriptor = control + size_of::<libc::cmsghdr>() as u64;
        Ok(Image { bytes: writer.bytes, filter, address, message, descriptor })
    }
}

struct Writer {
    start: u64,
    bytes: Vec<u8>,
}

impl Writer {
    /// Appends it, aligned for anything; where it lies.
    fn put(&mut self, content: &[u8]) -> u64 {
        let at = self.bytes.len().next_multiple_of(align_of::<u64>());
        self.bytes.resize(at, 0);
        self.bytes.extend(content);
        self.start + at as u64
    }
}

/// A structure of zeroes but for these fields, each at its offset.
fn structure(size: usize, fields: &[(usize, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; size];
    for (offset, value) in fields {
        bytes[*offset..][..value.len()].copy_from_slice(value);
    }
    bytes
}
