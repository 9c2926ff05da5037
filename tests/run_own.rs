//! What the administrator has made immutable stays as it is under supervision, if all of its names are in the guest.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use super::support::tiny::{Package, Tiny};
use super::support::{inode, seen, set_immutable, text};

const OWN: [&str; 2] = ["usr/bin/own", "usr/share/other"];

const TOOL: (&[&str], &str) = (&["usr/bin/tool"], "a tool of both guests");

/// Guests that share `usr/bin/tool`, of which the first has an immutable file with two names of the same package.
fn guests() -> Tiny {
    let tiny = Tiny::new();
    let deb =
        tiny.deb(1, Package { name: "tool", files: &[TOOL, (&OWN, "the administrator's")], postinst: None });
    tiny.both(&format!("dpkg -i {deb}"));
    set_immutable(&tiny.path("g1").join(OWN[0]), true);
    tiny.unify(&[]);
    assert!(tiny.shared("usr/bin/tool") && !tiny.shared(OWN[0]));
    tiny.policy("supervise = 'always'\n");
    // What has changed just now may still get names.
    std::thread::sleep(Duration::from_millis(2100));
    tiny
}

/// Asserts that `work` leaves content, flag and both names.
fn keeps_own(tiny: &Tiny, work: impl FnOnce()) {
    let paths = OWN.map(|name| tiny.path("g1").join(name));
    let before = (seen(&paths[0]), inode(&paths[0]));
    work();
    let after = (seen(&paths[0]), inode(&paths[0]));
    assert_eq!((before.0, before.1.id, 2), (after.0, after.1.id, after.1.nlink));
    assert_eq!(fs::metadata(&paths[1]).unwrap().ino(), after.1.id.ino);
    assert!(after.1.immutable);
}

#[test]
#[ignore = "needs root"]
fn privileged_cow_run_changes_no_immutable_file_that_has_all_names_in_the_guest() {
    let tiny = guests();
    let [own, other] = OWN;
    let attacks = [
        format!("echo x >>/{own}"),
        format!("echo x >/{own}"),
        format!("rm -f /{own}"),
        format!("echo x >/tmp/new; mv -f /tmp/new /{own}"),
        format!("mv -f /{own} /{other}.moved"),
        format!("ln /{own} /tmp/third"),
        format!("chattr +d /{own}"),
        format!("cp /bin/cat /{other}"),
        format!("ln -f /bin/cat /{other}"),
    ];
    for attack in &attacks {
        keeps_own(&tiny, || {
            let output = tiny.run(&format!("cow-run sh -c '{attack}'"));
            assert!(!output.status.success(), "{attack}");
        });
    }
    println!("{} attacks", attacks.len());
    // What is shared is served as ever.
    tiny.succeed("cow-run sh -c 'echo x >>/usr/bin/tool; chattr -i /usr/bin/own && rm /usr/bin/own'");
    assert!(!tiny.shared("usr/bin/tool"));
}

#[test]
#[ignore = "needs root"]
fn privileged_dpkg_changes_no_immutable_file_that_has_all_names_in_the_guest() {
    let tiny = guests();
    let files: &[(&[&str], &str)] = &[(TOOL.0, "another tool"), (&OWN, "the second version")];
    let deb = tiny.deb(2, Package { name: "tool", files, postinst: None });
    for line in [format!("dpkg -i {deb}"), "dpkg -r tool".into(), format!("dpkg -i {deb}")] {
        keeps_own(&tiny, || {
            let output = text(&tiny.run(&line));
            assert!(output.contains("not permitted"), "{line}: {output}");
        });
        assert_eq!(tiny.read("g2/usr/bin/tool"), TOOL.1);
    }
}
