//! The pipeline: appends on their way to one member, several at once, answered in order.
//!
//! Raft sends an append for every batch of entries, and another one to say that they are committed. One by one, each
//! would wait a round trip for the one before: with 27 voters a commit would take 29 ms instead of 17.
//!
//! Invariants: nothing is sent before Raft has asked for it, because Raft waits there before it tries an absent member
//! again; the first append goes alone, so that one connection is opened and not sixteen; an append that is sent before
//! the one that it stands behind is answered says so; after a bad answer nothing more is sent.

use std::time::Duration;

use futures_util::stream::{self, FuturesOrdered};
use futures_util::{Stream, StreamExt};
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::RPCError;
use openraft::raft::StreamAppendResult;

use super::log_store::APPEND_BYTES_MAX;
use super::network::Line;
use super::transport::Rpc;
use super::types::{AppendRequest, AppendResponse, Types};
use super::wire::{WireAppend, WireAppended, WireLogId, WirePayload, WireVote, log_id};

/// Over a round trip of 70 ms that is an append every 5 ms.
const IN_FLIGHT_MAX: usize = 16;
/// No append is begun while this much is on its way: 26 members x 2 x 4 MiB = 208 MiB at worst.
const IN_FLIGHT_BYTES: usize = APPEND_BYTES_MAX;
/// Entries wait for a disk at the other end; a dead peer is noticed by heartbeats and keep-alive much sooner.
const ENTRIES_TIMEOUT: Duration = Duration::from_secs(3);

type Answer = Result<StreamAppendResult<Types>, RPCError<Types>>;

/// The appends of one stream.
pub struct Pipeline<'s, S> {
    line: &'s Line,
    rpc: Rpc,
    /// The last index that the member said that it has.
    acknowledged: &'s mut Option<u64>,
    input: S,
    input_has_ended: bool,
    /// The member has answered, so there is a way to it.
    is_open: bool,
    in_flight: FuturesOrdered<BoxFuture<'static, Answered>>,
    in_flight_bytes: usize,
    /// For an append without entries that nothing is before.
    short_timeout: Duration,
}

/// An append that was sent, and what came back.
struct Answered {
    vote: WireVote,
    previous: Option<WireLogId>,
    last: Option<WireLogId>,
    bytes: usize,
    answer: Result<WireAppended, RPCError<Types>>,
}

impl<'s, S: Stream<Item = AppendRequest> + Unpin + Send + 's> Pipeline<'s, S> {
    pub fn new(
        line: &'s Line,
        rpc: Rpc,
        acknowledged: &'s mut Option<u64>,
        input: S,
        short_timeout: Duration,
    ) -> Pipeline<'s, S> {
        let in_flight = FuturesOrdered::new();
        Pipeline {
            line,
            rpc,
            acknowledged,
            input,
            input_has_ended: false,
            is_open: false,
            in_flight,
            in_flight_bytes: 0,
            short_timeout,
        }
    }

    /// The answers, in the order of what was sent. The last is the first bad one.
    pub fn answers(self) -> BoxStream<'s, Answer> {
        Box::pin(stream::unfold(Some(self), |pipeline| async { pipeline?.next().await }))
    }

    async fn next(mut self) -> Option<(Answer, Option<Self>)> {
        loop {
            let at_once = if self.is_open { IN_FLIGHT_MAX } else { 1 };
            let has_room = self.in_flight.len() < at_once && self.in_flight_bytes < IN_FLIGHT_BYTES;
            let answered = if self.input_has_ended || !has_room {
                self.in_flight.next().await?
            } else if self.in_flight.is_empty() {
                let request = self.input.next().await;
                self.send(request);
                continue;
            } else {
                tokio::select! {
                    biased;
                    Some(answered) = self.in_flight.next() => answered,
                    request = self.input.next() => {
                        self.send(request);
                        continue;
                    }
                }
            };
            return Some(self.take(answered));
        }
    }

    fn send(&mut self, request: Option<AppendRequest>) {
        let Some(request) = request else {
            self.input_has_ended = true;
            return;
        };
        let mut message = WireAppend::from(&request);
        message.follows = !self.in_flight.is_empty();
        let short = message.entries.is_empty() && !message.follows;
        let timeout = if short { self.short_timeout } else { self.short_timeout.max(ENTRIES_TIMEOUT) };
        let bytes = message.entries.iter().map(|entry| size(&entry.payload)).sum();
        let (line, rpc) = (self.line.clone(), self.rpc);
        self.in_flight_bytes += bytes;
        self.in_flight.push_back(Box::pin(async move {
            let (vote, previous) = (message.vote, message.previous);
            let last = message.entries.last().map(|entry| entry.id).or(previous);
            Answered { vote, previous, last, bytes, answer: line.call(rpc, &message, timeout).await }
        }));
    }

    /// The answer, and the rest of the pipeline if it is a good one.
    fn take(mut self, answered: Answered) -> (Answer, Option<Self>) {
        let Answered { vote, previous, last, bytes, answer } = answered;
        self.in_flight_bytes -= bytes;
        // A heartbeat stands behind what the member has acknowledged in the other stream.
        let before = if self.rpc == Rpc::Heartbeat { previous.map(|it| it.index) } else { *self.acknowledged };
        let answer = answer.and_then(|answer| {
            self.line.believe(self.rpc, |guard| guard.appended(vote, previous, before, &answer))?;
            Ok(AppendResponse::from(answer).into_stream_result(log_id(previous), log_id(last)))
        });
        if !matches!(answer, Ok(Ok(_))) {
            return (answer, None);
        }
        self.is_open = true;
        *self.acknowledged = (*self.acknowledged).max(last.map(|last| last.index));
        (answer, Some(self))
    }
}

fn size(payload: &WirePayload) -> usize {
    match payload {
        WirePayload::Envelope(bytes) => bytes.len(),
        WirePayload::Blank | WirePayload::Membership(_) => 0,
    }
}
