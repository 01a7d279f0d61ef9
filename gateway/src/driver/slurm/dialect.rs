//! What the driver says to slurmrestd and hears from it, whatever version of Slurm is behind it.
//!
//! A dialect is chosen once per connection, from the server's own list of paths. What differs between dialects is in
//! one file each; nothing else of the driver knows which one is spoken.
//! Invariant: whether something failed is read from an answer's body, never from its HTTP status.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{v0038, v0040};

/// Source: slurm_errno.h, ESLURM_INVALID_JOB_ID. The only number that says that a job is not there.
const UNKNOWN_JOB: i64 = 2017;

/// A version of slurmrestd's data that we speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    V0038,
    /// 40 to 42: the same as far as we go.
    V0040(u8),
}

/// The server speaks none that we know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("slurmrestd speaks {}, this gateway v0.0.38 and v0.0.40 to v0.0.42", Listed(.0))]
pub(super) struct NoDialect(Vec<String>);

/// What a job is to have. Numbers as Slurm counts them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Request {
    pub name: String,
    pub comment: String,
    pub script: String,
    /// Where it starts, and where its own output goes.
    pub folder: String,
    pub output: String,
    pub partition: String,
    pub account: Option<String>,
    pub qos: Option<String>,
    pub constraint: Option<String>,
    pub reservation: Option<String>,
    pub nodes: u32,
    pub gpus: Gpus,
    pub cpus_per_node: Option<u32>,
    pub memory_per_node_mib: Option<u64>,
    pub time_limit_min: u32,
    pub environment: Vec<(String, String)>,
}

/// GPUs of a job, in Slurm's units.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Gpus {
    None,
    /// `gpu:h100:4` on each node.
    PerNode(String),
    /// In all, where they do not divide evenly: name, type, number.
    InAll {
        name: String,
        kind: Option<String>,
        count: u32,
    },
}

/// What Slurm says to a submission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Submitted {
    pub id: u32,
    /// It has the job, and something against it.
    pub but: Option<SlurmError>,
}

/// A job as slurmctld has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SlurmJob {
    pub id: u32,
    pub name: String,
    pub user: String,
    pub state: JobState,
    /// Why it waits, or why it ended.
    pub reason: String,
    pub exit: Exit,
    /// Unix seconds; 0 is unknown. So for the next.
    pub submit_time: u64,
    pub start_time: u64,
    /// As a list of hosts.
    pub nodes: String,
    /// What it holds, one text per node.
    pub gres: Vec<String>,
    pub restarts: u32,
    pub time_limit_min: Option<u32>,
}

/// How far a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum JobState {
    /// It waits, also for a second time.
    Waiting,
    /// It has nodes, or is giving them back.
    Holding,
    /// Nothing of it is left.
    Ended(Ending),
}

/// How Slurm says that a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Ending {
    Completed,
    Cancelled,
    Failed,
    Timeout,
    NodeFail,
    Preempted,
    BootFail,
    Deadline,
    OutOfMemory,
    Revoked,
}

/// Exit code and signal of the batch script.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Exit {
    pub code: u32,
    pub signal: u32,
}

/// All jobs that the caller may see.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Jobs {
    pub jobs: Vec<SlurmJob>,
    /// slurmctld's own time of its last change, where it tells it.
    pub last_update: Option<u64>,
    /// There is nothing here because nothing has changed since the time that was asked for.
    pub is_unchanged: bool,
}

/// A node as slurmctld has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub name: String,
    /// Of the state, all words, in capitals: `IDLE`, `DRAIN`.
    pub states: Vec<String>,
    pub partitions: Vec<String>,
    pub gres: String,
    pub gres_used: String,
    pub idle_cpus: u32,
}

/// A partition as slurmctld has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Partition {
    pub name: String,
    /// `UP`, `DOWN`, `DRAIN`, `INACTIVE`.
    pub state: String,
    /// `None`: no limit.
    pub time_max_min: Option<u32>,
}

/// What Slurm has against a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, thiserror::Error)]
pub(super) struct SlurmError {
    /// Source: slurm_errno.h; -1 if Slurm does not say what it was.
    pub number: i64,
    pub text: String,
}

/// An answer that is not the one that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadAnswer {
    #[error(transparent)]
    Slurm(#[from] SlurmError),
    #[error("slurmrestd does not accept who we say we are")]
    Unauthenticated,
    #[error("slurmrestd's answer is not understood: {0}")]
    Malformed(String),
}

impl Dialect {
    /// The newest that both sides speak, from the paths that the server's OpenAPI document lists.
    pub fn choose(document: &[u8]) -> Result<Dialect, BadAnswerOrDialect> {
        #[derive(Deserialize)]
        struct Document {
            paths: std::collections::BTreeMap<String, serde::de::IgnoredAny>,
        }
        let document: Document = parse(document)?;
        let version =
            |path: &String| Some(path.strip_prefix("/slurm/")?.strip_suffix("/jobs")?.trim_end_matches('/').to_owned());
        let versions: Vec<String> =
            document.paths.keys().filter_map(|it| version(&it.trim_end_matches('/').to_owned())).collect();
        for (text, dialect) in [
            ("v0.0.42", Dialect::V0040(42)),
            ("v0.0.41", Dialect::V0040(41)),
            ("v0.0.40", Dialect::V0040(40)),
            ("v0.0.38", Dialect::V0038),
        ] {
            if versions.iter().any(|it| it == text) {
                return Ok(dialect);
            }
        }
        Err(NoDialect(versions).into())
    }

    /// The address of something that slurmctld has.
    pub fn path(self, what: &str) -> String {
        let number = match self {
            Dialect::V0038 => 38,
            Dialect::V0040(number) => number,
        };
        format!("/slurm/v0.0.{number}/{what}")
    }

    pub fn submission(self, request: &Request) -> Value {
        match self {
            Dialect::V0038 => v0038::submission(request),
            Dialect::V0040(_) => v0040::submission(request),
        }
    }

    pub fn submitted(self, body: &[u8]) -> Result<Submitted, BadAnswer> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Answer {
            job_id: Option<u32>,
            result: Outcome,
        }
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Outcome {
            job_id: Option<u32>,
            error_code: i64,
            error: Option<String>,
        }
        let answer: Answer = parse(body)?;
        let error = errors(body).into_iter().next().or_else(|| {
            let number = answer.result.error_code;
            (number != 0).then(|| SlurmError { number, text: answer.result.error.unwrap_or_default() })
        });
        match (answer.job_id.or(answer.result.job_id).filter(|id| *id != 0), error) {
            (Some(id), but) => Ok(Submitted { id, but }),
            (None, Some(error)) => Err(error.into()),
            (None, None) => Err(BadAnswer::Malformed("neither a job nor an error".into())),
        }
    }

    pub fn jobs(self, body: &[u8]) -> Result<Jobs, BadAnswer> {
        refuse_errors(body)?;
        match self {
            Dialect::V0038 => v0038::jobs(body),
            Dialect::V0040(_) => v0040::jobs(body),
        }
    }

    /// One job, if there is one.
    pub fn job(self, body: &[u8]) -> Result<Option<SlurmJob>, BadAnswer> {
        match self.jobs(body) {
            Ok(jobs) => Ok(jobs.jobs.into_iter().next()),
            Err(BadAnswer::Slurm(error)) if error.is_unknown_job() => Ok(None),
            Err(bad) => Err(bad),
        }
    }

    pub fn nodes(self, body: &[u8]) -> Result<Vec<Node>, BadAnswer> {
        refuse_errors(body)?;
        match self {
            Dialect::V0038 => v0038::nodes(body),
            Dialect::V0040(_) => v0040::nodes(body),
        }
    }

    pub fn partitions(self, body: &[u8]) -> Result<Vec<Partition>, BadAnswer> {
        refuse_errors(body)?;
        match self {
            Dialect::V0038 => v0038::partitions(body),
            Dialect::V0040(_) => v0040::partitions(body),
        }
    }

    /// Whether a deletion was heard. A job that is not there needs none.
    pub fn deleted(self, body: &[u8]) -> Result<(), BadAnswer> {
        match refuse_errors(body) {
            Err(BadAnswer::Slurm(error)) if error.is_unknown_job() => Ok(()),
            answer => answer,
        }
    }
}

impl fmt::Display for Dialect {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dialect::V0038 => out.write_str("v0.0.38"),
            Dialect::V0040(number) => write!(out, "v0.0.{number}"),
        }
    }
}

/// Why no dialect could be chosen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadAnswerOrDialect {
    #[error(transparent)]
    Answer(#[from] BadAnswer),
    #[error(transparent)]
    Dialect(#[from] NoDialect),
}

impl SlurmError {
    pub fn is_unknown_job(&self) -> bool {
        self.number == UNKNOWN_JOB
    }
}

impl fmt::Display for SlurmError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} (Slurm's error {})", if self.text.is_empty() { "an error" } else { &self.text }, self.number)
    }
}

impl Ending {
    pub fn as_str(self) -> &'static str {
        match self {
            Ending::Completed => "COMPLETED",
            Ending::Cancelled => "CANCELLED",
            Ending::Failed => "FAILED",
            Ending::Timeout => "TIMEOUT",
            Ending::NodeFail => "NODE_FAIL",
            Ending::Preempted => "PREEMPTED",
            Ending::BootFail => "BOOT_FAIL",
            Ending::Deadline => "DEADLINE",
            Ending::OutOfMemory => "OUT_OF_MEMORY",
            Ending::Revoked => "REVOKED",
        }
    }
}

impl JobState {
    /// From all words of a job's state, in capitals: one base and any number of flags, or a flag alone.
    pub fn of<'a>(words: impl IntoIterator<Item = &'a str>) -> JobState {
        let mut base = None;
        let (mut is_releasing, mut waits_again) = (false, false);
        for word in words {
            match word {
                "PENDING" => base = Some(JobState::Waiting),
                "RUNNING" | "SUSPENDED" => base = Some(JobState::Holding),
                "COMPLETED" => base = Some(JobState::Ended(Ending::Completed)),
                "CANCELLED" => base = Some(JobState::Ended(Ending::Cancelled)),
                "FAILED" => base = Some(JobState::Ended(Ending::Failed)),
                "TIMEOUT" => base = Some(JobState::Ended(Ending::Timeout)),
                "NODE_FAIL" => base = Some(JobState::Ended(Ending::NodeFail)),
                "PREEMPTED" => base = Some(JobState::Ended(Ending::Preempted)),
                "BOOT_FAIL" => base = Some(JobState::Ended(Ending::BootFail)),
                "DEADLINE" => base = Some(JobState::Ended(Ending::Deadline)),
                "OUT_OF_MEMORY" => base = Some(JobState::Ended(Ending::OutOfMemory)),
                "REVOKED" => base = Some(JobState::Ended(Ending::Revoked)),
                "REQUEUED" | "REQUEUE_HOLD" | "REQUEUE_FED" | "SPECIAL_EXIT" => waits_again = true,
                "COMPLETING" | "STAGE_OUT" | "SIGNALING" | "CONFIGURING" | "RESIZING" | "STOPPED" | "POWER_UP_NODE" => {
                    is_releasing = true;
                }
                _ => {}
            }
        }
        match base {
            // Epilogs run, outputs are staged: it still has its nodes.
            Some(JobState::Ended(_)) | None if is_releasing => JobState::Holding,
            Some(JobState::Ended(_)) | None if waits_again => JobState::Waiting,
            Some(base) => base,
            // A word that we do not know is no reason to believe that it is over.
            None => JobState::Holding,
        }
    }
}

/// Errors of an answer. Versions and requests call the number differently.
pub(super) fn errors(body: &[u8]) -> Vec<SlurmError> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Answer {
        errors: Vec<Line>,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Line {
        error_number: Option<i64>,
        error_code: Option<i64>,
        errno: Option<i64>,
        error: Option<String>,
        description: Option<String>,
    }
    let answer: Answer = serde_json::from_slice(body).unwrap_or_default();
    let error = |line: Line| SlurmError {
        number: line.error_number.or(line.error_code).or(line.errno).unwrap_or(-1),
        text: line.error.or(line.description).unwrap_or_default(),
    };
    answer.errors.into_iter().map(error).collect()
}

fn refuse_errors(body: &[u8]) -> Result<(), BadAnswer> {
    match errors(body).into_iter().next() {
        Some(error) => Err(error.into()),
        None => Ok(()),
    }
}

/// An answer's body. slurmrestd says in plain text that it does not know the caller.
pub(super) fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, BadAnswer> {
    serde_json::from_slice(body).map_err(|cause| {
        if body.trim_ascii().eq_ignore_ascii_case(b"Authentication failure") {
            BadAnswer::Unauthenticated
        } else {
            BadAnswer::Malformed(cause.to_string())
        }
    })
}

struct Listed<'a>(&'a [String]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { out.write_str("no version of /slurm") } else { out.write_str(&self.0.join(", ")) }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn request() -> Request {
        Request {
            name: "ent-job_x.1".into(),
            comment: "entente".into(),
            script: "#!/bin/sh\nexec true\n".into(),
            folder: "/spool/a/x.1".into(),
            output: "/spool/a/x.1/supervisor.log".into(),
            partition: "federated".into(),
            account: Some("p1".into()),
            qos: None,
            constraint: None,
            reservation: None,
            nodes: 2,
            gpus: Gpus::PerNode("gpu:h100:4".into()),
            cpus_per_node: Some(8),
            memory_per_node_mib: Some(2_048),
            time_limit_min: 60,
            environment: vec![("PATH".into(), "/usr/bin:/bin".into())],
        }
    }

    fn choose(paths: &[&str]) -> Result<Dialect, String> {
        let paths: serde_json::Map<String, Value> = paths.iter().map(|it| ((*it).to_owned(), Value::Null)).collect();
        let document = serde_json::to_vec(&serde_json::json!({ "openapi": "3.0.2", "paths": paths })).expect("JSON");
        Dialect::choose(&document).map_err(|none| none.to_string())
    }

    #[test]
    fn the_newest_version_that_both_speak_is_spoken() {
        let real = include_bytes!("samples/openapi.v0038.json");
        assert_eq!(Dialect::choose(real), Ok(Dialect::V0038));
        assert_eq!(
            choose(&["/slurm/v0.0.40/jobs/", "/slurm/v0.0.42/jobs/", "/slurm/v0.0.43/jobs/"]),
            Ok(Dialect::V0040(42))
        );
        assert_eq!(choose(&["/slurm/v0.0.39/jobs", "/slurm/v0.0.38/jobs"]), Ok(Dialect::V0038));
        let reason = choose(&["/slurm/v0.0.39/jobs", "/slurmdb/v0.0.40/jobs"]).expect_err("none that we speak");
        assert!(reason.contains("speaks v0.0.39,"), "{reason}");
        assert!(choose(&[]).expect_err("none").contains("no version"));
        let stranger = Dialect::choose(b"Authentication failure");
        assert_eq!(stranger, Err(BadAnswer::Unauthenticated.into()));
    }

    #[test]
    fn errors_are_read_from_the_body_whatever_they_are_called() {
        for (body, number) in [
            (r#"{"errors":[{"error_code":2014,"error":"Requested node configuration is not available"}]}"#, 2014),
            (
                r#"{"errors":[{"description":"Unable to find JobId=9","error_number":2017,"error":"Invalid job id"}]}"#,
                2017,
            ),
            (r#"{"errors":[{"error":"Unspecified error","errno":-1}],"nodes":[]}"#, -1),
            (r#"{"errors":[{"description":"Unknown key \"x\"","source":"hsearch_r"}]}"#, -1),
        ] {
            assert_eq!(errors(body.as_bytes()).first().map(|it| it.number), Some(number), "{body}");
            assert!(Dialect::V0038.jobs(body.as_bytes()).is_err());
        }
        assert!(errors(br#"{"errors":[],"jobs":[]}"#).is_empty());
    }

    #[test]
    fn a_submission_is_taken_refused_or_taken_with_a_remark() {
        for dialect in [Dialect::V0038, Dialect::V0040(40)] {
            let check = |body: &str| dialect.submitted(body.as_bytes());
            assert_eq!(check(r#"{"errors":[],"job_id":7,"step_id":"BATCH"}"#), Ok(Submitted { id: 7, but: None }));
            let but = check(r#"{"errors":[{"error_code":2015,"error":"x"}],"job_id":7}"#).expect("a job");
            assert_eq!((but.id, but.but.map(|it| it.number)), (7, Some(2015)));
            let but = check(r#"{"errors":[],"result":{"job_id":8,"error_code":2015,"error":"x"}}"#).expect("a job");
            assert_eq!((but.id, but.but.map(|it| it.number)), (8, Some(2015)));
            assert!(
                matches!(check(r#"{"errors":[{"error_code":2000}]}"#), Err(BadAnswer::Slurm(it)) if it.number == 2000)
            );
            assert!(matches!(check("{}"), Err(BadAnswer::Malformed(_))));
            assert_eq!(check("Authentication failure"), Err(BadAnswer::Unauthenticated));
        }
    }

    #[test]
    fn only_one_number_says_that_a_job_is_not_there() {
        let check = |number: i64| {
            let body = format!(r#"{{"errors":[{{"error_number":{number},"error":"x"}}]}}"#);
            Dialect::V0038.deleted(body.as_bytes())
        };
        assert_eq!(check(2017), Ok(()));
        assert!(check(-1).is_err());
        assert!(check(2021).is_err());
        let unfound =
            br#"{"jobs":[],"last_update":{"set":true,"infinite":false,"number":0},"errors":[{"error_number":2017}]}"#;
        assert_eq!(Dialect::V0040(41).job(unfound), Ok(None));
        assert!(Dialect::V0038.job(br#"{"errors":[{"error_number":-1}],"jobs":[]}"#).is_err());
    }

    #[test]
    fn a_state_is_over_only_when_the_nodes_are_given_back() {
        let check = |words: &str| JobState::of(words.split(' '));
        for (words, expected) in [
            ("PENDING", JobState::Waiting),
            ("RUNNING", JobState::Holding),
            ("RUNNING CONFIGURING", JobState::Holding),
            ("CONFIGURING", JobState::Holding),
            ("SUSPENDED", JobState::Holding),
            ("COMPLETING", JobState::Holding),
            ("COMPLETED COMPLETING", JobState::Holding),
            ("CANCELLED COMPLETING", JobState::Holding),
            ("COMPLETED", JobState::Ended(Ending::Completed)),
            ("OUT_OF_MEMORY", JobState::Ended(Ending::OutOfMemory)),
            ("NODE_FAIL REQUEUED", JobState::Waiting),
            ("REQUEUE_HOLD", JobState::Waiting),
            ("PENDING REQUEUED", JobState::Waiting),
            ("A_NEW_WORD", JobState::Holding),
        ] {
            assert_eq!(check(words), expected, "{words}");
        }
    }
}
