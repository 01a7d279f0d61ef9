//! Probe: where the simulation takes the place of threads and of the watch channel, looks in, and plants bugs. Outside of
//! tests there is none of it: every function here is empty and gone, and the channel is tokio's.

#[cfg(test)]
pub use super::tests::simulation::life::{
    disk_takes_time, is_applied, is_planted, is_simulated, spawn_simulated, vote_is_recovered, vote_is_saved,
};
/// Tokio's, which wakes those who wait in a random order; in tests one that has an order.
#[cfg(test)]
pub use super::tests::simulation::watch;
#[cfg(not(test))]
pub use real::*;
#[cfg(not(test))]
pub use tokio::sync::watch;

#[cfg(not(test))]
mod real {
    use std::future::Future;

    use crate::raft::types::{Applied, Entry};
    use crate::raft::wire::WireVote;

    /// Whether this is part of a simulated member: everything happens in one thread and in virtual time.
    pub const fn is_simulated() -> bool {
        false
    }

    /// Whether the simulation wants this mistake made here.
    pub const fn is_planted(_bug: &str) -> bool {
        false
    }

    pub fn spawn_simulated<T: Send + 'static>(
        _: impl Future<Output = T> + Send + 'static,
    ) -> tokio::task::JoinHandle<T> {
        unreachable!("invariant: nothing is simulated outside of tests")
    }

    pub async fn disk_takes_time() {}

    pub fn vote_is_recovered(_: Option<WireVote>) {}

    pub fn vote_is_saved(_: WireVote) {}

    pub fn is_applied(_: &Entry, _: &Applied) {}
}
