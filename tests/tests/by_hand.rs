//! The lab by its commands, as `make lab-up`, `make lab-shell` and `make lab-down` call them.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use drover_tests::{Layout, run};

/// A guest boots meanwhile.
const LIMIT: Duration = Duration::from_secs(120);

/// The command's output; its failure is an error.
fn drover_lab(arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_drover-lab"));
    Ok(run(command.args(arguments), LIMIT)?.stdout)
}

fn looked_into(id: &str) -> Result<()> {
    let up = drover_lab(&["up", "--guest", "--id", id])?;
    ensure!(up.contains("host-b") && up.contains("on host-a, answers after"), "{up}");
    let shell = |program: &[&str]| drover_lab(&[&["shell", "host-a", "--id", id, "--"], program].concat());
    let guests = shell(&["virsh", "-q", "list", "--name"])?;
    ensure!(guests.trim() == "guest", "{guests}");
    ensure!(shell(&["hostname"])?.trim() == "host-a", "{}", shell(&["hostname"])?);
    let status = drover_lab(&["status"])?;
    ensure!(status.contains(&format!("Lab '{id}'")), "{status}");
    let unknown = drover_lab(&["shell", "host-z", "--id", id]).unwrap_err();
    ensure!(
        format!("{unknown:#}").contains("there are host-a, host-b"),
        "{unknown:#}"
    );
    Ok(())
}

#[test]
fn a_lab_is_brought_up_looked_into_and_taken_down_by_commands() -> Result<()> {
    let id = format!("hand-{}", std::process::id());
    let looked = looked_into(&id);
    let down = drover_lab(&["down", "--id", &id])?;
    looked?;
    ensure!(down.contains("is down"), "{down}");
    ensure!(!Layout::new(&id)?.folder().exists(), "its folder is still there");
    let again = drover_lab(&["down", "--id", &id])?;
    ensure!(again.contains("is not there"), "{again}");
    Ok(())
}
