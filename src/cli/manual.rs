//! The manual pages say what `--help` says: the same commands, options, values, defaults and exit codes.

use std::collections::{BTreeMap, BTreeSet};

use clap::{Arg, Command, CommandFactory};

use super::run::{FAILED, NOT_FOUND, NOT_RUN};
use crate::exit::Exit;
use crate::policy;

/// The exit codes of a command that can refuse.
const COMMON: [u8; 4] = [Exit::Done as u8, Exit::Partial as u8, Exit::Usage as u8, Exit::Refused as u8];

/// An option without its explanation.
#[derive(Debug, PartialEq, Eq)]
struct Described {
    /// `-n`, `--dry-run`.
    names: BTreeSet<String>,
    /// `DIR`, or the values there are: `owned | all`.
    value: String,
    default: String,
}

type Options = BTreeMap<String, Described>;

fn insert(options: &mut Options, names: BTreeSet<String>, value: String, default: String) {
    let key = names.iter().max_by_key(|name| name.len()).cloned().unwrap_or_default();
    assert!(options.insert(key.clone(), Described { names, value, default }).is_none(), "{key} twice");
}

/// The options of a command; those of `others` are left out.
fn options_of<'a>(arguments: impl IntoIterator<Item = &'a Arg>, others: &Options) -> Options {
    let mut options = Options::new();
    for option in arguments.into_iter().filter(|arg| !arg.is_positional()) {
        let short = option.get_short().map(|short| format!("-{short}"));
        let long = option.get_long().map(|long| format!("--{long}"));
        let names: BTreeSet<String> = short.into_iter().chain(long).collect();
        if others.values().any(|other| other.names == names) {
            continue;
        }
        let takes_value = option.get_action().takes_values();
        let possible = option.get_possible_values();
        let value = match (takes_value, option.get_value_names()) {
            (false, _) => String::new(),
            (true, Some([name])) if possible.is_empty() => {
                let several = option.get_num_args().is_some_and(|values| values.max_values() > 1);
                format!("{name}{}", if several { " ..." } else { "" })
            }
            (true, _) => possible.iter().map(|value| value.get_name()).collect::<Vec<_>>().join(" | "),
        };
        let default = option.get_default_values().first().filter(|_| takes_value);
        let help = option.get_help().map(ToString::to_string).unwrap_or_default();
        let in_help = help.split_once("[default: ").map(|(_, rest)| rest.trim_end_matches(']').to_owned());
        let default = default.map(|value| value.to_string_lossy().into_owned()).or(in_help);
        insert(&mut options, names, value, default.unwrap_or_default());
    }
    options
}

/// One section (`.Sh`) or subsection (`.Ss`) of a page.
fn section<'a>(page: &'a str, macro_name: &str, title: &str) -> &'a str {
    let head = format!("\n.{macro_name} {title}\n");
    let (_, rest) = page.split_once(&head).unwrap_or_else(|| panic!("no section {title}"));
    let ends = ["\n.Sh ", "\n.Ss "].iter().filter_map(|next| rest.find(next));
    &rest[..ends.min().unwrap_or(rest.len())]
}

/// The items of the outermost list in a section: what `.It` says, and the text below.
fn items(section: &str) -> Vec<(String, String)> {
    let mut items: Vec<(String, String)> = Vec::new();
    let mut depth = 0;
    for line in section.lines() {
        match line.split_once(' ').unwrap_or((line, "")) {
            (".Bl", _) => depth += 1,
            (".El", _) => depth -= 1,
            (".It", head) if depth == 1 => items.push((head.to_owned(), String::new())),
            (_, _) if depth == 0 => {}
            _ => items.last_mut().unwrap().1.push_str(&format!("{}\n", plain(line))),
        }
    }
    items
}

/// A line of text without its macros.
fn plain(line: &str) -> String {
    let words = line.split(' ').filter(|word| ![".Cm", ".Pa", ".Fl", ".Ar", "Cm", "No"].contains(word));
    let line = words.collect::<Vec<_>>().join(" ");
    [" .", " ;", " :"].iter().fold(line, |line, end| line.replace(end, end.trim_start()))
}

/// What an item says after `Default:`, up to the end of the sentence.
fn default_of(text: &str) -> String {
    let text = text.replace('\n', " ");
    let Some((_, rest)) = text.split_once("Default: ") else { return String::new() };
    rest.split(". ")
        .next()
        .unwrap_or_default()
        .trim_end()
        .trim_end_matches('.')
        .replace("-changed", "--changed")
}

/// The options that a section of a manual page lists.
fn options_in(section: &str) -> Options {
    let mut options = Options::new();
    for (head, text) in items(section) {
        let mut names = BTreeSet::new();
        let mut value = Vec::new();
        let mut words = head.split(' ').filter(|word| *word != ",");
        while let Some(word) = words.next() {
            match word {
                "Fl" => drop(names.insert(format!("-{}", words.next().unwrap()))),
                "Ar" | "Cm" => {}
                word => value.push(word),
            }
        }
        insert(&mut options, names, value.join(" "), default_of(&text));
    }
    options
}

/// The exit codes that a manual page lists.
fn codes_in(page: &str) -> BTreeSet<u8> {
    items(section(page, "Sh", "EXIT STATUS")).iter().map(|(code, _)| code.parse().unwrap()).collect()
}

/// The exit codes that `--help` lists.
fn codes_of(command: &Command) -> BTreeSet<u8> {
    let help = after_help(command);
    let listed = help.lines().filter(|line| line.starts_with("  "));
    listed.map(|line| line.split_whitespace().next().unwrap().parse().unwrap()).collect()
}

fn after_help(command: &Command) -> String {
    command.get_after_help().unwrap_or_else(|| panic!("{}", command.get_name())).to_string()
}

fn built<A: CommandFactory>() -> Command {
    let mut command = A::command();
    command.build();
    command
}

fn check<A: CommandFactory>(page: &str, codes: &[u8]) {
    let command = built::<A>();
    let none = Options::new();
    assert_eq!(options_in(section(page, "Sh", "OPTIONS")), options_of(command.get_arguments(), &none));
    check_codes(page, &command, codes);
}

fn check_codes(page: &str, command: &Command, codes: &[u8]) {
    let title = page.lines().find_map(|line| line.strip_prefix(".Dt ")).unwrap().to_lowercase();
    let (name, section) = title.split_once(' ').unwrap();
    let help = after_help(command);
    assert!(help.ends_with(&format!("\n\nManual page: {name}({section})")), "{help}");
    // Whoever asks for the help of a command of it sees no less.
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        assert_eq!(after_help(sub), help, "{}", sub.get_name());
    }
    assert_eq!(codes_in(page), codes_of(command));
    assert_eq!(codes_in(page), codes.iter().copied().collect());
}

#[test]
fn the_page_of_cow_prepare_says_what_its_help_says() {
    check::<super::prepare::Arguments>(include_str!("../../packaging/man/cow-prepare.8"), &COMMON);
}

#[test]
fn the_page_of_cow_run_says_what_its_help_says() {
    check::<super::run::Arguments>(
        include_str!("../../packaging/man/cow-run.1"),
        &[FAILED, NOT_RUN, NOT_FOUND],
    );
}

#[test]
fn the_page_of_cow_status_says_what_its_help_says() {
    check::<super::status::Arguments>(include_str!("../../packaging/man/cow-status.8"), &COMMON);
}

#[test]
fn the_page_of_cow_unify_says_what_its_help_says() {
    let page = include_str!("../../packaging/man/cow-unify.8");
    let command = built::<super::unify::arguments::Arguments>();
    let none = Options::new();
    let of_all = options_in(section(page, "Ss", "All commands"));
    let is_global = |arg: &&Arg| arg.is_global_set() || arg.get_id() == "help";
    assert_eq!(of_all, options_of(command.get_arguments().filter(is_global), &none));
    assert_eq!(options_in(section(page, "Ss", "Unifying")), options_of(command.get_arguments(), &of_all));

    check_subcommands(page, &command, &of_all);
    check_codes(page, &command, &COMMON);
}

#[cfg(feature = "guard")]
#[test]
fn the_page_of_cow_guard_says_what_its_help_says() {
    let page = include_str!("../../packaging/man/cow-guard.8");
    let command = built::<super::guard::arguments::Arguments>();
    let of_all = options_in(section(page, "Ss", "All commands"));
    assert_eq!(of_all, options_of(command.get_arguments(), &Options::new()));
    check_subcommands(page, &command, &of_all);
    check_codes(page, &command, &COMMON);
}

/// That a page lists the commands of a program, and the options of each but for those of all of them.
fn check_subcommands(page: &str, command: &Command, of_all: &Options) {
    // Its own help is `help` and `--help` of each.
    let subcommands = || command.get_subcommands().filter(|sub| sub.get_name() != "help");
    for sub in subcommands() {
        let own = options_of(sub.get_arguments(), of_all);
        let head = format!("\n.Ss {}\n", sub.get_name());
        let listed = if page.contains(&head) {
            options_in(section(page, "Ss", sub.get_name()))
        } else {
            Options::new()
        };
        assert_eq!(listed, own, "{}", sub.get_name());
    }
    let listed: BTreeSet<String> = items(section(page, "Ss", "Commands"))
        .iter()
        .filter_map(|(head, _)| head.strip_prefix("Cm ")?.split(' ').next().map(str::to_owned))
        .collect();
    let in_synopsis: BTreeSet<String> = section(page, "Sh", "SYNOPSIS")
        .lines()
        .filter_map(|line| line.strip_prefix(".Cm ").map(str::to_owned))
        .collect();
    let names: BTreeSet<String> = subcommands().map(|sub| sub.get_name().to_owned()).collect();
    assert_eq!((&listed, &in_synopsis), (&names, &names));
}

/// The values that the comment above a key explains.
fn explained(reference: &str, key: &str) -> BTreeSet<String> {
    let end = reference.find(&format!("\n{key} = ")).unwrap();
    let above = reference[..end].lines().rev().take_while(|line| line.starts_with('#'));
    let values = above.filter_map(|line| line.strip_prefix("#   ").filter(|rest| !rest.starts_with(' ')));
    values.filter_map(|rest| rest.split(' ').next().map(str::to_owned)).collect()
}

#[test]
fn the_page_of_the_policy_has_the_keys_values_and_defaults_of_the_reference() {
    let page = include_str!("../../packaging/man/cow-hooks.toml.5");
    let reference: toml::Table = policy::DEFAULT.parse().unwrap();
    let items = items(section(page, "Ss", "Keys"));
    let key = |head: &str| head.split(' ').nth(1).unwrap().to_owned();
    let listed: BTreeSet<String> = items.iter().map(|(head, _)| key(head)).collect();
    assert_eq!(listed, reference.keys().cloned().collect());
    for (head, text) in &items {
        let key = key(head);
        let default = match &reference[&key] {
            toml::Value::String(text) => text.clone(),
            toml::Value::Array(_) => String::new(),
            other => other.to_string(),
        };
        assert_eq!(default_of(text), default, "default of {key}");
        let values: BTreeSet<String> = head.split("\\(dq").skip(1).step_by(2).map(str::to_owned).collect();
        assert_eq!(values, explained(policy::DEFAULT, &key), "values of {key}");
    }
}
