//! Messages of a supervised process to its supervisor, by a call that no kernel carries out: `openat2(2)` without a path.

#![allow(unsafe_code)]

use super::{Call, filter};

/// What a supervised process may want of its supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// To know whether there is one.
    Ping = 1,
    /// That all calls of this process go on: it does by itself what the supervisor would do.
    Exempt = 2,
    /// The end of [`Message::Exempt`].
    Supervise = 3,
    /// To know whether the supervisor began in the root directory that this process has: what it keeps is kept in there.
    IsSameRoot = 4,
}

/// What the call returns if a supervisor of ours has got the message and agrees.
pub const AGREED: i64 = 0x0063_6f77;

/// Marks the size argument of a call as a message.
const MARK: u64 = 0x636f_7700_0000_0000;

impl Message {
    /// Sends the message to the supervisor of this process. Returns whether it agrees: `false` without a supervisor of
    /// this version, too.
    pub fn send(self) -> bool {
        // If there is no filter nobody answers; and one of somebody else's may kill who asks.
        if !filter::is_in_force() || !filter::permits(libc::SYS_openat2) {
            return false;
        }
        let nothing = std::ptr::null::<libc::c_void>();
        // SAFETY: the kernel looks at the size first, which is too large for any structure, and touches no memory.
        let result = unsafe { libc::syscall(libc::SYS_openat2, -1, nothing, nothing, MARK | self as u64) };
        result == AGREED
    }

    /// The message in a call, if it is one.
    pub fn in_call(call: &Call) -> Option<Message> {
        let all = [Message::Ping, Message::Exempt, Message::Supervise, Message::IsSameRoot];
        let is = |message: &Message| call.arguments[3] == MARK | *message as u64 && call.arguments[1] == 0;
        all.into_iter().find(is)
    }
}
