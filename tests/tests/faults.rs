//! Faults on real hosts: every moment of a migration and every victim at least once. All pairs: `long_faults`.
//!
//! Each case prints what happened, how long the guest stood still, and who decided. After each the invariants hold:
//! never two copies, the guest runs unless its QEMU was killed, the record and the hosts agree, nothing is left.

use std::os::unix::fs::MetadataExt;

use anyhow::{Result, ensure};
use drover_tests::Lab;
use drover_tests::faults::{Act, Case, Daemon, End, Moment, Outcome, Patience, Role, Stage, run_all};

use Role::{Destination, Source};

fn case(moment: Moment, act: Act) -> Case {
    Case { moment, act }
}

/// Runs them all, and fails at the end with everything that failed.
fn run(cases: &[Case]) -> Result<()> {
    let mut failed = Vec::new();
    run_all(cases, Patience::SHORT, |case, outcome| match outcome {
        Ok(outcome) => {
            println!("{outcome}");
            if let Err(error) = outcome.append_to(&Outcome::file()) {
                failed.push(format!("{case}: {error:#}"));
            }
        }
        Err(error) => {
            println!("FAILED {error:#}");
            failed.push(format!("{error:#}"));
        }
    })?;
    ensure!(
        failed.is_empty(),
        "{} of {} cases failed:\n{}",
        failed.len(),
        cases.len(),
        failed.join("\n")
    );
    Ok(())
}

fn before_all_is_sent() -> Vec<Case> {
    use Moment::{EarlyTransfer, LateTransfer, Preparing};
    vec![
        case(Preparing, Act::Kill(Daemon::Controller)),
        case(Preparing, Act::JournalFull(Destination)),
        case(Preparing, Act::CutController(Destination)),
        case(Preparing, Act::Stop(Daemon::Libvirtd(Source))),
        case(EarlyTransfer, Act::Kill(Daemon::Agent(Source))),
        case(EarlyTransfer, Act::Kill(Daemon::Libvirtd(Source))),
        case(EarlyTransfer, Act::Kill(Daemon::Libvirtd(Destination))),
        case(EarlyTransfer, Act::Reset),
        case(EarlyTransfer, Act::Stop(Daemon::Controller)),
        case(LateTransfer, Act::KillQemu(Destination)),
        case(LateTransfer, Act::Cut),
        case(LateTransfer, Act::KillBothAgents),
        case(LateTransfer, Act::KillQemu(Source)),
    ]
}

fn after_all_is_sent() -> Vec<Case> {
    use Moment::{AllSent, Confirming, Finalizing, Finished, Finishing, Resuming, Running};
    vec![
        case(AllSent, Act::Kill(Daemon::Agent(Source))),
        case(AllSent, Act::Kill(Daemon::Libvirtd(Destination))),
        case(AllSent, Act::KillQemu(Source)),
        case(AllSent, Act::Cut),
        case(AllSent, Act::Stop(Daemon::Agent(Destination))),
        case(Finishing, Act::Kill(Daemon::Agent(Destination))),
        case(Finishing, Act::Kill(Daemon::Agent(Source))),
        case(Resuming, Act::KillBothAgents),
        case(Resuming, Act::Kill(Daemon::Libvirtd(Destination))),
        case(Running, Act::Kill(Daemon::Agent(Destination))),
        case(Finished, Act::Kill(Daemon::Agent(Destination))),
        case(Finished, Act::CutOneWay(Destination)),
        case(Finished, Act::KillQemu(Destination)),
        case(Confirming, Act::Kill(Daemon::Libvirtd(Source))),
        case(Confirming, Act::JournalFull(Source)),
        case(Finalizing, Act::Kill(Daemon::Controller)),
        case(Finalizing, Act::StoreFull),
    ]
}

/// What takes too long here: each of them lasts for 8 to 10 s. `long_faults` has them at every moment.
const ONLY_THERE: [Act; 4] = [
    Act::Stop(Daemon::Agent(Source)),
    Act::Stop(Daemon::Libvirtd(Destination)),
    Act::CutOneWay(Source),
    Act::CutController(Source),
];

#[test]
fn faults_before_all_is_sent() -> Result<()> {
    run(&before_all_is_sent())
}

#[test]
fn faults_after_all_is_sent() -> Result<()> {
    run(&after_all_is_sent())
}

#[test]
fn every_moment_and_every_victim_is_among_these_cases() {
    let cases = [before_all_is_sent(), after_all_is_sent()].concat();
    for moment in Moment::ALL {
        assert!(cases.iter().any(|case| case.moment == moment), "{moment}");
    }
    for act in Act::all() {
        let here = cases.iter().any(|case| case.act == act);
        assert_ne!(here, ONLY_THERE.contains(&act), "{act}");
    }
    let all = Case::all();
    assert!(cases.iter().all(|case| all.contains(case)), "a case that cannot be");
}

/// A libvirtd that does not know an image's owner any more gives it to root when it ends its copy. That it does so
/// depends on when it was started: here it is done to it.
#[test]
fn an_image_that_was_taken_away_from_the_source_is_given_back_to_it() -> Result<()> {
    let mut lab = Lab::builder().start()?;
    let guest = lab.start_guest("host-a", &Stage::guest())?;
    let mut stage = Stage::start(&lab, guest)?;
    let held = stage.hold_at(Moment::AllSent)?;
    let destination = stage.cluster.host(held.host(Destination));
    destination.kill_libvirtd()?;
    destination.start_libvirtd()?;
    let image = lab.layout().shared().join("moved.qcow2");
    std::os::unix::fs::chown(&image, Some(0), Some(0))?;
    let (end, record, still) = stage.go_on(held)?;
    ensure!(end == End::Stayed, "{}", record.0);
    let owner = std::fs::metadata(&image)?.uid();
    ensure!(
        owner != 0,
        "it belongs to root still, and the guest stood still for {still:?}"
    );
    Ok(())
}

#[test]
fn every_moment_is_a_fault_point_of_the_product() {
    use drover_proto::fault_points::point;
    let known = [
        point::AGENT.as_slice(),
        &point::CONTROLLER_STARTED,
        &point::CONTROLLER_OVER,
    ]
    .concat();
    for name in Moment::ALL.into_iter().filter_map(Moment::point) {
        assert!(known.contains(&name), "{name}");
    }
}
