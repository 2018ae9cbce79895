//! How much of a file is sent again after a cut at 90 %: the figure is printed.

use std::time::Duration;

use anyhow::{Result, ensure};
use drover_tests::cluster::Cluster;
use drover_tests::{GuestSpec, Lab, wait_until};

const PATH: &str = "/srv/local/large.raw";
const MIB: u64 = 512;
/// Of what was there already, the most that may be sent again, in percent.
const AGAIN: f64 = 2.0;

#[test]
fn after_a_cut_at_90_percent_little_is_sent_again() -> Result<()> {
    let mut lab = Lab::builder().start()?;
    let random = format!("dd if=/dev/urandom of={PATH} bs=1M count={MIB} status=none && chmod 644 {PATH}");
    lab.host("host-a").run("sh", &["-c", &random])?;
    let disk = format!(
        "<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{PATH}'/>\
         <target dev='vdb' bus='virtio'/></disk>"
    );
    let guest = lab.start_guest("host-a", &GuestSpec::new("web").devices(&disk))?;
    lab.host("host-a").virsh(&["destroy", "web"])?;
    let mut cluster = Cluster::start(&lab)?;
    let id = cluster
        .begin_with(&guest, "host-b", &["--offline", "--bandwidth", "24MiB/s"])?
        .id()
        .to_string();
    wait_until("nine tenths of it to arrive", Duration::from_secs(120), || {
        let there = lab.host("host-b").run("du", &["-sk", "/srv/local"])?.stdout;
        let kib: u64 = there.split_whitespace().next().unwrap_or_default().parse()?;
        Ok((kib > MIB * 1024 * 9 / 10).then_some(()))
    })?;
    cluster.kill_agent("host-b")?;
    cluster.start_agent("host-b")?;
    let end = cluster.wait_for_rest(&id)?;
    ensure!(end.state() == "SUCCEEDED", "{}", end.0);
    // All connections together, counted by the source's agent, which lived on.
    let sent = end.0["summary"]["tunnel_bytes"].as_u64().unwrap_or_default();
    let size = MIB << 20;
    let again = 100.0 * (sent as f64 - size as f64) / size as f64;
    println!("sent {sent} bytes of {size}: {again:.2} % again, with what goes with the blocks");
    ensure!(
        again > 0.0 && again < AGAIN,
        "{again:.2} % of it was sent again: {}",
        end.0
    );
    let sum = |host: &str| -> Result<String> {
        // At the source it is put away by now.
        let said = lab.host(host).run("sh", &["-c", &format!("sha256sum {PATH}*")])?.stdout;
        Ok(said.chars().take(64).collect())
    };
    ensure!(sum("host-a")? == sum("host-b")?, "the file is not the same");
    Ok(())
}
