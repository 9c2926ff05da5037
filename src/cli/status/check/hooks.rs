//! Whether the package managers that a guest has call our hooks, and whom else they call.

use std::ffi::OsStr;
use std::path::Path;

use rustix::fs::OFlags;

use super::finding::{Finding, Level};
use crate::sys::budget;
use crate::sys::path::dirfd;
use crate::sys::path::root::Root;

/// A package manager, what shows that a guest has it, and what calls our hooks.
struct Caller {
    name: &'static str,
    /// One of these is there if the package manager is.
    witnesses: &'static [&'static str],
    /// All of these must be there.
    needed: &'static [&'static str],
}

const CALLERS: [Caller; 4] = [
    Caller {
        name: "dpkg",
        witnesses: &["/var/lib/dpkg/status"],
        needed: &["/usr/libexec/cow-hooks/cow-dpkg", "/etc/dpkg/dpkg.cfg.d/cow-hooks"],
    },
    Caller {
        name: "apt",
        witnesses: &["/usr/bin/apt-get"],
        needed: &["/etc/apt/apt.conf.d/00cow-hooks", "/etc/apt/apt.conf.d/30cow-hooks"],
    },
    Caller {
        name: "rpm",
        witnesses: &["/usr/lib/sysimage/rpm/rpmdb.sqlite", "/var/lib/rpm/rpmdb.sqlite"],
        needed: &["/usr/libexec/cow-hooks/cow-rpm"],
    },
    Caller {
        name: "pacman",
        witnesses: &["/var/lib/pacman/local"],
        needed: &[
            "/usr/libexec/cow-hooks/cow-pacman",
            "/usr/share/libalpm/hooks/00-cow-hooks-pre.hook",
            "/usr/share/libalpm/hooks/zz-cow-hooks-post.hook",
        ],
    },
];

/// A directory in which each program that wants to be called puts a file, and which of these files are ours.
struct Directory {
    front_end: &'static str,
    path: &'static str,
    ours: &'static [&'static str],
    /// What a file must hold to be a hook; all are, if empty.
    marks: &'static [&'static str],
}

const DIRECTORIES: [Directory; 3] = [
    Directory {
        front_end: "apt",
        path: "/etc/apt/apt.conf.d",
        ours: &["00cow-hooks", "30cow-hooks"],
        marks: &["dpkg::pre-", "dpkg::post-", "apt::update::p"],
    },
    Directory { front_end: "dnf", path: "/etc/dnf/plugins", ours: &[], marks: &[] },
    Directory { front_end: "zypper", path: "/usr/lib/zypp/plugins/commit", ours: &["cow-hooks"], marks: &[] },
];

/// What is to be said of each package manager of the guest.
pub fn findings(root: &Root, has_unified: bool) -> Vec<Finding> {
    let is_there = |path: &&str| root.open_at(Path::new(path), OFlags::PATH).is_ok();
    let mut findings = Vec::new();
    let mut served = Vec::new();
    for Caller { name, witnesses, needed } in &CALLERS {
        if !witnesses.iter().any(is_there) {
            continue;
        }
        match needed.iter().find(|path| !is_there(path)) {
            None => served.push(*name),
            Some(missing) => {
                let harm =
                    if has_unified { "it fails at unified files" } else { "it does not call the hooks" };
                findings.push(Finding {
                    level: if has_unified { Level::Refused } else { Level::Attention },
                    ..Finding::attention(
                        "hooks",
                        format!("{name}: {missing} is missing: {harm}"),
                        "install the package cow-hooks again, with its configuration files \
                         (`apt-get install --reinstall -o Dpkg::Options::=--force-confmiss cow-hooks`)",
                    )
                });
            }
        }
    }
    if !served.is_empty() {
        findings.push(Finding::ok("hooks", format!("called by {}", served.join(", "))));
    } else if findings.is_empty() {
        findings.push(Finding::attention(
            "hooks",
            "the guest has no package manager that is known: none of dpkg, rpm and pacman",
            "run `cow-prepare PATH...` before you change unified files",
        ));
    }
    findings.extend(DIRECTORIES.iter().filter_map(|directory| directory.others(root)));
    findings
}

impl Directory {
    /// The hooks of other programs, in the order in which they are called.
    fn others(&self, root: &Root) -> Option<Finding> {
        let dir = root.open_dir(Path::new(self.path)).ok()?;
        let mut names = dirfd::names_where(&dir, budget::LISTS, |name| self.is_hook(root, name)).ok()?;
        names.sort();
        let (before, after): (Vec<_>, Vec<_>) = names
            .iter()
            .map(|name| name.to_string_lossy())
            .partition(|name| self.ours.first().is_some_and(|ours| name.as_ref() < *ours));
        if before.is_empty() && after.is_empty() {
            return None;
        }
        let mut text = format!("of other programs, called by {}: {}", self.front_end, after.join(", "));
        if !before.is_empty() {
            text = format!("{text}; before ours: {}", before.join(", "));
        }
        Some(Finding::ok("hooks", text))
    }

    fn is_hook(&self, root: &Root, name: &OsStr) -> bool {
        if self.ours.iter().any(|ours| name == *ours) || name.as_encoded_bytes().starts_with(b".") {
            return false;
        }
        if self.marks.is_empty() {
            return true;
        }
        let content = root.read(&Path::new(self.path).join(name), budget::CONFIGURATION).unwrap_or_default();
        let content = String::from_utf8_lossy(&content).to_lowercase();
        content.lines().any(|line| {
            let line = line.trim_start();
            !line.starts_with("//")
                && !line.starts_with('#')
                && self.marks.iter().any(|mark| line.contains(mark))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_looked_for_is_what_the_packages_install() {
        let install = include_str!("../../../../packaging/install");
        for path in CALLERS.iter().flat_map(|caller| caller.needed) {
            let hook = path.strip_prefix("/usr/share/libalpm/hooks/");
            match hook {
                Some(hook) => assert!(Path::new("hooks/pacman").join(hook).exists(), "{path}"),
                None => assert!(install.contains(path), "{path}"),
            }
        }
        for Directory { path, ours, .. } in &DIRECTORIES {
            for name in *ours {
                assert!(install.contains(&format!("{path}/{name}")), "{path}/{name}");
            }
        }
    }
}
