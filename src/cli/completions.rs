//! The completions that the packages install for bash, zsh and fish are what clap makes of the command lines. A command
//! line that has changed needs them anew: run these tests with `COW_HOOKS_WRITE_COMPLETIONS` set.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::CommandFactory;
use clap_complete::{Generator, Shell, generate};

const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Zsh, Shell::Fish];

fn installed(shell: Shell, name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/completions").join(shell.file_name(name))
}

/// The generator for bash calls a command of a program with a hyphen in its name in two ways, so that the options of the
/// command would not be found: `cow__unify__subcmd__gc` and `cow__subcmd__unify__subcmd__gc`.
fn with_one_name(program: &str, made: &str) -> String {
    made.replace(&program.replace('-', "__subcmd__"), &program.replace('-', "__"))
}

fn check<A: CommandFactory>() {
    for shell in SHELLS {
        let mut command = A::command();
        let name = command.get_name().to_owned();
        let mut made = Vec::new();
        generate(shell, &mut command, &name, &mut made);
        let made = with_one_name(&name, &String::from_utf8(made).unwrap());
        let path = installed(shell, &name);
        if std::env::var_os("COW_HOOKS_WRITE_COMPLETIONS").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &made).unwrap();
        }
        let there = std::fs::read(&path).unwrap_or_default();
        assert!(
            there == made.as_bytes(),
            "{} is not what clap makes now: set COW_HOOKS_WRITE_COMPLETIONS and run this test again",
            path.display()
        );
    }
}

#[test]
fn the_completions_of_cow_prepare_are_those_of_its_command_line() {
    check::<super::prepare::Arguments>();
}

#[test]
fn the_completions_of_cow_run_are_those_of_its_command_line() {
    check::<super::run::Arguments>();
}

#[test]
fn the_completions_of_cow_status_are_those_of_its_command_line() {
    check::<super::status::Arguments>();
}

#[test]
fn the_completions_of_cow_unify_are_those_of_its_command_line() {
    check::<super::unify::arguments::Arguments>();
}

#[cfg(feature = "guard")]
#[test]
fn the_completions_of_cow_guard_are_those_of_its_command_line() {
    check::<super::guard::arguments::Arguments>();
}

/// What bash offers for the last of these words.
fn offered(words: &[&str]) -> Option<Vec<String>> {
    let [name, ..] = words else { return None };
    let script = format!(
        "source {}; COMP_WORDS=({}); COMP_CWORD={}; [[ $(complete -p {name}) =~ -F\\ ([^ ]+) ]] || exit 1; \
         ${{BASH_REMATCH[1]}} {name} \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD-1]}}\"; \
         printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        installed(Shell::Bash, name).display(),
        words.join(" "),
        words.len() - 1,
    );
    let output = Command::new("bash").args(["--norc", "-c", &script]).stdin(Stdio::null()).output();
    let Ok(output) = output else {
        eprintln!("skipped: there is no bash");
        return None;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect())
}

#[test]
fn bash_completes_commands_and_values() {
    for (words, expected) in [
        (&["cow-unify", "stat"][..], &["status"][..]),
        (&["cow-unify", "--scope", "a"], &["all"]),
        (&["cow-unify", "gc", "--dry"], &["--dry-run"]),
        (&["cow-prepare", "--rec"], &["--recover"]),
        (&["cow-status", "--js"], &["--json"]),
        (&["cow-run", "--unp"], &["--unprotected"]),
        (&["cow-guard", "lo"], &["load"]),
    ] {
        if let Some(offered) = offered(words) {
            assert_eq!(offered, expected, "{words:?}");
        }
    }
}
