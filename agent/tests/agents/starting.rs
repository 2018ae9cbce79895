//! What somebody sees who starts the process for the first time: the next step, and no backtrace.

use std::path::Path;
use std::process::Command;

/// Starts it with this configuration and gives what it says before it ends.
fn said(config: &Path) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_drover-agent"))
        .arg("--config")
        .arg(config)
        .env("RUST_BACKTRACE", "1")
        .env("RUST_LIB_BACKTRACE", "1")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!said.contains("backtrace") && !said.contains("   0: "), "{said}");
    said
}

fn said_of(text: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("agent.toml");
    std::fs::write(&file, text).unwrap();
    said(&file)
}

/// A configuration that is whole but for its certificates.
fn agent_in(state_dir: &Path) -> String {
    let tls = "[tls]\ncertificate = '/nowhere/tls.crt'\nkey = '/nowhere/tls.key'\nca = '/nowhere/ca.crt'\n";
    let state = state_dir.display();
    format!("host_id = 'host-a'\nmanagement_address = '127.0.0.1:1'\nstate_dir = '{state}'\n{tls}")
}

#[test]
fn a_missing_configuration_tells_the_next_step() {
    let file = Path::new("/nowhere/agent.toml");
    let said = said(file);
    assert!(
        said.contains("/nowhere/agent.toml") && said.contains("next: "),
        "{said}"
    );
}

#[test]
fn a_missing_key_is_named() {
    let said = said_of("host_id = 'host-a'\nmanagement_address = '127.0.0.1:1'");
    assert!(said.contains("next: ") && said.contains("tls"), "{said}");
}

#[test]
fn missing_certificates_are_told_once() {
    let state = tempfile::tempdir().unwrap();
    let said = said_of(&agent_in(state.path()));
    let told = said.lines().filter(|line| line.contains("/nowhere/tls.crt"));
    assert_eq!(told.count(), 1, "{said}");
}

#[test]
fn a_second_agent_on_the_same_journals_is_refused() {
    let state = tempfile::tempdir().unwrap();
    let first = std::fs::File::create(state.path().join("lock")).unwrap();
    first.lock().unwrap();
    let refused = said_of(&agent_in(state.path()));
    assert!(refused.contains("another agent works in"), "{refused}");
    drop(first);
    let free = said_of(&agent_in(state.path()));
    assert!(!free.contains("another agent"), "{free}");
}
