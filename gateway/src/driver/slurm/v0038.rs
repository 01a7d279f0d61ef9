//! slurmrestd's v0.0.38, as Slurm 22.05 speaks it.
//!
//! Seen there: GPUs go into `gres`, and `tres_per_node` is refused; `nodes` as a list of two numbers is ignored, as a
//! text it is not; `requeue: false` is accepted and not heeded; `environment` is required; a state is one word, and a
//! flag hides what is below it; exit codes are wait statuses; unlimited times are -1 or null.

use serde::Deserialize;
use serde_json::{Value, json};

use super::dialect::{BadAnswer, Exit, Gpus, JobState, Jobs, Node, Partition, Request, SlurmJob, parse};

pub(super) fn submission(request: &Request) -> Value {
    let environment: serde_json::Map<String, Value> =
        request.environment.iter().map(|(name, value)| (name.clone(), value.as_str().into())).collect();
    let mut job = json!({
        "name": request.name,
        "comment": request.comment,
        "partition": request.partition,
        "nodes": request.nodes.to_string(),
        "tasks": request.nodes,
        "tasks_per_node": 1,
        "time_limit": request.time_limit_min,
        "current_working_directory": request.folder,
        "standard_output": request.output,
        "standard_error": request.output,
        "requeue": false,
        "environment": environment,
    });
    let (gres, gpus) = match &request.gpus {
        Gpus::None => (None, None),
        Gpus::PerNode(gres) => (Some(gres.clone()), None),
        Gpus::InAll { kind: Some(kind), count, .. } => (None, Some(format!("{kind}:{count}"))),
        Gpus::InAll { kind: None, count, .. } => (None, Some(count.to_string())),
    };
    if gpus.is_some() {
        // Where Slurm spreads them as it likes, it chooses the nodes as well.
        for key in ["nodes", "tasks", "tasks_per_node"] {
            job.as_object_mut().map(|job| job.remove(key));
        }
    }
    let optional = [
        ("gres", gres.map(Value::from)),
        ("gpus", gpus.map(Value::from)),
        ("cpus_per_task", request.cpus_per_node.map(Value::from)),
        ("memory_per_node", request.memory_per_node_mib.map(Value::from)),
        ("account", request.account.clone().map(Value::from)),
        ("qos", request.qos.clone().map(Value::from)),
        ("constraints", request.constraint.clone().map(Value::from)),
        ("reservation", request.reservation.clone().map(Value::from)),
    ];
    for (key, value) in optional {
        if let Some(value) = value {
            job[key] = value;
        }
    }
    json!({ "script": request.script, "job": job })
}

pub(super) fn jobs(body: &[u8]) -> Result<Jobs, BadAnswer> {
    #[derive(Deserialize)]
    struct Answer {
        jobs: Vec<Job>,
    }
    #[derive(Deserialize)]
    struct Job {
        job_id: u32,
        #[serde(default)]
        name: Option<String>,
        #[serde(default)]
        user_name: Option<String>,
        job_state: String,
        #[serde(default)]
        state_reason: Option<String>,
        #[serde(default)]
        exit_code: Option<i64>,
        #[serde(default)]
        submit_time: Option<i64>,
        #[serde(default)]
        start_time: Option<i64>,
        #[serde(default)]
        nodes: Option<String>,
        #[serde(default)]
        gres_detail: Vec<String>,
        #[serde(default)]
        restart_cnt: Option<u32>,
        #[serde(default)]
        time_limit: Option<i64>,
    }
    let answer: Answer = parse(body)?;
    let job = |job: Job| SlurmJob {
        id: job.job_id,
        name: job.name.unwrap_or_default(),
        user: job.user_name.unwrap_or_default(),
        state: JobState::of([job.job_state.as_str()]),
        reason: job.state_reason.unwrap_or_default(),
        exit: exit(job.exit_code.unwrap_or_default()),
        submit_time: seconds(job.submit_time),
        start_time: seconds(job.start_time),
        nodes: job.nodes.unwrap_or_default(),
        gres: job.gres_detail,
        restarts: job.restart_cnt.unwrap_or_default(),
        time_limit_min: job.time_limit.and_then(|it| it.try_into().ok()),
    };
    Ok(Jobs { jobs: answer.jobs.into_iter().map(job).collect(), last_update: None, is_unchanged: false })
}

pub(super) fn nodes(body: &[u8]) -> Result<Vec<Node>, BadAnswer> {
    #[derive(Deserialize)]
    struct Answer {
        nodes: Vec<One>,
    }
    #[derive(Deserialize)]
    struct One {
        name: String,
        state: String,
        #[serde(default)]
        state_flags: Vec<String>,
        #[serde(default)]
        partitions: Vec<String>,
        #[serde(default)]
        gres: Option<String>,
        #[serde(default)]
        gres_used: Option<String>,
        #[serde(default)]
        idle_cpus: i64,
    }
    let answer: Answer = parse(body)?;
    let node = |node: One| Node {
        name: node.name,
        states: [node.state].into_iter().chain(node.state_flags).map(|it| it.to_ascii_uppercase()).collect(),
        partitions: node.partitions,
        gres: node.gres.unwrap_or_default(),
        gres_used: node.gres_used.unwrap_or_default(),
        idle_cpus: node.idle_cpus.try_into().unwrap_or_default(),
    };
    Ok(answer.nodes.into_iter().map(node).collect())
}

pub(super) fn partitions(body: &[u8]) -> Result<Vec<Partition>, BadAnswer> {
    #[derive(Deserialize)]
    struct Answer {
        partitions: Vec<One>,
    }
    #[derive(Deserialize)]
    struct One {
        name: String,
        state: String,
        #[serde(default)]
        max_time_limit: Option<i64>,
    }
    let answer: Answer = parse(body)?;
    let partition = |it: One| Partition {
        name: it.name,
        state: it.state.to_ascii_uppercase(),
        time_max_min: it.max_time_limit.and_then(|it| it.try_into().ok()),
    };
    Ok(answer.partitions.into_iter().map(partition).collect())
}

fn seconds(time: Option<i64>) -> u64 {
    time.and_then(|it| it.try_into().ok()).unwrap_or_default()
}

/// Source: wait(2): the signal in the low seven bits, else the code above the low eight.
fn exit(status: i64) -> Exit {
    let status = u32::try_from(status).unwrap_or_default();
    Exit { code: status >> 8 & 0xFF, signal: status & 0x7F }
}

#[cfg(test)]
mod tests {
    use super::super::dialect::{Dialect, Ending, tests::request};
    use super::*;

    #[test]
    fn a_request_is_said_as_22_05_understands_it() {
        let said = submission(&request());
        assert_eq!(said["script"], "#!/bin/sh\nexec true\n");
        let job = &said["job"];
        assert_eq!((&job["gres"], &job["nodes"]), (&json!("gpu:h100:4"), &json!("2")));
        assert_eq!((&job["tasks"], &job["tasks_per_node"], &job["cpus_per_task"]), (&json!(2), &json!(1), &json!(8)));
        assert_eq!(job["environment"], json!({ "PATH": "/usr/bin:/bin" }));
        assert_eq!(job.get("tres_per_node"), None, "it is refused there");
        assert_eq!(job.get("qos"), None);
    }

    #[test]
    fn gpus_that_do_not_divide_are_asked_for_in_all() {
        let gpus = Gpus::InAll { name: "gpu".into(), kind: Some("h100".into()), count: 5 };
        let said = submission(&Request { gpus, ..request() });
        assert_eq!(said["job"]["gpus"], "h100:5");
        assert_eq!((said["job"].get("gres"), said["job"].get("nodes")), (None, None));
    }

    #[test]
    fn jobs_are_read_as_22_05_writes_them() {
        let running = Dialect::V0038.jobs(include_bytes!("samples/job.running.v0038.json")).expect("jobs").jobs;
        let [job] = &running[..] else { panic!("{running:?}") };
        assert_eq!((job.id, job.state, job.nodes.as_str()), (1, JobState::Holding, "fab1-n1"));
        assert_eq!((job.name.as_str(), job.user.as_str()), ("fed-01J8ZK", "feduser"));
        assert_eq!(job.gres, ["gpu:h100:2(IDX:0-1)"]);
        assert_eq!((job.submit_time, job.start_time), (1_795_477_775, 1_795_477_775));
        assert_eq!(job.time_limit_min, Some(5));
        let done = Dialect::V0038.jobs(include_bytes!("samples/job.done.v0038.json")).expect("jobs").jobs;
        assert_eq!(done[0].state, JobState::Ended(Ending::Failed));
        assert_eq!(done[0].exit, Exit { code: 3, signal: 0 });
        assert_eq!(exit(9), Exit { code: 0, signal: 9 });
    }

    #[test]
    fn nodes_and_partitions_are_read_as_22_05_writes_them() {
        let nodes = Dialect::V0038.nodes(include_bytes!("samples/nodes.v0038.json")).expect("nodes");
        assert_eq!((nodes[0].name.as_str(), nodes[0].gres.as_str()), ("fab1-n1", "gpu:h100:4"));
        assert_eq!((nodes[0].states.as_slice(), nodes[0].idle_cpus), (&["IDLE".to_owned()][..], 16));
        assert_eq!(nodes[0].partitions, ["batch", "federated"]);
        let partitions = include_bytes!("samples/partitions.v0038.json");
        let partitions = Dialect::V0038.partitions(partitions).expect("partitions");
        assert_eq!((partitions[1].name.as_str(), partitions[1].state.as_str()), ("federated", "UP"));
        assert_eq!(partitions[1].time_max_min, Some(240));
    }
}
