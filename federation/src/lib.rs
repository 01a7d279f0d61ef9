//! What is true: the federation's replicated registry and the pure functions over it.
//!
//! Everything here is deterministic; only `raft` moves bytes.

// The words.
pub mod id;
pub mod limits;
pub mod reason;
pub mod shape;
pub mod time;

// The records.
pub mod attempt;
pub mod candidate;
pub mod grant;
pub mod job;
pub mod member;
pub mod offer;
pub mod pack;
pub mod usage;

// How they change.
mod apply;
pub mod command;
mod derived;
mod queue;
pub mod registry;
mod serial;
pub mod silence;

// What follows from them.
pub mod due;
pub mod placement;

// What is signed beside commands.
pub mod genesis;
pub mod mandate;

// How it is agreed.
pub mod raft;

pub use apply::Verdict;
pub use attempt::{Attempt, End};
pub use candidate::{Candidate, Ceiling, NotACeiling};
pub use command::{Batch, Command, Outcome, Rejection, Rerank, Submit};
pub use due::{Action, due};
pub use genesis::{BadGenesis, Genesis, GenesisDraft, GenesisMember};
pub use grant::{Grant, NodeSpan};
pub use id::{BadId, FactoryId, FactoryName, JobId, PoolId, PoolName, Pseudonym};
pub use job::{Job, JobState};
pub use mandate::{BadMandate, Mandate};
pub use member::{GatewayRecord, Member};
pub use offer::{CapacityReport, DeviceModel, Fit, NodeCount, Offer, OfferState};
pub use pack::{PackRecord, PublishPack};
pub use placement::{NoPlacement, Placement, Zone, place};
pub use reason::{BadReason, Reason};
pub use registry::{BadSnapshot, Registry};
pub use shape::{Need, Shape};
pub use silence::{Attest, Clocks, Silence, Watch};
pub use time::{Revision, Timestamp};
pub use usage::Flow;
