//! Files in layers (overlayfs): one copy that the kernel makes, instead of a copy and a window of ours.
//!
//! Nothing is recorded: the shared file is in a layer that nothing here can change.

use std::io;
use std::path::PathBuf;

use super::apply::{Failure, Outcome};
use super::layers::Layers;
use super::survey::Found;
use crate::report::{Reason, Watch};
use crate::sys::file::inode::Inode;
use crate::sys::file::layer;
use crate::sys::path::resolve::is_absent;
use crate::sys::path::root::Root;
use crate::sys::share::swap::Name;

/// Takes the files in layers out of `unified`.
pub fn take_layered(root: &Root, unified: &mut Vec<Found>) -> Vec<Found> {
    let mut layers = Layers::default();
    unified.extract_if(.., |found| layers.hold(root, &found.place.dir, &found.inode)).collect()
}

/// Has the kernel copy each of these files up.
pub fn lift_all(root: &Root, files: Vec<Found>, watch: &dyn Watch) -> Outcome {
    let mut outcome = Outcome::default();
    if files.is_empty() {
        return outcome;
    }
    watch.begin("making private", files.len() as u64);
    for found in files {
        let path = found.place.path();
        match lift(root, &found) {
            Ok(true) => {
                outcome.bytes += found.inode.allocated;
                watch.add(1, found.inode.size);
                outcome.detached.push(path);
            }
            Ok(false) => {}
            Err(e) => outcome.failed.push(failure(path, e)),
        }
    }
    watch.end();
    outcome
}

/// `false` if the name has another file by now.
fn lift(root: &Root, found: &Found) -> io::Result<bool> {
    let dir = match root.open_dir(&found.place.dir) {
        Err(e) if is_absent(&e) => return Ok(false),
        dir => dir?,
    };
    let name = Name { dir: std::os::fd::AsFd::as_fd(&dir), name: &found.place.name };
    let file = match name.open() {
        Err(e) if is_absent(&e) => return Ok(false),
        file => file?,
    };
    if Inode::of(&file)?.id != found.inode.id {
        return Ok(false);
    }
    layer::lift(file).map(|()| true)
}

fn failure(path: PathBuf, error: io::Error) -> Failure {
    Failure { path, reason: Reason(error).to_string(), unfinished: false }
}
