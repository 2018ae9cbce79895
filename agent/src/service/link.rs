//! How fast data gets to another agent: it is sent over the one TLS port for a moment, counted there and forgotten.

use std::time::{Duration, Instant};

use drover_proto::agent::v1::peer_service_client::PeerServiceClient;
use drover_proto::agent::v1::{MeasureLinkRequest, MeasureLinkResponse};
use drover_proto::time::{proto_duration, std_duration};
use drover_proto::trace::TraceInterceptor;
use futures::{Stream, StreamExt, stream};
use tonic::transport::Channel;
use tonic::{Request, Status};

/// How long it is sent, and how much at most.
const TIME: Duration = Duration::from_millis(300);
const MOST_SENT: usize = 128 << 20;

const PIECE: usize = 256 << 10;

/// The first of it fills buffers on the way, and what a traffic shaper has saved up.
const WARM_UP: u64 = 2 << 20;

/// Longer than a slow network needs for what was on its way.
const PATIENCE: Duration = Duration::from_secs(3);

/// A receiver listens no longer, and to no more.
const LONGEST: Duration = Duration::from_secs(1);
const MOST_TAKEN: u64 = 256 << 20;

/// Bytes/s that arrive at the other side.
pub(super) async fn measure(channel: Channel) -> Result<u64, Status> {
    let mut client = PeerServiceClient::with_interceptor(channel, TraceInterceptor);
    let started = Instant::now();
    let piece = MeasureLinkRequest {
        padding: vec![0; PIECE].into(),
    };
    let pieces = stream::repeat(piece)
        .take(MOST_SENT / PIECE)
        .take_while(move |_| std::future::ready(started.elapsed() < TIME));
    let mut request = Request::new(pieces);
    request.set_timeout(PATIENCE);
    let answer = tokio::time::timeout(PATIENCE, client.measure_link(request)).await;
    let answer = answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("the measurement took too long")))?;
    Ok(speed(&answer.into_inner()))
}

fn speed(answer: &MeasureLinkResponse) -> u64 {
    let elapsed = answer.elapsed.as_ref().and_then(std_duration).unwrap_or_default();
    if elapsed.is_zero() {
        return 0;
    }
    (answer.bytes as f64 / elapsed.as_secs_f64()) as u64
}

/// What has arrived so far.
#[derive(Clone, Copy, Debug)]
struct Mark {
    bytes: u64,
    at: Instant,
}

/// Takes what comes, to its end or for as long as anybody may send.
pub(super) async fn take(
    mut pieces: impl Stream<Item = Result<MeasureLinkRequest, Status>> + Unpin,
) -> Result<MeasureLinkResponse, Status> {
    let mut marks: Option<(Mark, Mark)> = None;
    let mut warm: Option<Mark> = None;
    let began = Instant::now();
    while let Some(piece) = pieces.next().await {
        let piece = piece?.padding.len() as u64;
        let bytes = marks.map_or(0, |(_, last)| last.bytes) + piece;
        let now = Mark {
            bytes,
            at: Instant::now(),
        };
        marks = Some((marks.map_or(now, |(first, _)| first), now));
        if warm.is_none() && bytes >= WARM_UP {
            warm = Some(now);
        }
        if bytes >= MOST_TAKEN || began.elapsed() >= LONGEST {
            break;
        }
    }
    let Some((first, last)) = marks else {
        return Ok(MeasureLinkResponse::default());
    };
    // A slow link has sent little more than that.
    let from = warm.filter(|warm| last.bytes >= 2 * warm.bytes).unwrap_or(first);
    Ok(MeasureLinkResponse {
        bytes: last.bytes - from.bytes,
        elapsed: Some(proto_duration(last.at - from.at)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_arrives_is_counted_from_the_first_piece_on() {
        let piece = |bytes: usize| {
            Ok(MeasureLinkRequest {
                padding: vec![0; bytes].into(),
            })
        };
        let told = take(stream::iter([piece(10), piece(20), piece(30)])).await.unwrap();
        assert_eq!(told.bytes, 50);
        let long = take(stream::iter((0..32).map(|_| piece(PIECE)))).await.unwrap();
        assert_eq!(long.bytes, 32 * PIECE as u64 - WARM_UP);
        assert_eq!(speed(&take(stream::empty()).await.unwrap()), 0);
        let broken = take(stream::iter([piece(10), Err(Status::unavailable("gone"))])).await;
        assert!(broken.is_err());
    }

    #[test]
    fn speed_is_in_bytes_per_second() {
        let half = MeasureLinkResponse {
            bytes: 100,
            elapsed: Some(proto_duration(Duration::from_millis(500))),
        };
        assert_eq!(speed(&half), 200);
    }
}
