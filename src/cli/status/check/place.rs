//! Where the guest runs: the kernel, and the container.

use std::path::Path;

use super::finding::Finding;
use crate::sys::budget;
use crate::sys::file::inode::Inode;
use crate::sys::path::root::Root;
use crate::sys::process::Processes;

/// What container managers leave in a container (systemd's `CONTAINER_INTERFACE`), and by which name it is known.
const MARKS: [(&str, &str); 2] = [("/run/.containerenv", "podman"), ("/.dockerenv", "docker")];

/// Says it.
pub fn finding(root: &Root) -> Finding {
    let kernel = rustix::system::uname();
    let kernel = format!("Linux {}", kernel.release().to_string_lossy());
    if !root.is_own() {
        let text =
            format!("{kernel}; looked at from outside: what the guest's container allows is not known here");
        return Finding::ok("kernel", text);
    }
    let container = container(root).unwrap_or_else(|| "no container is known".into());
    let users = if has_other_users(root) { ", in a user namespace" } else { "" };
    Finding::ok("kernel", format!("{kernel}, {container}{users}"))
}

/// The name of the container manager.
fn container(root: &Root) -> Option<String> {
    let text = |path: &str| root.read(Path::new(path), budget::SMALL).ok();
    if let Some(name) = text("/run/systemd/container") {
        return Some(String::from_utf8_lossy(&name).trim().escape_debug().to_string());
    }
    let mark = MARKS.iter().find(|(path, _)| root.look(Path::new(path)).is_ok());
    if let Some((_, name)) = mark {
        return Some((*name).into());
    }
    let processes = Processes::open().ok()?;
    let own = Inode::of(root).ok()?.id;
    let is_elsewhere = |pid| processes.root_inode(pid).is_ok_and(|inode| inode.id != own);
    let ancestors = processes.ancestors().unwrap_or_default();
    ancestors.iter().any(|process| is_elsewhere(process.id.pid)).then(|| "in a chroot".into())
}

/// Whether users have other numbers here than in the initial user namespace (`user_namespaces(7)`).
fn has_other_users(root: &Root) -> bool {
    let map = root.read(Path::new("/proc/self/uid_map"), budget::SMALL).unwrap_or_default();
    let map = String::from_utf8_lossy(&map);
    !map.trim().is_empty() && map.split_whitespace().collect::<Vec<_>>() != ["0", "0", "4294967295"]
}
