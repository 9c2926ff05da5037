//! Who takes cow-hooks out of a guest, or cow-unify off a host, is told what stays shared.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::text;
use crate::support::tiny::{Package, Tiny};

#[test]
#[ignore = "needs root"]
fn privileged_who_takes_the_hooks_out_of_a_guest_is_told_what_stays_shared() {
    let tiny = Tiny::new();
    let files: [(&[&str], &str); 2] = [(&["usr/share/one"], "one\n"), (&["usr/share/two"], "two\n")];
    tiny.both(&format!("dpkg -i {}", tiny.deb(1, Package { name: "kept", files: &files, postinst: None })));
    assert_eq!(tiny.succeed("/usr/libexec/cow-hooks/cow-dpkg retire"), "");
    tiny.unify(&[]);
    assert!(tiny.shared("usr/share/one"));
    let said = tiny.succeed("/usr/libexec/cow-hooks/cow-dpkg retire");
    assert!(said.contains(": 2 files below /usr stay shared with other guests, and immutable"), "{said}");
    assert!(said.contains("cow-unify detach"), "{said}");
}

#[test]
fn who_takes_cow_unify_off_a_host_is_told_of_the_pools_that_stay() {
    let host = tempfile::tempdir().unwrap();
    let path = |name: &str| host.path().join(name);
    for pool in ["guests/.cow-pool", "other pool", "empty"] {
        fs::create_dir_all(path(pool).join("objects/00")).unwrap();
        fs::write(path(pool).join("pool.toml"), "").unwrap();
        fs::write(path(pool).join("objects/00/unused"), "").unwrap();
    }
    fs::create_dir_all(path("guests/g1")).unwrap();
    // Under the guard an object has two names in the pool.
    for (object, names) in [
        (
            "guests/.cow-pool/objects/00/a",
            &["guests/.cow-pool/objects/00/a.second", "guests/g1/a", "guests/g1/b"][..],
        ),
        ("other pool/objects/00/b", &["guests/g1/c"][..]),
    ] {
        fs::write(path(object), "").unwrap();
        names.iter().for_each(|name| fs::hard_link(path(object), path(name)).unwrap());
    }
    let list: String =
        ["other pool", "empty", "gone"].iter().map(|pool| format!("{}\0", path(pool).display())).collect();
    fs::write(path("pools"), list).unwrap();
    fs::write(path("default"), format!("# GUESTS=no\nGUESTS=\"{}/guests/*\"\n", host.path().display()))
        .unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/tell-of-pools");
    let told = |state: &Path| {
        let mut command = Command::new("sh");
        let output =
            command.arg(&script).env("STATE", state).env("DEFAULTS", path("default")).output().unwrap();
        assert!(output.status.success());
        text(&output)
    };
    let said = told(host.path());
    assert!(
        said.contains(
            "/guests/.cow-pool stays; names of its files in guests, which keep their protection: 2\n"
        ),
        "{said}"
    );
    assert!(said.contains("/other pool stays; ") && said.contains("protection: 1\n"), "{said}");
    assert_eq!(said.matches(" stays; ").count(), 2, "{said}");
    // Neither a list nor a configuration is no trouble.
    fs::remove_file(path("default")).unwrap();
    assert_eq!(told(Path::new("/nowhere")), "");
}
