use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;

use proptest::prelude::*;
use rpm::{BuildConfig, CompressionType, Dependency, FileOptions, PackageBuilder};

use super::*;
use crate::package::testing::{cached, rpm_file};

/// A package that the crate makes, of every kind of file.
fn built(config: BuildConfig) -> Vec<u8> {
    let mut builder = PackageBuilder::new("tool", "1.0", "x", "x86_64", "a package of the tests");
    let config = config.compression(CompressionType::None).source_date(1_600_000_000);
    let file = |path: &str| FileOptions::new(path);
    builder.using_config(config).epoch(2).release("3").obsoletes(Dependency::less("old", "2"));
    builder.obsoletes(Dependency::any("older")).provides(Dependency::any("virtual"));
    for (content, options) in [
        ("a", file("/usr/bin/a").permissions(0o4755)),
        ("b", file("/etc/b").config()),
        ("c", file("/etc/c d").noreplace()),
        ("d", file("/usr/share/doc/tool/größe").doc()),
        ("e", file("/usr/lib/e")),
    ] {
        builder.with_file_contents(content, options).unwrap();
    }
    builder.with_symlink(FileOptions::symlink("/usr/lib/link", "e")).unwrap();
    builder.with_dir_entry(FileOptions::dir("/usr/share/tool")).unwrap();
    builder.with_ghost(FileOptions::ghost("/var/log/tool")).unwrap();
    let mut bytes = Vec::new();
    builder.build().unwrap().write(&mut bytes).unwrap();
    bytes
}

/// The header of a package's file, as rpm's database would have it.
fn blob(mut reader: impl Read) -> Vec<u8> {
    take(&mut reader, &mut Vec::new(), LEAD).unwrap();
    let mut bytes = Vec::new();
    let signature = header(&mut reader, &mut bytes).unwrap();
    let padding = signature.next_multiple_of(8) - signature;
    take(&mut reader, &mut bytes, padding).unwrap();
    bytes.clear();
    header(&mut reader, &mut bytes).unwrap();
    bytes.split_off(INTRODUCTION - 8)
}

/// Compares what is read of a package's file here with what the crate reads; how many files it lists.
fn compare(path: &Path) -> usize {
    let open = || BufReader::new(File::open(path).unwrap());
    let witness = PackageMetadata::parse(&mut open()).unwrap();
    let blob = blob(open());
    let header = Header::parse(&blob).unwrap();
    let said = path.display();
    assert_eq!(header.name().unwrap(), witness.get_name().unwrap().as_bytes(), "{said}");
    let lossy = |path: PathBuf| path.to_string_lossy().into_owned();
    let ours: Vec<_> = header
        .files()
        .unwrap()
        .map(|file| {
            (lossy(file.path().unwrap()), file.is_configuration(), file.is_ghost(), file.is_installed())
        })
        .collect();
    let entries = witness.get_file_entries().unwrap();
    let theirs = entries.iter().map(|entry| {
        let has = |flag| entry.flags().contains(flag);
        (lossy(entry.path()), has(rpm::FileFlags::CONFIG), has(rpm::FileFlags::GHOST), true)
    });
    assert_eq!(ours, theirs.collect::<Vec<_>>(), "{said}");
    let package = PackageFile::read(open()).unwrap();
    assert_eq!(package.name, witness.get_name().unwrap(), "{said}");
    let installed = ours.iter().filter(|(.., is_ghost, _)| !is_ghost).map(|(path, ..)| path);
    assert!(package.files.iter().map(|file| lossy(file.path.clone())).eq(installed.cloned()), "{said}");
    ours.len()
}

#[test]
fn a_header_that_the_crate_has_built_is_read_as_it_reads_it() {
    for config in [BuildConfig::v4(), BuildConfig::v6()] {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&built(config)).unwrap();
        assert_eq!(compare(file.path()), 8);
        assert_eq!(PackageFile::open(file.path()).unwrap().obsoletes, ["old", "older"]);
    }
}

#[test]
fn real_headers_are_read_as_the_crate_reads_them() {
    let packages = cached("rpm-guests", "rpm");
    let files: usize = packages.iter().map(|path| compare(path)).sum();
    println!("{} real packages, {files} files", packages.len());
}

#[test]
fn names_are_bytes() {
    let name = b"/usr/lib/\xff\n";
    let package =
        PackageFile::read(&rpm_file("a", &[(name, 0, 0), (b"/etc/a", 1, 0), (b"/ghost", 1 << 6, 0)])[..]);
    let package = package.unwrap();
    let paths: Vec<_> = package.files.iter().map(|file| file.path.as_path()).collect();
    assert_eq!(paths, [Path::new(OsStr::from_bytes(name)), Path::new("/etc/a")]);
    assert!(package.files.iter().map(|file| file.is_configuration).eq([false, true]));
    assert!(package.obsoletes.is_empty());
}

#[test]
fn a_file_may_be_cut_off_anywhere_before_its_payload() {
    let file = rpm_file("a", &[(b"/usr/bin/a", 0, 0), (b"/usr/bin/b", 0, 0)]);
    for length in 0..file.len() {
        assert!(PackageFile::read(&file[..length]).is_err(), "{length}");
    }
    assert_eq!(PackageFile::read(file.chain(&b"payload"[..])).unwrap().files.len(), 2);
}

/// Where the header's index begins, in what [`rpm_file`] makes.
const INDEX: usize = LEAD + 2 * INTRODUCTION;

#[test]
fn values_that_overlap_or_lie_outside_are_not_read() {
    let file = rpm_file("a", &[(b"/usr/bin/a", 0, 0), (b"/usr/bin/b", 0, 0)]);
    // Of entry 3, indexes of directories: its offset, and how many there are.
    for (at, value) in [(8, 0), (8, u32::MAX), (8, 1 << 31), (12, 0), (12, 1 << 30), (12, u32::MAX)] {
        let mut file = file.clone();
        file[INDEX + 3 * 16 + at..][..4].copy_from_slice(&value.to_be_bytes());
        let error = PackageFile::read(&file[..]).unwrap_err().to_string();
        assert!(error.contains("tag 1116 of a header is invalid"), "{at} {value}: {error}");
    }
    // How many bytes of index and data there are.
    for at in [8, 4] {
        let mut file = file.clone();
        file[INDEX - at..][..4].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(PackageFile::read(&file[..]).is_err(), "{at}");
    }
}

#[test]
fn what_makes_the_crate_panic_is_an_error() {
    let mut file = rpm_file("a", &[(b"/usr/bin/a", 0, 0)]);
    file[INDEX + 8..][..4].copy_from_slice(&u32::MAX.to_be_bytes());
    assert!(std::panic::catch_unwind(|| identity(&file)).is_err(), "it does not panic any more");
    let error = caught(|| identity(&file)).map(drop).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
}

#[test]
fn what_installs_nothing_is_no_package() {
    let reason = |bytes: &[u8]| PackageFile::read(bytes).unwrap_err().to_string();
    assert!(reason(b"!<arch>\n").contains("truncated"));
    assert!(reason(&[b'x'; 200]).contains("it is not an rpm package file"));
    // A source package is one that has a certain tag; here it stands in the place of another.
    let mut file = rpm_file("a", &[(b"/usr/bin/a", 0, 0)]);
    file[INDEX + 16..][..4].copy_from_slice(&1106_u32.to_be_bytes());
    assert!(reason(&file).contains("source package"), "{}", reason(&file));
    file[INDEX + 16..][..4].copy_from_slice(&OLD_FILE_NAMES.to_be_bytes());
    assert!(reason(&file).contains("older than that of rpm 4"), "{}", reason(&file));
}

proptest! {
    #[test]
    fn any_file_is_read_without_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..9),
    ) {
        let mut file = rpm_file("a", &[(b"/usr/bin/a", 0, 0), (b"/etc/b", 1, 0)]);
        for (at, byte) in changes {
            let at = LEAD + at.index(file.len() - LEAD);
            file[at] = byte;
        }
        let _ = PackageFile::read(&file[..]);
    }
}
