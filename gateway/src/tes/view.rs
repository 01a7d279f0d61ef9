//! Views: how much of a task a client asked to see.
//! Invariant: MINIMAL is `id` and `state` alone; BASIC has no content, no output of executors and no
//! system logs.

use federation::{End, Job, JobState, Timestamp};

use super::filter::{BadQuery, Query};
use super::model::{State, Task, TaskLog};
use super::task::Submission;

/// `view`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum View {
    /// Id and state.
    #[default]
    Minimal,
    /// All but what may be large.
    Basic,
    /// All.
    Full,
}

impl View {
    /// Reads the query of `GET /tasks/{id}`: `view` or nothing.
    pub fn from_query(query: Option<&str>) -> Result<View, BadQuery> {
        let mut query = Query::parse(query.unwrap_or_default())?;
        let view = query.view()?;
        query.finish()?;
        Ok(view)
    }

    pub(super) fn parse(text: &str) -> Option<View> {
        match text {
            "MINIMAL" => Some(View::Minimal),
            "BASIC" => Some(View::Basic),
            "FULL" => Some(View::Full),
            _ => None,
        }
    }
}

/// What is known of a task beside its document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// The task's id.
    pub id: String,
    /// Where it stands.
    pub state: State,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// The attempt that counts, in one entry: some clients read the first, others the last.
    pub logs: Vec<TaskLog>,
}

/// A task as a client asked to see it.
pub fn show(submission: &Submission, known: Known, view: View) -> Task {
    let mut task = Task { id: Some(known.id), state: Some(known.state), ..Task::default() };
    if view == View::Minimal {
        return task;
    }
    let document = submission.task().clone();
    task = Task {
        id: task.id,
        state: task.state,
        creation_time: Some(rfc3339(known.created_at)),
        logs: known.logs,
        ..document
    };
    if view == View::Basic {
        for input in &mut task.inputs {
            input.content = None;
        }
        for log in &mut task.logs {
            log.system_logs.clear();
            for executor in &mut log.logs {
                executor.stdout = None;
                executor.stderr = None;
            }
        }
    }
    task
}

/// Where a job stands, in TES's words. Never `PREEMPTED`: clients would poll for ever.
pub fn state_of(job: &Job) -> State {
    match job.state {
        JobState::Complete => State::Complete,
        JobState::Canceled => State::Canceled,
        JobState::Failed => match job.end {
            Some(End::ExecutorError { .. }) => State::ExecutorError,
            _ => State::SystemError,
        },
        _ if job.cancel_requested => State::Canceling,
        JobState::Queued => State::Queued,
        JobState::Granted | JobState::Starting => State::Initializing,
        JobState::Running => State::Running,
    }
}

/// `2026-11-24T12:17:00.250Z`. Source: RFC 3339; the calendar is the proleptic Gregorian one.
pub fn rfc3339(at: Timestamp) -> String {
    // 9999-12-31T23:59:59.999Z: RFC 3339 has four digits for the year.
    let ms = at.0.min(253_402_300_799_999);
    let (days, ms_of_day) = (ms / 86_400_000, ms % 86_400_000);
    let (year, month, day) = civil(days);
    let (s, ms) = (ms_of_day / 1_000, ms_of_day % 1_000);
    let (hour, minute, second) = (s / 3_600, s / 60 % 60, s % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

/// Year, month and day of a day since 1970-01-01. Years are counted from March, so that the leap
/// day is the last of a year and months have a pattern; an era is 400 years of 146,097 days.
fn civil(days: u64) -> (u64, u64, u64) {
    let since_0000_03_01 = days + 719_468;
    let (era, day_of_era) = (since_0000_03_01 / 146_097, since_0000_03_01 % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}
