//! The proposer: commands that wait together travel in one envelope, and an envelope whose answer is lost is proposed
//! again, byte for byte.
//!
//! As `gateway/src/proposer.rs` and `Consensus::propose` have it, their times included.
//! Invariants: no serial comes twice, also not after a crash; what was answered with "nothing was changed" is never
//! sent.

use std::{cell::RefCell, rc::Rc};

use certs::Envelope;
use federation::{Batch, Command, Outcome, Revision};

use crate::{
    clockwork::Bell,
    gateway::Gateway,
    log::Entry,
    machine::{Answer, NotCommitted, Waiting},
    size::header,
};

pub const COMMIT_TIMEOUT_MS: u64 = 1_200;
const PROPOSE_TIMEOUT_MS: u64 = 1_000;
const TRY_TIMEOUT_MS: u64 = 400;
const RETRY_PAUSE_MS: u64 = 50;
const GATHER_MS: u64 = 8;
const IN_FLIGHT_MAX: u32 = 4;
const LEADER_LOOK_EVERY_MS: u64 = 20;
/// Serials reserved at once. The gateway takes a million. Far more than the registry's window all the same: what an
/// earlier process of this gateway has still under way is too old once a later one has committed anything.
const BLOCK: u64 = 8 * federation::limits::SERIAL_WINDOW;

#[derive(Default)]
struct Reply {
    bell: Bell,
    entry: RefCell<Option<Entry>>,
}

impl Gateway {
    /// Commits one command, or says why its outcome is not known.
    pub async fn commit(&self, command: Command, deadline_ms: u64) -> Result<(Revision, Outcome), NotCommitted> {
        let answer = Rc::<Answer>::default();
        let waiting = Waiting { command, deadline_ms, answer: Rc::clone(&answer) };
        self.memory.borrow_mut().waiting.push(waiting);
        let gather_ms = if self.memory.borrow().in_flight == 0 { 0 } else { GATHER_MS };
        self.flush_after(gather_ms);
        let answered = self.world.clock.wait(&answer.bell, deadline_ms, || answer.value.take()).await;
        // Whoever sets `sent` first decides.
        answered.unwrap_or_else(|| {
            Err(if answer.sent.replace(true) { NotCommitted::Unknown } else { NotCommitted::NoLeader })
        })
    }

    /// The lowest serial that nothing speaks against, and that no earlier process gave out.
    pub fn lowest_serial(&self) -> u64 {
        let seen = self.read(|registry| registry.last_serial(&self.founder.key));
        let clock_us = self.now().0 * 1_000;
        clock_us.max(seen.map_or(0, |serial| serial + 1)).max(self.disk.borrow().serials_reserved)
    }

    fn flush_after(&self, ms: u64) {
        if std::mem::replace(&mut self.memory.borrow_mut().flush_due, true) {
            return;
        }
        let (this, life) = (self.clone(), self.life.get());
        self.world.clock.after(ms, move || {
            if this.up.get() && this.life.get() == life {
                this.memory.borrow_mut().flush_due = false;
                this.flush();
            }
        });
    }

    fn flush(&self) {
        if self.world.is_leaderless() {
            return self.flush_after(LEADER_LOOK_EVERY_MS);
        }
        if self.memory.borrow().in_flight >= IN_FLIGHT_MAX {
            return self.flush_after(GATHER_MS);
        }
        let waiting = std::mem::take(&mut self.memory.borrow_mut().waiting);
        let now_ms = self.world.clock.now_ms();
        let sent = |it: &Waiting| it.deadline_ms > now_ms && !it.answer.sent.replace(true);
        let (commands, answers): (Vec<_>, Vec<_>) =
            waiting.into_iter().filter(sent).map(|it| (it.command, it.answer)).unzip();
        if !commands.is_empty() {
            self.world.say(|| format!("{} proposes {}", self.state(), names(&commands)));
            let envelope = self.seal(commands);
            self.memory.borrow_mut().in_flight += 1;
            self.world.clock.spawn(self.owner(), self.clone().propose(envelope, answers));
        }
    }

    fn seal(&self, commands: Vec<Command>) -> Envelope {
        let serial = self.take_serial();
        self.world.seal(header(self.founder, serial), &Batch(commands).to_bytes(), &self.founder.signing)
    }

    fn take_serial(&self) -> u64 {
        let mut memory = self.memory.borrow_mut();
        let serial = memory.serial_next;
        memory.serial_next += 1;
        let mut disk = self.disk.borrow_mut();
        if serial >= disk.serials_reserved {
            disk.serials_reserved = serial + BLOCK;
        }
        serial
    }

    async fn propose(self, envelope: Envelope, answers: Vec<Rc<Answer>>) {
        let result = self.until_answered(envelope).await;
        self.memory.borrow_mut().in_flight -= 1;
        match result {
            Ok(entry) if entry.outcomes.len() == answers.len() => {
                for (answer, outcome) in answers.iter().zip(entry.outcomes) {
                    self.fill(answer, Ok((entry.revision, outcome)));
                }
            }
            Ok(_) => answers.iter().for_each(|answer| self.fill(answer, Err(NotCommitted::Refused))),
            Err(reason) => answers.iter().for_each(|answer| self.fill(answer, Err(reason))),
        }
    }

    fn fill(&self, answer: &Answer, value: Result<(Revision, Outcome), NotCommitted>) {
        answer.value.replace(Some(value));
        self.world.clock.ring(&answer.bell);
    }

    async fn until_answered(&self, envelope: Envelope) -> Result<Entry, NotCommitted> {
        let deadline_ms = self.world.clock.now_ms() + PROPOSE_TIMEOUT_MS;
        let mut may_be_done = false;
        loop {
            if !self.world.is_leaderless() {
                let reply = Rc::<Reply>::default();
                self.try_once(&envelope, &reply);
                let by_ms = deadline_ms.min(self.world.clock.now_ms() + TRY_TIMEOUT_MS);
                if let Some(entry) = self.world.clock.wait(&reply.bell, by_ms, || reply.entry.take()).await {
                    return Ok(entry);
                }
                may_be_done = true;
            }
            if self.world.clock.now_ms() + RETRY_PAUSE_MS >= deadline_ms {
                return Err(if may_be_done { NotCommitted::Unknown } else { NotCommitted::NoLeader });
            }
            self.world.clock.sleep(RETRY_PAUSE_MS).await;
        }
    }

    /// Sends it to the leader: it may be lost, come late, or come twice; and so may the answer.
    fn try_once(&self, envelope: &Envelope, reply: &Rc<Reply>) {
        let copies = if self.world.goes_wrong(12) { 2 } else { 1 };
        for _ in 0..copies {
            if self.is_cut_off() || self.world.goes_wrong(12) {
                continue;
            }
            let (this, envelope, reply) = (self.clone(), envelope.clone(), Rc::clone(reply));
            self.world.clock.after(self.world.delay_ms(), move || {
                if !this.is_cut_off() {
                    let entry = this.world.commit(envelope);
                    this.answer_later(entry, reply);
                }
            });
        }
    }

    fn answer_later(&self, entry: Entry, reply: Rc<Reply>) {
        if self.is_cut_off() || self.world.goes_wrong(12) {
            return;
        }
        let this = self.clone();
        self.world.clock.after(self.world.delay_ms(), move || {
            reply.entry.replace(Some(entry));
            this.world.clock.ring(&reply.bell);
        });
    }
}

/// Commands in short, for the trace.
fn names(commands: &[Command]) -> String {
    let name = |command: &Command| match command {
        Command::PublishPack(it) => format!("pack {} {}", it.sequence, it.source.title),
        Command::PublishOffer(it) => format!("offer {}", it.sequence),
        Command::WithdrawOffer { sequence, .. } => format!("withdraw {sequence}"),
        Command::ReportCapacity(it) => {
            let lent: Vec<String> = it.lendable.iter().map(|it| format!("{}x{}", it.nodes, it.gpus)).collect();
            format!("report {}", lent.join("+"))
        }
        Command::Submit(it) => {
            let pools: Vec<&str> = it.candidates.iter().map(|it| it.pool.factory.state.as_str()).collect();
            format!("submit {} {} GPUs to {}", it.job, it.shape.gpus, pools.join(" "))
        }
        Command::Rerank(it) => format!("rerank {} to {} pools", it.job, it.candidates.len()),
        Command::Cancel { job, .. } => format!("cancel {job}"),
        Command::Start { job, attempt, .. } => format!("start {job} {attempt}"),
        Command::Run { job, attempt, .. } => format!("run {job} {attempt}"),
        Command::Finish { job, attempt, end, .. } => format!("finish {job} {attempt} {end:?}"),
        Command::Decline { job, attempt, reason, .. } => format!("decline {job} {attempt}: {reason}"),
        Command::PublishBundle(_) => "bundle".into(),
        Command::Attest(it) => format!("attest of {} since {}, gone {}", it.about, it.heard_at, it.gone),
    };
    commands.iter().map(name).collect::<Vec<_>>().join(", ")
}
