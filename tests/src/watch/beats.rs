//! Collects the beats that enter a host's bridge from its guests' taps.

use super::capture::{self, FromInterface};
use super::detector::{Beat, parse};
use super::worker::{Stop, Worker};
use crate::host::Host;
use crate::namespaces::enter_network;
use anyhow::Result;
use nix::net::if_::if_indextoname;
use std::collections::HashMap;

const BEAT_PORT: u16 = 7401;
/// Direction of a captured frame, from linux/if_packet.h.
const PACKET_OUTGOING: u8 = 4;
/// Interfaces of a host that are the lab's; every other one is a guest's tap.
const NO_TAPS: [&str; 5] = ["lo", "br0", "br1", "mgmt0", "guest0"];

/// Starts collecting on one host; a host that is powered off is not watched from then on.
pub(crate) fn start(host: &Host) -> Result<Worker<Vec<Beat>>> {
    let (pid, name) = (host.pid()?, host.name().to_string());
    Worker::start(&format!("beats of {name}"), move |stop, ready| {
        enter_network(pid)?;
        let socket = capture::udp_sniffer(BEAT_PORT)?;
        ready.now();
        collect(&socket, &name, stop)
    })
}

fn collect(socket: &socket2::Socket, host: &str, stop: &Stop) -> Result<Vec<Beat>> {
    let mut beats = Vec::new();
    let mut taps = HashMap::new();
    let mut buffer = [0; 2048];
    while !stop.wanted() {
        let Some(packet) = capture::receive::<FromInterface>(socket, &mut buffer, true)? else {
            continue;
        };
        let Some(from) = packet.from else { continue };
        // What leaves by a tap came from another host: only what a guest *sends* counts.
        if from.pkttype() == PACKET_OUTGOING || !is_tap(&mut taps, from.ifindex()) {
            continue;
        }
        let header = 14 + usize::from(packet.bytes[14] & 0x0f) * 4 + 8;
        beats.extend(
            packet
                .bytes
                .get(header..)
                .and_then(|payload| parse(payload, host, packet.at)),
        );
    }
    Ok(beats)
}

/// Interface numbers are never used again, so what was found out once stays true, also after the tap is gone.
fn is_tap(known: &mut HashMap<usize, bool>, index: usize) -> bool {
    *known.entry(index).or_insert_with(|| {
        let name = if_indextoname(index as u32).map(|name| name.to_string_lossy().into_owned());
        // A tap that vanished before it was asked for was a tap: the lab's own interfaces stay.
        name.map_or(true, |name| !NO_TAPS.contains(&name.as_str()))
    })
}
