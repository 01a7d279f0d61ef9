//! What a client sees of a job's attempts.

use certs::{Digest, GatewayName, MemberState};
use federation::{
    Attempt, Ceiling, End, Grant, Job, JobId, JobState, PoolId, Pseudonym, Reason, Revision, Shape, Timestamp,
};
use policy::{DataClass, Labels, Purpose};
use serde_json::{Value, json};

use crate::driver::{AttemptRecord, ExecutorRecord, OutputRecord};
use crate::tes::logs;

const AT: Timestamp = Timestamp(1_795_522_620_250);
const AT_TEXT: &str = "2026-11-24T12:17:00.250Z";

fn job(state: JobState, attempts: Vec<Attempt>, end: Option<End>) -> Job {
    Job {
        id: JobId::new(AT.0, [1; 10]),
        home: MemberState::parse("FR").expect("a state"),
        home_gateway: GatewayName::parse("fr-1").expect("a name"),
        pseudonym: Pseudonym([1; 16]),
        shape: Shape {
            gpus: 8,
            nodes: 0,
            model: None,
            memory_gib_min: 0,
            walltime_s: 600,
            cpu_cores: 0,
            ram_gib: 0,
            disk_gib: 0,
        },
        labels: Labels { data_class: DataClass::Public, purpose: Purpose::Research, dual_use: false, project: None },
        payload: Digest::of(b"payload"),
        priority: 0,
        restartable: false,
        exclusive: false,
        candidates: vec![],
        decided_on: vec![],
        decided_at: Revision(1),
        state,
        cancel_requested: false,
        attempts,
        end,
        passed_over: 0,
        reserved: None,
        submitted_at: Revision(1),
        submitted: AT,
        changed_at: Revision(1),
    }
}

fn attempt(number: u32, declined: Option<&str>) -> Attempt {
    Attempt {
        number,
        pool: PoolId::parse("FR/jean-zay/h100-80").expect("a pool"),
        served_by: GatewayName::parse("fr-1").expect("a name"),
        leased: false,
        grant: Grant { gpus: 8, nodes: vec![] },
        granted_at: Revision(1),
        started_at: Some(AT),
        running_at: None,
        ended_at: None,
        declined: declined.map(Reason::new),
        below: None,
        end: None,
        gpu_seconds: 0,
    }
}

fn check(job: &Job, record: Option<AttemptRecord>, warnings: &[&str], expected: Value) {
    let warnings: Vec<String> = warnings.iter().map(|it| (*it).to_owned()).collect();
    let logs = logs(job, record, &warnings);
    assert_eq!(serde_json::to_value(logs).expect("plain data"), expected);
}

#[test]
fn a_job_that_waits_has_no_log_unless_there_is_something_to_say() {
    let waiting = job(JobState::Queued, vec![], None);
    check(&waiting, None, &[], json!([]));
    check(&waiting, None, &["dropped"], json!([{"logs": [], "outputs": [], "system_logs": ["dropped"]}]));
    let declined = job(JobState::Queued, vec![attempt(1, Some("no room"))], None);
    let line = "attempt 1 on FR/jean-zay/h100-80 was declined: no room";
    check(&declined, None, &[], json!([{"logs": [], "outputs": [], "system_logs": [line]}]));
}

#[test]
fn what_a_declined_job_waits_for_is_said() {
    let declined = Attempt { below: Some(Ceiling::parse(60).expect("a percentage")), ..attempt(1, Some("too much")) };
    let line = "attempt 1 on FR/jean-zay/h100-80 was declined: too much; it is taken while its home holds less than 60 % of \
                the pool";
    let waiting = job(JobState::Queued, vec![declined], None);
    check(&waiting, None, &[], json!([{"logs": [], "outputs": [], "system_logs": [line]}]));
}

#[test]
fn where_an_attempt_runs_is_known_before_its_host_reports() {
    let running = job(JobState::Running, vec![attempt(1, Some("no")), attempt(2, None)], None);
    let line = "attempt 1 on FR/jean-zay/h100-80 was declined: no";
    let metadata = json!({"attempt": "2", "gpus": "8", "pool": "FR/jean-zay/h100-80"});
    let expected = json!([
        {"logs": [], "outputs": [], "metadata": metadata, "start_time": AT_TEXT, "system_logs": [line]}
    ]);
    check(&running, None, &[], expected);
}

#[test]
fn a_record_is_shown_in_the_words_of_the_specification() {
    let failed = End::SystemError { reason: "walltime of 1 s is over".into() };
    let job = job(JobState::Failed, vec![attempt(1, None)], Some(failed));
    let record = AttemptRecord {
        begin_ms: AT.0,
        end_ms: Some(AT.0),
        executors: vec![ExecutorRecord {
            exit_code: 137,
            start_ms: AT.0,
            end_ms: AT.0,
            stdout: "out".into(),
            stderr: String::new(),
        }],
        outputs: vec![OutputRecord { url: "file:///out".into(), path: "/out".into(), size_bytes: 1 << 60 }],
        system_logs: vec!["walltime of 1 s is over".into()],
        metadata: [("isolation".to_owned(), "bubblewrap".to_owned())].into(),
        ..AttemptRecord::default()
    };
    let executor = json!({"start_time": AT_TEXT, "end_time": AT_TEXT, "exit_code": 137, "stdout": "out", "stderr": ""});
    let expected = json!([{
        "logs": [executor],
        "metadata": {"isolation": "bubblewrap", "attempt": "1", "gpus": "8", "pool": "FR/jean-zay/h100-80"},
        "start_time": AT_TEXT,
        "end_time": AT_TEXT,
        "outputs": [{"url": "file:///out", "path": "/out", "size_bytes": "1152921504606846976"}],
        "system_logs": ["walltime of 1 s is over"],
    }]);
    check(&job, Some(record), &[], expected);
}

#[test]
fn a_client_reads_which_attempts_were_lost() {
    let lost = || Attempt { end: Some(End::lost("its host fell silent")), ..attempt(1, None) };
    let lines = |job: Job| logs(&job, None, &[])[0].system_logs.clone();
    let line = "attempt 1 on FR/jean-zay/h100-80 was lost: its host fell silent";
    assert_eq!(lines(job(JobState::Queued, vec![lost()], None)), [line]);
    assert_eq!(lines(job(JobState::Running, vec![lost(), attempt(2, None)], None)), [line]);
    // One that ended its job needs no other line.
    assert_eq!(lines(job(JobState::Failed, vec![lost()], lost().end)), ["its host fell silent"]);
}
