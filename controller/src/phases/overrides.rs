//! What overrides make of a guest: the check that they fit, and where its disks lie at the destination.
//!
//! The rules are the source agent's, which has the definition; here is only what follows from its answer.

use drover_proto::agent::v1::{AgentStatus, DiskFacts, GuestFacts, StorageProbe};
use drover_proto::failure::{Failure, Reason};
use drover_proto::overrides::Overrides;
use drover_proto::v1::Check;

use super::checks::{failed, passed};
use crate::store::Record;

const ID: &str = "overrides";

/// What an agent says that applies overrides, and looks for disks where they put them.
const FEATURE: &str = "overrides";

/// The overrides of a migration. They were valid when it was created.
pub(super) fn of(record: &Record) -> Result<Overrides, Failure> {
    let Some(message) = &record.details.destination_overrides else {
        return Ok(Overrides::default());
    };
    Overrides::read(message).map_err(|problems| {
        let (field, why) = problems.into_iter().next().unwrap_or_default();
        let message = format!("the record's destination_overrides.{field} is not valid any more: {why}");
        Failure::new(Reason::ChecksFailed, message)
    })
}

/// The guest as it will be at the destination.
pub(super) fn at_destination(guest: &GuestFacts, overrides: &Overrides) -> GuestFacts {
    let mut there = guest.clone();
    if !overrides.is_empty() && guest.override_problems.is_empty() {
        there.disks.clone_from(&guest.destination_disks);
        there.interfaces.clone_from(&guest.destination_interfaces);
    }
    there
}

/// Whether they fit the guest, and both agents know of them; none where nothing is overridden.
pub(super) fn check(
    guest: &GuestFacts,
    overrides: &Overrides,
    source: &AgentStatus,
    destination: &AgentStatus,
) -> Option<Check> {
    if overrides.is_empty() {
        return None;
    }
    let knows = |agent: &AgentStatus| {
        let features = agent.host.iter().flat_map(|host| &host.features);
        features.into_iter().any(|feature| feature == FEATURE)
    };
    for (side, agent) in [("source", source), ("destination", destination)] {
        if !knows(agent) {
            return Some(failed(
                ID,
                format!("the {side}'s agent does not know overrides"),
                "update it",
            ));
        }
    }
    let problems: Vec<String> = guest
        .override_problems
        .iter()
        .map(|problem| format!("{}: {}", problem.field, problem.problem))
        .collect();
    if problems.is_empty() {
        let graphics = usize::from(overrides.graphics_listen.is_some());
        let count = overrides.disks.len() + overrides.interfaces.len() + graphics;
        return Some(passed(ID, format!("{count} fit the guest")));
    }
    let remedy = "name disks by their target and interfaces by their MAC address, as `virsh dumpxml` shows them";
    Some(failed(ID, problems.join("; "), remedy))
}

/// A disk that would be of another kind there: a file is never the same storage as a block device.
pub(super) fn other_kind(here: &[DiskFacts], there: &[DiskFacts]) -> Option<String> {
    here.iter().find_map(|disk| {
        let moved = there.iter().find(|other| other.target == disk.target)?;
        let (old, new) = (&disk.source_type, &moved.source_type);
        let words = || {
            format!(
                "{} is of type {old} here and {new} at the destination ({})",
                disk.target, moved.source
            )
        };
        (old != new).then(words)
    })
}

/// Probes with the paths of the images at the destination, where these are others.
pub(super) fn where_they_lie(
    mut probes: Vec<StorageProbe>,
    here: &[DiskFacts],
    there: &[DiskFacts],
) -> Vec<StorageProbe> {
    let path = |image: &str| {
        let disk = here.iter().find(|disk| disk.source == image)?;
        let moved = there.iter().find(|other| other.target == disk.target)?;
        (moved.source != image).then(|| moved.source.clone())
    };
    for probe in &mut probes {
        if let Some(path) = path(&probe.image_path) {
            probe.destination_image_path = path;
        }
    }
    probes
}

#[cfg(test)]
mod tests {
    use drover_proto::v1;
    use drover_proto::v1::CheckResult;

    use super::*;

    fn disk(target: &str, source_type: &str, source: &str) -> DiskFacts {
        DiskFacts {
            target: target.to_owned(),
            source_type: source_type.to_owned(),
            source: source.to_owned(),
            ..DiskFacts::default()
        }
    }

    fn agent(features: &[&str]) -> AgentStatus {
        let host = v1::Host {
            features: features.iter().map(|feature| (*feature).to_owned()).collect(),
            ..v1::Host::default()
        };
        AgentStatus {
            host: Some(host),
            ..AgentStatus::default()
        }
    }

    fn moved() -> Overrides {
        let message = v1::DestinationOverrides {
            disks: vec![v1::DiskOverride {
                target: "vda".to_owned(),
                source: "/b/a".to_owned(),
            }],
            ..v1::DestinationOverrides::default()
        };
        Overrides::read(&message).unwrap()
    }

    #[test]
    fn an_agent_that_would_ignore_them_is_refused() {
        let (new, old, guest) = (agent(&["live", FEATURE]), agent(&["live"]), GuestFacts::default());
        let result = |source, destination| check(&guest, &moved(), source, destination).unwrap().result();
        assert_eq!(result(&new, &new), CheckResult::Passed);
        assert_eq!(result(&old, &new), CheckResult::Failed);
        assert_eq!(result(&new, &old), CheckResult::Failed);
        assert_eq!(check(&guest, &Overrides::default(), &old, &old), None);
    }

    #[test]
    fn probes_are_looked_for_where_the_images_lie_there() {
        let here = [disk("vda", "file", "/a/a"), disk("vdb", "file", "/a/b")];
        let there = [disk("vda", "file", "/b/a"), disk("vdb", "file", "/a/b")];
        let probe = |path: &str| StorageProbe {
            image_path: path.to_owned(),
            ..StorageProbe::default()
        };
        let probes = where_they_lie(vec![probe("/a/a"), probe("/a/b")], &here, &there);
        let paths: Vec<&str> = probes
            .iter()
            .map(|probe| probe.destination_image_path.as_str())
            .collect();
        assert_eq!(paths, ["/b/a", ""]);
    }

    #[test]
    fn a_file_is_never_a_block_device() {
        let here = [disk("vda", "file", "/a")];
        assert_eq!(other_kind(&here, &[disk("vda", "file", "/b")]), None);
        assert!(other_kind(&here, &[disk("vda", "block", "/dev/b")]).is_some());
    }
}
