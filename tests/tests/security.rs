//! Who may do what, with real certificates on real ports.

use anyhow::{Result, ensure};
use drover_agent::tunnel::Refusal;
use drover_agent::tunnel::hello::{Channel, Hello, Reply};
use drover_proto::agent::v1::HandOverGuestRequest;
use drover_proto::agent::v1::peer_service_client::PeerServiceClient;
use drover_proto::failure::{Failure, Reason};
use drover_proto::identity::{Identity, TrustDomain};
use drover_proto::ids::{Attempt, MigrationId, Ticket};
use drover_proto::tls::{ALPN_DATA, Tls, TlsFiles};
use drover_tests::cluster::{AGENT_PORT, Cluster, Expected};
use drover_tests::{GuestSpec, Lab, Network, run};
use std::process::Command;
use std::time::Duration;
use tokio::io::AsyncWriteExt;

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
        run(&mut command, Duration::from_secs(60))?;
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

/// Somebody who holds host-a's key, but not the ticket, during a migration from host-a.
fn intrude(cluster: &Cluster<'_>, migration: &str) -> Result<()> {
    let folder = cluster.pki().join("agent-host-a");
    let files = TlsFiles {
        certificate: folder.join("tls.crt"),
        key: folder.join("tls.key"),
        ca: folder.join("ca.crt"),
    };
    let domain: TrustDomain = "drover.local".parse()?;
    let tls = Tls::load(files, domain)?;
    let expected = Identity::Agent("host-b".parse()?);
    let address = format!("{}:{AGENT_PORT}", cluster.host("host-b").address());
    let ticket = Ticket::generate()?;
    let migration: MigrationId = migration.parse()?;
    let hello = Hello {
        migration,
        attempt: Attempt(1),
        ticket: ticket.clone(),
        channel: Channel::Main,
    };
    cluster.host("host-a").in_network(|| {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(async {
                let mut stream = tls.connect(&address, ALPN_DATA, &expected).await?;
                stream.write_all(&hello.encode()).await?;
                let reply = tokio::time::timeout(Duration::from_secs(60), Reply::read(&mut stream)).await??;
                ensure!(
                    matches!(
                        reply,
                        Reply::Refused {
                            refusal: Refusal::Ticket,
                            ..
                        }
                    ),
                    "{reply:?}"
                );

                let channel = drover_proto::channel::channel(&tls, &address, expected.clone())?;
                let request = HandOverGuestRequest {
                    migration_id: migration.to_string(),
                    attempt: 1,
                    ticket: ticket.as_bytes().to_vec().into(),
                    ..HandOverGuestRequest::default()
                };
                let answer = PeerServiceClient::new(channel).hand_over_guest(request).await;
                let refused = answer.err().map(|status| Failure::from_status(&status).reason);
                ensure!(refused == Some(Reason::TicketRefused), "{refused:?}");
                Ok(())
            })
    })
}

#[test]
fn a_wrong_ticket_opens_nothing_and_does_not_disturb() -> Result<()> {
    let mut lab = Lab::builder().start()?;
    let guest = lab.start_guest("host-a", &GuestSpec::new("web").fill_mib(160).dirty_mib_per_second(5))?;
    let cluster = Cluster::start(&lab)?;
    let watch = lab.watch(&[&guest])?;
    cluster.host("host-a").link(Network::Management).limit_mbit(Some(40))?;
    let id = cluster.begin(&guest, "host-b")?.id().to_string();
    cluster.wait_for(&id, "to send memory", |now| {
        now.0["progress"]["memory_sent_bytes"].as_u64() > Some(1 << 20)
    })?;
    intrude(&cluster, &id)?;
    cluster.host("host-a").link(Network::Management).limit_mbit(None)?;
    let end = cluster.wait_for_rest(&id)?;
    ensure!(end.state() == "SUCCEEDED", "{}", end.0);
    cluster.check(&[Expected::Runs(&guest, "host-b")])?;
    watch.finish()?.check_path("web", &["host-a", "host-b"])
}
