//! The archive: what became of this home's tasks, kept when the registry has forgotten them.
//!
//! A task's end is kept as soon as the registry shows it; what the host reported follows when the host
//! answers. A task that the registry never took is ended too, so that nobody waits for it for ever.
//!
//! Invariant: a task is on the list from before its commit until its end and its record are on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use federation::raft::Consensus;
use federation::{Job, JobId, Pseudonym, Timestamp};
use futures_util::future::join_all;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::driver::AttemptRecord;
use crate::home::now;
use crate::orders::{NoOrder, Orders};
use crate::store::{Change, Store, StoreFailed};

/// Ends are looked for this often at most: a look costs one step for each open task.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Even when nothing is heard, what is left is tried again this often.
const TICK: Duration = Duration::from_secs(2);
/// A host that did not answer is asked again after 2 s, then after twice as long, at most after this.
const REST_MAX: Duration = Duration::from_secs(300);
/// Hosts lose what they no longer need to keep; after this many tries (about a day) nothing more will come.
const TRIES_MAX: u32 = 300;
/// Records asked for at once, over all hosts.
const ASKED_AT_ONCE: usize = 16;
/// A commit that is under way for this long is no longer under way: proposals give up after seconds.
const NEVER_COMMITTED_AFTER_MS: u64 = 10 * 60 * 1_000;
/// How long the look before a task is given up may take.
const SURE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the store is swept.
const SWEEP_EVERY: Duration = Duration::from_secs(10);
/// Ended tasks are kept for 90 days.
const TASKS_KEPT_MS: u64 = 90 * 24 * 3_600 * 1_000;

/// What one researcher has under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Open {
    /// Tasks that have not ended.
    pub tasks: usize,
    /// Bytes of their payloads.
    pub bytes: u64,
}

/// The tasks of this home of which something is still to come.
pub struct Archive {
    consensus: Consensus,
    store: Store,
    orders: Arc<Orders>,
    list: Mutex<List>,
    asking: Semaphore,
}

#[derive(Default)]
struct List {
    /// Tasks whose end is still to come.
    open: BTreeMap<JobId, (Pseudonym, u64)>,
    by_owner: BTreeMap<Pseudonym, Open>,
    /// Tasks whose record is still to come.
    ended: BTreeMap<JobId, Asked>,
}

/// How often a host was asked for a record, and when it is asked again.
#[derive(Clone, Copy)]
struct Asked {
    times: u32,
    again: Instant,
}

impl Archive {
    /// Reads from the store what is still to come.
    pub fn open(consensus: Consensus, store: Store, orders: Arc<Orders>) -> Result<Archive, StoreFailed> {
        let mut list = List::default();
        for (job, owner, bytes, ended) in store.unfinished()? {
            if ended {
                list.ended.insert(job, Asked { times: 0, again: Instant::now() });
            } else {
                list.add(job, owner, bytes);
            }
        }
        Ok(Archive { consensus, store, orders, list: Mutex::new(list), asking: Semaphore::new(ASKED_AT_ONCE) })
    }

    /// Puts a task on the list, before it is committed.
    pub fn expect(&self, job: JobId, owner: Pseudonym, bytes: u64) {
        let mut list = self.lock();
        list.remove(&job);
        list.add(job, owner, bytes);
    }

    /// Takes a task off the list: it was refused, so nothing will come.
    pub fn forget(&self, job: &JobId) {
        self.lock().remove(job);
    }

    /// What a researcher has under way.
    pub fn open_of(&self, owner: &Pseudonym) -> Open {
        self.lock().by_owner.get(owner).copied().unwrap_or_default()
    }

    /// Runs until `stop`.
    pub async fn run(self: Arc<Self>, tasks: TaskTracker, stop: CancellationToken) {
        let mut revisions = self.consensus.changes();
        let mut swept = Instant::now();
        loop {
            revisions.borrow_and_update();
            if let Err(failed) = self.keep_ends().await {
                tracing::warn!(%failed, "the ends of some tasks are not kept yet");
            }
            self.ask_for_records(&tasks, &stop);
            if swept.elapsed() >= SWEEP_EVERY {
                swept = Instant::now();
                self.sweep().await;
            }
            let looked_at = Instant::now();
            tokio::select! {
                () = stop.cancelled() => return,
                _ = revisions.changed() => {}
                () = tokio::time::sleep(TICK) => {}
            }
            tokio::time::sleep_until(looked_at + LOOK_EVERY).await;
        }
    }

    /// Keeps every end that the registry shows, in one sync, and ends what the registry never took.
    async fn keep_ends(&self) -> Result<(), StoreFailed> {
        let open: Vec<JobId> = self.lock().open.keys().copied().collect();
        let (ended, missing) = self.consensus.read(|registry| {
            let mut ended: Vec<Arc<Job>> = Vec::new();
            let mut missing = Vec::new();
            for job in open {
                match registry.job_arc(&job) {
                    Some(job) if job.state.is_final() => ended.push(job),
                    Some(_) => {}
                    None => missing.push(job),
                }
            }
            (ended, missing)
        });
        let mut ends: Vec<(JobId, Vec<u8>)> = ended.iter().map(|job| (job.id, as_json(job))).collect();
        ends.extend(self.never_committed(missing).await.into_iter().map(|job| (job, vec![])));
        let writes = ends.iter().map(|(job, ended)| self.store.write(Change::End { job: *job, ended: ended.clone() }));
        for (written, (job, ended)) in join_all(writes).await.into_iter().zip(&ends) {
            written?;
            if ended.is_empty() {
                tracing::warn!(%job, "given up: the registry never took it");
                self.store.write(Change::Record { job: *job, record: vec![] }).await?;
            }
            let mut list = self.lock();
            list.remove(job);
            if !ended.is_empty() {
                list.ended.insert(*job, Asked { times: 0, again: Instant::now() });
            }
        }
        Ok(())
    }

    /// Which of these the registry surely does not hold and will not hold any more.
    async fn never_committed(&self, missing: Vec<JobId>) -> Vec<JobId> {
        let limit = now().0.saturating_sub(NEVER_COMMITTED_AFTER_MS);
        let late: Vec<JobId> = missing.into_iter().filter(|job| job.made_at_ms() < limit).collect();
        if late.is_empty() || self.consensus.linearize(SURE_TIMEOUT).await.is_err() {
            return vec![];
        }
        self.consensus.read(|registry| late.into_iter().filter(|job| registry.job(job).is_none()).collect())
    }

    /// Asks the hosts of ended tasks for their records, each in a task of its own.
    fn ask_for_records(self: &Arc<Self>, tasks: &TaskTracker, stop: &CancellationToken) {
        let due: BTreeSet<JobId> = {
            let list = self.lock();
            list.ended.iter().filter(|(_, asked)| asked.again <= Instant::now()).map(|(job, _)| *job).collect()
        };
        for job in due {
            if let Some(asked) = self.lock().ended.get_mut(&job) {
                let rest = Duration::from_secs(2 << asked.times.min(8)).min(REST_MAX);
                // Not again before this try can have ended.
                *asked = Asked { times: asked.times + 1, again: Instant::now() + rest + crate::orders::ORDER_TIMEOUT };
            }
            let (archive, stop) = (Arc::clone(self), stop.clone());
            tasks.spawn(async move {
                let ask = async {
                    let _place = archive.asking.acquire().await;
                    if let Err(reason) = archive.keep_record(job).await {
                        tracing::info!(%job, reason, "the host's record is not here yet");
                    }
                };
                stop.run_until_cancelled(ask).await;
            });
        }
    }

    async fn keep_record(&self, job: JobId) -> Result<(), String> {
        let text = |why: &dyn std::fmt::Display| why.to_string();
        let bytes = self.store.ended(&job).map_err(|why| text(&why))?.unwrap_or_default();
        let ended = ended_job(&bytes).map_err(|why| text(&why))?;
        let Some(ended) = ended else {
            self.lock().ended.remove(&job);
            return Ok(());
        };
        let record = match self.orders.record(&ended).await {
            Ok(record) => record,
            // It has no part in it any more, or its answer is none: nothing will come.
            Err(NoOrder::NotYours { .. } | NoOrder::Garbled(_)) => None,
            Err(why) if why.is_final() => None,
            Err(_) if self.lock().ended.get(&job).is_none_or(|asked| asked.times >= TRIES_MAX) => None,
            Err(why) => return Err(text(&why)),
        };
        let record = record.map_or(vec![], |record| as_json(&record));
        self.store.write(Change::Record { job, record }).await.map_err(|why| text(&why))?;
        self.lock().ended.remove(&job);
        Ok(())
    }

    async fn sweep(&self) {
        let now = now();
        let tasks_before = Timestamp(now.0.saturating_sub(TASKS_KEPT_MS));
        if let Err(failed) = self.store.write(Change::Sweep { now, tasks_before }).await {
            tracing::warn!(%failed, "the store is not swept");
        }
    }

    fn lock(&self) -> MutexGuard<'_, List> {
        self.list.lock().expect("invariant: nothing panics while it holds the list")
    }
}

impl List {
    fn add(&mut self, job: JobId, owner: Pseudonym, bytes: u64) {
        self.open.insert(job, (owner, bytes));
        let sum = self.by_owner.entry(owner).or_default();
        (sum.tasks, sum.bytes) = (sum.tasks + 1, sum.bytes + bytes);
    }

    fn remove(&mut self, job: &JobId) {
        self.ended.remove(job);
        let Some((owner, bytes)) = self.open.remove(job) else {
            return;
        };
        let sum = self.by_owner.entry(owner).or_default();
        (sum.tasks, sum.bytes) = (sum.tasks - 1, sum.bytes - bytes);
        if sum.tasks == 0 {
            self.by_owner.remove(&owner);
        }
    }
}

/// Reads what [`Change::End`] wrote; `None` if the registry never took the task.
pub fn ended_job(bytes: &[u8]) -> Result<Option<Job>, serde_json::Error> {
    if bytes.is_empty() { Ok(None) } else { serde_json::from_slice(bytes).map(Some) }
}

/// Reads what [`Change::Record`] wrote; `None` if the host had nothing to report.
pub fn host_record(bytes: &[u8]) -> Result<Option<AttemptRecord>, serde_json::Error> {
    if bytes.is_empty() { Ok(None) } else { serde_json::from_slice(bytes).map(Some) }
}

fn as_json<T: serde::Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("invariant: jobs and records are plain data")
}
