//! The proposer: turns this gateway's commands into signed envelopes and commits them.
//!
//! Commands that wait together travel together: one signature, one log entry and one sync for a
//! whole batch. An envelope whose outcome is unknown is proposed again byte for byte; the registry
//! knows its serial, so a retry is harmless.
//!
//! While nobody leads, commands stay where they are. So at its deadline a command is either still here, and is taken
//! back, or it was sent, and nobody knows.
//!
//! Invariants: serials of one key only rise, also across restarts; every command that was accepted
//! gets exactly one answer, by its deadline; a command that was answered with "nothing was changed" is never sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use certs::{ENVELOPE_BYTES_MAX, Envelope, Header, Kind, MemberState, SigningKey};
use federation::raft::{Consensus, ProposeError};
use federation::{Batch, Command, Outcome, Revision};
use futures_util::future::join_all;
use postcard::ser_flavors::Size;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::{Code, Problem};

mod serials;

#[cfg(test)]
pub(crate) mod tests;

pub use serials::Serials;

/// Commands in one envelope: 256 x ~0.5 KiB stays far below the envelope's limit.
const BATCH_MAX: usize = 256;
/// Bytes of the commands in one envelope: packs and bundles are large. The rest is for its header and signature.
const BATCH_BYTES_MAX: usize = ENVELOPE_BYTES_MAX - 4 * 1_024;
/// Envelopes on their way at once, for commits that take as long as Europe is wide.
const IN_FLIGHT_MAX: u32 = 4;
/// While an envelope is on its way, commands gather this long before the next one follows it: each costs a signature, a
/// check of it on every replica and a log entry. Commits in one building return sooner, so there one is on its way.
const GATHER: Duration = Duration::from_millis(8);
/// Commands that may wait: 16 full batches; beyond it the caller is told to come back.
const WAITING_MAX: usize = 4096;
/// How long a command takes at most if its caller does not say. Clients give up after 10 s, and what is done before and
/// after a commit takes time, too.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(6);
/// Between two looks for a leader.
const LEADER_LOOK_EVERY: Duration = Duration::from_millis(20);
/// What callers are told to wait before they try again when nobody leads: about one election.
const NO_LEADER_RETRY_MS: u64 = 1_000;

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

type Answer = Result<Committed, NotCommitted>;

struct Waiting {
    command: Command,
    bytes: usize,
    deadline: Instant,
    /// Whoever sets this first decides: the proposer that it is sent, or its caller that it never will be.
    decided: Arc<AtomicBool>,
    answer: oneshot::Sender<Answer>,
}

/// Cheap to clone; all clones feed one queue.
#[derive(Clone)]
pub struct Proposer {
    queue: mpsc::Sender<Waiting>,
    consensus: Consensus,
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
    pub fn start(
        consensus: Consensus,
        signer: Signer,
        serials: Serials,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Proposer {
        let (queue, waiting) = mpsc::channel(WAITING_MAX);
        let gathering = Gathering {
            consensus: consensus.clone(),
            signer: Arc::new(signer),
            serials,
            in_flight: Arc::new(Semaphore::new(IN_FLIGHT_MAX as usize)),
            tasks: tasks.clone(),
        };
        tasks.spawn(gathering.run(Queue { waiting, next: None }, stop));
        Proposer { queue, consensus }
    }

    /// Commits one command and returns its outcome, after [`COMMIT_TIMEOUT`] at the latest.
    ///
    /// The work goes on when the caller goes away: dropping this future cancels nothing.
    pub async fn commit(&self, command: Command) -> Answer {
        self.commit_by(command, Instant::now() + COMMIT_TIMEOUT).await
    }

    /// The same with another deadline. A command that was not sent by then never will be.
    pub async fn commit_by(&self, command: Command, deadline: Instant) -> Answer {
        let bytes = encoded_bytes(&command)?;
        let (answer, outcome) = oneshot::channel();
        let decided = Arc::new(AtomicBool::new(false));
        let waiting = Waiting { command, bytes, deadline, decided: Arc::clone(&decided), answer };
        self.queue.try_send(waiting).map_err(|full| match full {
            // What was taken back keeps its place until somebody leads.
            TrySendError::Full(_) if self.consensus.leader().is_none() => NO_LEADER,
            TrySendError::Full(_) => NotCommitted::Busy,
            TrySendError::Closed(_) => NO_LEADER,
        })?;
        match timeout_at(deadline, outcome).await {
            Ok(answered) => answered.unwrap_or(Err(NotCommitted::Unknown)),
            Err(_) if decided.swap(true, Ordering::AcqRel) => Err(NotCommitted::Unknown),
            Err(_) => Err(NO_LEADER),
        }
    }

    /// Commands that may still be queued before callers are refused.
    pub fn room(&self) -> usize {
        self.queue.capacity()
    }
}

const NO_LEADER: NotCommitted = NotCommitted::NoLeader { retry_after_ms: NO_LEADER_RETRY_MS };

/// The lowest serial that nothing speaks against: the wall clock in microseconds, and above what the registry has seen of
/// this key. That it was not used before is for [`Serials`] to know.
pub fn lowest_serial(consensus: &Consensus, signer: &Signer) -> u64 {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_micros() as u64;
    let seen = consensus.read(|registry| registry.last_serial(&signer.key.public().id()));
    clock.max(seen.map_or(0, |serial| serial + 1))
}

fn encoded_bytes(command: &Command) -> Result<usize, NotCommitted> {
    let bytes = postcard::serialize_with_flavor(command, Size::default());
    match bytes {
        Ok(bytes) if bytes <= BATCH_BYTES_MAX => Ok(bytes),
        Ok(bytes) => Err(NotCommitted::Refused(format!("{bytes} bytes are more than an envelope holds"))),
        Err(cause) => Err(NotCommitted::Refused(cause.to_string())),
    }
}

/// What waits, in order.
struct Queue {
    waiting: mpsc::Receiver<Waiting>,
    /// Taken out already, and too large for the batch before.
    next: Option<Waiting>,
}

impl Queue {
    /// Waits for a command and takes what waits behind it, up to one envelope full. Empty: nothing will come any more.
    async fn batch(&mut self) -> Vec<Waiting> {
        if self.next.is_none() {
            self.next = self.waiting.recv().await;
        }
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while let Some(waiting) = self.next.take() {
            if batch.len() == BATCH_MAX || bytes + waiting.bytes > BATCH_BYTES_MAX {
                self.next = Some(waiting);
                break;
            }
            bytes += waiting.bytes;
            batch.push(waiting);
            self.next = self.waiting.try_recv().ok();
        }
        batch
    }

    fn is_empty(&self) -> bool {
        self.next.is_none() && self.waiting.is_empty()
    }
}

struct Gathering {
    consensus: Consensus,
    signer: Arc<Signer>,
    serials: Serials,
    in_flight: Arc<Semaphore>,
    tasks: TaskTracker,
}

impl Gathering {
    async fn run(mut self, mut queue: Queue, stop: CancellationToken) {
        loop {
            let permit = self.place().await;
            self.leader(&stop).await;
            let batch = tokio::select! {
                biased;
                batch = queue.batch() => batch,
                () = stop.cancelled() => {
                    queue.waiting.close();
                    if queue.is_empty() { return }
                    continue;
                }
            };
            if batch.is_empty() {
                return;
            }
            let (commands, answers) = to_be_sent(batch);
            if commands.is_empty() {
                continue;
            }
            let serial = match self.serials.take() {
                Ok(serial) => serial,
                Err(cause) => {
                    answer_all(answers, &NotCommitted::Refused(format!("it has no serial: {cause}")));
                    continue;
                }
            };
            let consensus = self.consensus.clone();
            let signer = Arc::clone(&self.signer);
            self.tasks.spawn(async move {
                commit_batch(consensus, &signer, serial, commands, answers).await;
                drop(permit);
            });
        }
    }

    /// Waits for a place among those on their way: until there is none, or [`GATHER`] has passed.
    async fn place(&self) -> OwnedSemaphorePermit {
        const OPEN: &str = "invariant: the semaphore is never closed";
        let permit = Arc::clone(&self.in_flight).acquire_owned().await.expect(OPEN);
        let _none_is_or_time_is_over = timeout(GATHER, self.in_flight.acquire_many(IN_FLIGHT_MAX - 1)).await;
        permit
    }

    /// Waits until somebody leads, as far as is known here. A gateway that stops tries with what it has.
    async fn leader(&self, stop: &CancellationToken) {
        while self.consensus.leader().is_none() && !stop.is_cancelled() {
            sleep(LEADER_LOOK_EVERY).await;
        }
    }
}

/// What of a batch is sent: not what its caller has taken back, and not what is too late.
fn to_be_sent(batch: Vec<Waiting>) -> (Vec<Command>, Vec<oneshot::Sender<Answer>>) {
    let now = Instant::now();
    let (mut commands, mut answers) = (Vec::with_capacity(batch.len()), Vec::with_capacity(batch.len()));
    for waiting in batch {
        if waiting.deadline <= now {
            let _caller_may_be_gone = waiting.answer.send(Err(NO_LEADER));
        } else if !waiting.decided.swap(true, Ordering::AcqRel) {
            commands.push(waiting.command);
            answers.push(waiting.answer);
        }
    }
    (commands, answers)
}

async fn commit_batch(
    consensus: Consensus,
    signer: &Signer,
    serial: u64,
    commands: Vec<Command>,
    mut answers: Vec<oneshot::Sender<Answer>>,
) {
    let result = match seal(&consensus, signer, serial, commands) {
        Ok(envelope) => tokio::select! {
            proposed = consensus.propose(envelope) => proposed.map_err(not_committed),
            // Nobody waits for it any more: it is committed or not, and whoever asked has to look.
            _ = join_all(answers.iter_mut().map(oneshot::Sender::closed)) => return,
        },
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

fn answer_all(answers: Vec<oneshot::Sender<Answer>>, reason: &NotCommitted) {
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
        ProposeError::Stopped => NO_LEADER,
    }
}
