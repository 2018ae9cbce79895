//! Measures the tunnel on loopback: unix socket → TLS 1.3 → unix socket, beside the same way over plain TCP, in
//! interleaved rounds. Prints MiB/s and CPU time (both hosts' share and the pump) of each round and the medians.
//!
//! `cargo run -p drover-agent --example tunnel_throughput [GiB per round] [rounds] [channels]`

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use drover_agent::port::Port;
use drover_agent::tunnel::{ChannelPlan, Destination, HelloTemplate, Pace, Registration, Source, SourceOptions};
use drover_proto::identity::Identity;
use drover_proto::ids::{Attempt, HostId, MigrationId, Ticket};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional_with_sizes};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

#[path = "../src/tunnel/tests/pki.rs"]
mod pki;

const PIECE: usize = 256 * 1024;

#[tokio::main]
async fn main() -> Result<()> {
    let mut numbers = std::env::args().skip(1).map(|text| text.parse::<u64>());
    let mut next = |default| numbers.next().unwrap_or(Ok(default));
    let (gib, rounds, channels) = (next(4)?, next(5)?, next(1)? as usize);
    let folder = tempfile::tempdir()?;
    let (mut plain, mut tunnel) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let bytes = gib << 30;
        plain.push(report(
            "plain TCP relay",
            bytes,
            &plain_round(folder.path(), bytes, channels).await?,
        ));
        let place = folder.path().join(format!("round-{round}"));
        std::fs::create_dir(&place)?;
        tunnel.push(report("tunnel", bytes, &tunnel_round(&place, bytes, channels).await?));
    }
    println!(
        "medians of {rounds} with {channels} channel(s): plain {} MiB/s, tunnel {} MiB/s",
        median(plain),
        median(tunnel)
    );
    Ok(())
}

/// What one round took, by the clock and of all CPUs.
struct Round {
    wall: Duration,
    cpu: f64,
}

/// Seconds of CPU that this process has used: fields 14 and 15 of its `stat`, in hundredths.
fn cpu_seconds() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let after_name = stat.rsplit_once(')').context("no name in stat")?.1;
    let ticks = after_name.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
    Ok(ticks.sum::<Result<u64, _>>()? as f64 / 100.0)
}

fn report(what: &str, bytes: u64, round: &Round) -> u64 {
    let rate = (bytes as f64 / round.wall.as_secs_f64() / f64::from(1 << 20)) as u64;
    println!(
        "{what}: {rate} MiB/s, {:.2} CPU-s/GiB",
        round.cpu / (bytes as f64 / f64::from(1 << 30))
    );
    rate
}

fn median(mut rates: Vec<u64>) -> u64 {
    rates.sort_unstable();
    rates[rates.len() / 2]
}

/// The bytes, divided among the channels, from connecting until the last of them was read at the other end.
async fn pump(from: &Path, to: UnixListener, bytes: u64, channels: usize) -> Result<Round> {
    let each = bytes / channels as u64;
    let (began, cpu) = (Instant::now(), cpu_seconds()?);
    let reader = tokio::spawn(async move {
        let mut readers = Vec::new();
        for _ in 0..channels {
            let (stream, _) = to.accept().await?;
            readers.push(tokio::spawn(read_all(stream)));
        }
        let mut sum = 0;
        for reader in readers {
            sum += reader.await??;
        }
        anyhow::Ok(sum)
    });
    let mut writers = Vec::new();
    for _ in 0..channels {
        writers.push(tokio::spawn(write_all(UnixStream::connect(from).await?, each)));
    }
    for writer in writers {
        writer.await??;
    }
    let read = reader.await??;
    anyhow::ensure!(read == each * channels as u64, "{read} bytes arrived");
    Ok(Round {
        wall: began.elapsed(),
        cpu: cpu_seconds()? - cpu,
    })
}

async fn write_all(mut stream: UnixStream, bytes: u64) -> Result<()> {
    let piece = vec![0x5a; PIECE];
    for _ in 0..bytes / PIECE as u64 {
        stream.write_all(&piece).await?;
    }
    Ok(())
}

async fn read_all(mut stream: UnixStream) -> Result<u64> {
    let mut piece = vec![0; PIECE];
    let mut sum = 0;
    loop {
        match stream.read(&mut piece).await? {
            0 => return Ok(sum),
            read => sum += read as u64,
        }
    }
}

async fn plain_round(folder: &Path, bytes: u64, channels: usize) -> Result<Round> {
    let [from, to] = ["plain-from", "plain-to"].map(|name| folder.join(name));
    let _ = (std::fs::remove_file(&from), std::fs::remove_file(&to));
    let (near, far) = (UnixListener::bind(&from)?, UnixListener::bind(&to)?);
    let tcp = TcpListener::bind("127.0.0.1:0").await?;
    let address = tcp.local_addr()?;
    let left = tokio::spawn(async move {
        while let Ok((unix, _)) = near.accept().await {
            tokio::spawn(async move { join(unix, TcpStream::connect(address).await?).await });
        }
    });
    let right = tokio::spawn(async move {
        while let Ok((stream, _)) = tcp.accept().await {
            let to = to.clone();
            tokio::spawn(async move { join(UnixStream::connect(to).await?, stream).await });
        }
    });
    let took = pump(&from, far, bytes, channels).await;
    left.abort();
    right.abort();
    took
}

async fn join(mut unix: UnixStream, mut tcp: TcpStream) -> Result<()> {
    tcp.set_nodelay(true)?;
    copy_bidirectional_with_sizes(&mut unix, &mut tcp, PIECE, PIECE).await?;
    Ok(())
}

async fn tunnel_round(folder: &Path, bytes: u64, channels: usize) -> Result<Round> {
    let pki = pki::Pki::new();
    let [a, b]: [HostId; 2] = ["a".parse()?, "b".parse()?];
    let (near, far) = (
        pki.tls(folder, &Identity::Agent(a.clone())),
        pki.tls(folder, &Identity::Agent(b.clone())),
    );
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    let (destination, shutdown) = (Destination::new(), CancellationToken::new());
    let (port, _grpc) = Port::open(listener, far, destination.clone(), shutdown.clone());
    let hello = HelloTemplate {
        migration: MigrationId::generate(),
        attempt: Attempt(1),
        ticket: Ticket::generate()?,
    };
    let [from, to]: [PathBuf; 2] = ["from", "to"].map(|name| folder.join(name));
    let listening = UnixListener::bind(&to)?;
    let waiting = destination.register(Registration {
        migration: hello.migration,
        attempt: hello.attempt,
        ticket: hello.ticket.clone(),
        source: a,
        memory_socket: to,
        disks_socket: None,
        files: None,
        valid_for: Duration::from_secs(60),
    })?;
    let source = Source::open(SourceOptions {
        socket: from.clone(),
        socket_group: None,
        channels: ChannelPlan::Memory {
            multifd: (channels - 1) as u16,
            postcopy_preempt: false,
        },
        addresses: vec![address],
        expected: Identity::Agent(b),
        tls: near,
        hello,
        pace: Pace::new(0),
    })?;
    let took = pump(&from, listening, bytes, channels).await;
    let error = source.errors().borrow().clone();
    source.close().await;
    waiting.revoke().await;
    shutdown.cancel();
    port.closed().await;
    took.with_context(|| format!("{error:?}"))
}
