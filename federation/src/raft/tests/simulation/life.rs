//! A life: one member from a start to its crash. Whatever runs in it dies with it, wherever it waits.

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::{AbortHandle, JoinHandle};

use super::chance::Chance;
use super::disk::Disk;
use super::record::Record;
use crate::raft::types::{Applied, Entry};
use crate::raft::wire::WireVote;

tokio::task_local! {
    static LIFE: Arc<Life>;
}

pub struct Life {
    pub node: u64,
    /// How fast its timers run, in thousandths.
    pub pace: u64,
    pub bug: Option<&'static str>,
    pub disk: Arc<Disk>,
    pub record: Arc<Record>,
    chance: Chance,
    over: AtomicBool,
    tasks: Mutex<Vec<AbortHandle>>,
    spawned: AtomicU64,
}

impl Life {
    pub fn begin(
        node: u64,
        pace: u64,
        bug: Option<&'static str>,
        disk: Arc<Disk>,
        record: Arc<Record>,
        seed: u64,
    ) -> Arc<Life> {
        let (over, tasks, spawned) = Default::default();
        Arc::new(Life { node, pace, bug, disk, record, chance: Chance::seeded(seed), over, tasks, spawned })
    }

    pub fn next(&self) -> u64 {
        self.chance.next()
    }

    /// Begins something that ends with this life.
    pub fn spawn<T: Send + 'static>(life: &Arc<Life>, work: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        let task = tokio::spawn(LIFE.scope(Arc::clone(life), work));
        if life.over.load(Ordering::Relaxed) {
            task.abort();
        }
        let mut tasks = life.tasks.lock().unwrap();
        if life.spawned.fetch_add(1, Ordering::Relaxed) % 256 == 255 {
            tasks.retain(|task| !task.is_finished());
        }
        tasks.push(task.abort_handle());
        task
    }

    /// The crash: nothing in this life takes another step.
    pub fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
        self.tasks.lock().unwrap().drain(..).for_each(|task| task.abort());
    }
}

pub fn current() -> Option<Arc<Life>> {
    LIFE.try_with(Arc::clone).ok()
}

pub fn is_simulated() -> bool {
    LIFE.try_with(|_| ()).is_ok()
}

pub fn skewed(duration: Duration) -> Duration {
    let pace = LIFE.try_with(|life| life.pace).unwrap_or(1_000);
    if pace == 1_000 { duration } else { duration.mul_f64(pace as f64 / 1_000.0) }
}

pub fn is_planted(bug: &str) -> bool {
    LIFE.try_with(|life| life.bug == Some(bug)).unwrap_or(false)
}

pub fn spawn_simulated<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    Life::spawn(&current().expect("invariant: a simulated member has a life"), work)
}

pub async fn disk_takes_time() {
    if let Some(life) = current() {
        let slow_us = life.disk.slow_us();
        tokio::time::sleep(Duration::from_micros(life.chance.between(100, slow_us))).await;
    }
}

pub fn vote_is_recovered(vote: Option<WireVote>) {
    let _outside = LIFE.try_with(|life| life.record.vote_is_recovered(life.node, vote));
}

pub fn vote_is_saved(vote: WireVote) {
    let _outside = LIFE.try_with(|life| life.record.vote_is_saved(life.node, vote));
}

pub fn is_applied(entry: &Entry, applied: &Applied) {
    let _outside = LIFE.try_with(|life| life.record.is_applied(life.node, entry, applied));
}
