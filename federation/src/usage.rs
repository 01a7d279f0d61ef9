//! Usage: who used how much of whose GPUs.
//! Invariant: whole GPU-seconds, and no clock but the one that the pool's host states.

use std::collections::BTreeMap;

use certs::MemberState;
use serde::{Deserialize, Serialize};

use crate::{
    limits::{USE_DECAY_DIVISOR, USE_DECAY_STEP_MS, USE_DECAY_STEPS_MAX},
    time::Timestamp,
};

/// What jobs of one state used of another's factories (or of its own), since the genesis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    pub gpu_seconds: u64,
    /// Attempts that ended after they had started to run.
    pub jobs: u64,
}

impl Flow {
    pub(crate) fn add(&mut self, gpu_seconds: u64) {
        self.gpu_seconds = self.gpu_seconds.saturating_add(gpu_seconds);
        self.jobs += 1;
    }
}

/// Use of one pool that fades: it decides whose turn it is, and a state that used much last month starts afresh.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecentUse(BTreeMap<MemberState, u64>);

impl RecentUse {
    /// GPU-seconds that still count for `home`.
    pub fn of(&self, home: MemberState) -> u64 {
        self.0.get(&home).copied().unwrap_or(0)
    }

    /// Every state whose use still counts, with its GPU-seconds.
    pub fn iter(&self) -> impl Iterator<Item = (MemberState, u64)> + '_ {
        self.0.iter().map(|(home, gpu_seconds)| (*home, *gpu_seconds))
    }

    pub(crate) fn add(&mut self, home: MemberState, gpu_seconds: u64) {
        if gpu_seconds > 0 {
            let used = self.0.entry(home).or_default();
            *used = used.saturating_add(gpu_seconds);
        }
    }

    /// Lets fade what was used, by the whole steps between two times of the pool's clock.
    pub(crate) fn decay(&mut self, before: Timestamp, now: Timestamp) {
        let step = |at: Timestamp| at.0 / USE_DECAY_STEP_MS;
        let steps = step(now).saturating_sub(step(before)).min(USE_DECAY_STEPS_MAX);
        if steps == 0 {
            return;
        }
        self.0.retain(|_, used| {
            for _ in 0..steps {
                // Rounded up: the last GPU-second fades too.
                *used -= used.div_ceil(USE_DECAY_DIVISOR);
            }
            *used > 0
        });
    }
}
