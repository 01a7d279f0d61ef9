//! What the demo tells, as tests.

use gateway::cli::client::Client;
use integration_tests::{Federation, TASKS, ended, eventually, gpu_task, post_raw, reaches, submit, task};
use serde_json::{Value, json};

#[tokio::test]
async fn a_finnish_job_runs_on_french_gpus() {
    let federation = Federation::start();
    let mut finland = federation.client("FI", "researcher.FI");
    let id = submit(&mut finland, &gpu_task(&["sh", "-c", "echo $CUDA_VISIBLE_DEVICES"], 8, "H100")).await;
    let done = ended(&mut finland, &id).await;
    assert_eq!(done["state"], "COMPLETE", "{done}");
    assert_eq!(done["logs"][0]["metadata"]["pool"], "FR/jean-zay/h100-80");
    let printed = done["logs"][0]["logs"][0]["stdout"].as_str().expect("an output");
    assert_eq!(printed.trim().split(',').count(), 8, "eight devices: {printed}");
}

#[tokio::test]
async fn french_health_data_stays_in_france_and_the_answer_says_why() {
    let federation = Federation::start();
    let mut germany = federation.client("DE", "researcher.FR");
    let mut health = task(&["true"]);
    health["tags"] = json!({"data_class": "health"});
    health["resources"] = json!({"backend_parameters": {"gpu_count": "4"}});
    let id = submit(&mut germany, &health).await;
    let done = ended(&mut germany, &id).await;
    assert_eq!(done["state"], "COMPLETE", "{done}");
    let pool = done["logs"][0]["metadata"]["pool"].as_str().expect("a pool");
    assert!(pool.starts_with("FR/"), "{pool}");

    let why = germany.read(&format!("/v1/tasks/{id}/why")).await.expect("an answer");
    let denied: Vec<&Value> = pools(&why).filter(|it| it["export"]["permitted"] == false).collect();
    assert!(!denied.is_empty(), "{why}");
    for pool in denied {
        let rule = &pool["export"]["rules"][0];
        assert_eq!(pool["export"]["state"], "FR");
        assert!(rule["title"].as_str().is_some_and(|it| !it.is_empty()), "{rule}");
        assert!(rule["law"].as_str().is_some_and(|it| it.contains("L1111-8")), "{rule}");
    }
}

#[tokio::test]
async fn what_no_state_allows_is_refused_with_every_denial_and_leaves_nothing() {
    let federation = Federation::start();
    let mut finland = federation.client("FI", "researcher.FI");
    let mut guidance = gpu_task(&["true"], 1, "H100");
    guidance["tags"] = json!({"purpose": "industry", "dual_use": "true"});
    let answer = post_raw(&mut finland, serde_json::to_vec(&guidance).expect("JSON"), &[]).await;
    assert_eq!(answer.status, 403);
    let problem: Value = serde_json::from_slice(&answer.body).expect("a problem document");
    assert_eq!(problem["code"], "every-state-denied");
    for state in ["FR", "DE", "FI"] {
        let denies = |it: &Value| it["state"] == state && it["permitted"] == false;
        assert!(pools(&problem).any(denies), "{state} should deny: {problem}");
    }
    let tasks = finland.read(TASKS).await.expect("a list");
    assert_eq!(tasks["tasks"], json!([]));
}

/// A task for some of the 1,456 GPUs of this pool.
fn in_jean_zay(command: &[&str], gpus: u32) -> Value {
    let mut body = gpu_task(command, gpus, "H100");
    body["resources"]["zones"] = json!(["FR/jean-zay"]);
    body
}

/// What is said of this task that waits, and of the pool.
async fn waits_for_a_share(client: &mut Client, id: &str) -> (String, Value) {
    let why = client.read(&format!("/v1/tasks/{id}/why")).await.expect("an answer");
    assert_eq!((&why["state"], &why["attempts"]), (&json!("QUEUED"), &json!([])), "{why}");
    let pool = pools(&why).find(|it| it["pool"] == "FR/jean-zay/h100-80").expect("the pool").clone();
    (why["summary"].as_str().expect("words").to_owned(), pool)
}

async fn cancel(client: &mut Client, id: &str) {
    client.post(&format!("{TASKS}/{id}:cancel"), &json!({})).await.expect("an answer");
}

/// France lends no other state more than 60 % of a pool.
#[tokio::test]
async fn what_goes_beyond_a_states_share_waits_until_that_is_smaller() {
    let federation = Federation::start();
    let mut finland = federation.client("FI", "researcher.FI");
    let most = submit(&mut finland, &in_jean_zay(&["sleep", "600"], 880)).await;
    reaches(&mut finland, &most, &["RUNNING"]).await;

    let small = in_jean_zay(&["true"], 8);
    let asked = finland.post("/v1/explain", &small).await.expect("an answer");
    let summary = "FI holds as much of FR/jean-zay/h100-80 as it may; a task waits until it holds less there";
    assert_eq!(asked["summary"], summary);
    let waits = submit(&mut finland, &small).await;
    // It holds up nobody else.
    let mut germany = federation.client("DE", "researcher.DE");
    let beside = submit(&mut germany, &small).await;
    assert_eq!(ended(&mut germany, &beside).await["state"], "COMPLETE");

    let (summary, pool) = waits_for_a_share(&mut finland, &waits).await;
    assert_eq!(summary, "waits until FI holds less of the pools that it may run in");
    assert_eq!(pool["capacity"], "fits when FI holds less than 60 % of its GPUs; it holds 61 %");
    assert_eq!((&pool["permitted"], &pool["limit"]["below_percent"]), (&json!(true), &json!(60)), "{pool}");
    assert_eq!(pool["limit"]["denial"]["rules"][0]["id"], "fr-share", "{pool}");
    cancel(&mut finland, &most).await;
    assert_eq!(ended(&mut finland, &waits).await["state"], "COMPLETE");
}

/// Germany itself lets no work for industry leave for a pool of which its jobs hold 20 %.
#[tokio::test]
async fn what_its_own_state_holds_back_for_its_share_waits_too() {
    let federation = Federation::start();
    let mut germany = federation.client("DE", "researcher.DE");
    let industrial = |command: &[&str], gpus| {
        let mut body = in_jean_zay(command, gpus);
        body["tags"] = json!({"purpose": "industry"});
        body
    };
    let most = submit(&mut germany, &industrial(&["sleep", "600"], 296)).await;
    reaches(&mut germany, &most, &["RUNNING"]).await;
    let waits = submit(&mut germany, &industrial(&["true"], 8)).await;
    let (_, pool) = waits_for_a_share(&mut germany, &waits).await;
    assert_eq!(pool["limit"]["below_percent"], 20, "{pool}");
    assert_eq!(pool["limit"]["denial"]["state"], "DE", "{pool}");
    // Research has other rules.
    let research = submit(&mut germany, &in_jean_zay(&["true"], 8)).await;
    assert_eq!(ended(&mut germany, &research).await["state"], "COMPLETE");
    cancel(&mut germany, &most).await;
    assert_eq!(ended(&mut germany, &waits).await["state"], "COMPLETE");
}

#[tokio::test]
async fn capacity_shows_every_state_with_the_age_of_each_figure() {
    let federation = Federation::start();
    let mut germany = federation.client("DE", "agency");
    for state in ["FR", "DE", "FI"] {
        eventually(&format!("fresh capacity of {state}"), async || {
            let capacity = germany.read("/v1/capacity").await.ok()?;
            let pool = pools(&capacity).find(|it| it["state"] == state)?.clone();
            (pool["age_ms"].as_u64()? < 2_000 && pool["gpus"].as_u64()? > 0).then_some(())
        })
        .await;
    }
}

fn pools(answer: &Value) -> impl Iterator<Item = &Value> {
    answer["pools"].as_array().expect("pools").iter()
}
