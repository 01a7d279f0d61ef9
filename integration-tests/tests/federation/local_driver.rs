//! The local driver through the whole federation: files in and out, exit codes, logs, limits.

use integration_tests::{Federation, TASKS, ended, eventually, reaches, submit, task};
use serde_json::json;

#[tokio::test]
async fn files_go_in_and_come_out_only_below_the_allowed_root() {
    let federation = Federation::start();
    let root = federation.folder().join("files");
    std::fs::write(root.join("in.txt"), "from a file").expect("a written file");
    let outside = federation.folder().join("genesis.json");
    std::os::unix::fs::symlink(&outside, root.join("link")).expect("a link");
    let url = |name: &str| format!("file://{}", root.join(name).display());
    let mut client = federation.client("FR", "researcher.FR");

    let mut body = task(&["cat"]);
    body["executors"] = json!([{
        "image": "none", "command": ["cat"], "stdin": "/in/a", "stdout": "/out/a",
    }]);
    body["inputs"] = json!([{"url": url("in.txt"), "path": "/in/a"}]);
    body["outputs"] = json!([{"url": url("out.txt"), "path": "/out/a"}]);
    let id = submit(&mut client, &body).await;
    let done = ended(&mut client, &id).await;
    assert_eq!(done["state"], "COMPLETE", "{done}");
    let written = std::fs::read_to_string(root.join("out.txt")).expect("an output");
    assert_eq!(written, "from a file");
    assert_eq!(done["logs"][0]["outputs"][0]["size_bytes"], "11");

    for hostile in [format!("file://{}", outside.display()), url("link"), "http://127.0.0.1:1/secret".into()] {
        body["inputs"] = json!([{"url": hostile, "path": "/in/a"}]);
        let id = submit(&mut client, &body).await;
        let done = ended(&mut client, &id).await;
        assert_eq!(done["state"], "SYSTEM_ERROR", "{hostile}: {done}");
    }
    let climbing = format!("file://{}/../genesis.json", root.display());
    body["inputs"] = json!([{"url": climbing, "path": "/in/a"}]);
    let answer = integration_tests::post_raw(&mut client, body.to_string().into_bytes(), &[]).await;
    assert_eq!(answer.status, 400, "{climbing} is not even accepted");
}

#[tokio::test]
async fn a_cancelled_task_gets_the_signal_first_and_may_end_well() {
    let federation = Federation::start();
    let mut client = federation.client("FR", "researcher.FR");
    let script = "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.1; done";
    let id = submit(&mut client, &task(&["sh", "-c", script])).await;
    eventually("it is up", async || {
        let path = format!("/v1/tasks/{id}/logs");
        let answer = client.call(http::Method::GET, &path, None, &[]).await.ok()?;
        (answer.body == "up\n").then_some(())
    })
    .await;
    client.post(&format!("{TASKS}/{id}:cancel"), &json!({})).await.expect("an answer");
    let done = ended(&mut client, &id).await;
    assert_eq!(done["state"], "CANCELED", "{done}");
    assert_eq!(done["logs"][0]["logs"][0]["stdout"], "up\nbye\n", "{done}");

    // A shell lets signals through by itself; this one has what it was given.
    let id = submit(&mut client, &task(&["sleep", "1000"])).await;
    reaches(&mut client, &id, &["RUNNING"]).await;
    client.post(&format!("{TASKS}/{id}:cancel"), &json!({})).await.expect("an answer");
    let done = ended(&mut client, &id).await;
    assert_eq!(done["logs"][0]["logs"][0]["exit_code"], 128 + 15, "{done}");
}

#[tokio::test]
async fn a_failing_executor_stops_the_task_unless_it_may_fail() {
    let federation = Federation::start();
    let mut client = federation.client("DE", "researcher.DE");
    let step = |command: &str, may_fail: bool| {
        json!({
            "image": "none", "command": ["sh", "-c", command], "ignore_error": may_fail,
        })
    };
    let mut body = task(&["true"]);
    body["executors"] =
        json!([step("exit 3", true), step("echo two", false), step("exit 4", false), step("echo never", false)]);
    let id = submit(&mut client, &body).await;
    let done = ended(&mut client, &id).await;
    assert_eq!(done["state"], "EXECUTOR_ERROR");
    let codes: Vec<_> =
        done["logs"][0]["logs"].as_array().expect("executor logs").iter().map(|it| it["exit_code"].clone()).collect();
    assert_eq!(json!(codes), json!([3, 0, 4]));
}

#[tokio::test]
async fn logs_are_read_by_offset_through_any_gateway() {
    let federation = Federation::start();
    let mut home = federation.client("FI", "researcher.FI");
    let mut body = integration_tests::gpu_task(&["sh", "-c", "printf abcdef"], 1, "H100");
    body["name"] = json!("prints");
    let id = submit(&mut home, &body).await;
    ended(&mut home, &id).await;
    let mut far = federation.client("DE", "researcher.FI");
    let path = format!("/v1/tasks/{id}/logs?executor=0&pipe=stdout&offset=2");
    let answer = far.call(http::Method::GET, &path, None, &[]).await.expect("an answer");
    assert_eq!(answer.status, 200, "{:?}", answer.body);
    assert_eq!(&answer.body[..], b"cdef");
    assert_eq!(answer.headers["entente-next-offset"], "6");
    assert_eq!(answer.headers["entente-end"], "true");
}

#[tokio::test]
async fn a_walltime_ends_a_task_with_its_reason() {
    let federation = Federation::start();
    let mut client = federation.client("DE", "researcher.DE");
    let mut body = task(&["sleep", "1000"]);
    body["resources"] = json!({"backend_parameters": {"walltime_s": "1"}});
    let id = submit(&mut client, &body).await;
    let done = ended(&mut client, &id).await;
    assert_eq!(done["state"], "SYSTEM_ERROR");
    assert!(done["logs"][0]["system_logs"].to_string().contains("walltime"), "{done}");
}
