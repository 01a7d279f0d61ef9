//! Sights: what was to be seen in a run, so that nobody takes a quiet run for a proof.

use std::{collections::BTreeMap, fmt};

use federation::{Attempt, End, Job, Outcome, Registry, Rejection};

use crate::{history::History, host::OUT_OF_PATIENCE, invariants::is_superseded, log::Log};

/// Attempts that were started although the host's pack said no in the log, which the host's replica did not know yet.
const OUTRUN: &str = "outrun";
/// Attempts that were started although the host's pack had moved, between its answer and the driver, to a no.
const OVERTAKEN: &str = "overtaken";
/// Repeated submissions that were refused after they had been acknowledged.
const CONTRADICTED: &str = "contradicted";

/// Attempts that came to nothing through no fault of the job.
const LOST: &str = "lost";
/// Attempts that were given up because their host was silent; only where outages are long.
pub const SUPERSEDED: &str = "superseded";

/// Numbers of things by their names.
#[derive(Clone, Default)]
pub struct Sights(BTreeMap<&'static str, u64>);

impl Sights {
    pub fn of(log: &Log, history: &History) -> Sights {
        let head = log.head();
        let ended = |how: fn(&End) -> bool| jobs(head, |job| job.end.as_ref().is_some_and(how));
        let declined = head.jobs().map(|job| job.declines().count() as u64).sum();
        let reasons = head.jobs().flat_map(Job::declines).filter_map(|attempt| attempt.declined.as_deref());
        let declined_above = head.jobs().flat_map(Job::declines).filter(|it| it.below.is_some()).count() as u64;
        let impatient = reasons.filter(|reason| *reason == OUT_OF_PATIENCE).count() as u64;
        let outrun = history.handed_over.iter().filter(|it| it.order.is_some_and(|order| !order.permitted_in_log));
        let overtaken = history.handed_over.iter().filter(|it| !it.permitted_by_then).count() as u64;
        let exclusive = history.runs.iter().filter(|run| run.exclusive).count() as u64;
        Sights::default()
            .with("entries", log.entries().len() as u64)
            .with("replayed", outcomes(log, |it| *it == Outcome::Replayed))
            .with("stale", outcomes(log, |it| matches!(it, Outcome::Rejected(Rejection::StalePolicy { .. }))))
            .with("rejected", outcomes(log, |it| matches!(it, Outcome::Rejected(_))))
            .with("repeated", outcomes(log, |it| *it == Outcome::Duplicate))
            .with("jobs", head.jobs().len() as u64)
            .with("acknowledged", history.acknowledged.len() as u64)
            .with("tried again", jobs(head, |job| job.attempts.len() > 1))
            .with("declined", declined)
            .with("declined without an order", impatient)
            .with("waited and ran below a share", jobs(head, ran_below_a_share))
            .with("declined above a share", declined_above)
            .with("canceled", ended(|end| *end == End::Canceled))
            .with("complete", ended(|end| *end == End::Complete))
            .with("not permitted", ended(|end| matches!(end, End::NotPermitted { .. })))
            .with("failed", ended(|end| matches!(end, End::SystemError { .. })))
            .with(LOST, jobs(head, |job| job.attempts.iter().any(|it| matches!(it.end, Some(End::Lost { .. })))))
            .with(SUPERSEDED, jobs(head, |job| job.attempts.iter().any(is_superseded)))
            .with("orders", history.left.len() as u64)
            .with("runs", history.runs.len() as u64)
            .with("exclusive runs", exclusive)
            .with(OUTRUN, outrun.count() as u64)
            .with(OVERTAKEN, overtaken)
            .with(CONTRADICTED, history.contradicted)
    }

    pub fn with(mut self, what: &'static str, number: u64) -> Sights {
        *self.0.entry(what).or_default() += number;
        self
    }

    pub fn and(self, other: &Sights) -> Sights {
        other.0.iter().fold(self, |sum, (what, number)| sum.with(what, *number))
    }

    pub fn number(&self, what: &'static str) -> u64 {
        self.0.get(what).copied().unwrap_or(0)
    }

    /// What was never to be seen, and should have been.
    pub fn missing(&self) -> Vec<&'static str> {
        self.0
            .iter()
            .filter(|(what, number)| {
                **number == 0 && ![OUTRUN, OVERTAKEN, CONTRADICTED, SUPERSEDED, LOST].contains(what)
            })
            .map(|(what, _)| *what)
            .collect()
    }
}

impl fmt::Display for Sights {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let each: Vec<String> = self.0.iter().map(|(what, number)| format!("{what} {number}")).collect();
        out.write_str(&each.join(", "))
    }
}

/// It ran where its home's share is bounded, and not at once.
fn ran_below_a_share(job: &Job) -> bool {
    let bounded = |it: &Attempt| job.candidate(&it.pool).is_some_and(|candidate| candidate.below.is_some());
    job.attempts.iter().any(|it| it.running_at.is_some() && it.granted_at > job.submitted_at && bounded(it))
}

fn jobs(head: &Registry, is: impl Fn(&Job) -> bool) -> u64 {
    head.jobs().filter(|job| is(job)).count() as u64
}

fn outcomes(log: &Log, is: impl Fn(&Outcome) -> bool) -> u64 {
    log.entries().iter().flat_map(|entry| &entry.outcomes).filter(|outcome| is(outcome)).count() as u64
}
