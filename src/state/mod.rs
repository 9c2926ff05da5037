//! What lies in `/var/lib/cow-hooks` of a guest, but for the ledger: lock, stash, spool, members, hard links, notice of the pool.

pub mod hard_links;
pub mod members;
pub mod pool_notice;
pub mod store;
