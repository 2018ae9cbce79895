//! The two networks of a lab, and what can go wrong on them: slow links, cut links, cut pairs, cut connections.

use crate::node::Node;
use crate::process;
use anyhow::{Context, Result, bail};
use std::io::Write;
use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Duration;

/// Which of a host's two links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// 10.77.0.0/24: controller, agents, libvirt, migration data, NFS.
    Management,
    /// 10.78.0.0/24: what the guests use.
    Guests,
}

impl Network {
    /// The host's end of the link.
    pub fn interface(self) -> &'static str {
        match self {
            Network::Management => "mgmt0",
            Network::Guests => "guest0",
        }
    }

    /// Address number `number` on this network. 1 is the control or client node, 2 the NFS server.
    pub fn address(self, number: u8) -> Ipv4Addr {
        match self {
            Network::Management => Ipv4Addr::new(10, 77, 0, number),
            Network::Guests => Ipv4Addr::new(10, 78, 0, number),
        }
    }

    /// The node that holds the network's bridge.
    pub(crate) fn centre(self) -> &'static str {
        match self {
            Network::Management => "control",
            Network::Guests => "client",
        }
    }

    /// The bridge in that node, which carries the node's own address.
    pub(crate) fn bridge(self) -> &'static str {
        match self {
            Network::Management => "mgmt0",
            Network::Guests => "br0",
        }
    }

    /// The far end of a host's link, a port of that bridge. At most 15 characters, so the host's number it is.
    fn port(self, number: u8) -> String {
        format!("{}-{number}", if self == Network::Management { "mg" } else { "gu" })
    }
}

/// Runs `ip` with several commands at once in a node's network.
pub(crate) fn ip_batch(node: &Node, lines: &[String]) -> Result<()> {
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(lines.join("\n").as_bytes())?;
    // Only the network is entered: `netns PID` means PIDs as the machine counts them.
    let pid = node.pid()?.to_string();
    let mut command = Command::new("nsenter");
    command
        .args(["--net", "--target", &pid, "ip", "-batch"])
        .arg(file.path());
    process::run(&mut command, Duration::from_secs(60)).with_context(|| format!("network of {}", node.name()))?;
    Ok(())
}

/// Makes the bridge of a network in its central node.
pub(crate) fn make_centre(node: &Node, network: Network) -> Result<()> {
    let bridge = network.bridge();
    ip_batch(
        node,
        &[
            "link set lo up".into(),
            // forward_delay 0: a port forwards at once.
            format!("link add {bridge} type bridge forward_delay 0 mcast_snooping 0"),
            format!("addr add {}/24 broadcast + dev {bridge}", network.address(1)),
            format!("link set {bridge} up"),
        ],
    )
}

/// Joins a node to a network by a pair of interfaces.
pub(crate) fn join(centre: &Node, node: &Node, network: Network, number: u8) -> Result<()> {
    let (port, inside, bridge) = (network.port(number), network.interface(), network.bridge());
    // The kernel removes the link of a node that died in its own time, which may be after the node is started again.
    // Fails when there is none, which is what is wanted.
    let _ = centre.run("ip", &["link", "delete", &port]);
    ip_batch(
        centre,
        &[
            format!("link add {port} type veth peer name {inside} netns {}", node.pid()?),
            format!("link set {port} master {bridge} up"),
        ],
    )?;
    let mut lines = vec!["link set lo up".to_string(), format!("link set {inside} up")];
    match network {
        Network::Management => {
            lines.push(format!(
                "addr add {}/24 broadcast + dev {inside}",
                network.address(number)
            ));
        }
        Network::Guests => lines.extend([
            "link add br0 type bridge forward_delay 0 mcast_snooping 0".into(),
            format!("link set {inside} master br0"),
            "link set br0 up".into(),
        ]),
    }
    ip_batch(node, &lines)
}

/// One host's link to one network.
#[derive(Debug)]
pub struct Link<'lab> {
    pub(crate) centre: Node,
    pub(crate) node: &'lab Node,
    pub(crate) network: Network,
    pub(crate) number: u8,
}

impl Link<'_> {
    /// Limits the link in both directions; `None` lifts the limit.
    pub fn limit_mbit(&self, rate: Option<u32>) -> Result<()> {
        let port = self.network.port(self.number);
        for (node, interface) in [(self.node, self.network.interface()), (&self.centre, port.as_str())] {
            let Some(rate) = rate else {
                // Fails when there was no limit, which is what is wanted.
                let _ = node.run("tc", &["qdisc", "del", "dev", interface, "root"]);
                continue;
            };
            let rate = format!("{rate}mbit");
            let arguments = ["qdisc", "replace", "dev", interface, "root", "tbf"];
            let shape = ["rate", rate.as_str(), "burst", "1mb", "latency", "50ms"];
            node.run("tc", &[arguments.as_slice(), &shape].concat())?;
        }
        Ok(())
    }

    /// Bytes that the host has sent over it, with their headers.
    pub fn sent_bytes(&self) -> Result<u64> {
        let interface = self.network.interface();
        let said = self
            .node
            .run("ip", &["-json", "-stats", "link", "show", "dev", interface])?;
        let links: serde_json::Value = serde_json::from_str(&said.stdout)?;
        let bytes = links[0]["stats64"]["tx"]["bytes"].as_u64();
        bytes.with_context(|| format!("no statistics of {interface}: {}", said.stdout))
    }

    /// Pulls the cable: both ends see that the link is down.
    pub fn unplug(&self) -> Result<()> {
        self.set_port(&["link", "set", &self.network.port(self.number), "down"])
    }

    /// Plugs it in again.
    pub fn plug(&self) -> Result<()> {
        self.set_port(&["link", "set", &self.network.port(self.number), "up"])
    }

    fn set_port(&self, arguments: &[&str]) -> Result<()> {
        self.centre.run("ip", arguments).map(|_| ())
    }

    /// Drops everything silently, as a broken switch does: links stay up, nobody gets an error.
    pub fn black_hole(&self, on: bool) -> Result<()> {
        let port = self.network.port(self.number);
        // Bridge port states: 0 disabled, 3 forwarding.
        self.centre
            .run(
                "bridge",
                &["link", "set", "dev", &port, "state", if on { "0" } else { "3" }],
            )
            .map(|_| ())
    }

    /// Resets all TCP connections of this host with `peer` (both ends get an error at once, nothing else changes).
    /// Returns how many were ended.
    pub fn reset_connections(&self, peer: Ipv4Addr) -> Result<usize> {
        let peer = peer.to_string();
        let said = self.node.run("ss", &["--kill", "--tcp", "--no-header", "dst", &peer])?;
        Ok(said.stdout.lines().count())
    }

    /// Drops everything between this host and `peer`, silently, in both directions; both still reach all others.
    pub fn separate_from(&self, peer: Ipv4Addr) -> Result<()> {
        if self.network != Network::Management {
            bail!("hosts have addresses on the management network only");
        }
        let rules = format!(
            "table ip lab {{ chain in {{ type filter hook input priority 0; ip saddr {peer} drop; }};
             chain out {{ type filter hook output priority 0; ip daddr {peer} drop; }}; }}"
        );
        self.node.run("nft", &[&rules]).map(|_| ())
    }

    /// Drops silently what comes from `peer`; what goes there arrives.
    pub fn deafen_to(&self, peer: Ipv4Addr) -> Result<()> {
        if self.network != Network::Management {
            bail!("hosts have addresses on the management network only");
        }
        let rules =
            format!("table ip lab {{ chain in {{ type filter hook input priority 0; ip saddr {peer} drop; }}; }}");
        self.node.run("nft", &[&rules]).map(|_| ())
    }

    /// Drops what `peer` sends to this TCP port of the host, silently. What the host sends to the peer, and the answers
    /// to it, still pass.
    pub fn shut_port_to(&self, peer: Ipv4Addr, port: u16) -> Result<()> {
        let rules = format!(
            "table ip lab {{ chain in {{ type filter hook input priority 0; ip saddr {peer} tcp dport {port} drop; }}; }}"
        );
        self.node.run("nft", &[&rules]).map(|_| ())
    }

    /// From now on connections of `peer` to a TCP port of this host come to another one of its ports; those that are there
    /// stay as they are.
    pub(crate) fn redirect(&self, peer: Ipv4Addr, port: u16, to: u16) -> Result<()> {
        let rules = format!(
            "table ip lab-redirect {{ chain in {{ type nat hook prerouting priority -100;
             ip saddr {peer} tcp dport {port} redirect to :{to}; }}; }}"
        );
        self.node.run("nft", &[&rules]).map(|_| ())
    }

    /// Ends it.
    pub(crate) fn redirect_no_more(&self) -> Result<()> {
        self.node
            .run("nft", &["delete", "table", "ip", "lab-redirect"])
            .map(|_| ())
    }

    /// Ends all separations of this host.
    pub fn join_again(&self) -> Result<()> {
        let _ = self.node.run("nft", &["delete", "table", "ip", "lab"]);
        Ok(())
    }
}
