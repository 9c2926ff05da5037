//! Loads and unloads the guard. What is loaded stays in the kernel when the process ends.

use super::pins::{Generation, Pins};
use super::programs::Loaded;
use super::{Error, kernel};
use crate::report::Reason;
use crate::sys::file::uuid::Uuid;

/// Loads a new generation of all programs for these filesystems, then takes out the older ones. Returns its number.
///
/// A process that is killed meanwhile leaves the older generations, and perhaps a part of the new one; the next load
/// takes that out.
///
/// # Errors
/// If the kernel cannot run all programs: nothing has changed.
pub fn load(pins: &Pins, filesystems: &[Uuid]) -> Result<u64, Error> {
    let loaded = prepare(filesystems)?;
    let (number, dir) = pins.begin().map_err(Error::Pins)?;
    let pinned = loaded.pin(&dir).and_then(|()| pins.complete(number, filesystems).map_err(Error::Pins));
    if let Err(e) = pinned {
        if let Err(left) = pins.remove(number) {
            log::debug!("{}: {}", dir.display(), Reason(left));
        }
        return Err(e);
    }
    // What stays refuses more, not less.
    for older in pins.generations().map_err(Error::Pins)?.iter().filter(|other| other.number != number) {
        pins.remove(older.number).unwrap_or_else(|e| log::warn!("/sys/fs/bpf: {}", Reason(e)));
    }
    Ok(number)
}

/// Tries whether the kernel would run all programs; none answers.
///
/// # Errors
/// As [`load`].
pub fn attempt() -> Result<(), Error> {
    prepare(&[]).map(drop)
}

fn prepare(filesystems: &[Uuid]) -> Result<Loaded, Error> {
    match kernel::security_modules() {
        Ok(active) if !active.iter().any(|name| name == "bpf") => return Err(Error::NotActive { active }),
        Ok(_) => {}
        // The probe of each pool tells.
        Err(e) => log::debug!("the active security modules are not known: {}", Reason(e)),
    }
    if let Some(why) = kernel::leaves_out_programs() {
        return Err(Error::LeavesOut(why));
    }
    if kernel::has_stopped_programs() {
        return Err(Error::Stopped);
    }
    Loaded::load(filesystems)
}

/// Takes all programs out of the kernel.
///
/// # Errors
/// If one cannot be taken out: those of later generations are still there.
pub fn unload(pins: &Pins) -> Result<(), Error> {
    let generations = pins.generations().map_err(Error::Pins)?;
    generations.iter().try_for_each(|one| pins.remove(one.number)).map_err(Error::Pins)
}

/// What is in the kernel, oldest first.
pub fn generations() -> Result<Vec<Generation>, Error> {
    match Pins::existing().map_err(Error::Pins)? {
        Some(pins) => pins.generations().map_err(Error::Pins),
        None => Ok(Vec::new()),
    }
}
