//! A connection that ends with its peer's certificate: TLS looks at that only in the handshake.
//!
//! Promise: it ends at that moment also where nothing is sent. What carries a guest (data channels, the hand-over)
//! is not wrapped in it: see `docs/security.md`.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// The wall clock is asked at least so often: it may be set meanwhile, and a sleeping machine's timers stand still.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// A stream, and when it ends at the latest.
pub(crate) struct Expiring<S> {
    stream: S,
    /// None: never.
    limit: Option<Limit>,
}

struct Limit {
    expires: SystemTime,
    timer: Pin<Box<Sleep>>,
}

impl<S> Expiring<S> {
    /// Ends at `expires`.
    pub(crate) fn at(stream: S, expires: SystemTime) -> Self {
        let timer = Box::pin(sleep(pause(expires)));
        Self {
            stream,
            limit: Some(Limit { expires, timer }),
        }
    }

    /// Ends when somebody ends it.
    pub(crate) fn never(stream: S) -> Self {
        Self { stream, limit: None }
    }
}

/// Until the next look at the clock: a little past the end, which itself still belongs to the certificate's life.
fn pause(expires: SystemTime) -> Duration {
    let left = expires.duration_since(SystemTime::now()).unwrap_or_default();
    left.saturating_add(Duration::from_millis(1)).min(LONGEST_SLEEP)
}

impl Limit {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if SystemTime::now() > self.expires {
                return Poll::Ready(());
            }
            std::task::ready!(self.timer.as_mut().poll(cx));
            let next = Instant::now() + pause(self.expires);
            self.timer.as_mut().reset(next);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Expiring<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(limit) = &mut self.limit
            && limit.poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "the peer's certificate expired",
            )));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Expiring<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn a_silent_stream_ends_too() {
        let (ours, mut theirs) = duplex(64);
        theirs.write_u8(7).await.unwrap();
        // So far off that what was sent before is read before, also on a busy machine.
        let expires = SystemTime::now() + Duration::from_secs(2);
        let mut stream = Expiring::at(ours, expires);
        assert_eq!(stream.read_u8().await.unwrap(), 7);
        let error = stream.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        assert!(SystemTime::now() > expires, "it ended early");
    }

    #[tokio::test]
    async fn a_stream_without_end_goes_on() {
        let (ours, theirs) = duplex(64);
        let mut stream = Expiring::never(ours);
        drop(theirs);
        // The end of the other side is an end, not an error.
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
    }
}
