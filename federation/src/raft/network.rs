//! The network as Raft sees it: one client per member and purpose, over the gateway's transport.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{RPCOption, RPCTypes, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{SnapshotResponse, TransferLeaderResponse};
use openraft::{AnyError, EmptyNode, OptionalSend};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::transport::{NodeId, Rpc, Transport, TransportError};
use super::types::{
    AppendRequest, AppendResponse, Snapshot, SnapshotData, TransferRequest, Types, Vote, VoteRequest, VoteResponse,
};
use super::wire::{self, WireAppend, WireInstalled, WireSnapshot, WireTransfer, WireVoteRequest};

/// A message stays below the peers' limit of 16 MiB.
const APPEND_BYTES_MAX: usize = 8 * 1024 * 1024;
const PIECE_BYTES: usize = 4 * 1024 * 1024;
/// Entries wait for a disk at the other end; a dead peer is noticed by heartbeats and keep-alive much sooner.
const APPEND_TIMEOUT: Duration = Duration::from_secs(3);
const PIECE_TIMEOUT: Duration = Duration::from_secs(10);

/// Makes clients.
pub struct Network {
    pub me: NodeId,
    pub transport: Arc<dyn Transport>,
}

/// A client for one member and purpose.
pub struct Client {
    me: NodeId,
    target: NodeId,
    /// What its appends are sent as.
    append: Rpc,
    transport: Arc<dyn Transport>,
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Client;

    async fn new_client(&mut self, target: NodeId, _node: &EmptyNode) -> Client {
        Client { me: self.me, target, append: Rpc::Append, transport: Arc::clone(&self.transport) }
    }

    async fn new_heartbeat_client(&mut self, target: NodeId, node: &EmptyNode) -> Client {
        Client { append: Rpc::Heartbeat, ..self.new_client(target, node).await }
    }
}

impl Client {
    async fn call<Q: Serialize, A: DeserializeOwned>(
        &self,
        rpc: Rpc,
        message: &Q,
        timeout: Duration,
    ) -> Result<A, RPCError<Types>> {
        let body = wire::encode(message);
        self.call_bytes(rpc, body, timeout).await
    }

    async fn call_bytes<A: DeserializeOwned>(
        &self,
        rpc: Rpc,
        body: Bytes,
        timeout: Duration,
    ) -> Result<A, RPCError<Types>> {
        let answer = self.transport.call(self.target, rpc, body, timeout).await.map_err(|error| match error {
            TransportError::Unreachable(_) | TransportError::Refused(_) => {
                RPCError::Unreachable(Unreachable::new(&AnyError::new(&error)))
            }
            TransportError::Timeout => RPCError::Timeout(Timeout {
                action: RPCTypes::AppendEntries,
                id: self.me,
                target: self.target,
                timeout,
            }),
        })?;
        wire::decode(&answer).map_err(|bad| RPCError::Network(NetworkError::new(&AnyError::new(&bad))))
    }
}

impl RaftNetworkV2<Types> for Client {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        request: AppendRequest,
        option: RPCOption,
    ) -> Result<AppendResponse, RPCError<Types>> {
        let timeout =
            if request.entries.is_empty() { option.hard_ttl() } else { option.hard_ttl().max(APPEND_TIMEOUT) };
        let (message, last_sent) = below_the_limit(&request);
        let answer: wire::WireAppended = self.call(self.append, &message, timeout).await?;
        Ok(match (answer.into(), last_sent) {
            (AppendResponse::Success, Some(last)) => AppendResponse::PartialSuccess(Some(last)),
            (answer, _) => answer,
        })
    }

    async fn vote(&mut self, request: VoteRequest, option: RPCOption) -> Result<VoteResponse, RPCError<Types>> {
        let answer: wire::WireVoted = self.call(Rpc::Vote, &WireVoteRequest::from(&request), option.hard_ttl()).await?;
        Ok(answer.into())
    }

    async fn pre_vote(&mut self, request: VoteRequest, option: RPCOption) -> Result<VoteResponse, RPCError<Types>> {
        let answer: wire::WireVoted =
            self.call(Rpc::PreVote, &WireVoteRequest::from(&request), option.hard_ttl()).await?;
        Ok(answer.into())
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
                match self.call(Rpc::Snapshot, &piece, PIECE_TIMEOUT).await? {
                    WireInstalled::Done(vote) => return Ok(SnapshotResponse::new(vote.into())),
                    WireInstalled::More if end < total => offset = end,
                    WireInstalled::More => {
                        let cause = AnyError::error("the member has the whole snapshot and asks for more");
                        return Err(RPCError::Network(NetworkError::new(&cause)));
                    }
                }
            }
        };
        tokio::select! {
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
        let () = self.call(Rpc::TransferLeader, &WireTransfer::from(&request), option.hard_ttl()).await?;
        Ok(Ok(()))
    }
}

/// The message, cut before the entry that would be too much; then also the last entry that is in it.
fn below_the_limit(request: &AppendRequest) -> (WireAppend, Option<super::types::LogId>) {
    let mut message = WireAppend::from(request);
    let mut bytes = 0;
    let fits = message.entries.iter().take_while(|entry| {
        bytes += match &entry.payload {
            wire::WirePayload::Envelope(envelope) => envelope.len() + 64,
            _ => 1_024,
        };
        bytes <= APPEND_BYTES_MAX
    });
    let count = fits.count().max(1);
    if count >= message.entries.len() {
        return (message, None);
    }
    message.entries.truncate(count);
    let last = request.entries.get(count - 1).map(|entry| entry.log_id);
    (message, last)
}
