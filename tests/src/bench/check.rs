//! How long `drover check` of one guest takes against several hosts at once, with the estimate and without it.

use anyhow::{Result, ensure};

use super::ms;
use crate::cluster::Cluster;
use crate::figures::quartiles;
use crate::{Disk, GuestSpec, Lab};

/// The last one shows the command's own part, which is in each: process, certificates, connection, inventory.
const COMMANDS: [&[&str]; 3] = [
    &["check", "idle"],
    &["check", "idle", "--no-estimate"],
    &["guest", "list"],
];

/// Prints medians and quartiles.
pub fn run(hosts: u8, rounds: usize) -> Result<()> {
    let mut lab = Lab::builder().hosts(hosts + 1).start()?;
    let disk = Disk::Shared {
        format: "qcow2",
        size_mib: 8,
    };
    let guest = lab.start_guest("host-a", &GuestSpec::new("idle").disk(disk))?;
    let cluster = Cluster::start(&lab)?;
    println!("{rounds} checks of one guest with a shared disk against {hosts} hosts");
    let mut took = [const { Vec::new() }; COMMANDS.len()];
    // The first round opens the connections between controller and agents, and measures the links.
    for round in 0..=rounds {
        for (command, took) in COMMANDS.iter().zip(&mut took) {
            let run = cluster.drover(command)?;
            ensure!(run.code == 0, "{}{}", run.stdout, run.stderr);
            if round > 0 {
                took.push(ms(run.wall));
            }
        }
    }
    for (command, took) in COMMANDS.iter().zip(took) {
        let (low, middle, high) = quartiles(took);
        let command = format!("drover {}", command.join(" "));
        println!("{command:<32}  median {middle:.0} ms ({low:.0} to {high:.0})");
    }
    lab.check_at_rest(&[(&guest, "host-a")])
}
