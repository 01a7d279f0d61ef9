//! Jobs: the federation's record of one task, from the home state's side.
//!
//! `Queued -> Granted -> Starting -> Running -> Complete | Failed | Canceled`; a declined attempt goes back to `Queued`.
//! Invariants: GPUs are held exactly while the job is granted, starting or running; nothing leaves `Complete`,
//! `Failed` or `Canceled`.

use std::{fmt, sync::Arc};

use certs::{Digest, GatewayName, MemberState};
use policy::Labels;
use serde::{Deserialize, Serialize};

use crate::{
    attempt::{self, Attempt, End},
    candidate::Candidate,
    command::{Outcome, Rejection, Rerank, Submit},
    id::{JobId, PoolId, Pseudonym},
    limits::{self, count, text},
    pack, queue,
    registry::Registry,
    shape::Shape,
    time::{Revision, Timestamp},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum JobState {
    Queued,
    Granted,
    Starting,
    Running,
    Complete,
    Failed,
    Canceled,
}

impl JobState {
    /// Nothing follows.
    pub fn is_final(self) -> bool {
        matches!(self, JobState::Complete | JobState::Failed | JobState::Canceled)
    }

    /// The job holds GPUs.
    pub fn holds(self) -> bool {
        matches!(self, JobState::Granted | JobState::Starting | JobState::Running)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            JobState::Queued => "QUEUED",
            JobState::Granted => "GRANTED",
            JobState::Starting => "STARTING",
            JobState::Running => "RUNNING",
            JobState::Complete => "COMPLETE",
            JobState::Failed => "FAILED",
            JobState::Canceled => "CANCELED",
        }
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(self.as_str())
    }
}

/// The federation's record of one task; never its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    pub id: JobId,
    pub home: MemberState,
    pub home_gateway: GatewayName,
    pub pseudonym: Pseudonym,
    pub shape: Shape,
    pub labels: Labels,
    pub payload: Digest,
    pub priority: u8,
    pub restartable: bool,
    pub exclusive: bool,
    /// Pools that may still run it, best first.
    pub candidates: Vec<Candidate>,
    pub decided_on: Vec<(MemberState, u64)>,
    /// When `candidates` were last set.
    pub decided_at: Revision,
    pub state: JobState,
    pub cancel_requested: bool,
    pub attempts: Vec<Attempt>,
    /// How the job ended, also when no attempt did.
    pub end: Option<End>,
    /// Grants made to jobs behind it while it was first in line.
    pub passed_over: u32,
    /// The pool that is kept free for it, because it was passed over too often there.
    pub reserved: Option<PoolId>,
    pub submitted_at: Revision,
    /// As the home gateway says.
    pub submitted: Timestamp,
    pub changed_at: Revision,
}

impl Job {
    /// The latest attempt: the current one while the job holds GPUs.
    pub fn attempt(&self) -> Option<&Attempt> {
        self.attempts.last()
    }

    /// The attempt that holds GPUs now.
    pub fn holding(&self) -> Option<&Attempt> {
        self.attempts.last().filter(|_| self.state.holds())
    }

    /// The attempt whose records and logs are the job's. A job that waits again has none: the attempt before ran nothing, or
    /// its host has lost it and may be silent.
    pub fn decisive_attempt(&self) -> Option<&Attempt> {
        self.attempts.last().filter(|_| self.state != JobState::Queued)
    }

    /// Whether it may be given to another host and must not run twice: its attempts need leases.
    pub fn is_leased(&self) -> bool {
        self.restartable && self.exclusive
    }

    /// The candidate that is this pool.
    pub fn candidate(&self, pool: &PoolId) -> Option<&Candidate> {
        self.candidates.iter().find(|it| it.pool == *pool)
    }

    /// Attempts that their hosts refused.
    pub fn declines(&self) -> impl Iterator<Item = &Attempt> {
        self.attempts.iter().filter(|attempt| attempt.declined.is_some())
    }
}

pub(crate) fn submit(registry: &mut Registry, home: MemberState, it: Submit) -> Result<Outcome, Rejection> {
    if let Some(known) = registry.jobs.get(&it.job) {
        let same = known.home == home && known.payload == it.payload;
        return if same { Ok(Outcome::Duplicate) } else { Err(Rejection::JobIdTaken) };
    }
    it.shape.check()?;
    if it.priority > limits::PRIORITY_MAX {
        return Err(Rejection::OutOfRange { what: "priority".into(), limit: limits::PRIORITY_MAX.into() });
    }
    text("project", it.labels.project.as_deref().unwrap_or_default(), limits::PROJECT_BYTES_MAX)?;
    let member = registry.members.get(&home).ok_or(Rejection::NotOwner)?;
    if !member.gateways.iter().any(|gateway| gateway.id.name == it.home_gateway) {
        return Err(Rejection::UnknownGateway);
    }
    check_candidates(registry, &it.candidates, &it.shape)?;
    pack::check_current(registry, &it.decided_on)?;
    if registry.derived.open_jobs(home) >= limits::OPEN_JOBS_PER_STATE_MAX {
        return Err(Rejection::TooMany { limit: limits::OPEN_JOBS_PER_STATE_MAX as u64 });
    }

    let id = it.job;
    let revision = registry.revision;
    registry.derived.open(home);
    registry.jobs.insert(id, Arc::new(Job::new(home, it, revision)));
    Ok(grant_or_queue(registry, id))
}

impl Job {
    fn new(home: MemberState, it: Submit, revision: Revision) -> Job {
        Job {
            id: it.job,
            home,
            home_gateway: it.home_gateway,
            pseudonym: it.pseudonym,
            shape: it.shape,
            labels: it.labels,
            payload: it.payload,
            priority: it.priority,
            restartable: it.restartable,
            exclusive: it.exclusive,
            candidates: it.candidates,
            decided_on: it.decided_on,
            decided_at: revision,
            state: JobState::Queued,
            cancel_requested: false,
            attempts: Vec::new(),
            end: None,
            passed_over: 0,
            reserved: None,
            submitted_at: revision,
            submitted: it.at,
            changed_at: revision,
        }
    }
}

pub(crate) fn rerank(registry: &mut Registry, it: Rerank) -> Result<Outcome, Rejection> {
    let job = registry.jobs.get(&it.job).ok_or(Rejection::UnknownJob)?;
    if job.state != JobState::Queued {
        return Err(Rejection::WrongState { state: job.state });
    }
    if !it.candidates.is_empty() {
        check_candidates(registry, &it.candidates, &job.shape)?;
    }
    pack::check_current(registry, &it.decided_on)?;

    let kept_free = queue::leave(registry, it.job);
    let revision = registry.revision;
    let job = registry.job_mut(it.job);
    job.reserved = job.reserved.filter(|pool| it.candidates.iter().any(|candidate| candidate.pool == *pool));
    (job.candidates, job.decided_on, job.decided_at) = (it.candidates, it.decided_on, revision);
    let outcome = if job.candidates.is_empty() {
        let reason = it.reason.unwrap_or_else(|| "nothing that could run the job is permitted any more".into());
        end(registry, it.job, End::NotPermitted { reason });
        Outcome::Done
    } else {
        grant_or_queue(registry, it.job)
    };
    if let Some(pool) = kept_free {
        queue::serve(registry, pool);
    }
    Ok(outcome)
}

pub(crate) fn cancel(registry: &mut Registry, id: JobId) -> Result<Outcome, Rejection> {
    let job = registry.jobs.get(&id).ok_or(Rejection::UnknownJob)?;
    if job.state.is_final() || job.cancel_requested {
        return Ok(Outcome::Duplicate);
    }
    if job.state == JobState::Queued {
        let kept_free = queue::leave(registry, id);
        end(registry, id, End::Canceled);
        if let Some(pool) = kept_free {
            queue::serve(registry, pool);
        }
    } else {
        let revision = registry.revision;
        let job = registry.job_mut(id);
        (job.cancel_requested, job.changed_at) = (true, revision);
    }
    Ok(Outcome::Done)
}

/// Ends a job that holds nothing and waits nowhere, and forgets the oldest finished one of its home.
pub(crate) fn end(registry: &mut Registry, id: JobId, how: End) {
    let revision = registry.revision;
    let job = registry.job_mut(id);
    (job.state, job.changed_at, job.reserved) = (how.state(), revision, None);
    job.end = Some(how);
    let home = job.home;
    if let Some(oldest) = registry.derived.close(home, revision, id) {
        registry.jobs.remove(&oldest);
    }
}

/// Grants the first candidate that has room, or lets the job wait for all of them.
pub(crate) fn grant_or_queue(registry: &mut Registry, id: JobId) -> Outcome {
    let candidates = registry.jobs[&id].candidates.clone();
    match candidates.into_iter().map(|it| it.pool).find(|pool| queue::admits(registry, *pool, id)) {
        Some(pool) => {
            queue::pass_over(registry, pool, id);
            attempt::grant(registry, id, pool)
        }
        None => {
            queue::join(registry, id);
            Outcome::Queued
        }
    }
}

fn check_candidates(registry: &Registry, candidates: &[Candidate], shape: &Shape) -> Result<(), Rejection> {
    count(candidates.len(), limits::CANDIDATES_MAX)?;
    for (place, Candidate { pool, .. }) in candidates.iter().enumerate() {
        if candidates[..place].iter().any(|it| it.pool == *pool) {
            return Err(Rejection::BadCandidates);
        }
        if !registry.offers.contains_key(pool) {
            return Err(Rejection::UnknownPool { pool: *pool });
        }
    }
    match candidates {
        [] => Err(Rejection::BadCandidates),
        _ if any_suits(registry, candidates, shape) => Ok(()),
        _ => Err(Rejection::NoneSuits),
    }
}

/// Whether a job of that shape could ever run on one of the pools, as they are offered now.
pub(crate) fn any_suits(registry: &Registry, candidates: &[Candidate], shape: &Shape) -> bool {
    candidates.iter().any(|it| registry.offers.get(&it.pool).is_some_and(|offer| offer.misfit(shape).is_none()))
}
