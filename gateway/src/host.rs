//! Host: the state that runs a job. Works off what the registry says is due, again and again.
//!
//! There is no queue of actions and no recovery: what is due is computed from the registry and the
//! driver, every action is idempotent, and a restart simply computes it again.
//!
//! Invariants: a job starts only after this state's own live pack has permitted it here and the
//! registry has committed `Start`; one action per attempt is in flight at a time.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use certs::{Digest, Envelope, GatewayId};
use federation::raft::Consensus;
use federation::{Action, Command, End, Job, JobId, JobState, Mandate, Outcome, PoolId, Timestamp};
use policy::Decision;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::driver::{AttemptStatus, Driver, DriverError, WorkOrder};
use crate::home::{Home, now};
use crate::orders::{NoOrder, Order, Orders};
use crate::proposer::{NotCommitted, Proposer};
use crate::tes::Submission;
use crate::verdicts::{Judge, Question};

/// Even when nothing is heard, what is due is computed this often.
const TICK: Duration = Duration::from_millis(500);
/// How long the host waits for its own replica after a commit.
const SEEN_TIMEOUT: Duration = Duration::from_secs(5);
/// Actions in flight at once.
const IN_FLIGHT_MAX: usize = 64;

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
}

/// Why an action came to nothing this time. It is due again at once or at the next tick.
#[derive(Debug, thiserror::Error)]
enum Undone {
    #[error(transparent)]
    NotCommitted(#[from] NotCommitted),
    #[error(transparent)]
    NoOrder(#[from] NoOrder),
    #[error(transparent)]
    Driver(#[from] DriverError),
    #[error("the order is wrong: {0}")]
    BadOrder(String),
    #[error("{0}")]
    Home(String),
}

impl Host {
    /// Runs until `stop`, then returns at once; running jobs go on without this process.
    pub async fn run(self: Arc<Self>, tasks: TaskTracker, stop: CancellationToken) {
        let in_flight = Arc::new(Mutex::new(HashSet::new()));
        let mut revisions = self.consensus.changes();
        let mut attempts = self.driver.changes();
        loop {
            revisions.borrow_and_update();
            attempts.borrow_and_update();
            self.start_due(&in_flight, &tasks);
            tokio::select! {
                () = stop.cancelled() => return,
                _ = revisions.changed() => {}
                _ = attempts.changed() => {}
                () = tokio::time::sleep(TICK) => {}
            }
        }
    }

    fn start_due(self: &Arc<Self>, in_flight: &InFlight, tasks: &TaskTracker) {
        let due = self.consensus.read(|registry| federation::due(registry, &self.me, now()));
        for action in due {
            let Some(claim) = claim(in_flight, format!("{action:?}")) else {
                continue;
            };
            let host = Arc::clone(self);
            tasks.spawn(async move {
                if let Err(reason) = host.act(&action).await {
                    tracing::warn!(?action, %reason, "not done yet");
                    // The same action is due again; a short rest keeps a fault from spinning.
                    tokio::time::sleep(TICK).await;
                }
                drop(claim);
            });
        }
    }

    async fn act(&self, action: &Action) -> Result<(), Undone> {
        match action {
            Action::Dispatch { job, attempt } => self.dispatch(*job, *attempt).await,
            Action::Poll { job, attempt } => self.poll(*job, *attempt).await,
            Action::Stop { job, attempt } => self.stop(*job, *attempt).await,
            Action::Rerank { job } => self.home.rerank(*job).await.map_err(|problem| Undone::Home(problem.to_string())),
            Action::Report { pool } => self.report(pool).await,
        }
    }

    /// A grant on one of our pools: fetch the order, decide again, commit `Start`, hand over.
    async fn dispatch(&self, job: JobId, attempt: u32) -> Result<(), Undone> {
        let Some(record) = self.current(job, attempt) else {
            return Ok(());
        };
        let order = self.orders.fetch(&record, attempt).await?;
        let checked = self.check_order(&record, attempt, &order)?;
        if let Some(reason) = self.refusal(&record, &checked.question) {
            return self.commit(Command::Decline { job, attempt, reason, at: now() }).await;
        }
        self.commit(Command::Start { job, attempt, at: now() }).await?;
        self.hand_over(&record, attempt, checked.work).await
    }

    /// The registry says that this attempt was started: see how far it is.
    async fn poll(&self, job: JobId, attempt: u32) -> Result<(), Undone> {
        let Some(record) = self.current(job, attempt) else {
            return Ok(());
        };
        match self.driver.poll(&job, attempt) {
            // Killed between `Start` and the driver: the claim was never made, so make it now.
            AttemptStatus::Unknown => {
                let order = self.orders.fetch(&record, attempt).await?;
                let checked = self.check_order(&record, attempt, &order)?;
                self.hand_over(&record, attempt, checked.work).await
            }
            AttemptStatus::Starting => Ok(()),
            AttemptStatus::Running { started_ms } => {
                if record.state == JobState::Starting {
                    self.run_since(job, attempt, Timestamp(started_ms)).await?;
                }
                Ok(())
            }
            AttemptStatus::Done { end, record: done } => {
                if record.state == JobState::Starting
                    && let Some(started_ms) = done.started_ms()
                {
                    self.run_since(job, attempt, Timestamp(started_ms)).await?;
                }
                self.finish(job, attempt, end).await
            }
        }
    }

    async fn stop(&self, job: JobId, attempt: u32) -> Result<(), Undone> {
        match self.driver.poll(&job, attempt) {
            AttemptStatus::Unknown => self.finish(job, attempt, End::Canceled).await,
            AttemptStatus::Done { end, .. } => self.finish(job, attempt, end).await,
            AttemptStatus::Starting | AttemptStatus::Running { .. } => {
                self.driver.cancel(&job, attempt).await?;
                Ok(())
            }
        }
    }

    async fn report(&self, pool: &PoolId) -> Result<(), Undone> {
        let reports = self.driver.capacity().await?;
        for report in reports.into_iter().filter(|report| report.pool == *pool) {
            self.commit(Command::ReportCapacity(report)).await?;
        }
        Ok(())
    }

    async fn hand_over(&self, job: &Job, attempt: u32, work: WorkOrder) -> Result<(), Undone> {
        match self.driver.submit(work).await {
            Ok(()) => Ok(()),
            // The driver will never take this order: that is an end, with its reason.
            Err(DriverError::Refused(reason)) => {
                let end = End::SystemError { reason };
                self.finish(job.id, attempt, end).await
            }
            Err(other) => Err(other.into()),
        }
    }

    async fn run_since(&self, job: JobId, attempt: u32, at: Timestamp) -> Result<(), Undone> {
        self.commit(Command::Run { job, attempt, at }).await
    }

    async fn finish(&self, job: JobId, attempt: u32, end: End) -> Result<(), Undone> {
        self.commit(Command::Finish { job, attempt, end, at: now() }).await
    }

    /// Commits and waits until this replica shows it, so that the same action is not due again.
    async fn commit(&self, command: Command) -> Result<(), Undone> {
        let (revision, outcome) = self.proposer.commit(command).await?;
        if let Outcome::Rejected(reason) = outcome {
            tracing::info!(%reason, "the registry rejected a transition");
        }
        let _seen_later_if_late = self.consensus.wait_for(revision, SEEN_TIMEOUT).await;
        Ok(())
    }

    fn current(&self, job: JobId, attempt: u32) -> Option<Job> {
        self.consensus.read(|registry| {
            let record = registry.job(&job)?;
            let current = record.attempt().is_some_and(|it| it.number == attempt);
            current.then(|| record.clone())
        })
    }

    fn check_order(&self, job: &Job, attempt: u32, order: &Order) -> Result<Checked, Undone> {
        let mandate = Envelope::parse(&order.mandate)
            .map_err(|cause| cause.to_string())
            .and_then(|envelope| {
                self.consensus
                    .read(|registry| Mandate::open(&envelope, registry.trust(), registry.epoch()))
                    .map_err(|cause| cause.to_string())
            })
            .map_err(Undone::BadOrder)?;
        mandate.matches(job).map_err(|cause| Undone::BadOrder(cause.to_string()))?;
        if Digest::of(&order.payload) != job.payload {
            return Err(Undone::BadOrder("the payload is not the one that the registry names".into()));
        }
        let question = Question::new(mandate.researcher, &job.shape, &job.labels);
        let work = work_order(job, attempt, &order.payload).map_err(Undone::BadOrder)?;
        Ok(Checked { question, work })
    }

    /// The binding decision: this state's live pack, and the share as the registry has it now.
    fn refusal(&self, job: &Job, question: &Question) -> Option<String> {
        self.consensus.read(|registry| {
            let pool = &job.attempt()?.pool;
            let Some(offer) = registry.offer(pool) else {
                return Some(format!("{pool} is not offered any more"));
            };
            match &*self.judge.decide_as_host(registry, &offer.offer, question) {
                Decision::Permit(_) => None,
                denial => Some(crate::explain::denial(&policy::Answer::from(denial))),
            }
        })
    }
}

/// A checked order: the question for this state's pack, and the work for the driver.
struct Checked {
    question: Question,
    work: WorkOrder,
}

type InFlight = Arc<Mutex<HashSet<String>>>;

/// Holds an action's place while it is worked on.
struct Claim {
    in_flight: InFlight,
    name: String,
}

fn claim(in_flight: &InFlight, name: String) -> Option<Claim> {
    let mut held = in_flight.lock().expect("invariant: nothing panics while it holds the claims");
    if held.len() >= IN_FLIGHT_MAX || !held.insert(name.clone()) {
        return None;
    }
    let in_flight = Arc::clone(in_flight);
    Some(Claim { in_flight, name })
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.in_flight.lock().expect("invariant: nothing panics while it holds the claims").remove(&self.name);
    }
}

/// The driver's view of a payload on the pool that was granted.
fn work_order(job: &Job, attempt: u32, payload: &[u8]) -> Result<WorkOrder, String> {
    let submission = Submission::from_payload(payload).map_err(|bad| bad.to_string())?;
    let pool = &job.attempt().ok_or("the job has no current attempt")?.pool;
    Ok(submission.work_order(job.id, attempt, pool.clone(), &job.shape))
}
