//! One guest's copy on one simulated host, and what its XML says.

use std::time::{Duration, Instant};

use drover_proto::ids::GuestId;
use roxmltree::{Document, Node};
use tokio_util::sync::CancellationToken;

use super::error::bad_xml;
use crate::hypervisor::{GuestFacts, GuestState, HypervisorError, Incarnation, JobStats, WriteSample};

/// Namespace of what only the simulation reads in a guest's XML.
pub(super) const NAMESPACE: &str = "urn:drover:sim";

/// A copy: defined, or with a QEMU, or both.
#[derive(Debug)]
pub(super) struct Domain {
    pub(super) spec: Spec,
    /// Of the QEMU that is there; kept in step with `state`.
    pub(super) live_xml: String,
    /// The persistent definition; `None` for a transient guest.
    pub(super) definition: Option<String>,
    pub(super) autostart: bool,
    pub(super) state: GuestState,
    pub(super) incarnation: Option<Incarnation>,
    pub(super) snapshots: u32,
    pub(super) checkpoints: u32,
    pub(super) managed_save: bool,
    /// It does not heed its power button.
    pub(super) is_deaf: bool,
    /// Targets of disks with a block job.
    pub(super) block_jobs: Vec<String>,
    pub(super) job: Option<Job>,
    pub(super) completed: Option<JobStats>,
    /// In post-copy: the source does not hear that nothing is missing any more.
    pub(super) loses_last_word: bool,
}

/// What the XML says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Spec {
    pub(super) id: GuestId,
    pub(super) name: String,
    pub(super) domain_type: String,
    pub(super) machine: String,
    /// Bytes.
    pub(super) memory: u64,
    pub(super) vcpus: u32,
    /// Bytes/s that it writes into its memory while it runs.
    pub(super) dirty_rate: u64,
}

/// What holds the guest's job lock.
#[derive(Debug)]
pub(super) struct Job {
    /// Who made the call: the job goes when that connection closes.
    pub(super) connection: u64,
    pub(super) phase: Phase,
    pub(super) started: Instant,
    pub(super) stats: JobStats,
    pub(super) limits: Limits,
    /// Somebody wants post-copy.
    pub(super) switch: bool,
    /// Ends the sender or receiver that works for it.
    pub(super) cut: CancellationToken,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Source: between Begin and Perform.
    Begun,
    /// Source: memory is being sent. Whether the guest was stopped for the last round.
    Performing { stopped: bool },
    /// Source: all is sent. Whether the migration stopped the guest.
    Sent { stopped: bool },
    /// Source: the guest went over, its pages follow.
    PostCopy,
    /// Destination: between Prepare and Finish.
    Waiting,
    /// Destination: in Finish.
    Finishing,
    /// Destination: the guest runs, its pages arrive.
    Arriving,
}

impl Phase {
    pub(super) fn is_incoming(self) -> bool {
        match self {
            Self::Waiting | Self::Finishing | Self::Arriving => true,
            Self::Begun | Self::Performing { .. } | Self::Sent { .. } | Self::PostCopy => false,
        }
    }
}

/// What can be changed while memory is sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Bytes/s; 0 is none.
    pub(super) bandwidth: u64,
    pub(super) max_downtime: Duration,
}

impl Default for Limits {
    /// QEMU's own.
    fn default() -> Self {
        Self {
            bandwidth: 0,
            max_downtime: Duration::from_millis(300),
        }
    }
}

impl Job {
    pub(super) fn new(connection: u64, phase: Phase) -> Self {
        Self {
            connection,
            phase,
            started: Instant::now(),
            stats: JobStats::default(),
            limits: Limits::default(),
            switch: false,
            cut: CancellationToken::new(),
        }
    }

    pub(super) fn stats(&self) -> JobStats {
        JobStats {
            elapsed: self.started.elapsed(),
            ..self.stats.clone()
        }
    }
}

impl Domain {
    /// Defined and shut off, or with nothing at all yet.
    pub(super) fn new(spec: Spec, xml: String, definition: Option<String>) -> Self {
        Self {
            spec,
            live_xml: xml,
            definition,
            autostart: false,
            state: GuestState::ShutOff,
            incarnation: None,
            snapshots: 0,
            checkpoints: 0,
            managed_save: false,
            is_deaf: false,
            block_jobs: Vec::new(),
            job: None,
            completed: None,
            loses_last_word: false,
        }
    }

    /// It writes to one new page after the other, and takes no time to be looked at.
    pub(super) fn sample_writes(&self, window: Duration) -> Result<WriteSample, HypervisorError> {
        if !self.state.runs() {
            return Err(super::error::failed("the guest does not run".to_owned()));
        }
        let written = u128::from(self.spec.dirty_rate) * window.as_millis() / 1000;
        Ok(WriteSample {
            window,
            changed: u64::try_from(written).unwrap_or(u64::MAX).min(self.spec.memory),
            resident: None,
        })
    }

    pub(super) fn facts(&self) -> GuestFacts {
        let xml = match (&self.definition, self.state.is_active()) {
            (Some(definition), false) => definition.clone(),
            (_, true) | (None, false) => self.live_xml.clone(),
        };
        GuestFacts {
            id: self.spec.id,
            name: self.spec.name.clone(),
            state: self.state,
            persistent: self.definition.is_some(),
            autostart: self.autostart,
            xml,
            inactive_xml: self.definition.clone(),
            memory: self.spec.memory,
            vcpus: self.spec.vcpus,
            snapshots: self.snapshots,
            checkpoints: self.checkpoints,
            managed_save: self.managed_save,
            incarnation: self.incarnation.clone(),
        }
    }
}

impl Spec {
    pub(super) fn parse(xml: &str) -> Result<Self, HypervisorError> {
        let document = Document::parse(xml).map_err(|error| bad_xml(error.to_string()))?;
        let root = document.root_element();
        let text = |name| child(root, name).and_then(|node| node.text()).map(str::trim);
        let missing = |what: &str| bad_xml(format!("the domain has no usable {what}"));
        let id = text("uuid")
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| missing("uuid"))?;
        let name = text("name").ok_or_else(|| missing("name"))?.to_owned();
        let memory = child(root, "memory")
            .and_then(memory_bytes)
            .ok_or_else(|| missing("memory"))?;
        let vcpus = text("vcpu")
            .map_or(Some(1), |text| text.parse().ok())
            .ok_or_else(|| missing("vcpu"))?;
        let kind = child(root, "os").and_then(|os| child(os, "type"));
        let sim = root.descendants().find(|node| node.has_tag_name((NAMESPACE, "sim")));
        Ok(Self {
            id,
            name,
            domain_type: root.attribute("type").unwrap_or("qemu").to_owned(),
            machine: kind
                .and_then(|kind| kind.attribute("machine"))
                .unwrap_or_default()
                .to_owned(),
            memory,
            vcpus,
            dirty_rate: sim
                .and_then(|sim| sim.attribute("dirty-rate"))
                .and_then(|rate| rate.parse().ok())
                .unwrap_or_default(),
        })
    }
}

fn child<'a, 'input>(node: Node<'a, 'input>, name: &str) -> Option<Node<'a, 'input>> {
    node.children().find(|child| child.has_tag_name(name))
}

fn memory_bytes(node: Node<'_, '_>) -> Option<u64> {
    let unit = match node.attribute("unit").unwrap_or("KiB") {
        "b" | "bytes" => 1,
        "KiB" | "k" => 1 << 10,
        "MiB" | "M" => 1 << 20,
        "GiB" | "G" => 1 << 30,
        _ => return None,
    };
    node.text()?.trim().parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_xml_of_a_libvirt_guest_is_understood() {
        let xml = "<domain type='kvm'><name>web</name><uuid>0190a1b2-0000-7000-8000-0000000000aa</uuid>\
            <memory unit='MiB'>512</memory><vcpu placement='static'>2</vcpu>\
            <os><type arch='x86_64' machine='pc-q35-10.0'>hvm</type></os></domain>";
        let spec = Spec::parse(xml).unwrap();
        assert_eq!((spec.name.as_str(), spec.memory, spec.vcpus), ("web", 512 << 20, 2));
        assert_eq!(
            (spec.domain_type.as_str(), spec.machine.as_str()),
            ("kvm", "pc-q35-10.0")
        );
        assert_eq!(spec.dirty_rate, 0);
    }

    #[test]
    fn what_is_no_guest_is_refused() {
        let no_memory = "<domain><name>a</name><uuid>0190a1b2-0000-7000-8000-0000000000aa</uuid></domain>";
        for bad in ["", "<domain", "<domain/>", no_memory] {
            assert_eq!(Spec::parse(bad).unwrap_err().code, "VIR_ERR_XML_ERROR", "{bad}");
        }
    }
}
