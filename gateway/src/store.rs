//! The store: what this gateway alone remembers about the tasks of its own researchers.
//!
//! Payloads, idempotency keys, explanations and what became of finished tasks live here and never
//! in the replicated registry.
//!
//! Invariants: a write that was acknowledged survives a crash; after a failed write nothing is
//! acknowledged again (the process is about to stop); what a list has to look at is small, however
//! large the tasks are; only a task that has ended has a record, and no empty record takes the place of
//! one that is there; what was found out about one try of a task says nothing about the next.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use certs::Digest;
use federation::{Job, JobId, Pseudonym, Timestamp};
use policy::ResearcherFacts;
use redb::{Database, DatabaseError, ReadableDatabase, TableDefinition};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep};

use crate::error::{Code, Problem};

mod writer;

#[cfg(test)]
pub(crate) mod tests;

/// Changes that may wait for the writer: far above what the proposer lets through.
const WAITING_MAX: usize = 8_192;
/// How long a store that another process has open is waited for: the threads of one that was killed end one by one.
const IN_USE_PATIENCE: Duration = Duration::from_secs(5);
const IN_USE_POLL: Duration = Duration::from_millis(20);
/// Pages of the file kept in memory; the system keeps more of it.
const CACHE_BYTES: usize = 64 * 1_024 * 1_024;
/// The format of this file; raised when a table changes its meaning.
const FORMAT: u64 = 1;

type Bytes = &'static [u8];

/// `job` -> [`TaskRecord`]
const TASKS: TableDefinition<Bytes, Bytes> = TableDefinition::new("tasks");
/// `owner || job` -> [`Summary`]
const TASKS_BY_OWNER: TableDefinition<Bytes, Bytes> = TableDefinition::new("tasks_by_owner");
/// scoped key -> [`RememberedKey`]
const KEYS: TableDefinition<Bytes, Bytes> = TableDefinition::new("idempotency_keys");
/// `until (ms, big endian) || scoped key`, so that the oldest are found first
const KEYS_BY_END: TableDefinition<Bytes, ()> = TableDefinition::new("idempotency_keys_by_end");
/// `job`: the registry was seen to hold it
const TAKEN: TableDefinition<Bytes, ()> = TableDefinition::new("taken");
/// `job` -> how it ended, see [`Ended`]
const ENDED: TableDefinition<Bytes, Bytes> = TableDefinition::new("ended");
/// `job` -> what the host reported, JSON; empty if there is nothing to report
const RECORDS: TableDefinition<Bytes, Bytes> = TableDefinition::new("records");
/// digest -> verdicts, JSON
const EXPLANATIONS: TableDefinition<Bytes, Bytes> = TableDefinition::new("explanations");
/// `digest || job`: who refers to an explanation
const EXPLAINED: TableDefinition<Bytes, ()> = TableDefinition::new("explained");
const ABOUT: TableDefinition<&str, u64> = TableDefinition::new("about");

/// One task as its home keeps it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskRecord {
    /// The task's id, also the job's.
    pub job: JobId,
    /// Who submitted it.
    pub owner: Pseudonym,
    /// When it was accepted; of several tries, the latest. Which try it is.
    pub created_at: Timestamp,
    /// The task as JSON, exactly the bytes whose digest the registry holds.
    pub payload: Vec<u8>,
    /// What was dropped from the task and why, for the system log.
    pub warnings: Vec<String>,
    /// What the home state attests about the researcher.
    pub researcher: ResearcherFacts,
    /// The verdicts that it was placed on; see [`Store::explanation`].
    pub explanation: Digest,
}

/// What a list looks at: enough to filter by, small enough to read thousands of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// The task's name.
    pub name: Option<String>,
    /// The task's tags.
    pub tags: BTreeMap<String, String>,
    /// Bytes of its payload.
    pub payload_bytes: u64,
    /// The verdicts that it was placed on.
    pub explanation: Digest,
}

/// A remembered submission: the same key with the same body is the same task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RememberedKey {
    /// Digest of the request body.
    pub body: Digest,
    /// The task it made.
    pub job: JobId,
    /// Path prefix of the face that it came in by.
    pub face: String,
    /// When.
    pub at: Timestamp,
    /// When it is forgotten.
    pub until: Timestamp,
}

/// How a task ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ended {
    /// The job in its final state.
    Job(Box<Job>),
    /// The registry never took it, and its client was not told that it had.
    NeverTaken,
    /// The registry took it, and forgot it while this gateway was away.
    Forgotten,
}

/// A task of which something is still to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// The task.
    pub job: JobId,
    /// Its owner.
    pub owner: Pseudonym,
    /// Bytes of its payload.
    pub bytes: u64,
    /// The registry was seen to hold it.
    pub taken: bool,
    /// Its end is known; only the host's record is missing.
    pub ended: bool,
}

/// One durable change.
#[derive(Debug)]
pub enum Change {
    /// A submission: task and keys together or not at all.
    Accept {
        /// The task.
        task: Box<TaskRecord>,
        /// What lists show of it.
        summary: Summary,
        /// An earlier try is remembered, and may have been given up.
        again: bool,
        /// The scoped keys under which it must be found again.
        keys: Vec<(Vec<u8>, RememberedKey)>,
        /// The verdicts; kept once however many tasks refer to them.
        explanation: Arc<[u8]>,
    },
    /// A submission that the registry refused: it never was.
    Forget {
        /// The task.
        job: JobId,
        /// Its owner.
        owner: Pseudonym,
        /// Its keys.
        keys: Vec<Vec<u8>>,
    },
    /// The registry was seen to hold these tasks.
    Taken(Vec<JobId>),
    /// A task is over: the job in its final state.
    End(Box<Job>),
    /// A try of a task came to nothing: that is its end, and no record will come. Nothing is changed if the task has
    /// ended, or was accepted again since.
    GiveUp {
        /// The task.
        job: JobId,
        /// When the try that came to nothing was accepted.
        created_at: Timestamp,
        /// The registry was seen to hold it.
        taken: bool,
    },
    /// What the host reported about a task that is over. Nothing is changed by the record of a task that is not, or by
    /// an empty one where there is one.
    Record {
        /// The task.
        job: JobId,
        /// The record as JSON; empty if there is nothing to report.
        record: Vec<u8>,
    },
    /// Forgets the oldest keys that no longer count and the oldest ended tasks that were kept long enough.
    Sweep {
        /// Keys that end before this are forgotten.
        now: Timestamp,
        /// Ended tasks that were accepted before this are forgotten.
        tasks_before: Timestamp,
        /// Set when there is more to forget than one sweep takes.
        more: Arc<AtomicBool>,
    },
}

/// Why the store cannot be opened or used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreFailed {
    /// The database reports an error: disk full, failed sync, damaged file.
    #[error("the task store failed: {0}")]
    Database(String),
    /// Another process has it open.
    #[error("another gateway is running in this data folder; stop it first, or name another folder")]
    InUse,
    /// The file was written by a newer release.
    #[error("the task store has format {found}, this release knows {FORMAT}; run the newer release")]
    Newer {
        /// The format found.
        found: u64,
    },
    /// A record does not decode.
    #[error("the record of {0} in the task store does not decode")]
    Damaged(String),
    /// More changes wait than the disk takes.
    #[error("the disk does not keep up with submissions; try again in a second")]
    Busy,
}

impl From<StoreFailed> for Problem {
    fn from(failed: StoreFailed) -> Problem {
        let code = if matches!(failed, StoreFailed::Busy) { Code::StoreBusy } else { Code::StoreFailed };
        Problem::new(code, failed.to_string())
    }
}

struct Waiting {
    change: Change,
    done: oneshot::Sender<Result<(), StoreFailed>>,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Store {
    database: Arc<Database>,
    queue: mpsc::Sender<Waiting>,
    failed: watch::Receiver<Option<StoreFailed>>,
}

impl Store {
    /// Opens or creates the store in a folder. Waits a while for a process that is just being ended to let go of it.
    pub async fn open(folder: &Path) -> Result<Store, StoreFailed> {
        let deadline = Instant::now() + IN_USE_PATIENCE;
        loop {
            match Store::try_open(folder) {
                Err(StoreFailed::InUse) if Instant::now() < deadline => sleep(IN_USE_POLL).await,
                opened => return opened,
            }
        }
    }

    fn try_open(folder: &Path) -> Result<Store, StoreFailed> {
        let path = folder.join("tasks.redb");
        // Tasks hold commands and data: for this gateway's account only.
        let file = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        drop(file.map_err(database_error)?);
        let database = Database::builder().set_cache_size(CACHE_BYTES).create(path).map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => StoreFailed::InUse,
            other => database_error(other),
        })?;
        writer::prepare(&database)?;
        let database = Arc::new(database);
        let (queue, waiting) = mpsc::channel(WAITING_MAX);
        let (report, failed) = watch::channel(None);
        let writer = Arc::clone(&database);
        thread::Builder::new()
            .name("task-store".into())
            .spawn(move || writer::run(&writer, waiting, &report))
            .map_err(database_error)?;
        Ok(Store { database, queue, failed })
    }

    /// Makes one change durable; returns after the sync.
    pub async fn write(&self, change: Change) -> Result<(), StoreFailed> {
        if let Some(failed) = self.failed.borrow().clone() {
            return Err(failed);
        }
        let (done, written) = oneshot::channel();
        self.queue.try_send(Waiting { change, done }).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => StoreFailed::Busy,
            mpsc::error::TrySendError::Closed(_) => writer_gone(),
        })?;
        written.await.unwrap_or_else(|_| Err(writer_gone()))
    }

    /// Resolves when a write failed; the gateway must stop then, before it lies.
    pub async fn failed(&self) -> StoreFailed {
        let mut failed = self.failed.clone();
        match failed.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().expect("invariant: waited for Some"),
            // The writer outlives every handle like this one, unless it panicked.
            Err(_) => writer_gone(),
        }
    }

    /// The task with this id.
    pub fn task(&self, job: &JobId) -> Result<Option<TaskRecord>, StoreFailed> {
        let Some(bytes) = self.bytes(TASKS, job.to_string().as_bytes())? else {
            return Ok(None);
        };
        decode(&bytes, job).map(Some)
    }

    /// An owner's tasks in short, newest first, older than `before`, at most `limit`.
    pub fn tasks_of(
        &self,
        owner: &Pseudonym,
        before: Option<&JobId>,
        limit: usize,
    ) -> Result<Vec<(JobId, Summary)>, StoreFailed> {
        let read = self.database.begin_read().map_err(database_error)?;
        let index = read.open_table(TASKS_BY_OWNER).map_err(database_error)?;
        let first = owner.0.to_vec();
        let last = match before {
            Some(job) => owner_key(owner, job),
            // 'k' follows the 'j' of "job_", so this is past every task of this owner.
            None => [&owner.0[..], b"k"].concat(),
        };
        let range = index.range::<&[u8]>(first.as_slice()..last.as_slice()).map_err(database_error)?;
        let mut found = Vec::new();
        for entry in range.rev().take(limit) {
            let (key, summary) = entry.map_err(database_error)?;
            let (_, job) = owner_and_job(key.value())?;
            found.push((job, decode(summary.value(), &job)?));
        }
        Ok(found)
    }

    /// All tasks of which something is still to come. Read once at start.
    pub fn unfinished(&self) -> Result<Vec<Unfinished>, StoreFailed> {
        let read = self.database.begin_read().map_err(database_error)?;
        let index = read.open_table(TASKS_BY_OWNER).map_err(database_error)?;
        let taken = read.open_table(TAKEN).map_err(database_error)?;
        let ended = read.open_table(ENDED).map_err(database_error)?;
        let records = read.open_table(RECORDS).map_err(database_error)?;
        let mut found = Vec::new();
        for entry in redb::ReadableTable::iter(&index).map_err(database_error)? {
            let (key, summary) = entry.map_err(database_error)?;
            let (owner, job) = owner_and_job(key.value())?;
            let id = job.to_string();
            if records.get(id.as_bytes()).map_err(database_error)?.is_none() {
                let summary: Summary = decode(summary.value(), &job)?;
                let taken = taken.get(id.as_bytes()).map_err(database_error)?.is_some();
                let ended = ended.get(id.as_bytes()).map_err(database_error)?.is_some();
                found.push(Unfinished { job, owner, bytes: summary.payload_bytes, taken, ended });
            }
        }
        Ok(found)
    }

    /// The submission remembered under a scoped key.
    pub fn key(&self, scoped: &[u8]) -> Result<Option<RememberedKey>, StoreFailed> {
        let Some(bytes) = self.bytes(KEYS, scoped)? else {
            return Ok(None);
        };
        decode(&bytes, &"an idempotency key").map(Some)
    }

    /// Whether the registry was ever seen to hold a task.
    pub fn is_taken(&self, job: &JobId) -> Result<bool, StoreFailed> {
        let read = self.database.begin_read().map_err(database_error)?;
        let taken = read.open_table(TAKEN).map_err(database_error)?;
        Ok(taken.get(job.to_string().as_bytes()).map_err(database_error)?.is_some())
    }

    /// How a task ended. `None` while it is open.
    pub fn ended(&self, job: &JobId) -> Result<Option<Ended>, StoreFailed> {
        let bytes = self.bytes(ENDED, job.to_string().as_bytes())?;
        bytes.map(|bytes| decode_end(&bytes, job)).transpose()
    }

    /// What the host reported of a task that is over, as JSON; empty if it had nothing to report.
    pub fn record(&self, job: &JobId) -> Result<Option<Vec<u8>>, StoreFailed> {
        self.bytes(RECORDS, job.to_string().as_bytes())
    }

    /// The verdicts that a task was placed on, as JSON.
    pub fn explanation(&self, digest: &Digest) -> Result<Option<Vec<u8>>, StoreFailed> {
        self.bytes(EXPLANATIONS, &digest.0)
    }

    fn bytes(&self, table: TableDefinition<Bytes, Bytes>, key: &[u8]) -> Result<Option<Vec<u8>>, StoreFailed> {
        let read = self.database.begin_read().map_err(database_error)?;
        let table = read.open_table(table).map_err(database_error)?;
        let found = table.get(key).map_err(database_error)?;
        Ok(found.map(|bytes| bytes.value().to_vec()))
    }
}

/// `owner || "job_…"`: ids sort by time, so an owner's tasks are one range in order of age.
fn owner_key(owner: &Pseudonym, job: &JobId) -> Vec<u8> {
    [&owner.0[..], job.to_string().as_bytes()].concat()
}

fn owner_and_job(key: &[u8]) -> Result<(Pseudonym, JobId), StoreFailed> {
    let damaged = || StoreFailed::Damaged(String::from_utf8_lossy(key).into_owned());
    let (owner, job) = key.split_first_chunk().ok_or_else(damaged)?;
    let job = std::str::from_utf8(job).ok().and_then(|text| JobId::parse(text).ok()).ok_or_else(damaged)?;
    Ok((Pseudonym(*owner), job))
}

fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, StoreFailed> {
    postcard::to_stdvec(value).map_err(database_error)
}

fn decode<T: for<'a> Deserialize<'a>>(bytes: &[u8], what: &dyn std::fmt::Display) -> Result<T, StoreFailed> {
    postcard::from_bytes(bytes).map_err(|_| StoreFailed::Damaged(what.to_string()))
}

/// Unlike the rest, ends are JSON.
fn decode_end(bytes: &[u8], job: &JobId) -> Result<Ended, StoreFailed> {
    serde_json::from_slice(bytes).map_err(|_| StoreFailed::Damaged(job.to_string()))
}

fn writer_gone() -> StoreFailed {
    StoreFailed::Database("the writer is gone".into())
}

fn database_error(error: impl std::fmt::Display) -> StoreFailed {
    StoreFailed::Database(error.to_string())
}
