//! What shells and scripts read: completion, and the table of exit codes.

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

#[test]
fn the_page_has_the_exit_codes_of_the_help() {
    let said = String::from_utf8(drover(&["exit-codes"]).stdout).unwrap();
    let codes = |line: &str| line.split_whitespace().next()?.parse::<u8>().ok();
    let told: Vec<u8> = said.lines().filter_map(codes).collect();
    let page = include_str!("../../docs/cli.md");
    let rows = page.lines().filter_map(|line| codes(line.strip_prefix("| ")?));
    assert_eq!(told, rows.collect::<Vec<_>>());
    assert_eq!(told.len(), 11);
}
