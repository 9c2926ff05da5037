//! Two guests of a few megabytes each, with the dpkg and the rpm of this machine and our programs, on a filesystem of their own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use cow_hooks::sys::file::inode::Time;

use super::bed::with_shell;
use super::{Filesystem, built, ended, install_libraries, program, run, same_inode, set_mtime, text};

/// When every file of a package was modified.
const MODIFIED: Time = Time { secs: 1_600_000_000, nanos: 0 };

const PROGRAMS: [&str; 15] = [
    "/usr/bin/dpkg",
    "/usr/bin/dpkg-deb",
    "/usr/bin/dpkg-query",
    "/usr/bin/dpkg-split",
    "/usr/bin/dpkg-trigger",
    "/bin/tar",
    "/bin/rm",
    "/bin/ln",
    "/bin/mv",
    "/bin/cp",
    "/bin/cat",
    "/bin/mkdir",
    "/bin/sleep",
    "/usr/bin/diff",
    "/usr/bin/chattr",
];

/// The guests, called `g1` and `g2`.
pub struct Tiny {
    pub filesystem: Filesystem,
}

/// A package to be made.
#[derive(Clone, Copy, Default)]
pub struct Package<'a> {
    pub name: &'a str,
    /// Each file, by its names, with what is in it.
    pub files: &'a [(&'a [&'a str], &'a str)],
    /// dpkg's alone.
    pub postinst: Option<&'a str>,
}

impl Tiny {
    pub fn new() -> Tiny {
        Tiny::on("ext4", 768)
    }

    pub fn on(kind: &str, megabytes: u64) -> Tiny {
        let tiny = Tiny { filesystem: Filesystem::new(kind, megabytes) };
        let first = tiny.path("g1");
        for dir in [
            "var/lib/dpkg/info",
            "var/lib/dpkg/updates",
            "usr/libexec/cow-hooks",
            "etc/dpkg/dpkg.cfg.d",
            "tmp",
        ] {
            fs::create_dir_all(first.join(dir)).unwrap();
        }
        fs::write(first.join("var/lib/dpkg/status"), "").unwrap();
        with_shell(&first, &PROGRAMS);
        // dpkg insists on them.
        for name in ["ldconfig", "start-stop-daemon"] {
            fs::write(first.join("bin").join(name), "#!/bin/sh\n").unwrap();
            fs::set_permissions(first.join("bin").join(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
        for (name, dir) in [
            ("cow-dpkg", "usr/libexec/cow-hooks"),
            ("cow-rpm", "usr/libexec/cow-hooks"),
            ("cow-run", "bin"),
            ("cow-prepare", "bin"),
            ("cow-status", "bin"),
        ] {
            fs::copy(program(name), first.join(dir).join(name)).unwrap();
        }
        install_libraries(&first, &built("cow-hooks"));
        let configuration = Path::new(env!("CARGO_MANIFEST_DIR")).join("hooks/dpkg/dpkg.cfg");
        fs::copy(configuration, first.join("etc/dpkg/dpkg.cfg.d/cow-hooks")).unwrap();
        fs::create_dir_all(first.join("etc/cow-hooks/conf.d")).unwrap();
        fs::create_dir_all(first.join("var/lib/cow-hooks")).unwrap();
        fs::create_dir(first.join("dev")).unwrap();
        run(Command::new("mknod").arg(first.join("dev/null")).args(["c", "1", "3"]));
        run(Command::new("cp").arg("-a").arg(&first).arg(tiny.path("g2")));
        tiny
    }

    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.filesystem.path().join(path)
    }

    /// Sets the policy of the first guest.
    pub fn policy(&self, text: &str) {
        fs::write(self.path("g1/etc/cow-hooks/conf.d/test.toml"), text).unwrap();
    }

    fn lay_out(&self, tree: &Path, files: &[(&[&str], &str)]) {
        for (names, content) in files {
            let first = tree.join(names[0]);
            for name in *names {
                fs::create_dir_all(tree.join(name).parent().unwrap()).unwrap();
            }
            fs::write(&first, content).unwrap();
            set_mtime(&first, MODIFIED);
            names[1..].iter().for_each(|name| fs::hard_link(&first, tree.join(name)).unwrap());
        }
    }

    /// Makes a package, for both guests.
    pub fn deb(&self, version: u32, deb: Package<'_>) -> String {
        let tree = self.path("tree");
        self.lay_out(&tree, deb.files);
        let control = tree.join("DEBIAN");
        fs::create_dir_all(&control).unwrap();
        let fields = format!(
            "Package: {}\nVersion: {version}\nArchitecture: all\nMaintainer: x\nDescription: x\n",
            deb.name
        );
        fs::write(control.join("control"), fields).unwrap();
        if let Some(script) = deb.postinst {
            fs::write(control.join("postinst"), format!("#!/bin/sh\nset -e\n{script}\n")).unwrap();
            fs::set_permissions(control.join("postinst"), fs::Permissions::from_mode(0o755)).unwrap();
        }
        let file = format!("/{}_{version}.deb", deb.name);
        let path = self.path(format!("g1{file}"));
        run(Command::new("dpkg-deb").args(["--root-owner-group", "-Znone", "-b"]).arg(&tree).arg(&path));
        fs::copy(&path, self.path(format!("g2{file}"))).unwrap();
        fs::remove_dir_all(&tree).unwrap();
        file
    }

    /// Puts the rpm of this machine and our plugin into both guests.
    pub fn add_rpm(&self) {
        let first = self.path("g1");
        let plugin = crate::rpm::plugin();
        with_shell(&first, &["/usr/bin/rpm"]);
        install_libraries(&first, &plugin);
        fs::create_dir_all(first.join("usr/lib")).unwrap();
        run(Command::new("cp").args(["-a", "/usr/lib/rpm"]).arg(first.join("usr/lib")));
        fs::create_dir_all(first.join("usr/lib/rpm/plugins")).unwrap();
        fs::copy(plugin, first.join("usr/lib/rpm/plugins/cowhooks.so")).unwrap();
        let macros = "%_dbpath /var/lib/rpm\n%__plugindir /usr/lib/rpm/plugins\n\
                      %__transaction_cowhooks %{__plugindir}/cowhooks.so\n";
        fs::write(first.join("usr/lib/rpm/macros.d/macros.tests"), macros).unwrap();
        fs::create_dir_all(first.join("var/lib/rpm")).unwrap();
        run(Command::new("cp").args(["-a", "--update"]).arg(first.join(".")).arg(self.path("g2")));
    }

    /// Makes the same package for rpm.
    pub fn rpm(&self, version: u32, package: Package<'_>) -> String {
        let (tree, work) = (self.path("tree"), self.path("work"));
        self.lay_out(&tree, package.files);
        fs::create_dir_all(&work).unwrap();
        let names = package.files.iter().flat_map(|(names, _)| names.iter());
        let listed: String = names.map(|name| format!("/{name}\n")).collect();
        let name = package.name;
        let spec = format!(
            "Name: {name}\nVersion: {version}\nRelease: 1\nSummary: x\nLicense: x\nAutoReqProv: no\n%description\n\
             %files\n%defattr(-,root,root)\n{listed}"
        );
        fs::write(work.join("spec"), spec).unwrap();
        let file = format!("/{name}-{version}.rpm");
        let mut command = Command::new("rpmbuild");
        command
            .args(["-bb", "--quiet", "--nodeps", "--noclean", "--target", "x86_64", "--buildroot"])
            .arg(&tree);
        let work_dir = work.display().to_string();
        for (key, value) in [
            ("debug_package", "%{nil}"),
            ("_build_id_links", "none"),
            ("__spec_install_pre", ":"),
            ("__spec_install_post", "%{nil}"),
            ("__check_files", "%{nil}"),
            ("_topdir", &work_dir),
            ("_builddir", &work_dir),
            ("_rpmdir", &work_dir),
            ("_rpmfilename", "built.rpm"),
            ("_dbpath", &format!("{work_dir}/rpmdb")),
        ] {
            command.args(["--define", &format!("{key} {value}")]);
        }
        run(command.arg(work.join("spec")));
        for guest in ["g1", "g2"] {
            fs::copy(work.join("built.rpm"), self.path(guest).join(&file[1..])).unwrap();
        }
        fs::remove_dir_all(&tree).unwrap();
        fs::remove_dir_all(&work).unwrap();
        file
    }

    /// A line of shell in a guest, which has a process table of its own.
    pub fn command(&self, guest: &str, line: &str) -> Command {
        let root = self.path(guest);
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child"]);
        command.arg(format!("--mount-proc={}", root.join("proc").display()));
        command.arg("chroot").arg(root).args(["/bin/sh", "-c", line]).stdin(Stdio::null());
        command.env("PATH", "/bin:/usr/bin:/sbin:/usr/sbin");
        command
    }

    /// What a line comes to in the first guest.
    pub fn run(&self, line: &str) -> Output {
        let output = self.command("g1", line).output().unwrap();
        println!("g1$ {line}\n{}", text(&output));
        output
    }

    #[track_caller]
    pub fn succeed(&self, line: &str) -> String {
        ended(&self.run(line), 0, line)
    }

    /// Runs a line in both guests.
    pub fn both(&self, line: &str) {
        self.succeed(line);
        run(&mut self.command("g2", line));
    }

    /// `cow-unify` of both guests, with these options.
    pub fn unify(&self, more: &[&str]) -> String {
        // What has only just changed is left for the next run.
        std::thread::sleep(std::time::Duration::from_millis(30));
        let mut command = Command::new(env!("CARGO_BIN_EXE_cow-unify"));
        command.current_dir(self.filesystem.path()).args(more).args(["g1", "g2"]);
        text(&run(&mut command))
    }

    /// Whether the guests share the file of this name.
    pub fn shared(&self, name: &str) -> bool {
        same_inode(&self.path("g1").join(name), &self.path("g2").join(name))
    }

    /// Whether two names of the first guest are of one inode.
    pub fn one(&self, name: &str, other: &str) -> bool {
        same_inode(&self.path("g1").join(name), &self.path("g1").join(other))
    }

    /// What the first guest knows of its hard links: the names of each file, sorted.
    pub fn links(&self) -> Vec<Vec<String>> {
        let content = fs::read_to_string(self.path("g1/var/lib/cow-hooks/links")).unwrap_or_default();
        let groups = content.trim_start_matches('\0').split("\0\0").filter(|group| !group.is_empty());
        groups
            .map(|group| group.split('\0').filter(|name| !name.is_empty()).map(str::to_owned).collect())
            .collect()
    }

    /// What is left of a run in the first guest: files in the stash, entries in the ledger.
    pub fn left(&self) -> (usize, i64) {
        let state = self.path("g1/var/lib/cow-hooks");
        let stash = fs::read_dir(state.join("stash")).map_or(0, Iterator::count);
        let ledger = state.join("ledger.db");
        let entries = if ledger.exists() {
            let ledger = rusqlite::Connection::open(ledger).unwrap();
            ledger.query_row("SELECT count(*) FROM entry", [], |row| row.get(0)).unwrap()
        } else {
            0
        };
        (stash, entries)
    }

    /// The content of a file.
    pub fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap()
    }
}
