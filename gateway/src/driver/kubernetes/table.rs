//! The table: what memory has of every attempt of one cluster.
//!
//! Invariants: an entry here is what the journal has, or a moment older; what is done stays as it is. The lock is held
//! for looks and changes, never over a disk or a request.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};

use federation::{End, JobId};
use tokio::sync::watch;

use super::entry::Entry;
use super::next::Memory;
use crate::driver::AttemptStatus;
use crate::driver::fault::Fault;
use crate::driver::folder::{Done, Key};

/// One attempt as it was when somebody last looked.
pub(super) struct Row {
    pub entry: Arc<Entry>,
    pub memory: Memory,
    /// What the writer has to ask Kubernetes for.
    pub wanted: Option<Deed>,
    phase: Phase,
}

/// A request to Kubernetes about one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Deed {
    Post,
    MakeSecret,
    /// Of the Job with this uid.
    Delete {
        uid: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Starting,
    Running { started_ms: u64 },
    Done { end: End, started_ms: Option<u64> },
}

/// All attempts of one cluster.
pub(super) struct Table {
    rows: Mutex<BTreeMap<Key, Row>>,
    changes: watch::Sender<u64>,
}

impl Row {
    pub fn new(entry: Entry) -> Row {
        let memory = Memory::of(&entry);
        Row { entry: Arc::new(entry), memory, wanted: None, phase: Phase::Starting }
    }

    pub fn done(entry: Entry, done: &std::io::Result<Done>) -> Row {
        Row { phase: Phase::of(done), ..Row::new(entry) }
    }

    pub fn is_done(&self) -> bool {
        matches!(self.phase, Phase::Done { .. })
    }
}

impl Phase {
    /// One whose file is damaged ran, so it must not run again.
    pub fn of(done: &std::io::Result<Done>) -> Phase {
        match done {
            Ok(done) => Phase::Done { end: done.end.clone(), started_ms: done.record.running_ms },
            Err(_) => Phase::Done { end: Fault::Unreadable.end(), started_ms: None },
        }
    }
}

impl Table {
    pub fn new() -> Table {
        Table { rows: Mutex::default(), changes: watch::Sender::new(0) }
    }

    pub fn status(&self, key: Key) -> AttemptStatus {
        match self.lock().get(&key).map(|row| row.phase.clone()) {
            None => AttemptStatus::Unknown,
            Some(Phase::Starting) => AttemptStatus::Starting,
            Some(Phase::Running { started_ms }) => AttemptStatus::Running { started_ms },
            Some(Phase::Done { end, started_ms }) => AttemptStatus::Done { end, started_ms },
        }
    }

    pub fn keys(&self) -> Vec<(JobId, u32)> {
        self.lock().keys().copied().collect()
    }

    /// Every Job that is known to be ours, by its uid, and its namespace.
    pub fn uids(&self) -> HashMap<String, String> {
        let rows = self.lock();
        let known = rows.values().filter_map(|row| Some((row.entry.uid.clone()?, row.entry.namespace().to_owned())));
        known.collect()
    }

    /// Those that are not done.
    pub fn open_keys(&self) -> Vec<Key> {
        self.lock().iter().filter(|(_, row)| !row.is_done()).map(|(key, _)| *key).collect()
    }

    pub fn insert(&self, key: Key, row: Row) {
        self.lock().insert(key, row);
        self.tick();
    }

    pub fn remove(&self, key: Key) {
        self.lock().remove(&key);
        self.tick();
    }

    /// Looks at a row or changes it, as long as it is there.
    pub fn with<T>(&self, key: Key, change: impl FnOnce(&mut Row) -> T) -> Option<T> {
        self.lock().get_mut(&key).map(change)
    }

    pub fn entry(&self, key: Key) -> Option<Arc<Entry>> {
        self.with(key, |row| Arc::clone(&row.entry))
    }

    /// Moves a row on. What is done stays so, and what runs does not start again.
    pub fn advance(&self, key: Key, phase: Phase) {
        let moved = self.with(key, |row| {
            let moves = !row.is_done() && row.phase != phase && phase != Phase::Starting;
            if moves {
                row.phase = phase;
            }
            moves
        });
        if moved == Some(true) {
            self.tick();
        }
    }

    /// The next request for the writer: what ends a job first, and then that of the oldest; it is in hand from here on.
    pub fn take_wanted(&self) -> Option<(Key, Deed)> {
        let mut rows = self.lock();
        let wanted = rows.iter_mut().filter(|(_, row)| row.wanted.is_some() && !row.is_done() && !row.memory.in_hand);
        let (key, row) = wanted.min_by_key(|(_, row)| !matches!(row.wanted, Some(Deed::Delete { .. })))?;
        row.memory.in_hand = true;
        row.wanted.take().map(|deed| (*key, deed))
    }

    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    pub fn tick(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Row>> {
        self.rows.lock().expect("invariant: nothing panics while it holds the attempts")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_a_job_is_asked_for_first_and_nothing_twice_at_once() {
        let table = Table::new();
        let [first, second] = [1, 2].map(|number| (JobId::new(number, [0; 10]), 1));
        for key in [first, second] {
            table.insert(key, Row::new(Entry::buried()));
        }
        let want = |key, deed| table.with(key, |row| row.wanted = Some(deed)).expect("a row");
        let delete = || Deed::Delete { uid: "u".into() };
        want(first, Deed::Post);
        want(second, delete());
        assert_eq!(table.take_wanted(), Some((second, delete())));
        want(second, delete());
        assert_eq!(table.take_wanted(), Some((first, Deed::Post)));
        assert_eq!(table.take_wanted(), None, "it is in hand");
        table.with(second, |row| row.memory.in_hand = false);
        assert_eq!(table.take_wanted(), Some((second, delete())));
    }
}
