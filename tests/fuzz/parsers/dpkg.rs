//! What dpkg, apt and pacman have written, or say.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::sound::{halves, is_listed, is_message};
use crate::package::dpkg::apt::{AptActionKind, Stream};
use crate::package::dpkg::deb::payload::entries;
use crate::package::dpkg::deb::{Control, PayloadKind};
use crate::package::dpkg::{Change, Invocation};
use crate::package::dpkg::{command_line::DpkgAction, statoverride as overridden};
use crate::package::dpkg::{control as fields, diversions as diverted, lists as listed, status as state};
use crate::package::installed::{InstalledPackage, Part};
use crate::package::pacman::Installed;
use crate::report::Reason;

pub fn apt_stream(data: &[u8]) {
    let stream = match Stream::read(data) {
        Ok(stream) => stream,
        Err(e) => return is_message(e),
    };
    assert!((1..=3).contains(&stream.version));
    assert!(stream.actions.len() <= data.len());
    for action in &stream.actions {
        assert_eq!(action.name.is_none(), stream.version == 1);
        if let AptActionKind::Unpack(archive) = &action.kind {
            assert!(archive.is_absolute());
        }
    }
    let seen =
        Change::of_stream(&stream, Some(Path::new("/chroot"))).into_iter().filter_map(
            |change| match change {
                Change::Unpack(archive) => Some(archive),
                _ => None,
            },
        );
    // Once: what is in the root may be called as the root is.
    let expected = stream.actions.iter().filter_map(|action| match &action.kind {
        AptActionKind::Unpack(archive) => Some(match archive.strip_prefix("/chroot") {
            Ok(inside) => Path::new("/").join(inside),
            Err(_) => archive.clone(),
        }),
        _ => None,
    });
    assert!(seen.eq(expected));
    let options = stream.config("DPkg::Options::").count();
    assert!(options >= stream.config("dpkg::options::").count());
}

pub fn deb_control(data: &[u8]) {
    match Control::read(data) {
        Ok(control) => {
            let files = control.files.iter().flatten().chain(&control.conffiles);
            files.for_each(|path| is_listed(path));
        }
        Err(e) => is_message(e),
    }
}

pub fn deb_payload(data: &[u8]) {
    match entries(data) {
        Ok(entries) => {
            for entry in entries {
                is_listed(&entry.path);
                if let PayloadKind::HardLink(target) = entry.kind {
                    is_listed(&target);
                }
            }
        }
        Err(e) => is_message(e),
    }
}

pub fn command_line(data: &[u8]) {
    let words: Vec<OsString> =
        data.split(|&byte| byte == 0).map(|word| OsStr::from_bytes(word).to_os_string()).collect();
    let taken = match Invocation::parse(&words).action {
        DpkgAction::Install(archives) | DpkgAction::Unpack(archives) => archives.len(),
        DpkgAction::Configure(names)
        | DpkgAction::TriggersOnly(names)
        | DpkgAction::Remove(names)
        | DpkgAction::Purge(names) => names.len(),
        DpkgAction::Other => 0,
    };
    // The program's name and the action are words, too.
    assert!(taken == 0 || taken + 2 <= words.len());
}

pub fn control(data: &[u8]) {
    let mut length = 0;
    for stanza in fields::stanzas(data) {
        length += stanza.as_bytes().len();
        assert!(!stanza.as_bytes().windows(2).any(|pair| pair == b"\n\n"));
        for (name, value) in stanza.fields() {
            assert!(!name.contains(&b'\n') && !name.contains(&b':'));
            let mut names = fields::relationship_names(value);
            assert!(names.all(|name| !name.is_empty() && !name.contains([',', '|', '(', ' '])));
        }
    }
    assert!(length <= data.len());
}

pub fn diversions(data: &[u8]) {
    for diversion in diverted::parse(data) {
        is_listed(&diversion.from);
        is_listed(&diversion.to);
    }
}

pub fn lists(data: &[u8]) {
    let is_list = |paths: &[PathBuf]| {
        assert!(paths.len() <= data.len());
        paths.iter().for_each(|path| is_listed(path));
    };
    let paths = listed::list(data).unwrap();
    is_list(&paths);
    is_list(&listed::conffiles(data).collect::<Vec<_>>());
    is_list(&listed::status_conffiles(data).collect::<Vec<_>>());
    is_list(&listed::md5sums(data).collect::<Vec<_>>());
    // What is written as a list is read as the same.
    let written: Vec<u8> =
        paths.iter().flat_map(|path| [path.as_os_str().as_bytes(), b"\n"].concat()).collect();
    assert_eq!(listed::list(&written).unwrap(), paths);
}

pub fn statoverride(data: &[u8]) {
    overridden::parse(data).iter().for_each(|path| is_listed(path));
}

/// NUL bytes stand between the status file and the entries of the journal.
pub fn status(data: &[u8]) {
    let packages = state::packages(data.split(|&byte| byte == 0)).unwrap();
    assert!(packages.is_sorted_by(|one, next| one.id < next.id));
    for package in &packages {
        package.conffiles().for_each(|path| is_listed(&path));
        for name in package.conflicts().chain(package.provides()).chain(package.replaces()) {
            assert!(!name.is_empty());
        }
        package.is_essential();
        assert!(!(package.is_configured() && package.state != state::PackageState::Installed));
        package.has_pending_triggers();
    }
}

/// A NUL byte stands between `desc` and `files`.
pub fn pacman(data: &[u8]) {
    let (desc, files) = halves(data, 0);
    let package = Installed { dir: "name-1".into(), desc: Some(desc.to_vec()), files: Some(files.to_vec()) };
    assert!(package.is_finished());
    package.name();
    package.is_essential();
    package.is_unpacked_since(0).unwrap();
    for part in [Part::Configuration, Part::Ghosts, Part::All] {
        let mut told = 0;
        let mut tell = |path: PathBuf| {
            is_listed(&path);
            told += 1;
            Ok(())
        };
        package.files(part, &mut tell).map_err(|e| Reason(e).to_string()).unwrap();
        assert!(told <= data.len());
    }
}
