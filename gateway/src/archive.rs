//! The archive: what became of this home's tasks, kept when the registry has forgotten them.
//!
//! A task's end is kept as soon as the registry shows it; what the host reported follows when the host
//! answers. A task that the registry never took is ended too, so that nobody waits for it for ever.
//!
//! Invariants: a task is on the list from before its commit until its end and its record are on disk; a host is asked
//! for a record once at a time, and a try counts when it has ended.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use certs::MemberState;
use federation::raft::Consensus;
use federation::{JobId, OfferState, Pseudonym, Timestamp};
use futures_util::future::join_all;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::driver::AttemptRecord;
use crate::home::now;
use crate::orders::{NoOrder, Orders};
use crate::store::{Change, Ended, Store, StoreFailed, Unfinished};

#[cfg(test)]
mod tests;

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
const NEVER_COMMITTED_AFTER: Duration = Duration::from_secs(600);
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
    open: BTreeMap<JobId, OpenTask>,
    by_owner: BTreeMap<Pseudonym, Open>,
    /// Tasks whose record is still to come.
    ended: BTreeMap<JobId, Asked>,
    /// Tasks whose record is being asked for, or is about to be.
    asking: BTreeSet<JobId>,
}

#[derive(Clone, Copy)]
struct OpenTask {
    owner: Pseudonym,
    bytes: u64,
    /// Since the latest try to commit it, or since this process began.
    since: Instant,
    /// The registry was seen to hold it.
    taken: bool,
}

/// How often a host was asked for a record in vain, and when it is asked again.
#[derive(Clone, Copy)]
struct Asked {
    times: u32,
    again: Instant,
}

impl Archive {
    /// Reads from the store what is still to come.
    pub fn open(consensus: Consensus, store: Store, orders: Arc<Orders>) -> Result<Archive, StoreFailed> {
        let (mut list, since) = (List::default(), Instant::now());
        for Unfinished { job, owner, bytes, taken, ended } in store.unfinished()? {
            if ended {
                list.ended.insert(job, Asked { times: 0, again: since });
            } else {
                list.add(job, OpenTask { owner, bytes, since, taken });
            }
        }
        Ok(Archive { consensus, store, orders, list: Mutex::new(list), asking: Semaphore::new(ASKED_AT_ONCE) })
    }

    /// Puts a task on the list, before it is committed.
    pub fn expect(&self, job: JobId, owner: Pseudonym, bytes: u64) {
        let mut list = self.lock();
        list.remove(&job);
        list.add(job, OpenTask { owner, bytes, since: Instant::now(), taken: false });
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
            self.ask_for_records(&tasks, &stop, Instant::now());
            if swept.elapsed() >= SWEEP_EVERY && !self.sweep().await {
                swept = Instant::now();
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

    /// Keeps every end that the registry shows, in one sync, and ends what it surely does not hold any more.
    async fn keep_ends(&self) -> Result<(), StoreFailed> {
        let open: Vec<(JobId, OpenTask)> = self.lock().open.iter().map(|(job, task)| (*job, *task)).collect();
        let mut ends: Vec<(JobId, OpenTask, Change)> = Vec::new();
        let (mut taken, mut missing) = (Vec::new(), Vec::new());
        self.consensus.read(|registry| {
            for (job, task) in open {
                match registry.job(&job) {
                    Some(known) if known.state.is_final() => {
                        ends.push((job, task, Change::End(Box::new(known.clone()))));
                    }
                    Some(_) if !task.taken => taken.push((job, task)),
                    Some(_) => {}
                    None => missing.push((job, task)),
                }
            }
        });
        if !taken.is_empty() {
            self.store.write(Change::Taken(taken.iter().map(|(job, _)| *job).collect())).await?;
            let mut list = self.lock();
            for (job, task) in taken {
                if let Some(task) = list.same_try(&job, &task) {
                    task.taken = true;
                }
            }
        }
        ends.extend(self.surely_gone(missing).await);
        let writes = ends.into_iter().map(async |(job, task, change)| (job, task, self.store.write(change).await));
        for (job, task, written) in join_all(writes).await {
            written?;
            let ended = match self.store.ended(&job) {
                Ok(ended) => ended,
                // The others leave the list all the same.
                Err(failed) => {
                    tracing::warn!(%job, %failed, "how this task ended cannot be read");
                    continue;
                }
            };
            let mut list = self.lock();
            // One that is being submitted again meanwhile is open again.
            if ended.is_none() || list.same_try(&job, &task).is_none() {
                continue;
            }
            list.remove(&job);
            if let Some(Ended::Job(_)) = ended {
                list.ended.insert(job, Asked { times: 0, again: Instant::now() });
            }
        }
        Ok(())
    }

    /// Gives up tasks that the registry surely does not hold and will not hold any more.
    async fn surely_gone(&self, missing: Vec<(JobId, OpenTask)>) -> Vec<(JobId, OpenTask, Change)> {
        let late = |task: &OpenTask| task.taken || task.since.elapsed() >= NEVER_COMMITTED_AFTER;
        let mut gone: Vec<_> = missing.into_iter().filter(|(_, task)| late(task)).collect();
        if gone.is_empty() || self.consensus.linearize(SURE_TIMEOUT).await.is_err() {
            return vec![];
        }
        self.consensus.read(|registry| gone.retain(|(job, _)| registry.job(job).is_none()));
        let mut given_up = Vec::new();
        for (job, task) in gone {
            let created_at = match self.store.task(&job) {
                Ok(Some(record)) => record.created_at,
                Ok(None) => {
                    self.forget(&job);
                    continue;
                }
                // The ends of others are kept all the same.
                Err(failed) => {
                    tracing::warn!(%job, %failed, "the registry does not hold this task, and it is not given up yet");
                    continue;
                }
            };
            // The next try is on the list before it is in the store: what was read is not the next one's.
            if self.lock().same_try(&job, &task).is_some() {
                tracing::warn!(%job, task.taken, "the registry does not hold this task");
                given_up.push((job, task, Change::GiveUp { job, created_at, taken: task.taken }));
            }
        }
        given_up
    }

    /// Asks the hosts of ended tasks for their records, each in a task of its own.
    fn ask_for_records(self: &Arc<Self>, tasks: &TaskTracker, stop: &CancellationToken, now: Instant) {
        let due = self.lock().begin_asks(now);
        for ask in due.into_iter().map(|job| Ask { archive: Arc::clone(self), job }) {
            let stop = stop.clone();
            tasks.spawn(async move {
                let asking = async {
                    let _place = ask.archive.asking.acquire().await;
                    if let Err(reason) = ask.archive.keep_record(ask.job).await {
                        tracing::info!(job = %ask.job, reason, "the host's record is not here yet");
                    }
                };
                stop.run_until_cancelled(asking).await;
            });
        }
    }

    async fn keep_record(&self, job: JobId) -> Result<(), String> {
        let text = |why: &dyn std::fmt::Display| why.to_string();
        // It may have waited long for its place.
        let Some(asked) = self.lock().ended.get(&job).copied() else {
            return Ok(());
        };
        let Some(Ended::Job(ended)) = self.store.ended(&job).map_err(|why| text(&why))? else {
            self.lock().ended.remove(&job);
            return Ok(());
        };
        let record = match self.orders.record(&ended).await {
            Ok(record) => record,
            // It has no part in it any more, or its answer is none: nothing will come.
            Err(NoOrder::NotYours { .. } | NoOrder::Garbled(_)) => None,
            Err(why) if why.is_final() => None,
            Err(_) if asked.times + 1 >= TRIES_MAX => None,
            Err(why) => return Err(text(&why)),
        };
        let record = record.map_or(vec![], |record| as_json(&record));
        self.store.write(Change::Record { job, record }).await.map_err(|why| text(&why))?;
        // A task that was accepted again meanwhile has none, and may have ended again.
        if self.store.record(&job).map_err(|why| text(&why))?.is_some() {
            self.lock().ended.remove(&job);
        }
        Ok(())
    }

    /// Whether there is more to forget.
    async fn sweep(&self) -> bool {
        let me = self.orders.me.state;
        let now = self.consensus.read(|registry| agreed(now(), registry.offers(), me));
        let more = Arc::<AtomicBool>::default();
        let tasks_before = Timestamp(now.0.saturating_sub(TASKS_KEPT_MS));
        let sweep = Change::Sweep { now, tasks_before, more: Arc::clone(&more) };
        if let Err(failed) = self.store.write(sweep).await {
            tracing::warn!(%failed, "the store is not swept");
        }
        more.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, List> {
        self.list.lock().expect("invariant: nothing panics while it holds the list")
    }
}

/// One record that is asked for, until there is an answer or none.
struct Ask {
    archive: Arc<Archive>,
    job: JobId,
}

impl Drop for Ask {
    fn drop(&mut self) {
        self.archive.lock().end_ask(&self.job, Instant::now());
    }
}

/// What is forgotten does not come back, so a clock that runs ahead is not believed alone: it is not later than the newest
/// report of another state's pool. Where there is none, nobody else can tell.
fn agreed<'a>(now: Timestamp, offers: impl Iterator<Item = &'a OfferState>, me: MemberState) -> Timestamp {
    let others = offers.filter(|it| it.offer.pool.factory.state != me && !it.withdrawn && !it.quiet);
    let newest = others.filter_map(|it| Some(it.report.as_ref()?.at)).max();
    newest.map_or(now, |newest| newest.min(now))
}

impl List {
    fn add(&mut self, job: JobId, task: OpenTask) {
        self.open.insert(job, task);
        let sum = self.by_owner.entry(task.owner).or_default();
        (sum.tasks, sum.bytes) = (sum.tasks + 1, sum.bytes + task.bytes);
    }

    fn remove(&mut self, job: &JobId) {
        self.ended.remove(job);
        let Some(task) = self.open.remove(job) else {
            return;
        };
        let sum = self.by_owner.entry(task.owner).or_default();
        (sum.tasks, sum.bytes) = (sum.tasks - 1, sum.bytes - task.bytes);
        if sum.tasks == 0 {
            self.by_owner.remove(&task.owner);
        }
    }

    /// An open task, unless it is being submitted again.
    fn same_try(&mut self, job: &JobId, seen: &OpenTask) -> Option<&mut OpenTask> {
        self.open.get_mut(job).filter(|task| task.since == seen.since)
    }

    /// The tasks whose hosts are to be asked now. None of them is begun again before its [`Ask`] has ended.
    fn begin_asks(&mut self, now: Instant) -> Vec<JobId> {
        let is_due = |(job, asked): &(&JobId, &Asked)| asked.again <= now && !self.asking.contains(*job);
        let due: Vec<JobId> = self.ended.iter().filter(is_due).map(|(job, _)| *job).collect();
        self.asking.extend(&due);
        due
    }

    /// Counts it, unless the task waits for nothing any more.
    fn end_ask(&mut self, job: &JobId, now: Instant) {
        self.asking.remove(job);
        if let Some(asked) = self.ended.get_mut(job) {
            let rest = Duration::from_secs(2 << asked.times.min(8)).min(REST_MAX);
            *asked = Asked { times: asked.times + 1, again: now + rest };
        }
    }
}

/// Reads what [`Change::Record`] wrote; `None` if the host had nothing to report.
pub fn host_record(bytes: &[u8]) -> Result<Option<AttemptRecord>, serde_json::Error> {
    if bytes.is_empty() { Ok(None) } else { serde_json::from_slice(bytes).map(Some) }
}

fn as_json<T: serde::Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("invariant: jobs and records are plain data")
}
