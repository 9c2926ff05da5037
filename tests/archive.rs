//! Where the guests' packages come from: what this machine's apt says, in whatever form.

use std::fs;
use std::process::{Command, Output};

use crate::support::pair::support;
use crate::support::text;

/// What the script says on a machine with these files in `/etc/apt`; OWN in them is this machine's release.
fn asked(files: &[(&str, &str)]) -> Output {
    let root = tempfile::tempdir().unwrap();
    let apt = root.path().join("etc/apt");
    for directory in [
        "etc/apt/sources.list.d",
        "etc/apt/apt.conf.d",
        "etc/apt/preferences.d",
        "var/lib/apt/lists/partial",
        "var/lib/dpkg",
        "var/cache/apt",
    ] {
        fs::create_dir_all(root.path().join(directory)).unwrap();
    }
    fs::write(root.path().join("var/lib/dpkg/status"), "").unwrap();
    let top = root.path().to_str().unwrap();
    for (name, content) in files {
        fs::write(apt.join(name), content.replace("OWN", &own()).replace("TOP", top)).unwrap();
    }
    let configuration = root.path().join("apt.conf");
    fs::write(&configuration, format!("Dir \"{top}\";\nDir::State::status \"{top}/var/lib/dpkg/status\";\n"))
        .unwrap();
    support("archive").arg("trixie").env("APT_CONFIG", configuration).output().unwrap()
}

fn own() -> String {
    let release = fs::read_to_string("/etc/os-release").unwrap();
    let name = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    name.unwrap_or("sid").to_owned()
}

#[track_caller]
fn finds(files: &[(&str, &str)], expected: &str) {
    let output = asked(files);
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("deb {expected} trixie main\n"));
}

#[track_caller]
fn finds_none(files: &[(&str, &str)], why: &str) {
    let output = asked(files);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(text(&output).contains(why), "{}", text(&output));
}

const OTHERS: &str = "
deb http://one.example/debian OWN-backports main
deb http://one.example/debian OWN-updates main
deb http://one.example/debian-security OWN-security main
deb-src http://source.example/debian OWN main
deb http://contrib.example/debian OWN contrib
deb http://flat.example/debian ./
# deb http://comment.example/debian OWN main
";

#[test]
fn one_line_entries_are_understood() {
    let with = |line: &str| format!("{OTHERS}{line}\n{OTHERS}");
    for (line, expected) in [
        ("deb http://two.example/debian OWN main", "http://two.example/debian"),
        (
            "deb http://two.example:3142/two.example/debian/ OWN contrib main # text",
            "http://two.example:3142/two.example/debian",
        ),
        (
            "deb [ arch=amd64 signed-by=/k/a.gpg ] https://two.example/d OWN main",
            "[signed-by=/k/a.gpg] https://two.example/d",
        ),
        (
            "deb [trusted=yes arch=amd64,arm64 check-valid-until=no] http://two.example/d OWN main",
            "[trusted=yes check-valid-until=no] http://two.example/d",
        ),
        (
            "deb [signed-by=/k/a.gpg,/k/b.gpg lang=none] http://two.example/d OWN main",
            "[signed-by=/k/a.gpg,/k/b.gpg] http://two.example/d",
        ),
        ("deb http://user:word@two.example/d stable main", "http://user:word@two.example/d"),
    ] {
        finds(&[("sources.list.d/own.list", &with(line))], expected);
    }
}

#[test]
fn stanzas_are_understood() {
    let stanza = "# text\n\n# more\nTypes: deb deb-src\n# inside\nURIs: http://two.example/debian/ https://three.example/debian\n\
        Suites: OWN OWN-updates OWN-backports\nComponents: contrib\n main\nArchitectures: amd64\nLanguages: none\n";
    let others = "Types: deb\nURIs: http://one.example/debian-security\nSuites: OWN-security\nComponents: main\n\
        Signed-By: /k/security.gpg\n\n# text\n\n\
        Types: deb\nEnabled: no\nURIs: http://off.example/debian\nSuites: OWN\nComponents: main\nTrusted: yes\n\n";
    for (more, expected) in [
        ("", ""),
        ("Signed-By: /k/a.gpg\n", "[signed-by=/k/a.gpg] "),
        ("signed-by:\n /k/a.gpg\n /k/b.gpg\ntrusted: yes\n", "[signed-by=/k/a.gpg,/k/b.gpg trusted=yes] "),
        (
            "Check-Valid-Until: no\nSigned-By: 0123456789ABCDEF0123456789ABCDEF01234567\n",
            "[signed-by=0123456789ABCDEF0123456789ABCDEF01234567 check-valid-until=no] ",
        ),
    ] {
        let expected = format!("{expected}http://two.example/debian");
        let whole = format!("{others}{stanza}{more}\n \n{others}");
        finds(&[("sources.list.d/own.sources", &whole)], &expected);
    }
    let key = format!("{stanza}Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n");
    finds_none(&[("sources.list.d/own.sources", &key)], "own.sources:1: Signed-By holds a key");
}

#[test]
fn what_guests_cannot_reach_is_passed_over() {
    let local = "deb cdrom:[Debian GNU/Linux 12.0.0 _Bookworm_ - Official]/ OWN main\n\
        deb file:/srv/mirror OWN main\ndeb [trusted=yes] copy:/srv/other OWN main\n";
    let remote = format!("{local}deb http://two.example/debian OWN main\n");
    finds(&[("sources.list", &remote)], "http://two.example/debian");
    finds_none(&[("sources.list", local)], "no archive of");
    finds_none(&[("sources.list", OTHERS)], "no archive of");
    finds_none(&[], "no archive of");
}

#[test]
fn of_mirrors_in_a_file_the_first_counts() {
    let mirrors = "# mirrors\n\nhttp://two.example/debian/\tpriority:1\nhttps://three.example/debian\n";
    for uri in ["mirror+file:TOP/etc/apt/mirrors", "mirror+file://TOP/etc/apt/mirrors"] {
        let line = format!("deb [signed-by=/k/a.gpg] {uri} OWN main\n");
        finds(
            &[("mirrors", mirrors), ("sources.list", &line)],
            "[signed-by=/k/a.gpg] http://two.example/debian",
        );
        finds_none(&[("mirrors", "#\n"), ("sources.list", &line)], "it names no mirror");
    }
}

#[test]
fn our_own_release_comes_before_others() {
    let lines = "deb http://other.example/debian sid main\ndeb http://two.example/debian OWN main\n";
    finds(&[("sources.list", lines)], "http://two.example/debian");
    // Somebody else's, of the same suite and component, as the lists say that apt has fetched.
    let lines =
        "deb [arch=amd64] http://other.example/php OWN main\ndeb http://two.example/debian OWN main\n";
    finds(&[("sources.list", lines)], "http://other.example/php");
    for (label, expected) in [("PHP", "http://two.example/debian"), ("Debian", "http://other.example/php")] {
        let release = format!(
            "Label: {label}\nCodename: OWN\nArchitectures: amd64\nComponents: main\n\
            SHA256:\n {EMPTY} 0 main/binary-amd64/Packages\n"
        );
        let fetched = format!("../../var/lib/apt/lists/other.example_php_dists_{}_", own());
        let [list, packages] =
            ["Release", "main_binary-amd64_Packages"].map(|name| format!("{fetched}{name}"));
        finds(&[("sources.list", lines), (&list, &release), (&packages, "")], expected);
    }
}

/// The SHA-256 of nothing.
const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

#[test]
fn no_mirror_has_its_name_in_the_tree() {
    let output = Command::new("grep")
        .args(["-rlE", r"(deb|ftp[a-z0-9.]*|snapshot|archive|security)\.debian\.", "--exclude-dir=target"])
        .args(["--exclude-dir=.git", env!("CARGO_MANIFEST_DIR")])
        .output()
        .unwrap();
    assert_eq!(text(&output), "");
}
