//! TES 1.1 as clients see it: views, lists, filters, paging, cancel, aliases, idempotency.

use std::collections::BTreeSet;

use http::Method;
use integration_tests::{Federation, TASKS, ended, look, post_raw, reaches, submit, task};
use serde_json::{Value, json};

fn members(value: &Value) -> BTreeSet<&str> {
    value.as_object().expect("an object").keys().map(String::as_str).collect()
}

#[tokio::test]
async fn views_show_what_the_specification_says_and_nothing_else() {
    let federation = Federation::start();
    let mut client = federation.client("DE", "researcher.DE");
    let mut body = task(&["sh", "-c", "echo out; echo err >&2; cat $ENTENTE_ROOT/in/a"]);
    body["inputs"] = json!([{"path": "/in/a", "content": "input text"}]);
    body["description"] = json!("for people");
    let id = submit(&mut client, &body).await;
    ended(&mut client, &id).await;

    let minimal = client.read(&format!("{TASKS}/{id}")).await.expect("a task");
    assert_eq!(members(&minimal), BTreeSet::from(["id", "state"]));

    let basic = client.read(&format!("{TASKS}/{id}?view=BASIC")).await.expect("a task");
    assert_eq!(basic["inputs"][0].get("content"), None);
    assert_eq!(basic["logs"][0]["logs"][0].get("stdout"), None);
    assert_eq!(basic["logs"][0].get("system_logs"), None);
    assert_eq!(basic["logs"][0]["logs"][0]["exit_code"], 0);

    let full = look(&mut client, &id).await;
    assert_eq!(full["inputs"][0]["content"], "input text");
    assert_eq!(full["logs"][0]["logs"][0]["stderr"], "err\n");
    let allowed = BTreeSet::from([
        "id",
        "state",
        "name",
        "description",
        "inputs",
        "outputs",
        "resources",
        "executors",
        "volumes",
        "tags",
        "logs",
        "creation_time",
    ]);
    assert!(members(&full).is_subset(&allowed), "{full}");
}

#[tokio::test]
async fn lists_are_newest_first_and_page_and_filter() {
    let federation = Federation::start();
    let mut client = federation.client("FI", "researcher.FI");
    let mut ids = vec![];
    for number in 0..5 {
        let mut body = task(&["true"]);
        body["name"] = json!(format!("run-{number}"));
        body["tags"] = json!({"parity": (number % 2).to_string(), "all": "yes"});
        ids.insert(0, submit(&mut client, &body).await);
    }
    let mut listed = vec![];
    let mut token = String::new();
    loop {
        let path = format!("{TASKS}?page_size=2&page_token={token}");
        let page = client.read(&path).await.expect("a page");
        listed.extend(page["tasks"].as_array().expect("tasks").iter().map(|it| it["id"].clone()));
        match page["next_page_token"].as_str() {
            Some(next) if !next.is_empty() => token = next.to_owned(),
            _ => break,
        }
    }
    assert_eq!(json!(listed), json!(ids));

    let count = async |client: &mut gateway::cli::client::Client, query: &str| {
        let page = client.read(&format!("{TASKS}?{query}")).await.expect("a page");
        page["tasks"].as_array().expect("tasks").len()
    };
    for (query, expected) in [
        ("tag_key=parity&tag_value=1", 2),
        ("tag_key=parity&tag_value=", 5),
        ("tag_key=parity", 5),
        ("tag_key=missing", 0),
        ("tag_key=parity&tag_value=0&tag_key=all&tag_value=yes", 3),
        ("name_prefix=run-4", 1),
        ("name_prefix=other", 0),
    ] {
        assert_eq!(count(&mut client, query).await, expected, "{query}");
    }
    for bad in ["page_size=2048", "page_size=-1", "view=WHOLE", "state=DONE", "page_token=zzz"] {
        let answer = client.call(Method::GET, &format!("{TASKS}?{bad}"), None, &[]).await;
        assert_eq!(answer.expect("an answer").status, 400, "{bad}");
    }
}

#[tokio::test]
async fn the_aliases_serve_the_same_tasks_and_service_info_needs_no_token() {
    let federation = Federation::start();
    let mut client = federation.client("FR", "researcher.FR");
    let id = submit(&mut client, &task(&["true"])).await;
    for prefix in ["/ga4gh/tes/v1", "/v1", ""] {
        let task = client.read(&format!("{prefix}/tasks/{id}")).await.expect("a task");
        assert_eq!(task["id"], json!(id));
    }
    let mut anyone = federation.client_with("FR", None);
    let info = anyone.read("/ga4gh/tes/v1/service-info").await.expect("service-info");
    assert_eq!(info["type"], json!({"group": "org.ga4gh", "artifact": "tes", "version": "1.1.0"}));
    assert!(info["tesResources_backend_parameters"].as_array().is_some_and(|it| !it.is_empty()));
}

#[tokio::test]
async fn a_cancelled_task_ends_cancelled_and_frees_its_gpus() {
    let federation = Federation::start();
    let mut client = federation.client("FR", "researcher.FR");
    let body = integration_tests::gpu_task(&["sleep", "1000"], 8, "H100");
    let id = submit(&mut client, &body).await;
    reaches(&mut client, &id, &["RUNNING"]).await;
    for path in [format!("{TASKS}/{id}:cancel"), format!("{TASKS}/{id}%3Acancel")] {
        let answer = client.post(&path, &json!({})).await.expect("an answer");
        assert_eq!(answer, json!({}));
    }
    let done = ended(&mut client, &id).await;
    assert_eq!(done["state"], "CANCELED");
    integration_tests::eventually("the GPUs are free again", async || {
        let capacity = client.read("/v1/capacity").await.ok()?;
        let pools = capacity["pools"].as_array()?.clone();
        let pool = pools.iter().find(|it| it["pool"] == "FR/jean-zay/h100-80")?.clone();
        (pool["gpus_free"] == pool["gpus"]).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_repeated_submission_is_one_task() {
    let federation = Federation::start();
    let mut client = federation.client("DE", "researcher.FI");
    let body = task(&["true"]).to_string().into_bytes();
    let key = [("idempotency-key", "one-and-only")];
    let first = post_raw(&mut client, body.clone(), &key).await.json().expect("a task");
    let again = post_raw(&mut client, body.clone(), &key).await.json().expect("a task");
    assert_eq!(first, again, "the same key and body are the same task");
    let other = task(&["false"]).to_string().into_bytes();
    assert_eq!(post_raw(&mut client, other, &key).await.status, 422);

    // py-tes repeats a POST whose answer was lost under its next prefix.
    let repeated = task(&["echo", "once"]);
    let one = client.post("/ga4gh/tes/v1/tasks", &repeated).await.expect("a task");
    let two = client.post("/v1/tasks", &repeated).await.expect("a task");
    assert_eq!(one, two);
    let three = client.post("/v1/tasks", &repeated).await.expect("a task");
    assert_eq!(one, three, "still within the minute");
}

#[tokio::test]
async fn one_researcher_does_not_see_another_ones_tasks() {
    let federation = Federation::start();
    let mut french = federation.client("FR", "researcher.FR");
    let id = submit(&mut french, &task(&["echo", "secret"])).await;
    ended(&mut french, &id).await;
    for role in ["researcher.DE", "operator.FR", "agency"] {
        for gateway in ["FR", "DE"] {
            let mut other = federation.client(gateway, role);
            for path in [
                format!("{TASKS}/{id}?view=FULL"),
                format!("/v1/tasks/{id}/logs?executor=0&pipe=stdout&offset=0"),
                format!("/v1/tasks/{id}/why"),
            ] {
                let answer = other.call(Method::GET, &path, None, &[]).await.expect("an answer");
                assert_eq!(answer.status, 404, "{role} at {gateway}: {path}");
            }
            let path = format!("{TASKS}/{id}:cancel");
            let answer = other.call(Method::POST, &path, Some(b"{}".to_vec()), &[]).await;
            assert_eq!(answer.expect("an answer").status, 404, "{role} at {gateway}");
        }
    }
}

#[tokio::test]
async fn dropped_parameters_are_warned_about_and_not_kept() {
    let federation = Federation::start();
    let mut client = federation.client("FR", "researcher.FR");
    let mut body = task(&["true"]);
    body["resources"] = json!({"backend_parameters": {"VmSize": "huge"}, "cpu_cores": 1.5});
    let id = submit(&mut client, &body).await;
    let done = ended(&mut client, &id).await;
    assert!(done["resources"]["backend_parameters"].get("VmSize").is_none(), "{done}");
    assert_eq!(done["resources"]["cpu_cores"], 2);
    let logs = done["logs"][0]["system_logs"].to_string();
    assert!(logs.to_lowercase().contains("vmsize"), "{logs}");
}
