//! Raft's log: in memory for readers, in the write-ahead log for ever.
//!
//! Invariant: whatever is in memory is in the write-ahead log or on its way there, in the same order.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use openraft::alias::LogIdOf;
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{OptionalSend, RaftTypeConfig};
use tokio::sync::oneshot;

use super::types::{Entry, LogId, Types, Vote};
use super::wal::{BadLog, Owner, Record, Wal};
use super::wire::{WireEntry, log_id, wire_id};

/// The log. Clones read the same one.
#[derive(Clone)]
pub struct LogStore {
    wal: Arc<Wal>,
    log: Arc<Mutex<Log>>,
}

#[derive(Default)]
struct Log {
    entries: BTreeMap<u64, Entry>,
    vote: Option<Vote>,
    purged: Option<LogId>,
    committed: Option<LogId>,
}

impl LogStore {
    /// Opens or begins the log in a folder.
    pub fn open(folder: &Path, owner: &Owner) -> Result<LogStore, BadLog> {
        let (wal, recovered) = Wal::open(folder, owner)?;
        let mut entries = BTreeMap::new();
        for entry in recovered.entries {
            let version = |cause| BadLog::Version { folder: folder.to_owned(), cause };
            entries.insert(entry.id.index, entry.open().map_err(version)?);
        }
        let log = Log {
            entries,
            vote: recovered.vote.map(Vote::from),
            purged: log_id(recovered.purged),
            committed: log_id(recovered.committed),
        };
        Ok(LogStore { wal: Arc::new(wal), log: Arc::new(Mutex::new(log)) })
    }

    fn lock(&self) -> MutexGuard<'_, Log> {
        self.log.lock().expect("invariant: nothing panics while it holds the log")
    }

    /// Writes and waits for the disk.
    async fn write(&self, record: Record) -> io::Result<()> {
        let (done, written) = oneshot::channel();
        self.wal.write(vec![record], Some(Box::new(move |result| drop(done.send(result)))));
        written.await.unwrap_or_else(|_| Err(io::Error::other("the log is closed")))
    }
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        Ok(self.lock().entries.range(range).map(|(_, entry)| entry.clone()).collect())
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
        self.write(Record::Vote(vote.into())).await?;
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
        {
            let mut log = self.lock();
            for entry in entries {
                records.push(Record::Append(WireEntry::from(&entry)));
                log.entries.insert(entry.index(), entry);
            }
        }
        self.wal.write(records, Some(Box::new(move |result| callback.io_completed(result))));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogIdOf<Types>>) -> io::Result<()> {
        let first_gone = last.map_or(0, |last| last.index + 1);
        drop(self.lock().entries.split_off(&first_gone));
        self.wal.write(vec![Record::TruncateAfter(wire_id(last.as_ref()))], None);
        Ok(())
    }

    async fn purge(&mut self, upto: LogIdOf<Types>) -> io::Result<()> {
        {
            let mut log = self.lock();
            log.entries = log.entries.split_off(&(upto.index + 1));
            log.purged = Some(upto);
        }
        self.wal.write(vec![Record::Purge((&upto).into())], None);
        Ok(())
    }
}
