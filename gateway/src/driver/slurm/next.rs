//! Next: what is to be done about an attempt, from what is known of it. Decided anew at every look, but while a request
//! about it is in hand; nothing is queued.
//!
//! Invariants: a job is asked for again only when Slurm has said that there is none, after the last try's possible end;
//! an attempt is over only when Slurm has given its nodes back, or says for a while that it does not know it.

use super::dialect::{JobState, SlurmJob};
use super::entry::{Deed, Entry, Known};
use super::refusal::{GivenUp, is_hopeless};
use super::rest::ANSWER_TIMEOUT;

/// How long after a try that brought no answer Slurm may still carry it out: slurmrestd gives up earlier than we do.
const LOST_MS: u64 = ANSWER_TIMEOUT.as_millis() as u64 + 2_000;
/// A job that Slurm had, and has no more, may come back with a slurmctld that reads its state.
const MISSING_MS: u64 = 5_000;
/// One that has run may still run on a node that has lost its slurmctld.
const MISSING_STARTED_MS: u64 = 30_000;
/// slurmctld saves its state every few seconds, so a job that it lost in a crash was young. One that was seen later
/// and never ran was taken away by somebody.
const YOUNG_MS: u64 = 60_000;
/// A hopeless reason must stay for this long: nodes may be on their way back.
const HOPELESS_MS: u64 = 10_000;
/// Between two requests to end the same job.
const KILL_EVERY_MS: u64 = 5_000;

/// What is known only since the gateway started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Memory {
    /// The last try certainly did not reach Slurm, or was certainly refused: no look is needed.
    pub is_certain: bool,
    /// Not asked for again before this.
    pub retry_at_ms: u64,
    /// Since when Slurm has refused it for a reason that may pass.
    pub refused_since_ms: Option<u64>,
    pub refusals: u32,
    /// When its number became known.
    pub known_at_ms: u64,
    /// When it was last seen.
    pub seen_ms: Option<u64>,
    /// Since when looks have not found it.
    pub missing_since_ms: Option<u64>,
    /// When Slurm, asked by the job's own account, last said that there is none.
    pub absent_ms: Option<u64>,
    pub hopeless_since_ms: Option<u64>,
    pub killed_ms: Option<u64>,
    /// Since when Slurm says that it is over, while its record is awaited.
    pub over_since_ms: Option<u64>,
    /// Whether a supervisor has taken it, and has written how it ended, if that was looked at.
    pub has_started: bool,
    pub is_done: bool,
}

/// The newest look at all jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    pub begun_ms: u64,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Wait,
    /// Ask Slurm to take it.
    Post,
    /// Ask as the job's own account whether there is one: it sees its own jobs, whatever else a site hides.
    Ask,
    /// Note that this is its job.
    Adopt(Known),
    /// It has nodes: see how far its supervisor is.
    Look,
    /// Note why it is ended, and end it at the next look.
    GiveUp(GivenUp),
    /// Ask Slurm to end it.
    Kill,
    /// It is over, by Slurm's word or for want of it.
    Conclude,
}

impl Next {
    /// What it takes of the writer.
    pub fn deed(&self) -> Option<Deed> {
        match self {
            Next::Post => Some(Deed::Post),
            Next::Kill => Some(Deed::Kill),
            Next::Wait | Next::Ask | Next::Adopt(_) | Next::Look | Next::GiveUp(_) | Next::Conclude => None,
        }
    }
}

/// Decides. `job` is the attempt's own in `listed`, if it is there.
pub(super) fn next(
    entry: &Entry,
    memory: &mut Memory,
    job: Option<&SlurmJob>,
    listed: Option<Listed>,
    now_ms: u64,
) -> Next {
    let next = match (job, listed) {
        (Some(job), _) => seen(entry, memory, job, now_ms),
        (None, listed) => unseen(entry, memory, listed, now_ms),
    };
    if next != Next::Conclude {
        // It was taken for over and is not: its next end has its own time.
        memory.over_since_ms = None;
    }
    next
}

fn seen(entry: &Entry, memory: &mut Memory, job: &SlurmJob, now_ms: u64) -> Next {
    memory.seen_ms = Some(now_ms);
    (memory.missing_since_ms, memory.absent_ms) = (None, None);
    let known = Known { id: job.id, submit_time: Some(job.submit_time) };
    if entry.known != Some(known) {
        return Next::Adopt(known);
    }
    match job.state {
        JobState::Ended(_) => Next::Conclude,
        _ if entry.is_over() => {
            let is_due = memory.killed_ms.is_none_or(|at| now_ms >= at + KILL_EVERY_MS);
            if is_due { Next::Kill } else { Next::Wait }
        }
        JobState::Holding => Next::Look,
        JobState::Waiting if job.restarts > 0 || memory.has_started => Next::GiveUp(GivenUp::Requeued),
        JobState::Waiting if is_hopeless(&job.reason) => {
            let since = *memory.hopeless_since_ms.get_or_insert(now_ms);
            if now_ms < since + HOPELESS_MS {
                return Next::Wait;
            }
            Next::GiveUp(GivenUp::NeverRuns { reason: job.reason.clone() })
        }
        JobState::Waiting => {
            memory.hopeless_since_ms = None;
            Next::Wait
        }
    }
}

fn unseen(entry: &Entry, memory: &mut Memory, listed: Option<Listed>, now_ms: u64) -> Next {
    let Some(posted_ms) = entry.posted_ms else {
        return if entry.is_over() { Next::Conclude } else { post(memory, now_ms) };
    };
    if entry.known.is_none() {
        if memory.is_certain {
            return if entry.is_over() { Next::Conclude } else { post(memory, now_ms) };
        }
        let arrived_by = memory.retry_at_ms.max(posted_ms + LOST_MS);
        let is_told = listed.is_some_and(|it| it.begun_ms >= arrived_by);
        return match memory.absent_ms {
            _ if !is_told => Next::Wait,
            Some(absent) if absent >= arrived_by && entry.is_over() => Next::Conclude,
            Some(absent) if absent >= arrived_by => post(memory, now_ms),
            _ => Next::Ask,
        };
    }
    // Only a look that began after its number was told could have found it.
    let Some(listed) = listed.filter(|it| it.begun_ms > memory.known_at_ms) else {
        return Next::Wait;
    };
    let since = *memory.missing_since_ms.get_or_insert(listed.begun_ms);
    let may_run = memory.has_started && !memory.is_done;
    let patience = if may_run { MISSING_STARTED_MS } else { MISSING_MS };
    if listed.begun_ms < since + patience {
        return Next::Wait;
    }
    if memory.absent_ms.is_none_or(|absent| absent < since + patience) {
        return Next::Ask;
    }
    let is_young = since.saturating_sub(posted_ms) < YOUNG_MS;
    if is_young && !memory.has_started && !entry.is_over() { Next::Post } else { Next::Conclude }
}

fn post(memory: &Memory, now_ms: u64) -> Next {
    if now_ms >= memory.retry_at_ms { Next::Post } else { Next::Wait }
}

#[cfg(test)]
mod tests {
    use super::super::dialect::{Ending, Exit};
    use super::super::entry::tests::work;
    use super::*;
    use crate::driver::ledger::Entry as _;

    const KNOWN: Known = Known { id: 7, submit_time: Some(90) };

    fn entry(posted_ms: Option<u64>, known: Option<Known>) -> Entry {
        Entry { posted_ms, known, ..Entry::new(work()) }
    }

    fn job(state: JobState, reason: &str) -> SlurmJob {
        SlurmJob {
            id: 7,
            name: "ent-x.1".into(),
            user: "alice".into(),
            state,
            reason: reason.into(),
            exit: Exit::default(),
            submit_time: 90,
            start_time: 0,
            nodes: String::new(),
            gres: vec![],
            restarts: 0,
            time_limit_min: None,
        }
    }

    fn check(entry: &Entry, memory: &Memory, job: Option<&SlurmJob>, listed: Option<u64>, now_ms: u64) -> Next {
        next(entry, &mut memory.clone(), job, listed.map(|begun_ms| Listed { begun_ms }), now_ms)
    }

    #[test]
    fn a_claim_that_was_never_sent_is_sent_without_a_look() {
        let memory = Memory::default();
        assert_eq!(check(&entry(None, None), &memory, None, None, 1), Next::Post);
        let cancelled = Entry { cancel: true, ..entry(None, None) };
        assert_eq!(check(&cancelled, &memory, None, None, 1), Next::Conclude);
        assert_eq!(check(&Entry::buried(), &memory, None, None, 1), Next::Conclude);
        let refused = Memory { retry_at_ms: 500, ..memory.clone() };
        assert_eq!(check(&entry(None, None), &refused, None, None, 499), Next::Wait);
    }

    #[test]
    fn a_lost_answer_is_waited_for_before_anything_is_sent_again() {
        let memory = Memory::default();
        let lost = entry(Some(1_000), None);
        for (listed, expected) in [
            (None, Next::Wait),
            (Some(1_001), Next::Wait),
            (Some(1_000 + LOST_MS - 1), Next::Wait),
            (Some(1_000 + LOST_MS), Next::Ask),
        ] {
            assert_eq!(check(&lost, &memory, None, listed, 60_000), expected, "{listed:?}");
        }
        let late = Some(1_000 + LOST_MS);
        let early_word = Memory { absent_ms: Some(LOST_MS), ..memory.clone() };
        assert_eq!(check(&lost, &early_word, None, late, 60_000), Next::Ask, "it could still arrive then");
        let word = Memory { absent_ms: late, ..memory.clone() };
        assert_eq!(check(&lost, &word, None, late, 60_000), Next::Post);
        let found = job(JobState::Waiting, "Priority");
        assert_eq!(check(&lost, &memory, Some(&found), Some(1_001), 1_100), Next::Adopt(KNOWN));
        let cancelled = Entry { cancel: true, ..lost.clone() };
        assert_eq!(check(&cancelled, &memory, None, Some(1_001), 60_000), Next::Wait, "it may still appear");
        assert_eq!(check(&cancelled, &word, None, late, 60_000), Next::Conclude);
        let refused = Memory { is_certain: true, retry_at_ms: 3_000, ..memory };
        assert_eq!(check(&lost, &refused, None, None, 2_999), Next::Wait);
        assert_eq!(check(&lost, &refused, None, None, 3_000), Next::Post);
    }

    #[test]
    fn a_number_counts_only_with_its_time() {
        let other = SlurmJob { submit_time: 91, ..job(JobState::Holding, "None") };
        let adopted = Known { id: 7, submit_time: Some(91) };
        assert_eq!(
            check(&entry(Some(1), Some(KNOWN)), &Memory::default(), Some(&other), Some(2), 3),
            Next::Adopt(adopted)
        );
    }

    #[test]
    fn a_job_that_slurm_has_is_followed_ended_or_concluded() {
        let known = entry(Some(1), Some(KNOWN));
        let cancelled = Entry { cancel: true, ..known.clone() };
        let memory = Memory::default();
        let decide = |entry: &Entry, memory: &Memory, job: SlurmJob| check(entry, memory, Some(&job), Some(2), 20_000);
        let ended = JobState::Ended(Ending::Completed);
        assert_eq!(decide(&known, &memory, job(JobState::Waiting, "Resources")), Next::Wait);
        assert_eq!(decide(&known, &memory, job(JobState::Holding, "None")), Next::Look);
        assert_eq!(decide(&known, &memory, job(ended, "None")), Next::Conclude);
        assert_eq!(decide(&cancelled, &memory, job(ended, "None")), Next::Conclude);
        assert_eq!(decide(&cancelled, &memory, job(JobState::Holding, "None")), Next::Kill);
        assert_eq!(decide(&cancelled, &memory, job(JobState::Waiting, "None")), Next::Kill);
        let just = Memory { killed_ms: Some(19_000), ..memory.clone() };
        assert_eq!(decide(&cancelled, &just, job(JobState::Holding, "None")), Next::Wait);
        let started = Memory { has_started: true, ..memory.clone() };
        let again = Next::GiveUp(GivenUp::Requeued);
        assert_eq!(decide(&known, &started, job(JobState::Waiting, "BeginTime")), again);
        let restarted = SlurmJob { restarts: 1, ..job(JobState::Waiting, "BeginTime") };
        assert_eq!(decide(&known, &memory, restarted), again);
        assert_eq!(decide(&known, &memory, job(JobState::Waiting, "PartitionTimeLimit")), Next::Wait, "it may pass");
        let hopeless = Memory { hopeless_since_ms: Some(5_000), ..memory };
        let reason = "PartitionTimeLimit";
        let never = Next::GiveUp(GivenUp::NeverRuns { reason: reason.into() });
        assert_eq!(decide(&known, &hopeless, job(JobState::Waiting, reason)), never);
    }

    #[test]
    fn an_end_that_was_none_costs_the_next_one_no_patience() {
        let mut memory = Memory { over_since_ms: Some(5), ..Memory::default() };
        let known = entry(Some(1), Some(KNOWN));
        let mut decide = |state| next(&known, &mut memory, Some(&job(state, "None")), Some(Listed { begun_ms: 2 }), 3);
        assert_eq!(decide(JobState::Ended(Ending::Completed)), Next::Conclude);
        assert_eq!(decide(JobState::Holding), Next::Look);
        assert_eq!(memory.over_since_ms, None, "slurmctld was away, and it runs");
    }

    #[test]
    fn a_job_that_is_gone_is_sent_again_only_if_it_was_young_and_never_ran() {
        let known = entry(Some(1_000), Some(KNOWN));
        let memory = Memory { known_at_ms: 1_100, ..Memory::default() };
        assert_eq!(check(&known, &memory, None, Some(1_100), 1_200), Next::Wait, "the look began before");
        let unasked = Memory { missing_since_ms: Some(2_000), ..memory.clone() };
        let missing = |since| Memory { missing_since_ms: Some(since), absent_ms: Some(u64::MAX), ..memory.clone() };
        for (memory, listed, expected) in [
            (memory.clone(), 2_000, Next::Wait),
            (unasked, 2_000 + MISSING_MS, Next::Ask),
            (missing(2_000), 2_000 + MISSING_MS, Next::Post),
            (missing(90_000), 90_000 + MISSING_MS, Next::Conclude),
            (Memory { has_started: true, ..missing(2_000) }, 2_000 + MISSING_MS, Next::Wait),
            (Memory { has_started: true, ..missing(2_000) }, 2_000 + MISSING_STARTED_MS, Next::Conclude),
            (Memory { has_started: true, is_done: true, ..missing(2_000) }, 2_000 + MISSING_MS, Next::Conclude),
        ] {
            assert_eq!(check(&known, &memory, None, Some(listed), listed), expected, "{memory:?}");
        }
        let cancelled = Entry { cancel: true, ..known };
        assert_eq!(check(&cancelled, &missing(2_000), None, Some(9_000), 9_000), Next::Conclude);
    }
}
