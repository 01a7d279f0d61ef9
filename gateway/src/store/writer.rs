//! The writer: one thread that owns all writes. It takes everything that waits, writes it in one
//! transaction and syncs once, so a hundred submissions cost one sync.

use std::sync::atomic::Ordering;

use certs::Digest;
use federation::{JobId, Pseudonym, Timestamp};
use redb::{Database, ReadableTable, Table, WriteTransaction};
use tokio::sync::{mpsc, watch};

use super::{
    ABOUT, Bytes, Change, ENDED, EXPLAINED, EXPLANATIONS, Ended, FORMAT, KEYS, KEYS_BY_END, RECORDS, RememberedKey,
    StoreFailed, Summary, TAKEN, TASKS, TASKS_BY_OWNER, TaskRecord, Waiting, database_error, decode, decode_end,
    encode, owner_key,
};

/// Changes in one transaction.
const TRANSACTION_MAX: usize = 1_024;
/// What one sweep forgets at most, so that no submission waits behind it for more than some milliseconds.
const SWEEP_MAX: usize = 1_000;

/// Makes the tables of a new file; refuses a newer one.
pub(super) fn prepare(database: &Database) -> Result<(), StoreFailed> {
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
    }
    Tables::open(&write)?;
    write.commit().map_err(database_error)
}

/// Writes until every handle of the store is gone, or a write has failed.
pub(super) fn run(
    database: &Database,
    mut waiting: mpsc::Receiver<Waiting>,
    report: &watch::Sender<Option<StoreFailed>>,
) {
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
    let mut tables = Tables::open(&write)?;
    for change in changes {
        match change {
            Change::Accept { task, summary, again, keys, explanation } => {
                if *again {
                    tables.begin_anew(&task.job, &task.owner, keys)?;
                }
                tables.accept(task, summary, keys, explanation)?;
            }
            Change::Forget { job, owner, keys } => {
                tables.remove_task(job, owner)?;
                keys.iter().try_for_each(|key| tables.remove_key_of(job, key))?;
            }
            Change::Taken(jobs) => jobs.iter().try_for_each(|job| tables.take_note(job))?,
            Change::End(job) => tables.end(&job.id, &Ended::Job(job.clone()))?,
            Change::GiveUp { job, created_at, taken } => {
                tables.give_up(job, *created_at, if *taken { &Ended::Forgotten } else { &Ended::NeverTaken })?;
            }
            Change::Record { job, record } => tables.keep_record(job, record)?,
            Change::Sweep { now, tasks_before, more } => {
                more.store(tables.sweep(*now, *tasks_before)?, Ordering::Relaxed);
            }
        }
    }
    drop(tables);
    write.commit().map_err(database_error)
}

/// Every table of the store, open for one transaction.
struct Tables<'txn> {
    tasks: Table<'txn, Bytes, Bytes>,
    by_owner: Table<'txn, Bytes, Bytes>,
    keys: Table<'txn, Bytes, Bytes>,
    keys_by_end: Table<'txn, Bytes, ()>,
    taken: Table<'txn, Bytes, ()>,
    ended: Table<'txn, Bytes, Bytes>,
    records: Table<'txn, Bytes, Bytes>,
    explanations: Table<'txn, Bytes, Bytes>,
    explained: Table<'txn, Bytes, ()>,
}

impl<'txn> Tables<'txn> {
    fn open(write: &'txn WriteTransaction) -> Result<Tables<'txn>, StoreFailed> {
        Ok(Tables {
            tasks: write.open_table(TASKS).map_err(database_error)?,
            by_owner: write.open_table(TASKS_BY_OWNER).map_err(database_error)?,
            keys: write.open_table(KEYS).map_err(database_error)?,
            keys_by_end: write.open_table(KEYS_BY_END).map_err(database_error)?,
            taken: write.open_table(TAKEN).map_err(database_error)?,
            ended: write.open_table(ENDED).map_err(database_error)?,
            records: write.open_table(RECORDS).map_err(database_error)?,
            explanations: write.open_table(EXPLANATIONS).map_err(database_error)?,
            explained: write.open_table(EXPLAINED).map_err(database_error)?,
        })
    }

    fn accept(
        &mut self,
        task: &TaskRecord,
        summary: &Summary,
        keys: &[(Vec<u8>, RememberedKey)],
        explanation: &[u8],
    ) -> Result<(), StoreFailed> {
        let id = task.job.to_string();
        put(&mut self.tasks, id.as_bytes(), &encode(task)?)?;
        put(&mut self.by_owner, &owner_key(&task.owner, &task.job), &encode(summary)?)?;
        for (key, remembered) in keys {
            put(&mut self.keys, key, &encode(remembered)?)?;
            self.keys_by_end.insert(end_key(remembered.until, key).as_slice(), ()).map_err(database_error)?;
        }
        let digest = summary.explanation.0;
        if self.explanations.get(&digest[..]).map_err(database_error)?.is_none() {
            put(&mut self.explanations, &digest, explanation)?;
        }
        self.explained.insert(explained_key(&summary.explanation, &task.job).as_slice(), ()).map_err(database_error)?;
        Ok(())
    }

    /// Forgets how an earlier try of the same task came to nothing. One that has ended as a job, just when it was submitted
    /// again, has ended.
    fn begin_anew(
        &mut self,
        job: &JobId,
        owner: &Pseudonym,
        keys: &[(Vec<u8>, RememberedKey)],
    ) -> Result<(), StoreFailed> {
        let id = job.to_string();
        let ended = self.ended.get(id.as_bytes()).map_err(database_error)?.map(|it| decode_end(it.value(), job));
        if !matches!(ended.transpose()?, Some(Ended::Job(_))) {
            take(&mut self.ended, id.as_bytes())?;
            take(&mut self.records, id.as_bytes())?;
        }
        self.remove_summary(job, owner)?;
        keys.iter().try_for_each(|(key, _)| self.remove_key(key))
    }

    fn take_note(&mut self, job: &JobId) -> Result<(), StoreFailed> {
        self.taken.insert(job.to_string().as_bytes(), ()).map_err(database_error)?;
        Ok(())
    }

    fn end(&mut self, job: &JobId, ended: &Ended) -> Result<(), StoreFailed> {
        let ended = serde_json::to_vec(ended).map_err(database_error)?;
        put(&mut self.ended, job.to_string().as_bytes(), &ended)
    }

    /// What was decided on may have waited behind another try.
    fn give_up(&mut self, job: &JobId, created_at: Timestamp, ended: &Ended) -> Result<(), StoreFailed> {
        let id = job.to_string();
        let Some(bytes) = self.tasks.get(id.as_bytes()).map_err(database_error)?.map(|it| it.value().to_vec()) else {
            return Ok(());
        };
        let task: TaskRecord = decode(&bytes, job)?;
        let has_ended = self.ended.get(id.as_bytes()).map_err(database_error)?.is_some();
        if has_ended || task.created_at != created_at {
            return Ok(());
        }
        self.end(job, ended)?;
        put(&mut self.records, id.as_bytes(), &[])
    }

    /// A host says that it has nothing when it has forgotten what it gave; and a task that was accepted again, or is
    /// forgotten, waits for no record any more.
    fn keep_record(&mut self, job: &JobId, record: &[u8]) -> Result<(), StoreFailed> {
        let id = job.to_string();
        let has_ended = self.ended.get(id.as_bytes()).map_err(database_error)?.is_some();
        let has_one = self.records.get(id.as_bytes()).map_err(database_error)?.is_some();
        if has_ended && !(has_one && record.is_empty()) {
            put(&mut self.records, id.as_bytes(), record)
        } else {
            Ok(())
        }
    }

    /// A key that a later task has is left alone.
    fn remove_key_of(&mut self, job: &JobId, key: &[u8]) -> Result<(), StoreFailed> {
        let bytes = self.keys.get(key).map_err(database_error)?.map(|bytes| bytes.value().to_vec());
        let known: Option<RememberedKey> = bytes.map(|bytes| decode(&bytes, &"an idempotency key")).transpose()?;
        if known.is_some_and(|known| known.job == *job) { self.remove_key(key) } else { Ok(()) }
    }

    fn remove_key(&mut self, key: &[u8]) -> Result<(), StoreFailed> {
        if let Some(bytes) = take(&mut self.keys, key)? {
            let known: RememberedKey = decode(&bytes, &"an idempotency key")?;
            self.keys_by_end.remove(end_key(known.until, key).as_slice()).map_err(database_error)?;
        }
        Ok(())
    }

    fn remove_task(&mut self, job: &JobId, owner: &Pseudonym) -> Result<(), StoreFailed> {
        let id = job.to_string();
        for table in [&mut self.tasks, &mut self.ended, &mut self.records] {
            take(table, id.as_bytes())?;
        }
        self.taken.remove(id.as_bytes()).map_err(database_error)?;
        self.remove_summary(job, owner)
    }

    /// With the explanation that no other task has.
    fn remove_summary(&mut self, job: &JobId, owner: &Pseudonym) -> Result<(), StoreFailed> {
        let Some(summary) = take(&mut self.by_owner, &owner_key(owner, job))? else {
            return Ok(());
        };
        let summary: Summary = decode(&summary, job)?;
        let digest = summary.explanation;
        self.explained.remove(explained_key(&digest, job).as_slice()).map_err(database_error)?;
        let mut others = self.explained.range::<&[u8]>(&digest.0[..]..).map_err(database_error)?;
        let next = others.next().transpose().map_err(database_error)?;
        let still_used = next.is_some_and(|(key, _)| key.value().starts_with(&digest.0));
        drop(others);
        if !still_used {
            take(&mut self.explanations, &digest.0)?;
        }
        Ok(())
    }

    /// Whether there is more.
    fn sweep(&mut self, now: Timestamp, tasks_before: Timestamp) -> Result<bool, StoreFailed> {
        let mut over = Vec::new();
        for entry in
            self.keys_by_end.range::<&[u8]>(..&now.0.to_be_bytes()[..]).map_err(database_error)?.take(SWEEP_MAX)
        {
            over.push(entry.map_err(database_error)?.0.value().to_vec());
        }
        let mut more = over.len() == SWEEP_MAX;
        for end_and_key in over {
            self.keys_by_end.remove(end_and_key.as_slice()).map_err(database_error)?;
            let (_, key) = end_and_key.split_at(size_of::<u64>());
            let known = self.keys.get(key).map_err(database_error)?.map(|bytes| bytes.value().to_vec());
            let known: Option<RememberedKey> = known.map(|bytes| decode(&bytes, &"an idempotency key")).transpose()?;
            // A key that was used again since then counts on.
            if known.is_some_and(|known| known.until < now) {
                take(&mut self.keys, key)?;
            }
        }

        // Ids sort by time, so the oldest tasks are the first.
        let newest = JobId::new(tasks_before.0, [0; 10]).to_string();
        let mut old = Vec::new();
        for entry in self.ended.range::<&[u8]>(..newest.as_bytes()).map_err(database_error)?.take(SWEEP_MAX) {
            old.push(entry.map_err(database_error)?.0.value().to_vec());
        }
        more |= old.len() == SWEEP_MAX;
        for id in old {
            let Some(bytes) = self.tasks.get(id.as_slice()).map_err(database_error)?.map(|it| it.value().to_vec())
            else {
                take(&mut self.ended, &id)?;
                continue;
            };
            let task: TaskRecord = decode(&bytes, &String::from_utf8_lossy(&id))?;
            self.remove_task(&task.job, &task.owner)?;
        }
        Ok(more)
    }
}

fn put(table: &mut Table<'_, Bytes, Bytes>, key: &[u8], value: &[u8]) -> Result<(), StoreFailed> {
    table.insert(key, value).map_err(database_error)?;
    Ok(())
}

fn take(table: &mut Table<'_, Bytes, Bytes>, key: &[u8]) -> Result<Option<Vec<u8>>, StoreFailed> {
    let taken = table.remove(key).map_err(database_error)?;
    Ok(taken.map(|bytes| bytes.value().to_vec()))
}

fn end_key(until: Timestamp, key: &[u8]) -> Vec<u8> {
    [&until.0.to_be_bytes()[..], key].concat()
}

fn explained_key(digest: &Digest, job: &JobId) -> Vec<u8> {
    [&digest.0[..], job.to_string().as_bytes()].concat()
}
