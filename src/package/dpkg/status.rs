//! The packages dpkg knows: its `status` file, and the journal that is not yet part of it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;

use super::control::{Stanza, relationship_names, stanzas};
use super::lists;
use crate::package::{MultiArch, PackageId};
use crate::sys::budget::{self, Exceeded};

/// What the administrator wants of a package (dpkg(1), package selection states).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// Nothing was said.
    Unknown,
    /// It is to be installed.
    Install,
    /// It is not to be changed.
    Hold,
    /// It is to be removed, its configuration files kept.
    Deinstall,
    /// It is to be removed altogether.
    Purge,
}

/// How far a package is installed (dpkg(1), package states).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PackageState {
    /// Not at all.
    NotInstalled,
    /// Its configuration files are left.
    ConfigFiles,
    /// Unpacking or removal was cut short, or the state is none we know.
    HalfInstalled,
    /// Unpacked, not configured.
    Unpacked,
    /// Configuring failed.
    HalfConfigured,
    /// It waits for another package to process a trigger.
    TriggersAwaited,
    /// It has to process a trigger itself.
    TriggersPending,
    /// Installed and configured.
    Installed,
}

/// The fields that are read when they are asked for.
const LATER: [&str; 7] =
    ["Triggers-Pending", "Essential", "Protected", "Conffiles", "Conflicts", "Provides", "Replaces"];

/// A package of the database. Fields that are seldom needed are read when they are asked for.
#[derive(Debug, Clone)]
pub struct Package {
    /// Name and architecture.
    pub id: PackageId,
    /// The installed version; empty if there is none.
    pub version: String,
    /// Whether several architectures of it can be installed.
    pub(crate) multi_arch: MultiArch,
    /// What the administrator wants.
    pub want: Want,
    /// How far it is installed.
    pub state: PackageState,
    /// The fields of [`LATER`].
    stanza: Box<[u8]>,
}

impl Package {
    fn parse(stanza: Stanza<'_>) -> Option<Package> {
        let (mut name, mut arch, mut version) = (None, String::new(), String::new());
        let mut multi_arch = MultiArch::No;
        let (mut want, mut state) = (Want::Unknown, PackageState::HalfInstalled);
        let mut later = Vec::new();
        let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
        for (field, value) in stanza.fields() {
            let is = |name: &str| field.eq_ignore_ascii_case(name.as_bytes());
            if is("Package") {
                name = Some(text(value));
            } else if is("Architecture") {
                arch = text(value);
            } else if is("Version") {
                version = text(value);
            } else if is("Multi-Arch") {
                multi_arch = MultiArch::parse(value).unwrap_or_default();
            } else if is("Status") {
                (want, state) = parse_status(value);
            } else if LATER.iter().any(|name| is(name)) {
                later.extend([field, b":", value, b"\n"].concat());
            }
        }
        let id = PackageId { name: name?, arch };
        Some(Package { id, version, multi_arch, want, state, stanza: later.into() })
    }

    /// Whether the package is configured and nothing waits: a trigger that is awaited or pending still may change files.
    pub fn is_configured(&self) -> bool {
        self.state == PackageState::Installed
    }

    /// Whether triggers of it have yet to be processed.
    pub(crate) fn has_pending_triggers(&self) -> bool {
        self.state == PackageState::TriggersPending
            || self.field("Triggers-Pending").is_some_and(|value| !value.is_empty())
    }

    /// Whether the system cannot do without it (`Essential` or `Protected`).
    pub(crate) fn is_essential(&self) -> bool {
        ["Essential", "Protected"].iter().any(|name| self.field(name) == Some(b"yes"))
    }

    /// Its configuration files, obsolete ones included.
    pub fn conffiles(&self) -> impl Iterator<Item = PathBuf> + use<'_> {
        self.field("Conffiles").map(lists::status_conffiles).into_iter().flatten()
    }

    /// The packages it conflicts with.
    pub(crate) fn conflicts(&self) -> impl Iterator<Item = Cow<'_, str>> {
        self.field("Conflicts").into_iter().flat_map(relationship_names)
    }

    /// The virtual packages it provides.
    pub(crate) fn provides(&self) -> impl Iterator<Item = Cow<'_, str>> {
        self.field("Provides").into_iter().flat_map(relationship_names)
    }

    /// The packages whose files it may take over.
    pub fn replaces(&self) -> impl Iterator<Item = Cow<'_, str>> {
        self.field("Replaces").into_iter().flat_map(relationship_names)
    }

    fn field(&self, name: &str) -> Option<&[u8]> {
        Stanza::new(&self.stanza).field(name)
    }
}

/// `want flag state`. What is none of dpkg's words is read as the state in which most can still happen.
fn parse_status(value: &[u8]) -> (Want, PackageState) {
    let mut words = value.split(|byte| *byte == b' ').filter(|word| !word.is_empty());
    let want = match words.next() {
        Some(b"install") => Want::Install,
        Some(b"hold") => Want::Hold,
        Some(b"deinstall") => Want::Deinstall,
        Some(b"purge") => Want::Purge,
        _ => Want::Unknown,
    };
    let state = match words.nth(1) {
        Some(b"not-installed") => PackageState::NotInstalled,
        Some(b"config-files") => PackageState::ConfigFiles,
        Some(b"unpacked") => PackageState::Unpacked,
        Some(b"half-configured") => PackageState::HalfConfigured,
        Some(b"triggers-awaited") => PackageState::TriggersAwaited,
        Some(b"triggers-pending") => PackageState::TriggersPending,
        Some(b"installed") => PackageState::Installed,
        _ => PackageState::HalfInstalled,
    };
    (want, state)
}

/// The packages of a status file and of the journal entries after it; each entry supersedes what was there before.
///
/// Sorted; packages that have nothing installed are left out.
///
/// # Errors
/// If there are more than [`budget::PACKAGES`].
pub fn packages<'a>(files: impl IntoIterator<Item = &'a [u8]>) -> Result<Vec<Package>, Exceeded> {
    let mut packages = BTreeMap::new();
    for package in files.into_iter().flat_map(stanzas).filter_map(Package::parse) {
        packages.insert(package.id.clone(), package);
        Exceeded::check_count(packages.len(), budget::PACKAGES, "packages")?;
    }
    Ok(packages.into_values().filter(|package| package.state != PackageState::NotInstalled).collect())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    const STATUS: &[u8] = b"Package: libc6
Status: install ok installed
Architecture: amd64
Multi-Arch: same
Version: 2.36-9
Provides: libc6-2.31, libc (= 1)
Conflicts: openrc (<< 0.27-2~)
Replaces: libc6-amd64
Conffiles:
 /etc/ld.so.conf.d/x.conf d4e7a7b88a71b5ffd9e2644e71a0cfab
 /etc/old 0 obsolete

Package: libc6
Status: install ok triggers-pending
Architecture: i386
Multi-Arch: same
Version: 2.36-9

Package: gone
Status: unknown ok not-installed

Package: old
Essential: yes
Status: deinstall ok config-files
Architecture: all
Version: 1
";

    #[test]
    fn packages_are_read_by_name_and_architecture() {
        let packages = packages([STATUS]).unwrap();
        let ids: Vec<String> = packages.iter().map(|package| package.id.to_string()).collect();
        assert_eq!(ids, ["libc6:amd64", "libc6:i386", "old:all"]);
        assert!(packages[0].is_configured());
        assert_eq!(packages[0].multi_arch, MultiArch::Same);
        assert_eq!(packages[0].provides().collect::<Vec<_>>(), ["libc6-2.31", "libc"]);
        assert_eq!(packages[0].conflicts().collect::<Vec<_>>(), ["openrc"]);
        assert_eq!(packages[0].replaces().collect::<Vec<_>>(), ["libc6-amd64"]);
        assert_eq!(
            packages[0].conffiles().collect::<Vec<_>>(),
            ["/etc/ld.so.conf.d/x.conf", "/etc/old"].map(Path::new)
        );
        assert_eq!((packages[2].want, packages[2].state), (Want::Deinstall, PackageState::ConfigFiles));
        assert!(packages[2].is_essential() && !packages[0].is_essential());
    }

    #[test]
    fn a_package_that_waits_for_triggers_is_not_configured() {
        for state in ["triggers-pending", "triggers-awaited", "unpacked", "half-configured", "odd"] {
            let status = format!("Package: a\nArchitecture: all\nStatus: install ok {state}\n");
            assert!(!packages([status.as_bytes()]).unwrap()[0].is_configured(), "{state}");
        }
    }

    #[test]
    fn the_journal_supersedes_the_status_file() {
        let removed: &[u8] = b"Package: old\nStatus: purge ok not-installed\nArchitecture: all\n#padded\n";
        let configured: &[u8] = b"Package: libc6\nStatus: install ok installed\nArchitecture: i386\n";
        let packages = packages([STATUS, removed, configured]).unwrap();
        assert_eq!(packages.len(), 2);
        assert!(packages[1].is_configured());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(data in prop::collection::vec(any::<u8>(), 0..300)) {
            packages([&data[..]]).unwrap();
        }

        #[test]
        fn any_status_is_read_without_panic(value in "[a-z ]{0,40}") {
            parse_status(value.as_bytes());
        }
    }
}
