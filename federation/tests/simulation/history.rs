//! History: what really happened, noted where it happens and never read by a gateway.
//! Invariant: notes are only added; what a crashed gateway forgets stays here.

use std::collections::BTreeMap;

use federation::{JobId, PoolId};

pub type AttemptId = (JobId, u32);

#[derive(Default)]
pub struct History {
    /// Submissions that their home said yes to, and when.
    pub acknowledged: BTreeMap<JobId, u64>,
    /// The last order that came for an attempt, and what the host's pack said then.
    pub orders: BTreeMap<AttemptId, Order>,
    /// Tasks that left home.
    pub left: Vec<Left>,
    /// What drivers were told to start.
    pub handed_over: Vec<HandedOver>,
    /// Processes, in the order in which they began.
    pub runs: Vec<Run>,
    /// Repeated submissions that were refused after they had been acknowledged.
    pub contradicted: u64,
    /// Rises with every note.
    pub notes: u64,
}

/// An order as it came to its host.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    pub host: usize,
    /// Of the host, counted from its first start.
    pub life: u32,
    pub at_ms: u64,
    /// What the host's own pack said at that moment, as the host's replica had it.
    pub permitted: bool,
    /// What it said in the log.
    pub permitted_in_log: bool,
}

#[derive(Clone, Debug)]
pub struct Left {
    pub attempt: AttemptId,
    /// Whether home's own pack let it leave, and the receiver was the current attempt's host, as home's replica had it.
    pub rightly: bool,
}

#[derive(Clone, Debug)]
pub struct HandedOver {
    pub attempt: AttemptId,
    pub host: usize,
    pub life: u32,
    pub at_ms: u64,
    pub order: Option<Order>,
    /// The host's replica had it as started, and nobody had asked for its end.
    pub wanted: bool,
    /// What the host's pack, in its own replica, said by then: it is not asked once more after `Start`.
    pub permitted_by_then: bool,
}

/// One process, from its start until nothing is left of it.
#[derive(Clone, Debug)]
pub struct Run {
    pub attempt: AttemptId,
    pub pool: PoolId,
    pub gpus: u32,
    pub exclusive: bool,
    pub began_ms: u64,
    pub gone_ms: Option<u64>,
    /// The host's clock was set back while it ran, or before its end was said.
    pub clock_set_back: bool,
}

impl History {
    pub fn note(&mut self) -> &mut History {
        self.notes += 1;
        self
    }

    pub fn runs_of(&self, attempt: AttemptId) -> impl Iterator<Item = &Run> {
        self.runs.iter().filter(move |run| run.attempt == attempt)
    }
}
