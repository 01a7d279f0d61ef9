//! Hostile and mistaken submissions: each gets its own 4xx, says what to change, and leaves nothing.

use integration_tests::{Federation, TASKS, post_raw, task};
use serde_json::{Value, json};

/// A body that has to be refused, with the status and the stable code.
struct Row {
    what: &'static str,
    body: Vec<u8>,
    status: u16,
}

fn row(what: &'static str, status: u16, change: impl FnOnce(&mut Value)) -> Row {
    let mut body = task(&["true"]);
    change(&mut body);
    Row { what, body: body.to_string().into_bytes(), status }
}

fn parameters(task: &mut Value, name: &str, value: &str) {
    task["resources"] = json!({"backend_parameters": {name: value}});
}

fn rows() -> Vec<Row> {
    let raw = |what, status, body: &[u8]| Row { what, body: body.to_vec(), status };
    vec![
        raw("no JSON", 400, b"{\"executors\": ["),
        raw("not even text", 400, &[0xff, 0xfe, 0x00]),
        raw("an empty body", 400, b""),
        raw("a list", 400, b"[]"),
        raw("a member twice", 400, br#"{"name":"a","name":"b","executors":[{"image":"a","command":["a"]}]}"#),
        raw("deep nesting", 400, "[".repeat(100_000).as_bytes()),
        raw("a huge body", 413, &vec![b' '; 5 * 1024 * 1024]),
        row("no executors", 400, |it| it["executors"] = json!([])),
        row("an unknown member", 400, |it| it["colour"] = json!("red")),
        row("an empty command", 400, |it| it["executors"][0]["command"] = json!([])),
        row("a number for a name", 400, |it| it["name"] = json!(7)),
        row("2^60 GPUs", 400, |it| parameters(it, "gpu_count", "1152921504606846976")),
        row("negative GPUs", 400, |it| parameters(it, "gpu_count", "-1")),
        row("GPUs in words", 400, |it| parameters(it, "gpu_count", "eight")),
        row("GPUs with an exponent", 400, |it| parameters(it, "gpu_count", "1e3")),
        row("an endless walltime", 400, |it| parameters(it, "walltime_s", "99999999999")),
        row("negative memory", 400, |it| it["resources"] = json!({"ram_gb": -1})),
        row("a model with shell characters", 400, |it| parameters(it, "gpu_model", "h100;reboot")),
        row("an unknown data class", 400, |it| it["tags"] = json!({"data_class": "secret"})),
        row("an unknown state", 400, |it| it["resources"] = json!({"zones": ["XX"]})),
        row("an unsupported parameter, strictly", 400, |it| {
            parameters(it, "VmSize", "huge");
            it["resources"]["backend_parameters_strict"] = json!(true);
        }),
        row("an input that climbs out", 400, |it| {
            it["inputs"] = json!([{"path": "/data/../../etc/passwd", "content": "x"}]);
        }),
        row("an environment name with =", 400, |it| {
            it["executors"][0]["env"] = json!({"A=B": "c"});
        }),
        row("a task for 10,000 H100", 400, |it| {
            it["resources"] = json!({"backend_parameters": {"gpu_count": "10000", "gpu_model": "H100"}});
        }),
    ]
}

#[tokio::test]
async fn every_bad_submission_is_refused_in_its_own_words_and_leaves_nothing() {
    let federation = Federation::start();
    for Row { what, body, status } in rows() {
        let mut client = federation.client("FR", "researcher.FR");
        let answer = post_raw(&mut client, body, &[]).await;
        assert_eq!(answer.status, status, "{what}: {:?}", answer.body);
        let kind = answer.headers.get("content-type").expect("a content type");
        assert_eq!(kind, "application/problem+json", "{what}");
        let problem: Value = serde_json::from_slice(&answer.body).expect("a problem document");
        assert_eq!(problem["status"], status, "{what}");
        assert_eq!(problem["fault"], "client", "{what}: {problem}");
        assert!(problem["code"].as_str().is_some_and(|it| !it.is_empty()), "{what}");
        assert!(problem["detail"].as_str().is_some_and(|it| it.len() > 10), "{what}: {problem}");
    }
    let mut client = federation.client("FR", "researcher.FR");
    let tasks = client.read(TASKS).await.expect("a list");
    assert_eq!(tasks["tasks"], json!([]), "nothing was half-submitted");
}

#[tokio::test]
async fn names_with_metacharacters_are_only_names() {
    let federation = Federation::start();
    let mut client = federation.client("FR", "researcher.FR");
    let witness = federation.folder().join("witness");
    let hostile = format!("$(touch {0}) `touch {0}`; touch {0} #\u{202e}", witness.display());
    let mut body = task(&["printf", "%s", &hostile]);
    body["name"] = json!(hostile);
    body["tags"] = json!({"note": hostile});
    body["executors"][0]["env"] = json!({"NOTE": hostile});
    let id = integration_tests::submit(&mut client, &body).await;
    let done = integration_tests::ended(&mut client, &id).await;
    assert_eq!(done["state"], "COMPLETE", "{done}");
    assert_eq!(done["name"], json!(hostile));
    assert_eq!(done["logs"][0]["logs"][0]["stdout"], json!(hostile));
    assert!(!witness.exists(), "a name was run");
}
