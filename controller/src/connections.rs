//! How many connections carry a guest's memory, where the caller leaves it open. Pure.
//!
//! ```text
//!  one, unless one is known not to fill the link
//!  then so many as fill it, at most as many as both hosts have cores to spare and the guest has memory to send
//! ```
//! Each is a thread of QEMU and a TLS stream of the agent, at both ends.

use drover_proto::v1::{ChosenConnections, LinkKnowledge};
use drover_proto::versions::release;

use crate::links::Link;

/// Bytes/s that one connection carries for sure. Measured on the development machine: the agents' tunnel alone 1058 MiB/s,
/// QEMU's one thread 415 to 730 MiB/s over plain TCP. Others: vMotion about 1790 MiB/s a stream, Cloud Hypervisor 1617.
const ONE_CARRIES: u64 = 400 << 20;

/// At that rate the tunnel takes 0.3 of a core at each end (1.5 s of CPU for a GiB, both ends together), QEMU's thread most
/// of another. The other half of the cores is the guests'.
const CORES_FOR_ONE: u32 = 2;

/// What takes one connection 2.5 s is over before more of them pay.
const MEMORY_FOR_ONE: u64 = 1 << 30;

/// Elsewhere throughput fell beyond that (Cloud Hypervisor, 100 Gbit/s: 11503 MiB/s by 8, 10684 by 16).
const MOST: u64 = 8;

/// The first QEMU that does several connections and post-copy in one migration.
const WITH_POST_COPY: (u64, u64) = (10, 1);

/// What is known before a transfer.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    /// By the caller or the configuration; 0: nobody did.
    pub asked: u32,
    /// With the policy's limit.
    pub link: Option<Link>,
    /// Online CPUs of the host that has fewer; 0: not known.
    pub cores: u32,
    /// Bytes of the guest's memory.
    pub memory: u64,
    /// It may go over before all its memory has.
    pub post_copy: bool,
    /// The older QEMU of both, counted as libvirt does; 0: not known.
    pub qemu: u64,
}

/// The number, and why.
pub fn choose(question: &Question) -> ChosenConnections {
    let Question { asked, cores, .. } = *question;
    if asked > 0 {
        return chosen(u64::from(asked), "as the policy says".to_owned());
    }
    if question.post_copy && release(question.qemu) < WITH_POST_COPY {
        let why = "post-copy is allowed, which QEMU before 10.1 cannot do over several connections";
        return chosen(1, why.to_owned());
    }
    let Some(link) = question.link else {
        return chosen(1, "the speed of the link is not known".to_owned());
    };
    let of_link = format!("{} the link carries {} MiB/s", how(link.known), link.speed >> 20);
    let by_link = link.speed.div_ceil(ONE_CARRIES);
    if by_link <= 1 {
        return chosen(1, format!("{of_link}: one carries that"));
    }
    let bounds = [
        (by_link, format!("one carries about {} MiB/s", ONE_CARRIES >> 20)),
        (
            u64::from(cores / CORES_FOR_ONE),
            format!("{cores} cores are online where there are fewer"),
        ),
        (
            question.memory / MEMORY_FOR_ONE,
            format!("there are {} MiB to send", question.memory >> 20),
        ),
        (MOST, "more do not pay".to_owned()),
    ];
    let (count, why) = bounds
        .into_iter()
        .min_by_key(|(count, _)| *count)
        .unwrap_or((1, String::new()));
    chosen(count.max(1), format!("{of_link}; {why}"))
}

fn chosen(count: u64, reason: String) -> ChosenConnections {
    ChosenConnections {
        count: i32::try_from(count).unwrap_or(i32::MAX),
        reason,
    }
}

fn how(known: LinkKnowledge) -> &'static str {
    match known {
        LinkKnowledge::Learnt => "as earlier migrations reached it",
        LinkKnowledge::Measured => "as was measured",
        LinkKnowledge::Configured => "as is configured",
        LinkKnowledge::Limit => "limited as it is",
        LinkKnowledge::Unspecified => "as is said",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    /// A large guest between large hosts.
    fn over(mib: u64) -> Question {
        Question {
            asked: 0,
            link: Some(Link {
                speed: mib * MIB,
                known: LinkKnowledge::Configured,
            }),
            cores: 64,
            memory: 256 * GIB,
            post_copy: false,
            qemu: 10_000_002,
        }
    }

    fn count(question: Question) -> i32 {
        choose(&question).count
    }

    #[test]
    fn a_link_that_one_connection_fills_gets_one() {
        assert_eq!(count(over(95)), 1, "800 Mbit/s");
        assert_eq!(count(over(400)), 1);
        let unknown = Question { link: None, ..over(0) };
        assert_eq!(count(unknown), 1);
        assert_eq!(choose(&unknown).reason, "the speed of the link is not known");
    }

    #[test]
    fn a_faster_one_gets_as_many_as_fill_it() {
        assert_eq!(count(over(1192)), 3, "10 Gbit/s");
        assert_eq!(count(over(2980)), 8, "25 Gbit/s");
        assert_eq!(count(over(11920)), 8, "100 Gbit/s");
        assert_eq!(
            choose(&over(1192)).reason,
            "as is configured the link carries 1192 MiB/s; one carries about 400 MiB/s"
        );
        assert_eq!(
            choose(&over(11920)).reason,
            "as is configured the link carries 11920 MiB/s; more do not pay"
        );
    }

    #[test]
    fn the_smaller_host_and_a_small_guest_bound_it() {
        let few = |cores| Question { cores, ..over(2980) };
        assert_eq!([2, 3, 4, 8].map(|cores| count(few(cores))), [1, 1, 2, 4]);
        assert_eq!(count(few(0)), 1, "nobody knows");
        assert!(
            choose(&few(4))
                .reason
                .ends_with("4 cores are online where there are fewer")
        );
        let small = |memory| Question { memory, ..over(2980) };
        assert_eq!(
            [GIB / 2, 2 * GIB, 5 * GIB].map(|memory| count(small(memory))),
            [1, 2, 5]
        );
    }

    #[test]
    fn post_copy_on_an_old_qemu_has_one_and_the_policy_has_the_last_word() {
        let over_early = |qemu| Question {
            post_copy: true,
            qemu,
            ..over(1192)
        };
        assert_eq!([0, 7_002_000, 10_000_002].map(|qemu| count(over_early(qemu))), [1; 3]);
        assert_eq!(count(over_early(10_001_000)), 3);
        let asked = Question {
            asked: 5,
            ..over_early(7_002_000)
        };
        assert_eq!(count(asked), 5, "a check refuses it, with its reason");
    }

    proptest! {
        #[test]
        fn it_is_bounded_and_a_faster_link_never_has_fewer(
            speed in 0_u64..1 << 40,
            more in 0_u64..1 << 40,
            cores in 0_u32..512,
            memory in 0_u64..1 << 45,
        ) {
            let at = |speed| {
                let link = Some(Link { speed, known: LinkKnowledge::Learnt });
                count(Question { link, cores, memory, ..over(0) })
            };
            let (slow, fast) = (at(speed), at(speed + more));
            prop_assert!((1..=8).contains(&slow) && slow <= fast);
            prop_assert!(slow == 1 || u32::try_from(slow).unwrap() * 2 <= cores);
        }
    }
}
