//! What changes while a job is on its way: cancellations, packs, quorums.

use integration_tests::{Federation, TASKS, ended, eventually, gpu_task, post_raw, reaches, submit, task};
use serde_json::{Value, json};

/// Processes of this machine whose command line holds a text.
fn processes_with(text: &str) -> usize {
    let entries = std::fs::read_dir("/proc").expect("processes");
    let lines = entries.filter_map(|entry| std::fs::read(entry.ok()?.path().join("cmdline")).ok());
    lines.filter(|line| line.windows(text.len()).any(|it| it == text.as_bytes())).count()
}

#[tokio::test]
async fn what_is_cancelled_on_its_way_never_runs() {
    let federation = Federation::start();
    let mut client = federation.client("FI", "researcher.FI");
    let marker = format!("1000.{}", std::process::id());
    let mut ids = vec![];
    for _ in 0..12 {
        let mut body = gpu_task(&["sleep", &marker], 4, "H100");
        body["resources"]["zones"] = json!(["FR"]);
        let id = submit(&mut client, &body).await;
        client.post(&format!("{TASKS}/{id}:cancel"), &json!({})).await.expect("an answer");
        ids.push(id);
    }
    for id in &ids {
        assert_eq!(ended(&mut client, id).await["state"], "CANCELED");
    }
    assert_eq!(processes_with(&marker), 0, "CANCELED is said when nothing is left");
    // What the host had in hand when it was cancelled is over when a later task has run.
    let later = submit(&mut client, &gpu_task(&["true"], 4, "H100")).await;
    assert_eq!(ended(&mut client, &later).await["state"], "COMPLETE");
    assert_eq!(processes_with(&marker), 0);
}

#[tokio::test]
async fn a_waiting_job_that_a_new_pack_forbids_ends_with_the_reason() {
    let federation = Federation::start();
    let mut france = federation.client("FR", "researcher.FR");
    let mut all = gpu_task(&["sleep", "1000"], 1_456, "H100");
    all["resources"]["zones"] = json!(["FR"]);
    let all = submit(&mut france, &all).await;
    reaches(&mut france, &all, &["RUNNING"]).await;

    let mut finland = federation.client("FI", "researcher.FI");
    let mut waits = gpu_task(&["true"], 4, "H100");
    waits["resources"]["zones"] = json!(["FR"]);
    let waits = submit(&mut finland, &waits).await;
    reaches(&mut finland, &waits, &["QUEUED"]).await;

    let pack = federation.gateway_folder("FR").join("policy.cedar");
    let mut cedar = std::fs::read_to_string(&pack).expect("the pack of France");
    cedar.push_str(
        "\n@id(\"fr-closed\")\n@title(\"France lends nothing this week\")\n@law(\"Arrêté of the test\")\n\
         @since(\"2026-01-01\")\n@contact(\"test@example.fr\")\n\
         forbid (principal, action == Action::\"host\", resource) when { principal.home != \"FR\" };\n",
    );
    std::fs::write(&pack, cedar).expect("a written pack");
    let done = ended(&mut finland, &waits).await;
    assert_eq!(done["state"], "SYSTEM_ERROR", "{done}");
    assert!(done["logs"][0]["system_logs"].to_string().contains("no pool may run it any more"), "{done}");

    let again = post_raw(&mut finland, gpu_task(&["true"], 4, "H100").to_string().into_bytes(), &[]).await;
    assert_eq!(again.status, 403, "{again:?}");
    assert!(String::from_utf8_lossy(&again.body).contains("France lends nothing this week"));
    client_cancel(&mut france, &all).await;
}

async fn client_cancel(client: &mut gateway::cli::client::Client, id: &str) {
    client.post(&format!("{TASKS}/{id}:cancel"), &json!({})).await.expect("an answer");
}

#[tokio::test]
async fn a_submission_without_an_answer_is_one_task_when_it_is_repeated() {
    let mut federation = Federation::start();
    federation.kill("FI");
    federation.kill("FR");
    let mut client = federation.client("DE", "researcher.DE");
    let body = task(&["echo", "once"]).to_string().into_bytes();
    let key = [("idempotency-key", "unanswered")];
    let refused = post_raw(&mut client, body.clone(), &key).await;
    assert_eq!(refused.status, 503, "{refused:?}");
    // Neither known as a task of the registry, nor cancelled into nothing.
    federation.restart("FI").await;
    federation.restart("FR").await;
    let id = eventually("the repeated submission is taken", async || {
        let answer = post_raw(&mut client, body.clone(), &key).await;
        let task: Value = answer.json().ok()?;
        Some(task["id"].as_str()?.to_owned())
    })
    .await;
    assert_eq!(ended(&mut client, &id).await["state"], "COMPLETE");
    let list = client.read(TASKS).await.expect("a list");
    assert_eq!(list["tasks"].as_array().expect("tasks").len(), 1, "{list}");
}
