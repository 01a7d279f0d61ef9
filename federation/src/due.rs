//! What a gateway has to do now, recomputed from the registry: there is no queue of actions, no outbox, and
//! nothing to recover after a crash. Every action may be done twice.

use certs::GatewayId;
use serde::{Deserialize, Serialize};

use crate::{
    id::{JobId, PoolId},
    job::{Job, JobState, any_suits},
    limits::REPORT_EVERY_MS,
    offer::OfferState,
    pack,
    registry::Registry,
    time::Timestamp,
};

/// A duty of one gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Action {
    /// Fetch mandate and payload, decide, start or decline.
    Dispatch { job: JobId, attempt: u32 },
    /// Ask the scheduler how the attempt is doing.
    Poll { job: JobId, attempt: u32 },
    /// End the attempt and prove that its GPUs are free.
    Stop { job: JobId, attempt: u32 },
    /// Decide and rank again: a pack moved, or no candidate can run the job any more.
    Rerank { job: JobId },
    /// Say what local users leave of the pool.
    Report { pool: PoolId },
}

/// The duties of gateway `me` at `now`: first its pools' jobs and reports, then the jobs that it is home of.
/// Costs what its own state holds and waits for, whatever the size of the federation.
pub fn due(registry: &Registry, me: &GatewayId, now: Timestamp) -> Vec<Action> {
    let mut actions = Vec::new();
    for offer in registry.offers_of(me.state) {
        // Whom an attempt was given to has it, also when the pool has been handed on since.
        let jobs = offer.ledger.holders.iter().map(|id| &registry.jobs[id]);
        let mine = jobs.filter(|job| job.holding().is_some_and(|attempt| attempt.served_by == me.name));
        actions.extend(mine.filter_map(|job| duty_of_host(job)));
        if offer.offer.served_by == me.name && is_report_due(offer, now) {
            actions.push(Action::Report { pool: offer.offer.pool });
        }
    }
    let waiting = registry.derived.waiting.get(&me.state);
    // Jobs decided since the terms last moved need not be looked at.
    let maybe_stale =
        waiting.into_iter().flatten().take_while(|(decided_at, _)| *decided_at <= registry.terms_moved_at);
    let mine = maybe_stale.map(|(_, id)| &registry.jobs[id]).filter(|job| job.home_gateway == me.name);
    actions.extend(mine.filter(|job| is_stale(registry, job)).map(|job| Action::Rerank { job: job.id }));
    actions
}

fn duty_of_host(job: &Job) -> Option<Action> {
    let (job, attempt, state, stop) = (job.id, job.holding()?.number, job.state, job.cancel_requested);
    Some(match state {
        _ if stop => Action::Stop { job, attempt },
        JobState::Granted => Action::Dispatch { job, attempt },
        JobState::Starting | JobState::Running => Action::Poll { job, attempt },
        JobState::Queued | JobState::Complete | JobState::Failed | JobState::Canceled => {
            return None;
        }
    })
}

/// A report from the future is due like one from the past: the clock was wrong then, or is now.
fn is_report_due(offer: &OfferState, now: Timestamp) -> bool {
    offer.report.as_ref().is_none_or(|report| now.0.abs_diff(report.at.0) >= REPORT_EVERY_MS)
}

fn is_stale(registry: &Registry, job: &Job) -> bool {
    let pack_moved = job.decided_on.iter().any(|(state, decided)| pack::sequence(registry, *state) != *decided);
    pack_moved || !any_suits(registry, &job.candidates, &job.shape)
}
