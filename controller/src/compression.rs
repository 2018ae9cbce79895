//! Whether QEMU compresses a guest's memory on its way, where the caller leaves it open; and whether it could. Pure.
//!
//! ```text
//!  not at all, unless both hosts can and have cores to spare
//!  then where the link carries less than half of what QEMU's threads compress
//! ```
//! How well memory compresses nobody knows before; where it does not, cores are spent for nothing, and no time is lost.

use drover_proto::agent::v1::HostFacts;
use drover_proto::v1::{ChosenCompression, Compression};
use drover_proto::versions::version;

use crate::links::Link;

/// Bytes/s that one of QEMU's threads compresses. zstd says of itself 510 MB/s at its fastest ordinary level, which is what
/// QEMU takes, on a core of 4.9 GHz (its README, 1.5); half of it is for slower ones. Not measured here.
const ONE_COMPRESSES: u64 = 250 << 20;

/// Beside the thread that compresses, one for the tunnel; the other half is the guests'.
const CORES_FOR_ONE: u32 = 4;

/// What is known before a transfer.
#[derive(Clone, Debug)]
pub struct Question {
    /// By the caller.
    pub asked: Compression,
    /// What stands in its way on the hosts.
    pub lacks: Option<String>,
    /// With the policy's limit.
    pub link: Option<Link>,
    /// Online CPUs of the host that has fewer; 0: not known.
    pub cores: u32,
    /// That carry memory: each has a thread.
    pub connections: u32,
    /// It may go over before all its memory has.
    pub post_copy: bool,
}

/// The compression, and why.
pub fn choose(question: &Question) -> ChosenCompression {
    let none = |why: String| chosen(Compression::None, why);
    match question.asked {
        Compression::None | Compression::Zstd => return chosen(question.asked, "as the policy says".to_owned()),
        Compression::Unspecified => {}
    }
    if let Some(lack) = &question.lacks {
        return none(lack.clone());
    }
    if question.post_copy {
        return none("post-copy is allowed, and the two were not tried together".to_owned());
    }
    let Some(link) = question.link else {
        return none("the speed of the link is not known".to_owned());
    };
    let threads = question.connections.max(1);
    if question.cores < CORES_FOR_ONE.saturating_mul(threads) {
        return none(format!("{} cores are online where there are fewer", question.cores));
    }
    let compressed = ONE_COMPRESSES * u64::from(threads);
    let both = format!(
        "the link carries {} MiB/s, QEMU compresses about {} MiB/s by {threads} of its threads",
        link.speed >> 20,
        compressed >> 20
    );
    if link.speed.saturating_mul(2) > compressed {
        return none(both);
    }
    chosen(Compression::Zstd, both)
}

/// What the hosts' versions lack for zstd.
pub fn lacks(source: &HostFacts, destination: &HostFacts) -> Option<String> {
    let ends = [("the source", source), ("the destination", destination)];
    let lacking: Vec<_> = ends
        .into_iter()
        .filter(|(_, facts)| !facts.compressions.contains(&Compression::Zstd.into()))
        .map(|(end, facts)| {
            let (libvirt, qemu) = (version(facts.libvirt_version), version(facts.qemu_version));
            format!("libvirt {libvirt} and QEMU {qemu} at {end}")
        })
        .collect();
    (!lacking.is_empty()).then(|| {
        let found = lacking.join(", ");
        format!("zstd needs libvirt 9.4, QEMU 5.0 and an agent that knows of it on both hosts: {found}")
    })
}

fn chosen(compression: Compression, reason: String) -> ChosenCompression {
    ChosenCompression {
        compression: compression.into(),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use drover_proto::v1::LinkKnowledge;
    use proptest::prelude::*;

    use super::*;

    fn over(mib: u64) -> Question {
        Question {
            asked: Compression::Unspecified,
            lacks: None,
            link: Some(Link {
                speed: mib << 20,
                known: LinkKnowledge::Configured,
            }),
            cores: 64,
            connections: 1,
            post_copy: false,
        }
    }

    fn facts(libvirt: u64, compressions: &[Compression]) -> HostFacts {
        HostFacts {
            libvirt_version: libvirt,
            qemu_version: 10_000_002,
            compressions: compressions.iter().map(|&one| one.into()).collect(),
            ..HostFacts::default()
        }
    }

    #[test]
    fn a_link_that_is_slow_against_the_cores_gets_it() {
        let is = |question: Question| choose(&question).compression();
        assert_eq!(is(over(95)), Compression::Zstd, "800 Mbit/s");
        assert_eq!(is(over(119)), Compression::Zstd, "1 Gbit/s");
        assert_eq!(is(over(298)), Compression::None, "2.5 Gbit/s");
        let several = Question {
            connections: 3,
            ..over(298)
        };
        assert_eq!(is(several), Compression::Zstd, "three threads");
        let few = |cores| Question { cores, ..over(95) };
        assert_eq!(
            [0, 2, 3, 4].map(|cores| is(few(cores)) == Compression::Zstd),
            [false, false, false, true]
        );
        assert_eq!(
            choose(&over(95)).reason,
            "the link carries 95 MiB/s, QEMU compresses about 250 MiB/s by 1 of its threads"
        );
    }

    #[test]
    fn the_policy_has_the_first_word_and_what_is_not_known_is_not_tried() {
        let asked = |asked| Question { asked, ..over(10_000) };
        assert_eq!(choose(&asked(Compression::Zstd)).compression(), Compression::Zstd);
        assert_eq!(choose(&asked(Compression::None)).reason, "as the policy says");
        let unknown = Question { link: None, ..over(1) };
        assert_eq!(choose(&unknown).reason, "the speed of the link is not known");
        let over_early = Question {
            post_copy: true,
            ..over(1)
        };
        assert_eq!(choose(&over_early).compression(), Compression::None);
    }

    #[test]
    fn old_hosts_are_named_with_their_versions() {
        let (old, new) = (facts(9_000_000, &[]), facts(10_001_000, &[Compression::Zstd]));
        assert_eq!(lacks(&new, &new), None);
        let text = lacks(&new, &old).unwrap();
        assert!(
            text.ends_with(": libvirt 9.0.0 and QEMU 10.0.2 at the destination"),
            "{text}"
        );
        assert!(lacks(&old, &old).unwrap().contains("at the source, libvirt 9.0.0"));
        // The version alone does not do: the agent has to know of it.
        assert!(lacks(&facts(10_001_000, &[]), &new).unwrap().contains("10.1.0"));
        let unable = Question {
            lacks: lacks(&old, &new),
            ..over(1)
        };
        let chosen = choose(&unable);
        assert!(chosen.compression() == Compression::None && chosen.reason.contains("libvirt 9.4"));
    }

    proptest! {
        #[test]
        fn nothing_is_compressed_on_hosts_that_cannot(
            mib in 0_u64..1 << 20,
            cores: u32,
            connections: u32,
            post_copy: bool,
        ) {
            let question = Question {
                lacks: Some("too old".to_owned()),
                cores,
                connections,
                post_copy,
                ..over(mib)
            };
            prop_assert_eq!(choose(&question).compression(), Compression::None);
        }
    }
}
