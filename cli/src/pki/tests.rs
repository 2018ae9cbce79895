//! Certificates made here are taken by Drover's own TLS, and nothing is overwritten unasked.

use std::os::unix::fs::PermissionsExt;

use clap::Parser;
use time::OffsetDateTime;

use super::*;
use crate::args::{Cli, Command};

/// Runs `drover pki …` as typed; `DIR` stands for the folder.
fn pki(dir: &Path, line: &str) -> Result<Report, Problem> {
    let line = line.replace("DIR", dir.to_str().unwrap());
    let cli = Cli::parse_from(["drover", "pki"].into_iter().chain(line.split(' ')));
    let Command::Pki(command) = cli.command else {
        panic!("{line:?}")
    };
    match command {
        Pki::Init {
            dir,
            trust_domain,
            force,
        } => init(&dir, &trust_domain, force),
        Pki::Issue(command) => issue(command),
        Pki::Show { .. } => panic!("it makes nothing"),
    }
}

fn load(folder: &Path, trust_domain: &str) -> Tls {
    Tls::load(Folder(folder.to_owned()).files(), trust_domain.parse().unwrap()).unwrap()
}

#[test]
fn certificates_load_with_the_right_identity() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    pki(dir, "init DIR --trust-domain lab.local").unwrap();
    for (holder, folder, identity) in [
        ("controller", "controller", "controller"),
        (
            "agent host-1 --dns host-1.example --ip 10.0.0.1 --ip ::1",
            "agent-host-1",
            "agent/host-1",
        ),
        ("user alice", "user-alice", "user/alice"),
    ] {
        let report = pki(dir, &format!("issue DIR {holder}")).unwrap();
        assert!(report.changed);
        assert_eq!(
            load(&dir.join(folder), "lab.local").own_identity().to_string(),
            identity
        );
        let mode = std::fs::metadata(dir.join(folder).join("tls.key"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    assert_eq!(
        std::fs::metadata(dir.join("ca.key")).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let left: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left.len(), 5, "{left:?}");

    let shown = show::describe(&dir.join("agent-host-1/tls.crt"), OffsetDateTime::now_utc()).unwrap();
    assert_eq!(shown[0]["identity"], "spiffe://lab.local/agent/host-1");
    assert_eq!(shown[0]["names"][1]["dns"], "host-1.example");
    assert_eq!(shown[0]["names"][2]["ip"], "10.0.0.1");
    assert_eq!(shown[0]["names"][3]["ip"], "::1");
    assert_eq!(shown[0]["days_left"], 364);
    assert_eq!(shown[0]["expired"], false);
    let key = show::describe(&dir.join("user-alice/tls.key"), OffsetDateTime::now_utc()).unwrap();
    assert_eq!(key[0]["mode"], "0600");
}

#[test]
fn nothing_is_overwritten_unasked() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    pki(dir, "init DIR").unwrap();
    pki(dir, "issue DIR user alice").unwrap();
    let all = || ["ca.crt", "ca.key", "user-alice/tls.crt", "user-alice/tls.key"].map(|name| read(dir, name));
    let before = all();
    assert!(!pki(dir, "init DIR").unwrap().changed);
    assert!(!pki(dir, "issue DIR user alice").unwrap().changed);
    assert_eq!(
        pki(dir, "init DIR --trust-domain other.local").unwrap_err().exit,
        Exit::Refused
    );
    assert_eq!(
        pki(dir, "issue DIR user bob --out DIR/user-alice").unwrap_err().exit,
        Exit::Refused
    );
    assert_eq!(all(), before);

    assert!(pki(dir, "issue DIR user alice --force").unwrap().changed);
    assert_ne!(read(dir, "user-alice/tls.key"), before[3]);
    load(&dir.join("user-alice"), "drover.local");
    assert!(pki(dir, "init DIR --force").unwrap().changed);
    assert_ne!(read(dir, "ca.crt"), before[0]);
}

#[test]
fn names_are_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    assert_eq!(pki(dir, "issue DIR controller").unwrap_err().exit, Exit::NotFound);
    pki(dir, "init DIR").unwrap();
    assert_eq!(pki(dir, "issue DIR agent Host_1").unwrap_err().exit, Exit::Usage);
    assert_eq!(pki(dir, "issue DIR user a/b").unwrap_err().exit, Exit::Usage);
    assert_eq!(
        pki(dir, "init DIR/other --trust-domain A/b").unwrap_err().exit,
        Exit::Usage
    );
}

fn read(dir: &Path, name: &str) -> String {
    std::fs::read_to_string(dir.join(name)).unwrap()
}
