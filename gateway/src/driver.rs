//! Drivers: the adapters between a gateway and a factory's scheduler.
//!
//! Everything is idempotent by (job, attempt): submitting twice runs once, cancelling twice stops once.
//! Invariants: an attempt that was ever claimed never runs a second time, whatever is killed at whatever
//! instant; an attempt is `Done` only when every process of it is gone, so its GPUs may be given away.

use federation::{CapacityReport, End, JobId, PoolId, Reason};
use futures_util::future::BoxFuture;
use tokio::sync::watch;

mod attempt;
mod attempts;
mod bubblewrap;
mod capture;
mod cluster;
mod devices;
mod disk;
mod fault;
mod folder;
mod follower;
mod glob;
mod gpus;
mod journal;
mod kubernetes;
mod launcher;
pub mod lease;
mod ledger;
mod limits;
mod local;
mod order;
mod phase;
mod place;
mod processes;
mod record;
mod remote;
mod remover;
mod sandbox;
mod search;
mod settings;
mod slurm;
mod staging;
mod step;
mod stop;
mod supervisor;
mod threads;
mod tree;
mod work;

pub use kubernetes::{
    BadKubernetesName, BadMapping, KubernetesPool, KubernetesSettings, LabelValue, NoKubernetes, ObjectName,
    QualifiedName, start_kubernetes,
};
pub use launcher::BadLauncher;
pub use local::{Local, stop_attempts};
pub use record::{AttemptRecord, ExecutorRecord, LogChunk, LogStream, OutputRecord, Pipe};
pub use record::{LOG_CHUNK_BYTES_MAX, RECORD_BYTES_MAX, TAIL_BYTES_MAX};
pub use sandbox::{Isolation, RunAs};
pub use settings::{LocalPool, LocalSettings, NoDriver};
pub use slurm::{
    BadAccounts, BadAddress, BadGres, BadName, GresName, LocalName, NoSlurm, SlurmPool, SlurmSettings, TokenSource,
    start_slurm,
};
pub use supervisor::run_attempt;
pub use work::{Source, StageIn, StageKind, StageOut, Step, WorkOrder, WorkOwner};

/// Folders of `/` that are the machine's, not the task's.
pub const SYSTEM_TOPS: [&str; 12] =
    ["bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "libx32", "proc", "sbin", "sys", "usr"];
/// Folders of `/` that one task's paths may lie in. Each is a mount of its sandbox.
pub const TOPS_MAX: usize = 64;

/// What a scheduler must be able to do for a gateway.
///
/// What is asked often answers from memory at once; what may wait for a disk or a scheduler is a future.
pub trait Driver: Send + Sync + 'static {
    /// The pools whose jobs this driver takes; the same as long as it lives.
    fn pools(&self) -> Vec<PoolId>;

    /// What a pool lends now, as far as the driver has heard; the federation's own jobs are not subtracted.
    /// `None`: not known yet.
    fn capacity(&self, pool: &PoolId) -> Option<CapacityReport>;

    /// Would this driver ever take the order? Asked before `Start` is committed; with an `Err` the host declines.
    /// Every state reads the reason: it names no URL, path or command.
    fn check(&self, order: &WorkOrder) -> Result<(), String>;

    /// Takes an order. `Ok` also for one that was taken before, and for one that was cancelled before it came.
    fn submit(&self, order: WorkOrder) -> BoxFuture<'_, Result<(), DriverError>>;

    /// How far an attempt is. A look into memory, whatever the state.
    fn poll(&self, job: &JobId, attempt: u32) -> AttemptStatus;

    /// Asks for an attempt to be stopped and returns; [`Driver::poll`] tells when it is.
    /// An attempt that is not known yet will never run: it is `Done` as canceled from here on.
    fn cancel(&self, job: &JobId, attempt: u32) -> BoxFuture<'_, Result<(), DriverError>>;

    /// Lets an attempt with a lease go on until then, in the milliseconds of [`lease::now_ms`]. Only pools whose offer says
    /// that they keep leases have such attempts.
    fn renew(&self, job: &JobId, attempt: u32, until_ms: u64) -> BoxFuture<'_, Result<(), DriverError>>;

    /// Reads a stream from `offset`, at most `max` bytes; an empty chunk without `end` means "not yet".
    fn logs(
        &self,
        job: &JobId,
        attempt: u32,
        stream: LogStream,
        offset: u64,
        max: usize,
    ) -> BoxFuture<'_, Result<LogChunk, DriverError>>;

    /// What is known of an attempt so far; it changes no more when the attempt is `Done`.
    fn record(&self, job: &JobId, attempt: u32) -> BoxFuture<'_, Option<AttemptRecord>>;

    /// Removes everything about an attempt that is done. Only for attempts whose end the registry holds:
    /// a forgotten attempt is unknown, and would run again if it were submitted again.
    fn forget(&self, job: &JobId, attempt: u32) -> BoxFuture<'_, Result<(), DriverError>>;

    /// Every attempt that this driver holds, done or not.
    fn held(&self) -> Vec<(JobId, u32)>;

    /// Ticks whenever some attempt has moved, or some pool lends more or less.
    fn changes(&self) -> watch::Receiver<u64>;
}

/// How far an attempt is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttemptStatus {
    /// Never claimed here, or forgotten.
    Unknown,
    /// Claimed; it waits for the scheduler, or its inputs are being staged.
    Starting,
    /// Steps run, outputs are being staged, or it is being stopped.
    Running { started_ms: u64 },
    /// Every process is gone. `Canceled` although nobody asked for that gives the attempt back before it ran: the host
    /// declines it, and the next candidate may have the job.
    Done {
        end: End,
        /// When the first step started; `None` if none did.
        started_ms: Option<u64>,
    },
}

/// Why a driver did not do it.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The order can never run here: the task's fault. One line, short enough for the registry; every state reads it.
    #[error("{0}")]
    Refused(Reason),
    /// Processes of an earlier attempt still hold the GPUs: try again.
    #[error("{pool} has {free} GPUs or slots free on the machine, the order needs {need}")]
    NoRoom { pool: PoolId, free: u32, need: u32 },
    /// No such attempt here.
    #[error("attempt {attempt} of {job} is not known here")]
    Unknown { job: JobId, attempt: u32 },
    /// It still runs.
    #[error("attempt {attempt} of {job} still runs")]
    NotDone { job: JobId, attempt: u32 },
    /// The machine failed: try again.
    #[error("cannot {what}: {cause}")]
    Io { what: &'static str, cause: std::io::Error },
}

fn io_failed(what: &'static str) -> impl Fn(std::io::Error) -> DriverError {
    move |cause| DriverError::Io { what, cause }
}

/// Unix milliseconds, as this machine's clock has them.
fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |it| it.as_millis() as u64)
}
