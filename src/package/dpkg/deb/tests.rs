use std::ffi::OsStr;
use std::io::{Cursor, Write};
use std::os::unix::ffi::OsStrExt;

use proptest::prelude::*;

use super::*;
use crate::package::testing::Source;

fn temp() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn paths(names: &[&str]) -> Vec<PathBuf> {
    names.iter().map(PathBuf::from).collect()
}

/// An archive as dpkg-deb would not build it.
fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = ar::MAGIC.to_vec();
    for (name, data) in members {
        writeln!(bytes, "{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`", 0, 0, 0, 100644, data.len()).unwrap();
        bytes.extend(*data);
        if data.len() % 2 == 1 {
            bytes.push(b'\n');
        }
    }
    bytes
}

fn control_tar(control: &[u8]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(control.len() as u64);
    tar.append_data(&mut header, "./control", control).unwrap();
    tar.into_inner().unwrap()
}

const CONTROL: &[u8] = b"Package: a\nVersion: 1\nArchitecture: all\n";

#[test]
fn the_control_member_tells_what_matters() {
    let source = Source::new(
        "tool",
        "amd64",
        "Multi-Arch: same\nConflicts: a (<< 1), b\nReplaces: a (<< 1)\nProvides: virtual (= 2), c\nProtected: yes",
    );
    source.write("etc/tool.conf", b"x");
    source.write("usr/share/tool/a b\u{e9}\\x2dz", b"y");
    source.write("DEBIAN/conffiles", b"/etc/tool.conf\nremove-on-upgrade /etc/gone\n");
    let source = source.with_md5sums();
    let dir = temp();
    let path = dir.path().join("tool.deb");
    for compression in ["gzip", "xz", "zstd", "none"] {
        source.build(&path, &["--uniform-compression", &format!("-Z{compression}")]);
        let control = Control::open(&path).unwrap();
        assert_eq!(control.id.to_string(), "tool:amd64");
        assert_eq!((control.version.as_str(), control.multi_arch), ("2", MultiArch::Same));
        assert!(control.essential);
        assert_eq!(control.conflicts, ["a", "b"]);
        assert_eq!(control.replaces, ["a"]);
        assert_eq!(control.provides, ["virtual", "c"]);
        assert_eq!(control.conffiles, paths(&["/etc/tool.conf", "/etc/gone"]));
        let mut files = control.files.unwrap();
        files.sort();
        assert_eq!(files, paths(&["/etc/tool.conf", "/usr/share/tool/a b\u{e9}\\x2dz"]), "{compression}");
    }
}

#[test]
fn without_md5sums_there_is_no_list() {
    let source = Source::new("tool", "all", "");
    let dir = temp();
    let path = dir.path().join("tool.deb");
    source.build(&path, &[]);
    assert_eq!(Control::open(&path).unwrap().files, None);
}

#[test]
fn the_payload_is_not_read_for_the_control_member() {
    struct Stops<'a>(&'a [u8]);
    impl Read for Stops<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() {
                return Err(io::Error::other("read too far"));
            }
            self.0.read(buffer)
        }
    }
    let bytes = archive(&[("debian-binary", b"2.0\n"), ("control.tar", &control_tar(CONTROL))]);
    assert_eq!(Control::read(Stops(&bytes)).unwrap().id.name, "a");
}

#[test]
fn the_payload_is_listed_whatever_its_compression() {
    let source = Source::new("tool", "all", "");
    let long = format!("usr/{}/{}", "d".repeat(120), "f".repeat(120));
    source.write(&long, b"x");
    source.write(OsStr::from_bytes(b"usr/bin/\xff\xfe"), b"x");
    source.write("usr/bin/one", b"x");
    let dir = temp();
    let path = dir.path().join("tool.deb");
    let link = |tool: &str, arguments: &[&str]| {
        let status =
            std::process::Command::new(tool).args(arguments).current_dir(source.path("usr/bin")).status();
        assert!(status.unwrap().success());
    };
    link("ln", &["one", "two"]);
    link("ln", &["-s", "one", "symlink"]);
    for compression in ["gzip", "xz", "zstd", "none"] {
        source.build(&path, &[&format!("-Z{compression}")]);
        let entries = payload(&path).unwrap();
        let kind =
            |path: &Path| entries.iter().find(|entry| entry.path == path).map(|entry| entry.kind.clone());
        assert_eq!(kind(Path::new("/usr/bin")), Some(PayloadKind::Directory));
        assert_eq!(kind(Path::new("/usr/bin/symlink")), Some(PayloadKind::Other));
        assert_eq!(kind(&Path::new("/").join(&long)), Some(PayloadKind::File), "{compression}");
        assert_eq!(kind(Path::new(OsStr::from_bytes(b"/usr/bin/\xff\xfe"))), Some(PayloadKind::File));
        let (one, two) = (kind(Path::new("/usr/bin/one")), kind(Path::new("/usr/bin/two")));
        let linked = |name: &str| Some(PayloadKind::HardLink(Path::new("/usr/bin").join(name)));
        assert!(
            (one == Some(PayloadKind::File) && two == linked("one"))
                || (two == Some(PayloadKind::File) && one == linked("two"))
        );
        assert_eq!(entries.len(), 8, "{entries:?}");
    }
}

#[test]
fn payload_names_may_have_newlines_and_old_compressions() {
    let mut tar = tar::Builder::new(Vec::new());
    let names = [b"usr/a\nb".to_vec(), [&b"usr/"[..], &b"\n\xff".repeat(90)].concat()];
    for name in &names {
        let mut header = tar::Header::new_gnu();
        header.set_size(0);
        tar.append_data(&mut header, OsStr::from_bytes(name), io::empty()).unwrap();
    }
    let tar = tar.into_inner().unwrap();
    let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    bzip2.write_all(&tar).unwrap();
    let lzma =
        xz2::stream::Stream::new_lzma_encoder(&xz2::stream::LzmaOptions::new_preset(1).unwrap()).unwrap();
    let mut lzma = xz2::write::XzEncoder::new_stream(Vec::new(), lzma);
    lzma.write_all(&tar).unwrap();
    let source = Source::new("unused", "all", "");
    for (member, data) in
        [("data.tar.bz2", bzip2.finish().unwrap()), ("data.tar.lzma/", lzma.finish().unwrap())]
    {
        let members =
            [("debian-binary", &b"2.0\n"[..]), ("_sig", b"odd"), ("control.tar", b""), (member, &data)];
        source.write("a.deb", &archive(&members));
        let entries = payload(&source.path("a.deb")).unwrap();
        let expected = names.each_ref().map(|name| Path::new("/").join(OsStr::from_bytes(name)));
        assert_eq!(entries.into_iter().map(|entry| entry.path).collect::<Vec<_>>(), expected, "{member}");
    }
}

#[test]
fn what_is_no_deb_is_an_error_with_its_path() {
    let source = Source::new("unused", "all", "");
    let cut = archive(&[("debian-binary", b"2.0\n"), ("control.tar", &control_tar(CONTROL))]);
    for bytes in [
        &b""[..],
        b"PK\x03\x04",
        b"!<arch>\n",
        &cut[..200],
        &archive(&[("data.tar", b""), ("control.tar", &control_tar(CONTROL))]),
        &archive(&[("control.tar.foo", b"")]),
        &archive(&[("control.tar", b"")]),
        &archive(&[("control.tar", &control_tar(b"Package: a\n"))]),
        &archive(&[("/999", b"x"), ("control.tar", &control_tar(CONTROL))]),
    ] {
        source.write("a.deb", bytes);
        let error = Control::open(&source.path("a.deb")).unwrap_err();
        assert!(error.to_string().contains("a.deb"), "{error}");
    }
    assert!(payload(&source.path("missing.deb")).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_damaged_archive_never_panics(
        compression in prop::sample::select(vec!["gzip", "xz", "zstd", "none"]),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        length in any::<prop::sample::Index>(),
    ) {
        let mut bytes = sample(compression);
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let _ = Control::read(Cursor::new(&bytes));
        let _ = payload::entries(Cursor::new(&bytes));
        bytes.truncate(length.index(bytes.len()));
        let _ = Control::read(Cursor::new(&bytes));
        let _ = payload::entries(Cursor::new(&bytes));
    }
}

/// A small archive, built once for each compression.
fn sample(compression: &'static str) -> Vec<u8> {
    use std::collections::HashMap;
    use std::sync::{LazyLock, Mutex};
    static SAMPLES: LazyLock<Mutex<HashMap<&str, Vec<u8>>>> = LazyLock::new(Mutex::default);
    let build = || {
        let source = Source::new("tool", "all", "");
        source.write("usr/bin/tool", b"x");
        let dir = temp();
        let path = dir.path().join("tool.deb");
        source.with_md5sums().build(&path, &["--uniform-compression", &format!("-Z{compression}")]);
        std::fs::read(path).unwrap()
    };
    SAMPLES.lock().unwrap().entry(compression).or_insert_with(build).clone()
}

/// The beginning of an archive, a member of which begins with an entry of this type and size.
fn begun(member: &str, kind: tar::EntryType, size: u64) -> Vec<u8> {
    let mut bytes = archive(&[("debian-binary", b"2.0\n")]);
    writeln!(bytes, "{member:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`", 0, 0, 0, 100644, 9_999_999_999_u64).unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_cksum();
    bytes.extend(header.as_bytes());
    bytes
}

#[test]
fn a_name_that_does_not_end_is_not_kept() {
    for kind in [tar::EntryType::GNULongName, tar::EntryType::GNULongLink, tar::EntryType::XHeader] {
        let control = begun("control.tar", kind, 1 << 32);
        let error = Control::read(control.chain(io::repeat(b'x'))).unwrap_err();
        assert!(error.to_string().contains("a file name is not terminated"), "{kind:?}: {error}");
        let error = payload::entries(begun("data.tar", kind, 1 << 32).chain(io::repeat(b'x'))).unwrap_err();
        assert!(error.to_string().contains("a file name is not terminated"), "{kind:?}: {error}");
    }
}

#[test]
fn a_sparse_file_is_refused_as_dpkg_does() {
    let payload = payload::entries(begun("data.tar", tar::EntryType::GNUSparse, 1).chain(io::repeat(0)));
    assert!(payload.is_err());
}
