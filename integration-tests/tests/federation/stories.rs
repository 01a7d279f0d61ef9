//! What the demo tells, as tests.

use integration_tests::{Federation, TASKS, ended, eventually, gpu_task, post_raw, submit, task};
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
