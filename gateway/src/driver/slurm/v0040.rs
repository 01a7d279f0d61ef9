//! slurmrestd's v0.0.40 to v0.0.42, as Slurm 23.11 to 25.05 speak them.
//!
//! Read in Slurm's source and in recorded answers, never run here: numbers are `{set, infinite, number}`, states are
//! lists of words, GPUs go into `tres_per_node`, `environment` is a list, and `requeue` is heeded. That nothing has changed
//! since `update_time` is said with 200, an empty list and a `last_update` of 0, which must not be read as no jobs.

use serde::Deserialize;
use serde_json::{Value, json};

use super::dialect::{BadAnswer, Exit, Gpus, JobState, Jobs, Node, Partition, Request, SlurmJob, parse};

/// A number that may be missing or endless. Some fields of some versions are plain.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(untagged)]
enum Number {
    Plain(i64),
    Marked {
        #[serde(default)]
        set: bool,
        #[serde(default)]
        infinite: bool,
        #[serde(default)]
        number: i64,
    },
    #[default]
    Missing,
}

impl Number {
    fn get<T: TryFrom<i64>>(self) -> Option<T> {
        match self {
            Number::Plain(number) | Number::Marked { set: true, infinite: false, number } => number.try_into().ok(),
            Number::Marked { .. } | Number::Missing => None,
        }
    }
}

/// One word or several.
#[derive(Deserialize)]
#[serde(untagged)]
enum Words {
    One(String),
    Many(Vec<String>),
}

impl Words {
    fn into_vec(self) -> Vec<String> {
        match self {
            Words::One(word) => vec![word],
            Words::Many(words) => words,
        }
    }
}

pub(super) fn submission(request: &Request) -> Value {
    let number = |number: u64| json!({ "set": true, "infinite": false, "number": number });
    let environment: Vec<String> = request.environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let mut job = json!({
        "script": request.script,
        "name": request.name,
        "comment": request.comment,
        "partition": request.partition,
        "time_limit": number(request.time_limit_min.into()),
        "current_working_directory": request.folder,
        "standard_output": request.output,
        "standard_error": request.output,
        "requeue": false,
        "environment": environment,
    });
    match &request.gpus {
        Gpus::None => {}
        Gpus::PerNode(gres) => job["tres_per_node"] = format!("gres/{gres}").into(),
        Gpus::InAll { name, kind: Some(kind), count } => {
            job["tres_per_job"] = format!("gres/{name}:{kind}:{count}").into();
        }
        Gpus::InAll { name, kind: None, count } => job["tres_per_job"] = format!("gres/{name}:{count}").into(),
    }
    if !matches!(request.gpus, Gpus::InAll { .. }) {
        job["nodes"] = request.nodes.to_string().into();
        job["tasks"] = request.nodes.into();
        job["tasks_per_node"] = 1.into();
    }
    let optional = [
        ("cpus_per_task", request.cpus_per_node.map(Value::from)),
        ("memory_per_node", request.memory_per_node_mib.map(number)),
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
    json!({ "job": job })
}

pub(super) fn jobs(body: &[u8]) -> Result<Jobs, BadAnswer> {
    #[derive(Deserialize)]
    struct Answer {
        jobs: Vec<Job>,
        #[serde(default)]
        last_update: Number,
    }
    #[derive(Deserialize)]
    struct Job {
        #[serde(default)]
        job_id: Number,
        #[serde(default)]
        name: Option<String>,
        #[serde(default)]
        user_name: Option<String>,
        job_state: Words,
        #[serde(default)]
        state_reason: Option<String>,
        #[serde(default)]
        exit_code: Option<Code>,
        #[serde(default)]
        submit_time: Number,
        #[serde(default)]
        start_time: Number,
        #[serde(default)]
        nodes: Option<String>,
        #[serde(default)]
        gres_detail: Vec<String>,
        #[serde(default)]
        restart_cnt: Number,
        #[serde(default)]
        time_limit: Number,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Code {
        return_code: Number,
        signal: Signal,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Signal {
        id: Number,
    }
    let answer: Answer = parse(body)?;
    let job = |job: Job| {
        let words = job.job_state.into_vec();
        let exit = job.exit_code.unwrap_or_default();
        SlurmJob {
            id: job.job_id.get().unwrap_or_default(),
            name: job.name.unwrap_or_default(),
            user: job.user_name.unwrap_or_default(),
            state: JobState::of(words.iter().map(String::as_str)),
            reason: job.state_reason.unwrap_or_default(),
            exit: Exit {
                code: exit.return_code.get().unwrap_or_default(),
                signal: exit.signal.id.get().unwrap_or_default(),
            },
            submit_time: job.submit_time.get().unwrap_or_default(),
            start_time: job.start_time.get().unwrap_or_default(),
            nodes: job.nodes.unwrap_or_default(),
            gres: job.gres_detail,
            restarts: job.restart_cnt.get().unwrap_or_default(),
            time_limit_min: job.time_limit.get(),
        }
    };
    let last_update: Option<u64> = answer.last_update.get();
    Ok(Jobs {
        is_unchanged: answer.jobs.is_empty() && last_update.is_none_or(|it| it == 0),
        jobs: answer.jobs.into_iter().map(job).collect(),
        last_update,
    })
}

pub(super) fn nodes(body: &[u8]) -> Result<Vec<Node>, BadAnswer> {
    #[derive(Deserialize)]
    struct Answer {
        nodes: Vec<One>,
    }
    #[derive(Deserialize)]
    struct One {
        name: String,
        state: Words,
        #[serde(default)]
        partitions: Vec<String>,
        #[serde(default)]
        gres: Option<String>,
        #[serde(default)]
        gres_used: Option<String>,
        #[serde(default)]
        alloc_idle_cpus: Number,
    }
    let answer: Answer = parse(body)?;
    let node = |node: One| Node {
        name: node.name,
        states: node.state.into_vec().into_iter().map(|it| it.to_ascii_uppercase()).collect(),
        partitions: node.partitions,
        gres: node.gres.unwrap_or_default(),
        gres_used: node.gres_used.unwrap_or_default(),
        idle_cpus: node.alloc_idle_cpus.get().unwrap_or_default(),
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
        partition: State,
        #[serde(default)]
        maximums: Maximums,
    }
    #[derive(Deserialize)]
    struct State {
        state: Words,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Maximums {
        time: Number,
    }
    let answer: Answer = parse(body)?;
    let partition = |it: One| Partition {
        name: it.name,
        state: it.partition.state.into_vec().join(" ").to_ascii_uppercase(),
        time_max_min: it.maximums.time.get(),
    };
    Ok(answer.partitions.into_iter().map(partition).collect())
}

#[cfg(test)]
mod tests {
    use super::super::dialect::{Dialect, Ending, tests::request};
    use super::*;

    const V0042: Dialect = Dialect::V0040(42);

    #[test]
    fn a_request_is_said_as_newer_versions_understand_it() {
        let said = submission(&request());
        let job = &said["job"];
        assert_eq!(job["script"], "#!/bin/sh\nexec true\n");
        assert_eq!((&job["tres_per_node"], &job["nodes"]), (&json!("gres/gpu:h100:4"), &json!("2")));
        assert_eq!(job.get("gres"), None, "it is ignored there");
        assert_eq!(job["environment"], json!(["PATH=/usr/bin:/bin"]));
        assert_eq!(job["time_limit"], json!({ "set": true, "infinite": false, "number": 60 }));
        let gpus = Gpus::InAll { name: "gpu".into(), kind: None, count: 5 };
        assert_eq!(submission(&Request { gpus, ..request() })["job"]["tres_per_job"], "gres/gpu:5");
    }

    /// In the form of answers recorded from 24.11, shortened.
    fn job(state: &str, exit: &str) -> SlurmJob {
        let body = format!(
            r#"{{"jobs":[{{"job_id":6371,"name":"ent-x.1","user_name":"alice","job_state":{state},
              "state_reason":"None","exit_code":{exit},
              "submit_time":{{"set":true,"infinite":false,"number":1762788887}},
              "time_limit":{{"set":false,"infinite":true,"number":0}},"nodes":"ia[1-2]","restart_cnt":1,
              "gres_detail":["gpu:h100:2(IDX:0-1),gpu:h200:4(IDX:2-5)","gpu:h100:2(IDX:0-1)"]}}],
              "last_update":{{"set":true,"infinite":false,"number":1762788890}},"errors":[],"warnings":[]}}"#
        );
        let mut jobs = V0042.jobs(body.as_bytes()).expect("jobs");
        assert_eq!(jobs.last_update, Some(1_762_788_890));
        jobs.jobs.remove(0)
    }

    #[test]
    fn jobs_are_read_as_newer_versions_write_them() {
        const FINE: &str = r#"{"status":["SUCCESS"],"return_code":{"set":true,"infinite":false,"number":0},
            "signal":{"id":{"set":false,"infinite":false,"number":0},"name":""}}"#;
        let running = job(r#"["RUNNING"]"#, FINE);
        assert_eq!((running.id, running.state, running.restarts), (6371, JobState::Holding, 1));
        assert_eq!((running.submit_time, running.time_limit_min), (1_762_788_887, None));
        assert_eq!((running.nodes.as_str(), running.gres.len()), ("ia[1-2]", 2));
        let releasing = job(r#"["COMPLETED","COMPLETING"]"#, FINE);
        assert_eq!(releasing.state, JobState::Holding);
        let killed = job(
            r#"["TIMEOUT"]"#,
            r#"{"status":["SIGNALED"],"return_code":{"set":false,"infinite":false,"number":0},
               "signal":{"id":{"set":true,"infinite":false,"number":15},"name":"TERM"}}"#,
        );
        assert_eq!((killed.state, killed.exit), (JobState::Ended(Ending::Timeout), Exit { code: 0, signal: 15 }));
    }

    #[test]
    fn no_change_is_not_no_jobs() {
        let check = |last_update: &str| {
            let body = format!(r#"{{"jobs":[],"last_update":{last_update},"errors":[],"warnings":[]}}"#);
            V0042.jobs(body.as_bytes()).expect("jobs").is_unchanged
        };
        assert!(check(r#"{"set":true,"infinite":false,"number":0}"#));
        assert!(check(r#"{"set":false,"infinite":false,"number":0}"#));
        assert!(!check(r#"{"set":true,"infinite":false,"number":1762788890}"#));
    }

    #[test]
    fn nodes_and_partitions_are_read_as_newer_versions_write_them() {
        let body = br#"{"nodes":[{"name":"ia1","state":["MIXED","DRAIN"],"gres":"gpu:h100:2,gpu:h200:4",
            "gres_used":"gpu:h100:0(IDX:N/A),gpu:h200:0(IDX:N/A)","alloc_idle_cpus":31,"partitions":["ia"]}],"errors":[]}"#;
        let nodes = V0042.nodes(body).expect("nodes");
        assert_eq!((nodes[0].states.join(" ").as_str(), nodes[0].idle_cpus), ("MIXED DRAIN", 31));
        let body = br#"{"partitions":[{"name":"ia","partition":{"state":["UP"]},
            "maximums":{"time":{"set":true,"infinite":false,"number":120}}},
            {"name":"b","partition":{"state":["DRAIN"]},"maximums":{"time":{"set":false,"infinite":true,"number":0}}}],
            "errors":[]}"#;
        let partitions = V0042.partitions(body).expect("partitions");
        assert_eq!((partitions[0].state.as_str(), partitions[0].time_max_min), ("UP", Some(120)));
        assert_eq!((partitions[1].state.as_str(), partitions[1].time_max_min), ("DRAIN", None));
    }
}
