//! Files of ours that lie where somebody else can write, and names in the pool.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::sound::{is_message, is_shown};
use crate::hook::series as sum;
use crate::state::hard_links::HardLinks;
use crate::state::lists::parse_list;
use crate::state::members;
use crate::state::pool_notice::PoolNotice;
use crate::sys::process::ProcessId;
use crate::unify::pool::journal;
use crate::unify::pool::object::ObjectName;
use crate::unify::pool::settings::PoolSettings;

pub fn spool(data: &[u8]) {
    let paths: Vec<_> = parse_list(data).collect();
    let written: Vec<u8> =
        paths.iter().flat_map(|path| [path.as_os_str().as_bytes(), &[0]].concat()).collect();
    assert!(parse_list(&written).eq(paths));
}

pub fn hard_links(data: &[u8]) {
    let links = HardLinks::parse(data).unwrap();
    let mut seen = HashSet::new();
    for names in links.all() {
        assert!(names.len() > 1);
        for name in names {
            assert!(seen.insert(name), "{name:?} is in two files");
            assert!(links.of(name).eq(names));
        }
    }
    if links.are_known() {
        assert_eq!(HardLinks::parse(&links.content()), Some(links));
    }
}

pub fn member(data: &[u8]) {
    if let Some(member) = members::parse(7, data) {
        let line = format!("{} {} {}\n", member.id.start, member.covers as u8, member.since);
        assert_eq!(members::parse(7, line.as_bytes()), Some(member));
    }
}

/// The sum of front end 7, which started at 9.
pub fn series(data: &[u8]) {
    let front_end = ProcessId { pid: 7, start: 9 };
    let Some(settled) = sum::parse(data, front_end) else { return };
    let again = sum::add_up(&settled, &settled);
    assert!(again.restored >= settled.restored && again.postponed == settled.postponed);
}

pub fn pool_notice(data: &[u8]) {
    match PoolNotice::parse(data.to_vec()) {
        Ok(notice) => {
            let text = toml::to_string(&notice).unwrap();
            assert_eq!(PoolNotice::parse(text.into_bytes()).unwrap(), notice);
        }
        Err(e) => drop(e.to_string()),
    }
}

pub fn pool_settings(data: &[u8]) {
    match PoolSettings::read(data) {
        Ok(settings) => {
            let text = toml::to_string(&settings).unwrap();
            assert_eq!(PoolSettings::read(text.as_bytes()).unwrap(), settings);
        }
        Err(e) => drop(e.to_string()),
    }
}

pub fn pool_journal(data: &[u8]) {
    let Some((protect, intents)) = journal::decode(data) else { return };
    let written = journal::encode(protect, &intents);
    // One byte says whether, by any value but 0.
    assert_eq!(written.len(), data.len());
    assert_eq!(journal::decode(&written), Some((protect, intents)));
}

pub fn object_name(data: &[u8]) {
    let name = OsStr::from_bytes(data);
    if let Some(object) = ObjectName::parse_whole(name) {
        assert_eq!(object.whole(), name);
        assert_eq!(ObjectName::parse_quarantined(&object.quarantine_name(7)), Some(object));
    }
    if let Some(object) = ObjectName::parse_quarantined(name) {
        assert!(data.starts_with(object.whole().as_bytes()));
    }
    let Some(name) = name.to_str() else { return };
    if let Some(object) = ObjectName::parse(0x5a, name) {
        assert_eq!((object.shelf(), object.file().to_str()), (0x5a, Some(name)));
        assert_eq!(ObjectName::parse_second(0x5a, &format!("{name}.second")), Some(object));
        assert!(ObjectName::parse_second(0x5a, name).is_none());
    }
}

#[cfg(feature = "guard")]
pub fn guarded_pools(data: &[u8]) {
    use crate::guard::registered;
    if let Some(pools) = registered::parse(data) {
        assert_eq!(registered::text(&pools), data);
    }
}

pub fn shown(data: &[u8]) {
    if !data.is_empty() {
        is_shown(data);
    }
    is_message(format_args!("x{}", crate::report::Reason(String::from_utf8_lossy(data).escape_debug())));
}
