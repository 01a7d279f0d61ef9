//! Outcomes: how an attempt ended, from what was last seen of its pod and its Job.
//!
//! Invariant: what every state reads is words of ours; Kubernetes' own, which may name images and nodes, are for the
//! task's researcher.

use std::collections::BTreeMap;

use federation::End;
use serde::{Deserialize, Serialize};

use super::observed::{Finish, Phase, SeenPod, SeenStep};
use crate::driver::folder::Done;
use crate::driver::record::Notes;
use crate::driver::{AttemptRecord, ExecutorRecord};

/// Why the driver itself ended an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum GivenUp {
    /// The API server does not take the Job, whatever is waited for. Its own words.
    Refused {
        text: String,
    },
    /// Something that is not ours has its name.
    NameTaken,
    Walltime {
        walltime_s: u32,
    },
    /// It got no node, so another factory may try.
    NoNode {
        start_s: u64,
        text: String,
    },
    /// It got a node, and its containers did not start there.
    NeverStarted {
        start_s: u64,
        text: String,
    },
    Image {
        step: usize,
        text: String,
    },
    /// The container of an executor cannot be made.
    Unstartable {
        step: usize,
        text: String,
    },
    /// Somebody else deleted its Job.
    Removed,
    /// Its pod was replaced. An attempt runs once.
    SecondPod,
    /// Its pod has gone, and Kubernetes says nothing of how it ended.
    PodGone,
}

/// Everything that is known when an attempt is over.
#[derive(Default)]
pub(super) struct Facts<'a> {
    /// The last that was seen of its pod.
    pub pod: Option<&'a SeenPod>,
    /// It had one, although an earlier gateway may have been the last to see it.
    pub had_pod: bool,
    pub finish: Option<&'a Finish>,
    /// Its Job was being deleted.
    pub is_deleted: bool,
    /// Somebody asked for the stop.
    pub cancel: bool,
    pub given_up: Option<&'a GivenUp>,
    /// Its Job has gone without a trace.
    pub is_lost: bool,
    /// The ends of the executors' logs.
    pub tails: BTreeMap<usize, String>,
    pub are_logs_cut: bool,
    pub now_ms: u64,
}

/// What everybody reads of an end that is not the task's own.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Imposed {
    #[error("the job ran out of memory")]
    OutOfMemory,
    #[error("the factory's time limit was reached")]
    Deadline,
    #[error("the factory evicted the job")]
    Evicted,
    #[error("the factory preempted the job")]
    Preempted,
    #[error("the node of the job failed")]
    NodeLost,
    #[error("the node of the job was shut down")]
    NodeShutdown,
    #[error("the factory's node did not admit the job")]
    NotAdmitted,
    #[error("the job's pod was removed")]
    PodRemoved,
    #[error("the factory's Kubernetes lost the job")]
    Lost,
    #[error("the factory's Kubernetes ended the job")]
    Failed,
}

impl GivenUp {
    /// What everybody reads.
    pub fn public(&self) -> String {
        match self {
            GivenUp::Refused { .. } => "the factory's Kubernetes does not take the job".to_owned(),
            GivenUp::NameTaken => "the name of the job is taken in the factory's Kubernetes".to_owned(),
            GivenUp::Walltime { walltime_s } => format!("walltime of {walltime_s} s is over"),
            GivenUp::NoNode { start_s, .. } | GivenUp::NeverStarted { start_s, .. } => {
                format!("the job did not start within {start_s} s")
            }
            GivenUp::Image { step, .. } => format!("the image of executor {step} could not be pulled"),
            GivenUp::Unstartable { step, .. } => format!("executor {step} could not be run"),
            GivenUp::Removed => "the factory removed the job".to_owned(),
            GivenUp::SecondPod => "the factory removed the job's pod and started another, which was ended".to_owned(),
            GivenUp::PodGone => Imposed::PodRemoved.to_string(),
        }
    }

    fn detail(&self) -> Option<&str> {
        match self {
            GivenUp::Refused { text }
            | GivenUp::NoNode { text, .. }
            | GivenUp::NeverStarted { text, .. }
            | GivenUp::Image { text, .. }
            | GivenUp::Unstartable { text, .. } => Some(text),
            GivenUp::NameTaken
            | GivenUp::Walltime { .. }
            | GivenUp::Removed
            | GivenUp::SecondPod
            | GivenUp::PodGone => None,
        }
    }
}

pub(super) fn conclude(facts: Facts) -> Done {
    let end = end(&facts);
    let mut record = record(facts.pod, &facts.tails, facts.now_ms);
    let mut notes = Notes::default();
    record.system_logs.iter().for_each(|line| notes.add(line));
    if let Some(Finish::Failed { reason, message }) = facts.finish {
        notes.add(&format!("Kubernetes: the Job has failed: {reason}: {message}"));
    }
    if let Some(detail) = facts.given_up.and_then(GivenUp::detail) {
        notes.add(&format!("Kubernetes: {detail}"));
    }
    if facts.are_logs_cut {
        notes.add("the end of a log could not be read before the pod was gone");
    }
    let last = match &end {
        End::SystemError { reason } => Some(reason.as_str()),
        _ => None,
    };
    record.system_logs = notes.lines(last);
    record.end_ms = Some(facts.now_ms);
    Done { end, record }
}

/// What is known of a pod so far.
pub(super) fn record(pod: Option<&SeenPod>, tails: &BTreeMap<usize, String>, now_ms: u64) -> AttemptRecord {
    let mut record = AttemptRecord { begin_ms: now_ms, ..AttemptRecord::default() };
    let Some(pod) = pod else {
        return record;
    };
    // The clocks of nodes are their own, and a start is charged from.
    let earliest = pod.created_ms.min(now_ms);
    let bounded = |ms: u64| ms.clamp(earliest, now_ms);
    record.begin_ms = earliest;
    record.running_ms = pod.started_ms().map(bounded);
    let ended = pod.steps.iter().enumerate().map_while(|(index, step)| match step {
        SeenStep::Ended { exit_code, start_ms, end_ms, .. } => Some(ExecutorRecord {
            exit_code: *exit_code,
            start_ms: bounded(*start_ms),
            end_ms: bounded(*end_ms),
            stdout: tails.get(&index).cloned().unwrap_or_default(),
            stderr: String::new(),
        }),
        SeenStep::Waiting { .. } | SeenStep::Running { .. } => None,
    });
    record.executors = ended.collect();
    record.metadata.insert("isolation".to_owned(), "kubernetes".to_owned());
    record.metadata.extend(pod.node.as_ref().map(|node| ("host".to_owned(), node.clone())));
    let mut notes = Notes::default();
    lines(pod).iter().for_each(|line| notes.add(line));
    record.system_logs = notes.lines(None);
    record
}

/// Kubernetes' own words, of any length.
fn lines(pod: &SeenPod) -> Vec<String> {
    let mut line = format!("Kubernetes: pod {} is {:?}", pod.name, pod.phase);
    for (word, text) in [
        ("reason", Some(&pod.reason)),
        ("because", Some(&pod.message)),
        ("disrupted", pod.disruption.as_ref()),
        ("unschedulable", pod.unschedulable.as_ref()),
    ] {
        if let Some(text) = text.filter(|it| !it.is_empty()) {
            line += &format!(", {word}: {text}");
        }
    }
    let mut lines = vec![line];
    for (index, step) in pod.steps.iter().enumerate() {
        match step {
            SeenStep::Waiting { reason, message } if !matches!(reason.as_str(), "" | "PodInitializing") => {
                lines.push(format!("Kubernetes: executor {index} waits: {reason}: {message}"));
            }
            SeenStep::Ended { exit_code, reason, .. } if !matches!(reason.as_str(), "" | "Completed" | "Error") => {
                lines.push(format!("Kubernetes: executor {index} ended with {exit_code}: {reason}"));
            }
            _ => {}
        }
    }
    lines
}

fn end(facts: &Facts) -> End {
    if is_complete(facts) {
        return End::Complete;
    }
    if matches!(facts.given_up, Some(GivenUp::NoNode { .. })) && never_had_a_node(facts) {
        return End::Canceled;
    }
    // How a pod ended that has gone since was seen, or was not.
    let has_own_end = |it: &GivenUp| *it == GivenUp::PodGone && facts.pod.is_some_and(|pod| !pod.is_live());
    if let Some(given_up) = facts.given_up.filter(|it| !has_own_end(it)) {
        return End::system_error(&given_up.public());
    }
    if facts.cancel {
        return End::Canceled;
    }
    let imposed = |it: Imposed| End::system_error(&it.to_string());
    if matches!(facts.finish, Some(Finish::Failed { reason, .. }) if reason == "DeadlineExceeded") {
        return imposed(Imposed::Deadline);
    }
    let Some(pod) = facts.pod else {
        return imposed(if facts.is_lost { Imposed::Lost } else { Imposed::Failed });
    };
    if let Some(reason) = of_pod(pod) {
        return imposed(reason);
    }
    let failed = pod.steps.iter().find_map(|step| match step {
        SeenStep::Ended { exit_code, reason, .. } if *exit_code != 0 => Some((*exit_code, reason.as_str())),
        _ => None,
    });
    match failed {
        Some((_, "OOMKilled")) => imposed(Imposed::OutOfMemory),
        // A kubelet that came back and found the container gone makes up its exit code.
        Some((_, "ContainerStatusUnknown")) => imposed(Imposed::NodeLost),
        Some((exit_code, _)) if !pod.is_live() => End::ExecutorError { exit_code },
        _ if facts.is_lost => imposed(Imposed::Lost),
        _ if pod.is_live() => imposed(Imposed::PodRemoved),
        _ => imposed(Imposed::Failed),
    }
}

/// It may have got one after it was given up.
fn never_had_a_node(facts: &Facts) -> bool {
    match facts.pod {
        Some(pod) => pod.node.is_none() && pod.started_ms().is_none(),
        None => !facts.had_pod,
    }
}

/// A program that ends well on the signal to stop did not do what it was asked for: its pod succeeds all the same.
fn is_complete(facts: &Facts) -> bool {
    let is_stopped = facts.cancel || facts.given_up.is_some();
    if facts.pod.is_some_and(|pod| pod.is_deleted && is_stopped) {
        return false;
    }
    // What the Job controller says may be of the pod that should not have been, or of one whose end nobody else saw.
    let is_doubtful = facts.given_up == Some(&GivenUp::SecondPod) || (facts.is_deleted && is_stopped);
    let finish = facts.finish.filter(|_| !is_doubtful);
    facts.pod.is_some_and(|pod| pod.phase == Phase::Succeeded) || finish == Some(&Finish::Complete)
}

/// What Kubernetes did to a pod, if it did.
fn of_pod(pod: &SeenPod) -> Option<Imposed> {
    match pod.disruption.as_deref() {
        Some("PreemptionByScheduler" | "PreemptionByKubeScheduler") => return Some(Imposed::Preempted),
        Some("EvictionByEvictionAPI") => return Some(Imposed::Evicted),
        Some("DeletionByTaintManager" | "DeletionByPodGC") => return Some(Imposed::NodeLost),
        _ => {}
    }
    match pod.reason.as_str() {
        "DeadlineExceeded" => Some(Imposed::Deadline),
        "Evicted" => Some(Imposed::Evicted),
        "Preempting" | "Preempted" => Some(Imposed::Preempted),
        "NodeLost" | "NodeAffinity" => Some(Imposed::NodeLost),
        "Shutdown" | "NodeShutdown" | "Terminated" => Some(Imposed::NodeShutdown),
        "UnexpectedAdmissionError" | "OutOfcpu" | "OutOfmemory" | "OutOfpods" => Some(Imposed::NotAdmitted),
        reason if reason.starts_with("OutOf") => Some(Imposed::NotAdmitted),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::observed::tests::{ended, pod, statuses};
    use super::*;

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

    fn failed(reason: &str) -> Finish {
        Finish::Failed { reason: reason.into(), message: "of pod secret-name".into() }
    }

    fn with(mut status: Value, name: &str, value: Value) -> SeenPod {
        status["phase"] = json!("Failed");
        status[name] = value;
        pod(status)
    }

    #[test]
    fn an_end_is_the_tasks_own_unless_kubernetes_imposed_it() {
        let own = || statuses(ended(0, "Completed"), ended(3, "Error"));
        let disrupted = |reason: &str| json!([{"type": "DisruptionTarget", "status": "True", "reason": reason}]);
        for (pod, finish, expected) in [
            (with(own(), "reason", json!(null)), "BackoffLimitExceeded", "exit 3"),
            (with(statuses(ended(5, "Error"), json!({})), "reason", json!(null)), "BackoffLimitExceeded", "exit 5"),
            (
                with(statuses(ended(137, "OOMKilled"), json!({})), "reason", json!(null)),
                "",
                "the job ran out of memory",
            ),
            (with(own(), "reason", json!("Evicted")), "BackoffLimitExceeded", "the factory evicted the job"),
            (with(own(), "reason", json!("DeadlineExceeded")), "", "the factory's time limit was reached"),
            (with(own(), "reason", json!(null)), "DeadlineExceeded", "the factory's time limit was reached"),
            (with(own(), "reason", json!("NodeLost")), "", "the node of the job failed"),
            (with(own(), "reason", json!("OutOfnvidia.com/gpu")), "", "the factory's node did not admit the job"),
            (with(own(), "conditions", disrupted("PreemptionByScheduler")), "", "the factory preempted the job"),
            (with(own(), "conditions", disrupted("EvictionByEvictionAPI")), "", "the factory evicted the job"),
            (with(own(), "conditions", disrupted("DeletionByTaintManager")), "", "the node of the job failed"),
            (
                with(statuses(ended(137, "ContainerStatusUnknown"), json!({})), "reason", json!(null)),
                "BackoffLimitExceeded",
                "the node of the job failed",
            ),
            (pod(json!({"phase": "Running"})), "BackoffLimitExceeded", "the job's pod was removed"),
        ] {
            let facts = |cancel| Facts { pod: Some(&pod), cancel, now_ms: 200_000, ..Facts::default() };
            let finish = failed(finish);
            let done = conclude(Facts { finish: Some(&finish), ..facts(false) });
            assert_eq!(text(&done.end), expected, "{pod:?}");
            let logs = done.record.system_logs.join("\n");
            assert!(logs.contains("pod ent-x-1-abcde is") && logs.contains("secret-name"), "{logs}");
            assert!(!text(&done.end).contains("secret-name"));
            assert_eq!(text(&conclude(facts(true)).end), "canceled", "{pod:?}");
        }
    }

    #[test]
    fn a_task_that_was_faster_than_its_end_is_complete() {
        let pod = pod(json!({"phase": "Succeeded"}));
        let given_up = GivenUp::Walltime { walltime_s: 5 };
        let facts = || Facts { pod: Some(&pod), cancel: true, given_up: Some(&given_up), ..Facts::default() };
        assert_eq!(conclude(facts()).end, End::Complete);
        let stopped = SeenPod { is_deleted: true, ..pod.clone() };
        let ends = |facts| text(&conclude(facts).end);
        assert_eq!(ends(Facts { pod: Some(&stopped), ..facts() }), "walltime of 5 s is over");
        let canceled = Facts { pod: Some(&stopped), given_up: None, finish: Some(&Finish::Complete), ..facts() };
        assert_eq!(ends(canceled), "canceled", "a program that ends well on the signal");
        let running = SeenPod { phase: Phase::Running, ..pod.clone() };
        let unseen = |is_deleted| Facts {
            pod: Some(&running),
            given_up: None,
            finish: Some(&Finish::Complete),
            is_deleted,
            ..facts()
        };
        assert_eq!((ends(unseen(true)).as_str(), ends(unseen(false)).as_str()), ("canceled", "complete"));
        let evicted = Facts { pod: Some(&stopped), given_up: None, cancel: false, ..facts() };
        assert_eq!(ends(evicted), "complete");
    }

    #[test]
    fn what_a_second_pod_did_does_not_count() {
        let first = pod(json!({"phase": "Running"}));
        let facts = |given_up| Facts {
            pod: Some(&first),
            finish: Some(&Finish::Complete),
            given_up: Some(given_up),
            ..Facts::default()
        };
        assert!(text(&conclude(facts(&GivenUp::SecondPod)).end).contains("started another"));
    }

    #[test]
    fn a_pod_that_has_gone_ended_as_it_was_last_seen() {
        let facts = |pod| Facts { pod: Some(pod), given_up: Some(&GivenUp::PodGone), ..Facts::default() };
        let running = pod(json!({"phase": "Running"}));
        assert_eq!(text(&conclude(facts(&running)).end), "the job's pod was removed");
        let failed = with(statuses(ended(3, "Error"), json!({})), "reason", json!(null));
        assert_eq!(text(&conclude(facts(&failed)).end), "exit 3");
    }

    #[test]
    fn what_the_driver_gave_up_says_why_and_keeps_kubernetes_words_to_the_researcher() {
        let given_up = GivenUp::Image { step: 1, text: "ImagePullBackOff: secret.example/tool".into() };
        let done = conclude(Facts { given_up: Some(&given_up), cancel: true, ..Facts::default() });
        assert_eq!(text(&done.end), "the image of executor 1 could not be pulled");
        assert!(done.record.system_logs.iter().any(|it| it.contains("secret.example")), "{done:?}");
        let done = conclude(Facts { is_lost: true, ..Facts::default() });
        assert_eq!(text(&done.end), "the factory's Kubernetes lost the job");
        assert_eq!(conclude(Facts { cancel: true, is_lost: true, ..Facts::default() }).end, End::Canceled);
    }

    #[test]
    fn what_got_no_node_is_given_back_and_what_got_one_meanwhile_is_not() {
        let given_up = GivenUp::NoNode { start_s: 600, text: "0/3 nodes are available".into() };
        let ends = |pod| conclude(Facts { pod, given_up: Some(&given_up), ..Facts::default() });
        let bound = pod(json!({"phase": "Pending"}));
        let unbound = SeenPod { node: None, ..bound.clone() };
        assert_eq!((ends(None).end, ends(Some(&unbound)).end), (End::Canceled, End::Canceled));
        assert!(ends(None).record.system_logs.iter().any(|it| it.contains("0/3 nodes")));
        assert_eq!(text(&ends(Some(&bound)).end), "the job did not start within 600 s");
        let unseen = conclude(Facts { had_pod: true, given_up: Some(&given_up), ..Facts::default() });
        assert_eq!(text(&unseen.end), "the job did not start within 600 s", "who knows where it was");
    }

    #[test]
    fn kubernetes_words_are_bounded_and_on_one_line() {
        let seen = SeenPod { message: "a\nb".repeat(10_000), ..pod(json!({"phase": "Pending"})) };
        let lines = record(Some(&seen), &BTreeMap::new(), 5).system_logs;
        assert!(lines.iter().all(|it| it.len() <= 4_096 && !it.contains('\n')), "{lines:?}");
    }

    #[test]
    fn a_record_has_the_steps_that_ended_and_times_that_can_be() {
        let running = json!({"running": {"startedAt": "1970-01-01T00:02:10Z"}});
        let seen = pod(statuses(ended(0, "Completed"), running));
        let record = record(Some(&seen), &[(0, "out".to_owned())].into(), 115_000);
        assert_eq!((record.begin_ms, record.running_ms), (100_000, Some(110_000)));
        assert_eq!(record.executors.len(), 1);
        let first = &record.executors[0];
        assert_eq!((first.exit_code, first.stdout.as_str(), first.end_ms), (0, "out", 115_000));
        assert_eq!(record.metadata["host"], "n1");
    }
}
