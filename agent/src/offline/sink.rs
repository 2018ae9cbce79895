//! Destination: the end of a channel of files. One connection at a time; a new one takes the place of an older one that
//! nobody has noticed to be dead.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use drover_proto::failure::Failure;
use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::receive::{Expected, ReceiveError, receive};
use super::wire::{self, Frame};
use crate::images::Identity;

/// A refusal is read by the other side within this time, or it is gone.
const FAREWELL: Duration = Duration::from_secs(5);

/// Writes down that all files were verified, before the source is told.
pub type Verified = dyn Fn(Vec<Identity>) -> BoxFuture<'static, Result<(), Failure>> + Send + Sync;
/// Writes down that files are written to from now on, or refuses that.
pub type Begins = dyn Fn() -> BoxFuture<'static, Result<(), Failure>> + Send + Sync;

/// Where the files of one migration go.
#[derive(Clone)]
pub struct FileSink {
    expected: Arc<Expected>,
    begins: Arc<Begins>,
    verified: Arc<Verified>,
    turn: Arc<Turn>,
}

#[derive(Default)]
struct Turn {
    /// Held by the connection that writes.
    writing: tokio::sync::Mutex<()>,
    newest: Mutex<CancellationToken>,
}

impl fmt::Debug for FileSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FileSink").field(&self.expected).finish()
    }
}

impl FileSink {
    pub fn new(expected: Expected, begins: Arc<Begins>, verified: Arc<Verified>) -> Self {
        Self {
            expected: Arc::new(expected),
            begins,
            verified,
            turn: Arc::default(),
        }
    }

    /// Serves one connection to its end.
    pub async fn serve<S>(&self, stream: S) -> Result<(), ReceiveError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let mine = CancellationToken::new();
        let former = {
            let mut newest = self.turn.newest.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *newest, mine.clone())
        };
        former.cancel();
        let cut = || Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset).into());
        let Some(_turn) = mine.run_until_cancelled(self.turn.writing.lock()).await else {
            return cut();
        };
        let mut stream = BufStream::with_capacity(256 * 1024, 64 * 1024, stream);
        let served = mine.run_until_cancelled(self.serve_alone(&mut stream)).await;
        let result = served.unwrap_or_else(cut);
        if let Err(error) = &result
            && let Some(frame) = error.frame()
        {
            // Whether it is heard changes nothing here.
            let _ = timeout(FAREWELL, say_farewell(&mut stream, &frame)).await;
        }
        result
    }

    async fn serve_alone<S>(&self, stream: &mut S) -> Result<(), ReceiveError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let failed = |failure: Failure| ReceiveError::Journal(failure.to_string());
        (self.begins)().await.map_err(failed)?;
        let received = receive(stream, &self.expected).await?;
        (self.verified)(received).await.map_err(failed)?;
        wire::write(stream, &Frame::AllVerified).await?;
        // An announced end, so that the source does not lose the last word.
        let _ = timeout(FAREWELL, stream.shutdown()).await;
        Ok(())
    }
}

/// Reads on until the source has heard it: a socket that is closed with unread bytes takes the last word with it.
async fn say_farewell<S>(stream: &mut S, frame: &Frame) -> std::io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    wire::write(stream, frame).await?;
    stream.shutdown().await?;
    let mut rest = vec![0; 64 * 1024];
    while stream.read(&mut rest).await? > 0 {}
    Ok(())
}
