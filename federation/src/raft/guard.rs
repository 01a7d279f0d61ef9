//! The guard: what a peer may say to Raft. The library trusts its network; we do not.
//!
//! Invariants, for every message and every answer that gets through: the member that sent it, by its TLS identity, is the
//! leader or candidate that it speaks as; terms do not leap, and nobody hands us a vote of our own; entries follow each
//! other; nobody but the genesis says who votes; a snapshot contradicts nothing that this member knows.
//!
//! A bad signature is no reason to refuse an append. A key may become known between two tries to send the same entry, and
//! a log that some members refuse would halt the federation. `apply` rejects such an envelope, everywhere alike.

use std::collections::BTreeSet;
use std::sync::Arc;

use certs::{Envelope, GatewayId, Kind, TrustStore};
use thiserror::Error;

use super::hindsight::{self, Contradiction};
use super::state_machine::Shared;
use super::transport::NodeId;
use super::types::{AppendRequest, Payload};
use super::wire::{
    BadWire, WireAppend, WireAppended, WireEntry, WireLogId, WireMembership, WireMeta, WirePayload, WireVote, WireVoted,
};
use crate::apply::Verdict;
use crate::command::Batch;
use crate::genesis::Genesis;
use crate::limits;
use crate::registry::Registry;

/// Elections that a member may have missed. To reach the last term this way takes 10^14 messages.
const TERM_JUMP_MAX: u64 = 100_000;
/// More than any sender of ours puts into one message.
const ENTRIES_MAX: usize = 1_024;
/// A million entries a second for 146,000 years; Raft adds to an index without asking whether there is a next one.
const INDEX_MAX: u64 = 1 << 62;

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
    #[error("{0} has no signing key of that id")]
    UnknownKey(certs::MemberState),
    #[error("an envelope does not carry commands for this federation")]
    Commands,
    #[error("the answer cannot be: it brings a vote of this gateway that it has not given")]
    OwnVote,
    #[error("the answer cannot be: it refuses {0}")]
    Answer(&'static str),
    #[error("only the genesis says who votes")]
    Membership,
    #[error("an envelope of {0} is sent by its own gateways only")]
    NotTheOwner(certs::MemberState),
    #[error("the snapshot is not believed: {0}")]
    Snapshot(String),
    #[error(transparent)]
    Contradiction(#[from] Contradiction),
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
        self.anybodys_vote(vote, current_term)
    }

    /// A vote that somebody can have given.
    fn anybodys_vote(&self, vote: WireVote, current_term: u64) -> Result<(), Refused> {
        if !self.voters.contains(&vote.node) {
            return Err(Refused::NotAVoter(vote.node));
        }
        if vote.term > current_term.saturating_add(TERM_JUMP_MAX) {
            return Err(Refused::TermJump { found: vote.term, current: current_term });
        }
        Ok(())
    }

    /// The vote in an answer to what we said with a vote of ours. Nobody can know a higher vote of ours than we do: we
    /// keep it before we show it. Taking one over would make us a leader that nobody elected.
    pub fn answer(&self, ours: WireVote, found: WireVote) -> Result<(), Refused> {
        self.anybodys_vote(found, ours.term)?;
        if found.node == ours.node && found > ours { Err(Refused::OwnVote) } else { Ok(()) }
    }

    /// The answer to an append that was sent with our vote, behind `previous`. `acknowledged` is the last index that this
    /// member said that it has.
    pub fn appended(
        &self,
        ours: WireVote,
        previous: Option<WireLogId>,
        acknowledged: Option<u64>,
        answer: &WireAppended,
    ) -> Result<(), Refused> {
        match answer {
            WireAppended::Success => Ok(()),
            WireAppended::HigherVote(found) if *found <= ours => Err(Refused::Answer("our vote for a lower one")),
            WireAppended::HigherVote(found) => self.answer(ours, *found),
            // Stock Raft panics at both of these.
            WireAppended::Conflict if previous.is_none() => Err(Refused::Answer("the beginning of the log")),
            WireAppended::Conflict if previous.map(|it| it.index) <= acknowledged => {
                Err(Refused::Answer("an entry that it has acknowledged"))
            }
            WireAppended::Conflict => Ok(()),
        }
    }

    /// The answer to a vote that we asked for, or would ask for.
    pub fn voted(&self, ours: WireVote, answer: &WireVoted) -> Result<(), Refused> {
        self.answer(ours, answer.vote)?;
        // Whoever claims a longer log than he can have keeps us from standing.
        let plausible = answer.last.is_none_or(|last| last.is_known_to(answer.vote) && last.index <= INDEX_MAX);
        if plausible { Ok(()) } else { Err(Refused::Answer("us for a log that it cannot have")) }
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
                proposal.verdict = verdict(&trust, &proposal.envelope);
            }
        }
        Ok(request)
    }

    fn entries_follow(&self, message: &WireAppend) -> Result<(), Refused> {
        let plausible = |id: &WireLogId| id.is_known_to(message.vote) && id.index <= INDEX_MAX;
        let ends = message.previous.iter().chain(&message.committed);
        if message.entries.len() > ENTRIES_MAX || !ends.into_iter().all(plausible) {
            return Err(Refused::Entries);
        }
        let mut next = message.previous.map_or(0, |previous| previous.index + 1);
        let mut by = message.previous.map_or((0, 0), |previous| previous.by());
        for WireEntry { id, payload } in &message.entries {
            let sound = id.index == next && id.by() >= by && plausible(id);
            // The very first entry is the library's own, of nobody.
            let of_a_voter = self.voters.contains(&id.node) || id.index == 0;
            if !sound || !of_a_voter {
                return Err(Refused::Entries);
            }
            if let WirePayload::Membership(membership) = payload {
                self.membership(membership)?;
            }
            (next, by) = (next + 1, id.by());
        }
        Ok(())
    }

    fn membership(&self, membership: &WireMembership) -> Result<(), Refused> {
        let of_the_genesis = membership.voters == [self.voters.clone()] && membership.nodes == self.voters;
        if of_the_genesis { Ok(()) } else { Err(Refused::Membership) }
    }

    /// An envelope that its owner's gateway asks to commit. What `apply` would surely reject takes no room in the log.
    pub fn proposal(&self, peer: &GatewayId, bytes: &[u8]) -> Result<(Envelope, Verdict), Refused> {
        let envelope = Envelope::parse(bytes).map_err(|_| Refused::Envelope)?;
        let header = envelope.header();
        if header.owner != peer.state {
            return Err(Refused::NotTheOwner(header.owner));
        }
        let (trust, epoch) = self.shared.read(|registry| (Arc::clone(registry.trust()), registry.epoch()));
        if header.kind != Kind::Command || header.federation != *trust.federation() || header.epoch != epoch {
            return Err(Refused::Commands);
        }
        let (_, key) = trust.gateway_key(header.owner, &header.key).ok_or(Refused::UnknownKey(header.owner))?;
        envelope.verify(key).map_err(|_| Refused::Signature)?;
        let batch = Batch::from_bytes(envelope.body());
        if batch.is_none_or(|batch| batch.0.len() > limits::COMMANDS_PER_BATCH_MAX) {
            return Err(Refused::Commands);
        }
        Ok((envelope, Verdict::Verified))
    }

    /// A whole snapshot of the leader with this vote. Slow: it reads all of it.
    pub fn snapshot(&self, vote: WireVote, meta: &WireMeta, bytes: &[u8]) -> Result<(), Refused> {
        let doubt = |reason: &str| Err(Refused::Snapshot(reason.to_owned()));
        self.snapshot_meta(vote, meta)?;
        let registry = Registry::from_bytes(bytes).map_err(|cause| Refused::Snapshot(cause.to_string()))?;
        if meta.last.map(|last| last.index) != Some(registry.revision().0) {
            return doubt("its revision is not the index that it is said to stand for");
        }
        if self.genesis.gateways().count() != registry.gateways().count() {
            return doubt("its gateways are not those of the genesis");
        }
        // Not under the lock: checking takes as long as reading, and applying must not wait for it.
        let mine = self.shared.read(Registry::clone);
        Ok(hindsight::check(&mine, &registry)?)
    }

    /// What a snapshot says that it stands for. Stock Raft aborts when this is impossible.
    pub fn snapshot_meta(&self, vote: WireVote, meta: &WireMeta) -> Result<(), Refused> {
        if !vote.committed {
            return Err(Refused::NotElected);
        }
        self.membership(&meta.membership)?;
        let possible = |id: WireLogId| id.is_known_to(vote) && id.index <= INDEX_MAX;
        let known =
            meta.last.zip(meta.membership_at).filter(|(last, at)| at.by() <= last.by() && at.index <= last.index);
        if known.is_some_and(|(last, _)| possible(last)) {
            Ok(())
        } else {
            Err(Refused::Snapshot("its leader cannot have what it is said to stand for".to_owned()))
        }
    }
}

/// Verified, or for `apply` to decide: a key may come with an entry before this one, and a signature that is wrong is
/// wrong for everybody.
fn verdict(trust: &TrustStore, envelope: &Envelope) -> Verdict {
    let header = envelope.header();
    let key = trust.gateway_key(header.owner, &header.key);
    let verified = key.is_some_and(|(_, key)| envelope.verify(key).is_ok());
    if verified { Verdict::Verified } else { Verdict::Unknown }
}
