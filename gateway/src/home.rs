//! Home: the state that vouches for a researcher keeps his tasks and decides where they may go.
//!
//! A submission goes through here in one straight line: remember, decide, place, store, commit.
//! Invariants: a task is stored before the registry hears of it, and forgotten only when the registry
//! surely never takes it; a key or a repeated body never makes a second task; what the registry
//! refused leaves nothing behind.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use certs::{Caller, Digest, GatewayId, MemberState};
use federation::raft::Consensus;
use federation::{
    Command, JobId, NoPlacement, Outcome, Placement, Pseudonym, Reason, Registry, Rejection, Rerank, Revision, Submit,
    Timestamp,
};
use policy::ResearcherFacts;

mod repeats;

pub use self::repeats::{Arrival, Delivery};
use self::repeats::{Repeats, ScopedKey};
use crate::archive::Archive;
use crate::error::{Code, Problem};
use crate::proposer::{NotCommitted, Proposer};
use crate::stages::{Stage, Stages};
use crate::store::{Change, Ended, RememberedKey, Store, Summary, TaskRecord};
use crate::tes::{Requirements, Submission};
use crate::verdicts::{Judge, Question, Unread, Verdicts};

/// A pack that changes this often during one submission is reported, not chased.
const STALE_RETRIES: usize = 3;
/// How long a submission takes at most, tries and waits together: py-tes gives up after 10 s and repeats itself.
const SUBMIT_TIMEOUT: Duration = Duration::from_secs(7);
/// How long a cancellation waits for its own gateway to see it.
const READ_YOUR_WRITE: Duration = Duration::from_secs(1);
/// Half of what the registry takes from a state, so that no researcher locks the others out.
const OPEN_TASKS_PER_RESEARCHER_MAX: usize = federation::limits::OPEN_JOBS_PER_STATE_MAX / 2;
/// Payloads of one researcher's open tasks: 512 of the largest, or 2,000 of half a megabyte.
const OPEN_BYTES_PER_RESEARCHER_MAX: u64 = 2 * 1_024 * 1_024 * 1_024;

/// The home side of a gateway.
pub struct Home {
    me: GatewayId,
    consensus: Consensus,
    proposer: Proposer,
    store: Store,
    judge: Arc<Judge>,
    pseudonym_secret: [u8; 32],
    stages: Arc<Stages>,
    archive: Arc<Archive>,
    repeats: Repeats,
}

/// An accepted submission.
#[derive(Clone, Copy, Debug)]
pub struct Accepted {
    /// The task's id.
    pub job: JobId,
    /// The registry revision that holds it.
    pub revision: Revision,
}

impl Home {
    /// The home side of this gateway.
    #[expect(clippy::too_many_arguments, reason = "each is one part of the gateway")]
    pub fn new(
        me: GatewayId,
        consensus: Consensus,
        proposer: Proposer,
        store: Store,
        judge: Arc<Judge>,
        pseudonym_secret: [u8; 32],
        stages: Arc<Stages>,
        archive: Arc<Archive>,
    ) -> Home {
        Home {
            me,
            consensus,
            proposer,
            store,
            judge,
            pseudonym_secret,
            stages,
            archive,
            repeats: Repeats::since(now()),
        }
    }

    /// The name under which the federation knows a caller of this state.
    pub fn pseudonym(&self, caller: &Caller) -> Pseudonym {
        let bytes = certs::hmac_pseudonym(&self.pseudonym_secret, &caller.issuer, &caller.subject);
        Pseudonym(bytes)
    }

    /// Accepts a task of one of our researchers, or says why not.
    pub async fn submit(
        &self,
        caller: &Caller,
        submission: &Submission,
        requirements: &Requirements,
        arrival: &Arrival,
    ) -> Result<Accepted, Problem> {
        let owner = self.pseudonym(caller);
        let key = ScopedKey::of(&owner, arrival);
        let _claim = self.repeats.claim(&key)?;
        let (now, deadline) = (now(), tokio::time::Instant::now() + SUBMIT_TIMEOUT);
        let known = self.repeats.adopt(&self.store, &key, arrival, now, deadline).await?;
        if let Some((known, _)) = &known
            && let Some(accepted) = self.still_there(known)?
        {
            return Ok(accepted);
        }
        if known.is_none() {
            self.refuse_excess(&owner)?;
        }
        let question = Question::new(facts(caller), &requirements.shape, &requirements.labels);
        let begun = Instant::now();
        let (verdicts, placement) = self.decide_and_place(&question, requirements)?;
        let decided = self.stages.add(Stage::DecideAndPlace, begun);
        // A remembered task that the registry has never shown may still be on its way to it: the same id makes the second
        // commit harmless.
        let (job, _at_work, is_new) = match known {
            Some((known, at_work)) => (known.job, Some(at_work), false),
            None => {
                let job = JobId::new(now.0, certs::entropy::bytes());
                (job, self.repeats.work_on(job), true)
            }
        };
        let task = TaskRecord {
            job,
            owner,
            created_at: now,
            payload: submission.payload(),
            warnings: requirements.warnings.clone(),
            researcher: question.researcher.clone(),
            explanation: verdicts.digest,
        };
        let payload = Digest::of(&task.payload);
        self.archive.expect(job, owner, task.payload.len() as u64);
        let remembered = self.remember(task, !is_new, submission, &key, arrival, &verdicts).await;
        if remembered.is_err() && is_new {
            self.archive.forget(&job);
        }
        remembered?;
        let stored = self.stages.add(Stage::Store, decided);
        let submit = self.command(job, owner, payload, requirements, &verdicts, placement, now);
        let committed = self.commit(submit, &question, requirements, deadline).await;
        self.stages.add(Stage::Commit, stored);
        match committed {
            Ok(revision) => Ok(Accepted { job, revision }),
            // An earlier try of the same task may still be on its way: only a task of this call is forgotten.
            Err(Failed::Refused(problem)) if is_new => {
                self.archive.forget(&job);
                self.store.write(Change::Forget { job, owner, keys: vec![key.bytes] }).await?;
                Err(problem)
            }
            // The registry may have taken it: the task stays, and its client's retry finds it.
            Err(Failed::Refused(problem) | Failed::Unknown(problem)) => {
                self.repeats.unheard(key.bytes);
                Err(problem)
            }
        }
    }

    /// For a submission whose answer may never be delivered: unless it is told so, a repeat of it is the same task.
    pub fn delivery(&self, caller: &Caller, arrival: &Arrival) -> Delivery<'_> {
        self.repeats.delivery(ScopedKey::of(&self.pseudonym(caller), arrival))
    }

    /// What every state would say, without any effect.
    pub fn explain(&self, caller: &Caller, requirements: &Requirements) -> Result<Arc<Verdicts>, Problem> {
        let question = Question::new(facts(caller), &requirements.shape, &requirements.labels);
        Ok(self.judge.verdicts(&self.consensus, &question)?)
    }

    /// Decides again for a queued job whose packs or pools have moved. One that is permitted nowhere any more ends.
    pub async fn rerank(&self, job: JobId) -> Result<(), Problem> {
        let Some(record) = self.store.task(&job)? else {
            return Ok(());
        };
        let Some(queued) = self.consensus.read(|registry| registry.job_arc(&job)) else {
            return Ok(());
        };
        let question = Question::new(record.researcher.clone(), &queued.shape, &queued.labels);
        let zones = Submission::from_payload(&record.payload)
            .ok()
            .and_then(|it| it.requirements().ok())
            .map_or(vec![], |it| it.zones);
        let verdicts = self.judge.verdicts(&self.consensus, &question)?;
        let permits = verdicts.permits();
        let placed =
            self.consensus.read(|registry| federation::place(registry, queued.home, &queued.shape, &permits, &zones));
        let (candidates, reason) = match placed {
            Ok(placement) => (placement.candidates, None),
            Err(none) => (vec![], Some(Reason::new(&format!("no pool may run it any more: {none}")))),
        };
        let decided_on = verdicts.decided_on.clone();
        let rerank = Rerank { job, candidates, decided_on, reason };
        match self.proposer.commit(Command::Rerank(rerank)).await? {
            (_, Outcome::Rejected(reason)) => Err(rejected(&reason)),
            _ => Ok(()),
        }
    }

    /// Asks for a task's end. It is CANCELING until the host has released the GPUs.
    pub async fn cancel(&self, job: JobId) -> Result<(), Problem> {
        let (revision, outcome) = self.proposer.commit(Command::Cancel { job, at: now() }).await?;
        let _a_late_replica_only_shows_it_later = self.consensus.wait_for(revision, READ_YOUR_WRITE).await;
        match outcome {
            // Its submission may still be under way, and would then run.
            Outcome::Rejected(Rejection::UnknownJob) if self.store.ended(&job)?.is_none() => Err(Problem::new(
                Code::NotCommittedYet,
                "the registry has not taken this task yet; ask again in a second",
            )),
            // A task that has ended, or whose job has left the registry, stays as it is.
            Outcome::Rejected(Rejection::UnknownJob | Rejection::WrongState { .. }) => Ok(()),
            Outcome::Rejected(reason) => Err(Problem::new(Code::Rejected, reason.to_string())),
            _ => Ok(()),
        }
    }

    fn refuse_excess(&self, owner: &Pseudonym) -> Result<(), Problem> {
        let open = self.archive.open_of(owner);
        if open.tasks < OPEN_TASKS_PER_RESEARCHER_MAX && open.bytes < OPEN_BYTES_PER_RESEARCHER_MAX {
            return Ok(());
        }
        Err(Problem::new(
            Code::TooManyOpenTasks,
            format!(
                "you have {} open tasks of {} MiB together; wait until some have ended, or cancel some",
                open.tasks,
                open.bytes / (1_024 * 1_024)
            ),
        ))
    }

    fn decide_and_place(
        &self,
        question: &Question,
        requirements: &Requirements,
    ) -> Result<(Arc<Verdicts>, Placement), Problem> {
        let verdicts = self.judge.verdicts(&self.consensus, question)?;
        let (home, permits) = (question.researcher.home, verdicts.permits());
        self.consensus.read(|registry| {
            match federation::place(registry, home, &requirements.shape, &permits, &requirements.zones) {
                Ok(placement) => Ok((verdicts, placement)),
                Err(reason) => Err(no_placement(registry, &verdicts, home, requirements, &reason)),
            }
        })
    }

    async fn remember(
        &self,
        task: TaskRecord,
        again: bool,
        submission: &Submission,
        key: &ScopedKey,
        arrival: &Arrival,
        verdicts: &Verdicts,
    ) -> Result<(), Problem> {
        let (at, until) = (task.created_at, Timestamp(task.created_at.0 + key.life_ms));
        let remembered = RememberedKey { body: arrival.body, job: task.job, face: arrival.face.clone(), at, until };
        let summary = Summary {
            name: submission.task().name.clone(),
            tags: submission.task().tags.clone(),
            payload_bytes: task.payload.len() as u64,
            explanation: verdicts.digest,
        };
        let accept = Change::Accept {
            task: Box::new(task),
            summary,
            again,
            keys: vec![(key.bytes.clone(), remembered)],
            explanation: Arc::clone(&verdicts.explanation),
        };
        Ok(self.store.write(accept).await?)
    }

    #[expect(clippy::too_many_arguments, reason = "each is one field of the command")]
    fn command(
        &self,
        job: JobId,
        pseudonym: Pseudonym,
        payload: Digest,
        requirements: &Requirements,
        verdicts: &Verdicts,
        placement: Placement,
        at: Timestamp,
    ) -> Submit {
        Submit {
            job,
            home_gateway: self.me.name.clone(),
            pseudonym,
            shape: requirements.shape.clone(),
            labels: requirements.labels.clone(),
            payload,
            priority: requirements.priority,
            restartable: requirements.restartable,
            exclusive: requirements.exclusive,
            candidates: placement.candidates,
            decided_on: verdicts.decided_on.clone(),
            at,
        }
    }

    /// Commits; when a pack moved meanwhile, decides again.
    async fn commit(
        &self,
        mut submit: Submit,
        question: &Question,
        requirements: &Requirements,
        deadline: tokio::time::Instant,
    ) -> Result<Revision, Failed> {
        for _ in 0..STALE_RETRIES {
            let (revision, outcome) =
                self.proposer.commit_by(Command::Submit(submit.clone()), deadline).await.map_err(Failed::from)?;
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            let seen = self.consensus.wait_for(revision, left).await;
            match outcome {
                Outcome::Done | Outcome::Granted { .. } | Outcome::Queued | Outcome::Duplicate => return Ok(revision),
                // The answer to the first try was lost: whether it was taken is in the registry.
                Outcome::Replayed if seen.is_err() => return Err(Failed::from(NotCommitted::Unknown)),
                Outcome::Replayed => {
                    let taken = self.consensus.read(|registry| registry.job(&submit.job).is_some());
                    if taken {
                        return Ok(revision);
                    }
                }
                Outcome::Rejected(Rejection::StalePolicy { .. }) => {
                    let (verdicts, placement) =
                        self.decide_and_place(question, requirements).map_err(Failed::Refused)?;
                    submit.candidates = placement.candidates;
                    submit.decided_on = verdicts.decided_on.clone();
                }
                Outcome::Rejected(reason) => return Err(Failed::Refused(rejected(&reason))),
            }
        }
        Err(Failed::Refused(Problem::new(
            Code::PolicyMoving,
            "a state's policy changed several times during this submission; submit again",
        )))
    }

    /// A remembered task counts only if the registry took it, also if it has forgotten it since.
    fn still_there(&self, known: &RememberedKey) -> Result<Option<Accepted>, Problem> {
        let job = known.job;
        let (revision, in_registry) =
            self.consensus.read(|registry| (registry.revision(), registry.job(&job).is_some()));
        let there = in_registry
            || self.store.is_taken(&job)?
            || self.store.ended(&job)?.is_some_and(|ended| ended != Ended::NeverTaken);
        Ok(there.then_some(Accepted { job, revision }))
    }
}

enum Failed {
    /// The registry did not and will not take this call's command.
    Refused(Problem),
    /// It may have taken it, or may take it yet.
    Unknown(Problem),
}

impl From<NotCommitted> for Failed {
    fn from(reason: NotCommitted) -> Failed {
        match reason {
            unknown @ NotCommitted::Unknown => Failed::Unknown(unknown.into()),
            refused => Failed::Refused(refused.into()),
        }
    }
}

/// What home attests about a caller, as packs see it.
pub fn facts(caller: &Caller) -> ResearcherFacts {
    ResearcherFacts {
        home: caller.state,
        assurance: caller.assurance as u8,
        entitlements: caller.entitlements.clone(),
        clearances: caller.clearances.clone(),
        residency: caller.residency,
    }
}

/// Now, by this gateway's clock.
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Timestamp(since.as_millis() as u64)
}

impl From<Unread> for Problem {
    fn from(unread: Unread) -> Problem {
        Problem::new(Code::Overloaded, unread.to_string())
    }
}

fn no_placement(
    registry: &Registry,
    verdicts: &Verdicts,
    home: MemberState,
    requirements: &Requirements,
    reason: &NoPlacement,
) -> Problem {
    let pools = crate::explain::pools(registry, &crate::explain::answers(verdicts), home, None, requirements);
    match reason {
        NoPlacement::NothingPermitted => Problem::new(
            Code::EveryStateDenied,
            "no state lets this task run; `pools` lists each state's rule and legal basis",
        )
        .with("pools", pools),
        other => Problem::new(Code::NoPoolFits, other.to_string()).with("pools", pools),
    }
}

fn rejected(reason: &Rejection) -> Problem {
    match reason {
        Rejection::TooMany { .. } => Problem::new(Code::TooManyOpenTasks, reason.to_string()),
        other => Problem::new(Code::Rejected, other.to_string()),
    }
}
