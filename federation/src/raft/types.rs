//! The Raft library's types, as this federation fills them in.

use std::fmt;

use bytes::Bytes;
use certs::Envelope;
use openraft::EmptyNode;
use serde::{Deserialize, Serialize};

use crate::apply::Verdict;
use crate::command::Outcome;
use crate::time::Revision;

/// What a log entry carries: an envelope, and what is known of its signature here.
#[derive(Clone, Debug)]
pub struct Proposal {
    pub envelope: Envelope,
    pub verdict: Verdict,
}

impl fmt::Display for Proposal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let header = self.envelope.header();
        write!(out, "{} serial {}", header.owner, header.serial)
    }
}

/// What a committed envelope did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// The log index.
    pub revision: Revision,
    /// One for each command, or one rejection of the whole envelope.
    pub outcomes: Vec<Outcome>,
}

#[cfg(not(test))]
openraft::declare_raft_types!(
    pub Types:
        D = Proposal,
        R = Applied,
        Node = EmptyNode,
);

#[cfg(test)]
openraft::declare_raft_types!(
    pub Types:
        D = Proposal,
        R = Applied,
        Node = EmptyNode,
        AsyncRuntime = super::tests::simulation::runtime::SimulatedRuntime,
);

pub type LeaderId = openraft::alias::LeaderIdOf<Types>;
pub type LogId = openraft::alias::LogIdOf<Types>;
pub type Vote = openraft::alias::VoteOf<Types>;
pub type Entry = openraft::alias::EntryOf<Types>;
pub type Payload = openraft::alias::PayloadOf<Types>;
pub type Membership = openraft::Membership<u64, EmptyNode>;
pub type StoredMembership = openraft::alias::StoredMembershipOf<Types>;
pub type SnapshotMeta = openraft::alias::SnapshotMetaOf<Types>;
/// The registry's bytes.
pub type SnapshotData = Bytes;
pub type Snapshot = openraft::alias::SnapshotOf<Types, SnapshotData>;
pub type AppendRequest = openraft::raft::AppendEntriesRequest<Types>;
pub type AppendResponse = openraft::raft::AppendEntriesResponse<Types>;
pub type VoteRequest = openraft::raft::VoteRequest<Types>;
pub type VoteResponse = openraft::raft::VoteResponse<Types>;
pub type TransferRequest = openraft::raft::TransferLeaderRequest<Types>;
pub type RaftHandle = openraft::Raft<Types, super::state_machine::StateMachine>;
