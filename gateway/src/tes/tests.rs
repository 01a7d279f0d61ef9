//! Task documents and queries, good and hostile, as tables.

use serde_json::{Value, json};

use super::{Requirements, Submission};

mod anything;
mod documents;
mod logs;
mod mistakes;
mod queries;

/// The smallest task.
fn small() -> Value {
    json!({"executors": [{"image": "ubuntu:20.04", "command": ["/bin/md5", "/data/file1"]}]})
}

fn with(change: impl FnOnce(&mut Value)) -> Value {
    let mut task = small();
    change(&mut task);
    task
}

fn parse(task: &Value) -> Submission {
    Submission::parse(task.to_string().as_bytes()).unwrap_or_else(|bad| panic!("{bad}: {task}"))
}

fn requirements(task: &Value) -> Requirements {
    parse(task).requirements().unwrap_or_else(|bad| panic!("{bad}: {task}"))
}
