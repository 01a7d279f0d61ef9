//! Requests in flight: each holds a place from its head to the last byte of its answer.
//!
//! Invariants: a place is given back when the answer has been taken or the connection is gone, not
//! earlier; the bytes of all bodies held for requests in flight stay under the face's limit.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};

use super::addresses::{Addresses, Place};
use super::limits::Limits;
use super::pulse::Pulse;
use crate::api::HEALTH;
use crate::error::{Code, Problem};

/// Answers are handed on in pieces of this size: what a client takes of a stream bounds what is
/// buffered for it. One HTTP/2 frame.
const PIECE_BYTES: usize = 16 * 1_024;

/// Places beyond all others, for what is asked most when a gateway answers as many requests as it can: how it is, and what
/// keeps the registry going. Of health each address has a few; a gateway's messages share an address with many others.
const HEALTH_PLACES: usize = 32;
const HEALTH_PER_ADDRESS: usize = 8;
const RAFT_PLACES: usize = 512;
const RAFT: &str = "/raft/";

/// What is still read of a body when its request is answered already: what a client sends without waiting for an answer.
#[derive(Clone, Copy, Debug)]
pub struct Rest {
    bytes_max: usize,
    /// For how long.
    timeout: Duration,
}

impl Rest {
    /// Most clients of HTTP/1 send all of a body before they read an answer. A connection that is closed on what has arrived
    /// and was not read is reset, and with it goes the answer that says why. So several of the largest bodies that are taken.
    pub const HTTP1: Rest = Rest { bytes_max: 16 * 1_024 * 1_024, timeout: Duration::from_secs(5) };
    /// A window of a stream's. A stream that is reset while its body arrives counts as one that this side had to reset, and a
    /// connection ends after so many of them: a client who is told often enough to come back would be cut off with
    /// everything else that he has asked.
    pub const HTTP2: Rest = Rest { bytes_max: 64 * 1_024, timeout: Duration::from_secs(1) };
}

/// Places, of which an address has only so many.
#[derive(Clone, Debug)]
struct Shared {
    free: Arc<Semaphore>,
    per_address: usize,
    addresses: Addresses,
}

impl Shared {
    fn new(places: usize, per_address: usize) -> Shared {
        Shared { free: Arc::new(Semaphore::new(places)), per_address, addresses: Addresses::default() }
    }

    fn take(&self, from: IpAddr) -> Option<(OwnedSemaphorePermit, Place)> {
        let share = self.addresses.place(from, self.per_address)?;
        Some((Arc::clone(&self.free).try_acquire_owned().ok()?, share))
    }
}

/// The places of one face.
#[derive(Clone, Debug)]
pub struct Places {
    all: Shared,
    for_health: Shared,
    for_raft: Shared,
    body_bytes: Arc<AtomicUsize>,
    body_bytes_max: usize,
}

impl Places {
    /// None is taken yet.
    pub fn new(limits: &Limits) -> Places {
        Places {
            all: Shared::new(limits.requests, limits.requests_per_address()),
            for_health: Shared::new(HEALTH_PLACES, HEALTH_PER_ADDRESS),
            for_raft: Shared::new(RAFT_PLACES, RAFT_PLACES),
            body_bytes: Arc::default(),
            body_bytes_max: limits.body_bytes,
        }
    }

    /// A place for one more request of this address for this path, if there is one and the address has not too many.
    pub fn take(&self, from: IpAddr, path: &str, pulse: &Arc<Pulse>) -> Option<Arc<InFlight>> {
        let (permit, share) = self.all.take(from).or_else(|| match path {
            HEALTH => self.for_health.take(from),
            _ if path.starts_with(RAFT) => self.for_raft.take(from),
            _ => None,
        })?;
        Some(Arc::new(InFlight {
            _permit: permit,
            _share: share,
            places: self.clone(),
            body_bytes: AtomicUsize::new(0),
            request: pulse.begin_request(),
            pulse: Arc::clone(pulse),
        }))
    }
}

/// One request's place. Its body and its answer share it.
#[derive(Debug)]
pub struct InFlight {
    _permit: OwnedSemaphorePermit,
    _share: Place,
    places: Places,
    body_bytes: AtomicUsize,
    request: u64,
    pulse: Arc<Pulse>,
}

impl InFlight {
    fn hold(&self, bytes: usize) -> Result<(), BadBody> {
        self.body_bytes.fetch_add(bytes, Ordering::Relaxed);
        let before = self.places.body_bytes.fetch_add(bytes, Ordering::Relaxed);
        if before + bytes > self.places.body_bytes_max {
            return Err(BadBody::TooManyBytesHeld);
        }
        Ok(())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let held = self.body_bytes.load(Ordering::Relaxed);
        self.places.body_bytes.fetch_sub(held, Ordering::Relaxed);
        self.pulse.end_request(self.request, Instant::now());
    }
}

/// Why a request's body cannot be read to its end.
#[derive(Debug, thiserror::Error)]
pub enum BadBody {
    /// Its time is up.
    #[error("the body did not arrive in time")]
    TooSlow,
    /// All requests together hold too much.
    #[error("this gateway holds too many bytes of requests already")]
    TooManyBytesHeld,
    /// The connection or the client broke it off.
    #[error("the body broke off")]
    Broken(#[source] hyper::Error),
}

/// Reads what is on its way of a body that nobody wants.
pub fn let_go(mut body: Incoming, allowed: Rest, pulse: &Arc<Pulse>) {
    if body.is_end_stream() {
        return;
    }
    let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
    let reading = pulse.begin_rest();
    runtime.spawn(async move {
        let _until_it_ends = reading;
        let rest = async {
            let mut bytes = 0;
            while bytes <= allowed.bytes_max
                && let Some(Ok(frame)) = body.frame().await
            {
                bytes += frame.data_ref().map_or(0, Bytes::len);
            }
        };
        let _it_is_reset_then = tokio::time::timeout(allowed.timeout, rest).await;
    });
}

/// A request's body with a deadline.
pub struct RequestBody {
    /// There until this is dropped.
    body: Option<Incoming>,
    /// None if there is no body to wait for.
    deadline: Option<Pin<Box<Sleep>>>,
    rest: Rest,
    place: Arc<InFlight>,
}

impl RequestBody {
    /// The body has to be here after `limit`, whole. Of what nobody reads of it, `rest` is still taken.
    pub fn new(body: Incoming, limit: Duration, rest: Rest, place: Arc<InFlight>) -> RequestBody {
        let deadline = (!body.is_end_stream()).then(|| Box::pin(tokio::time::sleep(limit)));
        RequestBody { body: Some(body), deadline, rest, place }
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if let Some(body) = self.body.take() {
            let_go(body, self.rest, &self.place.pulse);
        }
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = BadBody;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BadBody>>> {
        let this = self.get_mut();
        // The deadline first: a body that drips always has a byte ready.
        if let Some(deadline) = &mut this.deadline
            && deadline.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Some(Err(BadBody::TooSlow)));
        }
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        let frame = match ready!(Pin::new(body).poll_frame(context)) {
            None => return Poll::Ready(None),
            Some(frame) => frame.map_err(BadBody::Broken),
        };
        let held = frame.and_then(|frame| {
            this.place.hold(frame.data_ref().map_or(0, Bytes::len))?;
            Ok(frame)
        });
        Poll::Ready(Some(held))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, HttpBody::size_hint)
    }
}

/// Reads a request's body to its end, or says in the client's terms why not.
pub async fn read_body(body: Body, bytes_max: usize) -> Result<Bytes, Problem> {
    let too_large = || Problem::new(Code::BodyTooLarge, format!("send at most {bytes_max} bytes"));
    // Whoever says so is not waited for.
    if body.size_hint().lower() > bytes_max as u64 {
        return Err(too_large());
    }
    gather(Limited::new(body, bytes_max)).await.map_err(|cause| {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&*cause);
        while let Some(error) = cause {
            if error.is::<LengthLimitError>() {
                return too_large();
            }
            match error.downcast_ref() {
                Some(BadBody::TooSlow) => {
                    return Problem::new(Code::BodyTooSlow, "send the body without pauses");
                }
                Some(BadBody::TooManyBytesHeld) => {
                    let detail = "this gateway reads too many large requests; send it again";
                    return Problem::new(Code::Overloaded, detail);
                }
                Some(BadBody::Broken(_)) | None => cause = error.source(),
            }
        }
        Problem::new(Code::BodyBroken, "the body ended before it was complete")
    })
}

/// Reads a body to its end. Copied, because a body in pieces of one byte is kept in as many buffers otherwise, each of them
/// hundreds of times as large.
pub async fn gather<B: HttpBody<Data = Bytes> + Unpin>(mut body: B) -> Result<Bytes, B::Error> {
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            whole.extend_from_slice(&data);
        }
    }
    Ok(whole.freeze())
}

/// An answer's body, which holds the request's place until it is taken or dropped.
pub struct AnswerBody {
    body: Body,
    /// What is left of a piece that was larger than [`PIECE_BYTES`].
    rest: Bytes,
    place: Arc<InFlight>,
}

impl AnswerBody {
    /// From here on the client is waited for.
    pub fn new(body: Body, place: Arc<InFlight>) -> AnswerBody {
        place.pulse.offered(place.request, Instant::now());
        AnswerBody { body, rest: Bytes::new(), place }
    }

    fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.rest.is_empty() {
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => frame,
                other => return Poll::Ready(other),
            };
            match frame.into_data() {
                Ok(data) => self.rest = data,
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            }
        }
        let piece = self.rest.split_to(self.rest.len().min(PIECE_BYTES));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }
}

impl HttpBody for AnswerBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        // To be polled means that the client has taken the piece before.
        this.place.pulse.taken(this.place.request);
        let frame = this.poll_piece(context);
        if let Poll::Ready(Some(Ok(_))) = &frame {
            this.place.pulse.piece();
            this.place.pulse.offered(this.place.request, Instant::now());
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.rest.len() as u64;
        let body = self.body.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(body.lower() + rest);
        if let Some(upper) = body.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}
