//! A host that gives a sign of life is dialled anew: the connection from before may lead nowhere.

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::lab::Lab;
use super::world::until;

/// The way to one agent, on which packets may get lost.
struct Path {
    address: String,
    /// Cuts what is connected now, silently: nobody is told. What is dialled later passes.
    cut: CancellationToken,
    /// One note for each that dials.
    dialled: mpsc::UnboundedReceiver<()>,
    /// The controller's connections that were cut, still open.
    lost: mpsc::UnboundedReceiver<TcpStream>,
}

impl Path {
    async fn to(agent: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let cut = CancellationToken::new();
        let ((tell, dialled), (lose, lost)) = (mpsc::unbounded_channel(), mpsc::unbounded_channel());
        let ends = cut.clone();
        tokio::spawn(async move {
            loop {
                let (near, _) = listener.accept().await.unwrap();
                let far = TcpStream::connect(&agent).await.unwrap();
                let _ = tell.send(());
                let ends = if ends.is_cancelled() {
                    CancellationToken::new()
                } else {
                    ends.clone()
                };
                tokio::spawn(carry(near, far, ends, lose.clone()));
            }
        });
        Self {
            address,
            cut,
            dialled,
            lost,
        }
    }
}

async fn carry(
    mut near: TcpStream,
    mut far: TcpStream,
    cut: CancellationToken,
    lose: mpsc::UnboundedSender<TcpStream>,
) {
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
        () = cut.cancelled() => drop(lose.send(near)),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_heard_of_is_dialled_anew_and_not_asked_over_the_lost_connection() {
    let lab = Lab::new().await;
    let mut path = Path::to(lab.addresses[0].clone()).await;
    lab.register("host-1", &path.address).await.unwrap();
    let created = lab.create().await;
    lab.world.called("WatchOutgoing", 1).await;
    lab.world.lock().away.insert("host-1".to_owned());
    // Looked at so often that the next look, if nobody gives a sign of life, is eight seconds away; and the last one is
    // over: nothing of it is on its way when the path is cut.
    until("it pauses", async || lab.looked_in_vain(&created.name).await >= 6).await;
    path.cut.cancel();
    let lost = path.lost.recv().await.unwrap();
    while path.dialled.try_recv().is_ok() {}

    lab.world.lock().away.clear();
    lab.register("host-1", &path.address).await.unwrap();
    path.dialled.recv().await.unwrap();
    let requests = tls_records(&lost).into_iter().filter(|bytes| *bytes > 100).count();
    assert_eq!(requests, 0, "it was asked over the lost connection first");
    lab.world.open_gate();
    lab.assert_moved(&created.name).await;
}

/// The lengths of the TLS records that have come. A request takes more than a hundred bytes, a farewell of HTTP/2 less.
fn tls_records(stream: &TcpStream) -> Vec<usize> {
    let mut bytes = vec![0; 1 << 16];
    let mut read = 0;
    while let Ok(more @ 1..) = stream.try_read(&mut bytes[read..]) {
        read += more;
    }
    let (mut rest, mut records) = (&bytes[..read], Vec::new());
    while let [_, _, _, high, low, ..] = *rest {
        let length = usize::from(u16::from_be_bytes([high, low]));
        records.push(length);
        rest = rest.get(5 + length..).unwrap_or_default();
    }
    records
}
