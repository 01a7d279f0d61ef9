//! `bench overload`: what is left of a federation's placements when it is asked for more than it can do.
//!
//! First it is measured what a moderate number of clients gets, each one submission after the other: that is what can be
//! sustained. Then many callers submit by the clock, at twice and at ten times that rate, and a few modest ones beside them.
//! In between the first measurement is repeated, because a machine may have other things to do. Tasks wait for a pool that is
//! full and are cancelled between the phases, as in `place`.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::crowd::{Crowd, Seen, TASKS_PER_PHASE, cancel};
use super::{STATES, fill_the_pool};
use crate::cli::client::Client;
use crate::cli::up::{Place, progress};
use crate::laptop::Laptop;

/// When all has to be as before.
const CALM_AFTER: Duration = Duration::from_secs(2);
/// Between two looks at health and memory.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// How `overload` is measured.
#[derive(Args)]
pub struct OverloadBench {
    /// Concurrent clients while it is measured what can be sustained, spread over the gateways
    #[arg(long, default_value_t = 240)]
    clients: usize,
    /// Callers of each state in the crowd
    #[arg(long, default_value_t = 40)]
    callers: usize,
    /// Connections of the crowd to each gateway, which carry 100 requests each at once; a face answers 1,024
    #[arg(long, default_value_t = NonZeroUsize::new(32).expect("invariant: it is not zero"))]
    connections: NonZeroUsize,
    /// Submissions a second of one modest caller; there is one in each state
    #[arg(long, default_value_t = 1.0)]
    modest_rate: f64,
    /// Seconds of a phase; less where its tasks would be too many
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Milliseconds after which an answer is of no use to a client
    #[arg(long, default_value_t = 5_000)]
    bound_ms: u64,
    #[command(flatten)]
    pub(super) place: Place,
}

/// The phases, one after the other.
pub(super) async fn measure(laptop: &Laptop, it: &OverloadBench) -> anyhow::Result<Value> {
    fill_the_pool(laptop).await?;
    let crowd = Crowd::gather(laptop, "crowd", it.callers, it.connections.get()).await?;
    let modest = Crowd::gather(laptop, "modest", 1, 1).await?;
    let bound = Duration::from_millis(it.bound_ms);
    // What is used for the first time is slower.
    cancel(&mut crowd.one_by_one(it.clients, bound, Duration::from_millis(500)).await?).await?;

    progress("what can be sustained");
    let mut lasts = Duration::from_secs_f64(it.seconds);
    let mut sustained = crowd.one_by_one(it.clients, bound, lasts.min(Duration::from_secs(1))).await?;
    lasts = lasts.min(Duration::from_secs_f64(TASKS_PER_PHASE as f64 / sustained.goodput()));
    cancel(&mut sustained).await?;
    sustained = crowd.one_by_one(it.clients, bound, lasts).await?;
    cancel(&mut sustained).await?;
    let mut rate = sustained.goodput();
    let mut again = json!(null);
    progress("a modest caller alone");
    let modest_rate = it.modest_rate * STATES.len() as f64;
    let mut alone = modest.by_the_clock(modest_rate, bound, lasts, &AtomicBool::default()).await?;
    cancel(&mut alone).await?;

    let mut phases = vec![];
    for times in [2.0, 10.0] {
        progress(&format!("{times} times what can be sustained, {:.0} submissions a second", times * rate));
        let over = Arc::new(AtomicBool::new(false));
        let watching = tokio::spawn(watch(Watched::of(laptop)?, Arc::clone(&over)));
        let rushed = AtomicBool::default();
        let (mut crowded, mut beside) = tokio::try_join!(
            crowd.by_the_clock(times * rate, bound, lasts, &rushed),
            modest.by_the_clock(modest_rate, bound, lasts, &rushed)
        )?;
        // The crowd's last answer may be there already.
        sleep(CALM_AFTER.saturating_sub(crowded.rest)).await;
        let mut after = modest.by_the_clock(modest_rate, bound, lasts, &AtomicBool::default()).await?;
        over.store(true, Ordering::Relaxed);
        let watched = watching.await??;
        let mut loads = vec![];
        for it in &mut Watched::of(laptop)? {
            loads.push(it.client.read("/v1/health").await?["load"].clone());
        }
        phases.push(json!({
            "times": times,
            "goodput_ratio": crowded.goodput() / rate,
            "crowd": crowded.document(),
            "modest_ratio": ratio(&beside, &alone),
            "modest": beside.document(),
            "afterwards": after.document(),
            "gateways": watched,
            "load_afterwards": loads,
        }));
        for seen in [&mut crowded, &mut beside, &mut after] {
            cancel(seen).await?;
        }
        if again.is_null() {
            progress("what can be sustained, again");
            let mut seen = crowd.one_by_one(it.clients, bound, lasts).await?;
            (again, rate) = (seen.document(), rate.max(seen.goodput()));
            cancel(&mut seen).await?;
        }
    }
    Ok(json!({
        "clients": it.clients,
        "callers": it.callers * STATES.len(),
        "seconds": lasts.as_secs_f64(),
        "sustained": sustained.document(),
        "sustained_again": again,
        "modest_alone": alone.document(),
        "phases": phases,
    }))
}

/// What a caller still gets of what he got before.
fn ratio(now: &Seen, before: &Seen) -> f64 {
    let share = |seen: &Seen| seen.good.len() as f64 / seen.asked().max(1) as f64;
    share(now) / share(before)
}

/// A gateway that is looked at while it is busy.
struct Watched {
    state: &'static str,
    process: u64,
    client: Client,
}

impl Watched {
    fn of(laptop: &Laptop) -> anyhow::Result<Vec<Watched>> {
        let processes = &laptop.describe()["processes"];
        STATES
            .into_iter()
            .map(|state| {
                let process = processes[state].as_u64().context("the gateway runs")?;
                Ok(Watched { state, process, client: laptop.client(state, &format!("operator.{state}"))? })
            })
            .collect()
    }
}

/// What the gateways say of themselves, how long that takes, and how much memory they hold, until it is over.
async fn watch(mut watched: Vec<Watched>, over: Arc<AtomicBool>) -> anyhow::Result<Value> {
    let before: Vec<u64> = watched.iter().map(|it| resident_mib(it.process)).collect::<anyhow::Result<_>>()?;
    let mut most = before.clone();
    let (mut said, mut slowest) = (std::collections::BTreeMap::<String, u64>::new(), Duration::ZERO);
    while !over.load(Ordering::Relaxed) {
        for (it, most) in watched.iter_mut().zip(&mut most) {
            *most = resident_mib(it.process)?.max(*most);
            let asked = Instant::now();
            let health = it.client.read("/v1/health").await;
            slowest = slowest.max(asked.elapsed());
            let health = match health {
                Ok(health) => format!("{}, {}", health["status"], health["load"]).replace('"', ""),
                Err(refused) => format!("{}: {refused:#}", it.state),
            };
            *said.entry(health).or_default() += 1;
        }
        sleep(LOOK_EVERY).await;
    }
    Ok(json!({
        "resident_mib_before": before,
        "resident_mib_most": most,
        "health": said,
        "slowest_health_ms": slowest.as_millis() as u64,
    }))
}

fn resident_mib(process: u64) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).context("a gateway has ended")?;
    let line = status.lines().find(|it| it.starts_with("VmRSS:")).context("the system says how much memory is held")?;
    let kib: u64 = line.split_whitespace().nth(1).context("a number")?.parse()?;
    Ok(kib / 1_024)
}
