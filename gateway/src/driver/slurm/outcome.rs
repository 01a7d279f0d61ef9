//! Outcomes: how an attempt ended, from what its supervisor wrote and from what Slurm says of its job.
//!
//! The supervisor's own word comes first: it saw the task. Where it was itself ended, or wrote nothing, Slurm's does.
//! Slurm ends a task's processes together with the supervisor, which may see the one before it hears of the other: an
//! error of a task that Slurm has ended is not the task's own.
//! Invariant: what every state reads is words of ours; Slurm's own are for the task's researcher.

use federation::End;

use super::dialect::{Ending, JobState, SlurmJob};
use super::refusal::GivenUp;
use crate::driver::AttemptRecord;
use crate::driver::fault::Fault;
use crate::driver::folder::Done;
use crate::driver::record::{Notes, one_line};

/// Everything that is known when an attempt is over.
#[derive(Default)]
pub(super) struct Facts<'a> {
    /// Slurm's last word, if it has one.
    pub job: Option<&'a SlurmJob>,
    /// What the supervisor wrote: its last word, or how far it was.
    pub done: Option<Done>,
    pub state: Option<AttemptRecord>,
    /// The first lines that it complained about, if it did.
    pub complaint: Option<String>,
    pub has_started: bool,
    /// Somebody asked for the stop.
    pub cancel: bool,
    pub given_up: Option<&'a GivenUp>,
    pub now_ms: u64,
}

/// What everybody reads of an attempt whose supervisor says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Silent {
    #[error("the factory's time limit of {0} min was reached")]
    Timeout(u32),
    #[error("the factory's time limit was reached")]
    TimeoutUnknown,
    #[error("the job ran out of memory")]
    OutOfMemory,
    #[error("a node of the job failed")]
    NodeFail,
    #[error("a node of the job did not boot")]
    BootFail,
    #[error("the factory preempted the job")]
    Preempted,
    #[error("the factory cancelled the job")]
    Cancelled,
    #[error("the factory's deadline for the job passed")]
    Deadline,
    #[error("the factory revoked the job")]
    Revoked,
    #[error("the job was killed by signal {0}")]
    Killed(u32),
    #[error("the supervisor of the attempt failed on the node")]
    Supervisor,
    #[error("the node could not start the job")]
    Launch,
    #[error("the job ended without a record")]
    NoRecord,
    #[error("the factory's Slurm lost the job while it ran")]
    LostRunning,
    #[error("the factory's Slurm lost the job before it ran")]
    LostWaiting,
}

pub(super) fn conclude(facts: Facts) -> Done {
    let told = facts.done.as_ref().filter(|done| done.end != Fault::Machine.end()).map(|done| done.end.clone());
    let (end, last) = match told {
        // A supervisor does not know that somebody is asked for permission, and a forged record must not say so.
        Some(End::NotPermitted { reason }) => (End::SystemError { reason }, None),
        Some(End::ExecutorError { .. }) if is_imposed(&facts) => silent(&facts),
        // Slurm signals every process of the job at once: a program that ends well on it can be gone before its supervisor
        // has seen its own signal.
        Some(End::Complete) if facts.cancel && is_imposed(&facts) => (End::Canceled, None),
        Some(end) => (end, None),
        None => silent(&facts),
    };
    let mut record = facts.done.map(|it| it.record).or(facts.state).unwrap_or_default();
    let mut notes = Notes::default();
    record.system_logs.iter().for_each(|line| notes.add(line));
    if let Some(job) = facts.job {
        notes.add(&line(job));
    }
    if let Some(given_up) = facts.given_up {
        notes.add(&given_up.line());
    }
    if let Some(complaint) = facts.complaint.filter(|_| last.is_some()) {
        notes.add(&one_line(&complaint));
    }
    record.system_logs = notes.lines(last.as_deref());
    record.end_ms = record.end_ms.or(Some(facts.now_ms));
    if record.begin_ms == 0 {
        record.begin_ms = facts.now_ms;
    }
    bound_start(&mut record, facts.job, facts.now_ms);
    Done { end, record }
}

/// Whether Slurm has ended the job, whatever it was doing. That it had used up its memory is its own doing.
fn is_imposed(facts: &Facts) -> bool {
    use Ending::{BootFail, Cancelled, Deadline, NodeFail, Preempted, Revoked, Timeout};
    let Some(JobState::Ended(ending)) = facts.job.map(|job| job.state) else {
        return false;
    };
    matches!(ending, BootFail | Cancelled | Deadline | NodeFail | Preempted | Revoked | Timeout)
}

/// The end of an attempt whose supervisor has not told it, and the last line about it.
fn silent(facts: &Facts) -> (End, Option<String>) {
    if let Some(given_up) = facts.given_up {
        return (End::system_error(&given_up.public()), Some(given_up.public()));
    }
    if facts.cancel {
        return (End::Canceled, None);
    }
    let silent = match facts.job {
        Some(job) => of_job(job, facts),
        None if facts.has_started => Silent::LostRunning,
        None => Silent::LostWaiting,
    };
    (End::system_error(&silent.to_string()), Some(silent.to_string()))
}

fn of_job(job: &SlurmJob, facts: &Facts) -> Silent {
    let JobState::Ended(ending) = job.state else {
        return if facts.has_started { Silent::LostRunning } else { Silent::LostWaiting };
    };
    match ending {
        Ending::Timeout => job.time_limit_min.map_or(Silent::TimeoutUnknown, Silent::Timeout),
        Ending::OutOfMemory => Silent::OutOfMemory,
        Ending::NodeFail => Silent::NodeFail,
        Ending::BootFail => Silent::BootFail,
        Ending::Preempted => Silent::Preempted,
        Ending::Cancelled => Silent::Cancelled,
        Ending::Deadline => Silent::Deadline,
        Ending::Revoked => Silent::Revoked,
        Ending::Completed => Silent::NoRecord,
        Ending::Failed if job.exit.signal != 0 => Silent::Killed(job.exit.signal),
        Ending::Failed if facts.has_started => Silent::Supervisor,
        Ending::Failed => Silent::Launch,
    }
}

/// Slurm's own words.
pub(super) fn line(job: &SlurmJob) -> String {
    let state = match job.state {
        JobState::Ended(ending) => ending.as_str(),
        JobState::Waiting => "PENDING",
        JobState::Holding => "RUNNING",
    };
    let mut line = format!("Slurm: job {} is {state}, exit {}:{}", job.id, job.exit.code, job.exit.signal);
    if !matches!(job.reason.as_str(), "" | "None") {
        line += &format!(", reason {}", job.reason);
    }
    if !job.nodes.is_empty() {
        line += &format!(", on {}", job.nodes);
    }
    line
}

/// A start is charged from, and the record lies where the task's own account can write: it is between the job's and now.
fn bound_start(record: &mut AttemptRecord, job: Option<&SlurmJob>, now_ms: u64) {
    let earliest = job.map_or(0, |job| job.start_time.saturating_mul(1_000)).min(now_ms);
    record.running_ms = record.running_ms.map(|it| it.clamp(earliest, now_ms));
}

#[cfg(test)]
mod tests {
    use super::super::dialect::Exit;
    use super::*;

    fn job(ending: Ending, code: u32, signal: u32, reason: &str) -> SlurmJob {
        SlurmJob {
            id: 12,
            name: "ent-x.1".into(),
            user: "alice".into(),
            state: JobState::Ended(ending),
            reason: reason.into(),
            exit: Exit { code, signal },
            submit_time: 90,
            start_time: 100,
            nodes: "n1".into(),
            gres: vec![],
            restarts: 0,
            time_limit_min: Some(5),
        }
    }

    fn told(end: End) -> Option<Done> {
        let record = AttemptRecord { running_ms: Some(101_000), ..AttemptRecord::default() };
        Some(Done { end, record })
    }

    fn text(end: &End) -> String {
        match end {
            End::Complete => "complete".into(),
            End::ExecutorError { exit_code } => format!("exit {exit_code}"),
            End::Canceled => "canceled".into(),
            End::SystemError { reason } => reason.to_string(),
            End::NotPermitted { reason } => format!("not permitted: {reason}"),
            End::Lost { reason } => format!("lost: {reason}"),
        }
    }

    fn check(facts: Facts) -> (String, Vec<String>) {
        let done = conclude(Facts { now_ms: 200_000, ..facts });
        (text(&done.end), done.record.system_logs)
    }

    #[test]
    fn without_the_supervisors_word_slurms_counts() {
        for (job, has_started, expected) in [
            (job(Ending::Timeout, 0, 15, "TimeLimit"), true, "the factory's time limit of 5 min was reached"),
            (job(Ending::OutOfMemory, 0, 125, "OutOfMemory"), true, "the job ran out of memory"),
            (job(Ending::NodeFail, 0, 0, "NodeDown"), true, "a node of the job failed"),
            (job(Ending::BootFail, 0, 0, "None"), false, "a node of the job did not boot"),
            (job(Ending::Preempted, 0, 15, "None"), true, "the factory preempted the job"),
            (job(Ending::Cancelled, 0, 15, "None"), true, "the factory cancelled the job"),
            (job(Ending::Deadline, 0, 0, "DeadLine"), false, "the factory's deadline for the job passed"),
            (job(Ending::Revoked, 0, 0, "None"), false, "the factory revoked the job"),
            (job(Ending::Failed, 0, 9, "JobLaunchFailure"), true, "the job was killed by signal 9"),
            (job(Ending::Failed, 1, 0, "NonZeroExitCode"), true, "the supervisor of the attempt failed on the node"),
            (job(Ending::Failed, 1, 0, "NonZeroExitCode"), false, "the node could not start the job"),
            (job(Ending::Completed, 0, 0, "None"), true, "the job ended without a record"),
        ] {
            let (end, lines) = check(Facts { job: Some(&job), has_started, ..Facts::default() });
            assert_eq!(end, expected, "{job:?}");
            assert!(lines[0].starts_with("Slurm: job 12 is ") && lines[0].ends_with("on n1"), "{lines:?}");
            assert_eq!(lines.last().map(String::as_str), Some(expected));
            // It was asked for, so however Slurm calls it, it is a cancel.
            let (end, _) = check(Facts { job: Some(&job), has_started, cancel: true, ..Facts::default() });
            assert_eq!(end, "canceled", "{job:?}");
        }
    }

    #[test]
    fn the_supervisors_word_comes_first() {
        let oom = job(Ending::OutOfMemory, 0, 0, "OutOfMemory");
        let done = told(End::ExecutorError { exit_code: 137 });
        let (end, lines) = check(Facts { job: Some(&oom), done, has_started: true, ..Facts::default() });
        assert_eq!(end, "exit 137");
        assert!(lines[0].contains("OUT_OF_MEMORY"), "{lines:?}");
        let failed = job(Ending::Failed, 1, 0, "NonZeroExitCode");
        let (end, _) = check(Facts { job: Some(&failed), done: told(End::Complete), ..Facts::default() });
        assert_eq!(end, "complete");
        let aged_out = Facts { done: told(End::Complete), has_started: true, ..Facts::default() };
        assert_eq!(check(aged_out).0, "complete");
        let late = Facts { done: told(End::Complete), cancel: true, ..Facts::default() };
        assert_eq!(check(late).0, "complete", "the cancel came too late");
    }

    #[test]
    fn a_supervisor_that_was_stopped_does_not_know_why() {
        let stopped = || told(Fault::Machine.end());
        for (job, expected) in [
            (job(Ending::Timeout, 0, 15, "TimeLimit"), "the factory's time limit of 5 min was reached"),
            (job(Ending::Preempted, 0, 15, "None"), "the factory preempted the job"),
            (job(Ending::Cancelled, 0, 15, "None"), "the factory cancelled the job"),
        ] {
            let facts = Facts { job: Some(&job), done: stopped(), has_started: true, ..Facts::default() };
            assert_eq!(check(facts).0, expected);
        }
        let cancelled = job(Ending::Cancelled, 0, 15, "None");
        let facts = Facts { job: Some(&cancelled), done: stopped(), cancel: true, ..Facts::default() };
        assert_eq!(check(facts).0, "canceled");
        // The task's processes died first, and that is what it saw.
        let died = || told(End::ExecutorError { exit_code: 143 });
        let facts = |cancel| Facts { job: Some(&cancelled), done: died(), cancel, ..Facts::default() };
        assert_eq!(check(facts(false)).0, "the factory cancelled the job");
        assert_eq!(check(facts(true)).0, "canceled");
        // A program that ends well on the signal, before its supervisor has seen one.
        let facts = |cancel| Facts { job: Some(&cancelled), done: told(End::Complete), cancel, ..Facts::default() };
        assert_eq!(check(facts(true)).0, "canceled");
        assert_eq!(check(facts(false)).0, "complete");
    }

    #[test]
    fn a_job_that_slurm_does_not_know_any_more_ends_too() {
        let (end, _) = check(Facts { has_started: true, ..Facts::default() });
        assert_eq!(end, "the factory's Slurm lost the job while it ran");
        assert_eq!(check(Facts::default()).0, "the factory's Slurm lost the job before it ran");
        assert_eq!(check(Facts { cancel: true, ..Facts::default() }).0, "canceled");
    }

    #[test]
    fn what_the_driver_gave_up_says_why() {
        let given_up = GivenUp::NeverRuns { reason: "PartitionTimeLimit".into() };
        let cancelled = job(Ending::Cancelled, 0, 0, "PartitionTimeLimit");
        let (end, lines) = check(Facts { job: Some(&cancelled), given_up: Some(&given_up), ..Facts::default() });
        assert_eq!(end, "the factory's Slurm says that the job will never run");
        assert!(lines.iter().any(|it| it.contains("PartitionTimeLimit")), "{lines:?}");
    }

    #[test]
    fn a_forged_record_starts_no_later_than_now_and_forbids_nothing() {
        let forge = |running_ms| {
            let record = AttemptRecord { running_ms: Some(running_ms), ..AttemptRecord::default() };
            let reason = "x".into();
            let job = job(Ending::Completed, 0, 0, "None");
            let done = Some(Done { end: End::NotPermitted { reason }, record });
            conclude(Facts { job: Some(&job), done, now_ms: 200_000, ..Facts::default() })
        };
        assert_eq!(text(&forge(1).end), "x");
        assert_eq!(forge(1).record.running_ms, Some(100_000));
        assert_eq!(forge(u64::MAX).record.running_ms, Some(200_000));
        assert_eq!(forge(150_000).record.running_ms, Some(150_000));
    }
}
