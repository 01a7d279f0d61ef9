//! Factories: a driver and the scheduler behind it, as a gateway sees them.
//!
//! As the drivers promise: an attempt is claimed on disk before anything of it runs; what was claimed or cancelled
//! once is never claimed again; processes outlive the gateway; an attempt is done when its last process is gone.
//! Local users take GPUs as they like, and what is lent says so.
//! Invariant: what runs is what was claimed, unless a planted bug forgets claims.

use std::collections::BTreeMap;

use federation::{CapacityReport, End, JobState, NodeCount, PoolId, Timestamp};

use crate::{
    bugs::Bug,
    gateway::Gateway,
    history::{AttemptId, HandedOver, Run},
    host::permits,
    size::{GPUS_PER_NODE, NODES},
};

/// From the claim to the first step.
const STARTS_MS: (u64, u64) = (1, 400);
/// From being asked to stop until everything is gone.
const STOPS_MS: (u64, u64) = (1, 300);
/// Between two looks at a lease.
const LEASE_LOOK_EVERY_MS: u64 = 50;
/// How much of what was claimed last a disk loses that was never synced.
const UNSYNCED_MS: u64 = 2_000;

#[derive(Default)]
pub struct Factory {
    held: BTreeMap<AttemptId, Held>,
    processes: BTreeMap<u64, Process>,
    /// GPUs that local users have taken of each node.
    taken: [u32; NODES as usize],
}

/// What the driver's table says of an attempt.
#[derive(Clone)]
struct Held {
    claimed_ms: u64,
    process: Option<u64>,
    status: Status,
    /// On the machine's own clock; `None` for one that needs no lease.
    lease_until_ms: Option<u64>,
}

struct Process {
    attempt: AttemptId,
    gpus: u32,
    /// In the history, once it runs.
    run: Option<usize>,
    stopping: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    Unknown,
    Starting,
    Running { started_ms: u64 },
    Done { end: End, started_ms: Option<u64> },
}

/// What a driver is told to run.
#[derive(Clone, Debug)]
pub struct Work {
    pub attempt: AttemptId,
    pub pool: PoolId,
    pub gpus: u32,
    pub exclusive: bool,
    pub lease_until_ms: Option<u64>,
    /// How long it takes.
    pub run_ms: u64,
    pub end: End,
}

/// Processes of an earlier attempt still hold the GPUs.
#[derive(Debug)]
pub struct NoRoom;

impl Factory {
    pub fn poll(&self, attempt: AttemptId) -> Status {
        self.held.get(&attempt).map_or(Status::Unknown, |held| held.status.clone())
    }

    pub fn held(&self) -> Vec<AttemptId> {
        self.held.keys().copied().collect()
    }

    /// What the pool lends: the federation's own jobs are not subtracted.
    pub fn capacity(&self, pool: PoolId, at: Timestamp) -> CapacityReport {
        let lent = |gpus| self.taken.iter().filter(|taken| GPUS_PER_NODE - **taken == gpus).count() as u32;
        let counts = (0..=GPUS_PER_NODE).rev().map(|gpus| NodeCount { gpus, nodes: lent(gpus) });
        CapacityReport { pool, lendable: counts.filter(|it| it.nodes > 0).collect(), at, problem: None }
    }

    pub fn local_users_take(&mut self, gpus: [u32; NODES as usize]) {
        self.taken = gpus;
    }

    /// What a planted bug makes of a crash.
    pub fn lose_unsynced(&mut self, now_ms: u64) {
        self.held.retain(|_, held| held.claimed_ms + UNSYNCED_MS < now_ms);
    }

    pub fn renew(&mut self, attempt: AttemptId, until_ms: u64) {
        let lease = self.held.get_mut(&attempt).and_then(|held| held.lease_until_ms.as_mut());
        lease.into_iter().for_each(|lease| *lease = until_ms);
    }

    fn used(&self) -> u32 {
        self.processes.values().map(|process| process.gpus).sum()
    }
}

impl Gateway {
    /// Takes an order: twice is once, and one that was cancelled before it came is not carried out.
    pub async fn hand_to_driver(&self, work: Work) -> Result<(), NoRoom> {
        let wanted = self.wanted(work.attempt, JobState::Starting).is_some();
        self.world.clock.sleep(self.world.chance.between(1, 15)).await;
        self.claim(work, wanted)
    }

    fn claim(&self, work: Work, wanted: bool) -> Result<(), NoRoom> {
        let (attempt, now_ms) = (work.attempt, self.world.clock.now_ms());
        if self.factory.borrow().held.contains_key(&attempt) {
            return Ok(());
        }
        if self.factory.borrow().used() + work.gpus > NODES * GPUS_PER_NODE {
            return Err(NoRoom);
        }
        let process = self.world.number();
        let lease_until_ms = work.lease_until_ms;
        let held = Held { claimed_ms: now_ms, process: Some(process), status: Status::Starting, lease_until_ms };
        let runs = Process { attempt, gpus: work.gpus, run: None, stopping: false };
        self.factory.borrow_mut().held.insert(attempt, held);
        self.factory.borrow_mut().processes.insert(process, runs);
        self.note_hand_over(attempt, wanted, now_ms);
        if work.lease_until_ms.is_some() {
            self.look_at_lease_later(attempt, process);
        }
        let starts_ms = self.world.chance.between(STARTS_MS.0, STARTS_MS.1);
        let this = self.clone();
        self.world.clock.after(starts_ms, move || this.begin_process(process, work));
        Ok(())
    }

    fn note_hand_over(&self, attempt: AttemptId, wanted: bool, at_ms: u64) {
        self.world.say(|| format!("{} claims {} {}", self.state(), attempt.0, attempt.1));
        let permitted_by_then =
            self.read(|registry| registry.job(&attempt.0).is_some_and(|job| permits(registry, job)));
        if !permitted_by_then {
            self.world
                .say(|| format!("by now the pack of {} does not permit {} {}", self.state(), attempt.0, attempt.1));
        }
        let mut history = self.world.history.borrow_mut();
        let order = history.orders.get(&attempt).copied();
        let (host, life) = (self.index, self.life.get());
        history.note().handed_over.push(HandedOver { attempt, host, life, at_ms, order, wanted, permitted_by_then });
    }

    /// As a supervisor does it, which outlives the gateway.
    fn look_at_lease_later(&self, attempt: AttemptId, process: u64) {
        let this = self.clone();
        self.world.clock.after(LEASE_LOOK_EVERY_MS, move || {
            if this.factory.borrow().processes.get(&process).is_none_or(|process| process.stopping) {
                return;
            }
            if this.is_lease_over(attempt) {
                this.stop_process(attempt, End::lost("its gateway could not renew its lease"));
            } else {
                this.look_at_lease_later(attempt, process);
            }
        });
    }

    fn is_lease_over(&self, attempt: AttemptId) -> bool {
        let lease = self.factory.borrow().held.get(&attempt).and_then(|held| held.lease_until_ms);
        !self.has(Bug::DriverIgnoresLeases) && lease.is_some_and(|until_ms| until_ms <= self.steady_ms())
    }

    fn begin_process(&self, number: u64, work: Work) {
        let (now_ms, started_ms) = (self.world.clock.now_ms(), self.now().0);
        if self.is_lease_over(work.attempt) {
            self.stop_process(work.attempt, End::lost("its gateway could not renew its lease"));
            return;
        }
        {
            let mut factory = self.factory.borrow_mut();
            let Some(process) = factory.processes.get_mut(&number).filter(|process| !process.stopping) else {
                return;
            };
            let mut history = self.world.history.borrow_mut();
            process.run = Some(history.runs.len());
            history.note().runs.push(Run {
                attempt: work.attempt,
                pool: work.pool,
                gpus: work.gpus,
                exclusive: work.exclusive,
                began_ms: now_ms,
                gone_ms: None,
                clock_set_back: false,
            });
            if let Some(held) = factory.held.get_mut(&work.attempt).filter(|held| held.process == Some(number)) {
                held.status = Status::Running { started_ms };
            }
        }
        self.world.say(|| format!("{} runs {} {}", self.state(), work.attempt.0, work.attempt.1));
        self.ring();
        let this = self.clone();
        self.world.clock.after(work.run_ms, move || this.end_process(number, work.end));
    }

    /// A process is gone, if it was not before.
    fn end_process(&self, number: u64, end: End) {
        {
            let mut factory = self.factory.borrow_mut();
            let Some(process) = factory.processes.remove(&number) else {
                return;
            };
            let mut history = self.world.history.borrow_mut();
            if let Some(run) = process.run {
                history.note().runs[run].gone_ms = Some(self.world.clock.now_ms());
            }
            self.world.say(|| format!("{} ends {} {}: {end:?}", self.state(), process.attempt.0, process.attempt.1));
            if let Some(held) = factory.held.get_mut(&process.attempt).filter(|held| held.process == Some(number)) {
                let started_ms = match held.status {
                    Status::Running { started_ms } => Some(started_ms),
                    _ => None,
                };
                held.status = Status::Done { end, started_ms };
            }
        }
        self.ring();
    }

    /// Asks for a stop. An attempt that is not known will never run.
    pub async fn cancel_at_driver(&self, attempt: AttemptId) {
        self.world.clock.sleep(self.world.chance.between(1, 15)).await;
        self.stop_process(attempt, End::Canceled);
    }

    fn stop_process(&self, attempt: AttemptId, end: End) {
        let now_ms = self.world.clock.now_ms();
        let known = self.factory.borrow().held.get(&attempt).cloned();
        match known {
            None => {
                let status = Status::Done { end, started_ms: None };
                let buried = Held { claimed_ms: now_ms, process: None, status, lease_until_ms: None };
                self.factory.borrow_mut().held.insert(attempt, buried);
            }
            Some(held) => {
                let Some(number) = held.process.filter(|_| !matches!(held.status, Status::Done { .. })) else {
                    return;
                };
                if let Some(process) = self.factory.borrow_mut().processes.get_mut(&number) {
                    process.stopping = true;
                }
                let (this, stops_ms) = (self.clone(), self.world.chance.between(STOPS_MS.0, STOPS_MS.1));
                self.world.clock.after(stops_ms, move || this.end_process(number, end));
            }
        }
    }

    /// A fault: the machine ends an attempt, whatever it is doing.
    pub fn kill_any_process(&self) {
        let attempts: Vec<_> = self.factory.borrow().processes.values().map(|process| process.attempt).collect();
        if !attempts.is_empty() {
            let attempt = self.world.chance.pick(&attempts);
            self.world.say(|| format!("{} kills {} {}", self.state(), attempt.0, attempt.1));
            self.stop_process(attempt, End::system_error("a node failed"));
        }
    }

    /// What a crash of the machine makes of the driver's table.
    pub fn crash_driver(&self) {
        if self.world.bug == Some(Bug::DriverDoesNotSync) {
            self.factory.borrow_mut().lose_unsynced(self.world.clock.now_ms());
        }
    }
}
