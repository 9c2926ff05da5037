//! Files of guests that say something about the policy.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::*;
use crate::sys::budget;
use crate::sys::path::root::Root;

/// A guest that holds these files.
fn guest(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = dir.path().join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    dir
}

fn load(files: &[(&str, &str)]) -> Result<Policy, String> {
    let dir = guest(files);
    let prefix = format!("{}/", dir.path().display());
    Policy::load(&Root::open(dir.path()).unwrap()).map_err(|e| e.to_string().replace(&prefix, "/"))
}

fn message(text: &str) -> String {
    load(&[("/etc/cow-hooks/cow-hooks.toml", text)]).unwrap_err()
}

#[test]
fn without_files_the_defaults_hold() {
    let policy = load(&[]).unwrap();
    assert_eq!(policy, Policy::builtin().unwrap());
    assert_eq!(policy.mode, Mode::Enforce);
    assert_eq!(policy.protection, Protection::Auto);
    assert_eq!(policy.reserve, 16 << 20);
    assert_eq!(policy.lock_timeout, Duration::from_secs(10));
    assert_eq!(policy.last_link, LastLink::Leave);
    assert_eq!(policy.supervise, SuperviseMode::Auto);
}

#[test]
fn the_reference_read_as_a_file_changes_no_value() {
    let policy = load(&[("/etc/cow-hooks/cow-hooks.toml", DEFAULT)]).unwrap();
    let builtin = Policy::builtin().unwrap();
    assert_eq!(policy.prepare.iter().count(), 2 * builtin.prepare.iter().count());
    assert_eq!(
        Policy { prepare: builtin.prepare.clone(), ..policy },
        Policy {
            never_touch: builtin.never_touch.iter().chain(&builtin.never_touch).cloned().collect(),
            never_unify: builtin.never_unify.iter().chain(&builtin.never_unify).cloned().collect(),
            ..builtin
        }
    );
}

#[test]
fn later_files_override_values_and_add_to_lists() {
    let policy = load(&[
        ("/usr/lib/cow-hooks/cow-hooks.toml", "mode = 'off'\nlock_timeout = 1\nnever_touch = ['/a']"),
        ("/etc/cow-hooks/cow-hooks.toml", "mode = 'warn'\nreserve = '1 GiB'\nnever_touch = ['/b']"),
        ("/etc/cow-hooks/conf.d/20-z.toml", "lock_timeout = 3"),
        ("/etc/cow-hooks/conf.d/10-a.toml", "lock_timeout = 2\nlast_link = 'detach'"),
        ("/etc/cow-hooks/conf.d/30-off.toml.dpkg-new", "garbage"),
        ("/etc/cow-hooks/conf.d/.40-editing.toml", "garbage"),
    ])
    .unwrap();
    assert_eq!(policy.mode, Mode::Warn);
    assert_eq!(policy.reserve, 1 << 30);
    assert_eq!(policy.lock_timeout, Duration::from_secs(3));
    assert_eq!(policy.last_link, LastLink::Detach);
    for path in ["/a", "/b", "/var/lib/cow-hooks/stash/1"] {
        assert!(policy.never_touch.matches(Path::new(path)), "{path}");
    }
}

/// The policy of a guest that is worked on from outside is the guest's own: it is not trusted.
#[test]
fn a_guest_cannot_keep_the_host_waiting_nor_fill_its_memory() {
    let path = "/etc/cow-hooks/conf.d/a.toml";
    let wait = |seconds: i64| load(&[(path, &format!("lock_timeout = {seconds}"))]);
    assert_eq!(wait(86_400).unwrap().lock_timeout, Duration::from_secs(60));
    assert!(wait(i64::MAX).is_err() && wait(-1).is_err());
    let long = "#".repeat(budget::CONFIGURATION + 1);
    assert!(load(&[(path, &long)]).unwrap_err().contains("a.toml: larger than 1 MiB"));
    let names: Vec<String> = (0..=100).map(|number| format!("/etc/cow-hooks/conf.d/{number}.toml")).collect();
    let files: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "")).collect();
    assert!(load(&files[1..]).is_ok());
    assert!(load(&files).unwrap_err().contains("more than 100 files"));
}

#[test]
fn a_list_is_replaced_where_the_file_says_so() {
    let policy = load(&[
        ("/etc/cow-hooks/cow-hooks.toml", "prepare.replace = ['/opt/x']\nnever_unify = { replace = [] }"),
        ("/etc/cow-hooks/conf.d/a.toml", "prepare = ['/opt/y']"),
    ])
    .unwrap();
    let prepare: Vec<String> = policy.prepare.iter().map(Pattern::to_string).collect();
    assert_eq!(prepare, ["/opt/x", "/opt/y"]);
    assert!(policy.never_unify.is_empty());
    assert!(!policy.never_touch.is_empty());
}

#[test]
fn options_change_what_they_name() {
    let mut policy = Policy::builtin().unwrap();
    policy.adjust(" mode=warn lock_timeout=3\tnever_touch=['/opt/x'] reserve=\"1GiB\"").unwrap();
    assert_eq!((policy.mode, policy.lock_timeout), (Mode::Warn, Duration::from_secs(3)));
    assert!(policy.never_touch.matches(Path::new("/opt/x")));
    let before = policy.clone();
    for bad in ["mode=off nonsense", "mode=off mode=x", "colour=red", "mode='"] {
        policy.adjust(bad).unwrap_err();
    }
    assert_eq!(policy, before);
}

#[test]
fn an_unknown_key_is_named_with_those_there_are() {
    assert_eq!(
        message("mode = 'warn'\npreprae = ['/etc']\n"),
        "/etc/cow-hooks/cow-hooks.toml, line 2: unknown key `preprae`, expected one of `mode`, `protection`, \
         `prepare`, `never_touch`, `never_unify`, `reserve`, `lock_timeout`, `last_link`, \
         `supervise`"
    );
    assert_eq!(
        message("prepare.reset = []"),
        "/etc/cow-hooks/cow-hooks.toml, line 1, key `prepare`: unknown key `reset`, expected `replace`"
    );
}

#[test]
fn a_bad_value_is_named_with_those_allowed() {
    let cases = [
        ("mode = 1", "line 1, key `mode`: expected a string"),
        (
            "\nmode = 'strict'",
            "line 2, key `mode`: unknown value `strict`, expected one of `enforce`, `warn`, `off`",
        ),
        ("last_link = 'keep'", "line 1, key `last_link`: unknown value `keep`, expected `leave` or `detach`"),
        (
            "reserve = '16 MB'",
            "line 1, key `reserve`: `16 MB` is not a size, expected a whole number and one of `B`, `KiB`, `MiB`, `GiB`, `TiB`, or `K`, `M`, `G`, `T` for short",
        ),
        (
            "reserve = 16",
            "line 1, key `reserve`: invalid type: integer `16`, expected a size, such as \"16 MiB\"",
        ),
        (
            "lock_timeout = -1",
            "line 1, key `lock_timeout`: invalid value: integer `-1`, expected a number of seconds from 0 to 86400",
        ),
        (
            "lock_timeout = 9223372036854775807",
            "line 1, key `lock_timeout`: invalid value: integer `9223372036854775807`, expected a number of seconds \
             from 0 to 86400",
        ),
        (
            "lock_timeout = '1 s'",
            "line 1, key `lock_timeout`: invalid type: string \"1 s\", expected a number of seconds from 0 to 86400",
        ),
        (
            "prepare = '/etc'",
            "line 1, key `prepare`: invalid type: string \"/etc\", expected a list of patterns, or `replace` with one",
        ),
        (
            "prepare = [\n '/etc',\n 'a/b',\n]",
            "line 3, key `prepare`: pattern `a/b`: a pattern that contains a slash must begin with a slash: write `/a/b`, or `/**/a/b` for any depth",
        ),
        (
            "prepare.replace = ['/a[']",
            "line 1, key `prepare`: pattern `/a[`: `[` has no closing `]`; write `[[]` for a literal `[`",
        ),
        ("never_unify = [7]", "line 1, key `never_unify`: invalid type: integer `7`, expected a pattern"),
    ];
    for (text, expected) in cases {
        assert_eq!(message(text), format!("/etc/cow-hooks/cow-hooks.toml, {expected}"));
    }
}

#[test]
fn text_that_is_not_toml_is_refused_with_its_line() {
    let cases = [
        ("mode = enforce", "line 1, key `mode`: string values must be quoted, expected literal string"),
        ("mode = 'warn'\nprepare = [\n", "line 2, key `prepare`: unclosed array, expected `]`"),
        ("mode = 'warn'\nmode = 'off'\n", "line 2: duplicate key"),
        ("mode = 'warn'\n\nwarn\n", "line 3: key with no value, expected `=`"),
    ];
    for (text, expected) in cases {
        assert_eq!(message(text), format!("/etc/cow-hooks/cow-hooks.toml, {expected}"));
    }
}

#[test]
fn a_message_shows_nothing_of_the_file_that_moves_the_cursor() {
    for text in ["\"\\u001b[2J\" = 1", "\"\\u001b\" = 1 2", "mode = '\u{1b}'", "mode = \"\\n\""] {
        let message = message(text);
        assert!(!message.contains(char::is_control), "{message:?}");
    }
}

#[test]
fn a_file_that_is_no_utf8_or_no_file_is_refused() {
    let dir = guest(&[("/etc/cow-hooks/conf.d/a.toml", "")]);
    let conf_d = dir.path().join("etc/cow-hooks/conf.d");
    let load = || Policy::load(&Root::open(dir.path()).unwrap()).unwrap_err().to_string();
    fs::write(conf_d.join("a.toml"), b"mode = 'off'\n# caf\xe9\n").unwrap();
    let text = load();
    assert!(text.ends_with("a.toml, line 2: not UTF-8"), "{text}");
    fs::remove_file(conf_d.join("a.toml")).unwrap();
    fs::create_dir(conf_d.join("a.toml")).unwrap();
    let text = load();
    assert!(text.ends_with("a.toml: not a regular file"), "{text}");
}

#[test]
fn links_of_a_guest_lead_to_its_own_files() {
    let dir = guest(&[("/opt/shared.toml", "mode = 'off'"), ("/etc/cow-hooks/conf.d/x", "")]);
    let link = dir.path().join("etc/cow-hooks/conf.d/a.toml");
    std::os::unix::fs::symlink("/opt/shared.toml", link).unwrap();
    let policy = Policy::load(&Root::open(dir.path()).unwrap()).unwrap();
    assert_eq!(policy.mode, Mode::Off);
}

#[test]
fn every_place_of_the_hazard_catalogue_is_prepared() {
    let policy = Policy::builtin().unwrap();
    for path in [
        "/etc/passwd-",
        "/etc/.pwd.lock",
        "/etc/profile",
        "/root/.profile",
        "/etc/ssh/sshd_config",
        "/var/lib/ucf/cache/:etc:ssh:sshd_config",
        "/var/lib/ucf/hashfile.0",
        "/etc/timezone",
        "/etc/init.d/cron",
        "/usr/lib/locale/locale-archive",
        "/var/log/dpkg.log",
        "/var/log/apt/term.log",
        "/var/log/alternatives.log",
        "/var/log/fontconfig.log",
        "/var/lib/xml-core/catalog.old",
        "/var/lib/pam/seen",
        "/var/lib/exim4/config.autogenerated",
        "/var/lib/man-db/auto-update",
        "/usr/share/info/dir",
        "/usr/share/info/dir.old",
        "/usr/lib/python3/dist-packages/apt/__pycache__/cache.cpython-311.pyc",
        "/usr/lib/python3.11/__pycache__/os.cpython-311.pyc",
        "/usr/share/python3/__pycache__/debpython.pyc",
        "/usr/share/emacs/site-lisp/debian-startup.elc",
        "/usr/share/mime/mime.cache",
        "/usr/share/mime/application/pdf.xml",
        "/usr/lib/udev/hwdb.bin",
        "/lib/udev/hwdb.bin",
        "/usr/lib/x86_64-linux-gnu/gdk-pixbuf-2.0/2.10.0/loaders.cache",
        "/usr/share/glib-2.0/schemas/gschemas.compiled",
        "/usr/lib/x86_64-linux-gnu/gio/modules/giomodule.cache",
        "/usr/share/icons/hicolor/icon-theme.cache",
        "/usr/share/applications/mimeinfo.cache",
        "/lib/modules/6.1.0-18-amd64/modules.dep",
        "/usr/lib/modules/6.1.0-18-amd64/modules.dep.bin",
        "/boot/initrd.img-6.1.0-18-amd64.dpkg-bak",
        "/usr/share/dovecot/protocols.d/imapd.protocol",
        "/etc/ld.so.cache",
        "/var/cache/debconf/config.dat",
        "/var/cache/man/index.db",
        "/var/cache/man/de/CACHEDIR.TAG",
        "/var/cache/fontconfig/x.cache-8",
        "/var/lib/dpkg/alternatives/editor",
        "/var/lib/systemd/catalog/database",
        "/var/lib/systemd/deb-systemd-helper-enabled/ssh.service.dsh-also",
        "/var/lib/sgml-base/supercatalog",
        "/var/lib/shells.state",
        "/usr/bin/ssh-agent",
        "/usr/bin/man",
        "/usr/bin/mandb",
        "/bin/ip",
        "/usr/bin/ip",
        "/bin/ping",
        "/usr/lib/mysql/plugin/auth_pam_tool_dir/auth_pam_tool",
        "/usr/bin/update-menus",
    ] {
        assert!(policy.prepare.matches(Path::new(path)), "{path}");
    }
}

#[test]
fn payload_and_locks_held_during_a_run_are_not_prepared() {
    let policy = Policy::builtin().unwrap();
    for path in [
        "/usr/bin/bash",
        "/usr/share/mime/packages/freedesktop.org.xml",
        "/lib/modules/6.1.0-18-amd64/kernel/fs/ext4/ext4.ko",
        "/usr/lib/python3/dist-packages/apt/cache.py",
        "/var/lib/dpkg/lock",
        "/var/lib/dpkg/lock-frontend",
        "/var/lib/dpkg/triggers/Lock",
        "/var/lib/apt/lists/lock",
        "/var/cache/apt/archives/lock",
        "/home/user/file",
    ] {
        assert!(!policy.prepare.matches(Path::new(path)), "{path}");
    }
}

#[test]
fn a_walk_for_the_prepare_list_stays_out_of_the_large_trees() {
    let policy = Policy::builtin().unwrap();
    for dir in
        ["/usr/share/doc/bash", "/usr/share/locale/de", "/usr/include", "/home", "/lib/modules/6.1/kernel"]
    {
        assert!(!policy.prepare.may_match_below(Path::new(dir)), "{dir}");
    }
}

#[test]
fn what_differs_between_guests_is_never_unified() {
    let policy = Policy::builtin().unwrap();
    for path in [
        "/etc/passwd",
        "/var/lib/dpkg/status",
        "/home/user/x",
        "/root/.profile",
        "/run/x",
        "/tmp/x",
        "/srv/www/x",
        "/boot/vmlinuz-6.1",
        "/dev/x",
        "/proc/x",
        "/sys/x",
        "/usr/bin/x.dpkg-new",
        "/usr/share/x.ucf-dist",
        "/usr/lib/x.rpmsave",
        "/usr/lib/x/y.lock",
        "/usr/lib/sysimage/rpm/rpmdb.sqlite",
        "/usr/lib/locale/locale-archive",
        "/usr/lib/udev/hwdb.bin",
        "/usr/bin/bash;6b033b7d",
        "/.rpmdb/Packages",
        "/usr/share/rpm/rpmdb.sqlite-wal",
        "/opt/app/.rpm.lock",
        "/opt/app/app.log.1",
        "/opt/app/x.sqlite-shm",
        "/opt/app/logs/today",
        "/usr/local/app/.cache/x",
        "/usr/local/lib/perl5/perllocal.pod",
    ] {
        assert!(policy.never_unify.matches(Path::new(path)), "{path}");
    }
    for path in [
        "/usr/bin/bash",
        "/usr/lib/locale/C.utf8/LC_CTYPE",
        "/usr/lib/python3.11/__pycache__/os.pyc",
        "/usr/lib/rpm/macros",
        "/usr/share/mime/mime.cache",
        "/opt/packages/x-1.0.noarch.rpm",
        "/opt/app/catalog;1",
    ] {
        assert!(!policy.never_unify.matches(Path::new(path)), "{path}");
    }
}
