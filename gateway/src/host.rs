//! Host: the state that runs a job. Works off what the registry says is due, again and again.
//!
//! There is no queue of actions and no recovery: what is due is computed from the registry and the
//! driver, every action is idempotent, and a restart simply computes it again.
//!
//! Invariants: a job starts only after this state's own live pack has permitted it here and the
//! registry has committed `Start`; one action per attempt is in hand at a time, and looks once more whether it is still
//! due before it changes anything; what is declined or cancelled is first made impossible at the driver; what must not run
//! twice runs only as long as a report of this gateway was committed within the lease.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use certs::{Digest, Envelope, GatewayId};
use federation::raft::Consensus;
use federation::{Action, Ceiling, Command, End, Job, JobId, JobState, Mandate, Outcome, PoolId, Rejection, Timestamp};
use futures_util::stream::{self, StreamExt};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::claims::{Claims, Subject};
use crate::driver::{AttemptStatus, Driver, DriverError, WorkOrder, lease};
use crate::home::{Home, now};
use crate::orders::{HomesAnswer, NoOrder, Order, Orders};
use crate::proposer::{NotCommitted, Proposer};
use crate::tes::Submission;
use crate::verdicts::{Judge, Question, Unread};

mod claims;
#[cfg(test)]
mod tests;

/// Duties are computed this often at most: a look costs a step for each of them.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Even when nothing is heard, what is due is computed this often.
const TICK: Duration = Duration::from_millis(500);
/// How long the host waits for its own replica after a commit.
const SEEN_TIMEOUT: Duration = Duration::from_secs(5);
/// How often what the driver holds is held against the registry.
const RECONCILE_EVERY: Duration = Duration::from_secs(10);
/// How long a driver may take to remove what an attempt left.
const FORGET_TIMEOUT: Duration = Duration::from_secs(10);
/// Attempts that are forgotten at the same time.
const FORGET_AT_ONCE: usize = 16;

const LOST: &str = "the factory lost this attempt while it ran";

/// The host side of a gateway, with the chores of home that are due like everything else.
pub struct Host {
    /// This gateway.
    pub me: GatewayId,
    /// The replica.
    pub consensus: Consensus,
    /// Commits.
    pub proposer: Proposer,
    /// The pools of this gateway.
    pub driver: Arc<dyn Driver>,
    /// Decisions.
    pub judge: Arc<Judge>,
    /// The home side, for re-ranking.
    pub home: Arc<Home>,
    /// Where orders come from.
    pub orders: Arc<Orders>,
    /// How long what must not run twice goes on without a report that was committed, in milliseconds.
    pub lease_ms: u64,
    /// Until when that is, for the newest report, in the milliseconds of [`lease::now_ms`].
    pub leased_until_ms: AtomicU64,
}

/// Why an action came to nothing this time. It is due again after a short rest.
#[derive(Debug, thiserror::Error)]
enum Undone {
    #[error(transparent)]
    NotCommitted(#[from] NotCommitted),
    #[error("the registry rejected it: {0}")]
    Rejected(Rejection),
    #[error(transparent)]
    NoOrder(#[from] NoOrder),
    #[error(transparent)]
    Driver(#[from] DriverError),
    #[error(transparent)]
    Unread(#[from] Unread),
    #[error("the order is wrong: {0}")]
    WrongOrder(String),
    #[error("no report of this gateway was committed lately, and the job must not run twice")]
    NoLease,
    #[error("{0}")]
    Home(String),
}

impl Host {
    /// Runs until `stop`; running jobs go on without this process.
    pub async fn run(self: Arc<Self>, tasks: TaskTracker, stop: CancellationToken) {
        let claims = Claims::default();
        let mut revisions = self.consensus.changes();
        let mut attempts = self.driver.changes();
        // A replica that has just been started does not know yet what was cancelled since.
        let caught_up = async { while self.consensus.linearize(SEEN_TIMEOUT).await.is_err() {} };
        if stop.run_until_cancelled(caught_up).await.is_none() {
            return;
        }
        let mut reconciled = Instant::now();
        let reconciling = Arc::new(Semaphore::new(1));
        loop {
            revisions.borrow_and_update();
            attempts.borrow_and_update();
            self.start_due(&claims, &tasks, &stop);
            if reconciled.elapsed() >= RECONCILE_EVERY
                && let Ok(turn) = Arc::clone(&reconciling).try_acquire_owned()
            {
                reconciled = Instant::now();
                let (host, claims, stop) = (Arc::clone(&self), claims.clone(), stop.clone());
                tasks.spawn(async move {
                    stop.run_until_cancelled(host.reconcile(&claims)).await;
                    drop(turn);
                });
            }
            let looked_at = tokio::time::Instant::now();
            tokio::select! {
                () = stop.cancelled() => return,
                _ = revisions.changed() => {}
                _ = attempts.changed() => {}
                () = tokio::time::sleep(TICK) => {}
            }
            tokio::time::sleep_until(looked_at + LOOK_EVERY).await;
        }
    }

    fn start_due(self: &Arc<Self>, claims: &Claims, tasks: &TaskTracker, stop: &CancellationToken) {
        for duty in self.duties() {
            let Some(claim) = claims.take(duty.subject, duty.order_of) else {
                continue;
            };
            let (host, claims, stop) = (Arc::clone(self), claims.clone(), stop.clone());
            tasks.spawn(async move {
                let act = async {
                    if let Err(reason) = host.act(&duty.action, &claims).await {
                        tracing::warn!(action = ?duty.action, %reason, "not done yet");
                        // The same action is due again; a short rest keeps a fault from spinning.
                        tokio::time::sleep(TICK).await;
                    }
                };
                // Every action may be broken off anywhere: a kill does the same.
                stop.run_until_cancelled(act).await;
                drop(claim);
            });
        }
    }

    /// What is due, less the polls that would tell nothing new, plus what the driver has to report.
    fn duties(&self) -> Vec<Duty> {
        let (due, reported) = self.consensus.read(|registry| {
            let due: Vec<_> = federation::due(registry, &self.me, now())
                .into_iter()
                .map(|action| {
                    let job = subject_job(&action).and_then(|job| registry.job(&job));
                    (action, job.map(|job| (job.home, job.state)))
                })
                .collect();
            // A pool that was handed on is its new gateway's to report: that would be heard otherwise, alive or not.
            let mine = |pool: &PoolId| registry.offer(pool).filter(|it| it.offer.served_by == self.me.name);
            let reported = self.driver.pools().into_iter().filter_map(|pool| Some((pool, mine(&pool)?.report.clone())));
            (due, reported.collect::<Vec<_>>())
        });
        let mut duties: Vec<_> = due
            .into_iter()
            .filter_map(|(action, job)| {
                let subject = subject(&action);
                let order_of = match (&action, job) {
                    (Action::Dispatch { .. }, Some((home, _))) => Some(home),
                    (Action::Poll { job, attempt }, Some((home, state))) => match self.driver.poll(job, *attempt) {
                        AttemptStatus::Starting => return None,
                        AttemptStatus::Running { .. } if state == JobState::Running => return None,
                        AttemptStatus::Unknown if state == JobState::Starting => Some(home),
                        _ => None,
                    },
                    _ => None,
                };
                Some(Duty { action, subject, order_of })
            })
            .collect();
        for (pool, before) in reported {
            let moved = |before, report: &federation::CapacityReport| {
                let shown = |it: &federation::CapacityReport| (it.lendable.clone(), it.problem.clone());
                before != Some(shown(report))
            };
            let before = before.map(|it| (it.lendable, it.problem));
            if self.driver.capacity(&pool).is_some_and(|report| moved(before, &report)) {
                let action = Action::Report { pool };
                duties.push(Duty { subject: subject(&action), action, order_of: None });
            }
        }
        duties
    }

    async fn act(&self, action: &Action, claims: &Claims) -> Result<(), Undone> {
        match action {
            Action::Dispatch { job, attempt } => self.dispatch(*job, *attempt, claims).await,
            Action::Poll { job, attempt } => self.poll(*job, *attempt, claims).await,
            Action::Stop { job, attempt } => self.stop(*job, *attempt).await,
            Action::Rerank { job } => self.home.rerank(*job).await.map_err(|problem| Undone::Home(problem.to_string())),
            Action::Report { pool } => self.report(pool).await,
        }
    }

    /// A grant on one of our pools: fetch the order, decide again, commit `Start`, hand over.
    async fn dispatch(&self, job: JobId, attempt: u32, claims: &Claims) -> Result<(), Undone> {
        // What is due was computed before the attempt was claimed: whoever had it then may have started it since.
        let Some(record) = self.wanted(job, attempt, JobState::Granted) else {
            return Ok(());
        };
        let work = match self.permitted_work(&record, attempt, claims).await? {
            Ok(work) => work,
            Err(refusal) => return self.decline(job, attempt, &refusal).await,
        };
        self.lease(&record)?;
        self.commit(Command::Start { job, attempt, at: now() }).await?;
        self.hand_over(job, attempt, work).await
    }

    /// The registry says that this attempt was started: see how far it is.
    async fn poll(&self, job: JobId, attempt: u32, claims: &Claims) -> Result<(), Undone> {
        let Some(record) = self.current(job, attempt) else {
            return Ok(());
        };
        match self.driver.poll(&job, attempt) {
            // A stop is due instead.
            AttemptStatus::Unknown if record.cancel_requested => Ok(()),
            // Killed between `Start` and the driver: the claim was never made. The pack may have moved meanwhile.
            AttemptStatus::Unknown if record.state == JobState::Starting => {
                match self.permitted_work(&record, attempt, claims).await? {
                    Ok(work) => self.hand_over(job, attempt, work).await,
                    Err(refusal) => self.decline(job, attempt, &refusal).await,
                }
            }
            // It ran, and its factory has lost every trace of it: it must not run a second time.
            AttemptStatus::Unknown => {
                self.driver.cancel(&job, attempt).await?;
                self.finish(job, attempt, End::lost(LOST)).await
            }
            AttemptStatus::Starting => Ok(()),
            AttemptStatus::Running { started_ms } if record.state == JobState::Starting => {
                self.commit(Command::Run { job, attempt, at: Timestamp(started_ms) }).await
            }
            AttemptStatus::Running { .. } => Ok(()),
            AttemptStatus::Done { end, started_ms } => self.conclude(&record, attempt, end, started_ms).await,
        }
    }

    /// A cancelled attempt ends when its driver says that nothing of it is left.
    async fn stop(&self, job: JobId, attempt: u32) -> Result<(), Undone> {
        let Some(record) = self.current(job, attempt) else {
            return Ok(());
        };
        match self.driver.poll(&job, attempt) {
            AttemptStatus::Done { end, started_ms } => self.conclude(&record, attempt, end, started_ms).await,
            // Also one that the driver never heard of: from here on it never will run it.
            AttemptStatus::Unknown | AttemptStatus::Starting | AttemptStatus::Running { .. } => {
                self.driver.cancel(&job, attempt).await?;
                Ok(())
            }
        }
    }

    /// Says of an ended attempt that it ran, if the registry has not heard of it yet, and how it ended.
    async fn conclude(&self, record: &Job, attempt: u32, end: End, started_ms: Option<u64>) -> Result<(), Undone> {
        if end == End::Canceled && !record.cancel_requested {
            // Made impossible here, and killed before the registry heard why.
            return match record.state {
                JobState::Running => self.finish(record.id, attempt, End::lost(LOST)).await,
                _ => self.decline(record.id, attempt, &"the factory gave it back before it ran".into()).await,
            };
        }
        if let (JobState::Starting, Some(started_ms)) = (record.state, started_ms) {
            self.commit(Command::Run { job: record.id, attempt, at: Timestamp(started_ms) }).await?;
        }
        self.finish(record.id, attempt, end).await
    }

    async fn report(&self, pool: &PoolId) -> Result<(), Undone> {
        let Some(report) = self.driver.capacity(pool) else {
            return Ok(());
        };
        // Counted from before it was proposed: whoever hears it later waits longer.
        let asked_ms = lease::now_ms();
        let seen = self.commit_and_see(Command::ReportCapacity(report)).await?;
        // The registry takes it from the gateway that serves the pool, and from no other: the others have heard this one.
        // A replica that is behind does not know whether an attempt is still the current one.
        if seen { self.renew_leases(asked_ms + self.lease_ms).await } else { Ok(()) }
    }

    /// What must not run twice may go on, if it is still the current attempt now that the report is here.
    async fn renew_leases(&self, until_ms: u64) -> Result<(), Undone> {
        self.leased_until_ms.fetch_max(until_ms, Ordering::Relaxed);
        let leased: Vec<(JobId, u32)> = self.consensus.read(|registry| {
            let held = registry.held_by_gateway(&self.me);
            held.filter_map(|job| Some((job.id, job.holding().filter(|it| it.leased)?.number))).collect()
        });
        // One that cannot be renewed takes no other with it.
        let mut renewed = Ok(());
        for (job, attempt) in leased {
            renewed = renewed.and(self.driver.renew(&job, attempt, until_ms).await);
        }
        Ok(renewed?)
    }

    /// Until when the attempt may go on at first; `None` for one that needs no lease.
    fn lease(&self, job: &Job) -> Result<Option<u64>, Undone> {
        if !job.holding().is_some_and(|attempt| attempt.leased) {
            return Ok(None);
        }
        let until_ms = self.leased_until_ms.load(Ordering::Relaxed);
        if until_ms > lease::now_ms() { Ok(Some(until_ms)) } else { Err(Undone::NoLease) }
    }

    /// Only what still is to run: an order takes its time to come, and so does a commit.
    async fn hand_over(&self, job: JobId, attempt: u32, work: WorkOrder) -> Result<(), Undone> {
        let Some(started) = self.wanted(job, attempt, JobState::Starting) else {
            // Cancelled or given to another meanwhile, or not seen here yet: what is due then is computed anew.
            return Ok(());
        };
        let work = WorkOrder { lease_until_ms: self.lease(&started)?, ..work };
        match self.driver.submit(work).await {
            Ok(()) => Ok(()),
            // The driver will never take this order: that is an end, with its reason.
            Err(DriverError::Refused(reason)) => self.finish(job, attempt, End::system_error(&reason)).await,
            Err(other) => Err(other.into()),
        }
    }

    /// From here on this attempt never runs, whatever is said later: the decline may be committed long after its answer was
    /// lost, and would end the attempt if it had been started meanwhile.
    async fn decline(&self, job: JobId, attempt: u32, refusal: &Refusal) -> Result<(), Undone> {
        self.driver.cancel(&job, attempt).await?;
        let (reason, below) = (refusal.reason.as_str().into(), refusal.below);
        self.commit(Command::Decline { job, attempt, reason, below, at: now() }).await
    }

    async fn finish(&self, job: JobId, attempt: u32, end: End) -> Result<(), Undone> {
        self.commit(Command::Finish { job, attempt, end, at: now() }).await
    }

    async fn commit(&self, command: Command) -> Result<(), Undone> {
        let _seen_later_if_late = self.commit_and_see(command).await?;
        Ok(())
    }

    /// Commits and waits until this replica shows it, so that the same action is not due again; false if it does not yet.
    async fn commit_and_see(&self, command: Command) -> Result<bool, Undone> {
        let (revision, outcome) = self.proposer.commit(command).await?;
        let seen = self.consensus.wait_for(revision, SEEN_TIMEOUT).await.is_ok();
        match outcome {
            Outcome::Rejected(reason) => Err(Undone::Rejected(reason)),
            // What became of it is in the registry; what is due is computed from there.
            _ => Ok(seen),
        }
    }

    fn current(&self, job: JobId, attempt: u32) -> Option<Job> {
        self.consensus.read(|registry| {
            let record = registry.job(&job)?;
            let current = record.holding().is_some_and(|it| it.number == attempt);
            current.then(|| record.clone())
        })
    }

    /// The job, if this is still its attempt, is as far as that, and nobody has asked for its end.
    fn wanted(&self, job: JobId, attempt: u32, state: JobState) -> Option<Job> {
        self.current(job, attempt).filter(|it| it.state == state && !it.cancel_requested)
    }

    /// The work of an attempt, if home, this state's live pack and the driver let it run here; else why not.
    async fn permitted_work(
        &self,
        record: &Job,
        attempt: u32,
        claims: &Claims,
    ) -> Result<Result<WorkOrder, Refusal>, Undone> {
        let order = match self.orders.fetch(record, attempt).await {
            Ok(HomesAnswer::Order(order)) => order,
            Ok(HomesAnswer::Below(below)) => {
                let reason = format!("{} does not let it leave while it holds so much of the pool", record.home);
                return Ok(Err(Refusal { reason, below: Some(below) }));
            }
            Err(refused) if refused.is_final() => {
                tracing::warn!(job = %record.id, %refused, "declined: home refuses the order");
                return Ok(Err("the job's home does not hand it over".into()));
            }
            Err(away) if claims.is_patience_over(record.id, attempt, Instant::now()) => {
                tracing::warn!(job = %record.id, %away, "declined: home gave no order");
                return Ok(Err("the job's home did not hand it over in time".into()));
            }
            Err(away) => return Err(away.into()),
        };
        let checked = match self.check_order(record, attempt, &order) {
            Ok(checked) => checked,
            // A key that is being replaced is known at home before it is known here.
            Err(reason) if !claims.is_patience_over(record.id, attempt, Instant::now()) => {
                return Err(Undone::WrongOrder(reason));
            }
            Err(reason) => {
                tracing::warn!(job = %record.id, reason, "declined: the order is wrong");
                return Ok(Err("the order that the job's home gave does not match the registry".into()));
            }
        };
        claims.answered(record.id, attempt);
        let kept = |pool| self.consensus.read(|registry| registry.offer(pool).is_some_and(|it| it.offer.keeps_leases));
        if record.holding().is_some_and(|attempt| attempt.leased && !kept(&attempt.pool)) {
            return Ok(Err("the pool does not keep leases any more, and the job must not run twice".into()));
        }
        if let Some(refusal) = self.refusal(record, &checked.question)? {
            return Ok(Err(refusal));
        }
        if let Err(reason) = self.driver.check(&checked.work) {
            return Ok(Err(reason.into()));
        }
        Ok(Ok(checked.work))
    }

    fn check_order(&self, job: &Job, attempt: u32, order: &Order) -> Result<Checked, String> {
        let envelope = Envelope::parse(&order.mandate).map_err(|cause| cause.to_string())?;
        let mandate = self
            .consensus
            .read(|registry| Mandate::open(&envelope, registry.trust(), registry.epoch()))
            .map_err(|cause| cause.to_string())?;
        mandate.matches(job).map_err(|cause| cause.to_string())?;
        if Digest::of(&order.payload) != job.payload {
            return Err("the payload is not the one that the registry names".into());
        }
        let question = Question::new(mandate.researcher, &job.shape, &job.labels);
        let work = work_order(job, attempt, &order.payload)?;
        Ok(Checked { question, work })
    }

    /// The binding decision: this state's live pack, and the share that home held before this attempt.
    fn refusal(&self, job: &Job, question: &Question) -> Result<Option<Refusal>, Unread> {
        let Some(binding) = self.judge.decide_as_host(&self.consensus, job, question)? else {
            return Ok(Some("the pool is not offered any more".into()));
        };
        let denied = || Refusal {
            reason: crate::explain::denial(&policy::Answer::from(&*binding.decision)),
            below: binding.below,
        };
        Ok((!binding.decision.is_permit()).then(denied))
    }

    /// Ends what the driver holds and the registry does not know as current, and forgets what nobody asks for any more.
    async fn reconcile(&self, claims: &Claims) {
        let held = self.driver.held();
        // A replica that is behind does not know yet what the driver was told.
        if self.consensus.linearize(SEEN_TIMEOUT).await.is_err() {
            return;
        }
        claims.forget_but(|job, attempt| self.current(job, attempt).is_some());
        let (mut superseded, mut forgotten) = (vec![], vec![]);
        for (job, attempt) in held {
            let known = self.consensus.read(|registry| registry.job(&job).is_some());
            let current = self.current(job, attempt).is_some();
            let done = matches!(self.driver.poll(&job, attempt), AttemptStatus::Done { .. });
            match (known, current, done) {
                (_, false, false) => superseded.push((job, attempt)),
                (false, _, true) => forgotten.push((job, attempt)),
                _ => {}
            }
        }
        let not_yet = |job: JobId, attempt: u32, reason: &dyn std::fmt::Display| {
            tracing::warn!(%job, attempt, %reason, "not reconciled yet");
        };
        // What runs and must not comes before what only takes room.
        for (job, attempt) in superseded {
            tracing::warn!(%job, attempt, "stopped: it is not the job's current attempt any more");
            if let Err(reason) = self.driver.cancel(&job, attempt).await {
                not_yet(job, attempt, &reason);
            }
        }
        // One whose files hang holds up no other.
        let forgetting = forgotten.into_iter().map(async |(job, attempt)| {
            match timeout(FORGET_TIMEOUT, self.driver.forget(&job, attempt)).await {
                Ok(Ok(())) => {}
                Ok(Err(reason)) => not_yet(job, attempt, &reason),
                Err(late) => not_yet(job, attempt, &late),
            }
        });
        stream::iter(forgetting).buffer_unordered(FORGET_AT_ONCE).collect::<Vec<()>>().await;
    }
}

/// A checked order: the question for this state's pack, and the work for the driver.
struct Checked {
    question: Question,
    work: WorkOrder,
}

/// Why this state does not run an attempt.
struct Refusal {
    reason: String,
    /// It would, while home holds less of the pool than this.
    below: Option<Ceiling>,
}

impl From<String> for Refusal {
    fn from(reason: String) -> Refusal {
        Refusal { reason, below: None }
    }
}

impl From<&str> for Refusal {
    fn from(reason: &str) -> Refusal {
        reason.to_owned().into()
    }
}

/// Something to do, what it is about, and the home whose order it needs.
struct Duty {
    action: Action,
    subject: Subject,
    order_of: Option<certs::MemberState>,
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

fn subject_job(action: &Action) -> Option<JobId> {
    match action {
        Action::Dispatch { job, .. } | Action::Poll { job, .. } | Action::Stop { job, .. } => Some(*job),
        Action::Rerank { .. } | Action::Report { .. } => None,
    }
}

/// The driver's view of a payload on the pool that was granted.
fn work_order(job: &Job, attempt: u32, payload: &[u8]) -> Result<WorkOrder, String> {
    let submission = Submission::from_payload(payload).map_err(|bad| bad.to_string())?;
    let pool = job.attempt().ok_or("the job has no current attempt")?.pool;
    Ok(submission.work_order(job, attempt, pool))
}
