//! What the replicated registry never holds (threat 28): names, commands, secrets, places, outputs.

use std::path::Path;

use integration_tests::{Federation, ended, submit, task};
use serde_json::{Value, json};

/// Every file below a folder, and whether it contains a text.
fn holds(folder: &Path, text: &str) -> bool {
    let entries = std::fs::read_dir(folder).expect("a folder");
    entries.map(|entry| entry.expect("an entry").path()).any(|path| {
        if path.is_dir() {
            return holds(&path, text);
        }
        let bytes = std::fs::read(&path).unwrap_or_default();
        bytes.windows(text.len()).any(|it| it == text.as_bytes())
    })
}

/// Each part of a task holds a word of its own.
fn planted(command: &str) -> Value {
    let mut task = task(&["sh", "-c", command]);
    task["name"] = json!("planted-name");
    task["description"] = json!("planted-description");
    task["tags"] = json!({"project": "visible-project", "patient": "planted-tag"});
    task["executors"][0]["env"] = json!({"TOKEN": "planted-env"});
    task["executors"][0]["image"] = json!("planted-image");
    task["inputs"] = json!([{"path": "/in/planted-path", "content": "planted-content"}]);
    task["resources"] = json!({"zones": ["FR"]});
    task
}

#[tokio::test]
async fn the_registry_holds_no_content_and_nobodys_name() {
    let federation = Federation::start();
    let mut client = federation.client("FI", "researcher.FI");
    let mut failing = planted("true");
    failing["inputs"] = json!([{"path": "/in/a", "url": "file:///planted-url/a?key=planted-key"}]);
    let mut unwritable = planted("true");
    unwritable["outputs"] = json!([{"path": "/planted-output", "url": "http://planted-host.example/b"}]);
    let tasks = [
        (planted("echo planted-output-text; exit 0"), "COMPLETE"),
        (planted("echo planted-command >&2; exit 3"), "EXECUTOR_ERROR"),
        (planted("kill -9 $$ # planted-comment"), "EXECUTOR_ERROR"),
        (failing, "SYSTEM_ERROR"),
        (unwritable, "SYSTEM_ERROR"),
    ];
    for (task, state) in &tasks {
        let id = submit(&mut client, task).await;
        let done = ended(&mut client, &id).await;
        assert_eq!(done["state"], *state, "{done}");
    }
    for state in ["FR", "DE", "FI"] {
        let raft = federation.gateway_folder(state).join("data/raft");
        assert!(
            holds(&raft, "visible-project"),
            "{state}: what is replicated is found, so this looks at the right place"
        );
        assert!(!holds(&raft, "planted"), "{state} replicates what belongs to home and host alone");
        assert!(!holds(&raft, "@demo"), "{state} replicates the name of a person");
    }
    // Home keeps it, and that is where it belongs.
    assert!(holds(&federation.gateway_folder("FI").join("data"), "planted-name"));
    assert!(!holds(&federation.gateway_folder("DE"), "planted"), "Germany had no part in it");
}
