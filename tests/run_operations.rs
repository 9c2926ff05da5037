//! Whatever a program does to a shared file under cow-run succeeds or fails as on a private file, and nobody else
//! notices: every operation, by programs of each kind, on each filesystem.
//!
//! `COW_TESTS_OPERATIONS="append chmod_call"` tries these alone; `cowops list` names all. `COW_TESTS_WITHOUT="times"` leaves
//! out what `cowops -x` can.

use std::process::Output;

use crate::support::bed::Bed;
use crate::support::cowops::{BUILDS, Field, Root, difference, left_out};
use crate::support::{run, text};

/// Operations that are known to differ: what they see is another file than it was.
const LIMITS: &[(&str, &str)] = &[
    ("by_descriptor_of_parent", "another process's descriptor stays on the shared file"),
    ("child_change_mode", "another process's descriptor stays on the shared file"),
    ("child_change_owner", "another process's descriptor stays on the shared file"),
    ("child_change_owner32", "another process's descriptor stays on the shared file"),
    ("child_change_times", "another process's descriptor stays on the shared file"),
    ("child_change_times_now", "another process's descriptor stays on the shared file"),
    ("child_extended_no_dump", "another process's descriptor stays on the shared file"),
    ("child_mode_by_empty_path", "another process's descriptor stays on the shared file"),
    ("child_no_dump", "another process's descriptor stays on the shared file"),
    ("child_no_dump_mutable", "another process's descriptor stays on the shared file"),
    ("child_owner_by_empty_path", "another process's descriptor stays on the shared file"),
    ("child_remove_xattr", "another process's descriptor stays on the shared file"),
    ("child_set_xattr", "another process's descriptor stays on the shared file"),
    ("directory_watched", "inotify sees a file replaced"),
    ("fchmodat2_empty_path", "the kernel hands over no descriptor of a place only"),
    ("fchownat_empty_path", "the kernel hands over no descriptor of a place only"),
    ("inode_number_kept", "the copy has a number of its own"),
    ("killed_while_at_it", "chance decides how far it came"),
    ("long_chain_of_directories", "a path that is too long cannot be told"),
    ("mapping_sees_write", "what is mapped stays the shared file"),
    ("nobody_with_descriptor", "another process's descriptor stays on the shared file"),
    ("open_by_handle", "a handle is of the shared file"),
    ("reader_from_before_fork", "another process's descriptor stays on the shared file"),
    ("reader_of_child_sees_write", "another process's descriptor stays on the shared file"),
    ("record_lock_kept", "a process's lock is not ours to take"),
    ("renamed_at_once", "who comes too often between our look and the kernel's is refused"),
    ("reopened_after_unlink", "its copy never had that name"),
    ("signals", "a handler without SA_RESTART interrupts calls that wait for us"),
    ("utimensat_empty_path", "the kernel hands over no descriptor of a place only"),
    ("watched", "inotify watches the shared file"),
    ("with_own_listener", "the kernel lets one supervisor listen"),
    ("with_own_mounts", "what is mounted in another namespace only is not seen"),
    ("written_while_it_runs", "the copy does not run"),
];

/// Limits that chance decides about: they may give the same as well.
const CHANCE: [&str; 5] =
    ["killed_while_at_it", "long_chain_of_directories", "renamed_at_once", "signals", "watched"];

/// Operations that give the same on shared files without cow-run: they change none.
const UNAFFECTED: &[&str] = &[
    "lchown_symlink",
    "fchmodat2_symlink",
    "fchownat_symlink",
    "path_fchmod",
    "path_fchown",
    "path_fsetxattr",
    "path_futimens",
    "utimensat_no_follow",
    "lsetxattr_symlink",
    "setxattrat_no_follow",
    "setxattrat_empty_path",
    "flags_wrongly",
    "file_setattr_empty_path",
    "on_directories_and_links",
    "create_new",
    "create_through_dangling",
    "write_own",
    "truncate_wrongly",
    "nameless",
    "unlink_symlink",
    "rmdir_directory",
    "rename_onto_own_link",
    "rename_onto_itself",
    "exchange_of_pair",
    "exchange_with_itself",
    "by_file_descriptor_as_directory",
    "bad_pointer",
];

fn told(output: &Output) -> String {
    let code = output.status.code().map_or("killed".into(), |code| code.to_string());
    format!("{}exit code {code}\n", String::from_utf8_lossy(&output.stdout))
}

/// The operations, and whether each leaves everything shared.
fn operations(field: &Field, build: &str) -> Vec<(String, bool)> {
    let list = field.output(Root::Reference, "/", &["list"]);
    let list = String::from_utf8(list.stdout).unwrap();
    assert!(!list.is_empty(), "no {build} program can be run");
    list.lines()
        .map(|line| line.split_once(' ').map_or((line.into(), false), |(name, _)| (name.into(), true)))
        .collect()
}

/// What is wrong with one operation.
fn tried(field: &Field, name: &str, harmless: bool) -> Vec<String> {
    let options = left_out("");
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let arguments = [&options[..], &["op", name]].concat();
    let planted = field.plant(name, 1, &options);
    let tree = format!("/trees/{name}/t0");
    let expected = field.output(Root::Reference, &tree, &arguments);
    let got = field.output(Root::Guest, &tree, &arguments);
    let mut wrong = Vec::new();
    let limit = LIMITS.iter().any(|(limit, _)| *limit == name);
    let told = [&expected, &got].map(told);
    match (told[0] == told[1], limit) {
        (true, true) if !CHANCE.contains(&name) => {
            wrong.push("is as on private files, and no limit any more".into())
        }
        (false, false) => wrong.push(format!("tells something else:\n{}", difference(&told[0], &told[1]))),
        _ => {}
    }
    if !got.stderr.is_empty() && got.stderr != expected.stderr {
        wrong.push(format!("says: {}", String::from_utf8_lossy(&got.stderr).trim_end()));
    }
    wrong.extend(
        field.wrong(&planted, &[]).into_iter().filter(|what| !limit || !what.starts_with("the trees")),
    );
    if harmless && !limit {
        wrong.extend(field.copied_without_need(name));
    }
    wrong
}

/// Which operations to try: all, or those named.
fn wanted(name: &str) -> bool {
    std::env::var("COW_TESTS_OPERATIONS")
        .map_or(true, |names| names.split_whitespace().any(|wanted| wanted == name))
}

fn every_operation(kind: &str) {
    let (mut wrong, mut count) = (String::new(), 0);
    for build in BUILDS {
        let field = Field::new(kind, build);
        for (name, harmless) in operations(&field, build).into_iter().filter(|(name, _)| wanted(name)) {
            let found = tried(&field, &name, harmless);
            count += usize::from(!found.is_empty());
            wrong.extend(found.into_iter().map(|what| format!("{kind} {build} {name}: {what}\n")));
        }
        wrong.extend(field.litter().into_iter().map(|path| format!("{kind} {build}: litter: {path:?}\n")));
    }
    assert!(wrong.is_empty(), "{count} operations differ from those on private files:\n{wrong}");
}

#[test]
#[ignore = "needs root"]
fn privileged_every_operation_succeeds_as_on_a_private_file_ext4() {
    every_operation("ext4");
}

#[test]
#[ignore = "needs root"]
fn privileged_every_operation_succeeds_as_on_a_private_file_xfs() {
    every_operation("xfs");
}

#[test]
#[ignore = "needs root"]
fn privileged_every_operation_succeeds_as_on_a_private_file_btrfs() {
    every_operation("btrfs");
}

/// What cow-run is for: a comparison that cannot fail proves nothing.
#[test]
#[ignore = "needs root"]
fn privileged_operations_on_shared_files_fail_without_cow_run() {
    let field = Field::new("ext4", "static");
    let mut same = Vec::new();
    for (name, _) in operations(&field, "static").into_iter().filter(|(_, harmless)| !harmless) {
        let planted = field.plant(&name, 1, &[]);
        let tree = format!("/trees/{name}/t0");
        let [expected, got] =
            [Root::Reference, Root::GuestAlone].map(|root| told(&field.output(root, &tree, &["op", &name])));
        if expected == got && field.wrong(&planted, &[]).is_empty() {
            same.push(name);
        }
    }
    assert_eq!(same, UNAFFECTED);
}

#[test]
#[ignore = "needs root"]
fn privileged_operations_on_private_files_tell_the_same_twice() {
    for build in BUILDS {
        let field = Field::new("ext4", build);
        for (name, _) in operations(&field, build) {
            let told = [1, 2].map(|time| {
                let trees = format!("reference/trees/{name}");
                run(std::process::Command::new("rm").arg("-rf").arg(field.path(&trees)));
                std::fs::create_dir(field.path(&trees)).unwrap();
                run(&mut field.host(&["copies", "1", &trees, "reference"]));
                let output = field.output(Root::Reference, &format!("/trees/{name}/t0"), &["op", &name]);
                assert!(output.status.success(), "{build} {name}, time {time}: {}", text(&output));
                told(&output)
            });
            assert!(told[0] == told[1], "{build} {name}:\n{}", difference(&told[0], &told[1]));
        }
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_an_attribute_that_is_not_there_is_removed_from_the_shared_file() {
    let bed = Bed::new(1);
    let script = "import os\n\
                  for name in 'user.none', 'security.capability':\n \
                  try: os.removexattr('f000', name)\n \
                  except OSError as e: print(e.strerror)";
    let output = bed.ran(&["python3", "-c", script]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "No data available\nNo data available\n");
    assert!(!bed.is_private("f000"));
    bed.assert_clean();
}
