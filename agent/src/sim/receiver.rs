//! A simulated destination QEMU: listens, takes the channels, and knows whether the stream was whole.

use std::io;
use std::time::SystemTime;

use drover_proto::ids::GuestId;
use tokio::io::BufReader;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{JoinError, JoinSet};

use super::stream::{self, Frame, LARGEST, Tail};

/// How far a stream is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Received {
    Waiting,
    /// The guest may run on what is there; the rest follows.
    Switched,
    /// Every byte is there.
    Complete(Totals),
    Broken(String),
}

/// What came over all channels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    /// Bytes.
    pub(super) pages: u64,
    /// When the guest was stopped on its source; `None` where it stood still before.
    pub(super) stopped: Option<SystemTime>,
}

impl Totals {
    fn add(&mut self, tail: &Tail) {
        self.pages += tail.pages;
        self.stopped = self.stopped.or(tail.stopped);
    }
}

/// The source waits for a word, where the guest went over before all of it.
pub(super) struct Waits(Option<BufReader<UnixStream>>);

impl Waits {
    /// Whether it hears that makes no difference here.
    pub(super) async fn tell_whole(self) {
        if let Some(mut main) = self.0 {
            let _ = stream::write(main.get_mut(), &Frame::Whole).await;
        }
    }
}

/// Takes one guest's stream. `Ok` is a whole one; `switch` is called where it goes post-copy.
pub(super) async fn receive(
    listener: &UnixListener,
    guest: GuestId,
    switch: impl Fn() + Clone + Send + 'static,
) -> io::Result<(Totals, Waits)> {
    let mut main = accept(listener).await?;
    let mut scratch = Vec::new();
    let beside = match stream::read(&mut main, &mut scratch).await? {
        Frame::Head(head) if head.guest == guest => head.beside,
        Frame::Head(_) => return Err(not_ours("the stream is of another guest")),
        Frame::Pages(_) | Frame::Tail(_) | Frame::Switch | Frame::Whole => {
            return Err(not_ours("the first connection is not the main channel"));
        }
    };
    let (mut channels, mut totals) = (JoinSet::new(), Totals::default());
    let mut waits = Waits(None);
    let mut ended = |ended: Result<io::Result<(Tail, Waits)>, JoinError>| {
        let (tail, waiting) = ended.map_err(io::Error::other)??;
        totals.add(&tail);
        waits.0 = waits.0.take().or(waiting.0);
        Ok::<(), io::Error>(())
    };
    channels.spawn(read_pages(main, switch.clone()));
    for _ in 0..beside {
        // A channel that is there may break while another is waited for.
        tokio::select! {
            stream = accept(listener) => drop(channels.spawn(read_pages(stream?, switch.clone()))),
            Some(outcome) = channels.join_next() => ended(outcome)?,
        }
    }
    while let Some(outcome) = channels.join_next().await {
        ended(outcome)?;
    }
    Ok((totals, waits))
}

async fn accept(listener: &UnixListener) -> io::Result<BufReader<UnixStream>> {
    Ok(BufReader::with_capacity(LARGEST, listener.accept().await?.0))
}

/// To the tail of one channel.
async fn read_pages(mut stream: BufReader<UnixStream>, switch: impl Fn()) -> io::Result<(Tail, Waits)> {
    let (mut scratch, mut pages) = (Vec::new(), 0);
    let mut gone_over = false;
    loop {
        match stream::read(&mut stream, &mut scratch).await? {
            Frame::Pages(length) => pages += length as u64,
            Frame::Switch => {
                gone_over = true;
                switch();
            }
            Frame::Tail(tail) if tail.pages == pages => return Ok((tail, Waits(gone_over.then_some(stream)))),
            Frame::Tail(_) => return Err(not_ours("pages are missing")),
            Frame::Head(_) | Frame::Whole => return Err(not_ours("a second main channel")),
        }
    }
}

fn not_ours(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}
