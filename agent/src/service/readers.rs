//! What reads requests from outside, apart from the service: for tests that try to break it.

use drover_proto::agent::v1 as agent;
use drover_proto::failure::Failure;
use uuid::Uuid;

use super::{convert, images, limits, orders};
use crate::hypervisor::Incarnation;
use crate::images::NewImage;
use crate::jobs::begin::BeginOrder;
use crate::jobs::prepare::PrepareOrder;
use crate::jobs::transfer::StartOrder;
use crate::journal::Limits;
use crate::probe::Probe;

/// All fields of BeginOutgoing.
pub fn begin_outgoing(request: agent::BeginOutgoingRequest) -> Result<BeginOrder, Failure> {
    let no_life = Incarnation {
        boot_id: Uuid::nil(),
        qemu_pid: 0,
        qemu_start_time: 0,
    };
    orders::begin(request, no_life).map(|(_, order)| order)
}

/// All fields of PrepareIncoming.
pub fn prepare_incoming(request: agent::PrepareIncomingRequest) -> Result<PrepareOrder, Failure> {
    orders::prepare(request).map(|(_, order)| order)
}

/// All fields of StartMigrate.
pub fn start_migrate(request: agent::StartMigrateRequest) -> Result<StartOrder, Failure> {
    orders::start(request).map(|(_, order)| order)
}

/// All fields of AdjustOutgoing.
pub fn adjust_outgoing(request: agent::AdjustOutgoingRequest) -> Result<Limits, Failure> {
    orders::adjust(request).map(|(_, _, limits)| limits)
}

/// All fields of SettleIncoming.
pub fn settle_incoming(request: agent::SettleIncomingRequest) -> Result<(), Failure> {
    orders::settle_incoming(request).map(drop)
}

/// All fields of ReadStorageProbes, without what is a device.
pub fn storage_probes(request: agent::ReadStorageProbesRequest) -> Result<(Vec<Probe>, Vec<NewImage>), Failure> {
    let probes = limits::probes("probes", request.probes)?;
    let images = images::images_from("images", request.images)?;
    Ok((probes.into_iter().map(convert::probe_from).collect(), images))
}
