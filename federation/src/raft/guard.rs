//! The guard: what a peer may say to Raft. The library trusts its network; we do not.
//!
//! Invariants, for every message that gets through: the member that sent it, by its TLS identity, is the leader or
//! candidate that it speaks as; terms do not leap; entries follow each other, and every envelope whose key is known was
//! signed by it; nobody but the genesis says who votes; a snapshot holds only bundles that their states signed.

use std::collections::BTreeSet;
use std::sync::Arc;

use certs::{Envelope, GatewayId, TrustStore};
use thiserror::Error;

use super::state_machine::Shared;
use super::transport::NodeId;
use super::types::{AppendRequest, Payload};
use super::wire::{BadWire, WireAppend, WireEntry, WireMembership, WireMeta, WirePayload, WireVote};
use crate::apply::Verdict;
use crate::genesis::Genesis;
use crate::registry::Registry;

/// Elections that a member may have missed. To reach the last term this way takes 10^14 messages.
const TERM_JUMP_MAX: u64 = 100_000;
/// More than any sender of ours puts into one message.
const ENTRIES_MAX: usize = 1_024;

/// Why a message went no further.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refused {
    #[error(transparent)]
    Unreadable(#[from] BadWire),
    #[error("the registry knows no gateway {0}")]
    Stranger(GatewayId),
    #[error("node {claimed} is not the one that sent this; that is node {sender}")]
    NotTheSender { claimed: NodeId, sender: NodeId },
    #[error("node {0} has no vote in this federation")]
    NotAVoter(NodeId),
    #[error("term {found} is too far from {current}")]
    TermJump { found: u64, current: u64 },
    #[error("only a leader with a quorum appends")]
    NotElected,
    #[error("the entries do not follow each other")]
    Entries,
    #[error("an entry's envelope cannot be read")]
    Envelope,
    #[error("an envelope is not signed by the key that it names")]
    Signature,
    #[error("only the genesis says who votes")]
    Membership,
    #[error("an envelope of {0} is sent by its own gateways only")]
    NotTheOwner(certs::MemberState),
    #[error("the snapshot is not believed: {0}")]
    Snapshot(String),
    #[error("this gateway's log has stopped")]
    Stopped,
}

/// Knows who may say what.
pub struct Guard {
    shared: Shared,
    genesis: Arc<Genesis>,
    voters: BTreeSet<NodeId>,
}

impl Guard {
    pub fn new(shared: Shared, genesis: Arc<Genesis>) -> Guard {
        let voters = genesis.gateways().map(|gateway| gateway.node_id).collect();
        Guard { shared, genesis, voters }
    }

    /// Everybody who votes, by the genesis.
    pub fn voters(&self) -> &BTreeSet<NodeId> {
        &self.voters
    }

    /// The node that a TLS identity is.
    pub fn sender(&self, peer: &GatewayId) -> Result<NodeId, Refused> {
        let node = self.shared.read(|registry| registry.gateway(peer).map(|gateway| gateway.node_id));
        node.ok_or_else(|| Refused::Stranger(peer.clone()))
    }

    /// A vote that the sender asks for or leads with.
    pub fn vote(&self, sender: NodeId, vote: WireVote, current_term: u64) -> Result<(), Refused> {
        if vote.node != sender {
            return Err(Refused::NotTheSender { claimed: vote.node, sender });
        }
        if !self.voters.contains(&sender) {
            return Err(Refused::NotAVoter(sender));
        }
        if vote.term > current_term.saturating_add(TERM_JUMP_MAX) {
            return Err(Refused::TermJump { found: vote.term, current: current_term });
        }
        Ok(())
    }

    /// An append, with what is known of each signature.
    pub fn append(&self, sender: NodeId, message: WireAppend, current_term: u64) -> Result<AppendRequest, Refused> {
        self.vote(sender, message.vote, current_term)?;
        if !message.vote.committed {
            return Err(Refused::NotElected);
        }
        self.entries_follow(&message)?;
        let mut request = message.open().map_err(|_| Refused::Envelope)?;
        let trust = self.shared.read(|registry| Arc::clone(registry.trust()));
        for entry in &mut request.entries {
            if let Payload::Normal(proposal) = &mut entry.payload {
                proposal.verdict = signature(&trust, &proposal.envelope)?;
            }
        }
        Ok(request)
    }

    fn entries_follow(&self, message: &WireAppend) -> Result<(), Refused> {
        if message.entries.len() > ENTRIES_MAX {
            return Err(Refused::Entries);
        }
        let mut next = message.previous.map_or(0, |previous| previous.index.saturating_add(1));
        let mut term = message.previous.map_or(0, |previous| previous.term);
        for WireEntry { id, payload } in &message.entries {
            let sound = id.index == next && id.term >= term && id.term <= message.vote.term;
            // The very first entry is the library's own, of nobody.
            let of_a_voter = self.voters.contains(&id.node) || id.index == 0;
            if !sound || !of_a_voter {
                return Err(Refused::Entries);
            }
            if let WirePayload::Membership(membership) = payload {
                self.membership(membership)?;
            }
            (next, term) = (next.saturating_add(1), id.term);
        }
        Ok(())
    }

    fn membership(&self, membership: &WireMembership) -> Result<(), Refused> {
        let of_the_genesis = membership.voters == [self.voters.clone()] && membership.nodes == self.voters;
        if of_the_genesis { Ok(()) } else { Err(Refused::Membership) }
    }

    /// An envelope that its owner's gateway asks to commit.
    pub fn proposal(&self, peer: &GatewayId, bytes: &[u8]) -> Result<(Envelope, Verdict), Refused> {
        let envelope = Envelope::parse(bytes).map_err(|_| Refused::Envelope)?;
        if envelope.header().owner != peer.state {
            return Err(Refused::NotTheOwner(envelope.header().owner));
        }
        let trust = self.shared.read(|registry| Arc::clone(registry.trust()));
        let verdict = signature(&trust, &envelope)?;
        Ok((envelope, verdict))
    }

    /// A whole snapshot.
    pub fn snapshot(&self, meta: &WireMeta, bytes: &[u8]) -> Result<(), Refused> {
        let doubt = |reason: &str| Refused::Snapshot(reason.to_owned());
        self.membership(&meta.membership)?;
        let registry = Registry::from_bytes(bytes).map_err(|cause| Refused::Snapshot(cause.to_string()))?;
        if meta.last.map(|last| last.index) != Some(registry.revision().0) {
            return Err(doubt("its revision is not the index that it is said to stand for"));
        }
        self.shared.read(|mine| {
            if registry.federation() != mine.federation() || registry.epoch() != mine.epoch() {
                return Err(doubt("it is of another federation"));
            }
            mine.vouches_for(&registry)
                .map_err(|state| Refused::Snapshot(format!("what it says of {state} is not what {state} has signed")))
        })?;
        let founded = self.genesis.gateways().count() == registry.gateways().count();
        if founded { Ok(()) } else { Err(doubt("its gateways are not those of the genesis")) }
    }
}

/// Verified, or of a key that is not known here yet; never of a known key and wrong.
fn signature(trust: &TrustStore, envelope: &Envelope) -> Result<Verdict, Refused> {
    let header = envelope.header();
    match trust.gateway_key(header.owner, &header.key) {
        // A key that an entry before this one may bring; `apply` knows then.
        None => Ok(Verdict::Unknown),
        Some((_, key)) => envelope.verify(key).map(|()| Verdict::Verified).map_err(|_| Refused::Signature),
    }
}
