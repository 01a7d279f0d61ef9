//! Gateways: a machine within a world; how it starts, crashes, hears from the log, and writes to its disk.
//!
//! Invariants: a crash ends everything that the gateway was doing, at any point where it waits; a replica applies
//! every entry once, in order, however far behind it is.

use std::{ops::Deref, rc::Rc};

use federation::{Registry, Revision, Timestamp};

use crate::{
    bugs::Bug,
    clockwork::Owner,
    invariants,
    machine::{Change, Machine, Memory},
    world::World,
};

/// Where the simulated wall clocks begin.
const EPOCH_MS: u64 = 1_800_000_000_000;
const LEADER_LOOK_EVERY_MS: u64 = 50;
/// One write and its sync.
const SYNC_MS: (u64, u64) = (1, 8);
/// Replicas that have caught up are compared byte by byte now and then; what each entry does, always.
const COMPARED_ONCE_IN: u64 = 100;
/// A disk that lies is a few writes behind.
const LYING_WRITES: u64 = 3;

/// The replica does not have it in time.
#[derive(Debug)]
pub struct Behind;

#[derive(Clone)]
pub struct Gateway {
    pub world: Rc<World>,
    pub index: usize,
}

impl Deref for Gateway {
    type Target = Machine;
    fn deref(&self) -> &Machine {
        &self.world.machines[self.index]
    }
}

impl Gateway {
    pub fn owner(&self) -> Owner {
        Owner::Gateway(self.index)
    }

    /// Now, by this gateway's clock.
    pub fn now(&self) -> Timestamp {
        Timestamp((EPOCH_MS + self.world.clock.now_ms()).saturating_add_signed(self.skew_ms.get()))
    }

    /// Now, by the clock of this machine that nobody sets.
    pub fn steady_ms(&self) -> u64 {
        self.world.clock.now_ms() * self.pace / 1_000
    }

    pub fn read<T>(&self, read: impl FnOnce(&Registry) -> T) -> T {
        read(&self.replica.borrow())
    }

    pub fn ring(&self) {
        self.moves.set(self.moves.get() + 1);
        self.world.clock.ring(&self.moved);
    }

    pub fn has(&self, bug: Bug) -> bool {
        self.world.bug == Some(bug)
    }

    pub fn is_cut_off(&self) -> bool {
        self.world.clock.now_ms() < self.cut_until_ms.get() && !self.world.calm.get()
    }

    /// Begins everything that a gateway's process does.
    pub fn start(&self) {
        self.up.set(true);
        let open = {
            let disk = self.disk.borrow();
            let open = disk.store.tasks.keys().filter(|job| !disk.store.ended.contains_key(job));
            open.map(|job| (*job, self.world.clock.now_ms())).collect()
        };
        let serial_next = self.lowest_serial();
        *self.memory.borrow_mut() = Memory { open, serial_next, ..Memory::default() };
        self.world.clock.spawn(self.owner(), self.clone().host());
        self.world.clock.spawn(self.owner(), self.clone().keep_ends());
        self.world.clock.spawn(self.owner(), self.clone().publish());
        self.world.clock.spawn(self.owner(), self.clone().witness());
        self.catch_up_later(self.world.head_revision());
    }

    /// A kill at whatever instant, and what is found on disk afterwards.
    pub fn crash(&self) {
        self.world.say(|| format!("{} crashes", self.state()));
        self.up.set(false);
        self.world.clock.end_tasks_of(self.owner());
        *self.memory.borrow_mut() = Memory::default();
        let mut disk = self.disk.borrow_mut();
        let kept = self.world.chance.below(disk.pending.len() as u64 + 1) as usize;
        disk.crash(kept);
        if self.world.chance.one_in(2) {
            disk.snapshot = Some(Rc::new(self.snapshot()));
        }
        let snapshot = disk.snapshot.as_deref().expect("every machine begins with a snapshot");
        *self.replica.borrow_mut() = snapshot.clone();
        self.crash_driver();
    }

    pub fn restart(&self) {
        if !self.up.get() {
            self.world.say(|| format!("{} starts", self.state()));
            self.life.set(self.life.get() + 1);
            self.skip_an_entry();
            self.start();
        }
    }

    /// Makes one change durable.
    pub async fn write(&self, change: Change) {
        let number = self.world.number();
        self.disk.borrow_mut().pending.push((number, change));
        self.world.clock.sleep(self.world.chance.between(SYNC_MS.0, SYNC_MS.1)).await;
        let mut disk = self.disk.borrow_mut();
        disk.finish(number);
        disk.writes += 1;
        if self.has(Bug::HomeDoesNotSync) && (disk.synced.is_none() || disk.writes.is_multiple_of(LYING_WRITES)) {
            disk.synced = Some(Box::new(disk.store.clone()));
        }
    }

    /// Waits until the replica has a revision.
    pub async fn wait_for(&self, revision: Revision, deadline_ms: u64) -> Result<(), Behind> {
        let there = || self.read(|registry| (registry.revision() >= revision).then_some(()));
        self.world.clock.wait(&self.replica_moved, deadline_ms, there).await.ok_or(Behind)
    }

    /// Waits until the replica has everything that was committed when this was called.
    pub async fn linearize(&self, at_most_ms: u64) -> Result<(), Behind> {
        let deadline_ms = self.world.clock.now_ms() + at_most_ms;
        self.world.clock.sleep(self.world.delay_ms()).await;
        while self.is_cut_off() || self.world.is_leaderless() {
            if self.world.clock.now_ms() >= deadline_ms {
                return Err(Behind);
            }
            self.world.clock.sleep(LEADER_LOOK_EVERY_MS).await;
        }
        self.wait_for(self.world.head_revision(), deadline_ms).await
    }

    /// The entries up to a revision are on their way.
    pub fn catch_up_later(&self, to: Revision) {
        let this = self.clone();
        self.world.clock.after(self.world.delay_ms(), move || this.catch_up(to));
    }

    fn catch_up(&self, to: Revision) {
        let closed_until_ms = self.stalled_until_ms.get().max(self.cut_until_ms.get());
        let now_ms = self.world.clock.now_ms();
        if self.up.get() && now_ms < closed_until_ms && !self.world.calm.get() {
            let this = self.clone();
            self.world.clock.after(closed_until_ms - now_ms, move || this.catch_up(to));
        } else if self.up.get() && self.apply_up_to(to) {
            self.world.clock.ring(&self.replica_moved);
            self.ring();
        }
    }

    pub fn catch_up_at_once(&self) {
        self.apply_up_to(self.world.head_revision());
    }

    fn apply_up_to(&self, to: Revision) -> bool {
        let log = self.world.log.borrow();
        let mut replica = self.replica.borrow_mut();
        let entries = log.between(replica.revision(), to);
        for entry in entries {
            let outcomes = replica.apply(entry.revision, &entry.envelope, log.verdict());
            if outcomes != entry.outcomes {
                self.world.diverged(self.state(), entry.revision);
            }
        }
        if self.world.chance.one_in(COMPARED_ONCE_IN) && replica.revision() == log.head().revision() {
            self.world.found(invariants::replicas_agree(self.state(), &log.head().to_bytes(), &replica));
        }
        !entries.is_empty()
    }

    /// The replica as a snapshot stores it; now and then through its bytes.
    fn snapshot(&self) -> Registry {
        let registry = self.replica.borrow();
        if self.world.chance.one_in(16) {
            return Registry::from_bytes(&registry.to_bytes()).expect("a snapshot of a sound registry");
        }
        registry.clone()
    }

    fn skip_an_entry(&self) {
        if self.has(Bug::ReplicaSkipsEntry) && self.read(Registry::revision) < self.world.head_revision() {
            let mut replica = self.replica.borrow_mut();
            let next = Revision(replica.revision().0 + 1);
            replica.advance(next);
        }
    }
}
