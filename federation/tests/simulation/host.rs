//! The host side: works off what the registry says is due, again and again.
//!
//! As `gateway/src/host.rs` and `host/claims.rs` have it, function by function; patience and the rest between two
//! reconciliations are shorter, because runs are.
//! Invariant: the mistakes in here are the planted ones.

use certs::Digest;
use federation::{Action, Ceiling, Command, End, Job, JobId, JobState, Outcome, PoolId, due};
use policy::Action as Asked;

use crate::{
    bugs::Bug,
    clients::Task,
    factory::{Status, Work},
    gateway::Gateway,
    history,
    machine::Subject,
    orders::{NoOrder, Order},
    packs::{self, Question},
    size::CLOCKS,
};

const LOOK_EVERY_MS: u64 = 10;
const TICK_MS: u64 = 500;
const SEEN_TIMEOUT_MS: u64 = 1_000;
/// The gateway does it every ten seconds.
const RECONCILE_EVERY_MS: u64 = 1_000;
/// The gateway has two minutes.
const ORDER_PATIENCE_MS: u64 = 900;

/// Why an attempt is given back whose home is away.
pub const OUT_OF_PATIENCE: &str = "the job's home did not hand it over in time";

/// Why an action came to nothing this time. It is due again.
enum Undone {
    NotCommitted,
    Rejected,
    NoOrder,
    NoRoom,
    NoLease,
}

impl Gateway {
    pub async fn host(self) {
        // A replica that has just been started does not know yet what was cancelled since.
        while self.linearize(SEEN_TIMEOUT_MS).await.is_err() {}
        let mut reconciled_ms = self.world.clock.now_ms();
        loop {
            let seen = self.moves.get();
            self.start_due();
            if self.world.clock.now_ms() - reconciled_ms >= RECONCILE_EVERY_MS {
                reconciled_ms = self.world.clock.now_ms();
                self.world.clock.spawn(self.owner(), self.clone().reconcile());
            }
            let looked_at_ms = self.world.clock.now_ms();
            let moved = || (self.moves.get() != seen).then_some(());
            self.world.clock.wait(&self.moved, looked_at_ms + TICK_MS, moved).await;
            let rest_ms = (looked_at_ms + LOOK_EVERY_MS).saturating_sub(self.world.clock.now_ms());
            self.world.clock.sleep(rest_ms).await;
        }
    }

    fn start_due(&self) {
        for action in self.duties() {
            let subject = subject(&action);
            let free = self.memory.borrow_mut().claims.insert(subject);
            if !free || self.memory.borrow().given_up.contains(&subject) {
                continue;
            }
            let this = self.clone();
            self.world.clock.spawn(self.owner(), async move {
                if let Err(reason) = this.act(&action).await {
                    let unanswered = matches!(reason, Undone::NotCommitted | Undone::NoOrder);
                    if this.has(Bug::HostForgetsUnanswered) && unanswered {
                        this.memory.borrow_mut().given_up.insert(subject);
                    }
                    this.world.clock.sleep(TICK_MS).await;
                }
                this.memory.borrow_mut().claims.remove(&subject);
            });
        }
    }

    /// What is due, less the polls that would tell nothing new, plus what the driver has to report.
    fn duties(&self) -> Vec<Action> {
        let pool = self.founder.pool;
        let (mut due, before) = self.read(|registry| {
            let mut due = due(registry, &self.founder.id, self.now());
            due.retain(|action| match action {
                Action::Poll { job, attempt } => {
                    let state = registry.job(job).map(|job| job.state);
                    self.tells_something(state, (*job, *attempt))
                }
                _ => true,
            });
            let report = registry.offer(&pool).and_then(|offer| offer.report.as_ref());
            (due, report.map(|it| it.lendable.clone()))
        });
        let now = self.factory.borrow().capacity(pool, self.now());
        if before.as_ref() != Some(&now.lendable) && !due.contains(&Action::Report { pool }) {
            due.push(Action::Report { pool });
        }
        due
    }

    fn tells_something(&self, state: Option<JobState>, attempt: history::AttemptId) -> bool {
        match self.factory.borrow().poll(attempt) {
            Status::Starting => self.has(Bug::HostDeclinesUnstopped),
            Status::Running { .. } => state != Some(JobState::Running),
            Status::Unknown | Status::Done { .. } => true,
        }
    }

    async fn act(&self, action: &Action) -> Result<(), Undone> {
        match action {
            Action::Dispatch { job, attempt } => self.dispatch(*job, *attempt).await,
            Action::Poll { job, attempt } => self.look_after(*job, *attempt).await,
            Action::Stop { job, attempt } => self.stop(*job, *attempt).await,
            Action::Rerank { job } => self.rerank(*job).await.map_err(|_| Undone::NotCommitted),
            Action::Report { pool } => self.report(*pool).await,
        }
    }

    /// A grant on our pool: fetch the order, decide again, commit `Start`, hand over.
    async fn dispatch(&self, job: JobId, attempt: u32) -> Result<(), Undone> {
        let Some(record) = self.wanted((job, attempt), JobState::Granted) else {
            return Ok(());
        };
        let work = match self.permitted_work(&record, attempt).await? {
            Ok(work) => work,
            Err(refusal) => return self.decline(job, attempt, refusal).await,
        };
        self.lease(&record)?;
        self.say_of(Command::Start { job, attempt, at: self.now() }).await?;
        self.hand_over(job, attempt, work).await
    }

    /// The registry says that this attempt was started: see how far it is.
    async fn look_after(&self, job: JobId, attempt: u32) -> Result<(), Undone> {
        let Some(record) = self.current(job, attempt) else {
            return Ok(());
        };
        let status = self.factory.borrow().poll((job, attempt));
        match status {
            // A stop is due instead.
            Status::Unknown if record.cancel_requested => Ok(()),
            Status::Unknown if record.state == JobState::Starting => self.start_again(&record, attempt).await,
            // It ran, and its factory has lost every trace of it: it must not run a second time.
            Status::Unknown => {
                self.cancel_at_driver((job, attempt)).await;
                self.finish(job, attempt, End::lost("lost")).await
            }
            Status::Starting => self.decline_unstopped(&record, attempt).await,
            Status::Running { started_ms } if record.state == JobState::Starting => {
                self.say_of(Command::Run { job, attempt, at: federation::Timestamp(started_ms) }).await
            }
            Status::Running { .. } => Ok(()),
            Status::Done { end, started_ms } => self.conclude(&record, attempt, end, started_ms).await,
        }
    }

    /// Killed between `Start` and the driver: the claim was never made. The pack may have moved meanwhile.
    async fn start_again(&self, record: &Job, attempt: u32) -> Result<(), Undone> {
        match self.permitted_work(record, attempt).await? {
            Ok(work) => self.hand_over(record.id, attempt, work).await,
            Err(refusal) => self.decline(record.id, attempt, refusal).await,
        }
    }

    /// What the planted bug does with an attempt that its driver has, once its pack has moved.
    async fn decline_unstopped(&self, record: &Job, attempt: u32) -> Result<(), Undone> {
        if self.has(Bug::HostDeclinesUnstopped) && record.state == JobState::Starting && !self.permits(record) {
            return self.decline(record.id, attempt, "the pack has moved".into()).await;
        }
        Ok(())
    }

    /// A cancelled attempt ends when its driver says that nothing of it is left.
    async fn stop(&self, job: JobId, attempt: u32) -> Result<(), Undone> {
        let Some(record) = self.current(job, attempt) else {
            return Ok(());
        };
        let status = self.factory.borrow().poll((job, attempt));
        if let Status::Done { end, started_ms } = status {
            return self.conclude(&record, attempt, end, started_ms).await;
        }
        self.cancel_at_driver((job, attempt)).await;
        Ok(())
    }

    async fn conclude(&self, record: &Job, attempt: u32, end: End, started_ms: Option<u64>) -> Result<(), Undone> {
        if end == End::Canceled && !record.cancel_requested {
            return match record.state {
                JobState::Running => self.finish(record.id, attempt, End::lost("lost")).await,
                _ => self.decline(record.id, attempt, "the factory gave it back before it ran".into()).await,
            };
        }
        if let (JobState::Starting, Some(started_ms)) = (record.state, started_ms)
            && !self.has(Bug::HostSkipsRun)
        {
            self.say_of(Command::Run { job: record.id, attempt, at: federation::Timestamp(started_ms) }).await?;
        }
        self.finish(record.id, attempt, end).await
    }

    async fn report(&self, pool: PoolId) -> Result<(), Undone> {
        let report = self.factory.borrow().capacity(pool, self.now());
        let asked_ms = self.steady_ms();
        if self.has(Bug::HostRenewsUncommitted) {
            self.renew_leases(asked_ms + CLOCKS.lease_ms);
        }
        // A replica that is behind does not know whether an attempt is still the current one.
        if self.say_and_see(Command::ReportCapacity(report)).await? {
            self.renew_leases(asked_ms + CLOCKS.lease_ms);
        }
        Ok(())
    }

    /// What must not run twice may go on, if it is still the current attempt now that the report is here.
    fn renew_leases(&self, until_ms: u64) {
        let before_ms = self.memory.borrow().leased_until_ms;
        self.memory.borrow_mut().leased_until_ms = before_ms.max(until_ms);
        let leased: Vec<_> = self.read(|registry| {
            let held = registry.held_by_gateway(&self.founder.id);
            held.filter_map(|job| Some((job.id, job.holding().filter(|it| it.leased)?.number))).collect()
        });
        leased.into_iter().for_each(|attempt| self.factory.borrow_mut().renew(attempt, until_ms));
    }

    /// Until when the attempt may go on at first; `None` for one that needs no lease.
    fn lease(&self, job: &Job) -> Result<Option<u64>, Undone> {
        if !job.holding().is_some_and(|attempt| attempt.leased) {
            return Ok(None);
        }
        let until_ms = self.memory.borrow().leased_until_ms;
        if until_ms > self.steady_ms() { Ok(Some(until_ms)) } else { Err(Undone::NoLease) }
    }

    /// Only what still is to run: an order takes its time to come, and so does a commit.
    async fn hand_over(&self, job: JobId, attempt: u32, work: Work) -> Result<(), Undone> {
        let known = self.current(job, attempt).filter(|_| self.has(Bug::HostHandsOverUnlooked));
        let Some(started) = known.or_else(|| self.wanted((job, attempt), JobState::Starting)) else {
            return Ok(());
        };
        let work = Work { lease_until_ms: self.lease(&started)?, ..work };
        self.hand_to_driver(work).await.map_err(|_| Undone::NoRoom)
    }

    /// From here on this attempt never runs, whatever is said later.
    async fn decline(&self, job: JobId, attempt: u32, refusal: Refusal) -> Result<(), Undone> {
        if !self.has(Bug::HostDeclinesUnstopped) {
            self.cancel_at_driver((job, attempt)).await;
        }
        let Refusal { reason, below } = refusal;
        self.say_of(Command::Decline { job, attempt, reason: reason.into(), below, at: self.now() }).await
    }

    async fn finish(&self, job: JobId, attempt: u32, end: End) -> Result<(), Undone> {
        self.say_of(Command::Finish { job, attempt, end, at: self.now() }).await
    }

    /// Commits and waits until this replica shows it, so that the same action is not due again.
    async fn say_of(&self, command: Command) -> Result<(), Undone> {
        let _seen_later_if_late = self.say_and_see(command).await?;
        Ok(())
    }

    /// The same; false if the replica does not show it yet.
    async fn say_and_see(&self, command: Command) -> Result<bool, Undone> {
        let committed = self.commit(command, self.commit_deadline_ms()).await;
        let (revision, outcome) = committed.map_err(|_| Undone::NotCommitted)?;
        let deadline_ms = self.world.clock.now_ms() + SEEN_TIMEOUT_MS;
        let seen = self.wait_for(revision, deadline_ms).await.is_ok();
        if matches!(outcome, Outcome::Rejected(_)) { Err(Undone::Rejected) } else { Ok(seen) }
    }

    fn current(&self, job: JobId, attempt: u32) -> Option<Job> {
        self.read(|registry| {
            let record = registry.job(&job)?;
            let current = record.holding().is_some_and(|it| it.number == attempt);
            current.then(|| record.clone())
        })
    }

    /// The job, if this is still its attempt, is as far as that, and nobody has asked for its end.
    pub fn wanted(&self, (job, attempt): history::AttemptId, state: JobState) -> Option<Job> {
        self.current(job, attempt).filter(|it| it.state == state && !it.cancel_requested)
    }

    /// The work of an attempt, if home and this state's live pack let it run here; else why not.
    async fn permitted_work(&self, record: &Job, attempt: u32) -> Result<Result<Work, Refusal>, Undone> {
        let order = match self.fetch(record, attempt).await {
            Ok(order) => order,
            Err(NoOrder::Final) => return Ok(Err("the job's home does not hand it over".into())),
            Err(NoOrder::NotNow) if self.is_patience_over(record.id, attempt) => {
                return Ok(Err(OUT_OF_PATIENCE.into()));
            }
            Err(NoOrder::NotNow) => return Err(Undone::NoOrder),
        };
        self.note_order((record.id, attempt), record);
        if !matches(&order, record) {
            return Ok(Err("the order that the job's home gave does not match the registry".into()));
        }
        self.memory.borrow_mut().unanswered.remove(&(record.id, attempt));
        let was_started = self.has(Bug::HostDecidesOnlyOnce) && record.state == JobState::Starting;
        if !self.permits(record) && !self.has(Bug::HostDoesNotDecide) && !was_started {
            let below = self.read(|registry| below(registry, record));
            return Ok(Err(Refusal { reason: "the pack does not permit it", below }));
        }
        Ok(Ok(work(record, attempt, &order)))
    }

    fn is_patience_over(&self, job: JobId, attempt: u32) -> bool {
        let now_ms = self.world.clock.now_ms();
        let since_ms = *self.memory.borrow_mut().unanswered.entry((job, attempt)).or_insert(now_ms);
        now_ms - since_ms >= ORDER_PATIENCE_MS
    }

    /// The binding decision: this state's live pack, and the share that home held before this attempt.
    fn permits(&self, job: &Job) -> bool {
        self.read(|registry| permits(registry, job))
    }

    /// For the audit, whatever this host does with the order.
    fn note_order(&self, attempt: history::AttemptId, job: &Job) {
        let permitted_in_log = permits(self.world.log.borrow().head(), job);
        if self.permits(job) && !permitted_in_log {
            self.world.say(|| format!("{} does not know yet that its pack forbids {}", self.state(), job.id));
        }
        let order = history::Order {
            host: self.index,
            life: self.life.get(),
            at_ms: self.world.clock.now_ms(),
            permitted: self.permits(job),
            permitted_in_log,
        };
        self.world.history.borrow_mut().note().orders.insert(attempt, order);
    }

    /// Ends what the driver holds and the registry does not know as current.
    async fn reconcile(self) {
        let held = self.factory.borrow().held();
        if self.linearize(SEEN_TIMEOUT_MS).await.is_err() {
            return;
        }
        for (job, attempt) in held {
            let done = matches!(self.factory.borrow().poll((job, attempt)), Status::Done { .. });
            if !done && self.current(job, attempt).is_none() {
                self.cancel_at_driver((job, attempt)).await;
            }
        }
    }
}

/// Why a host does not run an attempt, and below which share of home's it would.
struct Refusal {
    reason: &'static str,
    below: Option<Ceiling>,
}

impl From<&'static str> for Refusal {
    fn from(reason: &'static str) -> Refusal {
        Refusal { reason, below: None }
    }
}

/// What the host's pack in a registry says of a job's current attempt.
pub fn permits(registry: &federation::Registry, job: &Job) -> bool {
    job.attempt().is_some_and(|it| permits_at(registry, job, registry.share_percent_before(&it.pool, &job.id)))
}

fn permits_at(registry: &federation::Registry, job: &Job, share: u32) -> bool {
    let Some(pool) = job.attempt().map(|attempt| attempt.pool) else {
        return false;
    };
    let (host, question) = (pool.state(), Question { home: job.home, class: job.labels.data_class });
    let offered = registry.offer(&pool).is_some();
    offered && packs::permit(registry, host, Asked::Host, question, host, share).is_some()
}

/// The least share that is denied, if less is permitted.
fn below(registry: &federation::Registry, job: &Job) -> Option<Ceiling> {
    let first_denied = (0..=100).find(|share| !permits_at(registry, job, *share))?;
    Ceiling::parse(first_denied).ok()
}

fn matches(order: &Order, job: &Job) -> bool {
    order.mandate.matches(job).is_ok() && Digest::of(&order.payload) == job.payload
}

fn work(job: &Job, attempt: u32, order: &Order) -> Work {
    let task = Task::from_payload(&order.payload);
    let pool = order.mandate.pool;
    let (gpus, exclusive) = (job.shape.gpus, job.exclusive);
    let attempt = (job.id, attempt);
    Work { attempt, pool, gpus, exclusive, lease_until_ms: None, run_ms: task.run_ms, end: task.end() }
}

fn subject(action: &Action) -> Subject {
    match action {
        Action::Dispatch { job, attempt } | Action::Poll { job, attempt } | Action::Stop { job, attempt } => {
            Subject::Attempt(*job, *attempt)
        }
        Action::Rerank { job } => Subject::Waiting(*job),
        Action::Report { pool } => Subject::Pool(*pool),
    }
}
