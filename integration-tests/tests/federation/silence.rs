//! Hosts that fall silent: what may be run again is run elsewhere, what must not run twice never does.

use std::path::PathBuf;

use integration_tests::{Federation, TASKS, ended, eventually, look, reaches, submit, task};
use serde_json::{Value, json};

/// A task that says the time ten times a second, for longer than any test lasts.
fn clock(zones: &[&str], tags: Value) -> Value {
    let mut body = task(&["sh", "-c", "while :; do date +%s%N; sleep 0.1; done"]);
    body["resources"] = json!({"zones": zones});
    body["tags"] = tags;
    body
}

/// The state whose gateway has the task's current attempt.
fn host(task: &Value) -> String {
    let pool = task["logs"][0]["metadata"]["pool"].as_str().unwrap_or_default();
    pool.split('/').next().unwrap_or_default().to_owned()
}

/// Where an attempt of a task lies at its host.
fn attempt(federation: &Federation, state: &str, id: &str, number: u32) -> PathBuf {
    federation.gateway_folder(state).join("data/attempts").join(format!("{id}.{number}"))
}

/// The times that an attempt has said, in nanoseconds.
fn times(attempt: &std::path::Path) -> Vec<u64> {
    let text = std::fs::read_to_string(attempt.join("logs/0.stdout")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// Kills the host of a running task and waits until it runs at another.
async fn lose_the_host(federation: &mut Federation, tags: Value) -> (String, String, String) {
    let mut client = federation.client("FR", "researcher.FR");
    let id = submit(&mut client, &clock(&["DE", "FI"], tags)).await;
    let first = host(&reaches(&mut client, &id, &["RUNNING"]).await);
    federation.kill(&first);
    let second = eventually("the task runs at another host", async || {
        let task = client.read(&format!("{TASKS}/{id}?view=FULL")).await.ok()?;
        let host = host(&task);
        (task["state"] == "RUNNING" && host != first).then_some(host)
    })
    .await;
    (id, first, second)
}

#[tokio::test]
async fn a_job_that_may_be_run_again_leaves_a_host_that_is_gone() {
    let mut federation = Federation::start();
    let (id, first, second) = lose_the_host(&mut federation, json!({"restartable": "true"})).await;
    let old = attempt(&federation, &first, &id, 1);
    assert!(!old.join("done.json").exists(), "nobody told it to stop");
    federation.restart(&first).await;
    eventually("the host that is back stops what it had", async || old.join("done.json").exists().then_some(())).await;
    let mut client = federation.client("FR", "researcher.FR");
    let task = look(&mut client, &id).await;
    assert_eq!((task["state"].as_str(), host(&task)), (Some("RUNNING"), second));
    client.post(&format!("{TASKS}/{id}:cancel"), &json!({})).await.expect("a cancel");
    assert_eq!(ended(&mut client, &id).await["state"], "CANCELED");
}

#[tokio::test]
async fn a_job_that_must_not_run_twice_stops_by_itself_first() {
    let mut federation = Federation::start();
    let tags = json!({"restartable": "true", "exclusive": "true"});
    let (id, first, second) = lose_the_host(&mut federation, tags).await;
    let [old, new] = [(&first, 1), (&second, 2)].map(|(state, number)| attempt(&federation, state, &id, number));
    assert!(old.join("done.json").exists(), "it stopped before it began elsewhere");
    let began = eventually("the new attempt says the time", async || times(&new).first().copied()).await;
    let last = times(&old).last().copied().expect("the old attempt said the time");
    assert!(last < began, "the old attempt ran until {last}, the new one since {began}");
    // Its host is still silent, and the new one goes on.
    eventually("the new attempt goes on", async || (times(&new).len() > 30).then_some(())).await;
}

#[tokio::test]
async fn a_job_that_is_not_to_be_run_again_waits_for_its_host() {
    let mut federation = Federation::start();
    let mut client = federation.client("FR", "researcher.FR");
    let [alone, other] = [json!({"exclusive": "true"}), json!({"restartable": "true"})];
    let waits = submit(&mut client, &clock(&["FI"], alone)).await;
    let moves = submit(&mut client, &clock(&["FI"], other)).await;
    for id in [&waits, &moves] {
        reaches(&mut client, id, &["RUNNING"]).await;
    }
    federation.kill("FI");
    // By the time that the one is given up, the other could have been.
    reaches(&mut client, &moves, &["QUEUED"]).await;
    assert_eq!(look(&mut client, &waits).await["state"], "RUNNING");
    federation.restart("FI").await;
    let mut client = federation.client("FR", "researcher.FR");
    reaches(&mut client, &moves, &["RUNNING"]).await;
    assert_eq!(look(&mut client, &waits).await["state"], "RUNNING");
    assert!(!attempt(&federation, "FI", &waits, 1).join("done.json").exists(), "it ran through");
}

#[tokio::test]
async fn a_silent_host_gets_no_new_work_until_it_is_back() {
    let mut federation = Federation::start();
    federation.kill("FI");
    let mut client = federation.client("FR", "researcher.FR");
    eventually("the others have attested that it is silent", async || {
        let capacity = client.read("/v1/capacity").await.ok()?;
        let pools = capacity["pools"].as_array()?;
        let finnish = pools.iter().find(|it| it["pool"].as_str().is_some_and(|pool| pool.starts_with("FI/")))?;
        (finnish["quiet"] == true).then_some(())
    })
    .await;
    let mut body = task(&["true"]);
    body["resources"] = json!({"zones": ["FI"]});
    let id = submit(&mut client, &body).await;
    assert_eq!(look(&mut client, &id).await["state"], "QUEUED");
    federation.restart("FI").await;
    let mut client = federation.client("FR", "researcher.FR");
    assert_eq!(ended(&mut client, &id).await["state"], "COMPLETE");
}
