//! Validate: both hosts can do it, and nothing was changed (but a probe file, removed).

use drover_proto::agent::v1::Incarnation;
use drover_proto::failure::{Failure, Reason};
use drover_proto::v1::CheckResult;

use super::estimate::Thorough;
use super::examine::{Examined, Source, Wanted, absent};
use super::{Learned, Report, Work, overrides};
use crate::saga::Guest;

pub(super) async fn run(work: &Work) -> Report {
    let mut learned = Learned::default();
    match look(work, &mut learned).await {
        Ok((examined, incarnation)) => report(work, examined, incarnation, learned.guest_name),
        Err(failure) => Report::of(&failure, learned),
    }
}

/// What the source says counts also where the destination says nothing.
async fn look(work: &Work, learned: &mut Learned) -> Result<(Examined, Option<Incarnation>), Failure> {
    let agent = work.source().await?;
    let overrides = overrides::of(&work.record)?;
    let wanted = Wanted::new(&overrides, work.record.details.policy.as_ref());
    let Some(source) = Source::look(work.record.guest, wanted, &agent).await? else {
        return Ok((absent(work.record.guest, &agent), None));
    };
    *learned = Learned {
        guest_name: Some(source.guest.name.clone()),
        ..Learned::default()
    }
    .with_guest_at(&work.record.source);
    let destination = vec![work.destination().await?];
    let mut examined = source
        .estimated(destination, &work.estimates, Thorough::of(&source.policy))
        .await;
    let only = examined
        .pop()
        .unwrap_or_else(|| Err(Failure::internal("no destination was asked")));
    Ok((only?, source.guest.incarnation))
}

fn report(work: &Work, examined: Examined, incarnation: Option<Incarnation>, guest_name: Option<String>) -> Report {
    let unmade = examined
        .checks
        .iter()
        .filter(|check| check.result() != CheckResult::Passed);
    let passed = match (examined.checks.len(), unmade.count()) {
        (all, 0) => format!("{all} checks passed"),
        (all, unmade) => format!("{} checks passed, {unmade} not made", all - unmade),
    };
    let learned = Learned {
        guest_name,
        checks: Some(examined.checks),
        disks: Some(examined.disks),
        offline_plan: examined.offline_plan,
        estimate: examined.estimate,
        connections: examined.connections,
        compression: examined.compression,
        incarnation,
        ..Learned::default()
    };
    match examined.refusal {
        Some(failure) if failure.reason == Reason::GuestNotFound => Report::refused(&failure, learned),
        Some(failure) => Report::refused(&failure, learned.with_guest_at(&work.record.source)),
        None => Report::done(Guest::Lives, passed, learned.with_guest_at(&work.record.source)),
    }
}
