//! A network link that can break: an address of its own, behind it whoever has it at the moment.
//!
//! A cut ends what goes over it at once and refuses what comes, until it is mended; a link without anybody behind it
//! refuses too, as a port does that nobody listens on. A link that falls silent ends nothing and refuses nothing: who
//! speaks over it, or begins to, hears nothing until it is mended, and then what was said arrives late.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What it does with what goes over it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Line {
    #[default]
    Whole,
    Cut,
    Silent,
}

/// What is behind it; `None` where nobody is there.
#[derive(Clone, Copy, Debug, Default)]
struct Behind {
    upstream: Option<SocketAddr>,
    line: Line,
}

impl Behind {
    fn open(self) -> Option<SocketAddr> {
        self.upstream.filter(|_| self.line != Line::Cut)
    }
}

/// One link. It lives as long as this does.
#[derive(Debug)]
pub struct Link {
    address: SocketAddr,
    behind: Arc<watch::Sender<Behind>>,
    accepting: JoinHandle<()>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.accepting.abort();
        self.behind.send_replace(Behind::default());
    }
}

impl Link {
    /// A link with nobody behind it.
    pub async fn new(address: Ipv4Addr) -> std::io::Result<Self> {
        let listener = TcpListener::bind((address, 0)).await?;
        let address = listener.local_addr()?;
        let behind = Arc::new(watch::Sender::new(Behind::default()));
        let accepting = tokio::spawn(accept(listener, Arc::clone(&behind)));
        Ok(Self {
            address,
            behind,
            accepting,
        })
    }

    /// What others dial.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Who answers from now on.
    pub fn lead_to(&self, upstream: Option<SocketAddr>) {
        self.behind.send_modify(|behind| behind.upstream = upstream);
    }

    /// From now on.
    pub fn set(&self, line: Line) {
        self.behind.send_modify(|behind| behind.line = line);
    }
}

async fn accept(listener: TcpListener, behind: Arc<watch::Sender<Behind>>) {
    loop {
        let Ok((mut near, _)) = listener.accept().await else {
            return;
        };
        let mut changes = behind.subscribe();
        let Some(upstream) = changes.borrow_and_update().open() else {
            continue;
        };
        let line = behind.subscribe();
        tokio::spawn(async move {
            let relayed = async {
                let mut far = TcpStream::connect(upstream).await?;
                near.set_nodelay(true)?;
                far.set_nodelay(true)?;
                copy_bidirectional(&mut near, &mut far).await
            };
            tokio::select! {
                // However it ended: both ends are closed.
                () = while_it_speaks(line, relayed) => {}
                _ = changes.wait_for(|now| now.open() != Some(upstream)) => {}
            }
        });
    }
}

/// Until it has ended; it stands still as long as the link is silent.
async fn while_it_speaks<T>(mut line: watch::Receiver<Behind>, relayed: impl Future<Output = T>) {
    tokio::pin!(relayed);
    loop {
        // Where the link itself has gone, whoever waits beside this ends it.
        if line.wait_for(|now| now.line != Line::Silent).await.is_err() {
            return;
        }
        tokio::select! {
            _ = &mut relayed => return,
            fell_silent = line.wait_for(|now| now.line == Line::Silent) => {
                if fell_silent.is_err() {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    tokio::io::copy(&mut read, &mut write).await
                });
            }
        });
        address
    }

    async fn works(link: &Link) -> bool {
        let Ok(mut stream) = TcpStream::connect(link.address()).await else {
            return false;
        };
        let mut byte = [0];
        stream.write_all(b"x").await.is_ok() && stream.read_exact(&mut byte).await.is_ok()
    }

    #[tokio::test]
    async fn a_cut_ends_what_is_there_and_refuses_what_comes() {
        let link = Link::new(Ipv4Addr::LOCALHOST).await.unwrap();
        assert!(!works(&link).await, "nobody is behind it");
        link.lead_to(Some(echo().await));
        assert!(works(&link).await);
        let mut open = TcpStream::connect(link.address()).await.unwrap();
        open.write_all(b"x").await.unwrap();
        let mut byte = [0];
        open.read_exact(&mut byte).await.unwrap();
        link.set(Line::Cut);
        assert!(!matches!(open.read(&mut byte).await, Ok(1)), "what was open has ended");
        assert!(!works(&link).await);
        link.set(Line::Whole);
        assert!(works(&link).await);
    }

    #[tokio::test]
    async fn a_silent_link_ends_nothing_and_what_was_said_arrives_late() {
        let link = Link::new(Ipv4Addr::LOCALHOST).await.unwrap();
        link.lead_to(Some(echo().await));
        let mut open = TcpStream::connect(link.address()).await.unwrap();
        let mut byte = [0];
        open.write_all(b"x").await.unwrap();
        open.read_exact(&mut byte).await.unwrap();
        link.set(Line::Silent);
        // Nobody refuses, and nobody answers.
        let mut new = TcpStream::connect(link.address()).await.unwrap();
        open.write_all(b"y").await.unwrap();
        new.write_all(b"z").await.unwrap();
        let heard = tokio::time::timeout(std::time::Duration::from_millis(100), async {
            tokio::select! {
                answer = open.read(&mut byte) => answer,
                answer = new.read_u8() => answer.map(usize::from),
            }
        });
        assert!(heard.await.is_err(), "something was heard");
        link.set(Line::Whole);
        open.read_exact(&mut byte).await.unwrap();
        assert_eq!(&byte, b"y");
        assert_eq!(new.read_u8().await.unwrap(), b'z');
    }
}
