//! A network that changes bytes: between the two agents, and, with the certificates of both, between TLS and what is in
//! it. The source is told its address in place of the destination's.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use drover_proto::identity::Identity;
use drover_proto::serve::accept;
use drover_proto::tls::{ALPN_DATA, ALPN_H2};
use futures::StreamExt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::scene::Scene;

/// Dropping it ends it.
pub(crate) struct Network {
    pub(crate) address: SocketAddr,
    seen: Arc<Seen>,
    end: CancellationToken,
}

/// What it does to the source's bytes.
#[derive(Clone, Copy)]
pub(crate) struct Flip {
    /// Which byte of a data connection, from 0.
    pub(crate) at: u64,
    /// In so many data connections, the first ones.
    pub(crate) connections: u32,
}

#[derive(Default)]
struct Seen {
    connections: AtomicU32,
    flipped: AtomicU32,
}

impl Drop for Network {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

impl Network {
    async fn new() -> (Self, TcpListener) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let network = Self {
            address: listener.local_addr().unwrap(),
            seen: Arc::default(),
            end: CancellationToken::new(),
        };
        (network, listener)
    }

    /// Changes what is encrypted: as a bad cable does.
    pub(crate) async fn outside_of_tls(scene: &Scene, flip: Flip) -> Self {
        let (network, listener) = Self::new().await;
        let (destination, seen) = (scene.b.address(), Arc::clone(&network.seen));
        let serve = async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let (destination, seen) = (destination.clone(), Arc::clone(&seen));
                tokio::spawn(async move {
                    let hello = client_hello(&mut near).await?;
                    let is_data = hello.windows(ALPN_DATA.len()).any(|name| name == ALPN_DATA);
                    let mut far = TcpStream::connect(destination).await?;
                    far.write_all(&hello).await?;
                    let at = flip.at.saturating_sub(hello.len() as u64);
                    pass_on(near, far, is_data.then_some(Flip { at, ..flip }), &seen).await
                });
            }
        };
        network.run(serve);
        network
    }

    /// Changes what is inside: as an agent with bad memory does.
    pub(crate) async fn inside_of_tls(scene: &Scene, flip: Flip) -> Self {
        let (network, listener) = Self::new().await;
        let (destination, seen) = (scene.b.address(), Arc::clone(&network.seen));
        let (source, expected) = (scene.a.tls.clone(), Identity::Agent(scene.b.name.parse().unwrap()));
        let mut accepted = accept(
            listener,
            scene.b.tls.clone(),
            &[ALPN_H2, ALPN_DATA],
            network.end.clone(),
        );
        let serve = async move {
            while let Some(near) = accepted.next().await {
                let (destination, seen) = (destination.clone(), Arc::clone(&seen));
                let (source, expected) = (source.clone(), expected.clone());
                tokio::spawn(async move {
                    let far = source.connect(&destination, &near.alpn, &expected).await;
                    let far = far.map_err(std::io::Error::other)?;
                    let flip = (near.alpn == ALPN_DATA).then_some(flip);
                    pass_on(near.stream, far, flip, &seen).await
                });
            }
        };
        network.run(serve);
        network
    }

    fn run(&self, serve: impl Future<Output = ()> + Send + 'static) {
        let end = self.end.clone();
        tokio::spawn(async move { end.run_until_cancelled(serve).await });
    }

    /// Data connections that came.
    pub(crate) fn connections(&self) -> u32 {
        self.seen.connections.load(Ordering::SeqCst)
    }

    /// Bytes that were changed.
    pub(crate) fn flipped(&self) -> u32 {
        self.seen.flipped.load(Ordering::SeqCst)
    }
}

/// The first record, whole: it says in clear what is to be spoken.
async fn client_hello(near: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut hello = vec![0; 5];
    near.read_exact(&mut hello).await?;
    let length = usize::from(u16::from_be_bytes([hello[3], hello[4]]));
    hello.resize(5 + length, 0);
    near.read_exact(&mut hello[5..]).await?;
    Ok(hello)
}

/// Both ways, until either side ends or breaks.
async fn pass_on<A, B>(near: A, far: B, flip: Option<Flip>, seen: &Seen) -> std::io::Result<()>
where
    A: AsyncRead + AsyncWrite,
    B: AsyncRead + AsyncWrite,
{
    let flip = flip.filter(|flip| seen.connections.fetch_add(1, Ordering::SeqCst) < flip.connections);
    let (mut from_near, mut to_near) = tokio::io::split(near);
    let (mut from_far, mut to_far) = tokio::io::split(far);
    let there = async {
        let (mut piece, mut passed) = (vec![0; 16 * 1024], 0_u64);
        loop {
            let read = from_near.read(&mut piece).await?;
            if read == 0 {
                return to_far.shutdown().await;
            }
            if let Some(Flip { at, .. }) = flip
                && (passed..passed + read as u64).contains(&at)
            {
                piece[(at - passed) as usize] ^= 0x10;
                seen.flipped.fetch_add(1, Ordering::SeqCst);
            }
            passed += read as u64;
            to_far.write_all(&piece[..read]).await?;
            to_far.flush().await?;
        }
    };
    let back = async {
        tokio::io::copy(&mut from_far, &mut to_near).await?;
        to_near.shutdown().await
    };
    tokio::try_join!(there, back).map(|_| ())
}
