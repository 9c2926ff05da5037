//! The end of a run, and of what an interrupted one has left.

use super::error::Error;
use super::guest::{Guest, seconds_now};
use super::settle::{self, Settled};
use crate::detach::recover::Recovered;
use crate::ledger::Ledger;
use crate::package::PackageManager;
use crate::state::members::Members;
use crate::sys::process::{ProcessId, Processes};
use crate::sys::seccomp::filter;

impl Guest<'_> {
    /// These processes have run, as far as they are members. Settles, unless somebody else still takes part.
    ///
    /// Where the ledger was never needed, only new files are handed over, and only if the host has begun to unify. Where
    /// a filter forbids what settling needs, that is left to a later run.
    pub fn finish(self, done: &[ProcessId], manager: &dyn PackageManager) -> Result<Option<Settled>, Error> {
        if filter::against_copies().is_some() {
            return Ok(None);
        }
        let Some((store, _lock)) = self.existing()? else { return Ok(None) };
        let members = Members::open(&store).map_err(|e| Error::state("members", e))?;
        let (since, alive) =
            members.sweep(done, Processes::open().ok().as_ref()).map_err(|e| Error::state("members", e))?;
        if !alive.is_empty() {
            return Ok(None);
        }
        store.forget_plan().map_err(|e| Error::state("planned", e))?;
        let ledger = Ledger::existing(&store)?;
        if since.is_none() && ledger.is_none() {
            return Ok(None);
        }
        let packages = manager.after_run(since.unwrap_or(i64::MAX)).map_err(Error::Packages)?;
        let Some(mut ledger) = ledger else {
            let begun = !packages.unpacked.is_empty() && self.shares_any(manager)?;
            return if begun { settle::hand_over(self, &store, &packages).map(Some) } else { Ok(None) };
        };
        let recovered = self.recover_in(&store, &mut ledger)?;
        for problem in recovered.failed {
            log::warn!("{problem}");
        }
        let settled = settle::settle(self, &store, &mut ledger, &packages)?;
        ledger.settle_run(seconds_now(), settled.restored, settled.new)?;
        Ok(Some(settled))
    }

    /// Ends what killed processes left behind.
    pub fn recover(self) -> Result<Recovered, Error> {
        may_change_names()?;
        let Some((store, _lock)) = self.existing()? else { return Ok(Recovered::default()) };
        let Some(mut ledger) = Ledger::existing(&store)? else { return Ok(Recovered::default()) };
        self.recover_in(&store, &mut ledger)
    }

    /// Lets go of every original: all names stay private. For the removal of cow-hooks itself.
    pub fn retire(self) -> Result<Option<Settled>, Error> {
        may_change_names()?;
        let Some((store, _lock)) = self.existing()? else { return Ok(None) };
        // apt runs on, but no hook of ours will see its end.
        Members::open(&store).and_then(|members| members.clear()).map_err(|e| Error::state("members", e))?;
        store.forget_plan().map_err(|e| Error::state("planned", e))?;
        let Some(mut ledger) = Ledger::existing(&store)? else { return Ok(None) };
        self.recover_in(&store, &mut ledger)?;
        let settled = settle::retire(&store, &mut ledger, self.policy)?;
        ledger.settle_run(seconds_now(), 0, settled.new)?;
        Ok(Some(settled))
    }
}

/// Fails before anything is begun that a filter would end half way.
fn may_change_names() -> Result<(), Error> {
    filter::against_copies().map_or(Ok(()), |call| Err(Error::Forbidden { call }))
}
