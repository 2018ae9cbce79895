//! The tunnel's stand-in: what connects to one socket is copied to another, both ways, with half-closes.

use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

/// Listens on one path and connects to the other, once for each channel, until aborted.
pub(crate) fn start(listen: &Path, connect: PathBuf) -> std::io::Result<JoinHandle<()>> {
    let listener = UnixListener::bind(listen)?;
    Ok(tokio::spawn(async move {
        let mut copies = tokio::task::JoinSet::new();
        loop {
            let Ok((near, _)) = listener.accept().await else { return };
            let connect = connect.clone();
            copies.spawn(async move {
                if let Err(error) = copy(near, connect).await {
                    eprintln!("relay: {error}");
                }
            });
        }
    }))
}

async fn copy(mut near: UnixStream, connect: PathBuf) -> std::io::Result<()> {
    let mut far = UnixStream::connect(&connect).await?;
    tokio::io::copy_bidirectional(&mut near, &mut far).await.map(drop)
}
