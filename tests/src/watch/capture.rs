//! Sockets that see what the kernel saw, with the kernel's time on it.

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::socket::{
    ControlMessageOwned, LinkAddr, MsgFlags, SetSockOpt, SockaddrIn, SockaddrLike, recvmsg, setsockopt, sockopt,
};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use std::io::IoSliceMut;
use std::os::fd::AsRawFd;
use std::time::{Duration, SystemTime};

/// How long a read waits: often enough to notice the end of a watch.
const READ_LIMIT: Duration = Duration::from_millis(50);

/// One packet with its sender and the time of its arrival since the epoch.
pub(crate) struct Packet<'buffer, Address> {
    pub(crate) bytes: &'buffer [u8],
    pub(crate) from: Option<Address>,
    pub(crate) at: Duration,
}

/// Sees every UDP datagram to `port` on every interface of the thread's network, and nothing else: the filter runs
/// in the kernel, so a migration's gigabytes on the same host cost nothing.
pub(crate) fn udp_sniffer(port: u16) -> Result<Socket> {
    let everything = Protocol::from(i32::from((libc::ETH_P_ALL as u16).to_be()));
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(everything)).context("packet socket")?;
    // (code, jump if true, jump if false, operand); offsets from the Ethernet header.
    let program = [
        SockFilter::new(0x28, 0, 0, 12),              // A = EtherType
        SockFilter::new(0x15, 0, 8, 0x0800),          // IPv4, or drop
        SockFilter::new(0x30, 0, 0, 23),              // A = IP protocol
        SockFilter::new(0x15, 0, 6, 17),              // UDP, or drop
        SockFilter::new(0x28, 0, 0, 20),              // A = fragment
        SockFilter::new(0x45, 4, 0, 0x1fff),          // not the first one: drop
        SockFilter::new(0xb1, 0, 0, 14),              // X = length of the IP header
        SockFilter::new(0x48, 0, 0, 16),              // A = destination port
        SockFilter::new(0x15, 0, 1, u32::from(port)), // ours, or drop
        SockFilter::new(0x06, 0, 0, 65535),           // take it
        SockFilter::new(0x06, 0, 0, 0),               // drop it
    ];
    socket.attach_filter(&program).context("packet filter")?;
    prepare(&socket)?;
    Ok(socket)
}

/// A raw ICMP socket of the thread's network.
pub(crate) fn icmp() -> Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)).context("ICMP socket")?;
    prepare(&socket)?;
    Ok(socket)
}

fn prepare(socket: &Socket) -> Result<()> {
    setsockopt(socket, sockopt::ReceiveTimestampns, &true).context("time stamps")?;
    // A reader that is late on a busy machine must not lose beats.
    sockopt::RcvBufForce.set(socket, &(4 << 20)).context("receive buffer")?;
    socket.set_read_timeout(Some(READ_LIMIT))?;
    Ok(())
}

/// The next packet; none when there was none for a while (or, `wait` false, is none now).
pub(crate) fn receive<'buffer, Address: SockaddrLike>(
    socket: &Socket,
    buffer: &'buffer mut [u8],
    wait: bool,
) -> Result<Option<Packet<'buffer, Address>>> {
    let mut space = nix::cmsg_space!(nix::sys::time::TimeSpec);
    let flags = if wait {
        MsgFlags::empty()
    } else {
        MsgFlags::MSG_DONTWAIT
    };
    let (length, from, at) = {
        let mut slices = [IoSliceMut::new(buffer)];
        match recvmsg::<Address>(socket.as_raw_fd(), &mut slices, Some(&mut space), flags) {
            Ok(message) => {
                let stamp = message.cmsgs()?.find_map(|part| {
                    if let ControlMessageOwned::ScmTimestampns(time) = part {
                        Some(Duration::from(time))
                    } else {
                        None
                    }
                });
                let now = || {
                    SystemTime::now()
                        .duration_since(SystemTime::UNIX_EPOCH)
                        .unwrap_or_default()
                };
                (message.bytes, message.address, stamp.unwrap_or_else(now))
            }
            Err(Errno::EAGAIN | Errno::EINTR | Errno::ENETDOWN) => return Ok(None),
            Err(error) => return Err(error).context("receiving packets"),
        }
    };
    Ok(Some(Packet {
        bytes: &buffer[..length],
        from,
        at,
    }))
}

/// Address kinds that [`receive`] is used with.
pub(crate) type FromInterface = LinkAddr;
pub(crate) type FromInternet = SockaddrIn;
