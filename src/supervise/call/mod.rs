//! One call of a supervised thread: what it leads to, and what is to be done before it goes on.
//!
//! `dispatch` tells which file the `arguments` name, as `lookup` resolves them, and hands it to `change`, where the file
//! gets a private copy, or to `names`, where the call is carried out in `windows`; `rights` are the caller's, and `reach`
//! is whether it may go the way that its path describes.

pub(crate) mod arguments;
mod change;
mod dispatch;
pub(crate) mod lookup;
mod names;
mod reach;
mod rights;
mod waiting;
mod windows;

pub use self::waiting::WaitingCall;
