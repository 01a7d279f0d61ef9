//! Tasks, as a researcher writes, submits and watches them.

use gateway::cli::client::{Answer, Client};
use http::{HeaderName, HeaderValue, Method};
use serde_json::{Value, json};

use crate::eventually;
use crate::persistent::assert_not_now;

/// Where tasks live.
pub const TASKS: &str = "/ga4gh/tes/v1/tasks";

/// A task of one command.
pub fn task(command: &[&str]) -> Value {
    json!({"name": "a task", "executors": [{"image": "none", "command": command}]})
}

/// The same on GPUs.
pub fn gpu_task(command: &[&str], gpus: u32, model: &str) -> Value {
    let mut task = task(command);
    task["resources"] = json!({"backend_parameters": {"gpu_count": gpus.to_string(), "gpu_model": model}});
    task
}

/// Submits a task that has to be accepted, if not at once: who asks for patience, as during an election, is asked again.
pub async fn submit(client: &mut Client, task: &Value) -> String {
    let key = format!("{:x}", u128::from_le_bytes(certs::entropy::bytes()));
    eventually("the task is accepted", async || {
        let answer = post_raw(client, task.to_string().into_bytes(), &[("idempotency-key", &key)]).await;
        if answer.status != 200 {
            assert_not_now(&answer);
            return None;
        }
        let accepted = answer.json().expect("a task");
        Some(accepted["id"].as_str().expect("an id").to_owned())
    })
    .await
}

/// Sends a body to the tasks' address and returns whatever comes back.
pub async fn post_raw(client: &mut Client, body: Vec<u8>, headers: &[(&'static str, &str)]) -> Answer {
    let headers: Vec<_> = headers
        .iter()
        .map(|(name, value)| {
            let value = HeaderValue::from_str(value).expect("a header value");
            (HeaderName::from_static(name), value)
        })
        .collect();
    client.call(Method::POST, TASKS, Some(body), &headers).await.expect("an answer")
}

/// A task as its owner sees it.
pub async fn look(client: &mut Client, id: &str) -> Value {
    client.read(&format!("{TASKS}/{id}?view=FULL")).await.expect("a known task")
}

/// Waits until a task has one of these states.
pub async fn reaches(client: &mut Client, id: &str, states: &[&str]) -> Value {
    eventually(&format!("{id} reaches {states:?}"), async || {
        let task = client.read(&format!("{TASKS}/{id}?view=FULL")).await.ok()?;
        states.contains(&task["state"].as_str()?).then_some(task)
    })
    .await
}

/// Waits for a task's end.
pub async fn ended(client: &mut Client, id: &str) -> Value {
    reaches(client, id, &["COMPLETE", "EXECUTOR_ERROR", "SYSTEM_ERROR", "CANCELED"]).await
}
