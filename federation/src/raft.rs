//! How the members agree: the registry's log, replicated by Raft.
//!
//! The only part of this crate that moves bytes, and the only place that names the Raft library. Everything that arrives
//! from a peer passes [`guard`] first; everything that is stored or sent has a format of our own.

mod acquaintance;
mod assembly;
mod consensus;
mod folder;
#[doc(hidden)]
pub mod fuzzing;
mod guard;
mod hindsight;
mod log_store;
mod network;
mod pipeline;
mod probe;
mod runtime;
mod segment;
mod state_machine;
mod timers;
mod transport;
mod types;
mod wal;
mod weight;
mod wire;

#[cfg(test)]
mod tests;

/// What of the consensus is worth a line in a gateway's log, as a filter of `tracing`. Openraft warns of every heartbeat
/// that a peer misses, ten times a second; that a peer is lost and is back is said once, by who calls it.
pub const LOG_FILTER: &str = "openraft=warn,openraft::core::heartbeat=error,openraft::replication=error,\
                              openraft::engine::handler::replication_handler=error";

pub use consensus::{Consensus, NotLinearizable, ProposeError, RaftConfig, StartError};
pub use guard::Refused;
pub use timers::Timers;
pub use transport::{NodeId, Rpc, Transport, TransportError};
pub use types::Applied;
