//! Raft's log: in memory for readers, in the write-ahead log for ever.
//!
//! Invariant: whatever is in memory is in the write-ahead log or on its way there, in the same order.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use openraft::alias::LogIdOf;
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{OptionalSend, RaftTypeConfig};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::folder::Folder;
use super::probe::{self, watch};
use super::types::{Entry, LogId, Payload, Types, Vote};
use super::wal::{BadLog, Owner, Record, Wal};
use super::wire::{WireEntry, log_id, wire_id};

/// Bytes of entries that are read for one append, one entry more at most. A message stays far below the 16 MiB that a
/// peer takes.
pub const APPEND_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The log. Clones read the same one.
#[derive(Clone)]
pub struct LogStore {
    wal: Arc<Wal>,
    log: Arc<Mutex<Log>>,
    /// Bytes of the envelopes in memory; told after every change of the entries, and never while the log is locked.
    weight: Arc<watch::Sender<usize>>,
}

#[derive(Default)]
struct Log {
    entries: BTreeMap<u64, Entry>,
    bytes: usize,
    vote: Option<Vote>,
    purged: Option<LogId>,
    committed: Option<LogId>,
}

impl LogStore {
    /// Opens or begins the log in a folder.
    pub fn open(folder: Arc<dyn Folder>, owner: &Owner, segment_bytes: u64) -> Result<LogStore, BadLog> {
        let path = folder.path().to_owned();
        let (wal, recovered) = Wal::open(folder, owner, segment_bytes)?;
        probe::vote_is_recovered(recovered.vote);
        let mut log = Log {
            vote: recovered.vote.map(Vote::from),
            purged: log_id(recovered.purged),
            committed: log_id(recovered.committed),
            ..Log::default()
        };
        for entry in recovered.entries {
            let version = |cause| BadLog::Version { folder: path.clone(), cause };
            log.push(entry.open().map_err(version)?);
        }
        let weight = Arc::new(watch::Sender::new(log.bytes));
        Ok(LogStore { wal: Arc::new(wal), log: Arc::new(Mutex::new(log)), weight })
    }

    /// Whether nothing was ever written: a gateway that starts for the first time, or one that has lost its log.
    pub fn is_empty(&self) -> bool {
        let log = self.lock();
        log.vote.is_none() && log.purged.is_none() && log.entries.is_empty()
    }

    /// Bytes of the envelopes in memory, after every change of the entries.
    pub fn weight(&self) -> watch::Receiver<usize> {
        self.weight.subscribe()
    }

    /// Waits until this very entry is in the log, but not for ever.
    pub async fn reaches(&self, id: LogId, at_most: Duration) {
        let mut changes = self.weight();
        let _there_or_not = timeout(at_most, changes.wait_for(|_| self.lock().has(id))).await;
    }

    fn lock(&self) -> MutexGuard<'_, Log> {
        self.log.lock().expect("invariant: nothing panics while it holds the log")
    }

    /// Changes the entries, and tells who waits for that.
    fn change(&self, change: impl FnOnce(&mut Log)) {
        let mut log = self.lock();
        change(&mut log);
        let bytes = log.bytes;
        drop(log);
        self.weight.send_replace(bytes);
    }

    /// Writes and waits for the disk.
    async fn write(&self, record: Record) -> io::Result<()> {
        let (done, written) = oneshot::channel();
        self.wal.write(vec![record], Some(Box::new(move |result| drop(done.send(result)))));
        written.await.unwrap_or_else(|_| Err(io::Error::other("the log is closed")))
    }
}

impl Log {
    fn push(&mut self, entry: Entry) {
        self.bytes += size(&entry);
        if let Some(before) = self.entries.insert(entry.index(), entry) {
            self.bytes -= size(&before);
        }
    }

    fn truncate(&mut self, first_gone: u64) {
        let gone = self.entries.split_off(&first_gone);
        self.bytes -= gone.values().map(size).sum::<usize>();
    }

    fn purge(&mut self, upto: LogId) {
        let kept = self.entries.split_off(&(upto.index + 1));
        let gone = std::mem::replace(&mut self.entries, kept);
        self.bytes -= gone.values().map(size).sum::<usize>();
        self.purged = Some(upto);
    }

    fn has(&self, id: LogId) -> bool {
        let purged = self.purged.is_some_and(|purged| id.index <= purged.index);
        purged || self.entries.get(&id.index).is_some_and(|entry| entry.log_id() == id)
    }
}

fn size(entry: &Entry) -> usize {
    match &entry.payload {
        Payload::Normal(proposal) => proposal.envelope.as_bytes().len(),
        Payload::Blank | Payload::Membership(_) => 0,
    }
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        Ok(self.lock().entries.range(range).map(|(_, entry)| entry.clone()).collect())
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        let log = self.lock();
        let mut bytes = 0;
        let fits = log.entries.range(start..end).map(|(_, entry)| entry).take_while(|entry| {
            let is_first = bytes == 0;
            bytes += size(entry);
            is_first || bytes <= APPEND_BYTES_MAX
        });
        Ok(fits.cloned().collect())
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.lock().vote)
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        let log = self.lock();
        let last = log.entries.last_key_value().map(|(_, entry)| entry.log_id());
        Ok(LogState { last_purged_log_id: log.purged, last_log_id: last.or(log.purged) })
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        if !probe::is_planted("votes are not saved") {
            self.write(Record::Vote(vote.into())).await?;
        }
        probe::vote_is_saved(vote.into());
        self.lock().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogIdOf<Types>>) -> io::Result<()> {
        self.lock().committed = committed;
        self.wal.write(vec![Record::Committed(wire_id(committed.as_ref()))], None);
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogIdOf<Types>>> {
        Ok(self.lock().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = <Types as RaftTypeConfig>::Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut records = Vec::new();
        self.change(|log| {
            for entry in entries {
                records.push(Record::Append(WireEntry::from(&entry)));
                log.push(entry);
            }
        });
        self.wal.write(records, Some(Box::new(move |result| callback.io_completed(result))));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogIdOf<Types>>) -> io::Result<()> {
        let first_gone = last.map_or(0, |last| last.index + 1);
        self.change(|log| log.truncate(first_gone));
        self.wal.write(vec![Record::TruncateAfter(wire_id(last.as_ref()))], None);
        Ok(())
    }

    async fn purge(&mut self, upto: LogIdOf<Types>) -> io::Result<()> {
        self.change(|log| log.purge(upto));
        self.wal.write(vec![Record::Purge((&upto).into())], None);
        Ok(())
    }
}
