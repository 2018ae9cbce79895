//! The configuration of a Drover in a lab: certificates by `drover pki`, one TOML file for each daemon.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{AGENT_PORT, CONTROLLER_PORT, Cluster};
use crate::network::Network;
use crate::process::run;

/// Plain health and metrics of the controller, inside `control`.
pub(super) const METRICS_PORT: u16 = 7441;

/// Users of the lab and their roles; `nobody` has a good certificate and no role.
const USERS: [(&str, &str); 5] = [
    ("alice", "admin"),
    ("oscar", "operator"),
    ("vera", "viewer"),
    ("sam", "scheduler"),
    ("nobody", ""),
];

/// Writes what is not there yet: a cluster that is started a second time in one lab keeps identities and state.
pub(super) fn write(cluster: &Cluster<'_>) -> Result<()> {
    let pki = cluster.pki();
    if !pki.exists() {
        make_pki(cluster, &pki)?;
    }
    fs::create_dir_all(cluster.folder().join("state"))?;
    fs::write(cluster.folder().join("controller.toml"), controller(cluster))?;
    for host in cluster.lab().hosts() {
        let path = cluster.folder().join(format!("{}.toml", host.name()));
        fs::write(path, agent(cluster, host.name(), &host.address().to_string()))?;
    }
    Ok(())
}

fn make_pki(cluster: &Cluster<'_>, pki: &Path) -> Result<()> {
    let drover = |arguments: &[&str]| {
        let mut command = Command::new(cluster.program("drover"));
        command.arg("pki").args(arguments);
        run(&mut command, Duration::from_secs(60)).context("drover pki")
    };
    let folder = pki.display().to_string();
    drover(&["init", &folder])?;
    // Names for clients that check them: by the address in the lab, and by a name.
    let address = Network::Management.address(1).to_string();
    let names = ["--ip", &address, "--dns", "drover-controller"];
    drover(&[&["issue", &folder, "controller"], &names[..]].concat())?;
    for (user, _) in USERS {
        drover(&["issue", &folder, "user", user])?;
    }
    for host in cluster.lab().hosts() {
        drover(&["issue", &folder, "agent", host.name()])?;
        // The agent reads its key as its own user, and nobody else's.
        let key = pki.join(format!("agent-{}/tls.key", host.name()));
        let user = nix::unistd::User::from_name(crate::libvirtd::AGENT)?.context("no user for the agent")?;
        nix::unistd::chown(&key, Some(user.uid), Some(user.gid)).with_context(|| key.display().to_string())?;
    }
    Ok(())
}

fn tls(cluster: &Cluster<'_>, name: &str) -> String {
    let pki = cluster.pki();
    let pki = pki.display();
    format!("\n[tls]\ncertificate = \"{pki}/{name}/tls.crt\"\nkey = \"{pki}/{name}/tls.key\"\nca = \"{pki}/ca.crt\"\n")
}

fn controller(cluster: &Cluster<'_>) -> String {
    let store = cluster.folder().join("state/drover.db");
    let mut text = format!(
        "listen = \"0.0.0.0:{CONTROLLER_PORT}\"\n\
         metrics_listen = \"127.0.0.1:{METRICS_PORT}\"\n\
         store = \"sqlite://{}\"\n\
         heartbeat_interval_seconds = 2\n\n[roles]\n",
        store.display()
    );
    for (user, role) in USERS {
        if !role.is_empty() {
            text.push_str(&format!("{role} = [\"{user}\"]\n"));
        }
    }
    text + &tls(cluster, "controller")
}

fn agent(cluster: &Cluster<'_>, host: &str, address: &str) -> String {
    let controller = Network::Management.address(1);
    format!(
        "host_id = \"{host}\"\n\
         listen = \"0.0.0.0:{AGENT_PORT}\"\n\
         management_address = \"{address}:{AGENT_PORT}\"\n\
         controller = \"{controller}:{CONTROLLER_PORT}\"\n\
         state_dir = \"/var/lib/drover\"\n\
         run_dir = \"/run/drover\"\n\
         storage_directories = [\"/srv/local\", \"/srv/shared\", \"/var/lib/libvirt/swtpm\"]\n\
         block_devices = [\"/srv/devices\"]\n"
    ) + &tls(cluster, &format!("agent-{host}"))
}
