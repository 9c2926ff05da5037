//! A real dpkg that is told of roots and databases in every way it takes: what it changes is made private first, or it
//! is refused. Tiny packages, in a root of their own.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::bed::with_shell;
use crate::support::{
    Filesystem, Seen, chroot, inode, install_libraries, litter, program, run, seen, set_immutable, text,
};

/// The package's set-id program: without a private copy dpkg makes the neighbour's 0600.
const PROGRAM: &str = "usr/bin/program";

/// A root with dpkg and our hooks, and neighbours' names of the files that are unified.
struct Place {
    filesystem: Filesystem,
    protected: bool,
}

impl Place {
    fn new(protected: bool) -> Place {
        let place = Place { filesystem: Filesystem::new("ext4", 192), protected };
        let root = place.filesystem.path().join("pristine");
        let programs = ["dpkg", "dpkg-deb", "dpkg-split", "tar", "rm", "test", "mkdir", "ln", "mv"];
        with_shell(&root, &programs.map(|name| format!("/usr/bin/{name}")).each_ref().map(String::as_str));
        for dir in ["usr/libexec/cow-hooks", "etc/dpkg/dpkg.cfg.d", "tmp", "dev", "root", "sub"] {
            fs::create_dir_all(root.join(dir)).unwrap();
        }
        symlink("../bin", root.join("usr/bin")).unwrap();
        fs::write(root.join("dev/null"), "").unwrap();
        symlink("/srv/db", root.join("link")).unwrap();
        // dpkg wants to know of them, and calls none.
        for name in ["ldconfig", "start-stop-daemon", "diff"] {
            fs::copy(root.join("bin/test"), root.join("bin").join(name)).unwrap();
        }
        let program = program("cow-dpkg");
        fs::copy(program, root.join("usr/libexec/cow-hooks/cow-dpkg")).unwrap();
        install_libraries(&root, Path::new(program));
        let hooks = Path::new(env!("CARGO_MANIFEST_DIR")).join("hooks/dpkg/dpkg.cfg");
        fs::copy(hooks, root.join("etc/dpkg/dpkg.cfg.d/cow-hooks")).unwrap();
        fs::write(root.join("etc/dpkg/dpkg.cfg"), "force-unsafe-io\n").unwrap();
        for version in [1, 2] {
            archive(&root.join(format!("root/cow_{version}.deb")), version);
        }
        place.renew();
        place
    }

    /// Makes the root what it was.
    fn renew(&self) {
        if self.neighbour().exists() {
            set_immutable(&self.neighbour(), false);
            fs::remove_file(self.neighbour()).unwrap();
            fs::remove_dir_all(self.root()).unwrap();
        }
        run(Command::new("cp").arg("-a").arg(self.filesystem.path().join("pristine")).arg(self.root()));
        assert!(self.shell("DB /var/lib/dpkg").status.success());
    }

    fn root(&self) -> PathBuf {
        self.filesystem.path().join("root")
    }

    /// A line of shell in the root, at `/root`. `DB` makes a directory an empty database.
    fn shell(&self, line: &str) -> Output {
        let begin = "export PATH=/bin HOME=/root; cd /root; \
                     DB() { mkdir -p $1/updates $1/info $1/triggers; : >$1/status; }; ";
        let script = format!("{begin}{line}");
        let output = chroot(&[], &self.root(), "bin/sh").args(["-c", &script]).output().unwrap();
        println!("$ {line}\n{}", text(&output));
        output
    }

    /// Installs version 1 without hooks, makes a neighbour share the program installed in `top`, and installs version 2.
    #[track_caller]
    fn upgrade(&self, prepare: &str, dpkg: &str, top: &str, after: &str) -> (Output, Seen) {
        let shared = self.installed(prepare, dpkg, top);
        let output = self.shell(&format!("{after}\n{dpkg} -i cow_2.deb"));
        (output, shared)
    }

    #[track_caller]
    fn installed(&self, prepare: &str, dpkg: &str, top: &str) -> Seen {
        let output = self.shell(&format!("{prepare}\nCOW_HOOKS=off {dpkg} -i cow_1.deb"));
        assert!(output.status.success(), "{}", text(&output));
        self.share(&self.root().join(top).join(PROGRAM))
    }

    fn neighbour(&self) -> PathBuf {
        self.filesystem.path().join("neighbour")
    }

    fn share(&self, path: &Path) -> Seen {
        fs::hard_link(path, self.neighbour()).unwrap();
        set_immutable(&self.neighbour(), self.protected);
        seen(&self.neighbour())
    }

    #[track_caller]
    fn assert_untouched(&self, shared: &Seen, what: &str) {
        assert_eq!(&seen(&self.neighbour()), shared, "{what}");
        assert_eq!(litter(&self.root()), Vec::<PathBuf>::new(), "{what}");
    }
}

/// A package with a set-id program and a file.
fn archive(path: &Path, version: u32) {
    let tree = tempfile::tempdir().unwrap();
    let put = |name: &str, content: String, mode| {
        let path = tree.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    };
    fs::set_permissions(tree.path(), fs::Permissions::from_mode(0o755)).unwrap();
    put(PROGRAM, format!("program {version}\n"), 0o4755);
    put("usr/share/cow/data", format!("data {version}\n"), 0o644);
    let control = format!(
        "Package: cow\nVersion: {version}\nArchitecture: all\nMaintainer: Nobody <nobody@example.org>\nDescription: x\n"
    );
    put("DEBIAN/control", control, 0o644);
    let build = ["--root-owner-group", "-Zgzip", "--build"];
    run(Command::new("dpkg-deb").args(build).arg(tree.path()).arg(path));
}

/// Words for dpkg, what makes them mean something, the root they mean, and what comes before the upgrade.
const SPELLINGS: [(&str, &str, &str, &str); 14] = [
    ("dpkg", "", "", "rm /var/lib/dpkg/status"),
    ("dpkg", "", "", "rm -r /var/lib/dpkg; mkdir -p /var/lib/dpkg/updates /var/lib/dpkg/info"),
    ("dpkg --admindir=db", "DB db", "", ""),
    ("dpkg --admindir=../root/./db", "DB db", "", ""),
    ("dpkg --admindir=/link", "DB /srv/db", "", ""),
    ("dpkg --instdir=/sub --admindir=/srv/db", "DB /srv/db", "sub", ""),
    ("dpkg --instdir=/sub --admindir=/var/lib/dpkg", "DB /sub/var/lib/dpkg", "sub", ""),
    ("dpkg --instdir=/sub/../sub --admindir=../sub/var/lib/dpkg", "DB /sub/var/lib/dpkg", "sub", ""),
    ("dpkg --root=../sub", "DB /sub/var/lib/dpkg", "sub", ""),
    ("dpkg --instdir=/nowhere --admindir=/nowhere --root=/sub", "DB /sub/var/lib/dpkg", "sub", ""),
    ("dpkg --root=/sub --admindir=../srv/db", "DB /srv/db", "sub", ""),
    ("DPKG_ROOT=/sub DPKG_ADMINDIR=../srv/db dpkg", "DB /srv/db", "sub", ""),
    ("DPKG_ADMINDIR=/srv/db dpkg", "DB /srv/db", "", ""),
    (
        "dpkg",
        "DB /srv/db; echo admindir=/srv/db >/etc/dpkg/dpkg.cfg.d/root; echo instdir /sub >/root/.dpkg.cfg",
        "sub",
        "",
    ),
];

#[test]
#[ignore = "needs root"]
fn privileged_dpkg_finds_its_root_and_its_database_and_so_do_we() {
    for protected in [true, false] {
        let place = Place::new(protected);
        for (dpkg, setup, top, after) in SPELLINGS {
            place.renew();
            let what = format!("{dpkg} ({setup}; {after}), protected {protected}");
            let (output, shared) = place.upgrade(setup, dpkg, top, after);
            assert!(output.status.success(), "{what}: {}", text(&output));
            let program = place.root().join(top).join(PROGRAM);
            assert_eq!(fs::read(&program).unwrap(), b"program 2\n", "{what}");
            assert_eq!(inode(&program).mode, 0o4755, "{what}");
            place.assert_untouched(&shared, &what);
        }
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_dpkg_is_refused_where_it_would_change_what_is_out_of_reach() {
    let place = Place::new(true);
    // What is unified; how dpkg gets there, and what is said.
    let cases = [
        (
            "srv/db/info/cow.list",
            "dpkg --instdir=/sub --admindir=/srv/db",
            "DB /srv/db",
            "",
            "dpkg's database",
        ),
        (
            "opt/data",
            "dpkg --root=/sub",
            "DB /sub/var/lib/dpkg; mkdir -p /opt /sub/usr/share; ln -s /opt /sub/usr/share/cow",
            "",
            "a symbolic link leads dpkg out of its root",
        ),
        (
            "bin/program",
            "dpkg",
            "",
            "rm /var/lib/dpkg/status; mkdir /var/lib/dpkg/status",
            "/var/lib/dpkg/status",
        ),
        (
            "bin/program",
            "dpkg --admindir=db",
            "DB db",
            "mkdir x; cd x; mv ../db .; rm -r ../x",
            "working directory",
        ),
    ];
    for (unified, dpkg, setup, after, reason) in cases {
        place.renew();
        let output = place.shell(&format!("{setup}\nCOW_HOOKS=off {dpkg} -i cow_1.deb"));
        assert!(output.status.success(), "{}", text(&output));
        let shared = place.share(&place.root().join(unified));
        let output = place.shell(&format!("{after}\n{dpkg} -i /root/cow_2.deb"));
        let said = text(&output);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(
            said.contains("refused, before dpkg has touched anything") && said.contains(reason),
            "{said}"
        );
        assert!(said.contains("remedy: ") && !said.contains("Unpacking"), "{said}");
        place.assert_untouched(&shared, dpkg);
    }
}
