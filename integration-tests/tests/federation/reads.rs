//! What every gateway answers from its own replica: as fresh as it is asked for.

use http::Method;
use integration_tests::{Federation, TASKS, gpu_task, post_raw};
use serde_json::{Value, json};

const POOL: &str = "FR/jean-zay/h100-80";

fn revision_of(answer: &gateway::cli::client::Answer) -> u64 {
    answer.headers["entente-revision"].to_str().expect("text").parse().expect("a number")
}

#[tokio::test]
async fn every_gateway_shows_a_task_at_the_revision_that_its_submission_names() {
    let federation = Federation::start();
    // Relayed, as most of a researcher's calls abroad are.
    let mut abroad = federation.client("DE", "researcher.FI");
    let body = gpu_task(&["sleep", "1000"], 8, "H100").to_string().into_bytes();
    let answer = post_raw(&mut abroad, body, &[]).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let written = revision_of(&answer);
    for state in ["FR", "DE", "FI"] {
        let mut agency = federation.client(state, "agency");
        for how in [format!("revision={written}"), "consistency=linearizable".into()] {
            let path = format!("/v1/capacity?{how}");
            let answer = agency.call(Method::GET, &path, None, &[]).await.expect("an answer");
            let shown: Value = answer.json().expect("capacity");
            assert!(revision_of(&answer) >= written && shown["revision"] == revision_of(&answer), "{state} {how}");
            let pool = shown["pools"].as_array().expect("pools").iter().find(|it| it["pool"] == POOL).expect("a pool");
            let held = pool["gpus"].as_u64().expect("GPUs") - pool["gpus_free"].as_u64().expect("free ones");
            assert_eq!(held, 8, "{state} {how}: {pool}");
            assert_eq!(
                (&pool["withdrawn"], &pool["price_milli_eur_per_gpu_hour"]),
                (&json!(false), &json!(0)),
                "{pool}"
            );
        }
        for bad in ["consistency=strong", "revision=-1", "revisions=1"] {
            let path = format!("/v1/capacity?{bad}");
            assert_eq!(agency.call(Method::GET, &path, None, &[]).await.expect("an answer").status, 400, "{bad}");
        }
    }
}

#[tokio::test]
async fn a_dry_run_lists_every_pool_with_each_states_word_and_submits_nothing() {
    let federation = Federation::start();
    let mut finland = federation.client("FI", "researcher.FI");
    let mut asked = gpu_task(&["true"], 8, "H100");
    asked["resources"]["zones"] = json!(["FR"]);
    let shown = finland.post("/v1/explain", &asked).await.expect("an explanation");
    let capacity = finland.read("/v1/capacity").await.expect("capacity");
    let pools = shown["pools"].as_array().expect("pools");
    assert_eq!(pools.len(), capacity["pools"].as_array().expect("pools").len());
    for pool in pools {
        assert_eq!((&pool["export"]["state"], &pool["host"]["state"]), (&json!("FI"), &pool["state"]), "{pool}");
        let is_outside = pool["capacity"] == "outside the zones that the task names";
        assert_eq!(is_outside, pool["state"] != "FR", "{pool}");
        assert_eq!(pool["capacity"] == "fits now", pool["pool"] == POOL, "{pool}");
    }
    assert!(shown["summary"].as_str().is_some_and(|it| it.ends_with(POOL)), "{shown}");

    // What fits nowhere says of each pool why.
    let refused = post_raw(&mut finland, gpu_task(&["true"], 8, "GB300").to_string().into_bytes(), &[]).await;
    let problem: Value = serde_json::from_slice(&refused.body).expect("a problem");
    let pools = problem["pools"].as_array().expect("pools");
    assert_eq!((refused.status.as_u16(), &problem["code"]), (400, &json!("no-pool-fits")));
    assert!(pools.iter().all(|pool| pool["capacity"] == "another device model"), "{problem}");

    assert_eq!(finland.read(TASKS).await.expect("a list")["tasks"], json!([]));
}
