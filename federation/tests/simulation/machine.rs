//! Machines: what one gateway has on its disk, in its memory, and beside it.
//!
//! As the gateway has it: the disk holds home's tasks, keys and ends (one transaction at a time, in order), the block
//! of serials, a snapshot of the registry, and the driver's attempts. Claims, the proposer's queue, patience and the
//! list of open tasks are memory. The log is the federation's, not the machine's.
//! Invariant: a crash takes the memory, the writes that were under way from some point on, and nothing else.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use certs::MemberState;
use federation::{Command, JobId, Outcome, PoolId, Registry, Revision};
use policy::DataClass;

use crate::{clockwork::Bell, factory::Factory, history::AttemptId, packs::Rule, size::Founder};

pub struct Machine {
    pub founder: &'static Founder,
    pub up: Cell<bool>,
    /// Counts starts.
    pub life: Cell<u32>,
    /// The wall clock less the simulated time.
    pub skew_ms: Cell<i64>,
    /// How fast the clock that nobody sets goes, in thousandths.
    pub pace: u64,
    /// Nothing comes in or goes out until then.
    pub cut_until_ms: Cell<u64>,
    /// The replica takes nothing in until then.
    pub stalled_until_ms: Cell<u64>,
    /// What the operator's files say.
    pub configured: Cell<Configured>,
    pub disk: RefCell<Disk>,
    pub memory: RefCell<Memory>,
    pub replica: RefCell<Registry>,
    pub factory: RefCell<Factory>,
    /// Rings when the replica or the driver has moved.
    pub moved: Bell,
    pub moves: Cell<u64>,
    pub replica_moved: Bell,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Configured {
    pub rule: Rule,
    /// The pool is offered at all.
    pub offered: bool,
}

/// What survives.
#[derive(Clone, Default)]
pub struct Disk {
    pub store: Store,
    /// Writes on their way, oldest first.
    pub pending: Vec<(u64, Change)>,
    /// What a disk that lies about its syncs really has.
    pub synced: Option<Box<Store>>,
    pub writes: u64,
    /// Serials below are given out, or may be.
    pub serials_reserved: u64,
    pub snapshot: Option<Rc<Registry>>,
}

/// Home's tables.
#[derive(Clone, Default)]
pub struct Store {
    pub tasks: BTreeMap<JobId, Task>,
    /// The task that a client's key made.
    pub keys: BTreeMap<String, JobId>,
    pub taken: BTreeSet<JobId>,
    /// `true`: it ended as a job; `false`: the registry never took it.
    pub ended: BTreeMap<JobId, bool>,
}

#[derive(Clone)]
pub struct Task {
    pub payload: Vec<u8>,
    pub class: DataClass,
}

#[derive(Clone)]
pub enum Change {
    Accept { job: JobId, task: Task, key: String },
    Forget { job: JobId, key: String },
    Taken(JobId),
    End { job: JobId, as_job: bool },
}

/// What a crash takes.
#[derive(Default)]
pub struct Memory {
    pub in_progress: BTreeSet<String>,
    pub waiting: Vec<Waiting>,
    pub flush_due: bool,
    pub in_flight: u32,
    pub serial_next: u64,
    pub claims: BTreeSet<Subject>,
    /// Until when what must not run twice may go on, for the newest report.
    pub leased_until_ms: u64,
    pub unanswered: BTreeMap<AttemptId, u64>,
    /// Tasks whose end is still to come, and since when they are proposed.
    pub open: BTreeMap<JobId, u64>,
    /// Keys, where a planted bug keeps them here.
    pub keys: BTreeMap<String, JobId>,
    /// Duties that a planted bug takes for done.
    pub given_up: BTreeSet<Subject>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    Attempt(JobId, u32),
    Waiting(JobId),
    Pool(PoolId),
}

/// A command that waits for the next envelope.
pub struct Waiting {
    pub command: Command,
    pub deadline_ms: u64,
    pub answer: Rc<Answer>,
}

/// Where the answer to one command arrives.
#[derive(Default)]
pub struct Answer {
    pub bell: Bell,
    /// It is on its way, and cannot be taken back.
    pub sent: Cell<bool>,
    pub value: RefCell<Option<Result<(Revision, Outcome), NotCommitted>>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotCommitted {
    /// Surely not.
    NoLeader,
    /// Perhaps.
    Unknown,
    /// The envelope itself was rejected.
    Refused,
}

impl Machine {
    pub fn new(founder: &'static Founder, registry: &Registry, skew_ms: i64, pace: u64) -> Machine {
        let disk = Disk { snapshot: Some(Rc::new(registry.clone())), serials_reserved: 2, ..Disk::default() };
        Machine {
            founder,
            up: Cell::new(true),
            life: Cell::new(1),
            skew_ms: Cell::new(skew_ms),
            pace,
            cut_until_ms: Cell::new(0),
            stalled_until_ms: Cell::new(0),
            configured: Cell::new(Configured { rule: Rule::Everything, offered: true }),
            disk: RefCell::new(disk),
            memory: RefCell::default(),
            replica: RefCell::new(registry.clone()),
            factory: RefCell::default(),
            moved: Bell::default(),
            moves: Cell::new(0),
            replica_moved: Bell::default(),
        }
    }

    pub fn state(&self) -> MemberState {
        self.founder.id.state
    }
}

impl Disk {
    /// The next write is done, in the order in which they were begun.
    pub fn finish(&mut self, number: u64) {
        while self.pending.first().is_some_and(|(first, _)| *first <= number) {
            let (_, change) = self.pending.remove(0);
            self.store.carry_out(change);
        }
    }

    /// What is found after a crash: the first `kept` of the writes under way were done.
    pub fn crash(&mut self, kept: usize) {
        if let Some(synced) = &self.synced {
            self.store = Store::clone(synced);
        }
        let pending = std::mem::take(&mut self.pending);
        pending.into_iter().take(kept).for_each(|(_, change)| self.store.carry_out(change));
    }
}

impl Store {
    fn carry_out(&mut self, change: Change) {
        match change {
            Change::Accept { job, task, key } => {
                self.tasks.insert(job, task);
                self.keys.insert(key, job);
                // An earlier try may have been given up.
                self.ended.remove(&job);
            }
            Change::Forget { job, key } => {
                self.tasks.remove(&job);
                self.keys.remove(&key);
            }
            Change::Taken(job) => drop(self.taken.insert(job)),
            Change::End { job, as_job } => drop(self.ended.insert(job, as_job)),
        }
    }
}
