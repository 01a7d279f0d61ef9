//! A door for whoever throws bytes at the scans that stand before the library for HTTP: what is private here, as
//! functions of bytes.
//!
//! Each function panics if the scan breaks an invariant, and does nothing else. The first bytes say how the others are
//! cut into pieces, because a network cuts anywhere.

use std::cell::RefCell;
use std::convert::Infallible;
use std::pin::Pin;
use std::slice;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{Method, Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, ReadBuf, join, sink};
use tokio::time::Instant;

use super::frames::{Flood, Frames, PER_PIECE, REFILL};
use super::framing::{Ambiguous, Framing, State};
use super::pulse::Pulse;
use super::unused::Unused;
use super::watched::WatchedStream;
use super::{Limits, ended, http1_builder};

/// The lengths of pieces, less one: one after the other, again and again.
type Cuts = [u8; 4];

fn pieces<'a>(mut bytes: &'a [u8], cuts: &Cuts) -> impl Iterator<Item = &'a [u8]> {
    let mut lengths = cuts.iter().cycle();
    std::iter::from_fn(move || {
        let length = usize::from(*lengths.next()?) + 1;
        let (piece, rest) = bytes.split_at(length.min(bytes.len()));
        bytes = rest;
        Some(piece).filter(|it| !it.is_empty())
    })
}

/// Reads the bytes behind the first four as what a client says in HTTP/1. However they are cut, the verdict is the same;
/// and until it is that they are ambiguous, the library sees the heads and the bodies that the scan sees, and no others.
pub fn framing(bytes: &[u8]) {
    let Some((cuts, said)) = bytes.split_first_chunk::<4>() else {
        return;
    };
    let (messages, verdict) = scanned(said);
    let mut cut = Framing::default();
    assert_eq!(pieces(said, cuts).try_for_each(|piece| cut.scan(piece)), verdict, "cut by {cuts:?}");
    assert_eq!(Framing::default().scan(said), verdict, "in one piece");
    let served = served(said, cuts);
    assert!(served.len() <= messages.len(), "{served:?} are more than {messages:?}");
    let mut from = 0;
    for (request, message) in served.iter().zip(&messages) {
        let head = said[from..message.head_end].trim_ascii_start();
        assert!(head.starts_with(request.method.as_str().as_bytes()), "{request:?} begins elsewhere");
        assert!(framing_headers(head) <= 1, "{request:?} says twice where it ends");
        assert_eq!(request.length, message.length, "{request:?} and {message:?} end elsewhere");
        let Some(length) = message.length else {
            continue;
        };
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        from = message.head_end.saturating_add(length).min(said.len());
        let body = &said[message.head_end..from];
        // The library may give up when it sees the client's end before it has handed on the body.
        if let Some(read) = &request.body {
            assert_eq!((read.as_slice(), read.len()), (body, length), "{request:?} has another body");
        }
    }
}

/// Headers of a head, as the library takes it, that say where its body ends.
fn framing_headers(head: &[u8]) -> usize {
    let names = head.split(|it| *it == b'\n').filter_map(|line| line.split(|it| *it == b':').next());
    let says =
        |name: &&[u8]| [CONTENT_LENGTH, TRANSFER_ENCODING].iter().any(|it| name.eq_ignore_ascii_case(it.as_ref()));
    names.filter(says).count()
}

/// A message as the scan sees it.
#[derive(Debug)]
struct Message {
    head_end: usize,
    /// Bytes of its body; of one in chunks nobody knows.
    length: Option<u64>,
}

/// Every message whose head ends before something is ambiguous, from looks at one byte after the other.
fn scanned(said: &[u8]) -> (Vec<Message>, Result<(), Ambiguous>) {
    let mut framing = Framing::default();
    let mut messages = vec![];
    let mut was_in_head = false;
    for (at, byte) in said.iter().enumerate() {
        if let Err(ambiguous) = framing.scan(slice::from_ref(byte)) {
            return (messages, Err(ambiguous));
        }
        let (is_in_head, length) = match framing.state() {
            State::Head(head) => (head.begun, Some(0)),
            State::Body(length) => (false, Some(*length)),
            State::Last => (false, None),
        };
        if was_in_head && !is_in_head {
            messages.push(Message { head_end: at + 1, length });
        }
        was_in_head = is_in_head;
    }
    (messages, Ok(()))
}

/// A request as the library hands it on.
#[derive(Debug)]
struct Served {
    method: Method,
    length: Option<u64>,
    /// Nothing if it has not come to its end.
    body: Option<Vec<u8>>,
}

/// What a listener's library makes of these bytes, behind the scan, until that finds something ambiguous.
fn served(said: &[u8], cuts: &Cuts) -> Vec<Served> {
    let pulse = Arc::new(Pulse::new(Instant::now(), Unused::default().turn()));
    let socket = join(Said(Box::new(pieces(said, cuts))), sink());
    let io = TokioIo::new(WatchedStream::http1(socket, Arc::clone(&pulse)));
    let served = RefCell::new(vec![]);
    let service = service_fn(async |request: Request<Incoming>| {
        let (head, body) = request.into_parts();
        if pulse.is_ambiguous() {
            return Ok::<_, Infallible>(ended(Response::new(Body::empty()), true));
        }
        let is_last = head.headers.contains_key(TRANSFER_ENCODING);
        let number = || head.headers.get(CONTENT_LENGTH).map(|it| it.to_str().expect("digits").parse());
        let length = (!is_last).then(|| number().unwrap_or(Ok(0)).expect("a number"));
        served.borrow_mut().push(Served { method: head.method, length, body: None });
        let body = body.collect().await.ok().map(|it| it.to_bytes().to_vec());
        served.borrow_mut().last_mut().expect("one after the other").body = body;
        Ok(ended(Response::new(Body::empty()), is_last))
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let limits = Limits::public();
    let _refused = runtime.block_on(async { http1_builder(&limits).serve_connection(io, service).await });
    served.into_inner()
}

/// A socket on which these pieces arrive, and then its end.
struct Said<'a>(Box<dyn Iterator<Item = &'a [u8]> + 'a>);

impl AsyncRead for Said<'_> {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        // The library has room for 8 KiB and more; a piece has 256 bytes at most.
        buffer.put_slice(self.get_mut().0.next().unwrap_or_default());
        Poll::Ready(Ok(()))
    }
}

/// Before a piece arrives.
struct Meanwhile {
    passed: Duration,
    /// Pieces of answers that were taken.
    taken: u64,
}

/// Reads the bytes behind the first fourteen as what a client says in HTTP/2. However they are cut, the verdict is the
/// same, and it is a flood exactly if more ask for nothing than are allowed. Since any moment no more pass than are
/// allowed at once, for the time since then, and for the answers that were taken; and whoever has never sent more than
/// are allowed at once is no flood.
pub fn frames(bytes: &[u8]) {
    let Some(([allowance, refill, a, b, c, d, meanwhile @ ..], said)) = bytes.split_first_chunk::<14>() else {
        return;
    };
    let cuts = &[*a, *b, *c, *d];
    let idle = ends_of_idle_heads(said);
    let begun = Instant::now();
    let count = idle.len() as u32;
    let one_less = if count > 0 { Err(Flood) } else { Ok(()) };
    for (allowance, expected) in [(count, Ok(())), (count.saturating_sub(1), one_less)] {
        let new = || Frames::within(allowance, 0, begun);
        let [mut whole, mut bytewise, mut cut] = [new(), new(), new()];
        assert_eq!(whole.scan(said, begun, 0), expected, "in one piece");
        assert_eq!(said.chunks(1).try_for_each(|it| bytewise.scan(it, begun, 0)), expected, "one by one");
        assert_eq!(pieces(said, cuts).try_for_each(|it| cut.scan(it, begun, 0)), expected, "cut by {cuts:?}");
    }

    let (allowance, refill) = (u32::from(*allowance), u32::from(*refill));
    let (meanwhile, _) = meanwhile.as_chunks::<2>();
    let meanwhile = meanwhile
        .iter()
        .cycle()
        .map(|[ms, taken]| Meanwhile { passed: Duration::from_millis((*ms).into()), taken: (*taken).into() });
    let [mut whole, mut bytewise] = [(); 2].map(|()| Frames::within(allowance, refill, begun));
    let (mut now, mut taken, mut end) = (begun, 0, 0);
    // What was sent without being granted meanwhile, and the least that it ever was: since any moment, no more than is
    // allowed at once.
    let (mut ahead, mut least) = (0, 0);
    for (piece, before) in pieces(said, cuts).zip(meanwhile) {
        (now, taken, end) = (now + before.passed, taken + before.taken, end + piece.len());
        let verdict = whole.scan(piece, now, taken);
        let again = piece.chunks(1).try_for_each(|it| bytewise.scan(it, now, taken));
        assert_eq!(again, verdict, "one by one, at the same moments");
        let sent = idle.partition_point(|it| *it <= end) as u64;
        if verdict.is_err() {
            assert!(sent > allowance.into(), "{sent} are no flood");
            return;
        }
        let for_time = (now.duration_since(begun).as_millis() / REFILL.as_millis()) as u64 * u64::from(refill);
        least = ahead.min(least);
        ahead = sent as i64 - (for_time + taken * u64::from(PER_PIECE)) as i64;
        assert!(ahead - least <= allowance.into(), "{sent} have passed");
    }
}

/// Where the head of each frame ends that asks for nothing. Source: RFC 9113, 4.1 and 6.
fn ends_of_idle_heads(said: &[u8]) -> Vec<usize> {
    let (mut at, mut ends) = (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len(), vec![]);
    while let Some([a, b, c, kind, flags, ..]) = said.get(at..).and_then(<[u8]>::first_chunk::<9>) {
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        let is_end = flags & 1 == 1;
        at += 9;
        match kind {
            0 if length > 0 || is_end => {}
            1 => {}
            _ => ends.push(at),
        }
        at += length;
    }
    ends
}
