//! What a migration's flags are for libvirt. Pure.

use super::raw::Params;
use crate::hypervisor::{CopiedDisks, MigrateFlags, Result};

/// Which side a call is made on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Source,
    Destination,
}

/// libvirt's flags: the same for all calls of one migration on one side.
pub(super) fn migrate_flags(flags: &MigrateFlags, side: Side) -> u32 {
    let when = |wanted: bool, flag: u32| if wanted { flag } else { 0 };
    // PERSIST_DEST always: libvirt defines the guest before it starts the CPUs.
    virt_sys::VIR_MIGRATE_LIVE
        | virt_sys::VIR_MIGRATE_PERSIST_DEST
        | virt_sys::VIR_MIGRATE_CHANGE_PROTECTION
        | when(flags.persistent, virt_sys::VIR_MIGRATE_UNDEFINE_SOURCE)
        // Finish must leave the guest still, so that a death inside it is provably harmless. libvirt refuses
        // this together with post-copy.
        | when(!flags.post_copy, virt_sys::VIR_MIGRATE_PAUSED)
        | when(flags.post_copy, virt_sys::VIR_MIGRATE_POSTCOPY)
        | when(flags.resume, virt_sys::VIR_MIGRATE_POSTCOPY_RESUME)
        | when(flags.storage_proved, virt_sys::VIR_MIGRATE_UNSAFE)
        | when(flags.parallel > 0, virt_sys::VIR_MIGRATE_PARALLEL)
        | when(flags.auto_converge && side == Side::Source, virt_sys::VIR_MIGRATE_AUTO_CONVERGE)
        // The whole disk: what the destination made is empty.
        | when(flags.copied.is_some(), virt_sys::VIR_MIGRATE_NON_SHARED_DISK)
        // A guest that may be slowed down waits for its writes to reach both sides.
        | when(
            flags.copied.is_some() && flags.auto_converge,
            virt_sys::VIR_MIGRATE_NON_SHARED_SYNCHRONOUS_WRITES,
        )
}

/// The parameters that go with the flags.
pub(super) fn migrate_params(flags: &MigrateFlags) -> Result<Params> {
    let mut params = Params::new()?;
    // Each disk is a parameter of the same name. Without any, libvirt would copy all, shared ones too.
    for target in flags.copied.iter().flat_map(CopiedDisks::targets) {
        params = params.text(virt_sys::VIR_MIGRATE_PARAM_MIGRATE_DISKS, target)?;
        // The same names once more: libvirt refuses one that is not copied.
        if flags.detect_zeroes {
            params = params.text(virt_sys::VIR_MIGRATE_PARAM_MIGRATE_DISKS_DETECT_ZEROES, target)?;
        }
    }
    // The flag VIR_MIGRATE_COMPRESSED is for the older kinds; a parameter that names this one suffices.
    if flags.zstd {
        params = params.text(virt_sys::VIR_MIGRATE_PARAM_COMPRESSION, "zstd")?;
    }
    match i32::try_from(flags.parallel).unwrap_or(i32::MAX) {
        0 => Ok(params),
        count => params.int(virt_sys::VIR_MIGRATE_PARAM_PARALLEL_CONNECTIONS, count),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypervisor::HostFacts;

    const PLAIN: MigrateFlags = MigrateFlags {
        persistent: false,
        post_copy: false,
        auto_converge: false,
        storage_proved: false,
        parallel: 0,
        zstd: false,
        copied: None,
        detect_zeroes: false,
        resume: false,
    };

    fn has(flags: &MigrateFlags, side: Side, flag: u32) -> bool {
        migrate_flags(flags, side) & flag != 0
    }

    #[test]
    fn pre_copy_arrives_still_and_post_copy_cannot() {
        assert!(has(&PLAIN, Side::Destination, virt_sys::VIR_MIGRATE_PAUSED));
        let post_copy = MigrateFlags {
            post_copy: true,
            ..PLAIN
        };
        assert!(!has(&post_copy, Side::Destination, virt_sys::VIR_MIGRATE_PAUSED));
        assert!(has(&post_copy, Side::Source, virt_sys::VIR_MIGRATE_POSTCOPY));
    }

    #[test]
    fn a_repair_is_the_same_migration_once_more() {
        let flags = MigrateFlags {
            post_copy: true,
            persistent: true,
            ..PLAIN
        };
        for side in [Side::Source, Side::Destination] {
            let more = migrate_flags(&flags.resuming(), side) ^ migrate_flags(&flags, side);
            assert_eq!(more, virt_sys::VIR_MIGRATE_POSTCOPY_RESUME);
        }
    }

    #[test]
    fn auto_converge_is_the_sources_business() {
        let flags = MigrateFlags {
            auto_converge: true,
            ..PLAIN
        };
        assert!(has(&flags, Side::Source, virt_sys::VIR_MIGRATE_AUTO_CONVERGE));
        assert!(!has(&flags, Side::Destination, virt_sys::VIR_MIGRATE_AUTO_CONVERGE));
    }

    #[test]
    fn only_a_persistent_guest_is_undefined_on_the_source() {
        assert!(!has(&PLAIN, Side::Source, virt_sys::VIR_MIGRATE_UNDEFINE_SOURCE));
        assert!(has(&PLAIN, Side::Source, virt_sys::VIR_MIGRATE_PERSIST_DEST));
        let persistent = MigrateFlags {
            persistent: true,
            ..PLAIN
        };
        assert!(has(&persistent, Side::Source, virt_sys::VIR_MIGRATE_UNDEFINE_SOURCE));
    }

    #[test]
    fn disks_are_never_copied_by_accident() {
        let all = MigrateFlags {
            persistent: true,
            post_copy: true,
            auto_converge: true,
            storage_proved: true,
            parallel: 4,
            zstd: false,
            copied: None,
            detect_zeroes: false,
            resume: false,
        };
        let copying = virt_sys::VIR_MIGRATE_NON_SHARED_DISK | virt_sys::VIR_MIGRATE_NON_SHARED_INC;
        assert!(!has(&all, Side::Source, copying));
        assert!(!has(&PLAIN, Side::Source, copying));
    }

    #[test]
    fn what_is_copied_is_named_and_nothing_else() {
        let names = ["vdb", "vdc"].map(str::to_owned).to_vec();
        let flags = MigrateFlags {
            copied: CopiedDisks::new(names),
            ..PLAIN
        };
        for side in [Side::Source, Side::Destination] {
            assert!(has(&flags, side, virt_sys::VIR_MIGRATE_NON_SHARED_DISK));
            assert!(!has(&flags, side, virt_sys::VIR_MIGRATE_NON_SHARED_INC));
        }
        assert_eq!(
            migrate_params(&flags).unwrap().all_texts("migrate_disks"),
            ["vdb", "vdc"]
        );
        assert!(migrate_params(&PLAIN).unwrap().all_texts("migrate_disks").is_empty());
    }

    #[test]
    fn zeros_are_looked_for_in_exactly_what_is_copied_where_that_was_ordered() {
        let names = ["vdb", "vdc"].map(str::to_owned).to_vec();
        let looked_for = |libvirt_version, copied: Option<CopiedDisks>| {
            let facts = HostFacts {
                libvirt_version,
                ..HostFacts::default()
            };
            let flags = MigrateFlags {
                copied,
                detect_zeroes: facts.detects_zeroes(),
                ..PLAIN
            };
            let params = migrate_params(&flags).unwrap();
            let names = params.all_texts("migrate_disks");
            assert_eq!(names.len(), flags.copied.iter().flat_map(CopiedDisks::targets).count());
            params.all_texts("migrate_disks_detect_zeroes")
        };
        let copied = || CopiedDisks::new(names.clone());
        for new in [10_009_000, 12_002_000] {
            assert_eq!(looked_for(new, copied()), ["vdb", "vdc"]);
            assert!(looked_for(new, None).is_empty(), "nothing is copied");
        }
        for old in [9_000_000, 10_008_999] {
            assert!(looked_for(old, copied()).is_empty());
        }
    }

    #[test]
    fn only_a_guest_that_may_be_slowed_down_waits_for_its_writes() {
        let waits = |copied: &[&str], auto_converge| {
            let names = copied.iter().map(|&name| name.to_owned()).collect();
            let copied = CopiedDisks::new(names);
            let flags = MigrateFlags {
                copied,
                auto_converge,
                ..PLAIN
            };
            let on = |side| has(&flags, side, virt_sys::VIR_MIGRATE_NON_SHARED_SYNCHRONOUS_WRITES);
            assert_eq!(on(Side::Source), on(Side::Destination), "both sides agree");
            on(Side::Source)
        };
        assert!(waits(&["vdb"], true));
        assert!(!waits(&["vdb"], false) && !waits(&[], true));
    }

    #[test]
    fn the_number_of_connections_goes_with_multifd_only() {
        assert!(migrate_params(&PLAIN).unwrap().values().is_empty());
        let parallel = MigrateFlags { parallel: 4, ..PLAIN };
        assert_eq!(migrate_params(&parallel).unwrap().values().len(), 1);
    }

    #[test]
    fn compressed_memory_goes_over_multifd_on_both_sides() {
        let compressed = MigrateFlags {
            parallel: 1,
            zstd: true,
            ..PLAIN
        };
        for side in [Side::Source, Side::Destination] {
            assert!(has(&compressed, side, virt_sys::VIR_MIGRATE_PARALLEL));
            assert!(!has(&compressed, side, virt_sys::VIR_MIGRATE_COMPRESSED));
        }
        let params = migrate_params(&compressed).unwrap();
        assert_eq!(params.all_texts("compression"), ["zstd"]);
        assert_eq!(params.values().len(), 2);
    }
}
