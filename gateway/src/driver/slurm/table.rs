//! The table: what memory has of every attempt of one cluster.
//!
//! Invariants: an entry here is what the journal has, or a moment older; what is done stays as it is. The lock is held
//! for looks and changes, never over a disk or a request.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use federation::{End, JobId};
use tokio::sync::watch;

use super::entry::{Entry, Work};
use super::next::{Memory, Next};
use crate::driver::AttemptStatus;
use crate::driver::fault::Fault;
use crate::driver::folder::{Done, Key};

/// One attempt as it was when somebody last looked.
pub(super) struct Row {
    pub entry: Arc<Entry>,
    pub memory: Memory,
    /// What the writer has to ask Slurm for.
    pub wanted: Option<Deed>,
    phase: Phase,
}

/// A request to Slurm about one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deed {
    Post,
    Kill,
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
        Row { entry: Arc::new(entry), memory: Memory::default(), wanted: None, phase: Phase::Starting }
    }

    pub fn done(entry: Entry, done: &std::io::Result<Done>) -> Row {
        Row { phase: Phase::of(done), ..Row::new(entry) }
    }

    pub fn is_done(&self) -> bool {
        matches!(self.phase, Phase::Done { .. })
    }

    pub fn phase(&self) -> &Phase {
        &self.phase
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

    /// The next request for the writer, oldest job first; it is in hand from here on.
    pub fn take_wanted(&self) -> Option<(Key, Deed)> {
        let mut rows = self.lock();
        let (key, row) =
            rows.iter_mut().find(|(_, row)| row.wanted.is_some() && !row.is_done() && !row.memory.in_hand)?;
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

impl Next {
    pub fn deed(&self) -> Option<Deed> {
        match self {
            Next::Post => Some(Deed::Post),
            Next::Kill(_) => Some(Deed::Kill),
            Next::Wait | Next::Ask | Next::Adopt(_) | Next::Look | Next::Conclude => None,
        }
    }
}

impl Entry {
    /// `None` for one that never came.
    pub fn work(&self) -> Option<&Work> {
        self.work.as_ref()
    }
}
