//! Work orders: one attempt of a task, in words that every driver understands.

use std::collections::BTreeMap;
use std::fmt;

use certs::MemberState;
use federation::{JobId, PoolId, Pseudonym};
use serde::{Deserialize, Serialize};

/// Everything that a driver needs to run one attempt. Paths are absolute, as the task sees them.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkOrder {
    pub job: JobId,
    /// The fencing token.
    pub attempt: u32,
    pub pool: PoolId,
    pub researcher: WorkOwner,
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
    /// For one that must not run twice and may be given to another: until when it may go on unless its gateway renews
    /// this, in the milliseconds of [`super::lease::now_ms`].
    pub lease_until_ms: Option<u64>,
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

/// Whose work it is, as far as other states may know. A mapping turns it into a local account, where a factory has them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct WorkOwner {
    /// The state that vouches for the researcher.
    pub home: MemberState,
    pub pseudonym: Pseudonym,
    /// What the work counts for, if the task says so.
    pub project: Option<String>,
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
