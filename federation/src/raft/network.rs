//! The network as Raft sees it: one client per member and purpose, over the gateway's transport.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{RPCOption, RPCTypes, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{SnapshotResponse, StreamAppendError, StreamAppendResult, TransferLeaderResponse};
use openraft::{AnyError, EmptyNode, OptionalSend};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::guard::{Guard, Refused};
use super::pipeline::Pipeline;
use super::transport::{NodeId, Rpc, Transport, TransportError};
use super::types::{
    AppendRequest, AppendResponse, Snapshot, SnapshotData, TransferRequest, Types, Vote, VoteRequest, VoteResponse,
};
use super::wire::{self, WireInstalled, WireSnapshot, WireTransfer, WireVoteRequest, WireVoted};

const PIECE_BYTES: usize = 4 * 1024 * 1024;
/// For a whole piece, and less for a part: a line of 3.4 Mbit/s.
const PIECE_TIMEOUT: Duration = Duration::from_secs(10);
/// Before the first byte counts. Until a piece that was lost is sent again, Raft sends the member no entries either.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// The last piece is answered when all of it was read, checked and synced: 1 GiB takes 51 s.
const INSTALLED_BYTES_PER_SECOND: usize = 20 * 1024 * 1024;

/// Makes clients.
pub struct Network {
    pub me: NodeId,
    pub guard: Arc<Guard>,
    pub transport: Arc<dyn Transport>,
}

/// A client for one member and purpose.
pub struct Client {
    line: Line,
    /// What its appends are sent as.
    append: Rpc,
    /// The last index that the member acknowledged to this client.
    acknowledged: Option<u64>,
}

/// The way to one member. What comes back is believed only after the guard has seen it.
#[derive(Clone)]
pub struct Line {
    me: NodeId,
    target: NodeId,
    guard: Arc<Guard>,
    transport: Arc<dyn Transport>,
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Client;

    async fn new_client(&mut self, target: NodeId, _node: &EmptyNode) -> Client {
        let (guard, transport) = (Arc::clone(&self.guard), Arc::clone(&self.transport));
        Client { line: Line { me: self.me, target, guard, transport }, append: Rpc::Append, acknowledged: None }
    }

    async fn new_heartbeat_client(&mut self, target: NodeId, node: &EmptyNode) -> Client {
        Client { append: Rpc::Heartbeat, ..self.new_client(target, node).await }
    }
}

impl Line {
    /// Sends a message and reads the answer. Whether the answer can be is for [`Line::believe`].
    pub async fn call<Q: Serialize, A: DeserializeOwned>(
        &self,
        rpc: Rpc,
        message: &Q,
        timeout: Duration,
    ) -> Result<A, RPCError<Types>> {
        let body = wire::encode(message);
        let answer = self.transport.call(self.target, rpc, body, timeout).await.map_err(|error| match error {
            TransportError::Unreachable(_) | TransportError::Refused(_) => unreachable(&error),
            TransportError::Timeout => RPCError::Timeout(Timeout {
                action: RPCTypes::AppendEntries,
                id: self.me,
                target: self.target,
                timeout,
            }),
        })?;
        wire::decode(&answer).map_err(|bad| RPCError::Network(NetworkError::new(&bad)))
    }

    /// Asks the guard about an answer. Whoever gives an impossible one is as good as absent.
    pub fn believe(&self, rpc: Rpc, check: impl FnOnce(&Guard) -> Result<(), Refused>) -> Result<(), RPCError<Types>> {
        check(&self.guard).map_err(|refused| {
            tracing::warn!(node = self.target, rpc = rpc.as_str(), %refused, "a peer's answer is refused");
            unreachable(&refused)
        })
    }

    async fn ask_for_vote(
        &self,
        rpc: Rpc,
        request: &VoteRequest,
        at_most: Duration,
    ) -> Result<VoteResponse, RPCError<Types>> {
        let message = WireVoteRequest::from(request);
        let answer: WireVoted = self.call(rpc, &message, at_most).await?;
        self.believe(rpc, |guard| guard.voted(message.vote, &answer))?;
        Ok(answer.into())
    }
}

/// How long the answer to the bytes from `offset` to `end` of a snapshot may take.
fn piece_timeout(offset: usize, end: usize, total: usize) -> Duration {
    let crossing = PIECE_TIMEOUT.mul_f64((end - offset) as f64 / PIECE_BYTES as f64);
    let installing = if end == total { total as f64 / INSTALLED_BYTES_PER_SECOND as f64 } else { 0.0 };
    ANSWER_TIMEOUT + crossing + Duration::from_secs_f64(installing)
}

/// As if nobody were there: Raft pauses before it tries again.
fn unreachable(cause: &(impl std::error::Error + 'static)) -> RPCError<Types> {
    RPCError::Unreachable(Unreachable::new(&AnyError::new(cause)))
}

impl RaftNetworkV2<Types> for Client {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        request: AppendRequest,
        option: RPCOption,
    ) -> Result<AppendResponse, RPCError<Types>> {
        let sent = request.entries.last().map(|entry| entry.log_id).or(request.prev_log_id);
        let alone = futures_util::stream::once(std::future::ready(request));
        let mut answers = self.stream_append(Box::pin(alone), option).await?;
        let mut answer = AppendResponse::Success;
        while let Some(result) = answers.next().await {
            answer = match result? {
                Ok(matched) if matched == sent => AppendResponse::Success,
                Ok(matched) => AppendResponse::PartialSuccess(matched),
                Err(StreamAppendError::Conflict(_)) => AppendResponse::Conflict,
                Err(StreamAppendError::HigherVote(vote)) => AppendResponse::HigherVote(vote),
            };
        }
        Ok(answer)
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Result<StreamAppendResult<Types>, RPCError<Types>>>, RPCError<Types>>>
    where
        S: Stream<Item = AppendRequest> + OptionalSend + Unpin + 'static,
    {
        let pipeline = Pipeline::new(&self.line, self.append, &mut self.acknowledged, input, option.hard_ttl());
        Box::pin(std::future::ready(Ok(pipeline.answers())))
    }

    async fn vote(&mut self, request: VoteRequest, option: RPCOption) -> Result<VoteResponse, RPCError<Types>> {
        self.line.ask_for_vote(Rpc::Vote, &request, option.hard_ttl()).await
    }

    async fn pre_vote(&mut self, request: VoteRequest, option: RPCOption) -> Result<VoteResponse, RPCError<Types>> {
        self.line.ask_for_vote(Rpc::PreVote, &request, option.hard_ttl()).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let sending = async {
            let total = snapshot.snapshot.len();
            let mut offset = 0;
            loop {
                let end = (offset + PIECE_BYTES).min(total);
                let piece = WireSnapshot {
                    vote: (&vote).into(),
                    meta: (&snapshot.meta).into(),
                    total_bytes: total as u64,
                    offset: offset as u64,
                    data: snapshot.snapshot[offset..end].to_vec(),
                };
                let timeout = piece_timeout(offset, end, total);
                match self.line.call(Rpc::Snapshot, &piece, timeout).await? {
                    WireInstalled::Done(found) => {
                        self.line.believe(Rpc::Snapshot, |guard| guard.answer(piece.vote, found))?;
                        return Ok(SnapshotResponse::new(found.into()));
                    }
                    WireInstalled::More if end < total => offset = end,
                    WireInstalled::More => {
                        let cause = AnyError::error("the member has the whole snapshot and asks for more");
                        return Err(RPCError::Network(NetworkError::new(&cause)));
                    }
                }
            }
        };
        tokio::select! {
            biased;
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = sending => sent.map_err(|error| match error {
                RPCError::Timeout(it) => StreamingError::Timeout(it),
                RPCError::Unreachable(it) => StreamingError::Unreachable(it),
                RPCError::Network(it) => StreamingError::Network(it),
                RPCError::RemoteError(never) => match never.source {},
            }),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferRequest,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        let message = WireTransfer::from(&request);
        let () = self.line.call(Rpc::TransferLeader, &message, option.hard_ttl()).await?;
        Ok(Ok(()))
    }
}
