//! Where the time of a submission goes: one counter per stage, read by health and the benchmark.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use serde_json::{Value, json};

/// The stages of a submission, in order.
#[derive(Clone, Copy, Debug)]
pub enum Stage {
    /// Token, by cache or signature.
    Token,
    /// JSON to a submission with shape and labels.
    Parse,
    /// Every state's decision and the ranking.
    DecideAndPlace,
    /// Payload and keys on disk.
    Store,
    /// One commit, and the wait for this replica to show it.
    Commit,
}

const NAMES: [&str; 5] = ["token", "parse", "decide_and_place", "store", "commit"];

/// Counts and sums since the start of the process.
#[derive(Debug, Default)]
pub struct Stages {
    count: [AtomicU64; 5],
    us: [AtomicU64; 5],
}

impl Stages {
    /// Adds what has passed since `since` to a stage and returns the time now.
    pub fn add(&self, stage: Stage, since: Instant) -> Instant {
        let now = Instant::now();
        let us = now.duration_since(since).as_micros() as u64;
        self.count[stage as usize].fetch_add(1, Ordering::Relaxed);
        self.us[stage as usize].fetch_add(us, Ordering::Relaxed);
        now
    }

    /// All stages as JSON: how often, and microseconds in all.
    pub fn read(&self) -> Value {
        NAMES
            .iter()
            .zip(self.count.iter().zip(&self.us))
            .map(|(name, (count, us))| {
                let count = count.load(Ordering::Relaxed);
                let us = us.load(Ordering::Relaxed);
                ((*name).to_owned(), json!({"count": count, "us": us}))
            })
            .collect::<serde_json::Map<_, _>>()
            .into()
    }
}
