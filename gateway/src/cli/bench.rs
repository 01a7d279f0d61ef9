//! `entente bench`: measures what the federation is for, through its public API.
//!
//! `place` keeps N clients submitting to three durable gateways on this machine. Every job asks for
//! more GPUs of one pool than are left, so that it is decided, placed and committed, but not run:
//! running is the factory's business. Between rounds the jobs are cancelled outside of the measure.
//! A client's connection is made before the clock starts, and kept over all rounds.
//! `overload` asks for more than that, and measures what is left.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::client::Client;
use super::up::{Folder, Place, StopSignals, progress};
use crate::laptop::Laptop;

mod crowd;
mod overload;

use overload::OverloadBench;

const TASKS: &str = "/ga4gh/tes/v1/tasks";
/// Open jobs per researcher that a round stays below; home's own limit is a little higher.
const JOBS_PER_ROUND_MAX: u64 = 1_800;
const STATES: [&str; 3] = ["FR", "DE", "FI"];

/// What is measured.
#[derive(Subcommand)]
pub enum Bench {
    /// Placements per second through three durable gateways
    Place(PlaceBench),
    /// What is left of them at twice and at ten times the load that can be sustained
    Overload(OverloadBench),
}

/// How `place` is measured.
#[derive(Args)]
pub struct PlaceBench {
    /// Concurrent clients, spread over the gateways
    #[arg(long, default_value_t = 64)]
    clients: usize,
    /// Placements in all; rounds are cut so that no state has too many open jobs
    #[arg(long, default_value_t = 20_000)]
    placements: u64,
    /// All clients use the first gateway that leads, instead of their own
    #[arg(long)]
    one_gateway: bool,
    #[command(flatten)]
    place: Place,
}

/// Runs a benchmark and prints its figures.
pub async fn bench(bench: &Bench, mut stop: StopSignals) -> anyhow::Result<()> {
    let place = match bench {
        Bench::Place(it) => &it.place,
        Bench::Overload(it) => &it.place,
    };
    let folder = Folder::choose(place);
    let mut laptop = Laptop::found(folder.path(), place.port, &progress)?;
    let measuring = async {
        laptop.start(&progress).await?;
        match bench {
            Bench::Place(it) => measure(&laptop, it).await,
            Bench::Overload(it) => overload::measure(&laptop, it).await,
        }
    };
    let measured = tokio::select! {
        measured = measuring => measured,
        () = stop.asked() => Err(anyhow::anyhow!("stopped before the end")),
    };
    laptop.stop().await;
    println!("{}", measured?);
    Ok(())
}

async fn measure(laptop: &Laptop, it: &PlaceBench) -> anyhow::Result<Value> {
    fill_the_pool(laptop).await?;
    let states = if it.one_gateway { &STATES[..1] } else { &STATES[..] };
    let per_round = JOBS_PER_ROUND_MAX * states.len() as u64;
    let mut clients = connected(laptop, states, it.clients).await?;
    let mut latencies = Vec::new();
    let mut busy = Duration::ZERO;
    let mut left = it.placements;
    let before = stages(laptop).await?;
    while left > 0 {
        let round = left.min(per_round);
        progress(&format!("{left} placements to go"));
        let (took, mut seen);
        (clients, took, seen) = one_round(clients, states.len(), round).await?;
        busy += took;
        latencies.append(&mut seen);
        left -= round;
        if left > 0 {
            cancel_all(laptop, states).await?;
        }
    }
    let after = stages(laptop).await?;
    latencies.sort_unstable();
    let percentile = |part: f64| {
        let index = ((latencies.len() - 1) as f64 * part) as usize;
        latencies[index].as_secs_f64() * 1000.0
    };
    Ok(json!({
        "clients": it.clients,
        "placements": latencies.len(),
        "per_second": (latencies.len() as f64 / busy.as_secs_f64()).round(),
        "p50_ms": percentile(0.50),
        "p99_ms": percentile(0.99),
        "mean_us_by_stage": spent(&before, &after),
    }))
}

/// One job takes the whole pool, so that every job of the measure is placed and waits.
async fn fill_the_pool(laptop: &Laptop) -> anyhow::Result<()> {
    let mut france = laptop.client("FR", "researcher.FR")?;
    let capacity = france.read("/v1/capacity").await?;
    let pool = capacity["pools"]
        .as_array()
        .and_then(|pools| pools.iter().find(|it| it["pool"] == "FR/jean-zay/h100-80"))
        .context("the laptop's federation lends FR/jean-zay/h100-80")?;
    let mut task = job("fill", "1");
    task["executors"][0]["command"] = json!(["sleep", "86400"]);
    task["resources"]["backend_parameters"]["gpu_count"] = pool["gpus"].to_string().into();
    task["resources"]["backend_parameters"]["walltime_s"] = "90000".into();
    france.post(TASKS, &task).await?;
    Ok(())
}

fn job(name: &str, gpus: &str) -> Value {
    json!({
        "name": name,
        "executors": [{"image": "none", "command": ["true"]}],
        "resources": {
            "zones": ["FR/jean-zay"],
            "backend_parameters": {"gpu_count": gpus, "gpu_model": "H100"},
        },
    })
}

/// The clients, spread over the gateways in turn; each has its connection.
async fn connected(laptop: &Laptop, states: &[&str], clients: usize) -> anyhow::Result<Vec<Client>> {
    let mut connected = Vec::new();
    for state in states.iter().cycle().take(clients) {
        let mut client = laptop.client(state, &format!("researcher.{state}"))?;
        client.read("/v1/health").await?;
        connected.push(client);
    }
    Ok(connected)
}

/// The clients, how long the round took, and how long each placement did.
async fn one_round(
    clients: Vec<Client>,
    states: usize,
    placements: u64,
) -> anyhow::Result<(Vec<Client>, Duration, Vec<Duration>)> {
    // A count for each state, so that a fast one does not run into its limit of open jobs.
    let left: Vec<_> = (0..states).map(|_| Arc::new(AtomicU64::new(placements / states as u64))).collect();
    let mut running = JoinSet::new();
    let started = Instant::now();
    for (number, mut client) in clients.into_iter().enumerate() {
        let left = Arc::clone(&left[number % states]);
        running.spawn(async move {
            let mut seen = Vec::new();
            let mut serial = 0;
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |it| it.checked_sub(1)).is_ok() {
                serial += 1;
                let body = serde_json::to_vec(&job(&format!("bench-{number}-{serial}"), "4"))?;
                let asked = Instant::now();
                let answer = client.call(Method::POST, TASKS, Some(body), &[]).await?;
                seen.push(asked.elapsed());
                ensure!(
                    answer.status.is_success(),
                    "a placement failed: {} {}",
                    answer.status,
                    String::from_utf8_lossy(&answer.body)
                );
            }
            anyhow::Ok((number, client, seen))
        });
    }
    let (mut clients, mut latencies) = (Vec::new(), Vec::new());
    while let Some(done) = running.join_next().await {
        let (number, client, mut seen) = done??;
        clients.push((number, client));
        latencies.append(&mut seen);
    }
    let took = started.elapsed();
    // Each stays with its state's count.
    clients.sort_unstable_by_key(|(number, _)| *number);
    Ok((clients.into_iter().map(|(_, client)| client).collect(), took, latencies))
}

async fn cancel_all(laptop: &Laptop, states: &[&str]) -> anyhow::Result<()> {
    progress("cancelling the jobs of this round");
    for state in states {
        let mut running = JoinSet::new();
        let mut lister = laptop.client(state, &format!("researcher.{state}"))?;
        let mut ids = Vec::new();
        let mut page = String::new();
        loop {
            let path = format!("{TASKS}?state=QUEUED&page_size=2047&page_token={page}");
            let list = lister.read(&path).await?;
            let tasks = list["tasks"].as_array().map_or(&[][..], Vec::as_slice);
            ids.extend(tasks.iter().filter_map(|it| it["id"].as_str().map(str::to_owned)));
            match list["next_page_token"].as_str() {
                Some(next) if !next.is_empty() => page = next.to_owned(),
                _ => break,
            }
        }
        let share = ids.len().div_ceil(32).max(1);
        for ids in ids.chunks(share) {
            let mut client: Client = laptop.client(state, &format!("researcher.{state}"))?;
            let ids = ids.to_vec();
            running.spawn(async move {
                for id in ids {
                    client.post(&format!("{TASKS}/{id}:cancel"), &json!({})).await?;
                }
                anyhow::Ok(())
            });
        }
        while let Some(cancelled) = running.join_next().await {
            cancelled??;
        }
    }
    Ok(())
}

/// What each stage of a submission has cost so far, summed over the gateways.
async fn stages(laptop: &Laptop) -> anyhow::Result<Value> {
    let mut sum = serde_json::Map::new();
    for state in STATES {
        let mut client = laptop.client(state, &format!("operator.{state}"))?;
        let health = client.read("/v1/health").await?;
        for (stage, spent) in health["submission_stages"].as_object().into_iter().flatten() {
            let known = sum.entry(stage.clone()).or_insert(json!({"count": 0, "us": 0}));
            for part in ["count", "us"] {
                let total = known[part].as_u64().unwrap_or(0) + spent[part].as_u64().unwrap_or(0);
                known[part] = total.into();
            }
        }
    }
    Ok(Value::Object(sum))
}

/// Mean microseconds per stage between two readings.
fn spent(before: &Value, after: &Value) -> Value {
    let mut mean = serde_json::Map::new();
    for (stage, spent) in after.as_object().into_iter().flatten() {
        let part = |name: &str| spent[name].as_u64().unwrap_or(0) - before[stage][name].as_u64().unwrap_or(0);
        let (count, us) = (part("count"), part("us"));
        if let Some(each) = us.checked_div(count) {
            mean.insert(stage.clone(), each.into());
        }
    }
    Value::Object(mean)
}
