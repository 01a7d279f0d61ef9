//! Logs: what a client sees of the attempt that counts.
//! Invariant: one entry at most, since some clients read the first and others the last.

use federation::{Attempt, End, Job, Timestamp};

use super::model::{ExecutorLog, OutputFileLog, TaskLog};
use super::view::rfc3339;
use crate::driver::{AttemptRecord, ExecutorRecord, OutputRecord};
use crate::explain;

/// The task's log, from what the registry says of the job, what its host reports of the attempt, and what was dropped
/// from the task when it was accepted. Nothing as long as there is nothing to say.
pub fn logs(job: &Job, record: Option<AttemptRecord>, warnings: &[String]) -> Vec<TaskLog> {
    // One that its host declined never was; what became of it is a line for people.
    let attempt = job.attempts.iter().rfind(|attempt| attempt.declined.is_none());
    let mut system_logs = warnings.to_vec();
    system_logs.extend(job.attempts.iter().filter_map(declined));
    system_logs.extend(job.attempts.iter().filter(|attempt| attempt.end != job.end).filter_map(lost));
    let record = record.unwrap_or_default();
    system_logs.extend(record.system_logs);
    if let Some(End::SystemError { reason } | End::NotPermitted { reason } | End::Lost { reason }) = &job.end
        && !system_logs.iter().any(|line| line == reason.as_str())
    {
        system_logs.push(reason.to_string());
    }
    if attempt.is_none() && system_logs.is_empty() {
        return vec![];
    }
    let started = attempt.and_then(|it| it.started_at);
    let ended = attempt.and_then(|it| it.ended_at);
    let begun = Some(record.begin_ms).filter(|ms| *ms > 0).map(Timestamp);
    let mut metadata = record.metadata;
    if let Some(attempt) = attempt {
        metadata.insert("pool".into(), attempt.pool.to_string());
        metadata.insert("attempt".into(), attempt.number.to_string());
        metadata.insert("gpus".into(), attempt.grant.gpus.to_string());
    }
    vec![TaskLog {
        logs: record.executors.into_iter().map(executor).collect(),
        metadata,
        start_time: begun.or(started).map(rfc3339),
        end_time: record.end_ms.map(Timestamp).or(ended).map(rfc3339),
        outputs: record.outputs.into_iter().map(output).collect(),
        system_logs,
    }]
}

/// The log of a task that no registry ever took.
pub fn given_up(notes: &[String]) -> Vec<TaskLog> {
    vec![TaskLog { system_logs: notes.to_vec(), ..TaskLog::default() }]
}

fn declined(attempt: &Attempt) -> Option<String> {
    let reason = explain::declined(attempt)?;
    Some(format!("attempt {} on {} was declined: {reason}", attempt.number, attempt.pool))
}

/// One that another attempt followed, or is to follow: its logs are not shown.
fn lost(attempt: &Attempt) -> Option<String> {
    let Some(End::Lost { reason }) = &attempt.end else {
        return None;
    };
    Some(format!("attempt {} on {} was lost: {reason}", attempt.number, attempt.pool))
}

fn executor(it: ExecutorRecord) -> ExecutorLog {
    ExecutorLog {
        start_time: Some(rfc3339(Timestamp(it.start_ms))),
        end_time: Some(rfc3339(Timestamp(it.end_ms))),
        stdout: Some(it.stdout),
        stderr: Some(it.stderr),
        exit_code: it.exit_code,
    }
}

fn output(it: OutputRecord) -> OutputFileLog {
    OutputFileLog { url: it.url, path: it.path, size_bytes: it.size_bytes.to_string() }
}
