//! The built-in driver: attempts as processes of this machine, on GPUs that the configuration declares.
//!
//! An attempt's truth is its folder; what is here in memory is a copy of it that a follower keeps fresh.
//! Invariants: a folder appears before its supervisor is started; what answers from memory never waits for a
//! disk; dropping the driver, or killing its process, leaves every running attempt running.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use federation::{CapacityReport, End, JobId, NodeCount, PoolId, Reason, Timestamp};
use futures_util::future::{BoxFuture, FutureExt};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::attempts::{Attempt, Attempts};
use super::disk::free_bytes;
use super::folder::{Done, Folder, Key, Seen};
use super::follower::follow;
use super::order::{BadOrder, Order, Rules};
use super::phase::Phase;
use super::settings::{LocalSettings, NoDriver};
use super::{
    AttemptRecord, AttemptStatus, Driver, DriverError, LOG_CHUNK_BYTES_MAX, LogChunk, LogStream, WorkOrder, io_failed,
    now_ms,
};

/// Between two looks at attempts that are stopping.
const STOP_POLL: Duration = Duration::from_millis(20);
/// Between two looks at the disk.
const DISK_POLL: Duration = Duration::from_millis(500);
const DISK_SHORT: &str = "the machine is nearly out of disk";

/// The driver. Needs a tokio runtime around it.
pub struct Local {
    shared: Arc<Shared>,
    _stop_following: DropGuard,
}

pub(super) struct Shared {
    pub settings: LocalSettings,
    pub attempts: Attempts,
    rules: Rules,
    /// Held while an attempt appears or disappears, over the disk's part of it too: of two orders for one attempt,
    /// or for one device, one comes first. Only for threads that may block.
    claims: Mutex<()>,
    disk: DiskSeen,
    stop: CancellationToken,
}

/// When the disk was last looked at: Unix milliseconds in the upper bits, whether it is short in the lowest.
struct DiskSeen(AtomicU64);

impl Local {
    /// Starts a driver and takes up every attempt that an earlier one left.
    pub fn start(settings: LocalSettings) -> Result<Local, NoDriver> {
        let (settings, rules) = settings.prepare()?;
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared {
            attempts: Attempts::new(&settings.pools),
            settings,
            rules,
            claims: Mutex::default(),
            disk: DiskSeen::new(),
            stop: stop.clone(),
        });
        shared.take_up().map_err(|cause| NoDriver::Folder { path: shared.settings.attempts.clone(), cause })?;
        shared.spawn(Arc::clone(&shared).watch_disk());
        Ok(Local { shared, _stop_following: stop.drop_guard() })
    }
}

impl Driver for Local {
    fn pools(&self) -> Vec<PoolId> {
        self.shared.attempts.pools().map(|pool| pool.id).collect()
    }

    fn capacity(&self, pool: &PoolId) -> Option<CapacityReport> {
        let pool = self.shared.attempts.pools().find(|it| it.id == *pool)?;
        let (at, short) = self.shared.disk.get();
        let lendable = NodeCount { gpus: pool.gpus_per_node, nodes: pool.nodes };
        Some(CapacityReport {
            pool: pool.id,
            lendable: if short { vec![] } else { vec![lendable] },
            at,
            problem: short.then(|| Reason::new(DISK_SHORT)),
        })
    }

    fn check(&self, order: &WorkOrder) -> Result<(), String> {
        self.shared.parse(order.clone()).map(drop).map_err(|bad| bad.to_string())
    }

    fn submit(&self, order: WorkOrder) -> BoxFuture<'_, Result<(), DriverError>> {
        let shared = Arc::clone(&self.shared);
        on_a_thread("take the order", move || shared.submit(order))
    }

    fn poll(&self, job: &JobId, attempt: u32) -> AttemptStatus {
        self.shared.attempts.status((*job, attempt))
    }

    fn cancel(&self, job: &JobId, attempt: u32) -> BoxFuture<'_, Result<(), DriverError>> {
        let (shared, key) = (Arc::clone(&self.shared), (*job, attempt));
        on_a_thread("cancel the attempt", move || shared.cancel(key))
    }

    fn renew(&self, job: &JobId, attempt: u32, until_ms: u64) -> BoxFuture<'_, Result<(), DriverError>> {
        let (shared, key) = (Arc::clone(&self.shared), (*job, attempt));
        on_a_thread("renew the lease", move || shared.renew(key, until_ms))
    }

    fn logs(
        &self,
        job: &JobId,
        attempt: u32,
        stream: LogStream,
        offset: u64,
        max: usize,
    ) -> BoxFuture<'_, Result<LogChunk, DriverError>> {
        let (shared, key) = (Arc::clone(&self.shared), (*job, attempt));
        on_a_thread("read the log", move || shared.logs(key, stream, offset, max))
    }

    fn record(&self, job: &JobId, attempt: u32) -> BoxFuture<'_, Option<AttemptRecord>> {
        let (shared, key) = (Arc::clone(&self.shared), (*job, attempt));
        on_a_thread("read the record", move || Ok(shared.record(key))).map(|read| read.ok().flatten()).boxed()
    }

    fn forget(&self, job: &JobId, attempt: u32) -> BoxFuture<'_, Result<(), DriverError>> {
        let (shared, key) = (Arc::clone(&self.shared), (*job, attempt));
        on_a_thread("remove the attempt", move || shared.forget(key))
    }

    fn held(&self) -> Vec<(JobId, u32)> {
        self.shared.attempts.keys()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.shared.attempts.changes()
    }
}

/// Asks every attempt below a data folder to stop, and waits until none of them runs; false if some still do after
/// `at_most`. For whoever takes the whole folder away: no gateway may be at work in it.
pub async fn stop_attempts(data_dir: &Path, at_most: Duration) -> io::Result<bool> {
    let attempts = match Folder::list(&data_dir.join("attempts")) {
        Ok(attempts) => attempts,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(cause) => return Err(cause),
    };
    for (_, folder) in attempts.iter().filter(|(_, folder)| !folder.is_done()) {
        folder.request_cancel()?;
    }
    // One that nobody supervises has a free lock, and will not run any more.
    let runs = |folder: &Folder| matches!(folder.look(), Ok(Seen::Alive));
    let over = async {
        while attempts.iter().any(|(_, folder)| runs(folder)) {
            tokio::time::sleep(STOP_POLL).await;
        }
    };
    Ok(tokio::time::timeout(at_most, over).await.is_ok())
}

impl Shared {
    fn parse(&self, work: WorkOrder) -> Result<Order, BadOrder> {
        self.attempts.fits(&work.pool, work.gpus)?;
        Order::parse(work, self.rules.clone())
    }

    fn submit(self: &Arc<Self>, work: WorkOrder) -> Result<(), DriverError> {
        let (gpus, nodes) = (work.gpus, work.nodes);
        let parsed = self.parse(work);
        let mut order = parsed.map_err(|bad| DriverError::Refused(Reason::new(&bad.to_string())))?;
        {
            let _claim = self.claim();
            if self.attempts.phase(order.key()).is_some() {
                return Ok(());
            }
            order.devices = self.attempts.assign(&order.pool, gpus, nodes)?;
            let claimed = Folder::claim(&self.settings.attempts, &order);
            claimed.map_err(io_failed("write the order"))?;
            self.attempts.insert(order.key(), Attempt::of(&order));
        }
        self.follow(order.key());
        Ok(())
    }

    fn cancel(&self, key: Key) -> Result<(), DriverError> {
        let _claim = self.claim();
        match self.attempts.phase(key) {
            Some(Phase::Done { .. }) => Ok(()),
            Some(_) => self.folder(key).request_cancel().map_err(io_failed("ask for the stop")),
            None => {
                // An order that is still on its way must find that it came too late.
                let done = Done { end: End::Canceled, record: AttemptRecord::default() };
                let buried = Folder::bury(&self.settings.attempts, key, &done);
                buried.map_err(io_failed("note the cancellation"))?;
                self.attempts.insert(key, Attempt::gone(Phase::of(&Ok(done))));
                Ok(())
            }
        }
    }

    fn renew(&self, key: Key, until_ms: u64) -> Result<(), DriverError> {
        match self.attempts.phase(key) {
            Some(Phase::Starting | Phase::Running { .. }) => {
                self.folder(key).write_lease(until_ms).map_err(io_failed("renew the lease"))
            }
            Some(Phase::Done { .. }) | None => Ok(()),
        }
    }

    fn logs(&self, (job, attempt): Key, stream: LogStream, offset: u64, max: usize) -> Result<LogChunk, DriverError> {
        // Read before the log: what is done writes nothing more.
        let phase = self.attempts.phase((job, attempt));
        let phase = phase.ok_or(DriverError::Unknown { job, attempt })?;
        let mut bytes = Vec::new();
        let limit = max.min(LOG_CHUNK_BYTES_MAX);
        match File::open(self.folder((job, attempt)).log(stream.executor, stream.pipe)) {
            Ok(mut log) => {
                log.seek(SeekFrom::Start(offset))
                    .and_then(|_| log.take(limit as u64).read_to_end(&mut bytes))
                    .map_err(io_failed("read the log"))?;
            }
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {}
            Err(cause) => return Err(io_failed("read the log")(cause)),
        }
        let end = matches!(phase, Phase::Done { .. }) && bytes.len() < limit.max(1);
        Ok(LogChunk { next_offset: offset + bytes.len() as u64, bytes, end })
    }

    fn record(&self, key: Key) -> Option<AttemptRecord> {
        let folder = self.folder(key);
        match self.attempts.phase(key)? {
            Phase::Starting | Phase::Running { .. } => folder.state(),
            Phase::Done { .. } => Some(folder.done().map_or_else(AttemptRecord::unreadable, |done| done.record)),
        }
    }

    fn forget(&self, key: Key) -> Result<(), DriverError> {
        let (job, attempt) = key;
        let failed = io_failed("remove the attempt");
        let gone = {
            let _claim = self.claim();
            match self.attempts.phase(key) {
                None => return Ok(()),
                Some(Phase::Done { .. }) => {}
                Some(_) => return Err(DriverError::NotDone { job, attempt }),
            }
            let gone = self.folder(key).forget(&self.settings.attempts).map_err(&failed)?;
            self.attempts.remove(key);
            gone
        };
        // It may be large. What is left of it after a crash is swept at the next start.
        gone.remove().map_err(failed)
    }

    /// Reads every folder that is there. One that is damaged keeps none of the others from going on.
    fn take_up(self: &Arc<Self>) -> io::Result<()> {
        for (key, folder) in Folder::list(&self.settings.attempts)? {
            if folder.is_done() {
                self.attempts.insert(key, Attempt::gone(Phase::of(&folder.done())));
                // A supervisor may still be at it, and its files may be many.
                tokio::task::spawn_blocking(move || clear(&folder));
                continue;
            }
            let attempt = folder.order().map_or_else(
                |cause| {
                    tracing::error!(folder = %folder.path().display(), %cause, "an order is unreadable");
                    Attempt::unreadable()
                },
                |order| Attempt::of(&order),
            );
            self.attempts.insert(key, attempt);
            self.follow(key);
        }
        Ok(())
    }

    fn folder(&self, key: Key) -> Folder {
        Folder::of(&self.settings.attempts, key)
    }

    /// Follows an attempt to its end, whatever that takes.
    fn follow(self: &Arc<Self>, key: Key) {
        self.spawn(follow(key, Arc::clone(self)));
    }

    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        tokio::spawn(async move { stop.run_until_cancelled(work).await });
    }

    async fn watch_disk(self: Arc<Self>) {
        loop {
            let folder = self.settings.attempts.clone();
            let free = tokio::task::spawn_blocking(move || free_bytes(&folder)).await;
            if let Ok(Ok(free)) = free
                && self.disk.set(free < self.settings.disk_reserve)
            {
                self.attempts.tick();
            }
            tokio::time::sleep(DISK_POLL).await;
        }
    }

    fn claim(&self) -> MutexGuard<'_, ()> {
        self.claims.lock().expect("invariant: nothing panics while it makes a claim")
    }
}

impl DiskSeen {
    fn new() -> DiskSeen {
        DiskSeen(AtomicU64::new(now_ms() << 1))
    }

    fn get(&self) -> (Timestamp, bool) {
        let seen = self.0.load(Ordering::Relaxed);
        (Timestamp(seen >> 1), seen & 1 == 1)
    }

    /// True if it was otherwise before.
    fn set(&self, short: bool) -> bool {
        let before = self.0.swap(now_ms() << 1 | u64::from(short), Ordering::Relaxed);
        (before & 1 == 1) != short
    }
}

/// Runs to its end on a thread that may block, also when the caller goes away.
fn on_a_thread<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T, DriverError> + Send + 'static,
) -> BoxFuture<'static, Result<T, DriverError>> {
    let working = tokio::task::spawn_blocking(work);
    async move { working.await.map_err(|cause| io_failed(what)(io::Error::other(cause)))? }.boxed()
}

fn clear(folder: &Folder) {
    if let Err(cause) = folder.clear() {
        tracing::warn!(folder = %folder.path().display(), %cause, "not cleared");
    }
}
