//! What shells and scripts read: completion, and the table of exit codes.

use std::collections::HashSet;
use std::process::{Command, Output};

fn drover(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_drover"));
    command.env_clear().args(arguments).output().unwrap()
}

#[test]
fn completion_needs_no_controller_and_names_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let said = drover(&["completion", shell]);
        assert!(said.status.success(), "{shell}");
        let script = String::from_utf8(said.stdout).unwrap();
        for word in ["migrate", "check", "timeline", "exit-codes", "destination-is-fenced"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    assert_eq!(drover(&["completion", "teletype"]).status.code(), Some(2));
}

/// The page for those who write scripts.
const PAGE: &str = include_str!("../../docs/cli.md");

#[test]
fn the_page_has_the_exit_codes_of_the_help() {
    let said = String::from_utf8(drover(&["exit-codes"]).stdout).unwrap();
    let row = |line: &str| {
        let (code, means) = line.trim().split_once(' ')?;
        Some((code.parse::<u8>().ok()?, means.trim().to_owned()))
    };
    let told: Vec<_> = said.lines().filter_map(row).collect();
    let cells = |line: &str| Some(line.strip_prefix("| ")?.strip_suffix(" |")?.replacen(" | ", " ", 1));
    let rows = PAGE.lines().filter_map(cells).filter_map(|line| row(&line));
    assert_eq!(told, rows.collect::<Vec<_>>());
    assert_eq!(told.len(), 11);
}

#[test]
fn the_page_names_no_flag_and_no_command_that_is_not_there() {
    let script = String::from_utf8(drover(&["completion", "bash"]).stdout).unwrap();
    let known: HashSet<&str> = script
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'))
        .collect();
    let code = PAGE.split('`').skip(1).step_by(2);
    let words: Vec<&str> = code.flat_map(str::split_whitespace).collect();
    let flags = words.iter().filter(|word| word.starts_with("--"));
    let commands = words.windows(2).filter(|two| two[0].ends_with("drover"));
    let commands = commands
        .map(|two| two[1])
        .filter(|word| word.starts_with(|c: char| c.is_ascii_lowercase()));
    let named: Vec<&str> = flags.copied().chain(commands).collect();
    assert!(named.len() > 15, "the page was read: {named:?}");
    for word in named {
        assert!(known.contains(word), "{word}");
    }
}
