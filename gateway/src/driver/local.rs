//! The built-in driver: attempts as processes of this machine, on GPUs that the configuration declares.
//!
//! An attempt's truth is its folder; what is here in memory is a copy of it that a watch keeps fresh.
//! Invariants: a folder appears before its supervisor is started; devices of an attempt are free again only
//! when it is done; dropping the driver, or killing its process, leaves every running attempt running.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use federation::{CapacityReport, End, JobId, NodeCount, PoolId, Timestamp, short};
use futures_util::future::{BoxFuture, FutureExt};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::devices::Devices;
use super::folder::{Done, Folder, Key};
use super::follower::follow;
use super::order::{Order, Rules};
use super::sandbox::{Isolation, RunAs, Sandbox};

use super::{
    AttemptRecord, AttemptStatus, Driver, DriverError, LOG_CHUNK_BYTES_MAX, LogChunk, LogStream, WorkOrder, now_ms,
};
use crate::config::Config;

/// What the local driver is told.
#[derive(Clone, Debug)]
pub struct LocalSettings {
    /// Where attempts live; one driver per folder.
    pub attempts: PathBuf,
    pub pools: Vec<LocalPool>,
    pub isolation: Isolation,
    /// Give tasks in bubblewrap the machine's network.
    pub network: bool,
    /// For a gateway that runs as root.
    pub run_as: Option<RunAs>,
    /// Folders that `file://` inputs and outputs may name.
    pub file_roots: Vec<PathBuf>,
    /// Hosts that `http(s)://` may name: `name` (then the scheme's own port) or `name:port`.
    pub http_hosts: Vec<String>,
    /// Roots for `https://`; without it there is no https.
    pub https_ca_file: Option<PathBuf>,
    /// Program and first arguments that run an attempt; its folder is appended.
    pub supervisor: Vec<OsString>,
}

/// GPUs that are declared, not detected: numbered over all pools in this order.
#[derive(Clone, Debug)]
pub struct LocalPool {
    pub id: PoolId,
    pub nodes: u32,
    pub gpus_per_node: u32,
    /// Attempts without a GPU that run at once.
    pub task_slots: u32,
}

/// Why there is no driver. Always the operator's to mend.
#[derive(Debug, thiserror::Error)]
pub enum NoDriver {
    #[error("cannot use {path}: {cause}")]
    Folder { path: PathBuf, cause: io::Error },
    #[error("bubblewrap was asked for and does not work here: {0}")]
    Isolation(String),
    #[error("a supervisor needs a program")]
    Supervisor,
}

/// The driver. Needs a tokio runtime around it.
pub struct Local {
    shared: Arc<Shared>,
    _stop_watching: DropGuard,
}

pub(super) struct Shared {
    pub settings: LocalSettings,
    rules: Rules,
    pools: BTreeMap<PoolId, (LocalPool, Devices)>,
    attempts: Mutex<BTreeMap<Key, Attempt>>,
    changes: watch::Sender<u64>,
    stop: CancellationToken,
}

/// One attempt as it was when somebody last looked.
struct Attempt {
    pool: Option<PoolId>,
    devices: Vec<u32>,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Starting,
    Running { started_ms: u64 },
    Done,
}

impl Local {
    /// The driver of a gateway, as it is configured.
    pub fn open(config: &Config) -> Result<Local, NoDriver> {
        let pools = config.offers().into_iter().map(|offer| LocalPool {
            id: offer.pool,
            nodes: offer.nodes,
            gpus_per_node: offer.gpus_per_node,
            task_slots: offer.task_slots,
        });
        Local::start(LocalSettings {
            attempts: config.data_dir.join("attempts"),
            pools: pools.collect(),
            isolation: config.local.isolation,
            network: false,
            run_as: None,
            file_roots: config.local.file_roots.clone(),
            http_hosts: config.local.http_hosts.clone(),
            https_ca_file: config.local.https_ca_file.clone(),
            // The running program itself, also after its file was replaced by an upgrade.
            supervisor: vec!["/proc/self/exe".into(), "run-attempt".into()],
        })
    }

    /// Starts a driver and takes up every attempt that an earlier one left.
    pub fn start(settings: LocalSettings) -> Result<Local, NoDriver> {
        if settings.supervisor.is_empty() {
            return Err(NoDriver::Supervisor);
        }
        let attempts =
            make_private(&settings).map_err(|cause| NoDriver::Folder { path: settings.attempts.clone(), cause })?;
        let rules = rules(&settings)?;
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared {
            pools: numbered(&settings.pools),
            settings: LocalSettings { attempts, ..settings },
            rules,
            attempts: Mutex::default(),
            changes: watch::Sender::new(0),
            stop: stop.clone(),
        });
        shared.take_up().map_err(|cause| NoDriver::Folder { path: shared.settings.attempts.clone(), cause })?;
        Ok(Local { shared, _stop_watching: stop.drop_guard() })
    }

    fn folder(&self, job: &JobId, attempt: u32) -> Folder {
        Folder::of(&self.shared.settings.attempts, (*job, attempt))
    }
}

impl Driver for Local {
    fn capacity(&self) -> BoxFuture<'_, Result<Vec<CapacityReport>, DriverError>> {
        let report = |(pool, _): &(LocalPool, Devices)| CapacityReport {
            pool: pool.id,
            lendable: vec![NodeCount { gpus: pool.gpus_per_node, nodes: pool.nodes }],
            at: Timestamp(now_ms()),
            problem: None,
        };
        let reports = self.shared.pools.values().map(report).collect();
        std::future::ready(Ok(reports)).boxed()
    }

    fn submit(&self, order: WorkOrder) -> BoxFuture<'_, Result<(), DriverError>> {
        let shared = Arc::clone(&self.shared);
        on_a_thread("take the order", move || shared.submit(order))
    }

    fn poll(&self, job: &JobId, attempt: u32) -> AttemptStatus {
        match self.shared.phase((*job, attempt)) {
            None => AttemptStatus::Unknown,
            Some(Phase::Starting) => AttemptStatus::Starting,
            Some(Phase::Running { started_ms }) => AttemptStatus::Running { started_ms },
            Some(Phase::Done) => {
                let done = self.folder(job, attempt).done();
                let Done { end, record } = done.unwrap_or_else(unreadable);
                AttemptStatus::Done { end, record }
            }
        }
    }

    fn cancel(&self, job: &JobId, attempt: u32) -> BoxFuture<'_, Result<(), DriverError>> {
        let (shared, key) = (Arc::clone(&self.shared), (*job, attempt));
        on_a_thread("cancel the attempt", move || shared.cancel(key))
    }

    fn logs(
        &self,
        job: &JobId,
        attempt: u32,
        stream: LogStream,
        offset: u64,
        max: usize,
    ) -> Result<LogChunk, DriverError> {
        let phase = self.shared.phase((*job, attempt));
        let phase = phase.ok_or(DriverError::Unknown { job: *job, attempt })?;
        let path = self.folder(job, attempt).log(stream.executor, stream.pipe);
        let mut bytes = Vec::new();
        let limit = max.min(LOG_CHUNK_BYTES_MAX);
        match File::open(path) {
            Ok(mut log) => {
                log.seek(SeekFrom::Start(offset))
                    .and_then(|_| log.take(limit as u64).read_to_end(&mut bytes))
                    .map_err(io("read the log"))?;
            }
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {}
            Err(cause) => return Err(io("read the log")(cause)),
        }
        // The phase was read before the log: what is done writes nothing more.
        let end = phase == Phase::Done && bytes.len() < limit.max(1);
        Ok(LogChunk { next_offset: offset + bytes.len() as u64, bytes, end })
    }

    fn record(&self, job: &JobId, attempt: u32) -> Option<AttemptRecord> {
        let phase = self.shared.phase((*job, attempt))?;
        let folder = self.folder(job, attempt);
        match phase {
            Phase::Done => Some(folder.done().unwrap_or_else(unreadable).record),
            Phase::Starting | Phase::Running { .. } => folder.state(),
        }
    }

    fn forget(&self, job: &JobId, attempt: u32) -> Result<(), DriverError> {
        let mut attempts = self.shared.lock();
        match attempts.get(&(*job, attempt)).map(|it| it.phase) {
            None => return Ok(()),
            Some(Phase::Done) => {}
            Some(_) => return Err(DriverError::NotDone { job: *job, attempt }),
        }
        let removed = self.folder(job, attempt).remove();
        removed.map_err(io("remove the attempt"))?;
        attempts.remove(&(*job, attempt));
        Ok(())
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }
}

impl Shared {
    fn submit(self: &Arc<Self>, work: WorkOrder) -> Result<(), DriverError> {
        let refused = |reason: String| DriverError::Refused(short(&reason));
        let (gpus, nodes) = (work.gpus, work.nodes);
        if !self.pools.contains_key(&work.pool) {
            return Err(refused(format!("{} is not a pool of this gateway", work.pool)));
        }
        let parsed = Order::parse(work, self.rules.clone());
        let mut order = parsed.map_err(|bad| refused(bad.to_string()))?;
        {
            // Held over the claim, so that of two orders for one attempt, or for one device, one comes first.
            let mut attempts = self.lock();
            if attempts.contains_key(&order.key()) {
                return Ok(());
            }
            order.devices = self.assign(&attempts, &order.pool, gpus, nodes)?;
            let claimed = Folder::claim(&self.settings.attempts, &order);
            claimed.map_err(io("write the order"))?;
            attempts.insert(order.key(), Attempt::of(&order));
        }
        self.watch(order.key());
        Ok(())
    }

    fn assign(
        &self,
        attempts: &BTreeMap<Key, Attempt>,
        pool: &PoolId,
        gpus: u32,
        nodes: u32,
    ) -> Result<Vec<u32>, DriverError> {
        let (declared, devices) = &self.pools[pool];
        let running = || attempts.values().filter(|it| it.phase != Phase::Done);
        let no_room = |free, need| DriverError::NoRoom { pool: *pool, free, need };
        if gpus == 0 {
            let slots = running().filter(|it| it.pool == Some(*pool) && it.devices.is_empty());
            let free = declared.task_slots.saturating_sub(slots.count() as u32);
            return if free > 0 { Ok(vec![]) } else { Err(no_room(0, 1)) };
        }
        let held: BTreeSet<u32> = running().flat_map(|it| it.devices.iter().copied()).collect();
        let assigned = devices.assign(&held, gpus, nodes);
        assigned.map_err(|free| no_room(free, gpus))
    }

    fn cancel(&self, key: Key) -> Result<(), DriverError> {
        let mut attempts = self.lock();
        let phase = attempts.get(&key).map(|it| it.phase);
        match phase {
            Some(Phase::Done) => Ok(()),
            Some(_) => {
                let folder = Folder::of(&self.settings.attempts, key);
                folder.request_cancel().map_err(io("ask for the stop"))
            }
            None => {
                // An order that is still on its way must find that it came too late.
                let done = Done { end: End::Canceled, record: AttemptRecord::default() };
                let buried = Folder::bury(&self.settings.attempts, key, &done);
                buried.map_err(io("note the cancellation"))?;
                attempts.insert(key, Attempt::gone());
                Ok(())
            }
        }
    }

    /// Reads every folder that is there. One that is damaged keeps none of the others from going on.
    fn take_up(self: &Arc<Self>) -> io::Result<()> {
        for (key, folder) in Folder::list(&self.settings.attempts)? {
            if folder.is_done() {
                self.lock().insert(key, Attempt::gone());
                if let Err(cause) = folder.clear() {
                    tracing::warn!(folder = %folder.path().display(), %cause, "not cleared");
                }
                continue;
            }
            let attempt = folder.order().map_or_else(
                |cause| {
                    tracing::error!(folder = %folder.path().display(), %cause, "an order is unreadable");
                    Attempt::unreadable()
                },
                |order| Attempt::of(&order),
            );
            self.lock().insert(key, attempt);
            self.watch(key);
        }
        Ok(())
    }

    /// Follows an attempt to its end, whatever that takes.
    fn watch(self: &Arc<Self>, key: Key) {
        let shared = Arc::clone(self);
        tokio::spawn(async move {
            let stop = shared.stop.clone();
            tokio::select! {
                () = stop.cancelled() => {}
                () = follow(key, &shared) => {}
            }
        });
    }

    pub fn phase(&self, key: Key) -> Option<Phase> {
        self.lock().get(&key).map(|it| it.phase)
    }

    pub fn set(&self, key: Key, phase: Phase) {
        let mut attempts = self.lock();
        let Some(attempt) = attempts.get_mut(&key).filter(|it| it.phase != phase) else {
            return;
        };
        attempt.phase = phase;
        drop(attempts);
        self.changes.send_modify(|count| *count += 1);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Attempt>> {
        self.attempts.lock().expect("invariant: nothing panics while it holds the attempts")
    }
}

impl Attempt {
    fn of(order: &Order) -> Attempt {
        Attempt { pool: Some(order.pool), devices: order.devices.clone(), phase: Phase::Starting }
    }

    fn gone() -> Attempt {
        Attempt { phase: Phase::Done, ..Attempt::unreadable() }
    }

    /// Its supervisor cannot read its order either, and the attempt will end with that.
    fn unreadable() -> Attempt {
        Attempt { pool: None, devices: Vec::new(), phase: Phase::Starting }
    }
}

fn rules(settings: &LocalSettings) -> Result<Rules, NoDriver> {
    let real = |path: &PathBuf| fs::canonicalize(path).map_err(|cause| NoDriver::Folder { path: path.clone(), cause });
    let file_roots: Vec<PathBuf> = settings.file_roots.iter().map(real).collect::<Result<_, _>>()?;
    let sandbox = settings.isolation.choose(settings.run_as);
    let sandbox = sandbox.map_err(NoDriver::Isolation)?;
    if sandbox == Sandbox::Process && settings.run_as.is_none() {
        tracing::warn!("tasks run under the gateway's own account and can do what it can");
    }
    Ok(Rules {
        sandbox,
        network: settings.network,
        run_as: settings.run_as,
        file_roots,
        http_hosts: settings.http_hosts.clone(),
        https_ca_file: settings.https_ca_file.as_ref().map(real).transpose()?,
    })
}

/// Makes the folder of all attempts, closed to other accounts, and returns its real path.
fn make_private(settings: &LocalSettings) -> io::Result<PathBuf> {
    fs::create_dir_all(&settings.attempts)?;
    let mode = if settings.run_as.is_some() { 0o711 } else { 0o700 };
    fs::set_permissions(&settings.attempts, Permissions::from_mode(mode))?;
    fs::canonicalize(&settings.attempts)
}

fn numbered(pools: &[LocalPool]) -> BTreeMap<PoolId, (LocalPool, Devices)> {
    let mut first = 0;
    let mut numbered = BTreeMap::new();
    for pool in pools {
        let devices = Devices { first, nodes: pool.nodes, per_node: pool.gpus_per_node };
        first += pool.nodes * pool.gpus_per_node;
        numbered.insert(pool.id, (pool.clone(), devices));
    }
    numbered
}

/// A done attempt whose file is damaged: it ran, so it must not run again.
fn unreadable(cause: io::Error) -> Done {
    let reason = format!("the record of the attempt is unreadable: {cause}");
    Done {
        end: End::system_error(&reason),
        record: AttemptRecord { system_logs: vec![reason], ..AttemptRecord::default() },
    }
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
