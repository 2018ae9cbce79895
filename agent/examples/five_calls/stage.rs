//! Two hosts and one guest: the steps that scenarios are made of.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use crate::Run;
use crate::peer::Peer;

pub(crate) struct Stage<'a> {
    pub(crate) run: &'a Run,
    pub(crate) source: Peer,
    pub(crate) destination: Peer,
    pub(crate) guest: String,
    name: String,
    persistent_xml: Option<String>,
    migrations: u32,
}

/// Flags of a plain pre-copy migration.
pub(crate) fn flags(persistent: bool) -> Value {
    json!({
        "persistent": persistent, "post_copy": false, "auto_converge": false,
        "storage_proved": false, "parallel": 0,
    })
}

impl<'a> Stage<'a> {
    pub(crate) fn new(run: &'a Run) -> anyhow::Result<Self> {
        let xml = std::fs::read_to_string(&run.xml)?;
        let text = |tag: &str| -> anyhow::Result<String> {
            let (_, rest) = xml
                .split_once(&format!("<{tag}>"))
                .with_context(|| format!("no <{tag}>"))?;
            Ok(rest.split('<').next().unwrap_or_default().to_owned())
        };
        Ok(Self {
            run,
            source: Peer::start("source", &run.source, &run.source_uri)?,
            destination: Peer::start("destination", &run.destination, &run.destination_uri)?,
            guest: text("uuid")?,
            name: text("name")?,
            persistent_xml: None,
            migrations: 0,
        })
    }

    pub(crate) fn start_guest(&mut self, persistent: bool) -> anyhow::Result<()> {
        let file = self.run.xml.to_str().context("odd path")?;
        if persistent {
            self.source.virsh(&["define", file])?;
            self.source.virsh(&["start", &self.name])?;
        } else {
            self.source.virsh(&["create", file])?;
        }
        let facts = self.source.must("guest", json!({ "guest": self.guest }))?;
        ensure!(
            facts["state"] == "Running" && facts["persistent"] == persistent,
            "{facts}"
        );
        ensure!(
            facts["incarnation"]["qemu_pid"].as_u64().is_some(),
            "no incarnation: {facts}"
        );
        self.persistent_xml = facts["inactive_xml"].as_str().map(|xml| {
            // Something that only the persistent definition has, to see which one arrives.
            xml.replace(
                "</domain>",
                "<metadata><m:drover xmlns:m='drover:mark'/></metadata></domain>",
            )
        });
        // Let it boot, so that there is memory to send.
        std::thread::sleep(Duration::from_secs(3));
        Ok(())
    }

    fn socket(&self, side: &str) -> PathBuf {
        self.run.sockets.join(format!("{}-{side}", self.migrations))
    }

    /// Begin and Prepare, and the relay between the two sockets; gives the cookie for Perform.
    pub(crate) fn prepare(&mut self, flags: &Value) -> anyhow::Result<Value> {
        self.migrations += 1;
        let begun = self
            .source
            .must("begin", json!({ "guest": self.guest, "flags": flags }))?;
        let cookie = self.destination.must("prepare", self.prepare_request(&begun, flags))?;
        let relay = json!({ "listen": self.socket("source"), "connect": self.socket("destination") });
        self.source.must("relay", relay)?;
        Ok(cookie)
    }

    pub(crate) fn prepare_request(&self, begun: &Value, flags: &Value) -> Value {
        json!({
            "guest": self.guest, "name": self.name, "xml": begun["xml"], "cookie": begun["cookie"],
            "flags": flags, "socket": self.socket("destination"),
        })
    }

    /// Perform begins; 0 is no limit.
    pub(crate) fn perform(&mut self, cookie: &Value, bandwidth: u64) -> anyhow::Result<()> {
        let request = json!({
            "cookie": cookie, "socket": self.socket("source"),
            "persistent_xml": self.persistent_xml, "bandwidth": bandwidth,
        });
        self.source.must("perform", request).map(drop)
    }

    /// Perform from beginning to end; gives the cookie for Finish.
    pub(crate) fn send(&mut self, cookie: &Value) -> anyhow::Result<Value> {
        self.show_sockets("before Perform");
        self.perform(cookie, 0)?;
        let cookie = self.source.must("performed", json!({}));
        self.show_sockets("after Perform");
        cookie
    }

    /// Who owns the sockets, and who may use them.
    fn show_sockets(&self, when: &str) {
        for side in ["source", "destination"] {
            let socket = self.socket(side);
            match std::fs::symlink_metadata(&socket) {
                Ok(found) => println!(
                    "      {when}: {side} socket {:o}, user {}, group {}",
                    found.mode() & 0o7777,
                    found.uid(),
                    found.gid()
                ),
                Err(error) => println!("      {when}: {side} socket: {error}"),
            }
        }
    }

    /// A whole migration.
    pub(crate) fn migrate(&mut self, flags: &Value) -> anyhow::Result<()> {
        self.source.must("events", json!({}))?;
        self.destination.must("events", json!({}))?;
        let cookie = self.prepare(flags)?;
        let cookie = self.send(&cookie)?;
        self.expect("PausedMigrating", "PausedMigrating")?;
        let cookie = self.destination.must("finish", json!({ "cookie": cookie }))?;
        let state = self.destination.state(&self.guest)?;
        ensure!(state == "Paused", "the destination is {state} after Finish");
        self.destination.must("resume", json!({ "guest": self.guest }))?;
        let completed = self.source.must("outgoing_completed", json!({}))?;
        println!("      source, before Confirm: {completed}");
        self.source.must("confirm_moved", json!({ "cookie": cookie }))?;
        let completed = self.destination.must("completed_job", json!({ "guest": self.guest }))?;
        println!("      destination: {completed}");
        println!("      source events: {}", self.source.must("events", json!({}))?);
        println!(
            "      destination events: {}",
            self.destination.must("events", json!({}))?
        );
        Ok(())
    }

    /// The states of both copies, waited for.
    pub(crate) fn expect(&mut self, destination: &str, source: &str) -> anyhow::Result<()> {
        self.destination.wait_for(&self.guest, &[destination])?;
        self.source.wait_for(&self.guest, &[source])
    }

    pub(crate) fn wait_until_sending(&mut self) -> anyhow::Result<()> {
        let until = Instant::now() + Duration::from_secs(10);
        while Instant::now() < until {
            let job = self.source.must("outgoing_job", json!({}))?;
            if job["memory_processed"].as_u64().is_some_and(|bytes| bytes > 0) {
                println!("      job: {job}");
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        bail!("nothing is sent")
    }

    /// Asks the source what has to work at once, also while it sends.
    pub(crate) fn prompt(&mut self, op: &str, arguments: Value) -> anyhow::Result<()> {
        let answer = self.source.ask(op, arguments)?;
        ensure!(answer.result.is_ok(), "{op}: {answer:?}");
        ensure!(answer.milliseconds < 1000.0, "{op} took {} ms", answer.milliseconds);
        Ok(())
    }

    pub(crate) fn wait_without_job(&mut self) -> anyhow::Result<()> {
        let until = Instant::now() + Duration::from_secs(10);
        while Instant::now() < until {
            if self.source.must("job", json!({ "guest": self.guest }))?.is_null() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        bail!("the job stays")
    }

    pub(crate) fn swap(&mut self) {
        std::mem::swap(&mut self.source, &mut self.destination);
    }

    /// QEMU removes its socket when the stream has attached; one of a copy that died before stays.
    pub(crate) fn remove_sockets(&self) {
        for side in ["source", "destination"] {
            let socket = self.socket(side);
            if socket.exists() {
                println!("      left behind: the {side} socket");
                drop(std::fs::remove_file(socket));
            }
        }
    }

    /// Removes the guest from both hosts, whatever happened.
    pub(crate) fn clean_up(&mut self) {
        for peer in [&mut self.source, &mut self.destination] {
            for op in ["drop_outgoing", "drop_incoming"] {
                drop(peer.ask(op, json!({})));
            }
            drop(peer.virsh(&["destroy", &self.name]));
            drop(peer.virsh(&["undefine", &self.name]));
        }
        self.remove_sockets();
        if self.source.name == "destination" {
            self.swap();
        }
    }
}
