//! Gateways that are killed: nothing acknowledged is lost, nothing runs twice.

use integration_tests::{
    Federation, TASKS, ended, eventually, gpu_task, look, post_raw, reaches, submit, task, unconfined,
};
use serde_json::{Value, json};

/// A task that says when it starts, and runs so long that some are interrupted.
fn witness(name: &str) -> Value {
    let mut body = gpu_task(&["sh", "-c", "echo started; sleep 2; echo ended"], 4, "H100");
    body["name"] = json!(name);
    body["resources"]["zones"] = json!(["FR"]);
    body
}

/// How often the task's command was started, by its own output.
fn starts(task: &Value) -> usize {
    let printed = task["logs"][0]["logs"][0]["stdout"].as_str().unwrap_or_default();
    printed.matches("started").count()
}

#[tokio::test]
async fn any_gateway_may_be_killed_while_a_job_runs() {
    for victim in ["FR", "DE", "FI"] {
        let mut federation = Federation::start_with(unconfined).await;
        let mut client = federation.client("DE", "researcher.DE");
        let go = federation.folder().join("go");
        let script = format!("echo started; while [ ! -e {} ]; do sleep 0.1; done; echo ended", go.display());
        let mut body = gpu_task(&["sh", "-c", &script], 4, "H100");
        body["resources"]["zones"] = json!(["FR"]);
        let id = submit(&mut client, &body).await;
        reaches(&mut client, &id, &["RUNNING"]).await;
        federation.kill(victim);
        federation.restart(victim).await;
        let mut client = federation.client("DE", "researcher.DE");
        std::fs::write(go, "").expect("a file");
        let done = ended(&mut client, &id).await;
        assert_eq!(done["state"], "COMPLETE", "{victim} was killed: {done}");
        assert_eq!(starts(&done), 1, "{victim} was killed: {done}");
    }
}

#[tokio::test]
async fn a_host_killed_at_any_moment_of_a_dispatch_runs_each_job_once() {
    let mut federation = Federation::start();
    for round in 0..5 {
        let mut client = federation.client("FI", "researcher.FI");
        let mut ids = vec![];
        for number in 0..4 {
            let body = witness(&format!("{round}-{number}"));
            ids.push(submit(&mut client, &body).await);
        }
        federation.kill("FR");
        federation.restart("FR").await;
        for id in ids {
            let done = ended(&mut client, &id).await;
            assert_eq!(done["state"], "COMPLETE", "{done}");
            assert_eq!(starts(&done), 1, "{done}");
        }
    }
}

#[tokio::test]
async fn two_gateways_go_on_without_the_third() {
    let mut federation = Federation::start();
    federation.kill("FI");
    let mut client = federation.client("DE", "researcher.DE");
    let body = gpu_task(&["echo", "still here"], 4, "H100");
    let id = eventually("a new leader places the job", async || {
        let answer = client.post(TASKS, &body).await.ok()?;
        Some(answer["id"].as_str()?.to_owned())
    })
    .await;
    let done = ended(&mut client, &id).await;
    assert_eq!(done["state"], "COMPLETE", "{done}");
    federation.restart("FI").await;
    let mut returned = federation.client("FI", "researcher.DE");
    assert_eq!(look(&mut returned, &id).await["state"], "COMPLETE");
}

#[tokio::test]
async fn without_a_quorum_nothing_is_promised() {
    let mut federation = Federation::start();
    federation.kill("FI");
    federation.kill("FR");
    let mut client = federation.client("DE", "researcher.DE");
    let body = task(&["true"]).to_string().into_bytes();
    let answer = post_raw(&mut client, body, &[]).await;
    assert!([429, 503].contains(&answer.status.as_u16()), "{}: {:?}", answer.status, answer.body);
    assert!(answer.headers.contains_key("retry-after"));
    let capacity = client.read("/v1/capacity").await.expect("reads go on");
    assert!(capacity["pools"].as_array().is_some_and(|it| !it.is_empty()));
}
