//! The world of one run: the log, the machines, simulated time, and the audit after every step.
//! Invariant: a run is a function of its seed, its size and its planted bug.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use certs::{Envelope, Header, MemberState, SigningKey};
use federation::{Job, Revision, Verdict};

use crate::{
    bugs::Bug,
    chance::Chance,
    clockwork::Clockwork,
    gateway::Gateway,
    history::History,
    invariants::{self, Checked, Invariant, View, Violation},
    log::{Entry, Log},
    machine::Machine,
    sights::Sights,
    size::Size,
    trace::Trace,
};

/// Nothing goes wrong any more: patience, a commit that nobody answers, and the longest tasks, one after the other.
const RECOVERY_MS: u64 = 30_000;
/// Far above what a run takes; beyond it something spins.
const STEPS_MAX: u64 = 2_000_000;
const FIRST_SKEW_MAX_MS: u64 = 5_000;
/// Clocks that nobody sets go up to a twentieth too fast or too slow.
const PACES: (u64, u64) = (950, 1_050);
/// First byte of an envelope, and the length of its signature.
const ENVELOPE_FORMAT: u8 = 1;
const SIGNATURE_BYTES: usize = 64;

pub struct World {
    pub size: &'static Size,
    pub bug: Option<Bug>,
    pub clock: Clockwork,
    pub chance: Chance,
    /// Nothing goes wrong any more.
    pub calm: Cell<bool>,
    pub leaderless_until_ms: Cell<u64>,
    pub log: RefCell<Log>,
    pub machines: Vec<Machine>,
    pub history: RefCell<History>,
    /// Clients that have no answer yet.
    pub clients: Cell<usize>,
    signed: bool,
    issued: Cell<u64>,
    trace: Trace,
    view: RefCell<View>,
    violation: RefCell<Option<Violation>>,
    /// The only invariant that counts, where a planted bug breaks several.
    watched: Option<Invariant>,
}

/// What a run is made of, beside its seed.
#[derive(Clone, Copy)]
pub struct Setting {
    pub size: &'static Size,
    pub bug: Option<Bug>,
    pub watched: Option<Invariant>,
    /// Sign and verify every envelope.
    pub signed: bool,
    pub text: bool,
}

impl Setting {
    /// A run without a planted bug, as it is made by the thousand.
    pub fn of(size: &'static Size) -> Setting {
        Setting { size, bug: None, watched: None, signed: false, text: false }
    }
}

/// What became of a run.
pub struct Report {
    pub digest: u64,
    pub violation: Option<Violation>,
    pub lines: Vec<String>,
    pub sights: Sights,
}

impl World {
    fn new(seed: u64, setting: Setting) -> Rc<World> {
        let (founded, chance) = (setting.size.founded(), Chance::seeded(seed));
        let skew_ms = || chance.below(2 * FIRST_SKEW_MAX_MS) as i64 - FIRST_SKEW_MAX_MS as i64;
        let pace = || chance.between(PACES.0, PACES.1);
        let machine = |founder| Machine::new(founder, &founded.registry, skew_ms(), pace());
        let machines = founded.members.iter().map(machine).collect();
        let verdict = if setting.signed { Verdict::Unknown } else { Verdict::Verified };
        Rc::new(World {
            size: setting.size,
            bug: setting.bug,
            clock: Clockwork::default(),
            calm: Cell::new(false),
            leaderless_until_ms: Cell::new(0),
            log: RefCell::new(Log::after(founded.registry.clone(), verdict)),
            machines,
            history: RefCell::default(),
            clients: Cell::new(0),
            signed: setting.signed,
            issued: Cell::new(0),
            trace: Trace::with_text(setting.text),
            view: RefCell::new(View::of(&founded.registry, None)),
            violation: RefCell::new(None),
            watched: setting.watched,
            chance,
        })
    }

    pub fn gateways(self: &Rc<World>) -> impl Iterator<Item = Gateway> {
        (0..self.machines.len()).map(|index| Gateway { world: Rc::clone(self), index })
    }

    pub fn any_gateway(self: &Rc<World>) -> Gateway {
        Gateway { world: Rc::clone(self), index: self.chance.below(self.machines.len() as u64) as usize }
    }

    pub fn gateway_of(self: &Rc<World>, state: MemberState) -> Gateway {
        self.gateways().find(|gateway| gateway.state() == state).expect("a member of the federation")
    }

    pub fn number(&self) -> u64 {
        self.issued.set(self.issued.get() + 1);
        self.issued.get()
    }

    pub fn say(&self, line: impl FnOnce() -> String) {
        self.trace.say(self.clock.now_ms(), line);
    }

    /// Whether something that goes wrong once in so many times goes wrong now.
    pub fn goes_wrong(&self, once_in: u64) -> bool {
        !self.calm.get() && self.chance.one_in(once_in)
    }

    /// How long a message takes: mostly not long, sometimes long enough to be overtaken by many.
    pub fn delay_ms(&self) -> u64 {
        if self.calm.get() {
            return self.chance.between(1, 8);
        }
        let slow = (self.size.late_once_in / 10).max(1);
        match self.chance.below(self.size.late_once_in) {
            0 => self.chance.between(300, self.size.late_ms),
            it if it <= slow => self.chance.between(20, 300),
            _ => self.chance.between(1, 20),
        }
    }

    pub fn is_leaderless(&self) -> bool {
        self.clock.now_ms() < self.leaderless_until_ms.get() && !self.calm.get()
    }

    pub fn head_revision(&self) -> Revision {
        self.log.borrow().head().revision()
    }

    /// What Raft does: the envelope gets the next place in the log, and every replica hears of it.
    pub fn commit(self: &Rc<World>, envelope: Envelope) -> Entry {
        let entry = self.log.borrow_mut().commit(envelope);
        self.trace.mix_bytes(entry.envelope.body());
        self.say(|| format!("{} {}: {:?}", entry.revision, entry.envelope.header().owner, entry.outcomes));
        self.gateways().for_each(|gateway| gateway.catch_up_later(entry.revision));
        entry
    }

    /// An envelope, really signed if this run verifies.
    pub fn seal(&self, header: Header, body: &[u8], key: &SigningKey) -> Envelope {
        if self.signed {
            return Envelope::seal(header, body, key).expect("a small envelope");
        }
        let mut bytes = postcard::to_extend(&(header, body), vec![ENVELOPE_FORMAT]).expect("it serialises");
        bytes.extend_from_slice(&[0; SIGNATURE_BYTES]);
        Envelope::parse(&bytes).expect("an envelope without a signature")
    }

    pub fn diverged(&self, state: MemberState, revision: Revision) {
        let text = format!("{state} saw another outcome at revision {revision}");
        self.found(Err(Violation { invariant: Invariant::ReplicasAgree, text }));
    }

    /// Keeps the first violation.
    pub fn found(&self, checked: Checked) {
        let Err(violation) = checked else {
            return;
        };
        if self.watched.is_none_or(|watched| watched == violation.invariant) {
            self.violation.borrow_mut().get_or_insert(violation);
        }
    }

    fn audit(&self, seen: &mut (Revision, u64)) {
        let now = (self.head_revision(), self.history.borrow().notes);
        if now == *seen {
            return;
        }
        let (history, log) = (self.history.borrow(), self.log.borrow());
        let head = log.head();
        if now.0 != seen.0 {
            let view = View::of(head, self.bug);
            self.found(invariants::nothing_oversold(&self.view.borrow(), &view));
            self.found(invariants::one_current_attempt(&view));
            self.found(invariants::one_task_per_key(head));
            self.view.replace(view);
        }
        let kept = |job: &Job| {
            let home = self.machines.iter().find(|machine| machine.state() == job.home);
            home.is_some_and(|home| home.disk.borrow().store.tasks.contains_key(&job.id))
        };
        self.found(invariants::nothing_acknowledged_forgotten(&history, head, kept));
        self.found(invariants::nothing_overrun(&history));
        self.found(invariants::attempts_start_once(&history));
        self.found(invariants::exclusive_runs_alone(&history));
        self.found(invariants::nothing_runs_after_its_end(&history, head));
        self.found(invariants::packs_permit_starts(&history));
        self.found(invariants::starts_are_wanted(&history));
        self.found(invariants::packs_permit_leaving(&history));
        self.found(invariants::usage_is_what_ran(&history, head));
        *seen = now;
    }

    fn is_over(&self) -> bool {
        let all_ended = || self.log.borrow().head().jobs().all(|job| job.state.is_final());
        let all_gone = || self.history.borrow().runs.iter().all(|run| run.gone_ms.is_some());
        self.calm.get() && self.clients.get() == 0 && all_ended() && all_gone()
    }

    /// Carries out one step after the other until all is done, something is found, or the time is over.
    fn live(self: &Rc<World>) -> u64 {
        let (mut steps, mut seen) = (0, (self.head_revision(), 0));
        while self.violation.borrow().is_none() && !self.is_over() {
            let in_time = self.clock.now_ms() <= self.size.faults_ms + RECOVERY_MS && steps < STEPS_MAX;
            if !in_time || !self.clock.step() {
                let (log, history) = (self.log.borrow(), self.history.borrow());
                self.found(invariants::jobs_ended(log.head(), &history, self.clients.get()));
                break;
            }
            self.trace.mix(self.clock.now_ms());
            self.audit(&mut seen);
            steps += 1;
        }
        steps
    }

    /// When all is over a replica is brought to the end of the log and compared. Which one is for chance to say: the
    /// bytes are a tenth of what a run costs, and runs are many.
    fn compare_a_replica(self: &Rc<World>) {
        let (head, gateway) = (self.log.borrow().head().to_bytes(), self.any_gateway());
        gateway.catch_up_at_once();
        self.found(invariants::replicas_agree(gateway.state(), &head, &gateway.replica.borrow()));
        self.trace.mix_bytes(&head);
    }
}

/// One run, from the founding until every job has ended or something is found.
pub fn run(seed: u64, setting: Setting) -> Report {
    let world = World::new(seed, setting);
    world.gateways().for_each(|gateway| gateway.start());
    world.invite_clients();
    world.let_things_go_wrong();
    let steps = world.live();
    if world.violation.borrow().is_none() {
        world.compare_a_replica();
    }
    world.clock.clear();
    let world = Rc::into_inner(world).expect("every task and message is gone");
    report(world, steps)
}

fn report(world: World, steps: u64) -> Report {
    let (log, history) = (world.log.into_inner(), world.history.into_inner());
    let restarts = world.machines.iter().map(|machine| u64::from(machine.life.get()) - 1).sum();
    let sights = Sights::of(&log, &history).with("steps", steps).with("restarts", restarts);
    Report {
        digest: world.trace.digest(),
        violation: world.violation.into_inner(),
        sights: sights.with("simulated ms", world.clock.now_ms()),
        lines: world.trace.into_lines(),
    }
}
