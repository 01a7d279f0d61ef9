//! The store: what this gateway alone remembers about the tasks of its own researchers.
//!
//! Payloads, idempotency keys, explanations and the records of finished tasks live here and never
//! in the replicated registry. One thread owns all writes: it takes everything that waits, writes
//! it in one transaction and syncs once, so a hundred submissions cost one sync.
//!
//! Invariants: a write that was acknowledged survives a crash; after a failed write nothing is
//! acknowledged again (the process is about to stop).

use std::path::Path;
use std::sync::Arc;
use std::thread;

use certs::Digest;
use federation::{JobId, Pseudonym, Timestamp};
use policy::ResearcherFacts;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};

use crate::error::{Code, Problem};

/// Changes that may wait for the writer: far above what the proposer lets through.
const WAITING_MAX: usize = 8_192;
/// Changes in one transaction.
const TRANSACTION_MAX: usize = 1_024;
/// The format of this file; raised when a table changes its meaning.
const FORMAT: u64 = 1;

const TASKS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("tasks");
const TASKS_BY_OWNER: TableDefinition<&[u8], ()> = TableDefinition::new("tasks_by_owner");
const KEYS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("idempotency_keys");
const ARCHIVE: TableDefinition<&[u8], &[u8]> = TableDefinition::new("archive");
const EXPLANATIONS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("explanations");
const ABOUT: TableDefinition<&str, u64> = TableDefinition::new("about");

/// One task as its home keeps it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskRecord {
    /// The task's id, also the job's.
    pub job: JobId,
    /// Who submitted it.
    pub owner: Pseudonym,
    /// When it was accepted.
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
}

/// One durable change.
#[derive(Debug)]
pub enum Change {
    /// A submission: task and keys together or not at all.
    Accept {
        /// The task.
        task: Box<TaskRecord>,
        /// The scoped keys under which it must be found again.
        keys: Vec<(Vec<u8>, RememberedKey)>,
        /// The verdicts, unless they are stored already.
        explanation: Option<Arc<[u8]>>,
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
    /// What the host reported about a finished task.
    Archive {
        /// The task.
        job: JobId,
        /// The record as JSON.
        record: Vec<u8>,
    },
}

/// Why the store cannot be opened or used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreFailed {
    /// The database reports an error: disk full, failed sync, damaged file.
    #[error("the task store failed: {0}")]
    Database(String),
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
    /// Opens or creates the store in a folder.
    pub fn open(folder: &Path) -> Result<Store, StoreFailed> {
        let database = Database::create(folder.join("tasks.redb")).map_err(database_error)?;
        prepare(&database)?;
        let database = Arc::new(database);
        let (queue, waiting) = mpsc::channel(WAITING_MAX);
        let (report, failed) = watch::channel(None);
        let writer = Arc::clone(&database);
        thread::Builder::new()
            .name("task-store".into())
            .spawn(move || write_loop(&writer, waiting, &report))
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

    /// An owner's tasks, newest first, older than `before`, at most `limit`.
    pub fn tasks_of(
        &self,
        owner: &Pseudonym,
        before: Option<&JobId>,
        limit: usize,
    ) -> Result<Vec<TaskRecord>, StoreFailed> {
        let read = self.database.begin_read().map_err(database_error)?;
        let index = read.open_table(TASKS_BY_OWNER).map_err(database_error)?;
        let tasks = read.open_table(TASKS).map_err(database_error)?;
        let first = owner.0.to_vec();
        let last = match before {
            Some(job) => owner_key(owner, job),
            // 'k' follows the 'j' of "job_", so this is past every task of this owner.
            None => [&owner.0[..], b"k"].concat(),
        };
        let range = index.range::<&[u8]>(first.as_slice()..last.as_slice()).map_err(database_error)?;
        let mut found = Vec::new();
        for entry in range.rev().take(limit) {
            let (key, _) = entry.map_err(database_error)?;
            let job = &key.value()[owner.0.len()..];
            if let Some(bytes) = tasks.get(job).map_err(database_error)? {
                found.push(decode(bytes.value(), &String::from_utf8_lossy(job))?);
            }
        }
        Ok(found)
    }

    /// All tasks without an archived record; read once at start.
    pub fn unarchived(&self) -> Result<Vec<JobId>, StoreFailed> {
        let read = self.database.begin_read().map_err(database_error)?;
        let tasks = read.open_table(TASKS).map_err(database_error)?;
        let archive = read.open_table(ARCHIVE).map_err(database_error)?;
        let mut found = Vec::new();
        for entry in tasks.iter().map_err(database_error)? {
            let (key, _) = entry.map_err(database_error)?;
            if archive.get(key.value()).map_err(database_error)?.is_none() {
                let text = String::from_utf8_lossy(key.value()).into_owned();
                found.push(JobId::parse(&text).map_err(|_| StoreFailed::Damaged(text))?);
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

    /// The final record of a task, as JSON.
    pub fn archived(&self, job: &JobId) -> Result<Option<Vec<u8>>, StoreFailed> {
        self.bytes(ARCHIVE, job.to_string().as_bytes())
    }

    /// The verdicts that a task was placed on, as JSON.
    pub fn explanation(&self, digest: &Digest) -> Result<Option<Vec<u8>>, StoreFailed> {
        self.bytes(EXPLANATIONS, &digest.0)
    }

    fn bytes(&self, table: TableDefinition<&[u8], &[u8]>, key: &[u8]) -> Result<Option<Vec<u8>>, StoreFailed> {
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

fn prepare(database: &Database) -> Result<(), StoreFailed> {
    let write = database.begin_write().map_err(database_error)?;
    {
        let mut about = write.open_table(ABOUT).map_err(database_error)?;
        let found = about.get("format").map_err(database_error)?.map(|format| format.value());
        match found {
            Some(found) if found > FORMAT => return Err(StoreFailed::Newer { found }),
            Some(_) => {}
            None => {
                about.insert("format", FORMAT).map_err(database_error)?;
            }
        }
        for table in [TASKS, KEYS, ARCHIVE, EXPLANATIONS] {
            write.open_table(table).map_err(database_error)?;
        }
        write.open_table(TASKS_BY_OWNER).map_err(database_error)?;
    }
    write.commit().map_err(database_error)
}

fn write_loop(database: &Database, mut waiting: mpsc::Receiver<Waiting>, report: &watch::Sender<Option<StoreFailed>>) {
    let mut batch = Vec::with_capacity(TRANSACTION_MAX);
    while waiting.blocking_recv_many(&mut batch, TRANSACTION_MAX) > 0 {
        let (changes, answers): (Vec<_>, Vec<_>) = batch.drain(..).map(|it| (it.change, it.done)).unzip();
        let result = write_all(database, &changes);
        if let Err(failed) = &result {
            report.send_replace(Some(failed.clone()));
        }
        for answer in answers {
            let _caller_may_be_gone = answer.send(result.clone());
        }
        if result.is_err() {
            return;
        }
    }
}

fn write_all(database: &Database, changes: &[Change]) -> Result<(), StoreFailed> {
    let write = database.begin_write().map_err(database_error)?;
    {
        let mut tasks = write.open_table(TASKS).map_err(database_error)?;
        let mut by_owner = write.open_table(TASKS_BY_OWNER).map_err(database_error)?;
        let mut keys_table = write.open_table(KEYS).map_err(database_error)?;
        let mut archive = write.open_table(ARCHIVE).map_err(database_error)?;
        let mut explanations = write.open_table(EXPLANATIONS).map_err(database_error)?;
        for change in changes {
            match change {
                Change::Accept { task, keys, explanation } => {
                    let id = task.job.to_string();
                    insert(&mut tasks, id.as_bytes(), &encode(task.as_ref())?)?;
                    by_owner.insert(owner_key(&task.owner, &task.job).as_slice(), ()).map_err(database_error)?;
                    for (key, remembered) in keys {
                        insert(&mut keys_table, key, &encode(remembered)?)?;
                    }
                    if let Some(bytes) = explanation {
                        insert(&mut explanations, &task.explanation.0, bytes)?;
                    }
                }
                Change::Forget { job, owner, keys } => {
                    tasks.remove(job.to_string().as_bytes()).map_err(database_error)?;
                    by_owner.remove(owner_key(owner, job).as_slice()).map_err(database_error)?;
                    for key in keys {
                        keys_table.remove(key.as_slice()).map_err(database_error)?;
                    }
                }
                Change::Archive { job, record } => {
                    insert(&mut archive, job.to_string().as_bytes(), record)?;
                }
            }
        }
    }
    write.commit().map_err(database_error)
}

fn insert(
    table: &mut redb::Table<'_, &'static [u8], &'static [u8]>,
    key: &[u8],
    value: &[u8],
) -> Result<(), StoreFailed> {
    table.insert(key, value).map_err(database_error)?;
    Ok(())
}

fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, StoreFailed> {
    postcard::to_stdvec(value).map_err(database_error)
}

fn decode<T: for<'a> Deserialize<'a>>(bytes: &[u8], what: &dyn std::fmt::Display) -> Result<T, StoreFailed> {
    postcard::from_bytes(bytes).map_err(|_| StoreFailed::Damaged(what.to_string()))
}

fn writer_gone() -> StoreFailed {
    StoreFailed::Database("the writer is gone".into())
}

fn database_error(error: impl std::fmt::Display) -> StoreFailed {
    StoreFailed::Database(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use certs::MemberState;

    fn task(number: u8) -> TaskRecord {
        TaskRecord {
            job: JobId::new(u64::from(number), [number; 10]),
            owner: Pseudonym([7; 16]),
            created_at: Timestamp(u64::from(number)),
            payload: br#"{"executors":[]}"#.to_vec(),
            warnings: vec!["dropped VmSize".into()],
            researcher: ResearcherFacts {
                home: MemberState::parse("FR").expect("a state"),
                assurance: 1,
                entitlements: vec![],
                clearances: vec![],
                residency: None,
            },
            explanation: Digest::of(b"verdicts"),
        }
    }

    fn accept(number: u8) -> Change {
        let task = task(number);
        let remembered =
            RememberedKey { body: Digest::of(&task.payload), job: task.job, face: "/v1".into(), at: task.created_at };
        Change::Accept {
            keys: vec![(vec![number], remembered)],
            task: Box::new(task),
            explanation: Some(Arc::from(&b"verdicts"[..])),
        }
    }

    #[tokio::test]
    async fn what_was_acknowledged_is_there_after_reopening() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let store = Store::open(folder.path()).expect("a store");
        for number in 1..=3 {
            store.write(accept(number)).await.expect("written");
        }
        drop(store);
        let store = reopen(folder.path());
        assert_eq!(store.task(&task(2).job).expect("read"), Some(task(2)));
        let found = store.key(&[3]).expect("read").expect("a key");
        assert_eq!(found.job, task(3).job);
        let verdicts = store.explanation(&task(1).explanation).expect("read");
        assert_eq!(verdicts.as_deref(), Some(&b"verdicts"[..]));
    }

    /// The writer thread closes the file shortly after the last handle is gone.
    fn reopen(folder: &Path) -> Store {
        loop {
            match Store::open(folder) {
                Ok(store) => return store,
                Err(StoreFailed::Database(reason)) if reason.contains("already open") => {
                    thread::yield_now();
                }
                Err(other) => panic!("{other}"),
            }
        }
    }

    #[tokio::test]
    async fn an_owner_sees_the_newest_first_and_pages() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let store = Store::open(folder.path()).expect("a store");
        for number in 1..=5 {
            store.write(accept(number)).await.expect("written");
        }
        let owner = Pseudonym([7; 16]);
        let page = store.tasks_of(&owner, None, 2).expect("read");
        assert_eq!(page, vec![task(5), task(4)]);
        let page = store.tasks_of(&owner, Some(&page[1].job), 9).expect("read");
        assert_eq!(page, vec![task(3), task(2), task(1)]);
        let other = Pseudonym([8; 16]);
        assert_eq!(store.tasks_of(&other, None, 9).expect("read"), vec![]);
    }

    #[tokio::test]
    async fn a_forgotten_submission_leaves_nothing() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let store = Store::open(folder.path()).expect("a store");
        store.write(accept(1)).await.expect("written");
        let forget = Change::Forget { job: task(1).job, owner: task(1).owner, keys: vec![vec![1]] };
        store.write(forget).await.expect("written");
        assert_eq!(store.task(&task(1).job).expect("read"), None);
        assert_eq!(store.key(&[1]).expect("read"), None);
        assert!(store.unarchived().expect("read").is_empty());
    }
}
