//! One host's half: reads a command a line, does it through the seam, answers a line.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use drover_agent::hypervisor::{
    BeginRequest, Cookie, CpuQuestion, Hypervisor, HypervisorError, Incoming, MigrateFlags, Outgoing, PerformRequest,
    PrepareRequest, Throttle,
};
use drover_agent::libvirt::Libvirt;
use drover_proto::ids::GuestId;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::broadcast;
use tokio::task::JoinHandle;

use crate::relay;

#[derive(Deserialize)]
#[serde(untagged)]
enum Command {
    Look(Look),
    Receive(Receive),
    Send(Send),
}

/// What concerns the host and its guests.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case", tag = "op")]
enum Look {
    Host,
    Guests,
    Guest {
        guest: GuestId,
    },
    CpuFits {
        domain_type: String,
        machine: String,
        cpu_xml: Option<String>,
    },
    CompletedJob {
        guest: GuestId,
    },
    Job {
        guest: GuestId,
    },
    Resume {
        guest: GuestId,
    },
    Suspend {
        guest: GuestId,
    },
    SetAutostart {
        guest: GuestId,
        autostart: bool,
    },
    Define {
        xml: String,
    },
    Undefine {
        guest: GuestId,
    },
    Events,
}

/// The destination's part.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case", tag = "op")]
enum Receive {
    Prepare {
        guest: GuestId,
        name: String,
        xml: String,
        cookie: Cookie,
        flags: MigrateFlags,
        socket: String,
    },
    Finish {
        cookie: Cookie,
    },
    Cancel,
    DropIncoming,
}

/// The source's part, with the relay between the two sockets.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case", tag = "op")]
enum Send {
    Begin {
        guest: GuestId,
        flags: MigrateFlags,
    },
    Relay {
        listen: String,
        connect: String,
    },
    CutRelay,
    /// Answers at once.
    Perform {
        cookie: Cookie,
        socket: String,
        persistent_xml: Option<String>,
        bandwidth: u64,
    },
    /// Waits for the end of Perform.
    Performed,
    /// Drops the future of Perform.
    ForgetPerform,
    ConfirmMoved {
        cookie: Cookie,
    },
    ConfirmCancelled,
    DropOutgoing,
    Abort,
    OutgoingJob,
    OutgoingCompleted,
    SetMaxDowntime {
        milliseconds: u64,
    },
    SetBandwidth {
        bytes: u64,
    },
}

type Performing = JoinHandle<Result<Cookie, HypervisorError>>;

struct Host {
    libvirt: Arc<Libvirt>,
    events: broadcast::Receiver<drover_agent::hypervisor::GuestEvent>,
    outgoing: Option<Arc<dyn Outgoing>>,
    incoming: Option<Arc<dyn Incoming>>,
    performing: Option<Performing>,
    relay: Option<JoinHandle<()>>,
}

pub(crate) async fn serve(uri: &str) -> anyhow::Result<()> {
    let libvirt = Libvirt::connect(uri).await?;
    libvirt.can_migrate().map_err(anyhow::Error::msg)?;
    let events = libvirt.events();
    let mut host = Host {
        libvirt,
        events,
        outgoing: None,
        incoming: None,
        performing: None,
        relay: None,
    };
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let command = serde_json::from_str(&line).with_context(|| line.clone())?;
        let started = Instant::now();
        let answer = host.obey(command).await;
        let milliseconds = started.elapsed().as_secs_f64() * 1000.0;
        let reply = match answer {
            Ok(value) => json!({ "ok": value, "ms": milliseconds }),
            Err(error) => json!({ "error": describe(&error), "ms": milliseconds }),
        };
        println!("{reply}");
    }
    Ok(())
}

fn describe(error: &anyhow::Error) -> Value {
    match error.downcast_ref::<HypervisorError>() {
        Some(error) => {
            json!({ "class": format!("{:?}", error.class), "code": error.code, "message": error.message })
        }
        None => json!({ "class": "Driver", "code": "", "message": format!("{error:#}") }),
    }
}

impl Host {
    async fn obey(&mut self, command: Command) -> anyhow::Result<Value> {
        match command {
            Command::Look(look) => self.look(look).await,
            Command::Receive(receive) => self.receive(receive).await,
            Command::Send(send) => self.send(send).await,
        }
    }

    async fn look(&mut self, look: Look) -> anyhow::Result<Value> {
        let libvirt = &self.libvirt;
        Ok(match look {
            Look::Host => json!(format!("{:?}", libvirt.host().await?)),
            Look::Guests => json!(libvirt.guests().await?.len()),
            Look::Guest { guest } => self.guest(guest).await?,
            Look::CpuFits {
                domain_type,
                machine,
                cpu_xml,
            } => {
                let question = CpuQuestion {
                    domain_type,
                    arch: "x86_64".to_owned(),
                    machine,
                    cpu_xml,
                };
                json!(format!("{:?}", libvirt.cpu_fits(&question).await?))
            }
            Look::Job { guest } => json!(libvirt.job(guest).await?),
            Look::CompletedJob { guest } => json!(libvirt.completed_job(guest).await?),
            Look::Resume { guest } => json!(libvirt.resume(guest).await?),
            Look::Suspend { guest } => json!(libvirt.suspend(guest).await?),
            Look::SetAutostart { guest, autostart } => json!(libvirt.set_autostart(guest, autostart).await?),
            Look::Define { xml } => json!(libvirt.define(&xml).await?),
            Look::Undefine { guest } => json!(libvirt.undefine(guest).await?),
            Look::Events => self.drain_events(),
        })
    }

    async fn guest(&self, guest: GuestId) -> anyhow::Result<Value> {
        let Some(facts) = self.libvirt.guest(guest).await? else {
            return Ok(Value::Null);
        };
        Ok(json!({
            "state": facts.state, "persistent": facts.persistent, "autostart": facts.autostart,
            "name": facts.name, "memory": facts.memory, "vcpus": facts.vcpus, "snapshots": facts.snapshots,
            "incarnation": facts.incarnation, "inactive_xml": facts.inactive_xml, "xml": facts.xml,
        }))
    }

    async fn receive(&mut self, receive: Receive) -> anyhow::Result<Value> {
        Ok(match receive {
            Receive::Prepare {
                guest,
                name,
                xml,
                cookie,
                flags,
                socket,
            } => {
                let persistent_xml = None;
                let socket = socket.into();
                let request = PrepareRequest {
                    guest,
                    name,
                    xml,
                    persistent_xml,
                    cookie,
                    flags,
                    socket,
                    disks_socket: Default::default(),
                };
                let incoming = self.libvirt.prepare(request).await?;
                let cookie = incoming.cookie().clone();
                self.incoming = Some(incoming.into());
                json!(cookie)
            }
            Receive::Finish { cookie } => json!(self.incoming()?.finish(&cookie).await?),
            Receive::Cancel => json!(self.incoming()?.cancel().await?),
            Receive::DropIncoming => json!(self.incoming.take().is_some()),
        })
    }

    async fn send(&mut self, send: Send) -> anyhow::Result<Value> {
        Ok(match send {
            Send::Begin { guest, flags } => {
                let outgoing = self.libvirt.begin(BeginRequest { guest, flags }).await?;
                let begun = outgoing.begun().clone();
                self.outgoing = Some(outgoing.into());
                json!({ "xml": begun.xml, "cookie": begun.cookie })
            }
            Send::Relay { listen, connect } => {
                drop(std::fs::remove_file(&listen));
                self.relay = Some(relay::start(listen.as_ref(), connect.into())?);
                Value::Null
            }
            Send::CutRelay => {
                self.relay.take().context("no relay")?.abort();
                Value::Null
            }
            Send::Perform {
                cookie,
                socket,
                persistent_xml,
                bandwidth,
            } => {
                let outgoing = Arc::clone(self.outgoing()?);
                let request = PerformRequest {
                    cookie,
                    socket: socket.into(),
                    disks_socket: Default::default(),
                    persistent_xml,
                    bandwidth,
                    max_downtime: None,
                    throttle: Throttle {
                        initial: 20,
                        increment: 10,
                    },
                };
                self.performing = Some(tokio::spawn(async move { outgoing.perform(request).await }));
                Value::Null
            }
            Send::Performed => json!(self.performing.take().context("not performing")?.await??),
            Send::ForgetPerform => {
                self.performing.take().context("not performing")?.abort();
                Value::Null
            }
            Send::ConfirmMoved { cookie } => json!(self.outgoing()?.confirm_moved(&cookie).await?),
            Send::ConfirmCancelled => json!(self.outgoing()?.confirm_cancelled().await?),
            Send::DropOutgoing => json!(self.outgoing.take().is_some()),
            Send::Abort => json!(self.outgoing()?.abort().await?),
            Send::OutgoingJob => json!(self.outgoing()?.job().await?),
            Send::OutgoingCompleted => json!(self.outgoing()?.completed_job().await?),
            Send::SetMaxDowntime { milliseconds } => {
                json!(
                    self.outgoing()?
                        .set_max_downtime(Duration::from_millis(milliseconds))
                        .await?
                )
            }
            Send::SetBandwidth { bytes } => json!(self.outgoing()?.set_bandwidth(bytes).await?),
        })
    }

    fn outgoing(&self) -> anyhow::Result<&Arc<dyn Outgoing>> {
        self.outgoing.as_ref().context("nothing goes out")
    }

    fn incoming(&self) -> anyhow::Result<&Arc<dyn Incoming>> {
        self.incoming.as_ref().context("nothing comes in")
    }

    fn drain_events(&mut self) -> Value {
        let mut all = Vec::new();
        while let Ok(event) = self.events.try_recv() {
            all.push(format!("{:?}", event.what));
        }
        json!(all)
    }
}
