//! Requests in flight: each holds a place from its head to the last byte of its answer.
//!
//! Invariants: a place is given back when the answer has been taken or the connection is gone, not
//! earlier; the bytes of all bodies held for requests in flight stay under the face's limit.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};

use super::pulse::Pulse;
use crate::error::{Code, Problem};

/// Answers are handed on in pieces of this size: what a client takes of a stream bounds what is
/// buffered for it. One HTTP/2 frame.
const PIECE_BYTES: usize = 16 * 1_024;

/// The places of one face.
#[derive(Clone, Debug)]
pub struct Places {
    free: Arc<Semaphore>,
    body_bytes: Arc<AtomicUsize>,
    body_bytes_max: usize,
}

impl Places {
    /// So many requests, and so many bytes of their bodies, at once.
    pub fn new(requests: usize, body_bytes_max: usize) -> Places {
        Places { free: Arc::new(Semaphore::new(requests)), body_bytes: Arc::default(), body_bytes_max }
    }

    /// A place for one more request, if there is one.
    pub fn take(&self, pulse: &Arc<Pulse>) -> Option<Arc<InFlight>> {
        let permit = Arc::clone(&self.free).try_acquire_owned().ok()?;
        Some(Arc::new(InFlight {
            _permit: permit,
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

/// A request's body with a deadline.
pub struct RequestBody {
    body: Incoming,
    /// None if there is no body to wait for.
    deadline: Option<Pin<Box<Sleep>>>,
    place: Arc<InFlight>,
}

impl RequestBody {
    /// The body has to be here after `limit`, whole.
    pub fn new(body: Incoming, limit: Duration, place: Arc<InFlight>) -> RequestBody {
        let deadline = (!body.is_end_stream()).then(|| Box::pin(tokio::time::sleep(limit)));
        RequestBody { body, deadline, place }
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
        let frame = match ready!(Pin::new(&mut this.body).poll_frame(context)) {
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
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Reads a request's body to its end, or says in the client's terms why not.
pub async fn read_body(body: Body, bytes_max: usize) -> Result<Bytes, Problem> {
    let read = Limited::new(body, bytes_max).collect().await;
    read.map(|whole| whole.to_bytes()).map_err(|cause| {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&*cause);
        while let Some(error) = cause {
            if error.is::<LengthLimitError>() {
                let detail = format!("send at most {bytes_max} bytes");
                return Problem::new(Code::BodyTooLarge, detail);
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
