//! Commands: everything that can be asked of the registry, and every answer it can give.
//! Invariant: a command names the record it changes, so that its owner is known without asking anyone.

use certs::{Digest, GatewayName, MemberState, SignedBundle};
use policy::Labels;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    attempt::End,
    candidate::{Candidate, Ceiling},
    id::{JobId, PoolId, Pseudonym},
    job::JobState,
    offer::{CapacityReport, Offer},
    pack::PublishPack,
    reason::Reason,
    shape::Shape,
    silence::Attest,
    time::{Revision, Timestamp},
};

/// The body of a command envelope: one signature for all the commands that waited together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch(pub Vec<Command>);

impl Batch {
    pub fn to_bytes(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("invariant: a batch in memory always serialises")
    }

    /// The batch in an envelope's body; `None` when the bytes are anything else, trailing bytes included.
    pub fn from_bytes(bytes: &[u8]) -> Option<Batch> {
        postcard::take_from_bytes(bytes).ok().and_then(|(batch, rest)| rest.is_empty().then_some(batch))
    }
}

/// One change to the registry. New kinds go to the end: the number of a kind is part of the format.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// By the state of the pack.
    PublishPack(PublishPack),
    /// By the state of the pool, like the two that follow.
    PublishOffer(Offer),
    WithdrawOffer {
        pool: PoolId,
        sequence: u64,
    },
    ReportCapacity(CapacityReport),
    /// By the home state, like the two that follow.
    Submit(Submit),
    Rerank(Rerank),
    Cancel {
        job: JobId,
        at: Timestamp,
    },
    /// By the state that hosts the current attempt, like the three that follow.
    Start {
        job: JobId,
        attempt: u32,
        at: Timestamp,
    },
    Run {
        job: JobId,
        attempt: u32,
        at: Timestamp,
    },
    Finish {
        job: JobId,
        attempt: u32,
        end: End,
        at: Timestamp,
    },
    /// The host gives the attempt back: it never ran here and never will.
    Decline {
        job: JobId,
        attempt: u32,
        reason: Reason,
        /// While the job's home holds less of the pool, the host would take the job. It waits for that.
        below: Option<Ceiling>,
        at: Timestamp,
    },
    /// By the state of the bundle, and signed by its root inside.
    PublishBundle(SignedBundle),
    /// By any state but the silent one's.
    Attest(Attest),
}

/// A new job. Its home is the state that signs the envelope.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submit {
    pub job: JobId,
    pub home_gateway: GatewayName,
    pub pseudonym: Pseudonym,
    pub shape: Shape,
    pub labels: Labels,
    /// Of the content that the host fetches from home.
    pub payload: Digest,
    /// 0 to 9, 9 first.
    pub priority: u8,
    /// May be run again elsewhere when its host is lost.
    pub restartable: bool,
    /// Must never run twice, not even for a moment.
    pub exclusive: bool,
    /// Permitted pools, best first.
    pub candidates: Vec<Candidate>,
    /// The pack sequences that the permits were decided on; 0 for a state without a pack.
    pub decided_on: Vec<(MemberState, u64)>,
    pub at: Timestamp,
}

/// New candidates for a job that still waits, after policies or offers moved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rerank {
    pub job: JobId,
    /// Permitted pools, best first. None: nothing that could run the job is permitted any more, and it ends.
    pub candidates: Vec<Candidate>,
    pub decided_on: Vec<(MemberState, u64)>,
    /// Why there are no candidates; means nothing when there are.
    pub reason: Option<Reason>,
}

/// What became of one command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    Done,
    Granted {
        pool: PoolId,
        attempt: u32,
    },
    Queued,
    /// The registry already says so; nothing changed.
    Duplicate,
    /// Nothing changed.
    Rejected(Rejection),
    /// An envelope of this key and serial was carried out before; nothing changed. What became of its commands is not
    /// remembered: the registry shows it, and one that was rejected is not there.
    Replayed,
}

/// Why a command, or its whole envelope, changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Error)]
pub enum Rejection {
    // The envelope.
    #[error("the envelope belongs to another federation")]
    UnknownFederation,
    #[error("the envelope belongs to another epoch; the current one is {current}")]
    WrongEpoch { current: u64 },
    #[error("the envelope does not carry commands")]
    WrongKind,
    #[error("the signing key is not one of the state's gateways")]
    UnknownKey,
    #[error("the signature does not match the envelope")]
    BadSignature,
    #[error("serials below {oldest} of this key are no longer accepted")]
    SerialTooOld { oldest: u64 },
    #[error("the envelope's body is not a batch of commands")]
    Undecodable,

    // Who may.
    #[error("the record belongs to another state")]
    NotOwner,
    #[error("the state has no gateway of that name")]
    UnknownGateway,
    #[error("no job of that id is known")]
    UnknownJob,
    #[error("the job id is already taken by another job")]
    JobIdTaken,
    #[error("no pool {pool} is offered")]
    UnknownPool { pool: PoolId },

    // Versions.
    #[error("the policy pack of {state} moved to {current}; decide again")]
    StalePolicy { state: MemberState, current: u64 },
    #[error("the sequence is not the next one; the current one is {current}")]
    StaleSequence { current: u64 },
    #[error("the previous version is not the one that this builds on")]
    WrongPrevious,
    #[error("the trust bundle was refused: {reason}")]
    BadBundle { reason: Reason },

    // Transitions.
    #[error("the attempt is not the current one ({current})")]
    WrongAttempt { current: u32 },
    #[error("a job that is {state} cannot do that")]
    WrongState { state: JobState },
    #[error("the job is being canceled")]
    CancelRequested,
    #[error("{gpus} GPUs of the pool are granted; wait for their jobs or end them first")]
    GrantsOutstanding { gpus: u32 },

    // Bounds.
    #[error("more than {limit} are not accepted")]
    TooMany { limit: u64 },
    #[error("{what} is longer than {limit} bytes")]
    TooLong { what: String, limit: u64 },
    #[error("{what} is not between its bounds; the limit is {limit}")]
    OutOfRange { what: String, limit: u64 },
    #[error("{what} contains a control character")]
    ControlCharacter { what: String },
    #[error("the GPUs do not divide evenly over the nodes, or the walltime is 0")]
    BadShape,
    #[error("a job needs at least one candidate pool, and each only once")]
    BadCandidates,
    #[error("none of the candidate pools can ever run the job")]
    NoneSuits,

    // Silence.
    #[error("the gateway was heard of at revision {at}")]
    HeardSince { at: Revision },
    #[error("another gateway of the state serves the pool; only that one reports of it")]
    NotServing,
}
