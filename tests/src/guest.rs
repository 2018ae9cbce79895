//! A running guest, as its peer on the guest network sees it.

use crate::host::Host;
use crate::layout::GuestRecord;
use crate::network::Network;
use crate::node::Node;
use crate::process::wait_until;
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

/// Port of the guest program, TCP and UDP.
pub(crate) const GUEST_PORT: u16 = 7402;

/// A guest that runs has answered by then, also on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a guest says about itself.
#[derive(Debug, Clone, Deserialize)]
pub struct GuestStatus {
    pub name: String,
    pub ticks: u64,
    /// Longest pause between two ticks by the guest's own clock (which stands still in a blackout).
    pub largest_gap_ms: u64,
    /// Pages whose content was not what the guest had written.
    pub memory_errors: u64,
    /// Complete checks of the filled memory.
    pub memory_passes: u64,
    pub bytes_dirtied: u64,
    pub dirty_kib_per_second: u64,
    pub disk_writes: u64,
    /// Blocks that could not be written or read, or held something else than was written.
    pub disk_errors: u64,
}

/// In which order a guest writes to its pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pattern {
    Uniform,
    /// One page after the other, and again from the start.
    Sweep,
    /// Four times as fast for half a second, then not at all for one and a half.
    Bursts,
}

impl Pattern {
    fn name(self) -> &'static str {
        match self {
            Pattern::Uniform => "uniform",
            Pattern::Sweep => "sweep",
            Pattern::Bursts => "bursts",
        }
    }
}

/// What a guest writes: so much, over a set of so many MiB of its filled memory.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    pub kib_per_second: u64,
    pub set_mib: u64,
    pub pattern: Pattern,
}

/// A guest that the lab started, wherever it runs now.
#[derive(Debug, Clone)]
pub struct Guest {
    name: String,
    record: GuestRecord,
    client: Node,
}

impl Guest {
    pub(crate) fn new(name: &str, record: GuestRecord, client: Node) -> Guest {
        Guest {
            name: name.to_string(),
            record,
            client,
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn uuid(&self) -> uuid::Uuid {
        self.record.uuid
    }

    /// Whether it has to be started with its host, wherever it is.
    pub fn autostart(&self) -> bool {
        self.record.autostart
    }

    /// Its address on the guest network.
    pub fn address(&self) -> Ipv4Addr {
        Network::Guests.address(self.record.number)
    }

    /// What its console said on one host; empty where it never ran.
    pub fn console(&self, host: &Host) -> String {
        let path = host.log("console").join(format!("{}.log", self.name));
        String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
    }

    /// A socket on its network that hears nobody else.
    fn socket(&self) -> Result<UdpSocket> {
        let peer = SocketAddr::from((self.address(), GUEST_PORT));
        self.client.in_network(|| {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect(peer)?;
            Ok(socket)
        })
    }

    /// Asks once; no answer within `limit` is an error.
    fn ask(&self, socket: &UdpSocket, question: &str, limit: Duration) -> Result<GuestStatus> {
        socket.set_read_timeout(Some(limit))?;
        socket.send(question.as_bytes())?;
        let mut buffer = [0; 2048];
        let length = socket.recv(&mut buffer)?;
        let answer = String::from_utf8_lossy(&buffer[..length]);
        serde_json::from_str(&answer).with_context(|| format!("guest {} answered {answer:?}", self.name))
    }

    /// Asks until there is an answer: datagrams may be lost, above all in a blackout. An answer that comes late, to an
    /// earlier try, is as good.
    fn insist(&self, question: &str, each: Duration, limit: Duration) -> Result<GuestStatus> {
        let what = format!(
            "guest {} to answer {question:?} (console: log/console of its host)",
            self.name
        );
        let socket = self.socket()?;
        let started = Instant::now();
        wait_until(&what, limit, || {
            let left = limit.saturating_sub(started.elapsed());
            self.ask(&socket, question, each.min(left.max(each / 4))).map(Some)
        })
    }

    /// What the guest says about itself now.
    pub fn status(&self) -> Result<GuestStatus> {
        self.insist("status", Duration::from_millis(500), PATIENCE)
    }

    /// Whether it answers at all, asked once.
    pub fn answers(&self) -> bool {
        self.socket()
            .and_then(|socket| self.ask(&socket, "status", Duration::from_millis(500)))
            .is_ok()
    }

    /// Waits for a booting guest.
    pub fn wait_until_it_answers(&self) -> Result<GuestStatus> {
        self.insist("status", Duration::from_millis(100), Duration::from_secs(180))
    }

    /// Has the guest check all its memory now; wrong pages or disk blocks, ever since its start, are an error.
    pub fn verify(&self) -> Result<GuestStatus> {
        let status = self.insist("verify", Duration::from_secs(60), Duration::from_secs(180))?;
        if status.memory_errors > 0 || status.disk_errors > 0 {
            bail!("guest {} found wrong memory or disk content: {status:?}", self.name);
        }
        Ok(status)
    }

    /// Changes how fast it writes to its memory, and over how many MiB (`None`: as before).
    pub fn dirty(&self, kib_per_second: u64, set_mib: Option<u64>) -> Result<()> {
        let set = set_mib.map(|set| set.to_string()).unwrap_or_default();
        self.insist(
            &format!("dirty {kib_per_second} {set}"),
            Duration::from_millis(500),
            PATIENCE,
        )?;
        Ok(())
    }

    /// Gives it a load from now on.
    pub fn load(&self, load: Load) -> Result<()> {
        let Load {
            kib_per_second,
            set_mib,
            pattern,
        } = load;
        let command = format!("dirty {kib_per_second} {set_mib} {}", pattern.name());
        self.insist(&command, Duration::from_millis(500), PATIENCE)?;
        Ok(())
    }

    /// The longest pause that it feels is counted anew from now on.
    pub fn reset_gap(&self) -> Result<()> {
        self.insist("reset-gap", Duration::from_millis(500), PATIENCE)?;
        Ok(())
    }

    /// Has it shut itself down.
    pub fn power_off(&self) -> Result<()> {
        self.insist("poweroff", Duration::from_millis(500), PATIENCE)
            .map(|_| ())
    }
}
