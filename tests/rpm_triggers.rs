//! rpm without the plugin: the file triggers of the package alone, in real guests.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use crate::support::pair::{Pair, Scope, ours, support};
use crate::support::{built, run, same_inode, text};

const RPMS: &str = "/root/rpms";

/// Two guests that share everything, a file that no package owns among it; the first one has the triggers.
fn pair() -> Pair {
    static IMAGE: OnceLock<fs::File> = OnceLock::new();
    Pair::copy_of("rpm-guests", &IMAGE, |pair| {
        for guest in ["g1", "g2"] {
            run(support("rpm-guests").arg("restore").arg(pair.path(guest)));
            run(support("rpms").arg(pair.path(guest).join(&RPMS[1..])));
            let line = format!(
                "rm {RPMS}/cow-system*; rpm -i {RPMS}/*-1.rpm && rpm -e --justdb cow-taken cow-eaten"
            );
            run(&mut pair.command_in(guest, &line));
        }
        pair.unify_in(Scope::Wide);
        install_triggers(pair);
    })
}

/// Puts our program and a package that has nothing but the triggers of the real one into the first guest.
fn install_triggers(pair: &Pair) {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let spec = fs::read_to_string(top.join("packaging/rpm/cow-hooks.spec")).unwrap();
    let triggers = &spec[spec.find("%transfiletriggerun").unwrap()..spec.find("%preun").unwrap()];
    let spec = format!(
        "Name: cow-triggered\nVersion: 1\nRelease: 1\nSummary: x\nLicense: x\n%description\n%install\n{triggers}\n%files\n"
    );
    let work = tempfile::tempdir().unwrap();
    fs::create_dir(work.path().join("root")).unwrap();
    run(Command::new("python3")
        .args(["-B", "-c", "import sys; from rpmbuild import build; build(*sys.argv[1:])", &spec])
        .args([&work.path().join("root"), work.path(), &pair.path("g1/root")])
        .env("PYTHONPATH", top.join("tests/support")));
    let programs = built("");
    run(Command::new(top.join("packaging/install"))
        .env("PROGRAMS", programs)
        .arg(pair.path("g1"))
        .arg("cow-hooks"));
    pair.succeed("rpm -i /root/cow-triggered-1-1.x86_64.rpm");
}

/// Whether the first two guests share this file.
fn shared(pair: &Pair, path: &str) -> bool {
    let [g1, g2] = ["g1", "g2"].map(|guest| pair.path(guest).join(path));
    same_inode(&g1, &g2)
}

#[test]
#[ignore = "needs root"]
fn privileged_packages_take_over_what_nobody_owned() {
    let pair = pair();
    // Version 1 is replaced, and what was another package's is taken over. Relative to where rpm is, among options.
    let taken = "usr/share/cow-taken/taken";
    assert!(shared(&pair, taken));
    pair.watch(|| {
        let said = pair.succeed(&format!("cd {RPMS} && rpm --define '_x 1' -Uvh ../rpms/cow-taker-2.rpm"));
        assert!(!said.contains("not permitted"), "{said}");
    });
    assert!(pair.succeed(&format!("cat /{taken}")).ends_with(&format!("/{taken} 2\n")));
    // Where nothing is replaced, rpm calls no trigger before it has failed.
    let eaten = "usr/share/cow-eaten/x";
    let output = pair.run(&format!("rpm -i {RPMS}/cow-eater-2.rpm"));
    assert!(!output.status.success() && shared(&pair, eaten), "{}", text(&output));
    // rpm itself knows what this pattern means.
    let said = pair.succeed(&format!(
        "cp {RPMS}/cow-taker-2.rpm /root/a-b.rpm; rpm -U --force '/root/a?b.rpm' {RPMS}/cow-same-2.rpm"
    ));
    let named = "cow-hooks: warning: /root/a?b.rpm: No such file or directory; ";
    assert!(ours(&said).iter().any(|line| line.starts_with(named)), "{said}");
}
