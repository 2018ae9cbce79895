//! What must be true at the end of every test, whatever was done to the parts meanwhile.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::Cluster;
use crate::{Domain, Guest, wait_until};

/// Where a guest must be at the end.
#[derive(Debug, Clone)]
pub enum Expected<'guest> {
    /// Runs on this host, and only there.
    Runs(&'guest Guest, &'guest str),
    /// Stands still on this host (its user paused it), and is nowhere else.
    Paused(&'guest Guest, &'guest str),
    /// It ended by itself: runs nowhere.
    Ended(&'guest Guest),
}

impl Cluster<'_> {
    /// The invariants at rest: one copy and no more, memory and disk right, its autostart as it was, nothing left
    /// behind (no journal open either), no migration unfinished, and the store tells what the hosts show.
    pub fn check(&self, expected: &[Expected<'_>]) -> Result<()> {
        self.check_store(expected)?;
        for guest in expected {
            self.check_guest(guest)?;
        }
        // A finished record comes just before the last file goes.
        wait_until("nothing to be left behind", Duration::from_secs(60), || {
            let mut left = self.lab().leftovers()?;
            left.extend(
                self.open_pages()?
                    .into_iter()
                    .map(|page| format!("open journal {page}")),
            );
            ensure!(left.is_empty(), "left behind: {left:#?}");
            Ok(Some(()))
        })
    }

    fn check_store(&self, expected: &[Expected<'_>]) -> Result<()> {
        let list = self.drover_json(&["migration", "list"])?;
        let migrations = list["migrations"].as_array().context("no field `migrations`")?;
        let mut newest: BTreeMap<&str, &serde_json::Value> = BTreeMap::new();
        for migration in migrations {
            let state = migration["state"].as_str().unwrap_or_default();
            if !matches!(state, "SUCCEEDED" | "FAILED" | "CANCELLED" | "GUEST_ENDED") {
                bail!("a migration is unfinished: {migration}");
            }
            // Newest first.
            newest
                .entry(migration["guest_uuid"].as_str().unwrap_or_default())
                .or_insert(migration);
        }
        for guest in expected {
            let (Expected::Runs(guest, host) | Expected::Paused(guest, host)) = guest else {
                continue;
            };
            if let Some(migration) = newest.get(guest.uuid().to_string().as_str()) {
                let says = migration["guest_host"].as_str().unwrap_or_default();
                ensure!(
                    says == format!("hosts/{host}"),
                    "{} is on {host}, the store says: {migration}",
                    guest.name()
                );
            }
        }
        Ok(())
    }

    fn check_guest(&self, expected: &Expected<'_>) -> Result<()> {
        let domains = self.lab().domains()?;
        let guest = expected.guest();
        let copies: Vec<&Domain> = domains.iter().filter(|domain| domain.uuid == guest.uuid()).collect();
        // The source's agent takes it off while a guest moves.
        let wrong = copies
            .iter()
            .find(|copy| copy.persistent && copy.autostart != guest.autostart());
        ensure!(
            wrong.is_none(),
            "autostart of {} must be {}: {copies:#?}",
            guest.name(),
            guest.autostart()
        );
        match expected {
            Expected::Runs(_, host) => {
                let right = matches!(copies[..], [copy] if copy.host == *host && copy.state == "running");
                ensure!(
                    right,
                    "{} must run on {host} and be nowhere else: {copies:#?}",
                    guest.name()
                );
                guest.verify()?;
            }
            Expected::Paused(_, host) => {
                let right = matches!(copies[..], [copy] if copy.host == *host && copy.state == "paused");
                ensure!(
                    right,
                    "{} must stand still on {host} and be nowhere else: {copies:#?}",
                    guest.name()
                );
            }
            Expected::Ended(_) => {
                ensure!(
                    !copies.iter().any(|copy| copy.is_active()),
                    "{} has ended, yet: {copies:#?}",
                    guest.name()
                );
            }
        }
        Ok(())
    }
}

impl Expected<'_> {
    fn guest(&self) -> &Guest {
        match self {
            Expected::Runs(guest, _) | Expected::Paused(guest, _) | Expected::Ended(guest) => guest,
        }
    }
}
