//! Attempts: tries to run a job, moved by the state that hosts them.
//! Invariants: only the current attempt moves a job; what an attempt holds is freed, and charged, once.

use std::sync::Arc;

use certs::{GatewayId, GatewayName};
use serde::{Deserialize, Serialize};

use crate::{
    candidate::{Candidate, Ceiling},
    command::{Outcome, Rejection},
    grant::Grant,
    id::{JobId, PoolId},
    job::{self, Job, JobState},
    limits, offer, queue,
    reason::Reason,
    registry::Registry,
    time::{Revision, Timestamp},
};

/// One try to run a job. Its number is the fencing token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// From 1.
    pub number: u32,
    pub pool: PoolId,
    /// The gateway that served the pool when this was granted: the offer that says so may be forgotten first.
    pub served_by: GatewayName,
    /// It stops by itself when its gateway cannot renew its lease: the pool promised it when this was granted.
    pub leased: bool,
    pub grant: Grant,
    pub granted_at: Revision,
    pub started_at: Option<Timestamp>,
    pub running_at: Option<Timestamp>,
    pub ended_at: Option<Timestamp>,
    /// Why the host refused, if it did.
    pub declined: Option<Reason>,
    /// What home's share of the pool has to be below for the host not to decline.
    pub below: Option<Ceiling>,
    /// How it ended, if it did and was not declined.
    pub end: Option<End>,
    /// Charged when it ended.
    pub gpu_seconds: u64,
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    Complete,
    /// The task's own command failed.
    ExecutorError {
        exit_code: i32,
    },
    /// Anything else failed.
    SystemError {
        reason: Reason,
    },
    Canceled,
    /// The job waited until nothing that could run it was permitted any more.
    NotPermitted {
        reason: Reason,
    },
    /// The attempt came to nothing through no fault of the job: a job that may be run again is.
    Lost {
        reason: Reason,
    },
}

impl Attempt {
    /// The gateway that was given this attempt, and has its logs and results.
    pub fn host(&self) -> GatewayId {
        GatewayId { state: self.pool.state(), name: self.served_by.clone() }
    }
}

impl End {
    /// A system error with as much of the reason as the registry keeps.
    pub fn system_error(reason: &str) -> End {
        End::SystemError { reason: Reason::new(reason) }
    }

    /// A loss with as much of the reason as the registry keeps.
    pub fn lost(reason: &str) -> End {
        End::Lost { reason: Reason::new(reason) }
    }

    pub(crate) fn state(&self) -> JobState {
        match self {
            End::Complete => JobState::Complete,
            End::ExecutorError { .. } | End::SystemError { .. } | End::NotPermitted { .. } | End::Lost { .. } => {
                JobState::Failed
            }
            End::Canceled => JobState::Canceled,
        }
    }
}

pub(crate) fn start(registry: &mut Registry, id: JobId, attempt: u32, at: Timestamp) -> Result<Outcome, Rejection> {
    let job = current(registry, id, attempt)?;
    match job.state {
        JobState::Starting => return Ok(Outcome::Duplicate),
        JobState::Granted if job.cancel_requested => return Err(Rejection::CancelRequested),
        JobState::Granted => {}
        state => return Err(Rejection::WrongState { state }),
    }
    advance(registry, id, JobState::Starting).started_at = Some(at);
    Ok(Outcome::Done)
}

pub(crate) fn run(registry: &mut Registry, id: JobId, attempt: u32, at: Timestamp) -> Result<Outcome, Rejection> {
    match current(registry, id, attempt)?.state {
        JobState::Running => return Ok(Outcome::Duplicate),
        JobState::Starting => {}
        state => return Err(Rejection::WrongState { state }),
    }
    advance(registry, id, JobState::Running).running_at = Some(at);
    Ok(Outcome::Done)
}

pub(crate) fn finish(
    registry: &mut Registry,
    id: JobId,
    attempt: u32,
    how: End,
    at: Timestamp,
) -> Result<Outcome, Rejection> {
    let job = current(registry, id, attempt)?;
    if job.state.is_final() {
        return Ok(Outcome::Duplicate);
    }
    // A task can only have ended by itself if it was started, and it may have run unseen; it can be stopped or fail
    // at any time. That nothing is permitted is for home to say, of a job that waits.
    let ended_by_itself = matches!(how, End::Complete | End::ExecutorError { .. });
    let began = ended_by_itself || matches!(how, End::Lost { .. });
    let impossible = matches!(how, End::NotPermitted { .. }) || (began && job.state == JobState::Granted);
    if !job.state.holds() || impossible {
        return Err(Rejection::WrongState { state: job.state });
    }

    let may_go_on = matches!(how, End::Lost { .. }) && job.restartable;
    let pool = release(registry, id, at, ended_by_itself);
    registry.attempt_mut(id).end = Some(how.clone());
    if may_go_on {
        try_again(registry, id, pool);
    } else {
        job::end(registry, id, how);
        queue::serve(registry, pool);
    }
    Ok(Outcome::Done)
}

/// Ends the current attempt without its host, which is silent. It is charged up to the last that was heard of its pool.
pub(crate) fn lose(registry: &mut Registry, id: JobId, reason: &str) {
    let pool = registry.jobs[&id].holding().expect("invariant: only what holds GPUs is lost").pool;
    let last_heard = registry.offers.get(&pool).map_or(Timestamp::default(), |offer| offer.clock);
    release(registry, id, last_heard, false);
    registry.attempt_mut(id).end = Some(End::lost(reason));
    try_again(registry, id, pool);
}

/// A job whose attempt was lost gets another one, unless it was cancelled or has had enough of them. The pool that lost
/// it comes last now: a host that fails at once would have all the attempts otherwise. Who waits there comes before it.
fn try_again(registry: &mut Registry, id: JobId, lost: PoolId) {
    let revision = registry.revision;
    let job = registry.job_mut(id);
    (job.state, job.changed_at) = (JobState::Queued, revision);
    if let Some(place) = job.candidates.iter().position(|it| it.pool == lost) {
        job.candidates[place..].rotate_left(1);
    }
    queue::serve(registry, lost);
    let job = &registry.jobs[&id];
    let (canceled, tried) = (job.cancel_requested, job.attempts.len());
    if canceled {
        job::end(registry, id, End::Canceled);
    } else if tried >= limits::ATTEMPTS_MAX {
        job::end(registry, id, End::lost("its attempts were lost too often"));
    } else {
        job::grant_or_queue(registry, id);
    }
}

pub(crate) fn decline(
    registry: &mut Registry,
    id: JobId,
    attempt: u32,
    reason: Reason,
    below: Option<Ceiling>,
    at: Timestamp,
) -> Result<Outcome, Rejection> {
    let job = current(registry, id, attempt)?;
    if job.attempt().is_some_and(|attempt| attempt.declined.is_some()) {
        return Ok(Outcome::Duplicate);
    }
    // Also a started one that the host's scheduler never took: its host says so after it has made sure of that.
    if !matches!(job.state, JobState::Granted | JobState::Starting) {
        return Err(Rejection::WrongState { state: job.state });
    }

    let pool = release(registry, id, at, false);
    let declined = registry.attempt_mut(id);
    (declined.declined, declined.below) = (Some(reason), below);
    let revision = registry.revision;
    let job = registry.job_mut(id);
    (job.state, job.changed_at) = (JobState::Queued, revision);
    let declined = job.candidates.iter().position(|it| it.pool == pool).map(|place| job.candidates.remove(place));
    // It comes last now, and is believed so often: a host that says the same of every share would have all the attempts.
    let said = job.attempts.iter().filter(|it| it.pool == pool && it.below.is_some()).count();
    let stays = below.filter(|_| said <= limits::DECLINES_BELOW_MAX).map(|ceiling| {
        let known = declined.and_then(|it| it.below);
        Candidate { pool, below: Some(known.map_or(ceiling, |known| known.min(ceiling))) }
    });
    job.candidates.extend(stays);
    let (canceled, tried) = (job.cancel_requested, job.attempts.len());
    // Who waits there comes before whoever comes back.
    queue::serve(registry, pool);
    let job = &registry.jobs[&id];
    if canceled {
        job::end(registry, id, End::Canceled);
    } else if tried >= limits::ATTEMPTS_MAX || !job::any_suits(registry, &job.candidates, &job.shape) {
        job::end(registry, id, End::system_error("every pool that could run the job declined it"));
    } else {
        job::grant_or_queue(registry, id);
    }
    Ok(Outcome::Done)
}

/// Gives a queued job GPUs of a pool that has room for it, and makes that its current attempt.
pub(crate) fn grant(registry: &mut Registry, id: JobId, pool: PoolId) -> Outcome {
    let revision = registry.revision;
    let job = Arc::make_mut(registry.jobs.get_mut(&id).expect("invariant: whoever is granted is known"));
    let offer = registry.offers.get_mut(&pool).expect("invariant: every grant names a known offer");
    let grant = offer.ledger.take(id, job.home, job.shape.need());
    let number = job.attempts.len() as u32 + 1;
    let leased = job.is_leased() && offer.offer.keeps_leases;
    job.attempts.push(Attempt {
        number,
        pool,
        served_by: offer.offer.served_by.clone(),
        leased,
        grant,
        granted_at: revision,
        started_at: None,
        running_at: None,
        ended_at: None,
        declined: None,
        below: None,
        end: None,
        gpu_seconds: 0,
    });
    (job.state, job.reserved, job.changed_at) = (JobState::Granted, None, revision);
    Outcome::Granted { pool, attempt: number }
}

/// The job, if `attempt` is its current one.
fn current(registry: &Registry, id: JobId, attempt: u32) -> Result<&Job, Rejection> {
    let job = registry.jobs.get(&id).ok_or(Rejection::UnknownJob)?;
    match job.attempt() {
        Some(latest) if latest.number == attempt => Ok(job),
        latest => Err(Rejection::WrongAttempt { current: latest.map_or(0, |latest| latest.number) }),
    }
}

/// Moves the current attempt on.
fn advance(registry: &mut Registry, id: JobId, state: JobState) -> &mut Attempt {
    let revision = registry.revision;
    let job = registry.job_mut(id);
    (job.state, job.changed_at) = (state, revision);
    registry.attempt_mut(id)
}

/// Frees what the current attempt holds and charges what it used. One that `ran` without its host having said so ran
/// at some time since it was started, and is charged for all of it: nobody else could have the GPUs.
fn release(registry: &mut Registry, id: JobId, at: Timestamp, ran: bool) -> PoolId {
    let job = Arc::make_mut(registry.jobs.get_mut(&id).expect("invariant: whoever holds GPUs is known"));
    let (home, walltime_s) = (job.home, u64::from(job.shape.walltime_s));
    let attempt = job.attempts.last_mut().expect("invariant: whoever holds GPUs has an attempt");
    // Twice the walltime covers a slow stop; more is a wrong clock.
    let ran_since = attempt.running_at.or(attempt.started_at.filter(|_| ran));
    let ran_s = ran_since.map_or(0, |since| (at.since_ms(since) / 1_000).min(2 * walltime_s));
    attempt.ended_at = Some(at);
    attempt.gpu_seconds = ran_s * u64::from(attempt.grant.gpus);
    let (pool, charged) = (attempt.pool, attempt.gpu_seconds);
    // Which nodes it had matters as long as it has them.
    let nodes = std::mem::take(&mut attempt.grant.nodes);

    let offer = registry.offers.get_mut(&pool).expect("invariant: every grant names a known offer");
    offer.ledger.release(id, home, attempt.grant.gpus, &nodes);
    offer.recent.add(home, charged);
    if ran_since.is_some() {
        registry.usage.entry((home, pool.state())).or_default().add(charged);
    }
    offer::forget_if_drained(registry, pool);
    pool
}
