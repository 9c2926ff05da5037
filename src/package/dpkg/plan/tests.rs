use super::*;
use crate::package::testing::{Guest, Source};

fn remove(name: &str) -> Change {
    Change::Remove(PackageSpec { name: name.into(), arch: None })
}

fn plan(guest: &Guest, changes: &[Change]) -> Plan {
    let root = guest.root();
    let plan = Plan::new(&guest.database(&root), changes).unwrap();
    assert!(plan.paths.is_sorted_by(|a, b| a.as_os_str() < b.as_os_str()), "{:?}", plan.paths);
    plan
}

/// The plan of unpacking one archive.
fn unpack(guest: &Guest, source: &Source) -> Plan {
    let archive = guest.path("/new.deb");
    source.build(&archive, &[]);
    let plan = plan(guest, &[Change::Unpack(archive)]);
    assert!(plan.warnings.is_empty(), "{:?}", plan.warnings);
    plan
}

#[track_caller]
fn assert_has(paths: &[PathBuf], expected: &[&str]) {
    for path in expected {
        assert!(paths.iter().any(|each| each == Path::new(path)), "no {path} in {paths:?}");
    }
}

#[track_caller]
fn assert_lacks(paths: &[PathBuf], unexpected: &[&str]) {
    for path in unexpected {
        assert!(!paths.iter().any(|each| each == Path::new(path)), "{path} in {paths:?}");
    }
}

fn ids(plan: &Plan) -> Vec<String> {
    plan.packages.iter().map(PackageId::to_string).collect()
}

#[test]
fn no_change_touches_nothing() {
    let guest = Guest::new();
    guest.write("/var/lib/dpkg/statoverride", b"root root 755 /usr/bin/x\n");
    assert!(plan(&guest, &[]).paths.is_empty());
}

#[test]
fn an_upgrade_touches_old_and_new_files() {
    let guest = Guest::new();
    guest.install(
        "tool",
        "amd64",
        "Conffiles:\n /etc/tool 00",
        &["/usr", "/usr/bin", "/usr/bin/old", "/etc/tool"],
    );
    guest.install("other", "amd64", "", &["/usr/bin/other"]);
    let source = Source::new("tool", "amd64", "");
    source.write("usr/bin/new", b"x");
    source.write("etc/tool2", b"x");
    source.write("DEBIAN/conffiles", b"/etc/tool2\n");
    let plan = unpack(&guest, &source.with_md5sums());
    assert_has(
        &plan.paths,
        &["/usr/bin/old", "/usr/bin/old.dpkg-tmp", "/usr/bin/new", "/usr/bin/new.dpkg-new"],
    );
    assert_has(
        &plan.paths,
        &["/etc/tool", "/etc/tool.dpkg-old", "/etc/tool~", "/etc/#tool#", "/etc/tool.ucf-dist"],
    );
    assert_has(&plan.paths, &["/etc/tool2", "/etc/tool2.dpkg-dist", "/var/lib/dpkg/info/tool.list"]);
    assert_lacks(&plan.paths, &["/usr/bin/other", "/usr/bin/new~", "/var/lib/dpkg/info/other.list"]);
    assert_eq!(plan.non_directories, ["/etc/tool2", "/usr/bin/new"].map(Path::new));
    assert_eq!(ids(&plan), ["tool:amd64"]);
    assert!(plan.trees.is_empty());
}

#[test]
fn without_md5sums_the_payload_is_read() {
    let guest = Guest::new();
    let source = Source::new("tool", "all", "");
    source.write("usr/bin/new", b"x");
    std::fs::create_dir(source.path("usr/lib")).unwrap();
    std::os::unix::fs::symlink("new", source.path("usr/bin/link")).unwrap();
    let plan = unpack(&guest, &source);
    assert_eq!(plan.non_directories, ["/usr/bin/link", "/usr/bin/new"].map(Path::new));
}

#[test]
fn a_removed_package_takes_its_files_and_a_purged_one_its_configuration() {
    let guest = Guest::new();
    guest.install("tool", "all", "Conffiles:\n /etc/a 00 obsolete\n /etc/b 00", &["/usr/bin/tool"]);
    let plan = plan(&guest, &[remove("tool"), remove("unknown")]);
    assert_has(&plan.paths, &["/usr/bin/tool", "/etc/a", "/etc/b.dpkg-dist"]);
    assert!(plan.non_directories.is_empty() && plan.warnings.is_empty());
    assert_eq!(ids(&plan), ["tool:all"]);
}

#[test]
fn an_architecture_that_is_not_installed_stands_for_all() {
    let guest = Guest::new();
    guest.install("lib", "amd64", "Multi-Arch: same", &["/usr/lib/64"]);
    guest.install("lib", "i386", "Multi-Arch: same", &["/usr/lib/32"]);
    let configure = |arch: &str| {
        plan(&guest, &[Change::Configure(PackageSpec { name: "lib".into(), arch: Some(arch.into()) })]).paths
    };
    assert_has(&configure("i386"), &["/usr/lib/32", "/var/lib/dpkg/info/lib:i386.list"]);
    assert_lacks(&configure("i386"), &["/usr/lib/64", "/var/lib/dpkg/info/lib:amd64.list"]);
    assert_has(&configure("all"), &["/usr/lib/32", "/usr/lib/64"]);
}

#[test]
fn a_coinstalled_architecture_is_left_alone_and_any_other_replaced() {
    let guest = Guest::new();
    guest.install("lib", "i386", "Multi-Arch: same", &["/usr/lib/32"]);
    guest.install("tool", "i386", "", &["/usr/bin/tool32"]);
    let lib = unpack(&guest, &Source::new("lib", "amd64", "Multi-Arch: same").with_md5sums());
    assert_lacks(&lib.paths, &["/usr/lib/32"]);
    assert_has(&unpack(&guest, &Source::new("tool", "amd64", "").with_md5sums()).paths, &["/usr/bin/tool32"]);
    assert_has(&unpack(&guest, &Source::new("lib", "amd64", "").with_md5sums()).paths, &["/usr/lib/32"]);
}

#[test]
fn diversions_are_followed_both_ways() {
    let guest = Guest::new();
    guest.install("bash", "amd64", "Conffiles:\n /etc/a 00", &["/bin/sh", "/etc/a"]);
    guest.install("dash", "amd64", "", &["/usr/share/dash"]);
    guest.write(
        "/var/lib/dpkg/diversions",
        b"/bin/sh\n/bin/sh.distrib\ndash\n/etc/a.real\n/etc/a\n:\n/usr/x\n/usr/y\nother\n",
    );
    let bash = plan(&guest, &[remove("bash")]).paths;
    assert_has(
        &bash,
        &["/bin/sh", "/bin/sh.distrib", "/bin/sh.distrib.dpkg-tmp", "/etc/a.real", "/etc/a.real~"],
    );
    assert_lacks(&bash, &["/usr/x", "/usr/y"]);
    assert_has(&plan(&guest, &[remove("dash")]).paths, &["/bin/sh", "/bin/sh.distrib"]);
}

#[test]
fn a_new_file_may_be_diverted_onto_a_directory() {
    let guest = Guest::new();
    guest.write("/var/lib/dpkg/diversions", b"/usr/bin/new\n/usr/lib/real\n:\n");
    let source = Source::new("tool", "all", "");
    source.write("usr/bin/new", b"x");
    let plan = unpack(&guest, &source.with_md5sums());
    assert_eq!(plan.non_directories, ["/usr/bin/new", "/usr/lib/real"].map(Path::new));
}

#[test]
fn statoverrides_are_always_at_risk() {
    let guest = Guest::new();
    guest.install("tool", "all", "", &[]);
    guest.write("/var/lib/dpkg/statoverride", b"root crontab 2755 /usr/bin/crontab\n");
    assert_has(&plan(&guest, &[remove("tool")]).paths, &["/usr/bin/crontab"]);
}

#[test]
fn what_scripts_may_change_in_place_is_told_from_what_is_replaced() {
    let guest = Guest::new();
    guest.install("tool", "amd64", "", &["/usr/bin/tool"]);
    guest.install("half", "amd64", "", &["/usr/bin/half"]);
    guest.write("/var/lib/dpkg/statoverride", b"root crontab 755 /usr/bin/crontab\n");
    let source = Source::new("tool", "amd64", "");
    source.write("usr/bin/tool", b"x");
    let archive = guest.path("/new.deb");
    source.build(&archive, &[]);
    let configure =
        |name: &str| Change::Configure(PackageSpec { name: name.into(), arch: Some("amd64".into()) });
    let plan = plan(&guest, &[Change::Unpack(archive), configure("tool"), configure("half")]);
    assert_eq!(plan.configured, [PathBuf::from("/usr/bin/half")]);
    assert_eq!(plan.in_place, [PathBuf::from("/usr/bin/crontab")]);
    assert_has(&plan.paths, &["/usr/bin/tool", "/usr/bin/half", "/usr/bin/crontab"]);
}

#[test]
fn what_a_new_package_displaces_is_at_risk() {
    let guest = Guest::new();
    guest.install("exim", "all", "Provides: mta\nConflicts: mta\nReplaces: mta", &["/usr/bin/exim"]);
    guest.install("smail", "all", "Conflicts: postfix", &["/usr/bin/smail"]);
    guest.install("kept", "all", "Provides: mta", &["/usr/bin/kept"]);
    guest.install("versioned", "all", "", &["/usr/bin/versioned"]);
    let source = Source::new(
        "postfix",
        "all",
        "Provides: mta\nConflicts: mta, versioned (<< 2)\nReplaces: exim, smail, versioned",
    );
    let plan = unpack(&guest, &source.with_md5sums());
    assert_has(&plan.paths, &["/usr/bin/exim", "/usr/bin/smail", "/usr/bin/versioned"]);
    assert_lacks(&plan.paths, &["/usr/bin/kept"]);
    assert_eq!(ids(&plan), ["exim:all", "postfix:all", "smail:all", "versioned:all"]);
}

#[test]
fn an_unwanted_package_is_removed_for_one_that_conflicts() {
    let guest = Guest::new();
    let mut status = String::new();
    for (name, state) in
        [("a", "deinstall ok installed"), ("b", "install ok installed"), ("c", "purge ok config-files")]
    {
        status += &format!("Package: {name}\nStatus: {state}\nArchitecture: all\n\n");
    }
    guest.write("/var/lib/dpkg/status", status.as_bytes());
    let plan = unpack(&guest, &Source::new("new", "all", "Conflicts: a, b, c").with_md5sums());
    assert_eq!(ids(&plan), ["a:all", "new:all"]);
}

#[test]
fn usrmerge_moves_all_that_is_not_merged() {
    let guest = Guest::new();
    guest.install("usrmerge", "all", "", &[]);
    std::fs::create_dir_all(guest.path("/bin")).unwrap();
    std::fs::create_dir_all(guest.path("/lib")).unwrap();
    std::os::unix::fs::symlink("usr/sbin", guest.path("/sbin")).unwrap();
    std::fs::create_dir_all(guest.path("/usr/sbin")).unwrap();
    assert_eq!(plan(&guest, &[remove("usrmerge")]).trees, ["/bin", "/lib"].map(Path::new));
}

#[test]
fn bytecode_lies_beside_python_modules() {
    let guest = Guest::new();
    guest.install(
        "py",
        "all",
        "",
        &["/usr/lib/python3/a.py", "/usr/lib/python3/b.py", "/etc/c.py", "/usr/lib/d.pyi"],
    );
    assert_eq!(plan(&guest, &[remove("py")]).trees, [Path::new("/usr/lib/python3/__pycache__")]);
}

#[test]
fn a_configuration_file_may_be_a_symlink() {
    let guest = Guest::new();
    guest.install("tool", "all", "Conffiles:\n /etc/a 00\n /etc/loop 00", &[]);
    guest.write("/srv/real", b"x");
    std::fs::create_dir_all(guest.path("/etc")).unwrap();
    std::os::unix::fs::symlink("b", guest.path("/etc/a")).unwrap();
    std::os::unix::fs::symlink("/srv/real", guest.path("/etc/b")).unwrap();
    std::os::unix::fs::symlink("loop", guest.path("/etc/loop")).unwrap();
    assert_has(
        &plan(&guest, &[remove("tool")]).paths,
        &["/etc/a", "/etc/b", "/srv/real", "/srv/real.dpkg-old"],
    );
}

#[test]
fn a_damaged_archive_is_a_warning_and_hides_no_other() {
    let guest = Guest::new();
    guest.write("/bad.deb", b"!<arch>\nnonsense");
    let good = guest.path("/good.deb");
    Source::new("good", "all", "").build(&good, &[]);
    let changes =
        [guest.path("/bad.deb"), good.clone(), guest.path("/missing.deb"), good].map(Change::Unpack);
    let plan = plan(&guest, &changes);
    assert_eq!(ids(&plan), ["good:all"]);
    assert_eq!(plan.warnings.len(), 2);
    assert!(
        plan.warnings[0].contains("/bad.deb") && plan.warnings[1].contains("/missing.deb"),
        "{:?}",
        plan.warnings
    );
}
