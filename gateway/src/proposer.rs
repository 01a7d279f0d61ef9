//! The proposer: turns this gateway's commands into signed envelopes and commits them.
//!
//! Commands that wait together travel together: one signature, one log entry and one sync for a
//! whole batch. An envelope whose outcome is unknown is proposed again byte for byte; the registry
//! knows its serial, so a retry is harmless.
//!
//! Invariants: serials of one key only rise, also across restarts; every command that was accepted
//! gets exactly one answer.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use certs::{Envelope, Header, Kind, MemberState, SigningKey};
use federation::raft::{Consensus, ProposeError};
use federation::{Batch, Command, Outcome, Revision};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::{Code, Problem};

/// Commands in one envelope: 256 x ~0.5 KiB stays far below the envelope's limit.
const BATCH_MAX: usize = 256;
/// Envelopes on their way at once: enough to keep the log busy while the next batch gathers.
const IN_FLIGHT_MAX: usize = 4;
/// Commands that may wait: 16 full batches; beyond it the caller is told to come back.
const WAITING_MAX: usize = 4096;

/// A command's committed outcome and the revision to wait for to see it.
pub type Committed = (Revision, Outcome);

/// Why a command has no outcome.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NotCommitted {
    /// Too many commands wait already.
    #[error("this gateway has more work waiting than it commits; try again in a second")]
    Busy,
    /// No quorum, or the gateway is stopping. Nothing was committed by this call.
    #[error("the federation has no leader right now; nothing was changed")]
    NoLeader {
        /// When trying again makes sense.
        retry_after_ms: u64,
    },
    /// The answer was lost: the command may or may not be committed.
    #[error("the registry did not answer in time; the change may or may not have been made")]
    Unknown,
    /// The leader refused the envelope itself.
    #[error("the registry refused this gateway's envelope: {0}")]
    Refused(String),
}

impl From<NotCommitted> for Problem {
    fn from(reason: NotCommitted) -> Problem {
        let problem = |code| Problem::new(code, reason.to_string());
        match &reason {
            NotCommitted::Busy => problem(Code::Overloaded),
            NotCommitted::NoLeader { retry_after_ms } => {
                let seconds = u32::try_from(retry_after_ms.div_ceil(1_000)).unwrap_or(u32::MAX);
                problem(Code::NoLeader).retry_after_s(seconds)
            }
            NotCommitted::Unknown => problem(Code::OutcomeUnknown),
            NotCommitted::Refused(_) => problem(Code::EnvelopeRefused),
        }
    }
}

struct Waiting {
    command: Command,
    answer: oneshot::Sender<Result<Committed, NotCommitted>>,
}

/// Cheap to clone; all clones feed one queue.
#[derive(Clone)]
pub struct Proposer {
    queue: mpsc::Sender<Waiting>,
}

/// What an envelope of this gateway says about its origin.
pub struct Signer {
    /// The state that owns the records.
    pub owner: MemberState,
    /// This gateway's signing key.
    pub key: SigningKey,
}

impl Proposer {
    /// Starts the queue's task; it ends when `stop` is cancelled and the queue is empty.
    pub fn start(consensus: Consensus, signer: Signer, tasks: &TaskTracker, stop: CancellationToken) -> Proposer {
        let (queue, waiting) = mpsc::channel(WAITING_MAX);
        let gathering = Gathering {
            next_serial: first_serial(&consensus, &signer),
            consensus,
            signer: Arc::new(signer),
            in_flight: Arc::new(Semaphore::new(IN_FLIGHT_MAX)),
            tasks: tasks.clone(),
        };
        tasks.spawn(gathering.run(waiting, stop));
        Proposer { queue }
    }

    /// Commits one command and returns its outcome.
    ///
    /// The work goes on when the caller goes away: dropping this future cancels nothing.
    pub async fn commit(&self, command: Command) -> Result<Committed, NotCommitted> {
        let (answer, outcome) = oneshot::channel();
        self.queue.try_send(Waiting { command, answer }).map_err(|full| match full {
            mpsc::error::TrySendError::Full(_) => NotCommitted::Busy,
            mpsc::error::TrySendError::Closed(_) => NotCommitted::NoLeader { retry_after_ms: 1_000 },
        })?;
        outcome.await.unwrap_or(Err(NotCommitted::Unknown))
    }

    /// Commands that may still be queued before callers are refused.
    pub fn room(&self) -> usize {
        self.queue.capacity()
    }
}

/// Serials start at the wall clock in microseconds, or above what the registry has seen of this
/// key if the clock went back.
fn first_serial(consensus: &Consensus, signer: &Signer) -> u64 {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_micros() as u64;
    let seen = consensus.read(|registry| registry.last_serial(&signer.key.public().id()));
    clock.max(seen.map_or(0, |serial| serial + 1))
}

struct Gathering {
    consensus: Consensus,
    signer: Arc<Signer>,
    next_serial: u64,
    in_flight: Arc<Semaphore>,
    tasks: TaskTracker,
}

impl Gathering {
    async fn run(mut self, mut waiting: mpsc::Receiver<Waiting>, stop: CancellationToken) {
        loop {
            let permit =
                Arc::clone(&self.in_flight).acquire_owned().await.expect("invariant: the semaphore is never closed");
            let mut batch = Vec::with_capacity(BATCH_MAX);
            tokio::select! {
                biased;
                taken = waiting.recv_many(&mut batch, BATCH_MAX) => if taken == 0 { return },
                () = stop.cancelled() => {
                    waiting.close();
                    if waiting.is_empty() { return }
                    continue;
                }
            }
            let serial = self.next_serial;
            self.next_serial += 1;
            let consensus = self.consensus.clone();
            let signer = Arc::clone(&self.signer);
            self.tasks.spawn(async move {
                commit_batch(consensus, &signer, serial, batch).await;
                drop(permit);
            });
        }
    }
}

async fn commit_batch(consensus: Consensus, signer: &Signer, serial: u64, batch: Vec<Waiting>) {
    let (commands, answers): (Vec<_>, Vec<_>) = batch.into_iter().map(|it| (it.command, it.answer)).unzip();
    let result = match seal(&consensus, signer, serial, commands) {
        Ok(envelope) => consensus.propose(envelope).await.map_err(not_committed),
        Err(reason) => Err(NotCommitted::Refused(reason)),
    };
    match result {
        Ok(applied) if applied.outcomes.len() == answers.len() => {
            for (answer, outcome) in answers.into_iter().zip(applied.outcomes) {
                let _caller_may_be_gone = answer.send(Ok((applied.revision, outcome)));
            }
        }
        // One outcome for many commands: the envelope itself was rejected.
        Ok(applied) => {
            let reason = format!("{:?}", applied.outcomes);
            answer_all(answers, &NotCommitted::Refused(reason));
        }
        Err(reason) => answer_all(answers, &reason),
    }
}

fn answer_all(answers: Vec<oneshot::Sender<Result<Committed, NotCommitted>>>, reason: &NotCommitted) {
    for answer in answers {
        let _caller_may_be_gone = answer.send(Err(reason.clone()));
    }
}

fn seal(consensus: &Consensus, signer: &Signer, serial: u64, commands: Vec<Command>) -> Result<Envelope, String> {
    let (federation, epoch) = consensus.read(|registry| (registry.federation().clone(), registry.epoch()));
    let header =
        Header { federation, epoch, owner: signer.owner, key: signer.key.public().id(), serial, kind: Kind::Command };
    let body = postcard::to_stdvec(&Batch(commands)).map_err(|cause| cause.to_string())?;
    Envelope::seal(header, &body, &signer.key).map_err(|cause| cause.to_string())
}

fn not_committed(error: ProposeError) -> NotCommitted {
    match error {
        ProposeError::NoLeader { retry_after_ms } => NotCommitted::NoLeader { retry_after_ms },
        ProposeError::Unknown => NotCommitted::Unknown,
        ProposeError::Refused(reason) => NotCommitted::Refused(reason.to_string()),
        ProposeError::Stopped => NotCommitted::NoLeader { retry_after_ms: 1_000 },
    }
}
