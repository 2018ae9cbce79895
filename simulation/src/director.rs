//! Stands at every gate of a world, notes what passes, and lets happen what the plan says.
//!
//! A fault is carried out on the harness's own runtime: it may be the end of the process that has just asked.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use drover_agent::gate::{Gate, Pass};
use drover_controller::store::Store;
use drover_controller::store::memory::MemoryStore;
use drover_proto::ids::GuestId;
use futures::FutureExt;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::fault::Fault;
use super::link::Line;
use super::plan::{Event, When};
use super::point::{Moment, Point, Site, phase_name};
use super::world::World;
use super::{case, plan};

/// One world's director.
pub struct Director {
    store: Arc<MemoryStore>,
    guest: GuestId,
    harness: Handle,
    world: OnceLock<Weak<World>>,
    notes: Mutex<Notes>,
    /// Faults that are not over yet.
    open: watch::Sender<usize>,
    /// Whoever has the guest's definition can start it: one host at most may.
    one_definition: AtomicBool,
}

#[derive(Default)]
struct Notes {
    armed: Vec<Event>,
    fired: Vec<Event>,
    /// How often each was met: a point is the `nth` of its kind.
    counts: HashMap<(Point, Moment), u32>,
    seen: Vec<Point>,
    crossings: u32,
    over: bool,
    /// Where both hosts could have started the guest.
    twice: Vec<String>,
}

impl Director {
    /// Nobody's yet. To be made on the harness's runtime.
    pub fn new(store: Arc<MemoryStore>, guest: GuestId) -> Arc<Self> {
        Arc::new(Self {
            store,
            guest,
            harness: Handle::current(),
            world: OnceLock::new(),
            notes: Mutex::default(),
            open: watch::Sender::new(0),
            one_definition: AtomicBool::new(false),
        })
    }

    /// Its world, once there is one.
    pub fn stand_in(&self, world: &Arc<World>) {
        // The first one stays.
        let _ = self.world.set(Arc::downgrade(world));
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on it is looked at every call whether both hosts have the guest's definition.
    pub fn one_definition(&self) {
        self.one_definition.store(true, Ordering::Relaxed);
    }

    /// At which calls it could be started on both hosts.
    pub fn startable_twice(&self) -> Vec<String> {
        self.notes().twice.clone()
    }

    fn look_for_two(&self, call: &str, moment: Moment) {
        let Some(world) = self.world.get().and_then(Weak::upgrade) else {
            return;
        };
        let has = |site| world.host(site).look(self.guest).is_some();
        // The source again: what it has may go while the other one is looked at.
        if has(Site::Source) && has(Site::Destination) && has(Site::Source) {
            self.notes().twice.push(format!("{moment:?} {call}"));
        }
    }

    /// What is to happen from now on.
    pub fn arm(&self, events: Vec<Event>) {
        let mut notes = self.notes();
        notes.armed.extend(events);
        notes.counts.clear();
        notes.seen.clear();
        notes.crossings = 0;
    }

    /// What did happen.
    pub fn fired(&self) -> Vec<Event> {
        self.notes().fired.clone()
    }

    /// Every point that was passed since it was armed, in order.
    pub fn seen(&self) -> Vec<Point> {
        self.notes().seen.clone()
    }

    /// Whether such a call was made since it was armed, at either host.
    pub fn has_seen(&self, call: &str) -> bool {
        self.notes().seen.iter().any(|point| point.call == call)
    }

    /// Nothing happens any more.
    pub fn go_home(&self) {
        let mut notes = self.notes();
        notes.over = true;
        notes.armed.clear();
    }

    /// How many faults are not over yet.
    pub fn open_faults(&self) -> watch::Receiver<usize> {
        self.open.subscribe()
    }

    /// Waits until every fault that has happened is over.
    pub async fn all_is_back(&self) {
        // The sender is part of `self`.
        let _ = self.open.subscribe().wait_for(|open| *open == 0).await;
    }

    /// For the agent and the hypervisor of one host.
    pub fn gate(self: &Arc<Self>, site: Site) -> Gate {
        let director = Arc::downgrade(self);
        Gate::watched(move |call, moment| {
            let (director, call) = (director.upgrade(), call.to_owned());
            async move {
                match director {
                    Some(director) => director.at(site, call, moment).await,
                    None => Pass::Go,
                }
            }
            .boxed()
        })
    }

    async fn at(self: Arc<Self>, site: Site, call: String, moment: Moment) -> Pass {
        if self.one_definition.load(Ordering::Relaxed) {
            self.look_for_two(&call, moment);
        }
        let phase = self.phase().await;
        let Some(event) = self.note(phase, site, &call, moment) else {
            return Pass::Go;
        };
        match event.fault {
            Fault::Refused => return Pass::Refuse,
            Fault::AnswerLost => return Pass::Lose,
            Fault::AgentDies(_)
            | Fault::BothAgentsDie
            | Fault::ControllerDies
            | Fault::AllDie
            | Fault::HostReboots(_)
            | Fault::LibvirtdRestarts(_)
            | Fault::AgentsCut
            | Fault::ControllerCut(_)
            | Fault::ControllerAlone
            | Fault::Cancel => {}
        }
        // What is under way arrives, where a link falls silent: late.
        let pass = if event.silent {
            Pass::Go
        } else {
            pass(&call, moment, event.fault)
        };
        let hold = event.hold;
        self.carry_out(event).await;
        tokio::time::sleep(hold).await;
        pass
    }

    async fn phase(&self) -> &'static str {
        // The memory store waits for nobody.
        let position = match self.store.unfinished_of(self.guest).await {
            Ok(Some(id)) => self
                .store
                .migration(id)
                .await
                .ok()
                .flatten()
                .map(|record| record.position),
            Ok(None) | Err(_) => None,
        };
        phase_name(position)
    }

    /// Counts it, and takes what is armed for it.
    fn note(&self, phase: &'static str, site: Site, call: &str, moment: Moment) -> Option<Event> {
        let mut notes = self.notes();
        if notes.over {
            return None;
        }
        let kind = Point {
            phase,
            site,
            call: call.to_owned(),
            nth: 0,
        };
        let count = notes.counts.entry((kind.clone(), moment)).or_default();
        let point = Point { nth: *count, ..kind };
        *count += 1;
        notes.crossings += 1;
        if moment == Moment::Before {
            notes.seen.push(point.clone());
        }
        let crossing = notes.crossings;
        let meets = |event: &Event| match &event.when {
            When::At(at, when) => *at == point && *when == moment,
            When::Crossing(number) => *number <= crossing && event.fault.fits(moment),
        };
        let index = notes.armed.iter().position(meets)?;
        let event = notes.armed.remove(index);
        notes.fired.push(event.clone());
        Some(event)
    }

    /// Until it has happened; that it is over again is not waited for.
    async fn carry_out(&self, event: plan::Event) {
        let Some(world) = self.world.get().and_then(Weak::upgrade) else {
            return;
        };
        self.open.send_modify(|open| *open += 1);
        let happened = self.harness.spawn(async move {
            let line = if event.silent { Line::Silent } else { Line::Cut };
            strike(&world, event.fault, line).await;
            let back = Arc::clone(&world);
            let heal = async move {
                tokio::time::sleep(event.outage).await;
                heal(&back, event.fault).await;
                back.director.open.send_modify(|open| *open -= 1);
            };
            tokio::spawn(heal);
        });
        // Whoever has asked may have died of it: then nobody waits here.
        let _ = happened.await;
    }
}

/// What becomes of the call at which it happened. One whose caller has died before it was made is not carried out, nor
/// one from agent to agent when the two were cut from each other before.
fn pass(call: &str, moment: Moment, fault: Fault) -> Pass {
    let is_not_made = match fault {
        Fault::ControllerDies | Fault::AllDie => call.starts_with("/drover.agent.v1.AgentService/"),
        Fault::AgentDies(Site::Source) | Fault::BothAgentsDie | Fault::HostReboots(Site::Source) | Fault::AgentsCut => {
            call.starts_with("/drover.agent.v1.PeerService/")
        }
        Fault::AgentDies(Site::Destination)
        | Fault::HostReboots(Site::Destination)
        | Fault::Refused
        | Fault::AnswerLost
        | Fault::LibvirtdRestarts(_)
        | Fault::ControllerCut(_)
        | Fault::ControllerAlone
        | Fault::Cancel => false,
    };
    if is_not_made && moment == Moment::Before {
        Pass::Lose
    } else {
        Pass::Go
    }
}

/// `line`: what becomes of a link that breaks.
async fn strike(world: &Arc<World>, fault: Fault, line: Line) {
    match fault {
        Fault::Refused | Fault::AnswerLost => {}
        Fault::AgentDies(site) => world.kill_agent(site).await,
        Fault::BothAgentsDie => {
            tokio::join!(world.kill_agent(Site::Source), world.kill_agent(Site::Destination));
        }
        Fault::ControllerDies => world.kill_controller().await,
        Fault::AllDie => {
            tokio::join!(
                world.kill_agent(Site::Source),
                world.kill_agent(Site::Destination),
                world.kill_controller()
            );
        }
        Fault::HostReboots(site) => world.power_off(site).await,
        Fault::LibvirtdRestarts(site) => world.host(site).restart_libvirtd(),
        Fault::AgentsCut => world.set_agents(line),
        Fault::ControllerCut(site) => world.set_controller(site, line),
        Fault::ControllerAlone => {
            for site in Site::BOTH {
                world.set_controller(site, line);
            }
        }
        Fault::Cancel => {
            // The controller may be away: then nobody heard the wish.
            let cancel = case::cancel(world);
            let _ = tokio::time::timeout(Duration::from_secs(2), cancel).await;
        }
    }
}

async fn heal(world: &Arc<World>, fault: Fault) {
    let healed = match fault {
        Fault::Refused | Fault::AnswerLost | Fault::LibvirtdRestarts(_) | Fault::Cancel => Ok(()),
        Fault::AgentDies(site) => world.start_agent(site).await,
        Fault::BothAgentsDie => both_agents(world).await,
        Fault::ControllerDies => world.start_controller().await,
        Fault::AllDie => {
            let (controller, agents) = tokio::join!(world.start_controller(), both_agents(world));
            controller.and(agents)
        }
        Fault::HostReboots(site) => {
            world.power_on(site);
            world.start_agent(site).await
        }
        Fault::AgentsCut => {
            world.set_agents(Line::Whole);
            Ok(())
        }
        Fault::ControllerCut(site) => {
            world.set_controller(site, Line::Whole);
            Ok(())
        }
        Fault::ControllerAlone => {
            for site in Site::BOTH {
                world.set_controller(site, Line::Whole);
            }
            Ok(())
        }
    };
    if let Err(error) = healed {
        tracing::error!("{fault} was not healed: {error:#}");
    }
}

async fn both_agents(world: &Arc<World>) -> anyhow::Result<()> {
    let (source, destination) = tokio::join!(world.start_agent(Site::Source), world.start_agent(Site::Destination));
    source.and(destination)
}
