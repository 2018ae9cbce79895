//! Requests that change something, read as a whole: an order, or the first field that is not good. Pure: nothing is
//! written down or asked before all of a request was read.

use drover_proto::agent::v1 as agent;
use drover_proto::failure::Failure;
use drover_proto::v1::Compression;

use super::{about, convert, images, limits};
use crate::hypervisor::{CopiedDisks, Incarnation, MigrateFlags};
use crate::jobs::begin::BeginOrder;
use crate::jobs::fence::{Fence, Reference};
use crate::jobs::prepare::PrepareOrder;
use crate::jobs::resolve::By;
use crate::jobs::settle_incoming::News;
use crate::jobs::transfer::{Expected, StartOrder};
use crate::journal::{Delivery, Limits, Verdict};

/// `no_life` stands for the life of a guest that is shut off.
pub(super) fn begin(
    request: agent::BeginOutgoingRequest,
    no_life: Incarnation,
) -> Result<(Fence, BeginOrder), Failure> {
    let fence = convert::fence(request.fence)?;
    let offline = request.offline.map(limits::offline).transpose()?;
    let order = BeginOrder {
        reference: about(request.migration)?,
        destination: convert::host_id("destination_host", &request.destination_host)?,
        incarnation: match (&offline, request.incarnation) {
            (Some(_), None) => no_life,
            (_, life) => convert::incarnation(life)?,
        },
        offline,
        flags: MigrateFlags {
            copied: CopiedDisks::new(images::targets("copy_disks", request.copy_disks)?),
            ..flags(request.policy.as_ref(), false)
        },
        delete_source: request.delete_source,
        overrides: convert::overrides(request.destination_overrides.as_ref())?,
        limits: convert::limits(request.policy.as_ref())?,
    };
    Ok((fence, order))
}

pub(super) fn prepare(request: agent::PrepareIncomingRequest) -> Result<(Fence, PrepareOrder), Failure> {
    let fence = convert::fence(request.fence)?;
    let inactive_xml = limits::xml("inactive_xml", request.inactive_xml)?;
    let inactive_xml = Some(inactive_xml).filter(|xml| !xml.is_empty());
    let order = PrepareOrder {
        reference: about(request.migration)?,
        source: convert::host_id("source_host", &request.source_host)?,
        guest_name: request.guest_name,
        xml: limits::xml("xml", request.xml)?,
        state_before: convert::state_from(request.state_before)?,
        autostart_before: request.autostart_before,
        flags: flags(request.policy.as_ref(), inactive_xml.is_some()),
        inactive_xml,
        images: images::images_from("images", request.images)?,
        cookie: limits::cookie("cookie", &request.cookie)?,
        offline: request.offline.map(limits::files).transpose()?,
    };
    Ok((fence, order))
}

pub(super) fn start(request: agent::StartMigrateRequest) -> Result<(Fence, StartOrder), Failure> {
    let fence = convert::fence(request.fence)?;
    let delivery = Delivery {
        ticket: convert::ticket(&request.ticket)?,
        addresses: limits::addresses("destination_addresses", request.destination_addresses)?,
        management: limits::address("destination_management_address", request.destination_management_address)?,
    };
    let order = StartOrder {
        reference: about(request.migration)?,
        delivery,
        cookie: limits::cookie("cookie", &request.cookie)?,
        limits: request
            .policy
            .as_ref()
            .map(|now| convert::limits(Some(now)))
            .transpose()?,
        expected: Expected {
            dirty_rate: request.dirty_bytes_per_second,
            link: request.link_bytes_per_second,
        },
    };
    Ok((fence, order))
}

pub(super) fn adjust(request: agent::AdjustOutgoingRequest) -> Result<(Fence, Reference, Limits), Failure> {
    let (fence, reference) = (convert::fence(request.fence)?, about(request.migration)?);
    let policy = request
        .policy
        .ok_or_else(|| Failure::invalid("policy", "is required"))?;
    Ok((fence, reference, convert::limits(Some(&policy))?))
}

/// What a destination is told at the end.
#[derive(Debug)]
pub(super) struct SettleOrder {
    pub(super) reference: Reference,
    pub(super) verdict: Verdict,
    pub(super) by: By,
    /// What the source's journal says of the definition.
    pub(super) news: Option<News>,
}

pub(super) fn settle_incoming(request: agent::SettleIncomingRequest) -> Result<(Fence, SettleOrder), Failure> {
    let fence = convert::fence(request.fence)?;
    let order = SettleOrder {
        verdict: convert::verdict_from(request.verdict)?,
        by: By::from_fenced(request.fenced),
        reference: about(request.migration)?,
        news: request.definition.and_then(convert::definition_news),
    };
    Ok((fence, order))
}

fn flags(policy: Option<&agent::TransferPolicy>, persistent: bool) -> MigrateFlags {
    let policy = policy.cloned().unwrap_or_default();
    let zstd = policy.compression() == Compression::Zstd;
    MigrateFlags {
        persistent,
        post_copy: crate::checks::post_copy_wanted(&policy),
        auto_converge: policy.auto_converge,
        storage_proved: policy.storage_proved,
        parallel: policy.parallel_connections.max(u32::from(zstd)),
        zstd,
        copied: None,
        detect_zeroes: policy.detect_zeroes,
        resume: false,
    }
}
