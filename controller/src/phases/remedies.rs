//! What helps in most cases after a transfer that failed, where whoever failed says nothing better.

use drover_proto::failure::{Failure, Reason};

const USUAL: [(Reason, &str); 3] = [
    (
        Reason::TransferFailed,
        "the guest is where it was: see that both agents and the network between them are well \
         (`drover check GUEST --to HOST`), then migrate again",
    ),
    (
        Reason::LibvirtFailed,
        "the guest is where it was: see libvirtd's log and /var/log/libvirt/qemu/GUEST.log on both hosts, \
         then migrate again",
    ),
    (
        Reason::TransferDeadline,
        "the guest is where it was: give it more time (--deadline), a longer pause (--max-downtime), or let it be \
         slowed down (--allow-auto-converge)",
    ),
];

/// The failure with a remedy, if it has none and there is a usual one.
pub(super) fn usual(failure: Failure) -> Failure {
    let known = USUAL.iter().find(|(reason, _)| *reason == failure.reason);
    match known {
        Some((_, remedy)) if failure.remedy.is_none() => failure.with_remedy(*remedy),
        Some(_) | None => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_without_advice_gets_the_usual_one() {
        let failed = |reason| usual(Failure::new(reason, "it broke")).remedy;
        assert!(failed(Reason::TransferFailed).unwrap().contains("drover check"));
        assert!(failed(Reason::LibvirtFailed).unwrap().contains("libvirtd's log"));
        assert_eq!(failed(Reason::GuestEnded), None);
        let better = Failure::new(Reason::TransferFailed, "it broke").with_remedy("plug it in");
        assert_eq!(usual(better).remedy.unwrap(), "plug it in");
    }
}
