//! A pool whose objects bear the guard's mark. The guard itself is not loaded here: `cow-unify` is told to take it for
//! loaded, and what is seen is all but the kernel's part.

use std::cell::Cell;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::IFlags;

use crate::support::farm::Farm;
use crate::support::strace::{killed_at_each, traced};
use crate::support::{FILESYSTEMS, ended, inode, run, same_inode, set_immutable, set_mtime, text};

const NAMES: [&str; 6] = ["usr/bin/a", "usr/bin/b", "usr/bin/c", "usr/lib/d", "usr/lib/e", "usr/lib/f"];
const GUARDED: (&str, &str) = ("COW_TESTS_PRETEND_GUARD", "1");
const PASS: &[&str] = &["--scope", "all", "g1", "g2", "--pool", ".cow-pool"];
const TO_GUARD: &[&str] = &["protect", "--to", "guard", "--jobs", "1", "--pool", ".cow-pool"];
const TO_IMMUTABLE: &[&str] = &["protect", "--to", "immutable", "--jobs", "1", "--pool", ".cow-pool"];

/// Holds a lease that nobody else can open the file in spite of, and ignores the signal to give it back.
const LEASE: &str = "import fcntl, signal, sys
signal.signal(signal.SIGIO, signal.SIG_IGN)
file = open(sys.argv[1])
fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print('held', flush=True)
sys.stdin.read()";

fn content(name: &str) -> String {
    format!("content of {name}\n").repeat(100)
}

fn flags(path: &Path) -> IFlags {
    rustix::fs::ioctl_getflags(fs::File::open(path).unwrap()).unwrap()
}

/// Whether a file has the mark, and whether it is immutable.
fn fences(path: &Path) -> (bool, bool) {
    (flags(path).contains(IFlags::NOATIME), flags(path).contains(IFlags::IMMUTABLE))
}

fn unmark(path: &Path) {
    let file = fs::File::open(path).unwrap();
    rustix::fs::ioctl_setflags(&file, flags(path) - IFlags::NOATIME).unwrap();
}

fn command(farm: &Farm, words: &[&str]) -> Command {
    let mut command = farm.command(words);
    command.env(GUARDED.0, GUARDED.1);
    command
}

#[track_caller]
fn guarded(farm: &Farm, code: i32, words: &[&str]) -> String {
    ended(&command(farm, words).output().unwrap(), code, &format!("{words:?}"))
}

#[track_caller]
fn json(farm: &Farm, code: i32, words: &[&str]) -> serde_json::Value {
    let output = command(farm, &[words, &["--json"]].concat()).output().unwrap();
    ended(&output, code, &format!("{words:?}"));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(&output)))
}

/// As [`guarded`], by a program that has no `cow-guard` beside it, on a machine without one.
#[track_caller]
fn unguarded(farm: &Farm, code: i32, words: &[&str]) -> String {
    let program = farm.path("program");
    if !program.exists() {
        fs::copy(env!("CARGO_BIN_EXE_cow-unify"), &program).unwrap();
    }
    std::thread::sleep(std::time::Duration::from_millis(30));
    let output = Command::new(&program).current_dir(farm.filesystem.path()).args(words).output().unwrap();
    ended(&output, code, &format!("{words:?}"))
}

/// Two guests that share all files, in a pool that is protected so.
fn farm(kind: &str, protection: &str) -> Farm {
    let farm = Farm::new(kind);
    for name in NAMES {
        farm.both(name, content(name));
    }
    let report = json(&farm, 0, &[PASS, &["--protection", protection]].concat());
    assert_eq!(report["linked"], 12, "{report}");
    farm
}

#[track_caller]
fn assert_fences(farm: &Farm, wanted: (bool, bool), when: &str) {
    let objects = farm.stored("objects");
    assert_eq!(objects.len(), NAMES.len(), "{when}");
    for path in objects {
        assert_eq!(fences(&path), wanted, "{when}: {}", path.display());
    }
    let words: &[&str] = &["--scope", "all", "g1", "g2", "--pool", ".cow-pool"];
    let report = json(farm, 0, words);
    assert_eq!((&report["linked"], &report["unprotected_objects"]), (&0.into(), &0.into()), "{when}");
    farm.assert_tidy();
}

/// The calls of a run that change flags or hold writers.
fn fencing_calls(farm: &Farm, words: &[&str]) -> Vec<String> {
    let log = tempfile::NamedTempFile::new().unwrap();
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-e", "trace=ioctl,fanotify_init,fanotify_mark", "-o"]).arg(log.path());
    let program = command(farm, words);
    strace.arg(program.get_program()).args(program.get_args());
    strace.current_dir(farm.filesystem.path()).env(GUARDED.0, GUARDED.1);
    ended(&strace.output().unwrap(), 0, "strace");
    let log = fs::read_to_string(log.path()).unwrap();
    let fences = |line: &&str| line.contains("FS_IOC_SETFLAGS") || line.contains("fanotify");
    log.lines().filter(fences).map(str::to_owned).collect()
}

#[test]
#[ignore = "needs root"]
fn privileged_under_the_guard_objects_are_marked_and_names_change_without_a_window() {
    for kind in FILESYSTEMS {
        let farm = Farm::new(kind);
        for name in NAMES {
            farm.both(name, content(name));
        }
        fs::create_dir_all(farm.path("g1/var/lib/cow-hooks")).unwrap();
        let words = [PASS, &["--protection", "guard"]].concat();
        let calls = fencing_calls(&farm, &words);
        // Of fresh inodes, and of the file of the trial.
        assert!(calls.iter().all(|call| call.contains("FS_NOATIME_FL")), "{kind}: {calls:?}");
        assert!(!calls.iter().any(|call| call.contains("FS_IMMUTABLE_FL")), "{kind}: {calls:?}");
        assert_fences(&farm, (true, false), kind);
        for name in NAMES {
            let (a, b) = (farm.path("g1").join(name), farm.path("g2").join(name));
            assert!(same_inode(&a, &b) && inode(&a).nlink == 4, "{kind}: {name}");
            farm.write(&format!("g3/{name}"), content(name));
        }
        let notice = fs::read_to_string(farm.path("g1/var/lib/cow-hooks/pool.toml")).unwrap();
        assert!(notice.contains("guard = true"), "{notice}");

        // Objects that are there keep all their flags.
        let calls = fencing_calls(&farm, &["--scope", "all", "g1", "g2", "g3", "--pool", ".cow-pool"]);
        assert_eq!(calls, Vec::<String>::new(), "{kind}");
        for name in NAMES {
            assert_eq!(inode(&farm.path("g3").join(name)).nlink, 5, "{kind}: {name}");
        }
        let status = json(&farm, 0, &["status", "g1", "g2"]);
        assert_eq!((&status["protection"], &status["no_guard"]), (&"guard".into(), &().into()), "{status}");
        guarded(&farm, 0, &["verify", "g1", "g2", "g3"]);

        // A private copy has no mark.
        guarded(&farm, 0, &["detach", "g1"]);
        for name in NAMES {
            let path = farm.path("g1").join(name);
            assert_eq!((inode(&path).nlink, fences(&path)), (1, (false, false)), "{kind}: {name}");
        }
        run(Command::new("rm").arg("-r").args(["g1", "g2", "g3"].map(|guest| farm.path(guest))));
        guarded(&farm, 0, &["gc", "--pool", ".cow-pool"]);
        assert_eq!(farm.objects(), Vec::<PathBuf>::new(), "{kind}");
    }
}

/// The second name of an object.
fn second(object: &Path) -> PathBuf {
    let mut second = object.as_os_str().to_owned();
    second.push(".second");
    second.into()
}

fn is_held(object: &Path) -> bool {
    second(object).exists() && same_inode(object, &second(object))
}

/// Removes the second name of an immutable object: it is as it was before there was a guard.
fn let_go(object: &Path) {
    if is_held(object) {
        set_immutable(object, false);
        fs::remove_file(second(object)).unwrap();
        set_immutable(object, true);
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_an_object_never_has_only_one_name() {
    for kind in FILESYSTEMS {
        let farm = farm(kind, "guard");
        for guest in ["g1", "g2"] {
            farm.write(&format!("{guest}/etc/{guest}"), guest);
            run(Command::new("rm").arg("-r").arg(farm.path(guest).join("usr")));
        }
        let objects = farm.stored("objects");
        for object in &objects {
            assert_eq!(inode(object).nlink, 2, "{kind}");
            assert!(is_held(object), "{kind}");
        }
        assert_eq!(json(&farm, 0, &["status", "g1", "g2"])["unprotected_objects"], 0, "{kind}");
        // One that comes to have only one was open to changes.
        fs::remove_file(second(&objects[0])).unwrap();
        fs::remove_file(second(&objects[1])).unwrap();
        fs::write(&objects[1], "changed").unwrap();
        assert_eq!(json(&farm, 1, &["status", "g1", "g2"])["unprotected_objects"], 2, "{kind}");
        for name in NAMES {
            farm.write(&format!("g1/{name}"), content(name));
        }
        std::thread::sleep(std::time::Duration::from_millis(30));
        let report = json(&farm, 1, PASS);
        assert_eq!(report["protected"].as_array().map(Vec::len), Some(2), "{kind}: {report}");
        assert_eq!(report["set_aside"].as_array().map(Vec::len), Some(1), "{kind}: {report}");
        assert!(is_held(&objects[0]), "{kind}");
        for name in NAMES {
            assert_eq!(fs::read_to_string(farm.path("g1").join(name)).unwrap(), content(name), "{kind}");
        }
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_a_collection_killed_at_any_call_leaves_only_what_the_next_one_removes() {
    for kind in FILESYSTEMS {
        let farm = farm(kind, "guard");
        let words = &["gc", "--jobs", "1", "--pool", ".cow-pool"];
        let program = command(&farm, words);
        let prepare = || {
            for name in NAMES {
                farm.both(name, content(name));
            }
            std::thread::sleep(std::time::Duration::from_millis(30));
            guarded(&farm, 0, PASS);
            run(Command::new("rm").arg("-r").args(["g1", "g2"].map(|guest| farm.path(guest).join("usr"))));
        };
        prepare();
        let (mut calls, _) = traced(&program, b"", None);
        calls.retain(|call, _| ["unlinkat", "ioctl", "openat", "syncfs", "flock"].contains(&call.as_str()));
        let killed = killed_at_each(&calls, |call, nth| {
            let when = format!("{kind}, killed at {call} {nth}");
            prepare();
            let run = traced(&program, b"", Some((call, nth)));
            for object in farm.stored("objects") {
                assert_eq!((fences(&object), inode(&object).nlink), ((true, false), 2), "{when}");
            }
            // What was left of an object does not hinder the next of this name.
            prepare();
            for object in farm.stored("objects") {
                assert!(is_held(&object), "{when}");
                assert_eq!((fences(&object), inode(&object).nlink), ((true, false), 2), "{when}");
            }
            traced(&program, b"", Some((call, nth)));
            guarded(&farm, 0, words);
            assert_eq!(farm.objects(), Vec::<PathBuf>::new(), "{when}");
            run
        });
        assert!(killed > 5, "{kind}: only {killed} kills");
        eprintln!("{kind}: {killed} kills");
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_a_new_pool_takes_the_guard_unasked_if_it_protects() {
    let farm = Farm::new("ext4");
    farm.both("usr/bin/a", content("a"));
    let report = json(&farm, 0, PASS);
    assert_eq!(report["linked"], 2, "{report}");
    assert_eq!(json(&farm, 0, &["status", "g1", "g2"])["protection"], "guard");
    assert!(farm.stored("objects").iter().all(|path| fences(path) == (true, false)));
    // A pool that has another protection keeps it.
    let farm = self::farm("ext4", "immutable");
    assert_fences(&farm, (false, true), "later");
    assert_eq!(json(&farm, 0, &["status", "g1", "g2"])["protection"], "immutable");
    let farm = Farm::new("ext4");
    farm.both("usr/bin/a", content("a"));
    unguarded(&farm, 0, PASS);
    assert!(farm.stored("objects").iter().all(|path| fences(path) == (false, true)));
}

#[test]
#[ignore = "needs root"]
fn privileged_a_lost_mark_is_found_and_what_changed_without_it_is_set_aside() {
    for words in [PASS, &["verify", "g1", "g2", "--pool", ".cow-pool"]] {
        let farm = farm("ext4", "guard");
        let (a, b) = (farm.path("g1/usr/bin/a"), farm.path("g1/usr/bin/b"));
        [&a, &b].into_iter().for_each(|path| unmark(path));
        let mtime = inode(&a).mtime;
        fs::write(&a, content("usr/bin/A")).unwrap();
        set_mtime(&a, mtime);
        let status = json(&farm, 1, &["status", "g1", "g2"]);
        assert_eq!(status["unprotected_objects"], 2, "{status}");
        let said = guarded(&farm, 1, words);
        assert!(said.contains("had lost"), "{said}");
        let set_aside = farm.stored("quarantine");
        assert!(set_aside.len() == 1 && same_inode(&set_aside[0], &a), "{said}");
        assert_eq!((fences(&a), fences(&b)), ((true, false), (true, false)));
        let status = json(&farm, 0, &["status", "g1", "g2"]);
        assert_eq!(status["unprotected_objects"], 0, "{status}");
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_an_object_that_a_guest_keeps_from_being_opened_ends_no_run() {
    let farm = farm("ext4", "guard");
    let mut holder = Command::new("python3")
        .args(["-c", LEASE])
        .arg(farm.path("g1/usr/bin/a"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    holder.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    farm.both("usr/bin/new", "new");
    let said = guarded(&farm, 1, PASS);
    assert!(same_inode(&farm.path("g1/usr/bin/new"), &farm.path("g2/usr/bin/new")), "{said}");
    drop(holder.stdin.take());
    holder.wait().unwrap();
}

#[test]
#[ignore = "needs root"]
fn privileged_a_pool_is_turned_from_one_protection_to_the_other_and_back() {
    for kind in FILESYSTEMS {
        let farm = farm(kind, "immutable");
        assert_fences(&farm, (false, true), kind);
        // An administrator's own flag is no mark.
        farm.both("usr/own", "own");
        for guest in ["g1", "g2"] {
            run(Command::new("chattr").arg("+A").arg(farm.path(guest).join("usr/own")));
        }
        std::thread::sleep(std::time::Duration::from_millis(30));
        assert_eq!(json(&farm, 0, PASS)["linked"], 2, "{kind}");
        for round in 0..2 {
            let turned = json(&farm, 0, TO_GUARD);
            assert_eq!((&turned["protection"], &turned["turned"]), (&"guard".into(), &7.into()), "{turned}");
            assert_eq!(json(&farm, 0, TO_GUARD)["turned"], 0, "{kind}");
            guarded(&farm, 0, &["verify", "g1", "g2"]);
            assert!(
                farm.stored("objects").iter().all(|path| fences(path) == (true, false)),
                "{kind} {round}"
            );
            let said = guarded(&farm, 2, &[PASS, &["--protection", "immutable"]].concat());
            assert!(said.contains("cow-unify protect"), "{said}");
            assert_eq!(json(&farm, 0, PASS)["linked"], 0, "{kind}");

            let turned = json(&farm, 0, TO_IMMUTABLE);
            assert_eq!(
                (&turned["protection"], &turned["turned"]),
                (&"immutable".into(), &7.into()),
                "{turned}"
            );
            assert_eq!(json(&farm, 0, TO_IMMUTABLE)["turned"], 0, "{kind}");
            assert!(farm.stored("objects").iter().all(|path| fences(path).1), "{kind} {round}");
            let said = guarded(&farm, 2, &[PASS, &["--protection", "guard"]].concat());
            assert!(said.contains("cow-unify protect"), "{said}");
            guarded(&farm, 0, &["verify", "g1", "g2"]);
            assert_eq!(json(&farm, 0, PASS)["linked"], 0, "{kind}");
        }
        farm.assert_tidy();
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_guests_that_protect_is_given_know_it_at_once() {
    let farm = Farm::new("ext4");
    farm.both("usr/bin/a", content("a"));
    for guest in ["g1", "g2"] {
        fs::create_dir_all(farm.path(guest).join("var/lib/cow-hooks")).unwrap();
    }
    json(&farm, 0, &[PASS, &["--protection", "guard", "--allow-setid", "--min-size", "2B"]].concat());
    let notice =
        |guest: &str| fs::read_to_string(farm.path(guest).join("var/lib/cow-hooks/pool.toml")).unwrap();
    let first = notice("g1");
    assert!(first.contains("guard = true") && first.contains("immutable = false"), "{first}");

    let turned = json(&farm, 0, &[TO_IMMUTABLE, &["g1"]].concat());
    assert_eq!(turned["told"].as_array().map(Vec::len), Some(1), "{turned}");
    let told = first.replace("guard = true\n", "").replace("immutable = false", "immutable = true");
    assert_eq!((notice("g1"), notice("g2")), (told, first.clone()));
    // The pool is that of the guests.
    let turned = json(&farm, 0, &["protect", "--to", "guard", "g1", "g2"]);
    assert_eq!(turned["told"].as_array().map(Vec::len), Some(2), "{turned}");
    assert_eq!((notice("g1"), notice("g2")), (first.clone(), first.clone()));

    // A guest that knows of another pool, or of none, is left alone.
    fs::write(farm.path("g1/var/lib/cow-hooks/pool.toml"), first.replace("handle = \"", "handle = \"00"))
        .unwrap();
    fs::remove_file(farm.path("g2/var/lib/cow-hooks/pool.toml")).unwrap();
    let turned = json(&farm, 0, &[TO_IMMUTABLE, &["g1", "g2"]].concat());
    assert_eq!(turned["told"].as_array().map(Vec::len), Some(0), "{turned}");
    assert!(notice("g1").contains("guard = true"));
    assert!(!farm.path("g2/var/lib/cow-hooks/pool.toml").exists());
    // What is no guest is said.
    fs::create_dir(farm.path("empty")).unwrap();
    json(&farm, 1, &[TO_GUARD, &["g1", "empty"]].concat());
}

#[test]
#[ignore = "needs root"]
fn privileged_what_had_lost_its_protection_is_looked_at_before_it_gets_another() {
    let farm = farm("ext4", "immutable");
    let path = farm.path("g1/usr/bin/a");
    let mtime = inode(&path).mtime;
    set_immutable(&path, false);
    fs::write(&path, content("usr/bin/A")).unwrap();
    set_mtime(&path, mtime);
    let turned = json(&farm, 1, TO_GUARD);
    assert_eq!(turned["set_aside"].as_array().map(Vec::len), Some(1), "{turned}");
    assert_eq!(turned["protection"], "guard", "{turned}");
    assert_eq!(fences(&path), (true, false));
}

#[test]
#[ignore = "needs root"]
fn privileged_killed_at_any_call_all_objects_are_protected_and_the_next_run_ends_it() {
    for kind in FILESYSTEMS {
        let farm = farm(kind, "immutable");
        for (words, before, wanted) in
            [(TO_GUARD, TO_IMMUTABLE, (true, false)), (TO_IMMUTABLE, TO_GUARD, (false, true))]
        {
            let program = command(&farm, words);
            let prepare = || {
                guarded(&farm, 0, before);
                if words == TO_GUARD {
                    farm.stored("objects").iter().for_each(|object| let_go(object));
                }
            };
            prepare();
            let (calls, _) = traced(&program, b"", None);
            let killed = killed_at_each(&calls, |call, nth| {
                let when = format!("{kind}, {words:?} killed at {call} {nth}");
                prepare();
                let run = traced(&program, b"", Some((call, nth)));
                for path in farm.stored("objects") {
                    let (marked, immutable) = fences(&path);
                    let held = inode(&path).nlink > 1;
                    assert!(marked && held || immutable, "{when}: {}", path.display());
                    // The mark is enough only if the pool says that it relies on the guard.
                    let settings = fs::read_to_string(farm.path(".cow-pool/pool.toml")).unwrap();
                    assert!(immutable || settings.contains("\"guard\""), "{when}: {settings}");
                }
                // A pass in between takes it as it is. One object may have the mark, but no second name yet.
                let open = |path: &PathBuf| !fences(path).1 && !is_held(path);
                let code = i32::from(words == TO_GUARD && farm.stored("objects").iter().any(open));
                guarded(&farm, code, PASS);
                guarded(&farm, 0, words);
                for path in farm.stored("objects") {
                    let now = fences(&path);
                    // ext4 keeps the mark of what is immutable already.
                    assert!(now == wanted || now == (true, true) && wanted.1, "{when}: {now:?}");
                }
                run
            });
            assert!(killed > 5, "{kind}: only {killed} kills");
            eprintln!("{kind}, {words:?}: {killed} kills");
        }
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_while_the_guard_is_not_there_objects_are_immutable() {
    for kind in FILESYSTEMS {
        let farm = farm(kind, "guard");
        fs::create_dir_all(farm.path("g1/var/lib/cow-hooks")).unwrap();
        let said = unguarded(&farm, 1, &["status", "g1", "g2", "--pool", ".cow-pool"]);
        assert!(said.contains("guard, but it does not protect this pool"), "{said}");
        assert!(said.contains("6 not protected"), "{said}");
        farm.both("usr/bin/new", "new");
        let said = unguarded(&farm, 1, PASS);
        assert!(said.contains("objects are made immutable until"), "{kind}: {said}");
        assert!(said.contains("6 objects of the pool had lost their protection"), "{kind}: {said}");
        assert!(farm.stored("objects").iter().all(|path| fences(path).1), "{kind}");
        assert_eq!(farm.stored("objects").len(), 7, "{kind}");
        unguarded(&farm, 0, &["status", "g1", "g2", "--pool", ".cow-pool"]);
        let notice = fs::read_to_string(farm.path("g1/var/lib/cow-hooks/pool.toml")).unwrap();
        assert!(notice.contains("immutable = true"), "{notice}");
        // It is there again.
        guarded(&farm, 0, PASS);
        assert!(farm.stored("objects").iter().all(|path| fences(path) == (true, false)), "{kind}");
        assert_eq!(json(&farm, 0, &["status", "g1", "g2"])["unprotected_objects"], 0, "{kind}");
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_an_adoption_killed_at_any_call_is_ended_by_the_next_run() {
    let all = std::env::var_os("COW_TESTS_EVERY_CALL").is_some();
    for kind in FILESYSTEMS.iter().take(if all { FILESYSTEMS.len() } else { 1 }) {
        let farm = Farm::new(kind);
        let number = Cell::new(0);
        let prepare = || {
            for guest in ["g1", "g2"] {
                let _ = fs::remove_dir_all(farm.path(guest).join("usr"));
            }
            number.set(number.get() + 1);
            for name in NAMES {
                farm.both(name, format!("{} {name}\n", number.get()).repeat(500));
            }
            fs::hard_link(farm.path("g1/usr/bin/a"), farm.path("g1/usr/bin/again")).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(30));
        };
        let words = &[PASS, &["--protection", "guard", "--jobs", "1"]].concat();
        let program = command(&farm, words);
        prepare();
        let first = json(&farm, 0, words);
        assert_eq!((&first["adopted"], &first["bytes_copied"]), (&6.into(), &0.into()), "{first}");
        prepare();
        let (mut calls, _) = traced(&program, b"", None);
        let changing = ["linkat", "unlinkat", "renameat", "ioctl", "syncfs"];
        calls.retain(|call, _| changing.contains(&call.as_str()));
        let killed = killed_at_each(&calls, |call, nth| {
            let when = format!("{kind}, killed at {call} {nth}");
            prepare();
            let run = traced(&program, b"", Some((call, nth)));
            // What ends killed runs, and makes no object.
            guarded(&farm, 0, &["gc", "--pool", ".cow-pool"]);
            let objects = farm.stored("objects");
            for path in NAMES.iter().flat_map(|name| ["g1", "g2"].map(|guest| farm.path(guest).join(name))) {
                let is_object = objects.iter().any(|object| same_inode(object, &path));
                assert!(is_object || !fences(&path).0, "{when}: {} has a mark", path.display());
            }
            farm.assert_tidy();
            std::thread::sleep(std::time::Duration::from_millis(30));
            // An object may have come to be without its second name: then it is read again, and that is told.
            let output = command(&farm, words).output().unwrap();
            assert!(matches!(output.status.code(), Some(0 | 1)), "{when}: {}", text(&output));
            guarded(&farm, 0, words);
            let objects = farm.stored("objects");
            for object in &objects {
                assert!(is_held(object) && fences(object) == (true, false), "{when}: {}", object.display());
            }
            for name in NAMES {
                let (a, b) = (farm.path("g1").join(name), farm.path("g2").join(name));
                let content = fs::read_to_string(&a).unwrap();
                assert_eq!(content, format!("{} {name}\n", number.get()).repeat(500), "{when}");
                assert!(same_inode(&a, &b), "{when}: {name}");
                assert!(objects.iter().any(|object| same_inode(object, &a)), "{when}: {name}");
            }
            assert!(same_inode(&farm.path("g1/usr/bin/again"), &farm.path("g1/usr/bin/a")), "{when}");
            farm.assert_tidy();
            run
        });
        assert!(killed > 10, "{kind}: only {killed} kills");
        eprintln!("{kind}: {killed} kills");
    }
}

#[test]
#[ignore = "needs root"]
fn privileged_more_files_are_adopted_than_the_process_may_have_open() {
    let farm = Farm::new("ext4");
    for number in 0..300 {
        farm.both(&format!("usr/lib/{number}"), number.to_string());
    }
    std::thread::sleep(std::time::Duration::from_millis(30));
    let program = command(&farm, &[PASS, &["--protection", "guard", "--json"]].concat());
    let mut limited = Command::new("prlimit");
    limited.arg("--nofile=128:128").arg(program.get_program()).args(program.get_args());
    let output = limited.current_dir(farm.filesystem.path()).env(GUARDED.0, GUARDED.1).output().unwrap();
    ended(&output, 0, "128 descriptors");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["adopted"], &report["linked"]), (&300.into(), &600.into()), "{report}");
}
