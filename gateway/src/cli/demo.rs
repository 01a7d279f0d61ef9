//! `entente demo`: what the federation is for, in four short stories.
//!
//! Everything goes through the public API with ordinary tokens; the demo knows no back door.

use anyhow::{Context, ensure};
use http::Method;
use serde_json::{Value, json};

use super::client::Client;
use super::table::{cell, plain};
use super::up::{Folder, Place, StopSignals, progress};
use super::{capacity, explain, tasks};
use crate::laptop::Laptop;

const TASKS: &str = "/ga4gh/tes/v1/tasks";

/// Starts the federation, tells the stories, and cleans up.
pub async fn demo(place: &Place, mut stop: StopSignals) -> anyhow::Result<()> {
    let started = std::time::Instant::now();
    let folder = Folder::choose(place);
    let mut laptop = Laptop::found(folder.path(), place.port, &progress)?;
    let told = tokio::select! {
        told = start_and_tell(&mut laptop) => told,
        () = stop.asked() => Err(anyhow::anyhow!("stopped before the end")),
    };
    progress("stopping the gateways");
    laptop.stop().await;
    told?;
    println!(
        "\nDone in {:.1} s. `entente up` starts the same federation and keeps it running.",
        started.elapsed().as_secs_f32()
    );
    Ok(())
}

async fn start_and_tell(laptop: &mut Laptop) -> anyhow::Result<()> {
    laptop.start(&progress).await?;
    finland_borrows_from_france(laptop).await?;
    french_health_data_stays_in_france(laptop).await?;
    no_state_allows_it(laptop).await?;
    capacity_by_state(laptop).await
}

async fn finland_borrows_from_france(laptop: &Laptop) -> anyhow::Result<()> {
    title("1. A Finnish researcher needs eight H100. Finland has none; France lends them.");
    let mut finland = laptop.client("FI", "researcher.FI")?;
    let task = json!({
        "name": "train a language model",
        "executors": [{
            "image": "none",
            "command": ["sh", "-c", "echo training on GPUs $CUDA_VISIBLE_DEVICES"],
        }],
        "resources": {"backend_parameters": {"gpu_count": "8", "gpu_model": "H100"}},
    });
    let id = submit(&mut finland, &task).await?;
    let task = tasks::ended(&mut finland, &id).await?;
    println!("   task     {id}");
    println!("   state    {}", cell(&task["state"]));
    println!("   ran in   {}", cell(&task["logs"][0]["metadata"]["pool"]));
    println!("   printed  {}", plain(first_output(&task).trim()));
    ensure!(task["state"] == "COMPLETE", "the task should have completed: {task}");
    Ok(())
}

async fn french_health_data_stays_in_france(laptop: &Laptop) -> anyhow::Result<()> {
    title("2. A French researcher, travelling, submits health data to the German gateway.");
    let mut germany = laptop.client("DE", "researcher.FR")?;
    let task = json!({
        "name": "segment tumours",
        "executors": [{"image": "none", "command": ["echo", "segmented"]}],
        "resources": {"backend_parameters": {"gpu_count": "4"}},
        "tags": {"data_class": "health"},
    });
    let id = submit(&mut germany, &task).await?;
    let task = tasks::ended(&mut germany, &id).await?;
    println!("   ran in   {}\n", cell(&task["logs"][0]["metadata"]["pool"]));
    let why = germany.read(&format!("/v1/tasks/{id}/why")).await?;
    print!("{}", indent(&explain::text(&why)));
    Ok(())
}

async fn no_state_allows_it(laptop: &Laptop) -> anyhow::Result<()> {
    title("3. Dual-use technology for industry, without a clearance: every state says no.");
    let mut finland = laptop.client("FI", "researcher.FI")?;
    let task = json!({
        "name": "simulate a guidance system",
        "executors": [{"image": "none", "command": ["true"]}],
        "resources": {"backend_parameters": {"gpu_count": "1"}},
        "tags": {"purpose": "industry", "dual_use": "true"},
    });
    let body = serde_json::to_vec(&task)?;
    let answer = finland.call(Method::POST, TASKS, Some(body), &[]).await?;
    ensure!(answer.status == 403, "no state should have allowed it: {}", answer.status);
    let problem: Value = serde_json::from_slice(&answer.body)?;
    println!("   {} {}\n", answer.status, cell(&problem["code"]));
    let shown = json!({"summary": problem["detail"], "pools": problem["pools"]});
    print!("{}", indent(&explain::text(&shown)));
    Ok(())
}

async fn capacity_by_state(laptop: &Laptop) -> anyhow::Result<()> {
    title("4. An agency looks at what the federation has.");
    let mut germany = laptop.client("DE", "agency")?;
    let answer = germany.read("/v1/capacity").await?;
    print!("{}", indent(&capacity::text(&answer)));
    Ok(())
}

async fn submit(client: &mut Client, task: &Value) -> anyhow::Result<String> {
    let answer = client.post(TASKS, task).await?;
    let id = answer["id"].as_str().context("the answer names no task")?;
    Ok(id.to_owned())
}

fn first_output(task: &Value) -> &str {
    task["logs"][0]["logs"][0]["stdout"].as_str().unwrap_or_default()
}

fn title(text: &str) {
    println!("\n{text}\n");
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("   {line}\n")).collect()
}
