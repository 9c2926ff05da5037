//! Programs that do to files whatever can be done, on private files and on shared ones under cow-run: `cowops/cowops.c`.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Once;

use super::{Filesystem, install_libraries, litter, program, run, text};
use crate::support::pair::support;

/// How the program is built: what it is linked with, and for which machine.
pub const BUILDS: &[&str] =
    if cfg!(target_arch = "x86_64") { &["dynamic", "static", "i386"] } else { &["dynamic", "static"] };

/// The options that leave out what `COW_TESTS_WITHOUT` names, or else these: words of `cowops -x`.
pub fn left_out(otherwise: &str) -> Vec<String> {
    let without = std::env::var("COW_TESTS_WITHOUT").unwrap_or_else(|_| otherwise.into());
    without.split_whitespace().flat_map(|word| ["-x".into(), word.into()]).collect()
}

/// The program in one build; all are compiled when the first is wanted.
fn cowops(build: &str) -> PathBuf {
    static COMPILED: Once = Once::new();
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cowops");
    COMPILED.call_once(|| drop(run(support("cowops/build").arg(&directory))));
    directory.join(format!("cowops-{build}"))
}

/// What a sequence of commands is run on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Root {
    /// Where trees are private.
    Reference,
    /// Where they are links of pristine ones, and programs are run by cow-run.
    Guest,
    /// The same without cow-run.
    GuestAlone,
}

/// Two roots on a filesystem, alike but for what their trees share, and beside them the pristine trees: a neighbour's.
pub struct Field {
    filesystem: Filesystem,
    host: PathBuf,
}

impl Field {
    pub fn new(kind: &str, build: &str) -> Field {
        let field = Field { filesystem: Filesystem::new(kind, 3 << 10), host: cowops("static") };
        fs::create_dir(field.path("pristine")).unwrap();
        for root in [field.root(Root::Reference), field.root(Root::Guest)] {
            for directory in ["dev", "proc", "tmp", "trees", "var/lib"] {
                fs::create_dir_all(root.join(directory)).unwrap();
            }
            run(Command::new("mknod").args(["-m", "666"]).arg(root.join("dev/null")).args(["c", "1", "3"]));
            std::os::unix::fs::symlink("/proc/self/fd", root.join("dev/fd")).unwrap();
            fs::copy(cowops(build), root.join("cowops")).unwrap();
            install_libraries(&root, &cowops("dynamic"));
        }
        let guest = field.root(Root::Guest);
        fs::copy(program("cow-run"), guest.join("cow-run")).unwrap();
        install_libraries(&guest, Path::new(program("cow-run")));
        field
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.filesystem.path().join(name)
    }

    fn root(&self, root: Root) -> PathBuf {
        self.path(if root == Root::Reference { "reference" } else { "guest" })
    }

    /// The program, run outside of both.
    pub fn host(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.host);
        command.args(arguments).current_dir(self.filesystem.path());
        command
    }

    /// The program, run in a root with `tree` as its directory.
    pub fn output(&self, root: Root, tree: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=10", "600"]).arg(&self.host).arg("enter").arg(self.root(root));
        if root == Root::Guest {
            command.args(["/cow-run", "--"]);
        }
        command.args(["/cowops", "-C", tree]).args(arguments).stdin(Stdio::null()).output().unwrap()
    }

    /// Makes trees in the directory `name` of both roots' `trees`; those of the guest are links of `pristine/NAME`.
    pub fn plant(&self, name: &str, count: usize, options: &[&str]) -> Planted {
        for root in ["reference", "guest"] {
            fs::create_dir(self.path(root).join("trees").join(name)).unwrap();
        }
        let (count, pristine) = (&count.to_string(), &format!("pristine/{name}"));
        let (private, shared) = (&format!("reference/trees/{name}"), &format!("guest/trees/{name}"));
        run(self.host(options).args(["copies", count, private, "reference"]));
        run(self.host(options).args(["fixture", pristine]));
        run(self.host(options).args(["farm", pristine, count, shared, "guest"]));
        let before = text(&run(&mut self.host(&["sum", pristine])));
        Planted { name: name.into(), count: count.clone(), before }
    }

    /// Writes down what `cow-unify` would have seen: which names in these trees are hard links.
    pub fn note_pairs(&self, name: &str, count: usize) {
        let directory = self.root(Root::Guest).join("var/lib/cow-hooks");
        fs::create_dir(&directory).unwrap();
        let pair = |tree| format!("/trees/{name}/t{tree}/d/pair\0/trees/{name}/t{tree}/pair\0\0");
        fs::write(directory.join("links"), (0..count).map(pair).collect::<String>()).unwrap();
    }

    /// What is wrong with trees after programs have run, beside what these programs have told.
    pub fn wrong(&self, planted: &Planted, options: &[&str]) -> Vec<String> {
        let Planted { name, count, before } = planted;
        let mut found = Vec::new();
        let after = text(&run(&mut self.host(&["sum", &format!("pristine/{name}")])));
        if *before != after {
            found.push(format!("the neighbour's files have changed:\n{}", difference(before, &after)));
        }
        let check =
            self.host(&["check", &format!("pristine/{name}"), &format!("guest/trees/{name}")]).output();
        found.extend(complaint(&check.unwrap()));
        let dumps = ["reference", "guest"].map(|root| {
            let trees = format!("{root}/trees/{name}");
            text(&run(self.host(options).args(["dumps", count, &trees])))
        });
        if dumps[0] != dumps[1] {
            found.push(format!("the trees differ afterwards:\n{}", difference(&dumps[0], &dumps[1])));
        }
        found
    }

    /// What is no link any more though nothing has changed it.
    pub fn copied_without_need(&self, name: &str) -> Option<String> {
        let shared =
            self.host(&["shared", &format!("pristine/{name}"), &format!("guest/trees/{name}/t0")]).output();
        complaint(&shared.unwrap())
    }

    /// What is left in the guest beside its trees, which `wrong` looks through.
    pub fn litter(&self) -> Vec<PathBuf> {
        let guest = self.root(Root::Guest);
        let mut found = Vec::new();
        for entry in fs::read_dir(&guest).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("trees") {
                found.extend(litter(&path).into_iter().map(|below| path.join(below)));
            } else if path.file_name().unwrap().as_encoded_bytes().starts_with(b".cow-") {
                found.push(path);
            }
        }
        found
    }
}

/// Trees, and what the pristine one of them was like.
pub struct Planted {
    name: String,
    count: String,
    before: String,
}

fn complaint(output: &Output) -> Option<String> {
    (!output.status.success()).then(|| text(output).trim_end().to_owned())
}

/// The lines by which two texts differ.
pub fn difference(expected: &str, got: &str) -> String {
    const SHOWN: usize = 40;
    let file = |content: &str| {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content.as_bytes()).unwrap();
        file
    };
    let (expected, got) = (file(expected), file(got));
    let compared =
        Command::new("diff").args(["-a", "-U1"]).arg(expected.path()).arg(got.path()).output().unwrap();
    let told = text(&compared);
    let lines: Vec<&str> = told.lines().skip(2).collect();
    let shown: String = lines.iter().take(SHOWN).map(|line| format!("    {line}\n")).collect();
    let more = lines.len().saturating_sub(SHOWN);
    if more > 0 { format!("{shown}    ... and {more} more lines\n") } else { shown }
}
