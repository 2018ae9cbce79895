//! Every name that telemetry uses, once: attributes, spans, metrics. Own attributes are under `drover.`.

/// The instrumentation scope.
pub const SCOPE: &str = "drover";

/// Attributes of spans and metrics.
pub mod attribute {
    /// UUID of the migration.
    pub const MIGRATION_ID: &str = "drover.migration.id";
    /// Name of the final or current state, as in the API.
    pub const MIGRATION_STATE: &str = "drover.migration.state";
    /// Reason of a failure.
    pub const REASON: &str = "drover.reason";
    /// UUID of the guest.
    pub const GUEST_ID: &str = "drover.guest.id";
    /// Name of the guest.
    pub const GUEST_NAME: &str = "drover.guest.name";
    /// The host on which something was done.
    pub const HOST_ID: &str = "drover.host.id";
    /// The source host.
    pub const SOURCE_HOST: &str = "drover.source.host";
    /// The destination host.
    pub const DESTINATION_HOST: &str = "drover.destination.host";
    /// Name of the phase, in lower case.
    pub const PHASE: &str = "drover.phase";
    /// Which attempt at the phase, from 1.
    pub const PHASE_ATTEMPT: &str = "drover.phase.attempt";
    /// How the phase came out: `done`, `refused`, `unknown`.
    pub const PHASE_OUTCOME: &str = "drover.phase.outcome";
    /// How long the guest ran nowhere, in seconds.
    pub const BLACKOUT: &str = "drover.blackout";
    /// Bytes of memory sent.
    pub const MEMORY_SENT: &str = "drover.memory.sent";
    /// Bytes of memory in all.
    pub const MEMORY_TOTAL: &str = "drover.memory.total";
    /// Bytes of memory still to send.
    pub const MEMORY_REMAINING: &str = "drover.memory.remaining";
    /// Bytes that crossed the network in the tunnel.
    pub const TUNNEL_BYTES: &str = "drover.tunnel.bytes";
    /// Bytes of disks sent.
    pub const DISK_SENT: &str = "drover.disk.sent";
    /// Number of pre-copy rounds.
    pub const ITERATIONS: &str = "drover.iterations";
    /// Which pre-copy round, from 1.
    pub const ITERATION: &str = "drover.iteration";
    /// Bytes per second that the guest dirtied.
    pub const DIRTY_RATE: &str = "drover.dirty_rate";
    /// Bytes per second that were sent.
    pub const BANDWIDTH: &str = "drover.bandwidth";
    /// Connections that carry memory.
    pub const CONNECTIONS: &str = "drover.connections";
    /// Seconds of one fsynced journal write.
    pub const JOURNAL_SECONDS: &str = "drover.journal.duration";

    /// Semantic conventions for RPCs: always `grpc`.
    pub const RPC_SYSTEM: &str = "rpc.system.name";
    /// Full name of the method, `drover.v1.MigrationService/GetMigration`.
    pub const RPC_METHOD: &str = "rpc.method";
    /// Name of the gRPC code, `OK`, `NOT_FOUND`.
    pub const RPC_STATUS: &str = "rpc.response.status_code";
    /// Who called, without the trust domain.
    pub const RPC_PEER: &str = "drover.peer";
}

/// Names of spans.
pub mod span {
    /// The whole migration.
    pub const MIGRATION: &str = "migration";
    /// One pre-copy round.
    pub const ITERATION: &str = "iteration";
    /// From the stop of the guest at the source to its start at the destination.
    pub const SWITCHOVER: &str = "switchover";
    /// Sending memory: one per QEMU channel.
    pub const TUNNEL_CHANNEL: &str = "tunnel.channel";
    /// One fsynced write of a journal.
    pub const JOURNAL_WRITE: &str = "journal.write";

    /// The calls to libvirt; also the names in a migration's call records.
    pub const LIBVIRT_BEGIN: &str = "libvirt.begin";
    pub const LIBVIRT_PREPARE: &str = "libvirt.prepare";
    /// Somebody changed the policy of a migration.
    pub const ADJUST: &str = "adjust";
    pub const LIBVIRT_PERFORM: &str = "libvirt.perform";
    pub const LIBVIRT_FINISH: &str = "libvirt.finish";
    pub const LIBVIRT_RESUME: &str = "libvirt.resume";
    pub const LIBVIRT_CONFIRM: &str = "libvirt.confirm";
    pub const LIBVIRT_ABORT: &str = "libvirt.abort";
    pub const LIBVIRT_START_POST_COPY: &str = "libvirt.start-post-copy";

    /// Name of a phase's span: `phase.` and the phase in lower case.
    pub fn phase(phase: &str) -> String {
        format!("phase.{}", phase.to_ascii_lowercase())
    }
}

/// Names of metrics; times in seconds, sizes in bytes.
pub mod metric {
    pub const MIGRATION_DURATION: &str = "drover.migration.duration";
    pub const PHASE_DURATION: &str = "drover.phase.duration";
    pub const BLACKOUT: &str = "drover.blackout";
    pub const MIGRATIONS_ACTIVE: &str = "drover.migration.active";
    pub const MIGRATIONS_ATTENTION: &str = "drover.migration.attention";
    pub const QUEUE_WAIT: &str = "drover.queue.wait";
    pub const MEMORY_TRANSFERRED: &str = "drover.memory.transferred";
    pub const HOSTS: &str = "drover.hosts";
    /// Seconds left in the life of the process's own certificate; negative after its end.
    pub const CERTIFICATE_REMAINING: &str = "drover.certificate.remaining";
}

/// Fields of `tracing` that become part of every log line below them.
pub mod field {
    /// UUID of the migration; `drover.migration.id` is understood as well.
    pub const MIGRATION_ID: &str = "migration_id";
    /// Trace id; added by the log itself.
    pub const TRACE_ID: &str = "trace_id";
}
