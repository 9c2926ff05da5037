//! What lies in `/var/lib/cow-hooks` of a guest, but for the ledger: lock, stash, spool, members, hard links.

pub mod hard_links;
pub mod members;
pub mod store;
