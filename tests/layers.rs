//! A root on overlayfs whose lower layer is a unified guest.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::bed::with_shell;
use crate::support::{Guests, Seen, chroot, feed, files, inode, program, removal, run, text};

/// Guests, and an overlay over the first.
struct Layers {
    guests: Guests,
    top: PathBuf,
    below: BTreeMap<PathBuf, (Seen, u32)>,
}

impl Layers {
    fn new(protected: bool, policy: &str) -> Layers {
        let guests = Guests::new("ext4", 10, protected);
        guests.own("pkg", &(0..10).step_by(2).map(|n| format!("/usr/bin/file-{n}")).collect::<Vec<_>>());
        guests.policy(policy);
        with_shell(
            &guests.first(),
            &["/bin/cat", "/bin/chmod", "/bin/ln", "/bin/mv", "/bin/rm", "/bin/touch"],
        );
        fs::copy(program("cow-run"), guests.first().join("cow-run")).unwrap();
        let at = |name: &str| guests.filesystem.path().join(name);
        for name in ["upper", "work", "top"] {
            fs::create_dir(at(name)).unwrap();
        }
        let layers = format!(
            "lowerdir={},upperdir={},workdir={}",
            guests.first().display(),
            at("upper").display(),
            at("work").display()
        );
        run(Command::new("mount").args(["-t", "overlay", "-o", &layers, "none"]).arg(at("top")));
        let (top, below) = (at("top"), lower(&guests));
        run(Command::new("mount").args(["-t", "proc", "none"]).arg(top.join("proc")));
        Layers { guests, top, below }
    }

    fn program(&self, name: &str) -> Command {
        chroot(&[], &self.top, name)
    }

    fn hook(&self) -> Output {
        feed(self.program("cow-dpkg").arg("apt-pre"), removal("pkg").as_bytes())
    }

    fn prepared(&self, arguments: &[&str]) -> serde_json::Value {
        let output = self.program("cow-prepare").arg("--json").args(arguments).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(&output)))
    }

    fn is_immutable(&self, path: &str) -> bool {
        inode(&self.top.join(path)).immutable
    }

    fn assert_untouched(&self) {
        assert_eq!(self.below, lower(&self.guests));
    }
}

impl Drop for Layers {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.top).status();
    }
}

fn lower(guests: &Guests) -> BTreeMap<PathBuf, (Seen, u32)> {
    let links = |path: &Path| inode(&guests.first().join(path)).nlink;
    files(&guests.first()).into_iter().map(|(path, seen)| (path.clone(), (seen, links(&path)))).collect()
}

#[test]
#[ignore = "needs root"]
fn privileged_what_a_lower_layer_shares_is_made_private_by_the_kernel() {
    let layers = Layers::new(true, "supervise = 'never'\n");
    let output = layers.hook();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert!(text(&output).starts_with("cow-hooks: 5 files made private ("), "{}", text(&output));
    assert!(!text(&output).contains("administrator"), "{}", text(&output));
    for number in (0..10).step_by(2) {
        assert!(!layers.is_immutable(&format!("usr/bin/file-{number}")), "{number}");
    }
    assert!(layers.is_immutable("usr/share/doc/file-1"));
    let again = layers.hook();
    assert_eq!((again.status.code(), text(&again).as_str()), (Some(0), ""));

    let report = layers.prepared(&["/usr"]);
    assert_eq!(report["detached"].as_array().unwrap().len(), 5, "{report}");
    assert!(!layers.is_immutable("usr/share/doc/file-1"));
    assert_eq!(layers.prepared(&["/usr"])["left"].as_array().unwrap().len(), 0);
    layers.assert_untouched();
}

#[test]
#[ignore = "needs root"]
fn privileged_plain_links_of_a_lower_layer_are_the_kernels() {
    let layers = Layers::new(false, "supervise = 'never'\n");
    let output = layers.hook();
    assert_eq!((output.status.code(), text(&output).as_str()), (Some(0), ""));
    let output = layers.program("cow-status").args(["--json", "/usr/bin/file-0"]).output().unwrap();
    assert!(text(&output).contains(r#""verdict":"layered""#), "{}", text(&output));
    let script = "echo more >>/usr/bin/file-0 && rm /usr/bin/file-2 && cat /usr/bin/file-0";
    let output = layers.program("cow-run").args(["-v", "sh", "-c", script]).output().unwrap();
    assert!(output.status.success() && text(&output).contains("\nmore\n"), "{}", text(&output));
    layers.assert_untouched();
}

#[test]
#[ignore = "needs root"]
fn privileged_copy_on_write_leaves_copies_to_the_kernel_in_layers() {
    let layers = Layers::new(true, "");
    let script = "set -e; cd /usr/bin
        rm file-0; test ! -e file-0
        echo new >new; mv -f new file-2; test \"$(cat file-2)\" = new
        mv file-4 moved; test -s moved
        ln file-6 linked; test linked -ef file-6
        echo more >>file-8
        cd ../share/doc
        chmod 600 file-1; touch file-3; mv -f file-5 file-7
        echo done";
    let begun = std::time::Instant::now();
    let output = layers.program("cow-run").args(["-v", "sh", "-c", script]).output().unwrap();
    assert!(output.status.success() && text(&output).contains("done\n"), "{}", text(&output));
    assert!(begun.elapsed() < std::time::Duration::from_secs(20), "{:?}", begun.elapsed());
    assert_eq!(inode(&layers.top.join("usr/share/doc/file-1")).mode, 0o600);
    assert!(!layers.is_immutable("usr/bin/moved") && !layers.is_immutable("usr/share/doc/file-7"));
    layers.assert_untouched();
}
