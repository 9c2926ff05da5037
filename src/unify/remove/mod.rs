//! Deletes a guest, and leaves what it shares with others as it is: the inodes lose the guest's names, nothing else.
//!
//! Everything that could speak against it is asked before anything is touched ([`survey`]): each reason is a
//! [`refusal`]. Then, in [`removal`], the guest gets a name of its own that no pattern of the shell finds ([`place`]): from
//! here on no command takes it for a guest. Who has come into it just before that is looked for once more. A run that was
//! interrupted at any point is ended by the next one with the same path, which finds that name. Nothing is copied and
//! nothing new is written, so that a full filesystem is no reason to fail.
//!
//! Under `immutable` a name of a shared inode goes in a window. All names of one inode go in the same window, as far as
//! that is short; [`crate::sys::share::remove`] does that. Whoever kills this program within those microseconds leaves an
//! object without its flag. The next look at the pool's protection mends that: that of any pass, and the one that ends each
//! run of this command.

pub(crate) mod place;
pub(crate) mod refusal;
pub(crate) mod removal;
mod survey;
