//! Timers: how soon a silent leader is replaced.
//!
//! Invariant: the longest election timeout is the same on every voter of a federation, because a leader's lease is counted
//! with its own and a follower's patience with the follower's.

use openraft::{Config, SnapshotPolicy};

/// Heartbeats and elections, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timers {
    heartbeat_ms: u64,
    election_min_ms: u64,
    election_max_ms: u64,
}

/// Entries after which a snapshot replaces them. If they are large ones, [`super::weight`] has it taken earlier.
pub(super) const SNAPSHOT_ENTRIES: u64 = 2_000;
/// In one message; the sender cuts it by bytes too.
const APPEND_ENTRIES: u64 = 64;
/// A large snapshot over a slow link.
const SNAPSHOT_TIMEOUT_MS: u64 = 60_000;

impl Timers {
    /// For one site: a new leader within about 1.2 s.
    pub fn local() -> Timers {
        Timers { heartbeat_ms: 100, election_min_ms: 400, election_max_ms: 700 }
    }

    /// For 27 capitals: the heartbeat is above the longest round trip; a new leader within about 3 s.
    pub fn wan() -> Timers {
        Timers { heartbeat_ms: 200, election_min_ms: 700, election_max_ms: 1_400 }
    }

    /// How long it takes at most, about, until there is a leader again.
    pub fn fail_over_ms(&self) -> u64 {
        2 * self.election_max_ms
    }

    pub(super) fn config(&self, federation: &str, snapshot_entries: u64) -> Config {
        Config {
            cluster_name: federation.to_owned(),
            heartbeat_interval: self.heartbeat_ms,
            election_timeout_min: self.election_min_ms,
            election_timeout_max: self.election_max_ms,
            enable_pre_vote: Some(true),
            // A leader that nobody answers must not hold off elections for ever.
            quorum_loss_probe_interval: Some(3 * self.election_max_ms),
            snapshot_policy: SnapshotPolicy::LogsSinceLast(snapshot_entries),
            // What stays for a follower that is a little behind; one that is further behind than this gets a snapshot.
            max_in_snapshot_log_to_keep: snapshot_entries / 4,
            replication_lag_threshold: 2 * snapshot_entries,
            max_payload_entries: APPEND_ENTRIES,
            install_snapshot_timeout: SNAPSHOT_TIMEOUT_MS,
            // Entries are sent before they are synced here, so a leader that was killed may have lost what others hold under
            // its term: it comes back as a follower, and writes no second entry under a number that was given out.
            enable_leader_restore: Some(false),
            broadcast_submitted_on_append: Some(true),
            ..Config::default()
        }
    }
}
