//! Eyes outside the guests, open as long as a [`Watch`] lives: pings, a TCP session, and the double-run detector.

mod beats;
mod capture;
pub mod detector;
mod ping;
mod session;
mod worker;

pub use detector::{Beat, Stay, Verdict, Violation};
pub use ping::Pings;
pub use session::Session;

use crate::guest::Guest;
use crate::host::Host;
use crate::lab::Lab;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::time::Duration;
use worker::Worker;

/// Watches guests on all hosts until [`Watch::finish`].
#[derive(Debug)]
pub struct Watch {
    guests: Vec<WatchedGuest>,
    beats: Vec<Worker<Vec<Beat>>>,
}

#[derive(Debug)]
struct WatchedGuest {
    name: String,
    pings: Worker<Pings>,
    session: Worker<Session>,
}

/// What was seen of one guest.
#[derive(Debug, Clone)]
pub struct GuestReport {
    pub pings: Pings,
    pub session: Session,
}

impl GuestReport {
    /// The longest time without an answer to a ping.
    pub fn blackout(&self) -> Duration {
        self.pings.largest_gap()
    }
}

/// What was seen from outside.
#[derive(Debug, Clone)]
pub struct WatchReport {
    pub guests: BTreeMap<String, GuestReport>,
    /// What the beats of all guests say, watched by pings or not.
    pub verdict: Verdict,
}

impl Watch {
    /// Returns when everything is being watched. The guests must answer.
    pub(crate) fn start(lab: &Lab, guests: &[&Guest]) -> Result<Watch> {
        let client = lab.client().pid()?;
        let up = lab.hosts().iter().filter(|host| host.is_up());
        let beats = up.map(beats::start).collect::<Result<_>>()?;
        let guests = guests
            .iter()
            .map(|guest| {
                Ok(WatchedGuest {
                    name: guest.name().to_string(),
                    pings: ping::start(client, guest.address())?,
                    session: session::start(client, guest.address())?,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Watch { guests, beats })
    }

    /// Watches a host too that was powered on after the watch began.
    pub fn include(&mut self, host: &Host) -> Result<()> {
        self.beats.push(beats::start(host)?);
        Ok(())
    }

    /// Ends the watch and tells what was seen.
    pub fn finish(self) -> Result<WatchReport> {
        let mut guests = BTreeMap::new();
        for mut watched in self.guests {
            let report = GuestReport {
                session: watched.session.finish()?,
                pings: watched.pings.finish()?,
            };
            guests.insert(watched.name.clone(), report);
        }
        let mut beats = Vec::new();
        for mut worker in self.beats {
            beats.append(&mut worker.finish()?);
        }
        Ok(WatchReport {
            guests,
            verdict: detector::judge(beats),
        })
    }
}

impl WatchReport {
    /// What was seen of a guest; panics when it was not watched, as that is a mistake in the test.
    pub fn guest(&self, name: &str) -> &GuestReport {
        self.guests
            .get(name)
            .unwrap_or_else(|| panic!("guest {name} was not watched"))
    }

    /// The hosts on which a guest ran, in order.
    pub fn path(&self, guest: &str) -> Vec<&str> {
        self.verdict.path(guest)
    }

    /// An error unless every session survived, every guest beat and was pinged, and none ever ran twice.
    pub fn check(&self) -> Result<()> {
        if !self.verdict.violations.is_empty() {
            bail!("A GUEST RAN TWICE: {:#?}", self.verdict.violations);
        }
        for (name, report) in &self.guests {
            if let Some(why) = &report.session.broken {
                bail!(
                    "the TCP session with {name} broke after {} lines: {why}",
                    report.session.lines
                );
            }
            // A watch that saw nothing proves nothing.
            let stays = self.verdict.stays.get(name).map_or(0, Vec::len);
            if stays == 0 || report.session.lines == 0 || report.pings.answers.len() < 2 {
                bail!(
                    "guest {name} was not seen: {stays} stays, {} lines",
                    report.session.lines
                );
            }
        }
        Ok(())
    }

    /// [`WatchReport::check`], and that a guest went exactly this way from host to host.
    pub fn check_path(&self, guest: &str, path: &[&str]) -> Result<()> {
        self.check()
            .with_context(|| format!("guest {guest} on its way {path:?}"))?;
        if self.path(guest) != path {
            bail!("guest {guest} went {:?}, not {path:?}", self.path(guest));
        }
        Ok(())
    }
}
