//! Whatever looks after the pool may be killed at any call: the next run leaves the pool whole.

use std::fs;

use cow_hooks::sys::file::inode::Kind;

use crate::pool::{FILES, Farm, content, name};
use crate::support::strace::{killed_at_each, traced};
use crate::support::{FILESYSTEMS, entries, files, same_inode, set_immutable, text};

/// Runs a command again and again, killed at another call each time; then `again` once more, to its end.
fn killed_at_every_call(
    farm: &Farm,
    what: &str,
    words: &[&str],
    before: &dyn Fn(),
    after_kill: &dyn Fn(&str),
    at_end: &dyn Fn(&str),
) {
    let program = farm.command(words);
    let calls = || {
        before();
        let (calls, _) = traced(&program, b"", None);
        at_end(what);
        calls
    };
    // The first run makes what later ones find.
    calls();
    let killed = killed_at_each(&calls(), |call, nth| {
        let when = format!("{what} killed at {call} {nth}");
        before();
        let run = traced(&program, b"", Some((call, nth)));
        after_kill(&when);
        let output = farm.run(words);
        assert!(matches!(output.status.code(), Some(0 | 1)), "{when}: {}", text(&output));
        at_end(&when);
        run
    });
    assert!(killed > 5, "{what}: only {killed} kills");
    eprintln!("{what}: {killed} kills");
}

fn killed_everywhere(kind: &str) {
    let farm = Farm::new(kind);
    let shelf = farm.stored("objects")[0].parent().unwrap().to_path_buf();
    let unused = || {
        for number in 0..4 {
            let digits = format!("{number:062x}-{:016x}-{:016x}.0", 1, 2);
            fs::write(shelf.join(&digits), b"x").unwrap();
            set_immutable(&shelf.join(&digits), true);
        }
    };
    let ended = |when: &str| {
        assert_eq!(farm.stored("objects").len(), FILES, "{when}");
        farm.check(when);
    };
    let words = ["gc"];
    killed_at_every_call(&farm, &format!("{kind}, gc"), &words, &unused, &|_| {}, &ended);

    let damaged = || {
        for number in [1, 2, 3] {
            farm.flip(&name(number));
        }
    };
    let whole_or_damaged = |when: &str| {
        for guest in ["g1", "g2", "g3"] {
            for number in 0..FILES {
                let length = fs::read(farm.path(guest).join(name(number))).unwrap().len();
                assert_eq!(length, content(number).len(), "{when}");
            }
        }
    };
    let repaired = |when: &str| {
        // Whatever the killed run had not come to.
        let output = farm.run(&["verify", "g1", "g2", "g3"]);
        assert_eq!(output.status.code(), Some(0), "{when}: {}", text(&output));
        farm.check(when);
        let output = farm.run(&["gc"]);
        assert_eq!(output.status.code(), Some(0), "{when}: {}", text(&output));
        assert_eq!((farm.stored("objects").len(), farm.stored("quarantine").len()), (FILES, 0), "{when}");
        for number in 0..FILES {
            let shared = same_inode(&farm.path("g1").join(name(number)), &farm.path("g2").join(name(number)));
            assert!(shared, "{when}: {number}");
        }
    };
    let words = ["verify", "g1", "g2", "g3"];
    killed_at_every_call(&farm, &format!("{kind}, verify"), &words, &damaged, &whole_or_damaged, &repaired);

    let others = || (files(&farm.path("g2")), files(&farm.pool().join("objects")));
    let content = || files(&farm.path("g1")).into_values().map(|file| file.content).collect::<Vec<_>>();
    let (all_before, before) = (content(), others());
    let shared = || farm.unify();
    let nothing_lost = |when: &str| {
        let here: Vec<_> = content();
        assert!(all_before.iter().all(|file| here.contains(file)), "{when}: something is missing");
    };
    let private = |when: &str| {
        assert!(all_before == content(), "{when}: the guest is not what it was");
        assert!(before == others(), "{when}: another guest or the pool has changed");
        let shared =
            entries(&farm.path("g1")).into_iter().find(|(_, i)| i.kind == Kind::Regular && i.nlink > 1);
        assert!(shared.is_none(), "{when}: {shared:?}");
        assert!(!farm.path("g1").join("var/lib/cow-hooks").exists(), "{when}");
        farm.check(when);
    };
    killed_at_every_call(
        &farm,
        &format!("{kind}, detach"),
        &["detach", "g1"],
        &shared,
        &nothing_lost,
        &private,
    );
}

#[test]
#[ignore = "needs root"]
fn privileged_killed_at_any_call_the_pool_is_whole_after_the_next_run_on_ext4() {
    killed_everywhere(FILESYSTEMS[0]);
}

#[test]
#[ignore = "needs root"]
fn privileged_killed_at_any_call_the_pool_is_whole_after_the_next_run_on_xfs() {
    killed_everywhere(FILESYSTEMS[1]);
}

#[test]
#[ignore = "needs root"]
fn privileged_killed_at_any_call_the_pool_is_whole_after_the_next_run_on_btrfs() {
    killed_everywhere(FILESYSTEMS[2]);
}
