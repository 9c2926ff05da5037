//! What the crate `debian-packaging` reads of the same files: written by others, it must come to the same.

use std::io::Cursor;

use debian_packaging::control::{ControlParagraph, ControlParagraphReader};
use debian_packaging::deb::reader::{BinaryPackageEntry, BinaryPackageReader, ControlTarFile};
use debian_packaging::dependency::DependencyList;

use super::*;
use crate::package::dpkg::control::stanzas;
use crate::package::testing::{cached, support};

/// The files of a control member.
#[derive(Default)]
struct Member {
    control: Option<ControlParagraph<'static>>,
    conffiles: Vec<u8>,
    md5sums: Option<Vec<u8>>,
}

impl Member {
    fn of(path: &Path) -> Member {
        let mut found = Member::default();
        let mut reader = BinaryPackageReader::new(File::open(path).unwrap()).unwrap();
        let mut archive = loop {
            if let BinaryPackageEntry::Control(archive) = reader.next_entry().unwrap().unwrap() {
                break archive;
            }
        };
        for entry in archive.entries().unwrap() {
            match entry.unwrap().to_control_file().unwrap().1 {
                ControlTarFile::Control(control) => found.control = Some(control.into()),
                ControlTarFile::Conffiles(data) => found.conffiles = data,
                ControlTarFile::Other(name, data) if name == b"./md5sums" || name == b"md5sums" => {
                    found.md5sums = Some(data);
                }
                _ => {}
            }
        }
        found
    }
}

/// The names in a relationship field.
fn names(paragraph: &ControlParagraph<'_>, field: &str) -> Vec<String> {
    let Some(text) = paragraph.field_str(field) else { return Vec::new() };
    let list = DependencyList::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
    let all = list.requirements().flat_map(|requirement| requirement.iter());
    all.map(|dependency| dependency.package.clone()).collect()
}

/// The last words of all lines, which have neither flags nor spaces but between the words.
fn paths(data: &[u8]) -> Vec<PathBuf> {
    let text = std::str::from_utf8(data).unwrap();
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    let path = |line: &str| {
        line.rsplit_once("  ")
            .map_or(line, |(_, path)| path)
            .trim_start_matches("remove-on-upgrade ")
            .to_owned()
    };
    lines.map(|line| Path::new("/").join(path(line).trim_start_matches("./"))).collect()
}

fn compare(path: &Path) {
    let ours = Control::open(path).unwrap();
    let theirs = Member::of(path);
    let control = theirs.control.unwrap();
    let field = |name: &str| control.field_str(name).unwrap_or_default();
    let said = path.display();
    assert_eq!(ours.id.name, field("Package"), "{said}");
    assert_eq!(ours.id.arch, field("Architecture"), "{said}");
    assert_eq!(ours.version, field("Version"), "{said}");
    assert_eq!(ours.multi_arch, MultiArch::parse(field("Multi-Arch").as_bytes()).unwrap(), "{said}");
    let is_set = |name: &str| control.field_bool(name).unwrap_or(false);
    assert_eq!(ours.essential, is_set("Essential") || is_set("Protected"), "{said}");
    for (ours, field) in
        [(ours.conflicts, "Conflicts"), (ours.replaces, "Replaces"), (ours.provides, "Provides")]
    {
        assert_eq!(ours, names(&control, field), "{said}: {field}");
    }
    assert_eq!(ours.conffiles, paths(&theirs.conffiles), "{said}");
    assert_eq!(ours.files, theirs.md5sums.as_deref().map(paths), "{said}");
}

#[test]
fn control_members_are_read_as_the_crate_reads_them() {
    let dir = tempfile::tempdir().unwrap();
    assert!(support("debs").arg(dir.path()).status().unwrap().success());
    let made: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    // The crate has no paths but text: those of cow-odd are none.
    let is_text = |path: &&PathBuf| !path.to_string_lossy().contains("cow-odd");
    let real = cached("guests", "deb");
    made.iter().filter(is_text).chain(&real).for_each(|path| compare(path));
    println!("{} packages of the tests, {} real ones", made.len() - 2, real.len());
}

#[test]
fn paragraphs_are_read_as_the_crate_reads_them() {
    let status = Path::new("/var/lib/dpkg/status");
    let Ok(data) = std::fs::read(status) else { return };
    let theirs = ControlParagraphReader::new(Cursor::new(data.clone()));
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let mut count = 0;
    let mut ours = stanzas(&data);
    for paragraph in theirs {
        let (paragraph, stanza) = (paragraph.unwrap(), ours.next().unwrap());
        let theirs = paragraph.iter_fields().map(|field| (field.name().to_owned(), words(field.value_str())));
        let ours = stanza.fields().map(|(name, value)| {
            (String::from_utf8_lossy(name).into_owned(), words(&String::from_utf8_lossy(value)))
        });
        assert_eq!(ours.collect::<Vec<_>>(), theirs.collect::<Vec<_>>());
        count += 1;
    }
    assert!(ours.next().is_none());
    println!("{count} paragraphs");
}
