//! Invariants: what must hold after every step, whatever has gone wrong.
//!
//! Each is a function of what really happened and of the registry at the end of the log, and says what it found.
//! Invariant: nothing here asks a gateway, and nothing is changed.

use std::{collections::BTreeMap, fmt};

use certs::{Digest, MemberState};
use federation::{Attempt, Flow, Job, JobId, PoolId, Registry};

use crate::{
    bugs::Bug,
    history::{History, Run},
    size::{GPUS_PER_NODE, NODES},
};

/// A decision is at most a commit and a look at one's own replica old when the driver hears of it.
const DECISION_AGE_MAX_MS: u64 = 1_200 + 1_000 + 100;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invariant {
    NothingIsOversold,
    NothingAcknowledgedIsForgotten,
    OneTaskPerKey,
    OneCurrentAttempt,
    AnAttemptStartsOnce,
    ExclusiveRunsAlone,
    NothingRunsAfterItsEnd,
    PacksPermitStarts,
    StartsAreWanted,
    PacksPermitLeaving,
    UsageIsWhatRan,
    ReplicasAgree,
    JobsEnd,
}

/// What does not hold, and where it is seen.
#[derive(Clone, Debug)]
pub struct Violation {
    pub invariant: Invariant,
    pub text: String,
}

pub type Checked = Result<(), Violation>;

impl fmt::Display for Violation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:?}: {}", self.invariant, self.text)
    }
}

/// What the audit sees of the registry; a planted bug may have tampered with it.
pub struct View {
    /// Of each pool, node by node.
    nodes: BTreeMap<PoolId, Vec<Node>>,
    /// Of each job: attempts that have not ended, the last one's number, and how many there are.
    attempts: Vec<(JobId, Vec<u32>, u32, usize)>,
}

#[derive(Clone, Copy, Default)]
struct Node {
    lent: u32,
    held: u32,
}

impl View {
    pub fn of(registry: &Registry, bug: Option<Bug>) -> View {
        let empty = |it: &federation::OfferState| {
            it.ledger.per_node().map(|(lent, _)| Node { lent, held: 0 }).collect::<Vec<_>>()
        };
        let mut nodes: BTreeMap<PoolId, Vec<Node>> = registry.offers().map(|it| (it.offer.pool, empty(it))).collect();
        let times = if bug == Some(Bug::ViewCountsGrantsTwice) { 2 } else { 1 };
        for attempt in registry.jobs().filter_map(Job::holding) {
            let pool = nodes.entry(attempt.pool).or_default();
            for span in &attempt.grant.nodes {
                let spanned = pool.iter_mut().skip(span.first as usize).take(span.count as usize);
                spanned.for_each(|node| node.held += times * span.gpus);
            }
        }
        let reopens = bug == Some(Bug::ViewReopensAttempts);
        let is_open = |it: &Attempt| it.ended_at.is_none() || (reopens && it.number == 1);
        let attempts = registry.jobs().map(|job| {
            let open = job.attempts.iter().filter(|it| is_open(it)).map(|it| it.number).collect();
            (job.id, open, job.attempt().map_or(0, |it| it.number), job.attempts.len())
        });
        View { nodes, attempts: attempts.collect() }
    }
}

/// On every node, what grants hold is at most what is lent, or what they held already.
pub fn nothing_oversold(before: &View, now: &View) -> Checked {
    for (pool, nodes) in &now.nodes {
        let past = before.nodes.get(pool);
        for (place, node) in nodes.iter().enumerate() {
            // A new pool lends everything until its first report; a report and a grant may come in one envelope.
            let was = past.map_or(Node { lent: GPUS_PER_NODE, held: 0 }, |nodes| nodes[place]);
            let may = node.lent.max(was.lent).max(was.held).min(GPUS_PER_NODE);
            hold(Invariant::NothingIsOversold, node.held <= may, || {
                format!(
                    "node {place} of {pool} lends {} and grants hold {} (before: {})",
                    node.lent, node.held, was.held
                )
            })?;
        }
    }
    Ok(())
}

/// What really runs in a pool fits into its nodes.
pub fn nothing_overrun(history: &History) -> Checked {
    let mut used: BTreeMap<PoolId, u32> = BTreeMap::new();
    for run in history.runs.iter().filter(|run| run.gone_ms.is_none()) {
        let gpus = used.entry(run.pool).or_default();
        *gpus += run.gpus;
        hold(Invariant::NothingIsOversold, *gpus <= NODES * GPUS_PER_NODE, || {
            format!("{gpus} GPUs of {} are in use at once", run.pool)
        })?;
    }
    Ok(())
}

pub fn one_current_attempt(now: &View) -> Checked {
    for (job, open, last, count) in &now.attempts {
        let sound = open.len() <= 1 && open.iter().all(|it| it == last) && *last as usize == *count;
        hold(Invariant::OneCurrentAttempt, sound, || format!("{job} has the attempts {open:?} open, of {count}"))?;
    }
    Ok(())
}

/// `kept`: whether a job's home has it on its disk.
pub fn nothing_acknowledged_forgotten(history: &History, head: &Registry, kept: impl Fn(&Job) -> bool) -> Checked {
    for (job, at_ms) in &history.acknowledged {
        let invariant = Invariant::NothingAcknowledgedIsForgotten;
        let known = head.job(job);
        hold(invariant, known.is_some(), || format!("{job}, acknowledged at {at_ms} ms, is not in the log"))?;
        hold(invariant, known.is_none_or(&kept), || {
            format!("{job}, acknowledged at {at_ms} ms, is not on home's disk")
        })?;
    }
    Ok(())
}

/// Every client has a payload of its own, so two jobs of one payload are two tasks of one key.
pub fn one_task_per_key(head: &Registry) -> Checked {
    let mut by_payload: BTreeMap<Digest, JobId> = BTreeMap::new();
    for job in head.jobs() {
        let other = by_payload.insert(job.payload, job.id);
        let text = || format!("{} and {} are one submission", job.id, other.map_or(job.id, |it| it));
        hold(Invariant::OneTaskPerKey, other.is_none(), text)?;
    }
    Ok(())
}

pub fn attempts_start_once(history: &History) -> Checked {
    for (place, run) in history.runs.iter().enumerate() {
        let again = history.runs[..place].iter().any(|other| other.attempt == run.attempt);
        hold(Invariant::AnAttemptStartsOnce, !again, || {
            format!("attempt {} of {} ran again at {} ms", run.attempt.1, run.attempt.0, run.began_ms)
        })?;
    }
    Ok(())
}

pub fn exclusive_runs_alone(history: &History) -> Checked {
    let overlap = |a: &Run, b: &Run| {
        let before = |a: &Run, b: &Run| a.gone_ms.is_some_and(|gone_ms| gone_ms <= b.began_ms);
        !before(a, b) && !before(b, a)
    };
    for (place, run) in history.runs.iter().enumerate().filter(|(_, run)| run.exclusive) {
        let beside = history.runs[..place].iter().find(|it| it.attempt.0 == run.attempt.0 && overlap(it, run));
        hold(Invariant::ExclusiveRunsAlone, beside.is_none(), || {
            format!("{} runs twice at once: {run:?} beside {beside:?}", run.attempt.0)
        })?;
    }
    Ok(())
}

/// An attempt is over in the registry only when nothing of it is left.
pub fn nothing_runs_after_its_end(history: &History, head: &Registry) -> Checked {
    for run in history.runs.iter().filter(|run| run.gone_ms.is_none()) {
        let attempt = attempt_of(head, run);
        let ended = attempt.is_some_and(|attempt| attempt.ended_at.is_some());
        // A silent host knows nothing of it; what must not run twice has stopped by itself.
        let unknowing = !run.exclusive && attempt.is_some_and(is_superseded);
        let ended = ended && !unknowing;
        hold(Invariant::NothingRunsAfterItsEnd, !ended, || {
            format!("attempt {} of {} has ended in the registry and runs", run.attempt.1, run.attempt.0)
        })?;
    }
    Ok(())
}

/// Whoever hands over has an order of this life, not old, that its own pack permitted when it came.
pub fn packs_permit_starts(history: &History) -> Checked {
    for it in &history.handed_over {
        let permitted = it.order.is_some_and(|order| {
            let same = order.host == it.host && order.life == it.life;
            same && order.permitted && it.at_ms - order.at_ms <= DECISION_AGE_MAX_MS
        });
        hold(Invariant::PacksPermitStarts, permitted, || {
            format!("attempt {} of {} is started without the host's permit: {it:?}", it.attempt.1, it.attempt.0)
        })?;
    }
    Ok(())
}

/// What is handed over is still to run, as far as its host knows.
pub fn starts_are_wanted(history: &History) -> Checked {
    for it in &history.handed_over {
        hold(Invariant::StartsAreWanted, it.wanted, || {
            format!("attempt {} of {} is handed over and is not to run any more: {it:?}", it.attempt.1, it.attempt.0)
        })?;
    }
    Ok(())
}

pub fn packs_permit_leaving(history: &History) -> Checked {
    for it in &history.left {
        hold(Invariant::PacksPermitLeaving, it.rightly, || {
            format!("attempt {} of {} left home without home's permit", it.attempt.1, it.attempt.0)
        })?;
    }
    Ok(())
}

/// Every attempt is charged from when it began, as its host's clock said, to when its end was said; never less than it
/// really ran. Flows are the sum of that.
pub fn usage_is_what_ran(history: &History, head: &Registry) -> Checked {
    let mut flows: BTreeMap<(MemberState, MemberState), Flow> = BTreeMap::new();
    for job in head.jobs() {
        for attempt in job.attempts.iter().filter(|it| it.ended_at.is_some()) {
            charged_rightly(history, job, attempt)?;
            let began = attempt.running_at.is_some() || (attempt.started_at.is_some() && ended_by_itself(attempt));
            if began {
                let flow = flows.entry((job.home, attempt.pool.state())).or_default();
                (flow.gpu_seconds, flow.jobs) = (flow.gpu_seconds + attempt.gpu_seconds, flow.jobs + 1);
            }
        }
    }
    let said: BTreeMap<_, _> = head.usage().map(|(home, host, flow)| ((home, host), *flow)).collect();
    hold(Invariant::UsageIsWhatRan, flows == said, || format!("usage says {said:?}, the attempts {flows:?}"))
}

fn charged_rightly(history: &History, job: &Job, attempt: &Attempt) -> Checked {
    let hold = |holds, what: &str| {
        hold(Invariant::UsageIsWhatRan, holds, || {
            format!("attempt {} of {}: {what}: {attempt:?}", attempt.number, job.id)
        })
    };
    let since = attempt.running_at.or(attempt.started_at.filter(|_| ended_by_itself(attempt)));
    let charged_s = since.zip(attempt.ended_at).map_or(0, |(since, until)| until.since_ms(since) / 1_000);
    let charged_s = charged_s.min(2 * u64::from(job.shape.walltime_s));
    let gpus = u64::from(attempt.grant.gpus);
    hold(attempt.gpu_seconds == charged_s * gpus, "it is not charged for its time")?;
    for run in history.runs_of((job.id, attempt.number)) {
        hold(attempt.declined.is_none(), "it ran, and is said not to have run")?;
        if matches!(attempt.end, Some(federation::End::Lost { .. })) {
            // Its host may have been silent before it said so, and while it ran.
            continue;
        }
        hold(since.is_some(), "it ran, and nobody said so")?;
        let ran_s = run.gone_ms.map_or(0, |gone_ms| (gone_ms - run.began_ms) / 1_000);
        hold(run.clock_set_back || charged_s >= ran_s, "it ran longer than it is charged for")?;
    }
    Ok(())
}

fn ended_by_itself(attempt: &Attempt) -> bool {
    use federation::End;
    matches!(attempt.end, Some(End::Complete | End::ExecutorError { .. }))
}

/// Its end was not said by its host, which was silent.
pub fn is_superseded(attempt: &Attempt) -> bool {
    attempt.end == Some(federation::End::lost("its host fell silent"))
}

fn attempt_of<'a>(head: &'a Registry, run: &Run) -> Option<&'a Attempt> {
    head.job(&run.attempt.0)?.attempts.iter().find(|attempt| attempt.number == run.attempt.1)
}

/// Two registries of one revision are equal byte for byte. `head`: as it is stored.
pub fn replicas_agree(of: MemberState, head: &[u8], replica: &Registry) -> Checked {
    hold(Invariant::ReplicasAgree, head == replica.to_bytes(), || {
        format!("the replica of {of} differs at revision {}", replica.revision())
    })
}

/// Nothing goes wrong any more, and the time is over: every job has ended, also what was given up
/// while its host was silent, and every client has its answer.
pub fn jobs_ended(head: &Registry, history: &History, clients: usize) -> Checked {
    let running = history.runs.iter().filter(|run| run.gone_ms.is_none()).count();
    hold(Invariant::JobsEnd, running == 0, || format!("{running} processes still run"))?;
    let open: Vec<String> = head
        .jobs()
        .filter(|job| !job.state.is_final())
        .map(|job| format!("{} {} of {} for {:?}", job.id, job.state, job.home, job.candidates))
        .collect();
    hold(Invariant::JobsEnd, open.is_empty() && clients == 0, || format!("still open: {open:?}, {clients} clients"))
}

fn hold(invariant: Invariant, holds: bool, text: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(Violation { invariant, text: text() }) }
}
