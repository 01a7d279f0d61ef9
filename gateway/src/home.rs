//! Home: the state that vouches for a researcher keeps his tasks and decides where they may go.
//!
//! A submission goes through here in one straight line: remember, decide, place, store, commit.
//! Invariants: a task is stored before the registry hears of it; a key or a repeated body never
//! makes a second task; what the registry refused leaves nothing behind.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use certs::{Caller, Digest, GatewayId};
use federation::raft::Consensus;
use federation::{
    Command, Job, JobId, NoPlacement, Outcome, Placement, Pseudonym, Registry, Rejection, Rerank, Revision, Submit,
    Timestamp,
};
use policy::ResearcherFacts;

use crate::error::{Code, Problem};
use crate::proposer::Proposer;
use crate::stages::{Stage, Stages};
use crate::store::{Change, RememberedKey, Store, TaskRecord};
use crate::tes::{Requirements, Submission};
use crate::verdicts::{Judge, Question, Verdicts};

/// A client that got no answer repeats itself within this (py-tes under its next path prefix).
const REPEAT_WINDOW_MS: u64 = 60_000;
/// How long an idempotency key is honoured.
const KEY_LIFE_MS: u64 = 24 * 3600 * 1000;
/// A pack that changes this often during one submission is reported, not chased.
const STALE_RETRIES: usize = 3;
/// How long a submission waits for its own gateway to see it.
const READ_YOUR_WRITE: Duration = Duration::from_secs(5);

/// The home side of a gateway.
pub struct Home {
    me: GatewayId,
    consensus: Consensus,
    proposer: Proposer,
    store: Store,
    judge: Arc<Judge>,
    pseudonym_secret: Vec<u8>,
    stages: Arc<Stages>,
    in_progress: Mutex<HashSet<Vec<u8>>>,
    explained: Mutex<HashSet<Digest>>,
}

/// A submission as it arrived: what makes it the same as an earlier one.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// `Idempotency-Key`, if the client sent one.
    pub key: Option<String>,
    /// Digest of the request body.
    pub body: Digest,
    /// The path prefix that it came by: `/ga4gh/tes/v1`, `/v1`, …
    pub face: String,
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
    pub fn new(
        me: GatewayId,
        consensus: Consensus,
        proposer: Proposer,
        store: Store,
        judge: Arc<Judge>,
        pseudonym_secret: Vec<u8>,
        stages: Arc<Stages>,
    ) -> Home {
        Home {
            me,
            consensus,
            proposer,
            store,
            judge,
            pseudonym_secret,
            stages,
            in_progress: Mutex::default(),
            explained: Mutex::default(),
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
        let keys = scoped_keys(&owner, arrival);
        let _claim = self.claim(&keys)?;
        let now = now();
        let known = self.known(&keys, arrival, now)?;
        if let Some(known) = &known
            && let Some(accepted) = self.still_there(known)?
        {
            return Ok(accepted);
        }
        let question = Question::new(facts(caller), &requirements.shape, &requirements.labels);
        let begun = Instant::now();
        let (verdicts, placement) = self.decide_and_place(&question, requirements)?;
        let decided = self.stages.add(Stage::DecideAndPlace, begun);
        // A remembered task that the registry does not show may still be on its way to it: the same
        // id makes the second commit harmless.
        let job = known.map_or_else(|| JobId::new(now.0, certs::entropy::bytes()), |it| it.job);
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
        self.remember(task, &keys, arrival, &verdicts).await?;
        let stored = self.stages.add(Stage::Store, decided);
        let submit = self.command(job, owner, payload, requirements, &verdicts, placement, now);
        let committed = self.commit(submit, &question, requirements).await;
        self.stages.add(Stage::Commit, stored);
        match committed {
            Ok(revision) => Ok(Accepted { job, revision }),
            Err(Failed::Refused(problem)) => {
                let keys = keys.into_iter().map(|(key, _)| key).collect();
                self.store.write(Change::Forget { job, owner, keys }).await?;
                Err(problem)
            }
            // The registry may have taken it: the task stays, and a retry with the same key finds it.
            Err(Failed::Unknown(problem)) => Err(problem),
        }
    }

    /// What every state would say, without any effect.
    pub fn explain(&self, caller: &Caller, requirements: &Requirements) -> Arc<Verdicts> {
        let question = Question::new(facts(caller), &requirements.shape, &requirements.labels);
        self.consensus.read(|registry| self.judge.verdicts(registry, &question))
    }

    /// Decides again for a queued job whose packs have moved.
    pub async fn rerank(&self, job: JobId) -> Result<(), Problem> {
        let Some(record) = self.store.task(&job)? else {
            return Ok(());
        };
        let command = self.consensus.read(|registry| {
            let queued = registry.job(&job)?;
            let question = Question::new(record.researcher.clone(), &queued.shape, &queued.labels);
            let verdicts = self.judge.verdicts(registry, &question);
            let zones = Submission::from_payload(&record.payload)
                .ok()
                .and_then(|it| it.requirements().ok())
                .map_or(vec![], |it| it.zones);
            let candidates = federation::place(registry, &queued.shape, &verdicts.permits(), &zones)
                .map_or(vec![], |placement| placement.candidates);
            Some(Command::Rerank(Rerank { job, candidates, decided_on: verdicts.decided_on.clone() }))
        });
        if let Some(command) = command {
            self.proposer.commit(command).await?;
        }
        Ok(())
    }

    /// Asks for a task's end. It is CANCELING until the host has released the GPUs.
    pub async fn cancel(&self, job: JobId) -> Result<(), Problem> {
        let (revision, outcome) = self.proposer.commit(Command::Cancel { job, at: now() }).await?;
        match outcome {
            // A task that has ended, or whose job has left the registry, stays as it is.
            Outcome::Rejected(Rejection::UnknownJob | Rejection::WrongState { .. }) => Ok(()),
            Outcome::Rejected(reason) => Err(Problem::new(Code::Rejected, reason.to_string())),
            _ => {
                let _a_late_replica_only_shows_it_later = self.consensus.wait_for(revision, READ_YOUR_WRITE).await;
                Ok(())
            }
        }
    }

    fn decide_and_place(
        &self,
        question: &Question,
        requirements: &Requirements,
    ) -> Result<(Arc<Verdicts>, Placement), Problem> {
        self.consensus.read(|registry| {
            let verdicts = self.judge.verdicts(registry, question);
            let permits = verdicts.permits();
            let shape = &requirements.shape;
            match federation::place(registry, shape, &permits, &requirements.zones) {
                Ok(placement) => Ok((verdicts, placement)),
                Err(reason) => Err(no_placement(registry, &verdicts, &reason)),
            }
        })
    }

    async fn remember(
        &self,
        task: TaskRecord,
        keys: &[(Vec<u8>, u64)],
        arrival: &Arrival,
        verdicts: &Verdicts,
    ) -> Result<(), Problem> {
        let remembered =
            RememberedKey { body: arrival.body, job: task.job, face: arrival.face.clone(), at: task.created_at };
        let keys = keys.iter().map(|(key, _)| (key.clone(), remembered.clone())).collect();
        let known = lock(&self.explained).contains(&verdicts.digest);
        let accept = Change::Accept {
            task: Box::new(task),
            keys,
            explanation: (!known).then(|| Arc::clone(&verdicts.explanation)),
        };
        self.store.write(accept).await?;
        lock(&self.explained).insert(verdicts.digest);
        Ok(())
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
    ) -> Result<Revision, Failed> {
        for _ in 0..STALE_RETRIES {
            let (revision, outcome) =
                self.proposer.commit(Command::Submit(submit.clone())).await.map_err(Failed::from)?;
            match outcome {
                Outcome::Done | Outcome::Granted { .. } | Outcome::Queued | Outcome::Duplicate => {
                    let _a_late_replica_only_shows_it_later = self.consensus.wait_for(revision, READ_YOUR_WRITE).await;
                    return Ok(revision);
                }
                Outcome::Rejected(Rejection::StalePolicy { .. }) => {
                    let _decide_on_what_is_here_if_late = self.consensus.wait_for(revision, READ_YOUR_WRITE).await;
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

    /// At most one submission at a time under one key.
    fn claim(&self, keys: &[(Vec<u8>, u64)]) -> Result<Claim<'_>, Problem> {
        let mut in_progress = lock(&self.in_progress);
        let named: Vec<_> = keys.iter().map(|(key, _)| key.clone()).collect();
        // Only a client's own key is claimed; repeating a body is no conflict.
        let own = named.iter().find(|key| key[16] == b'k');
        if own.is_some_and(|key| in_progress.contains(key)) {
            return Err(Problem::new(
                Code::IdempotencyInProgress,
                "a request with this Idempotency-Key is still being worked on; ask again shortly",
            ));
        }
        let claimed = own.cloned();
        in_progress.extend(claimed.clone());
        Ok(Claim { home: self, claimed })
    }

    fn known(
        &self,
        keys: &[(Vec<u8>, u64)],
        arrival: &Arrival,
        now: Timestamp,
    ) -> Result<Option<RememberedKey>, Problem> {
        for (key, life_ms) in keys {
            let Some(known) = self.store.key(key)? else {
                continue;
            };
            if now.0.saturating_sub(known.at.0) > *life_ms {
                continue;
            }
            let own = key[16] == b'k';
            if own && known.body != arrival.body {
                return Err(Problem::new(
                    Code::IdempotencyMismatch,
                    "this Idempotency-Key was used for another body; choose a new key",
                ));
            }
            // The same body by the same path is a second task; by another path it is a repeat.
            if own || known.face != arrival.face {
                return Ok(Some(known));
            }
        }
        Ok(None)
    }

    /// A remembered task counts only if the registry took it.
    fn still_there(&self, known: &RememberedKey) -> Result<Option<Accepted>, Problem> {
        let job = known.job;
        let (revision, in_registry) =
            self.consensus.read(|registry| (registry.revision(), registry.job(&job).is_some()));
        let there = in_registry || self.store.archived(&job)?.is_some();
        Ok(there.then_some(Accepted { job, revision }))
    }
}

/// Releases a key when a submission is done, however it ends.
struct Claim<'a> {
    home: &'a Home,
    claimed: Option<Vec<u8>>,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if let Some(key) = &self.claimed {
            lock(&self.home.in_progress).remove(key);
        }
    }
}

enum Failed {
    Refused(Problem),
    Unknown(Problem),
}

impl From<crate::proposer::NotCommitted> for Failed {
    fn from(reason: crate::proposer::NotCommitted) -> Failed {
        match reason {
            unknown @ crate::proposer::NotCommitted::Unknown => Failed::Unknown(unknown.into()),
            refused => Failed::Refused(refused.into()),
        }
    }
}

/// `owner || 'k' || key` for a client's own key, `owner || 'b' || digest` for a repeated body, each
/// with its life in milliseconds.
fn scoped_keys(owner: &Pseudonym, arrival: &Arrival) -> Vec<(Vec<u8>, u64)> {
    let mut keys = Vec::with_capacity(2);
    if let Some(key) = &arrival.key {
        keys.push(([&owner.0[..], b"k", key.as_bytes()].concat(), KEY_LIFE_MS));
    } else {
        let body = [&owner.0[..], b"b", &arrival.body.0].concat();
        keys.push((body, REPEAT_WINDOW_MS));
    }
    keys
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

fn no_placement(registry: &Registry, verdicts: &Verdicts, reason: &NoPlacement) -> Problem {
    let pools = crate::explain::pools(registry, &crate::explain::answers(verdicts), None);
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

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().expect("invariant: nothing panics while it holds a set of keys")
}

/// The job's attempt that counts: the current one, or the last.
pub fn decisive_attempt(job: &Job) -> Option<&federation::Attempt> {
    job.attempt().or_else(|| job.attempts.last())
}
