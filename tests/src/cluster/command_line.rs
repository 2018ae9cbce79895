//! The `drover` command, as an operator in `control` would type it.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{CONTROLLER_PORT, Cluster};
use crate::process::{Output, run_any};
use crate::{Guest, wait_until};

/// The longest a whole migration may take in a lab.
const MIGRATION: Duration = Duration::from_secs(180);

/// One run of the command.
#[derive(Debug)]
pub struct Run {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    pub wall: Duration,
}

/// Fails where it ended with another code, or does not say all of that.
pub fn expect(run: &Run, code: i32, says: &[&str]) -> Result<()> {
    let said = format!("{}{}", run.stdout, run.stderr);
    ensure!(run.code == code, "exit code {} instead of {code}: {said}", run.code);
    for word in says {
        ensure!(said.contains(word), "it does not say {word:?}: {said}");
    }
    Ok(())
}

/// The record of a migration as `drover migration get -o json` prints it.
#[derive(Debug, Clone)]
pub struct Migration(pub Value);

impl Migration {
    fn text(&self, field: &str) -> &str {
        self.0[field].as_str().unwrap_or_default()
    }

    /// The bare UUID.
    pub fn id(&self) -> &str {
        self.text("name").trim_start_matches("migrations/")
    }

    /// `SUCCEEDED`, `FAILED`, ….
    pub fn state(&self) -> &str {
        self.text("state")
    }

    pub fn phase(&self) -> &str {
        self.text("phase")
    }

    /// The reason of its error; empty where there is none.
    pub fn reason(&self) -> &str {
        self.0["error"]["reason"].as_str().unwrap_or_default()
    }

    /// What its error says; empty where there is none.
    pub fn message(&self) -> &str {
        self.0["error"]["message"].as_str().unwrap_or_default()
    }

    fn last(&self, field: &str) -> &str {
        let phases = self.0["phases"].as_array().map(Vec::as_slice).unwrap_or_default();
        phases
            .last()
            .and_then(|phase| phase[field].as_str())
            .unwrap_or_default()
    }

    /// The phase that was tried last.
    pub fn last_phase(&self) -> &str {
        self.last("phase")
    }

    /// What was found or done in it.
    pub fn last_detail(&self) -> &str {
        self.last("detail")
    }

    /// What was changed on the way: name, value, who.
    pub fn actions(&self) -> Vec<(&str, &str, &str)> {
        let actions = self.0["actions"].as_array().map(Vec::as_slice).unwrap_or_default();
        actions.iter().map(action_of).collect()
    }

    pub fn at_rest(&self) -> bool {
        matches!(self.state(), "SUCCEEDED" | "FAILED" | "CANCELLED" | "GUEST_ENDED")
    }
}

fn action_of(action: &Value) -> (&str, &str, &str) {
    let [name, value, actor] = ["action", "value", "actor"].map(|field| action[field].as_str().unwrap_or_default());
    (name, value, actor)
}

impl Cluster<'_> {
    /// The command as user `alice` (an admin), not started yet.
    pub fn command(&self, user: &str) -> Result<Command> {
        let mut command = self.lab().control().command(&self.program("drover"))?;
        let pki = self.pki();
        let controller = format!("{}:{CONTROLLER_PORT}", crate::Network::Management.address(1));
        command.env("DROVER_CONTROLLER", controller);
        command.env("DROVER_CERT", pki.join(format!("user-{user}/tls.crt")));
        command.env("DROVER_KEY", pki.join(format!("user-{user}/tls.key")));
        command.env("DROVER_CA", pki.join("ca.crt"));
        command.env("NO_COLOR", "1");
        Ok(command)
    }

    /// Runs it to its end; a failing command is no error.
    pub fn drover_as(&self, user: &str, arguments: &[&str]) -> Result<Run> {
        let Output {
            status,
            stdout,
            stderr,
            wall,
        } = run_any(self.command(user)?.args(arguments), MIGRATION)?;
        Ok(Run {
            code: status.code().unwrap_or(-1),
            stdout,
            stderr,
            wall,
        })
    }

    /// Runs it as an admin; a failing command is no error.
    pub fn drover(&self, arguments: &[&str]) -> Result<Run> {
        self.drover_as("alice", arguments)
    }

    /// Runs it as an admin, has it succeed, and reads its JSON.
    pub fn drover_json(&self, arguments: &[&str]) -> Result<Value> {
        let run = self.drover(&[arguments, &["-o", "json"]].concat())?;
        if run.code != 0 {
            bail!(
                "drover {} ended with {}: {}",
                arguments.join(" "),
                run.code,
                run.stderr.trim()
            );
        }
        serde_json::from_str(&run.stdout).with_context(|| format!("not JSON: {}", run.stdout))
    }

    /// Ids of the registered hosts.
    pub fn hosts(&self) -> Result<Vec<String>> {
        let hosts = self.drover_json(&["host", "list"])?;
        let hosts = hosts["hosts"].as_array().context("no field `hosts`")?;
        let up = hosts.iter().filter(|host| host["state"] == "UP");
        Ok(up
            .filter_map(|host| Some(host["name"].as_str()?.trim_start_matches("hosts/").to_string()))
            .collect())
    }

    /// Moves a guest and waits for the end; anything but success is an error that quotes the command.
    pub fn migrate(&self, guest: &Guest, to: &str) -> Result<(Migration, Run)> {
        let run = self.drover(&["migrate", guest.name(), "--to", to, "-o", "json"])?;
        if run.code != 0 {
            bail!(
                "drover migrate {} --to {to} ended with {}: {}{}",
                guest.name(),
                run.code,
                run.stderr,
                run.stdout
            );
        }
        let migration = serde_json::from_str(&run.stdout).with_context(|| format!("not JSON: {}", run.stdout))?;
        Ok((Migration(migration), run))
    }

    /// Starts a move without waiting for its end.
    pub fn begin(&self, guest: &Guest, to: &str) -> Result<Migration> {
        Ok(Migration(self.drover_json(&[
            "migrate",
            guest.name(),
            "--to",
            to,
            "--no-wait",
        ])?))
    }

    /// The same with flags: `--bandwidth`, `--deadline`, ….
    pub fn begin_with(&self, guest: &Guest, to: &str, flags: &[&str]) -> Result<Migration> {
        let command = ["migrate", guest.name(), "--to", to, "--no-wait"];
        Ok(Migration(self.drover_json(&[&command, flags].concat())?))
    }

    /// Changes a migration on its way.
    pub fn adjust(&self, id: &str, flags: &[&str]) -> Result<Migration> {
        Ok(Migration(
            self.drover_json(&[&["migration", "adjust", id], flags].concat())?,
        ))
    }

    pub fn migration(&self, id: &str) -> Result<Migration> {
        Ok(Migration(self.drover_json(&["migration", "get", id])?))
    }

    /// Waits until `condition` is true of the record, or it is at rest (then whether the condition holds decides).
    pub fn wait_for(&self, id: &str, what: &str, condition: impl Fn(&Migration) -> bool) -> Result<Migration> {
        wait_until(&format!("migration {id}: {what}"), MIGRATION, || {
            let migration = self.migration(id)?;
            if condition(&migration) {
                return Ok(Some(migration));
            }
            anyhow::ensure!(!migration.at_rest(), "it ended: {}", migration.0);
            Ok(None)
        })
    }

    pub fn wait_for_rest(&self, id: &str) -> Result<Migration> {
        self.wait_for(id, "to come to rest", Migration::at_rest)
    }
}
