//! How a migration may be done, as it is typed; and `drover migration adjust`, which changes it on the way.

use std::time::Duration;

use clap::{Args, ValueEnum};
use drover_proto::ids::MigrationId;
use drover_proto::time::proto_duration;
use drover_proto::units;
use drover_proto::v1::{
    AdjustAction, AdjustMigrationRequest, BackingChain, Compression, DeadlineAction, MigrationMode, MigrationPolicy,
    StoragePolicy,
};

use crate::args::Output;
use crate::client::{Controller, request};
use crate::exit::{Exit, Problem};
use crate::migrate::show;

/// What is left out is the controller's default.
#[derive(Debug, Default, PartialEq, Args)]
#[command(next_help_heading = "Policy")]
pub(crate) struct Policy {
    /// Longest time for which the guest may stand still: 200ms, 1.5s
    #[arg(long, value_name = "TIME", value_parser = time)]
    max_downtime: Option<Duration>,
    /// Time for the transfer: 90s, 5m, 2h
    #[arg(long, value_name = "TIME", value_parser = time)]
    deadline: Option<Duration>,
    /// What to do when it is over
    #[arg(long, value_enum, value_name = "ACTION")]
    on_deadline: Option<OnDeadline>,
    /// Limit over all connections: 500MiB/s, 800Mbit/s
    #[arg(long, value_name = "RATE", value_parser = rate)]
    bandwidth: Option<u64>,
    /// Connections for memory [default: by link and cores]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(i32).range(1..=64))]
    parallel: Option<i32>,
    /// Compression of memory on its way [default: by link, cores and versions]
    #[arg(long, value_enum, value_name = "KIND")]
    compression: Option<Kind>,
    /// Let the guest be slowed down where it writes faster than it is sent
    #[arg(long)]
    allow_auto_converge: bool,
    #[command(flatten)]
    way: Way,
}

/// How the guest moves, and what becomes of its disks.
#[derive(Clone, Debug, Default, PartialEq, Args)]
#[command(next_help_heading = "Way and disks")]
pub(crate) struct Way {
    /// Live where the guest runs; offline where it is shut off: its definition and its files move [default: live]
    #[arg(long, value_enum, value_name = "MODE")]
    mode: Option<Mode>,
    /// The guest is shut off and moves so: the same as --mode offline
    #[arg(long, conflicts_with = "mode")]
    offline: bool,
    /// With --offline: shut a running guest down first, within this time, and start it at the destination
    #[arg(long, value_name = "TIME", value_parser = units::duration, num_args = 0..=1, require_equals = true,
        default_missing_value = "5m")]
    shutdown: Option<Duration>,
    /// Copy these disks: vda,vdb; all others must be shared
    #[arg(long, value_name = "TARGET", value_delimiter = ',')]
    copy_disks: Vec<String>,
    /// Copy every disk that is not shared; offline without --copy-disks this is so anyway
    #[arg(long)]
    copy_unshared: bool,
    /// Remove the source's files of copied disks once the destination has the guest
    #[arg(long)]
    delete_source: bool,
    /// What becomes of the files that a copied disk lies on [default: flatten, offline whole]
    #[arg(long, value_enum, value_name = "HOW")]
    backing_chain: Option<Chain>,
    /// Let the guest run there before all its memory has arrived, where it does not converge
    #[arg(long)]
    allow_post_copy: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Chain {
    /// Each of them is copied to its own path: offline only
    Whole,
    /// All of them become one image: live only
    Flatten,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Mode {
    /// A guest that runs or is paused
    Live,
    /// A guest that is shut off
    Offline,
    /// Whichever it is
    Auto,
}

impl Way {
    fn mode(&self) -> MigrationMode {
        match (self.offline, self.mode) {
            (true, _) | (false, Some(Mode::Offline)) => MigrationMode::Offline,
            (false, Some(Mode::Auto)) => MigrationMode::Auto,
            (false, Some(Mode::Live)) => MigrationMode::Live,
            (false, None) => MigrationMode::Unspecified,
        }
    }

    /// None where nothing was typed about disks.
    fn storage(&self) -> Option<StoragePolicy> {
        let storage = StoragePolicy {
            copy_disks: self.copy_disks.clone(),
            copy_unshared: self.copy_unshared,
            delete_source: self.delete_source,
            backing_chain: match self.backing_chain {
                None => BackingChain::Unspecified,
                Some(Chain::Whole) => BackingChain::Whole,
                Some(Chain::Flatten) => BackingChain::Flatten,
            }
            .into(),
        };
        (storage != StoragePolicy::default()).then_some(storage)
    }

    /// As a policy of its own; none where nothing was typed.
    pub(crate) fn message(&self) -> Option<MigrationPolicy> {
        (*self != Self::default()).then(|| MigrationPolicy {
            mode: self.mode().into(),
            storage: self.storage(),
            allow_post_copy: self.allow_post_copy.then_some(true),
            shutdown_timeout: self.shutdown.map(proto_duration),
            ..MigrationPolicy::default()
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Kind {
    /// As it is
    None,
    /// By QEMU, where libvirt is 9.4 or newer on both hosts
    Zstd,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum OnDeadline {
    /// The guest stays where it is and runs on
    Abort,
    /// The guest is stopped, the rest is sent, and it runs on at the destination
    PauseAndFinish,
    /// The guest runs on at the destination, and the rest is sent after it
    PostCopy,
}

impl Policy {
    /// None where nothing was typed.
    pub(crate) fn message(&self) -> Option<MigrationPolicy> {
        if *self == Self::default() {
            return None;
        }
        let on_deadline = match self.on_deadline {
            None => DeadlineAction::Unspecified,
            Some(OnDeadline::Abort) => DeadlineAction::Abort,
            Some(OnDeadline::PauseAndFinish) => DeadlineAction::PauseAndFinish,
            Some(OnDeadline::PostCopy) => DeadlineAction::PostCopy,
        };
        Some(MigrationPolicy {
            max_downtime: self.max_downtime.map(proto_duration),
            deadline: self.deadline.map(proto_duration),
            on_deadline: on_deadline.into(),
            allow_auto_converge: self.allow_auto_converge.then_some(true),
            allow_post_copy: self.way.allow_post_copy.then_some(true),
            bandwidth_limit_bytes_per_second: signed(self.bandwidth.unwrap_or(0)),
            parallel_connections: self.parallel.unwrap_or(0),
            compression: match self.compression {
                None => Compression::Unspecified,
                Some(Kind::None) => Compression::None,
                Some(Kind::Zstd) => Compression::Zstd,
            }
            .into(),
            mode: self.way.mode().into(),
            storage: self.way.storage(),
            shutdown_timeout: self.way.shutdown.map(proto_duration),
            ..MigrationPolicy::default()
        })
    }
}

/// What is left out stays as it is.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("change").required(true).multiple(true))]
pub(crate) struct Adjust {
    /// Id of the migration
    pub(crate) id: String,
    /// Longest time for which the guest may stand still: 200ms, 1.5s
    #[arg(long, group = "change", value_name = "TIME", value_parser = time)]
    max_downtime: Option<Duration>,
    /// Time for the rest of the transfer, from now on: 90s, 5m
    #[arg(long, group = "change", value_name = "TIME", value_parser = time)]
    deadline: Option<Duration>,
    /// Limit over all connections: 500MiB/s, 800Mbit/s, none
    #[arg(long, group = "change", value_name = "RATE", value_parser = rate)]
    bandwidth: Option<u64>,
    /// Stop the guest now, send the rest, and let it run on at the destination
    #[arg(long, group = "change")]
    pause_and_finish: bool,
    /// Let it run on at the destination now, and send the rest after it
    #[arg(long, group = "change", conflicts_with = "pause_and_finish")]
    post_copy_now: bool,
    /// Only if the record is still the one with this etag
    #[arg(long, value_name = "ETAG", default_value = "")]
    etag: String,
}

impl Adjust {
    fn message(self, id: MigrationId) -> AdjustMigrationRequest {
        let action = if self.pause_and_finish {
            AdjustAction::PauseAndFinish
        } else if self.post_copy_now {
            AdjustAction::PostCopy
        } else {
            AdjustAction::Unspecified
        };
        AdjustMigrationRequest {
            name: id.resource_name(),
            max_downtime: self.max_downtime.map(proto_duration),
            bandwidth_limit_bytes_per_second: self.bandwidth.map(signed),
            deadline: self.deadline.map(proto_duration),
            action: action.into(),
            etag: self.etag,
        }
    }
}

fn time(text: &str) -> Result<Duration, String> {
    units::duration(text).map_err(|error| said(text, error.to_string(), |one| units::duration(one).is_ok()))
}

fn rate(text: &str) -> Result<u64, String> {
    units::bytes_per_second(text)
        .map_err(|error| said(text, error.to_string(), |one| units::bytes_per_second(one).is_ok()))
}

/// Why a measure was refused: it is well written but for its size, or it is not.
fn said(text: &str, why: String, is_good: impl Fn(&str) -> bool) -> String {
    let unit = text.trim().trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let number = text.trim().strip_suffix(unit).unwrap_or_default();
    let large = number.parse::<f64>().is_ok_and(|number| number > 1.0) && is_good(&format!("1{unit}"));
    if large { "it is too large".to_owned() } else { why }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(crate) async fn adjust(
    mut controller: Controller,
    id: MigrationId,
    command: Adjust,
    output: Output,
) -> Result<Exit, Problem> {
    let request = request(command.message(id));
    let migration = controller.migrations.adjust_migration(request).await?.into_inner();
    show(&migration, output).map(|()| Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_large_is_called_so() {
        let many = "9".repeat(30);
        for unit in ["s", "d"] {
            assert_eq!(time(&format!("{many}{unit}")).unwrap_err(), "it is too large");
        }
        assert_eq!(rate(&format!("{many}MiB/s")).unwrap_err(), "it is too large");
        assert!(rate("500").unwrap_err().contains("with its unit"));
        assert!(time("1.2.3s").unwrap_err().contains("a time is"));
        assert_eq!(rate("1MiB/s"), Ok(1 << 20));
    }
}
