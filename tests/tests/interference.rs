//! Somebody works on the guest with virsh while it moves: every deed at least once. All of them at every moment:
//! `long_interference`.

use anyhow::{Result, ensure};
use drover_tests::faults::{Moment, Role};
use drover_tests::interference::{Case, Deed, run_all};

use Role::{Destination, Source};

#[test]
fn what_is_done_by_virsh_on_the_way_ends_right() -> Result<()> {
    let case = |deed, side, moment| Case { deed, side, moment };
    let cases = [
        case(Deed::Suspend, Source, Moment::Preparing),
        case(Deed::Edit, Source, Moment::EarlyTransfer),
        case(Deed::Suspend, Source, Moment::LateTransfer),
        case(Deed::Undefine, Source, Moment::Preparing),
        case(Deed::Destroy, Destination, Moment::AllSent),
        case(Deed::Suspend, Destination, Moment::Confirming),
        case(Deed::Destroy, Source, Moment::EarlyTransfer),
        case(Deed::Resume, Destination, Moment::AllSent),
        case(Deed::Rename, Destination, Moment::Finalizing),
        case(Deed::Migrate, Destination, Moment::Finalizing),
        case(Deed::Shutdown, Destination, Moment::Finalizing),
    ];
    let mut failed = Vec::new();
    run_all(&cases, |_, seen| match seen {
        Ok(seen) => println!("{seen}"),
        Err(error) => {
            println!("FAILED {error:#}");
            failed.push(format!("{error:#}"));
        }
    })?;
    ensure!(
        failed.is_empty(),
        "{} of {} failed:\n{}",
        failed.len(),
        cases.len(),
        failed.join("\n")
    );
    Ok(())
}
