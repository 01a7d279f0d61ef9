//! Attempts: what memory has of every attempt of the local driver, and the devices that they hold.
//!
//! Invariants: devices of an attempt are free again only when it is done; what is done stays as it is. The lock is
//! held for looks and changes, never over a disk.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard};

use federation::{JobId, PoolId};
use tokio::sync::watch;

use super::devices::Devices;
use super::folder::Key;
use super::order::{BadOrder, Order};
use super::phase::Phase;
use super::settings::LocalPool;
use super::{AttemptStatus, DriverError};

/// One attempt as it was when somebody last looked.
pub(super) struct Attempt {
    pool: Option<PoolId>,
    devices: Vec<u32>,
    phase: Phase,
}

/// All attempts, and the pools that they are in.
pub(super) struct Attempts {
    pools: BTreeMap<PoolId, (LocalPool, Devices)>,
    table: Mutex<BTreeMap<Key, Attempt>>,
    changes: watch::Sender<u64>,
}

impl Attempts {
    pub fn new(pools: &[LocalPool]) -> Attempts {
        let mut first = 0;
        let mut numbered = BTreeMap::new();
        for pool in pools {
            let devices = Devices { first, nodes: pool.nodes, per_node: pool.gpus_per_node };
            first += pool.nodes * pool.gpus_per_node;
            numbered.insert(pool.id, (pool.clone(), devices));
        }
        Attempts { pools: numbered, table: Mutex::default(), changes: watch::Sender::new(0) }
    }

    pub fn pools(&self) -> impl Iterator<Item = &LocalPool> {
        self.pools.values().map(|(pool, _)| pool)
    }

    /// Whether the pool would have room if nothing else ran.
    pub fn fits(&self, pool: &PoolId, gpus: u32) -> Result<(), BadOrder> {
        let (pool, _) = self.pools.get(pool).ok_or(BadOrder::NoPool)?;
        let all = pool.nodes * pool.gpus_per_node;
        match gpus {
            0 if pool.task_slots == 0 => Err(BadOrder::NoSlots),
            need if need > all => Err(BadOrder::Gpus { all, need }),
            _ => Ok(()),
        }
    }

    /// Devices for an order that are nobody's now. The caller sees to it that nobody else asks until they are somebody's.
    pub fn assign(&self, pool: &PoolId, gpus: u32, nodes: u32) -> Result<Vec<u32>, DriverError> {
        let no_room = |free, need| DriverError::NoRoom { pool: *pool, free, need };
        let (declared, devices) = self.pools.get(pool).ok_or(no_room(0, gpus))?;
        let table = self.lock();
        let running = || table.values().filter(|it| !it.is_done());
        if gpus == 0 {
            let slots = running().filter(|it| it.pool == Some(*pool) && it.devices.is_empty());
            let free = declared.task_slots.saturating_sub(slots.count() as u32);
            return if free > 0 { Ok(vec![]) } else { Err(no_room(0, 1)) };
        }
        let held: BTreeSet<u32> = running().flat_map(|it| it.devices.iter().copied()).collect();
        devices.assign(&held, gpus, nodes).map_err(|free| no_room(free, gpus))
    }

    pub fn status(&self, key: Key) -> AttemptStatus {
        self.phase(key).map_or(AttemptStatus::Unknown, AttemptStatus::from)
    }

    pub fn phase(&self, key: Key) -> Option<Phase> {
        self.lock().get(&key).map(|it| it.phase.clone())
    }

    pub fn keys(&self) -> Vec<(JobId, u32)> {
        self.lock().keys().copied().collect()
    }

    pub fn insert(&self, key: Key, attempt: Attempt) {
        self.lock().insert(key, attempt);
        self.tick();
    }

    pub fn remove(&self, key: Key) {
        self.lock().remove(&key);
        self.tick();
    }

    /// An attempt has moved on.
    pub fn set(&self, key: Key, phase: Phase) {
        if self.lock().get_mut(&key).is_some_and(|attempt| attempt.phase.advance(phase)) {
            self.tick();
        }
    }

    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Something else that is told of has changed.
    pub fn tick(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Attempt>> {
        self.table.lock().expect("invariant: nothing panics while it holds the attempts")
    }
}

impl Attempt {
    pub fn of(order: &Order) -> Attempt {
        Attempt { pool: Some(order.pool), devices: order.devices.clone(), phase: Phase::Starting }
    }

    /// It holds nothing any more.
    pub fn gone(phase: Phase) -> Attempt {
        Attempt { phase, ..Attempt::unreadable() }
    }

    /// Its supervisor cannot read its order either, and the attempt will end with that.
    pub fn unreadable() -> Attempt {
        Attempt { pool: None, devices: Vec::new(), phase: Phase::Starting }
    }

    fn is_done(&self) -> bool {
        self.phase.is_done()
    }
}
