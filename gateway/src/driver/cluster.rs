//! The driver of a cluster: what is the same whoever schedules there, Slurm or Kubernetes.
//!
//! Invariants: what answers from memory waits for neither a disk nor a scheduler; what may wait for a disk has threads of
//! this cluster's own.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use federation::{CapacityReport, JobId, PoolId};
use futures_util::future::{BoxFuture, FutureExt};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::folder::Key;
use super::ledger::{Entry, Ledger};
use super::threads::Threads;
use super::{
    AttemptRecord, AttemptStatus, Driver, DriverError, LOG_CHUNK_BYTES_MAX, LogChunk, LogStream, WorkOrder, io_failed,
};

/// Between two looks at what is shown of the pools: silence shows by itself.
const SHOWN_EVERY: Duration = Duration::from_millis(500);

/// A scheduler of a cluster's own. Whatever may wait for a disk is called on a thread that may block.
pub(super) trait Scheduler: Send + Sync + 'static {
    type Entry: Entry;

    fn ledger(&self) -> &Ledger<Self::Entry>;

    fn pools(&self) -> Vec<PoolId>;

    /// What a pool lends, from memory.
    fn report(&self, pool: PoolId) -> Option<CapacityReport>;

    /// Would this cluster ever run it? Every state reads why not.
    fn check(&self, order: &WorkOrder) -> Result<(), String>;

    /// May wait for a disk.
    fn submit(&self, order: WorkOrder) -> Result<(), DriverError>;

    /// May wait for the gateway's own disk, and for nothing else: it has to work when the cluster's hangs.
    fn cancel(&self, key: Key) -> io::Result<()>;

    /// At most `max` bytes of what an attempt has written, from `offset`. May wait for a disk.
    fn read_log(
        &self,
        key: Key,
        entry: &Self::Entry,
        stream: LogStream,
        offset: u64,
        max: usize,
    ) -> io::Result<Vec<u8>>;

    /// What is known of an attempt that is not done. May wait for a disk.
    fn progress(&self, key: Key, entry: &Self::Entry) -> Option<AttemptRecord>;

    /// Removes what there is of an attempt beside the ledger. May wait for a disk.
    fn remove(&self, key: Key, entry: &Self::Entry) -> io::Result<()>;
}

/// Threads for orders, and as many for each of what else is asked of a cluster's files.
const THREADS: usize = 16;

/// The driver of one cluster. Needs a tokio runtime around it.
pub(super) struct ClusterDriver<S> {
    cluster: Arc<S>,
    orders: Threads,
    reads: Threads,
    forgets: Threads,
    /// What waits for the gateway's own disk alone does not wait for those.
    notes: Threads,
    _stop: DropGuard,
}

impl<S: Scheduler> ClusterDriver<S> {
    /// Works for as long as the driver lives.
    pub fn run<const N: usize>(cluster: Arc<S>, work: [BoxFuture<'static, ()>; N]) -> ClusterDriver<S> {
        let stop = CancellationToken::new();
        for work in work.into_iter().chain([watch_reports(Arc::clone(&cluster)).boxed()]) {
            let stop = stop.clone();
            tokio::spawn(async move { stop.run_until_cancelled(work).await });
        }
        let [orders, reads, forgets, notes] = std::array::from_fn(|_| Threads::new(THREADS));
        ClusterDriver { cluster, orders, reads, forgets, notes, _stop: stop.drop_guard() }
    }

    fn blocking<T: Send + 'static>(
        &self,
        threads: &Threads,
        what: &'static str,
        work: impl FnOnce(&S) -> Result<T, DriverError> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, DriverError>> {
        let cluster = Arc::clone(&self.cluster);
        let working = threads.run(move || work(&cluster));
        async move { working.await.map_err(|cause| io_failed(what)(io::Error::other(cause)))? }.boxed()
    }
}

impl<S: Scheduler> Driver for ClusterDriver<S> {
    fn pools(&self) -> Vec<PoolId> {
        self.cluster.pools()
    }

    fn capacity(&self, pool: &PoolId) -> Option<CapacityReport> {
        self.cluster.report(*pool)
    }

    fn check(&self, order: &WorkOrder) -> Result<(), String> {
        self.cluster.check(order)
    }

    fn submit(&self, order: WorkOrder) -> BoxFuture<'_, Result<(), DriverError>> {
        self.blocking(&self.orders, "take the order", move |cluster| cluster.submit(order))
    }

    fn poll(&self, job: &JobId, attempt: u32) -> AttemptStatus {
        self.cluster.ledger().status((*job, attempt))
    }

    fn cancel(&self, job: &JobId, attempt: u32) -> BoxFuture<'_, Result<(), DriverError>> {
        let key = (*job, attempt);
        self.blocking(&self.notes, "cancel the attempt", move |cluster| {
            cluster.cancel(key).map_err(io_failed("note the cancellation"))
        })
    }

    /// Its offers promise no leases: without this gateway nothing here stops a job.
    fn renew(&self, _: &JobId, _: u32, _: u64) -> BoxFuture<'_, Result<(), DriverError>> {
        async { Ok(()) }.boxed()
    }

    fn logs(
        &self,
        job: &JobId,
        attempt: u32,
        stream: LogStream,
        offset: u64,
        max: usize,
    ) -> BoxFuture<'_, Result<LogChunk, DriverError>> {
        let (job, key) = (*job, (*job, attempt));
        self.blocking(&self.reads, "read the log", move |cluster| {
            // Read before the log: what is done writes nothing more.
            let row = cluster.ledger().with(key, |row| (Arc::clone(&row.entry), row.is_done()));
            let (entry, is_done) = row.ok_or(DriverError::Unknown { job, attempt })?;
            let max = max.min(LOG_CHUNK_BYTES_MAX);
            let read = cluster.read_log(key, &entry, stream, offset, max);
            let bytes = read.map_err(io_failed("read the log"))?;
            let end = is_done && bytes.len() < max.max(1);
            Ok(LogChunk { next_offset: offset + bytes.len() as u64, bytes, end })
        })
    }

    fn record(&self, job: &JobId, attempt: u32) -> BoxFuture<'_, Option<AttemptRecord>> {
        let key = (*job, attempt);
        let reading = self.blocking(&self.reads, "read the record", move |cluster| {
            let ledger = cluster.ledger();
            Ok(match ledger.with(key, |row| (Arc::clone(&row.entry), row.is_done())) {
                None => None,
                Some((_, true)) => Some(ledger.done(key).map_or_else(AttemptRecord::unreadable, |done| done.record)),
                Some((entry, false)) => cluster.progress(key, &entry),
            })
        });
        reading.map(|read| read.ok().flatten()).boxed()
    }

    fn forget(&self, job: &JobId, attempt: u32) -> BoxFuture<'_, Result<(), DriverError>> {
        let (job, key, failed) = (*job, (*job, attempt), io_failed("remove the attempt"));
        // Another driver's attempt does not wait until this cluster's files answer.
        if self.cluster.ledger().entry(key).is_none() {
            return async { Ok(()) }.boxed();
        }
        let cluster = Arc::clone(&self.cluster);
        let forgetting = move || cluster.ledger().forget(key, |entry| cluster.remove(key, entry));
        let Some(forgetting) = self.forgets.try_run(key, forgetting) else {
            let cause = "an earlier try, or too many others, have not come back";
            return async move { Err(failed(io::Error::other(cause))) }.boxed();
        };
        async move {
            match forgetting.await.unwrap_or_else(|cause| Err(io::Error::other(cause))) {
                Ok(true) => Ok(()),
                Ok(false) => Err(DriverError::NotDone { job, attempt }),
                Err(cause) => Err(failed(cause)),
            }
        }
        .boxed()
    }

    fn held(&self) -> Vec<(JobId, u32)> {
        self.cluster.ledger().keys()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.cluster.ledger().changes()
    }
}

/// Ticks when what is shown of some pool has changed, also when it has by silence.
async fn watch_reports<S: Scheduler>(cluster: Arc<S>) {
    let mut shown = HashMap::new();
    loop {
        for pool in cluster.pools() {
            let now = cluster.report(pool).map(|it| (it.lendable, it.problem));
            if shown.insert(pool, now.clone()).is_none_or(|before| before != now) {
                cluster.ledger().tick();
            }
        }
        tokio::time::sleep(SHOWN_EVERY).await;
    }
}
