//! What lies in `/var/lib/cow-hooks` of a guest, but for the ledger: lock, stash, spool, plan, members, hard links,
//! notice of the pool.

pub mod hard_links;
pub(crate) mod lists;
pub mod lock;
pub mod members;
mod plan;
pub mod pool_notice;
pub mod spool;
pub mod store;
pub mod traces;
pub mod unable;
