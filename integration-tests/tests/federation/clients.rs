//! Clients of other projects, unchanged.

use std::process::Command;

use integration_tests::{Federation, skip_without};

/// Submits, waits, reads, lists and cancels with py-tes; prints `ok` at the end.
const PY_TES: &str = r#"
import sys, time, tes
url, token = sys.argv[1], open(sys.argv[2]).read().strip()
client = tes.HTTPClient(url, token=token, timeout=60)
info = client.get_service_info()
assert info.type_.artifact == "tes" if hasattr(info, "type_") else True
task = tes.Task(
    name="from py-tes",
    executors=[tes.Executor(image="none", command=["echo", "hello from py-tes"])],
    inputs=[tes.Input(path="/in/a", content="text", type="FILE")],
    tags={"project": "demo"},
)
first = client.create_task(task)
done = client.wait(first, timeout=60)
assert done.state == "COMPLETE", done
full = client.get_task(first, view="FULL")
assert full.logs[0].logs[0].stdout == "hello from py-tes\n", full
assert full.logs[0].logs[0].exit_code == 0
listed = client.list_tasks(view="BASIC")
assert [t.id for t in listed.tasks] == [first], listed
long = client.create_task(tes.Task(executors=[tes.Executor(image="none", command=["sleep", "1000"])]))
client.cancel_task(long)
# For py-tes a task that is CANCELING is no longer waited for.
assert client.wait(long, timeout=60).state in ("CANCELING", "CANCELED")
while client.get_task(long, view="MINIMAL").state == "CANCELING":
    time.sleep(0.1)
assert client.get_task(long, view="MINIMAL").state == "CANCELED"
print("ok")
"#;

#[tokio::test]
async fn py_tes_submits_waits_lists_and_cancels() {
    let python = std::env::var("ENTENTE_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    let there = Command::new(&python).args(["-c", "import tes"]).output().is_ok_and(|output| output.status.success());
    if skip_without("py-tes", there) {
        return;
    }
    let federation = Federation::start();
    let ca = federation.folder().join("states/FR/ca.pem");
    let output = Command::new(&python)
        .args(["-c", PY_TES, federation.url("FR")])
        .arg(federation.folder().join("tokens/researcher.FR.jwt"))
        .env("REQUESTS_CA_BUNDLE", &ca)
        .output()
        .expect("python starts");
    assert!(
        output.status.success() && output.stdout.ends_with(b"ok\n"),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
