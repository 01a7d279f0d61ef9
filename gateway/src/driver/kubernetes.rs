//! The Kubernetes driver: attempts as Jobs of a cluster, each in the namespace that its researcher is mapped to.
//!
//! Nothing of ours runs in a pod: a task's executors are its containers, so a task that needs staging by URL, outputs or
//! redirected streams is refused. The Job's name is the attempt's, and a finalizer keeps it until the end is noted; so an
//! attempt that was asked for twice is one Job.
//!
//! Invariants: an attempt is in the journal before Kubernetes hears of it; it is `Done` only when its pods are over or
//! gone, by the API's word; one task writes to a cluster; what answers from memory waits for neither disk nor API.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use federation::{CapacityReport, End, JobId, PoolId, Reason, Timestamp};
use futures_util::future::{BoxFuture, FutureExt};
use tokio::sync::{Notify, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

mod api;
mod capacity;
mod credentials;
mod entry;
mod logs;
mod manifest;
mod mapping;
mod names;
mod next;
mod observed;
mod outcome;
mod seen;
mod settings;
mod table;
mod tries;
mod watch_cluster;
mod watch_logs;
mod write;

pub use mapping::BadMapping;
pub use names::{BadKubernetesName, LabelValue, ObjectName, QualifiedName};
pub use settings::{KubernetesPool, KubernetesSettings, NoKubernetes};

use self::api::Api;
use self::entry::{Entry, Work};
use self::logs::Logs;
use self::mapping::Mapping;
use self::seen::Seen;
use self::table::{Row, Table};
use super::fault::Fault;
use super::folder::{Done, Key};
use super::journal::Journal;
use super::record::one_line;
use super::{
    AttemptRecord, AttemptStatus, Driver, DriverError, LOG_CHUNK_BYTES_MAX, LogChunk, LogStream, Pipe, WorkOrder,
    now_ms,
};

/// The driver of one cluster. Needs a tokio runtime around it.
pub struct Kubernetes {
    cluster: Arc<Cluster>,
    _stop: DropGuard,
}

struct Cluster {
    settings: KubernetesSettings,
    api: Api,
    journal: Journal<Entry>,
    logs: Logs,
    table: Table,
    /// Held while the journal and the table change together. Only for threads that may block.
    claims: Mutex<()>,
    seen: Mutex<Seen>,
    /// Something of ours has moved.
    look: Notify,
    /// There is something to write.
    write: Notify,
}

impl Kubernetes {
    /// Starts a driver and takes up every attempt that an earlier one left. The API server need not be there.
    pub fn start(settings: KubernetesSettings) -> Result<Kubernetes, NoKubernetes> {
        let cluster = Arc::new(Cluster::open(settings)?);
        cluster.take_up().map_err(|cause| NoKubernetes::Folder { path: cluster.settings.journal.clone(), cause })?;
        let stop = CancellationToken::new();
        let spawn = |work: BoxFuture<'static, ()>| {
            let stop = stop.clone();
            tokio::spawn(async move { stop.run_until_cancelled(work).await });
        };
        spawn(Arc::clone(&cluster).watch_kubernetes().boxed());
        spawn(Arc::clone(&cluster).write_to_kubernetes().boxed());
        spawn(Arc::clone(&cluster).watch_reports().boxed());
        spawn(Arc::clone(&cluster).watch_logs().boxed());
        Ok(Kubernetes { cluster, _stop: stop.drop_guard() })
    }
}

impl Driver for Kubernetes {
    fn pools(&self) -> Vec<PoolId> {
        self.cluster.settings.pools.iter().map(|pool| pool.id).collect()
    }

    fn capacity(&self, pool: &PoolId) -> Option<CapacityReport> {
        let pool = self.cluster.pool(pool)?;
        self.cluster.report(pool.id)
    }

    fn check(&self, order: &WorkOrder) -> Result<(), String> {
        self.cluster.accept(order).map(drop)
    }

    fn submit(&self, order: WorkOrder) -> BoxFuture<'_, Result<(), DriverError>> {
        let cluster = Arc::clone(&self.cluster);
        on_a_thread("take the order", move || cluster.submit(&order))
    }

    fn poll(&self, job: &JobId, attempt: u32) -> AttemptStatus {
        self.cluster.table.status((*job, attempt))
    }

    fn cancel(&self, job: &JobId, attempt: u32) -> BoxFuture<'_, Result<(), DriverError>> {
        let (cluster, key) = (Arc::clone(&self.cluster), (*job, attempt));
        on_a_thread("cancel the attempt", move || cluster.cancel(key))
    }

    fn logs(
        &self,
        job: &JobId,
        attempt: u32,
        stream: LogStream,
        offset: u64,
        max: usize,
    ) -> BoxFuture<'_, Result<LogChunk, DriverError>> {
        let (cluster, key) = (Arc::clone(&self.cluster), (*job, attempt));
        on_a_thread("read the log", move || cluster.logs(key, stream, offset, max))
    }

    fn record(&self, job: &JobId, attempt: u32) -> BoxFuture<'_, Option<AttemptRecord>> {
        let (cluster, key) = (Arc::clone(&self.cluster), (*job, attempt));
        on_a_thread("read the record", move || Ok(cluster.record(key))).map(|read| read.ok().flatten()).boxed()
    }

    fn forget(&self, job: &JobId, attempt: u32) -> BoxFuture<'_, Result<(), DriverError>> {
        let (cluster, key) = (Arc::clone(&self.cluster), (*job, attempt));
        on_a_thread("remove the attempt", move || cluster.forget(key))
    }

    fn held(&self) -> Vec<(JobId, u32)> {
        self.cluster.table.keys()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.cluster.table.changes()
    }
}

impl Cluster {
    fn open(settings: KubernetesSettings) -> Result<Cluster, NoKubernetes> {
        let api = Api::open(&settings)?;
        Cluster::with(settings, api)
    }

    fn with(settings: KubernetesSettings, api: Api) -> Result<Cluster, NoKubernetes> {
        let (mapping, mapping_of) = Mapping::read(&settings.namespaces)?;
        let failed = |cause| NoKubernetes::Folder { path: settings.journal.clone(), cause };
        let journal = Journal::open(&settings.journal).map_err(failed)?;
        let logs = Logs::open(&settings.journal.join("logs")).map_err(failed)?;
        Ok(Cluster {
            api,
            journal,
            logs,
            table: Table::new(),
            claims: Mutex::default(),
            seen: Mutex::new(Seen::new(mapping, mapping_of)),
            look: Notify::new(),
            write: Notify::new(),
            settings,
        })
    }

    /// Reads every entry. One that is damaged keeps none of the others from going on.
    fn take_up(&self) -> io::Result<()> {
        for found in self.journal.load()? {
            let row = match (found.entry, found.done) {
                (Ok(entry), None) => Row::new(entry),
                (Ok(entry), Some(done)) => Row::done(entry, &done),
                (Err(cause), _) => {
                    let (job, attempt) = found.key;
                    tracing::error!(%job, attempt, %cause, "an entry of the journal is unreadable");
                    Row::done(Entry::buried(), &Err(cause))
                }
            };
            self.table.insert(found.key, row);
        }
        Ok(())
    }

    /// Would this cluster ever run it, and as whom? Every state reads why not.
    fn accept(&self, order: &WorkOrder) -> Result<Work, String> {
        let pool = self.pool(&order.pool).ok_or("the pool is not one of this gateway")?;
        let mapped = self.seen().mapping.map(&order.researcher);
        let mapped = mapped.ok_or("this factory has no namespace for the researcher: its operator can map one")?;
        let queue = mapped.queue.as_ref().or(self.settings.queue.as_ref()).map(ObjectName::as_str);
        let made = manifest::make(order, pool, &mapped, queue, self.settings.start).map_err(|bad| bad.to_string())?;
        Ok(Work {
            pool: pool.id,
            namespace: mapped.namespace,
            job: made.job,
            inputs: made.inputs,
            steps: order.executors.len(),
            walltime_s: order.walltime_s,
            start_s: self.settings.start.as_secs(),
        })
    }

    fn submit(&self, order: &WorkOrder) -> Result<(), DriverError> {
        let key = (order.job, order.attempt);
        if self.table.entry(key).is_some() {
            return Ok(());
        }
        let work = self.accept(order).map_err(|reason| DriverError::Refused(Reason::new(&reason)))?;
        let _claim = self.claim();
        if self.table.entry(key).is_some() {
            return Ok(());
        }
        let entry = Entry::new(work);
        self.journal.write(key, &entry).map_err(io("note the order"))?;
        self.table.insert(key, Row::new(entry));
        self.look.notify_one();
        Ok(())
    }

    fn cancel(&self, key: Key) -> Result<(), DriverError> {
        let _claim = self.claim();
        let Some(entry) = self.table.entry(key) else {
            // An order that is still on its way must find that it came too late.
            let done = Done { end: End::Canceled, record: AttemptRecord::default() };
            let entry = Entry::buried();
            let noted = self.journal.write(key, &entry).and_then(|()| self.journal.conclude(key, &done));
            noted.map_err(io("note the cancellation"))?;
            self.table.insert(key, Row::done(entry, &Ok(done)));
            return Ok(());
        };
        let is_done = self.table.with(key, |row| row.is_done()) == Some(true);
        if !is_done && !entry.cancel {
            self.change(key, |entry| entry.cancel = true).map_err(io("note the cancellation"))?;
            self.look.notify_one();
        }
        Ok(())
    }

    /// A pod's log has both streams in one: it answers for `stdout`.
    fn logs(&self, key: Key, stream: LogStream, offset: u64, max: usize) -> Result<LogChunk, DriverError> {
        let (job, attempt) = key;
        // Read before the log: what is done writes nothing more.
        let is_done = self.table.with(key, |row| row.is_done()).ok_or(DriverError::Unknown { job, attempt })?;
        let limit = max.min(LOG_CHUNK_BYTES_MAX);
        let bytes = match stream.pipe {
            Pipe::Stdout => self.logs.read(key, stream.executor as usize, offset, limit).map_err(io("read the log"))?,
            Pipe::Stderr => Vec::new(),
        };
        let end = is_done && bytes.len() < limit.max(1);
        Ok(LogChunk { next_offset: offset + bytes.len() as u64, bytes, end })
    }

    fn record(&self, key: Key) -> Option<AttemptRecord> {
        let row = self.table.with(key, |row| (row.is_done(), Arc::clone(&row.entry), row.memory.pod.clone()));
        let (is_done, entry, pod) = row?;
        match is_done {
            true => Some(self.journal.done(key).map_or_else(unreadable, |done| done.record)),
            false => Some(outcome::record(pod.as_ref(), &self.tails(key, &entry), now_ms())),
        }
    }

    fn tails(&self, key: Key, entry: &Entry) -> BTreeMap<usize, String> {
        let steps = entry.work.as_ref().map_or(0, |work| work.steps);
        (0..steps).filter_map(|step| Some((step, self.logs.tail(key, step).ok()?))).collect()
    }

    fn forget(&self, key: Key) -> Result<(), DriverError> {
        let (job, attempt) = key;
        let failed = io("remove the attempt");
        let _claim = self.claim();
        let Some((entry, is_done)) = self.table.with(key, |row| (Arc::clone(&row.entry), row.is_done())) else {
            return Ok(());
        };
        if !is_done {
            return Err(DriverError::NotDone { job, attempt });
        }
        self.logs.remove(key, entry.work.as_ref().map_or(0, |work| work.steps)).map_err(&failed)?;
        self.journal.remove(key).map_err(&failed)?;
        // Its Job, if it is still there, is nobody's from here on, and swept.
        self.table.remove(key);
        Ok(())
    }

    /// Changes an entry, in the journal first. The caller holds the claims.
    fn change(&self, key: Key, change: impl FnOnce(&mut Entry)) -> io::Result<()> {
        let Some(entry) = self.table.entry(key) else {
            return Ok(());
        };
        let mut changed = (*entry).clone();
        change(&mut changed);
        if changed != *entry {
            self.journal.write(key, &changed)?;
            self.table.with(key, |row| row.entry = Arc::new(changed));
        }
        Ok(())
    }

    /// [`Cluster::change`] for those who may not block; whether it is noted.
    async fn note(self: &Arc<Self>, key: Key, change: impl FnOnce(&mut Entry) + Send + 'static) -> bool {
        let cluster = Arc::clone(self);
        let noting = move || {
            let _claim = cluster.claim();
            cluster.change(key, change)
        };
        let noted = tokio::task::spawn_blocking(noting).await.map_err(io::Error::other).and_then(|it| it);
        if let Err(cause) = &noted {
            tracing::error!(job = %key.0, %cause, "nothing is done that cannot be noted");
        }
        noted.is_ok()
    }

    fn pool(&self, id: &PoolId) -> Option<&KubernetesPool> {
        self.settings.pools.iter().find(|it| it.id == *id)
    }

    fn reports(&self) -> BTreeMap<PoolId, Option<CapacityReport>> {
        self.settings.pools.iter().map(|pool| (pool.id, self.report(pool.id))).collect()
    }

    fn report(&self, pool: PoolId) -> Option<CapacityReport> {
        self.seen().report(pool, Timestamp(now_ms()), self.api.silence())
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().expect("invariant: nothing panics while it holds what was seen")
    }

    fn claim(&self) -> MutexGuard<'_, ()> {
        self.claims.lock().expect("invariant: nothing panics while it makes a claim")
    }
}

fn unreadable(cause: io::Error) -> AttemptRecord {
    let lines = [Fault::Unreadable.to_string(), one_line(&cause.to_string())];
    AttemptRecord { system_logs: lines.into(), ..AttemptRecord::default() }
}

/// Runs to its end on a thread that may block, also when the caller goes away.
fn on_a_thread<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T, DriverError> + Send + 'static,
) -> BoxFuture<'static, Result<T, DriverError>> {
    let working = tokio::task::spawn_blocking(work);
    async move {
        let failed = |cause| io(what)(io::Error::other(cause));
        working.await.map_err(failed)?
    }
    .boxed()
}

fn io(what: &'static str) -> impl Fn(io::Error) -> DriverError {
    move |cause| DriverError::Io { what, cause }
}
