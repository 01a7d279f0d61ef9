//! Observed: what the API says of an attempt's Job and pods, in the driver's own words.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::manifest::{FINALIZER, container_name, labels};
use crate::driver::folder::Key;
use federation::FactoryId;

/// A Job as it was last seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SeenJob {
    pub uid: String,
    /// Whether it has the labels of the attempt: a name alone says nothing.
    pub is_ours: bool,
    pub is_deleted: bool,
    /// Nothing keeps it but our own finalizer. Where we had it deleted with its pods, they are gone, by the garbage
    /// collector's word.
    pub is_bare: bool,
    pub finish: Option<Finish>,
}

/// How the Job controller says that a Job has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Finish {
    Complete,
    Failed { reason: String, message: String },
}

/// A pod as it was last seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SeenPod {
    pub uid: String,
    pub name: String,
    /// The uid of the Job that it is of.
    pub owner: Option<String>,
    pub node: Option<String>,
    pub created_ms: u64,
    pub phase: Phase,
    pub is_deleted: bool,
    /// `Evicted`, `NodeLost`, …; may be empty.
    pub reason: String,
    pub message: String,
    /// Why Kubernetes takes it away, if it does: the reason of its condition DisruptionTarget.
    pub disruption: Option<String>,
    /// Why it has no node yet.
    pub unschedulable: Option<String>,
    /// Executors in their order.
    pub steps: Vec<SeenStep>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Pending,
    Running,
    Succeeded,
    Failed,
    /// The node does not say.
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum SeenStep {
    Waiting { reason: String, message: String },
    Running { start_ms: u64 },
    Ended { exit_code: i32, reason: String, start_ms: u64, end_ms: u64 },
}

impl SeenJob {
    pub fn of(job: &Job, factory: &FactoryId, key: Key) -> SeenJob {
        let has = job.metadata.labels.as_ref();
        let is_ours = labels(factory, key).iter().all(|(name, value)| has.and_then(|it| it.get(name)) == Some(value));
        let is_deleted = job.metadata.deletion_timestamp.is_some();
        let finalizers = job.metadata.finalizers.as_deref().unwrap_or_default();
        let conditions = job.status.as_ref().and_then(|it| it.conditions.as_deref()).unwrap_or_default();
        let finish = conditions.iter().filter(|it| it.status == "True").find_map(|it| match it.type_.as_str() {
            "Complete" => Some(Finish::Complete),
            "Failed" => Some(Finish::Failed {
                reason: it.reason.clone().unwrap_or_default(),
                message: it.message.clone().unwrap_or_default(),
            }),
            _ => None,
        });
        SeenJob {
            uid: job.metadata.uid.clone().unwrap_or_default(),
            is_ours,
            is_deleted,
            is_bare: is_deleted && finalizers.iter().all(|it| it == FINALIZER),
            finish,
        }
    }
}

impl SeenPod {
    pub fn of(pod: &Pod) -> SeenPod {
        let spec = pod.spec.as_ref();
        let status = pod.status.clone().unwrap_or_default();
        let all = spec.map_or(0, |it| it.containers.len() + it.init_containers.as_ref().map_or(0, Vec::len));
        let init = status.init_container_statuses.unwrap_or_default();
        let statuses: Vec<ContainerStatus> =
            init.into_iter().chain(status.container_statuses.unwrap_or_default()).collect();
        let step = |index: usize| {
            let status = statuses.iter().find(|it| it.name == container_name(index));
            SeenStep::of(status.and_then(|it| it.state.as_ref()))
        };
        let conditions = status.conditions.unwrap_or_default();
        let with = |kind: &str, value: &str| conditions.iter().find(|it| it.type_ == kind && it.status == value);
        let unschedulable = with("PodScheduled", "False")
            .filter(|it| it.reason.as_deref() == Some("Unschedulable"))
            .map(|it| it.message.clone().unwrap_or_default());
        SeenPod {
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            name: pod.metadata.name.clone().unwrap_or_default(),
            owner: owner(pod).map(str::to_owned),
            node: spec.and_then(|it| it.node_name.clone()),
            created_ms: millis(pod.metadata.creation_timestamp.as_ref()),
            phase: match status.phase.as_deref() {
                Some("Running") => Phase::Running,
                Some("Succeeded") => Phase::Succeeded,
                Some("Failed") => Phase::Failed,
                Some("Unknown") => Phase::Unknown,
                _ => Phase::Pending,
            },
            is_deleted: pod.metadata.deletion_timestamp.is_some(),
            reason: status.reason.unwrap_or_default(),
            message: status.message.unwrap_or_default(),
            disruption: with("DisruptionTarget", "True").map(|it| it.reason.clone().unwrap_or_default()),
            unschedulable,
            steps: (0..all).map(step).collect(),
        }
    }

    /// Its processes may be there, and its GPUs are taken.
    pub fn is_live(&self) -> bool {
        !matches!(self.phase, Phase::Succeeded | Phase::Failed)
    }

    /// When the first step started.
    pub fn started_ms(&self) -> Option<u64> {
        self.steps.iter().find_map(|step| match step {
            SeenStep::Waiting { .. } => None,
            SeenStep::Running { start_ms } | SeenStep::Ended { start_ms, .. } => Some(*start_ms),
        })
    }
}

impl SeenStep {
    fn of(state: Option<&ContainerState>) -> SeenStep {
        let Some(state) = state else {
            return SeenStep::Waiting { reason: String::new(), message: String::new() };
        };
        if let Some(ended) = &state.terminated {
            let end_ms = millis(ended.finished_at.as_ref());
            let start_ms = match &ended.started_at {
                Some(at) => millis(Some(at)),
                None => end_ms,
            };
            let reason = ended.reason.clone().unwrap_or_default();
            return SeenStep::Ended { exit_code: ended.exit_code, reason, start_ms, end_ms };
        }
        if let Some(running) = &state.running {
            return SeenStep::Running { start_ms: millis(running.started_at.as_ref()) };
        }
        let waiting = state.waiting.clone().unwrap_or_default();
        SeenStep::Waiting { reason: waiting.reason.unwrap_or_default(), message: waiting.message.unwrap_or_default() }
    }
}

/// The uid of the Job that a pod is of.
pub(super) fn owner(pod: &Pod) -> Option<&str> {
    let owners = pod.metadata.owner_references.iter().flatten();
    owners.filter(|it| it.kind == "Job" && it.controller == Some(true)).map(|it| it.uid.as_str()).next()
}

fn millis(time: Option<&Time>) -> u64 {
    time.map_or(0, |it| u64::try_from(it.0.as_millisecond()).unwrap_or(0))
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::{Value, json};

    use super::super::manifest::name;
    use super::super::settings::tests::pool;
    use super::*;
    use federation::JobId;

    /// A pod of two executors with this status.
    pub fn pod(status: Value) -> SeenPod {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "ent-x-1-abcde", "uid": "pod-1", "creationTimestamp": "1970-01-01T00:01:40Z"},
            "spec": {"nodeName": "n1", "initContainers": [{"name": "step-0"}], "containers": [{"name": "step-1"}]},
            "status": status,
        });
        SeenPod::of(&serde_json::from_value(pod).expect("a pod"))
    }

    pub fn ended(code: i32, reason: &str) -> Value {
        let state = json!({"exitCode": code, "reason": reason,
            "startedAt": "1970-01-01T00:01:50Z", "finishedAt": "1970-01-01T00:02:00Z"});
        json!({"terminated": state})
    }

    pub fn statuses(init: Value, main: Value) -> Value {
        let status = |name: &str, state: Value| json!([{"name": name, "state": state, "image": "", "imageID": "", "ready": false, "restartCount": 0}]);
        json!({
            "phase": "Running",
            "initContainerStatuses": status("step-0", init),
            "containerStatuses": status("step-1", main),
        })
    }

    #[test]
    fn steps_are_in_the_order_of_the_task_and_the_first_that_started_counts() {
        let running = json!({"running": {"startedAt": "1970-01-01T00:02:10Z"}});
        let seen = pod(statuses(ended(0, "Completed"), running));
        assert_eq!(seen.steps[1], SeenStep::Running { start_ms: 130_000 });
        assert_eq!((seen.started_ms(), seen.created_ms), (Some(110_000), 100_000));
        assert!(seen.is_live());
        assert_eq!(pod(json!({"phase": "Pending"})).started_ms(), None);
        assert!(!pod(json!({"phase": "Failed"})).is_live());
    }

    #[test]
    fn a_job_is_ours_by_its_labels_and_bare_when_only_we_keep_it() {
        let (factory, key) = (pool(1, 1, 1).id.factory, (JobId::new(1, [0; 10]), 1));
        let seen = |labels: Value, deleted: Option<&str>, finalizers: Value, conditions: Value| {
            let metadata = json!({"name": name(key), "uid": "u", "labels": labels, "finalizers": finalizers,
                "deletionTimestamp": deleted});
            let job = json!({"metadata": metadata, "status": {"conditions": conditions}});
            SeenJob::of(&serde_json::from_value(job).expect("a job"), &factory, key)
        };
        let ours = || json!(labels(&factory, key));
        let failed = json!([{"type": "Failed", "status": "True", "reason": "DeadlineExceeded", "message": "m"}]);
        let job = seen(ours(), Some("2026-01-01T00:00:00Z"), json!([FINALIZER, "foregroundDeletion"]), failed);
        assert!(job.is_ours && job.is_deleted && !job.is_bare);
        assert!(matches!(job.finish, Some(Finish::Failed { reason, .. }) if reason == "DeadlineExceeded"));
        assert!(seen(ours(), Some("2026-01-01T00:00:00Z"), json!([FINALIZER]), json!([])).is_bare);
        assert!(!seen(ours(), None, json!([FINALIZER]), json!([])).is_bare);
        assert!(!seen(json!({"app": "x"}), None, json!([]), json!([])).is_ours);
    }
}
