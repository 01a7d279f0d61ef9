//! The archive: what became of this home's tasks, kept when the registry has forgotten them.
//!
//! A task's end is kept as soon as the registry shows it; what the host reported follows when the host
//! answers. A task that the registry never took is ended too, so that nobody waits for it for ever.
//!
//! Invariant: a task is on the list from before its commit until its end and its record are on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use federation::raft::Consensus;
use federation::{JobId, Pseudonym, Registry, Timestamp};
use futures_util::future::join_all;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::driver::AttemptRecord;
use crate::home::now;
use crate::orders::{NoOrder, Orders};
use crate::store::{Change, Ended, Store, StoreFailed, Unfinished};

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

/// How often a host was asked for a record, and when it is asked again.
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
            self.ask_for_records(&tasks, &stop);
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
        let mut ends: Vec<(JobId, Instant, Ended)> = Vec::new();
        let (mut taken, mut missing) = (Vec::new(), Vec::new());
        self.consensus.read(|registry| {
            for (job, task) in open {
                match registry.job(&job) {
                    Some(known) if known.state.is_final() => {
                        ends.push((job, task.since, Ended::Job(Box::new(known.clone()))));
                    }
                    Some(_) if !task.taken => taken.push(job),
                    Some(_) => {}
                    None => missing.push((job, task)),
                }
            }
        });
        if !taken.is_empty() {
            self.store.write(Change::Taken(taken.clone())).await?;
            let mut list = self.lock();
            for job in taken {
                if let Some(task) = list.open.get_mut(&job) {
                    task.taken = true;
                }
            }
        }
        ends.extend(self.surely_gone(missing).await);
        let writes = ends.iter().map(|(job, _, ended)| {
            let change = Change::End { job: *job, ended: ended.clone() };
            self.store.write(change)
        });
        for (written, (job, since, ended)) in join_all(writes).await.into_iter().zip(&ends) {
            written?;
            let has_record = matches!(ended, Ended::Job(_));
            if !has_record {
                tracing::warn!(%job, ?ended, "the registry does not hold this task");
                self.store.write(Change::Record { job: *job, record: vec![] }).await?;
            }
            let mut list = self.lock();
            // One that is being submitted again meanwhile is open again.
            if list.open.get(job).is_some_and(|task| task.since == *since) {
                list.remove(job);
                if has_record {
                    list.ended.insert(*job, Asked { times: 0, again: Instant::now() });
                }
            }
        }
        Ok(())
    }

    /// What became of tasks that the registry surely does not hold and will not hold any more.
    async fn surely_gone(&self, missing: Vec<(JobId, OpenTask)>) -> Vec<(JobId, Instant, Ended)> {
        let late = |task: &OpenTask| task.taken || task.since.elapsed() >= NEVER_COMMITTED_AFTER;
        let late: Vec<_> = missing.into_iter().filter(|(_, task)| late(task)).collect();
        if late.is_empty() || self.consensus.linearize(SURE_TIMEOUT).await.is_err() {
            return vec![];
        }
        let gone = |registry: &Registry, job: &JobId| registry.job(job).is_none();
        let ended = |task: OpenTask| if task.taken { Ended::Forgotten } else { Ended::NeverTaken };
        self.consensus.read(|registry| {
            let gone = late.into_iter().filter(|(job, _)| gone(registry, job));
            gone.map(|(job, task)| (job, task.since, ended(task))).collect()
        })
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
        let Some(Ended::Job(ended)) = self.store.ended(&job).map_err(|why| text(&why))? else {
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

    /// Whether there is more to forget.
    async fn sweep(&self) -> bool {
        let (now, more) = (now(), Arc::<AtomicBool>::default());
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
}

/// Reads what [`Change::Record`] wrote; `None` if the host had nothing to report.
pub fn host_record(bytes: &[u8]) -> Result<Option<AttemptRecord>, serde_json::Error> {
    if bytes.is_empty() { Ok(None) } else { serde_json::from_slice(bytes).map(Some) }
}

fn as_json<T: serde::Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("invariant: jobs and records are plain data")
}
