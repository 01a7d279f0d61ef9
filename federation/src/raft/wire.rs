//! Our own forms of what Raft sends and stores. The library's are free to change with any release; these have a version.
//!
//! Every message is one version byte and a postcard value without anything behind it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use certs::Envelope;
use openraft::EmptyNode;
use openraft::vote::RaftLeaderId;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::types::{
    AppendRequest, AppendResponse, Entry, LeaderId, LogId, Membership, Payload, Proposal, SnapshotMeta,
    StoredMembership, TransferRequest, Vote, VoteRequest, VoteResponse,
};
use crate::apply::Verdict;

/// The version of the peer protocol and of the log's records.
pub const VERSION: u8 = 1;

/// Bytes that are no message of this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadWire {
    #[error("the message has version {0}; this gateway speaks {VERSION}")]
    Version(u8),
    #[error("the message cannot be read")]
    Malformed,
}

/// The order is Raft's: by term, then by node; who leads is above who asks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct WireVote {
    pub term: u64,
    pub node: u64,
    pub committed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireLogId {
    pub term: u64,
    pub node: u64,
    pub index: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WireEntry {
    pub id: WireLogId,
    pub payload: WirePayload,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum WirePayload {
    Blank,
    Envelope(Vec<u8>),
    Membership(WireMembership),
}

/// Voters of one or two configurations, and everybody who takes part.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WireMembership {
    pub voters: Vec<BTreeSet<u64>>,
    pub nodes: BTreeSet<u64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WireAppend {
    pub vote: WireVote,
    pub previous: Option<WireLogId>,
    pub entries: Vec<WireEntry>,
    pub committed: Option<WireLogId>,
    /// Sent before the append that brings `previous` was answered: if that comes later, this one waits for it.
    pub follows: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum WireAppended {
    Success,
    Conflict,
    HigherVote(WireVote),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WireVoteRequest {
    pub vote: WireVote,
    pub last: Option<WireLogId>,
    pub transfer: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WireVoted {
    pub vote: WireVote,
    pub granted: bool,
    pub last: Option<WireLogId>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WireTransfer {
    pub from: WireVote,
    pub to: u64,
    pub last: Option<WireLogId>,
}

/// What a snapshot stands for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WireMeta {
    pub last: Option<WireLogId>,
    pub membership_at: Option<WireLogId>,
    pub membership: WireMembership,
}

/// A piece of a snapshot, sent in order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WireSnapshot {
    pub vote: WireVote,
    pub meta: WireMeta,
    pub total_bytes: u64,
    pub offset: u64,
    pub data: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum WireInstalled {
    /// Send the next piece.
    More,
    Done(WireVote),
}

/// The answer to an envelope that was sent to the leader.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum WireProposed {
    Applied(super::types::Applied),
    /// Not the leader (any more), or too many of the sender's are in hand; surely nothing was done.
    NotLeader,
    /// It stopped leading, or its log failed, after it took the envelope; that may still be committed.
    Unknown,
}

/// What is asked with [`super::transport::Rpc::ReadIndex`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WireQuestion {
    /// Answered with a [`WireReadIndex`].
    ReadIndex,
    /// Answered with a [`WireAcquainted`].
    Acquainted,
}

/// Up to which index a read has to wait, if the one who was asked leads.
pub type WireReadIndex = Option<u64>;

/// The revision of the one who was asked, if he has seen that the asker took part before.
pub type WireAcquainted = Option<u64>;

pub fn encode<T: Serialize>(message: &T) -> Bytes {
    postcard::to_extend(message, vec![VERSION]).expect("invariant: a message in memory always serialises").into()
}

pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, BadWire> {
    let (version, body) = bytes.split_first().ok_or(BadWire::Malformed)?;
    if *version != VERSION {
        return Err(BadWire::Version(*version));
    }
    match postcard::take_from_bytes(body) {
        Ok((message, [])) => Ok(message),
        _ => Err(BadWire::Malformed),
    }
}

impl From<&Vote> for WireVote {
    fn from(vote: &Vote) -> WireVote {
        WireVote { term: vote.leader_id.term, node: vote.leader_id.node_id, committed: vote.committed }
    }
}

impl From<WireVote> for Vote {
    fn from(vote: WireVote) -> Vote {
        if vote.committed { Vote::new_committed(vote.term, vote.node) } else { Vote::new(vote.term, vote.node) }
    }
}

impl From<&LogId> for WireLogId {
    fn from(id: &LogId) -> WireLogId {
        WireLogId { term: id.leader_id.term, node: id.leader_id.node_id, index: id.index }
    }
}

impl From<WireLogId> for LogId {
    fn from(id: WireLogId) -> LogId {
        LogId { leader_id: LeaderId::new(id.term, id.node), index: id.index }
    }
}

impl WireLogId {
    /// Whether the leader with this vote can have it in its log: it is its own, or of one before.
    pub fn is_known_to(&self, vote: WireVote) -> bool {
        self.by() <= (vote.term, vote.node)
    }

    /// Whose it is: term and node of the leader that wrote it. Never falls along a log.
    pub fn by(&self) -> (u64, u64) {
        (self.term, self.node)
    }
}

pub fn log_id(id: Option<WireLogId>) -> Option<LogId> {
    id.map(LogId::from)
}

pub fn wire_id(id: Option<&LogId>) -> Option<WireLogId> {
    id.map(WireLogId::from)
}

impl From<&Membership> for WireMembership {
    fn from(membership: &Membership) -> WireMembership {
        WireMembership {
            voters: membership.get_joint_config().clone(),
            nodes: membership.nodes().map(|(node, _)| *node).collect(),
        }
    }
}

impl WireMembership {
    pub fn open(self) -> Result<Membership, BadWire> {
        if self == WireMembership::default() {
            return Ok(Membership::default());
        }
        let nodes: BTreeMap<u64, EmptyNode> = self.nodes.into_iter().map(|node| (node, EmptyNode {})).collect();
        Membership::new(self.voters, nodes).map_err(|_| BadWire::Malformed)
    }
}

impl From<&Entry> for WireEntry {
    fn from(entry: &Entry) -> WireEntry {
        let payload = match &entry.payload {
            Payload::Blank => WirePayload::Blank,
            Payload::Normal(proposal) => WirePayload::Envelope(proposal.envelope.as_bytes().to_vec()),
            Payload::Membership(membership) => WirePayload::Membership(membership.into()),
        };
        WireEntry { id: (&entry.log_id).into(), payload }
    }
}

impl WireEntry {
    /// The entry; nobody has looked at its signature.
    pub fn open(self) -> Result<Entry, BadWire> {
        let payload = match self.payload {
            WirePayload::Blank => Payload::Blank,
            WirePayload::Envelope(bytes) => {
                let envelope = Envelope::parse(&bytes).map_err(|_| BadWire::Malformed)?;
                Payload::Normal(Proposal { envelope, verdict: Verdict::Unknown })
            }
            WirePayload::Membership(membership) => Payload::Membership(membership.open()?),
        };
        Ok(Entry { log_id: self.id.into(), payload })
    }
}

impl From<&AppendRequest> for WireAppend {
    fn from(request: &AppendRequest) -> WireAppend {
        WireAppend {
            vote: (&request.vote).into(),
            previous: wire_id(request.prev_log_id.as_ref()),
            entries: request.entries.iter().map(WireEntry::from).collect(),
            committed: wire_id(request.leader_commit.as_ref()),
            follows: false,
        }
    }
}

impl WireAppend {
    pub fn open(self) -> Result<AppendRequest, BadWire> {
        Ok(AppendRequest {
            vote: self.vote.into(),
            prev_log_id: log_id(self.previous),
            entries: self.entries.into_iter().map(WireEntry::open).collect::<Result<_, _>>()?,
            leader_commit: log_id(self.committed),
        })
    }
}

impl From<&AppendResponse> for WireAppended {
    fn from(response: &AppendResponse) -> WireAppended {
        match response {
            AppendResponse::Success => WireAppended::Success,
            // No member takes a part of an append. If one did, the rest would be missing behind it.
            AppendResponse::PartialSuccess(_) | AppendResponse::Conflict => WireAppended::Conflict,
            AppendResponse::HigherVote(vote) => WireAppended::HigherVote(vote.into()),
        }
    }
}

impl From<WireAppended> for AppendResponse {
    fn from(response: WireAppended) -> AppendResponse {
        match response {
            WireAppended::Success => AppendResponse::Success,
            WireAppended::Conflict => AppendResponse::Conflict,
            WireAppended::HigherVote(vote) => AppendResponse::HigherVote(vote.into()),
        }
    }
}

impl From<&VoteRequest> for WireVoteRequest {
    fn from(request: &VoteRequest) -> WireVoteRequest {
        WireVoteRequest {
            vote: (&request.vote).into(),
            last: wire_id(request.last_log_id.as_ref()),
            transfer: request.leadership_transfer,
        }
    }
}

impl From<WireVoteRequest> for VoteRequest {
    fn from(request: WireVoteRequest) -> VoteRequest {
        VoteRequest {
            vote: request.vote.into(),
            last_log_id: log_id(request.last),
            leadership_transfer: request.transfer,
        }
    }
}

impl From<&VoteResponse> for WireVoted {
    fn from(response: &VoteResponse) -> WireVoted {
        WireVoted {
            vote: (&response.vote).into(),
            granted: response.vote_granted,
            last: wire_id(response.last_log_id.as_ref()),
        }
    }
}

impl From<WireVoted> for VoteResponse {
    fn from(response: WireVoted) -> VoteResponse {
        VoteResponse { vote: response.vote.into(), vote_granted: response.granted, last_log_id: log_id(response.last) }
    }
}

impl From<&TransferRequest> for WireTransfer {
    fn from(request: &TransferRequest) -> WireTransfer {
        WireTransfer {
            from: request.from_leader().into(),
            to: *request.to_node_id(),
            last: wire_id(request.last_log_id()),
        }
    }
}

impl From<WireTransfer> for TransferRequest {
    fn from(request: WireTransfer) -> TransferRequest {
        TransferRequest::new(request.from.into(), request.to, log_id(request.last))
    }
}

impl From<&SnapshotMeta> for WireMeta {
    fn from(meta: &SnapshotMeta) -> WireMeta {
        WireMeta {
            last: wire_id(meta.last_log_id.as_ref()),
            membership_at: wire_id(meta.last_membership.log_id().as_ref()),
            membership: meta.last_membership.membership().into(),
        }
    }
}

impl WireMeta {
    pub fn open(self) -> Result<SnapshotMeta, BadWire> {
        let membership = StoredMembership::new(log_id(self.membership_at), self.membership.open()?);
        Ok(SnapshotMeta { last_log_id: log_id(self.last), last_membership: membership })
    }
}
