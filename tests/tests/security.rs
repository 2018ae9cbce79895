//! Who may do what, with real certificates on real ports.

use anyhow::{Result, ensure};
use drover_tests::cluster::{Cluster, Expected};
use drover_tests::{GuestSpec, Lab, run};
use std::process::Command;
use std::time::Duration;

/// Not authenticated, or no connection.
const UNREACHABLE: i32 = 5;
const NOT_ALLOWED: i32 = 9;

#[test]
fn only_the_right_certificate_and_role_may_move_a_guest() -> Result<()> {
    let mut lab = Lab::builder().start()?;
    let guest = lab.start_guest("host-a", &GuestSpec::new("web"))?;
    let cluster = Cluster::start(&lab)?;

    for user in ["vera", "nobody"] {
        let refused = cluster.drover_as(user, &["migrate", "web", "--to", "host-b", "--no-wait"])?;
        ensure!(refused.code == NOT_ALLOWED, "{user}: {refused:?}");
    }
    ensure!(
        cluster.drover_as("vera", &["guest", "list"])?.code == 0,
        "a viewer may look"
    );
    ensure!(
        cluster.drover_as("nobody", &["guest", "list"])?.code == NOT_ALLOWED,
        "no role, no look"
    );

    // A certificate with the right name from somebody else's CA.
    let foreign = cluster.folder().join("foreign");
    for arguments in [vec!["init"], vec!["issue"]] {
        let mut command = Command::new(cluster.folder().join("bin/drover"));
        command.arg("pki").args(&arguments).arg(&foreign);
        if arguments == ["issue"] {
            command.args(["user", "alice"]);
        }
        run(&mut command, Duration::from_secs(20))?;
    }
    let mut command = cluster.command("alice")?;
    command
        .env("DROVER_CERT", foreign.join("user-alice/tls.crt"))
        .env("DROVER_KEY", foreign.join("user-alice/tls.key"));
    let output = command.args(["guest", "list"]).output()?;
    ensure!(output.status.code() == Some(UNREACHABLE), "{output:?}");

    // An agent's certificate is no user's.
    let mut command = cluster.command("alice")?;
    let pki = cluster.pki();
    command
        .env("DROVER_CERT", pki.join("agent-host-a/tls.crt"))
        .env("DROVER_KEY", pki.join("agent-host-a/tls.key"));
    let output = command
        .args(["migrate", &guest.uuid().to_string(), "--to", "host-b"])
        .output()?;
    ensure!(!output.status.success(), "an agent moved a guest: {output:?}");

    ensure!(
        cluster.drover_as("sam", &["migrate", "web", "--to", "host-b"])?.code == 0,
        "a scheduler may"
    );
    cluster.check(&[Expected::Runs(&guest, "host-b")])
}
