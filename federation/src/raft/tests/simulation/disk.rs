//! A disk that keeps what was synced, and of the rest whatever chance leaves of it.
//!
//! Invariants: a crash keeps all that was synced; of a write that was not, each sector of 512 bytes is there or not; of the
//! names that were not synced, those up to some change are there. What follows a cut of the power fails.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use super::chance::Chance;
use crate::raft::folder::{File, Folder};

const SECTOR: usize = 512;
/// EMFILE.
const NO_DESCRIPTOR: i32 = 24;

/// What a disk does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    Full,
    FailsToWrite,
    /// And what was to be synced is lost, although it can still be read.
    FailsToSync,
    /// The process has no descriptor left: what is open goes on.
    OpensNothing,
}

pub struct Disk {
    state: Mutex<State>,
    chance: Chance,
}

#[derive(Default)]
struct State {
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    /// The names after each change that is not synced.
    changes: Vec<BTreeMap<String, u64>>,
    files: BTreeMap<u64, Content>,
    next: u64,
    wrong: Option<Wrong>,
    /// Operations until the power is cut.
    cut_after: Option<u64>,
    is_off: bool,
    slow_us: u64,
    /// Planted: says that it is synced, and is not.
    ignores_sync: bool,
}

#[derive(Clone, Default)]
struct Content {
    seen: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<(usize, Vec<u8>)>,
}

impl Disk {
    pub fn new(seed: u64, ignores_sync: bool) -> Arc<Disk> {
        let state = State { slow_us: 400, ignores_sync, ..State::default() };
        Arc::new(Disk { state: Mutex::new(state), chance: Chance::seeded(seed) })
    }

    /// As a member sees it until the next crash.
    pub fn folder(self: &Arc<Disk>) -> Arc<dyn Folder> {
        Arc::new(Mounted(Arc::clone(self)))
    }

    /// Everything goes wrong from the next operation on, or nothing does.
    pub fn set_wrong(&self, wrong: Option<Wrong>) {
        self.lock().wrong = wrong;
    }

    pub fn cut_power_after(&self, operations: u64) {
        self.lock().cut_after = Some(operations);
    }

    pub fn keep_power(&self) {
        self.lock().cut_after = None;
    }

    pub fn is_wrong(&self) -> bool {
        self.lock().wrong.is_some()
    }

    pub fn is_off(&self) -> bool {
        self.lock().is_off
    }

    /// Microseconds that an operation takes at most.
    pub fn slow_us(&self) -> u64 {
        self.lock().slow_us
    }

    pub fn set_slow_us(&self, slow_us: u64) {
        self.lock().slow_us = slow_us;
    }

    /// Whatever has not arrived does so in parts, or never. The disk is off until it is [started](Disk::start).
    pub fn crash(&self) {
        let state = &mut *self.lock();
        for content in state.files.values_mut() {
            for (at, bytes) in std::mem::take(&mut content.unsynced) {
                let (all, none) = (self.chance.one_in(4), self.chance.one_in(2));
                for (place, sector) in sectors(at, &bytes) {
                    if all || (!none && self.chance.one_in(2)) {
                        put(&mut content.durable, place, sector);
                    }
                }
            }
            content.seen = content.durable.clone();
        }
        let kept = self.chance.below(state.changes.len() as u64 + 1) as usize;
        if let Some(names) = kept.checked_sub(1).map(|last| state.changes[last].clone()) {
            state.durable_names = names;
        }
        state.changes.clear();
        state.names = state.durable_names.clone();
        state.files.retain(|file, _| state.names.values().any(|named| named == file));
        state.is_off = true;
    }

    pub fn start(&self) {
        let mut state = self.lock();
        (state.is_off, state.cut_after, state.wrong) = (false, None, None);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The disk for one operation that takes a descriptor.
    fn operate_anew(&self, writes: bool) -> io::Result<MutexGuard<'_, State>> {
        let state = self.operate(writes)?;
        match state.wrong {
            Some(Wrong::OpensNothing) => Err(io::Error::from_raw_os_error(NO_DESCRIPTOR)),
            _ => Ok(state),
        }
    }

    /// The disk for one operation, if it does it at all.
    fn operate(&self, writes: bool) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.lock();
        if let Some(left) = &mut state.cut_after {
            match left.checked_sub(1) {
                Some(less) => *left = less,
                None => state.is_off = true,
            }
        }
        if state.is_off {
            return Err(io::Error::other("the power is off"));
        }
        match state.wrong {
            Some(Wrong::Full) if writes => Err(io::ErrorKind::StorageFull.into()),
            Some(Wrong::FailsToWrite) if writes => Err(io::Error::other("the disk fails to write")),
            _ => Ok(state),
        }
    }
}

impl State {
    fn id(&self, name: &str) -> io::Result<u64> {
        self.names.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn rename(&mut self, change: impl FnOnce(&mut BTreeMap<String, u64>)) {
        change(&mut self.names);
        self.changes.push(self.names.clone());
    }
}

fn put(content: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if content.len() < at + bytes.len() {
        content.resize(at + bytes.len(), 0);
    }
    content[at..at + bytes.len()].copy_from_slice(bytes);
}

/// A write as the sectors that it touches.
fn sectors(at: usize, bytes: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let first = (SECTOR - at % SECTOR).min(bytes.len());
    let (head, rest) = bytes.split_at(first);
    let rest = rest.chunks(SECTOR).enumerate().map(move |(nth, sector)| (at + first + nth * SECTOR, sector));
    std::iter::once((at, head)).chain(rest)
}

struct Mounted(Arc<Disk>);

impl Folder for Mounted {
    fn path(&self) -> &Path {
        Path::new("simulated")
    }

    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.0.operate_anew(false)?.names.keys().cloned().collect())
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let state = self.0.operate_anew(false)?;
        Ok(state.files[&state.id(name)?].seen.clone())
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn File>> {
        let mut state = self.0.operate_anew(true)?;
        state.next += 1;
        let id = state.next;
        state.files.insert(id, Content::default());
        state.rename(|names| {
            names.insert(name.to_owned(), id);
        });
        Ok(Box::new(Open { disk: Arc::clone(&self.0), id }))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn File>> {
        let id = self.0.operate_anew(false)?.id(name)?;
        Ok(Box::new(Open { disk: Arc::clone(&self.0), id }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.0.operate(true)?;
        let id = state.id(from)?;
        state.rename(|names| {
            names.remove(from);
            names.insert(to.to_owned(), id);
        });
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.0.operate(false)?;
        state.id(name)?;
        state.rename(|names| {
            names.remove(name);
        });
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.0.operate_anew(false)?;
        if state.wrong == Some(Wrong::FailsToSync) {
            return Err(io::Error::other("the disk fails to sync"));
        }
        if !state.ignores_sync {
            state.durable_names = state.names.clone();
            state.changes.clear();
        }
        Ok(())
    }
}

struct Open {
    disk: Arc<Disk>,
    id: u64,
}

impl File for Open {
    fn size(&self) -> io::Result<u64> {
        Ok(self.disk.operate(false)?.files[&self.id].seen.len() as u64)
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let mut state = self.disk.operate(true)?;
        let content = state.files.get_mut(&self.id).unwrap();
        put(&mut content.seen, at as usize, bytes);
        content.unsynced.push((at as usize, bytes.to_vec()));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.operate(false)?;
        let (wrong, ignores_sync) = (state.wrong, state.ignores_sync);
        let content = state.files.get_mut(&self.id).unwrap();
        if wrong == Some(Wrong::FailsToSync) {
            content.unsynced.clear();
            return Err(io::Error::other("the disk fails to sync"));
        }
        if !ignores_sync {
            for (at, bytes) in std::mem::take(&mut content.unsynced) {
                put(&mut content.durable, at, &bytes);
            }
        }
        Ok(())
    }
}
