//! Every deed of virsh, on either side, at every moment. `DROVER_INTERFERENCE=WORDS` runs only cases whose line has all
//! these words.

use anyhow::{Result, ensure};
use drover_tests::interference::{Case, run_all};

#[test]
fn every_deed_on_either_side_at_every_moment_ends_right() -> Result<()> {
    let wanted = std::env::var("DROVER_INTERFERENCE").unwrap_or_default();
    let has_all = |case: &Case| wanted.split_whitespace().all(|word| case.to_string().contains(word));
    let cases: Vec<Case> = Case::all().into_iter().filter(has_all).collect();
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
