//! Drivers: the adapters between a gateway and a factory's scheduler.
//!
//! Everything is idempotent by (job, attempt): submitting twice runs once, cancelling twice stops once.
//! Invariants: an attempt that was ever claimed never runs a second time, whatever is killed at whatever
//! instant; an attempt is `Done` only when every process of it is gone, so its GPUs may be given away.

use std::collections::BTreeMap;
use std::fmt;

use federation::{CapacityReport, End, JobId, PoolId};
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

mod bubblewrap;
mod capture;
mod devices;
mod folder;
mod follower;
mod glob;
mod local;
mod order;
mod place;
mod processes;
mod remote;
mod sandbox;
mod staging;
mod step;
mod supervisor;
mod tree;

pub use local::{Local, LocalPool, LocalSettings, NoDriver};
pub use sandbox::{Isolation, RunAs};
pub use supervisor::run_attempt;

/// The end of a stream that a record keeps: 64 KiB x 2 streams x 16 executors = 2 MiB in one answer.
pub const TAIL_BYTES_MAX: usize = 64 * 1024;
/// The largest piece of a log that is read at once.
pub const LOG_CHUNK_BYTES_MAX: usize = 1024 * 1024;

/// What a scheduler must be able to do for a gateway.
pub trait Driver: Send + Sync + 'static {
    /// What every pool lends now; the federation's own jobs are not subtracted.
    fn capacity(&self) -> BoxFuture<'_, Result<Vec<CapacityReport>, DriverError>>;

    /// Takes an order. `Ok` also for one that was taken before, and for one that was cancelled before it came.
    fn submit(&self, order: WorkOrder) -> BoxFuture<'_, Result<(), DriverError>>;

    /// How far an attempt is. Costs a look into memory, and one file when it is done.
    fn poll(&self, job: &JobId, attempt: u32) -> AttemptStatus;

    /// Asks for an attempt to be stopped and returns; [`Driver::poll`] tells when it is.
    /// An attempt that is not known yet will never run: it is `Done` as canceled from here on.
    fn cancel(&self, job: &JobId, attempt: u32) -> BoxFuture<'_, Result<(), DriverError>>;

    /// Reads a stream from `offset`, at most `max` bytes; an empty chunk without `end` means "not yet".
    fn logs(
        &self,
        job: &JobId,
        attempt: u32,
        stream: LogStream,
        offset: u64,
        max: usize,
    ) -> Result<LogChunk, DriverError>;

    /// What is known of an attempt so far; the same as in `Done` when it is done.
    fn record(&self, job: &JobId, attempt: u32) -> Option<AttemptRecord>;

    /// Removes everything about an attempt that is done. Only for attempts whose end the registry holds:
    /// a forgotten attempt is unknown, and would run again if it were submitted again.
    fn forget(&self, job: &JobId, attempt: u32) -> Result<(), DriverError>;

    /// Ticks whenever some attempt has moved.
    fn changes(&self) -> watch::Receiver<u64>;
}

/// Everything that a driver needs to run one attempt. Paths are absolute, as the task sees them.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkOrder {
    pub job: JobId,
    /// The fencing token.
    pub attempt: u32,
    pub pool: PoolId,
    /// GPUs in all, as the device is sold.
    pub gpus: u32,
    /// Nodes to spread the GPUs over evenly. 0: let the driver decide.
    pub nodes: u32,
    /// 0: not stated; so for the next two.
    pub cpu_cores: u32,
    pub ram_gib: u32,
    pub disk_gib: u32,
    /// Counts from the start of the first step.
    pub walltime_s: u32,
    /// Run one after another.
    pub executors: Vec<Step>,
    pub inputs: Vec<StageIn>,
    pub outputs: Vec<StageOut>,
    /// Folders that the steps share.
    pub volumes: Vec<String>,
}

/// Commands, environment and contents are the researcher's: they do not belong in a log.
impl fmt::Debug for WorkOrder {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("WorkOrder")
            .field("job", &self.job)
            .field("attempt", &self.attempt)
            .field("pool", &self.pool)
            .finish_non_exhaustive()
    }
}

/// One command. Source: TES 1.1, `tesExecutor`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    pub image: String,
    /// Program and arguments, passed as they are, never through a shell.
    pub command: Vec<String>,
    pub workdir: Option<String>,
    pub stdin: Option<String>,
    pub stdout: Option<String>,
    pub stderr: Option<String>,
    pub env: BTreeMap<String, String>,
    /// The next step runs even if this one fails.
    pub ignore_error: bool,
}

/// A file or folder that is there before the first step. Source: TES 1.1, `tesInput`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageIn {
    pub path: String,
    pub source: Source,
    pub kind: StageKind,
}

/// Where an input comes from.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    Content(Vec<u8>),
    /// `file`, `http` or `https`, as far as the factory allows.
    Url(String),
}

/// What is delivered after the last step. Source: TES 1.1, `tesOutput`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageOut {
    pub url: String,
    /// May have wildcards (`*`, `?`, `[…]`); then `path_prefix` is needed.
    pub path: String,
    /// What is cut from the paths found before they are appended to `url`.
    pub path_prefix: Option<String>,
    pub kind: StageKind,
}

/// One file, or a folder with everything in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StageKind {
    File,
    Directory,
}

/// How far an attempt is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttemptStatus {
    /// Never claimed here, or forgotten.
    Unknown,
    /// Claimed; inputs are being staged.
    Starting,
    /// Steps run, outputs are being staged, or it is being stopped.
    Running { started_ms: u64 },
    /// Every process is gone.
    Done { end: End, record: AttemptRecord },
}

/// What an attempt did, as far as it got. Times in Unix milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptRecord {
    /// When staging began.
    pub begin_ms: u64,
    /// When the first step started.
    pub running_ms: Option<u64>,
    /// When everything was over.
    pub end_ms: Option<u64>,
    /// Steps that have ended, in order.
    pub executors: Vec<ExecutorRecord>,
    /// What was delivered.
    pub outputs: Vec<OutputRecord>,
    /// Lines for people, without line breaks.
    pub system_logs: Vec<String>,
    /// `isolation`, `network`, `devices`, `host`, `image`.
    pub metadata: BTreeMap<String, String>,
}

impl AttemptRecord {
    /// When the first step started; `None` if none did.
    pub fn started_ms(&self) -> Option<u64> {
        self.running_ms
    }
}

/// One step that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecutorRecord {
    /// 128 + the signal's number for one that was killed, 127 for a program that was not found.
    pub exit_code: i32,
    pub start_ms: u64,
    pub end_ms: u64,
    /// The last [`TAIL_BYTES_MAX`] bytes; so for `stderr`.
    pub stdout: String,
    pub stderr: String,
}

/// One delivered file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputRecord {
    /// Without the query, which may hold a signature.
    pub url: String,
    pub path: String,
    pub size_bytes: u64,
}

/// One stream of one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogStream {
    /// From 0.
    pub executor: u32,
    pub pipe: Pipe,
}

/// Which of a step's two streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pipe {
    Stdout,
    Stderr,
}

impl Pipe {
    pub fn as_str(self) -> &'static str {
        match self {
            Pipe::Stdout => "stdout",
            Pipe::Stderr => "stderr",
        }
    }
}

/// A piece of a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogChunk {
    pub bytes: Vec<u8>,
    /// Where the next piece begins.
    pub next_offset: u64,
    /// Nothing will follow.
    pub end: bool,
}

/// Why a driver did not do it.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The order can never run here: the task's fault. One line, short enough for the registry.
    #[error("{0}")]
    Refused(String),
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

/// Unix milliseconds, as this machine's clock has them.
fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |it| it.as_millis() as u64)
}
