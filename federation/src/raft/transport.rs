//! The transport: how a message reaches another member. The gateway brings it, over mutual TLS.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use thiserror::Error;

/// Raft's number for a gateway; never reused.
pub type NodeId = u64;

/// What a message asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rpc {
    /// Log entries.
    Append,
    /// An append without entries, kept apart so that no large one delays it.
    Heartbeat,
    Vote,
    PreVote,
    /// A piece of a snapshot.
    Snapshot,
    TransferLeader,
    /// An envelope for the leader to commit.
    Propose,
    /// A question about what the other member knows: the index up to which a linearizable read has to wait, or whether
    /// it has met the asker before.
    ReadIndex,
}

impl Rpc {
    const ALL: [Rpc; 8] = [
        Rpc::Append,
        Rpc::Heartbeat,
        Rpc::Vote,
        Rpc::PreVote,
        Rpc::Snapshot,
        Rpc::TransferLeader,
        Rpc::Propose,
        Rpc::ReadIndex,
    ];

    /// As a path segment.
    pub fn as_str(self) -> &'static str {
        match self {
            Rpc::Append => "append",
            Rpc::Heartbeat => "heartbeat",
            Rpc::Vote => "vote",
            Rpc::PreVote => "pre-vote",
            Rpc::Snapshot => "snapshot",
            Rpc::TransferLeader => "transfer-leader",
            Rpc::Propose => "propose",
            Rpc::ReadIndex => "read-index",
        }
    }

    /// Reads what [`Rpc::as_str`] writes.
    pub fn parse(text: &str) -> Option<Rpc> {
        Rpc::ALL.into_iter().find(|rpc| rpc.as_str() == text)
    }
}

/// Why a message has no answer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TransportError {
    /// It surely did not arrive.
    #[error("{0}")]
    Unreachable(String),
    /// It may have arrived.
    #[error("no answer in time")]
    Timeout,
    /// The other member read it and will not have it.
    #[error("{0}")]
    Refused(String),
}

/// Carries messages to other members. Who answers must be the member that was called; the transport proves it.
pub trait Transport: Send + Sync + 'static {
    fn call(
        &self,
        to: NodeId,
        rpc: Rpc,
        body: Bytes,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>>;
}
