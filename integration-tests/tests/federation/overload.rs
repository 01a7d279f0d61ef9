//! More than a gateway can do: one who asks for everything gets his share, and others get theirs; whatever a crowd asks for,
//! as much is done as without it.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::StatusCode;
use integration_tests::{Federation, eventually, figure, gpu_task, post_raw, program, reaches, release, submit, turns};
use serde_json::Value;

/// Connections of the greedy one: more than one caller may have requests under way, fewer than one address may have connections.
const GREEDY: usize = 320;
/// How soon a refused greedy client asks again.
const IMPATIENCE: Duration = Duration::from_millis(200);
/// GPUs of the only pool of H100 that a French task may have all of.
const POOL: u32 = 1_456;
/// Submissions of the modest one, one after the other.
const MODEST: usize = 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_greedy_caller_is_refused_and_a_modest_one_is_not() {
    turns::alone(async || {
        let federation = Federation::start();
        // Whatever the modest one submits is placed and waits: running is not what is tested.
        let mut client = federation.client("FR", "researcher.FR");
        let all = submit(&mut client, &gpu_task(&["sleep", "600"], POOL, "H100")).await;
        reaches(&mut client, &all, &["RUNNING"]).await;
        let alone = modest(&federation).await;
        let (stop, refused, taken) =
            (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let mut greedy = tokio::task::JoinSet::new();
        for number in 0..GREEDY {
            let mut client = federation.client("FR", "researcher.FR");
            // One after the other: an address has only so many handshakes at once.
            client.read("/v1/health").await.expect("a connection");
            let (stop, refused, taken) = (Arc::clone(&stop), Arc::clone(&refused), Arc::clone(&taken));
            greedy.spawn(async move {
                let mut body = gpu_task(&["true"], POOL, "H100");
                let mut round = 0;
                while !stop.load(Ordering::Relaxed) {
                    round += 1;
                    body["name"] = format!("{number}-{round}").into();
                    let answer = post_raw(&mut client, body.to_string().into_bytes(), &[]).await;
                    match answer.status {
                        StatusCode::OK => taken.fetch_add(1, Ordering::Relaxed),
                        StatusCode::TOO_MANY_REQUESTS => {
                            assert!(answer.headers.contains_key("retry-after"), "{answer:?}");
                            refused.fetch_add(1, Ordering::Relaxed);
                            // Sooner than he was told, and not so soon that only refusals are measured.
                            tokio::time::sleep(IMPATIENCE).await;
                            0
                        }
                        other => panic!("{other}: {:?}", answer.body),
                    };
                }
            });
        }
        eventually("the greedy one is refused", async || (refused.load(Ordering::Relaxed) > 0).then_some(())).await;
        assert!(greedy.try_join_next().is_none(), "a greedy client has ended");
        let beside = modest(&federation).await;
        let health = federation.client("FR", "operator.FR").read("/v1/health").await.expect("health is answered");
        assert_eq!(health["status"], "ok");
        stop.store(true, Ordering::Relaxed);
        while let Some(ended) = greedy.join_next().await {
            ended.expect("a greedy client ends well");
        }
        let (refused, taken) = (refused.load(Ordering::Relaxed), taken.load(Ordering::Relaxed));
        println!("modest: {alone:?} alone, {beside:?} beside; greedy: {taken} taken, {refused} refused");
        let after = modest(&federation).await;
        assert!(after < 4 * alone + Duration::from_secs(2), "{after:?} afterwards, {alone:?} before");
    })
    .await;
}

/// How long a modest caller takes; every submission has to be accepted at once.
async fn modest(federation: &Federation) -> Duration {
    let mut client = federation.client("FR", "researcher.DE");
    let begun = Instant::now();
    for number in 0..MODEST {
        let mut body = gpu_task(&["true"], POOL, "H100");
        body["name"] = format!("modest {number}").into();
        let answer = post_raw(&mut client, body.to_string().into_bytes(), &[]).await;
        assert_eq!(answer.status, StatusCode::OK, "{:?}", answer.body);
    }
    begun.elapsed()
}

/// Of what can be sustained, at twice as much: in the dev profile, where gateways and crowd share two cores and what each takes
/// changes from one second to the next, and of a release build.
const GOODPUT_MIN: [f64; 2] = [0.5, 0.8];
/// Of what modest callers get without a crowd, likewise; without shares they get no more than the crowd does.
const MODEST_MIN: [f64; 2] = [0.8, 0.9];
/// Of what is asked at ten times as much: fewer would be no crowd. It ends when a registry would be full of its tasks.
const REFUSED_MIN: f64 = 0.25;
/// A crowd of ten times as many could make a gateway hold some 20,000 requests, each with 30 KiB and more.
const MIB_MORE_MAX: u64 = 120;
/// Whatever else this machine does takes from what is measured and never adds to it: the best of so many measurements counts.
const MEASUREMENTS: usize = 3;

#[tokio::test]
async fn a_crowd_costs_neither_goodput_nor_modest_callers_and_is_over_when_it_ends() {
    turns::alone(async || {
        let mut missed = vec![];
        for _ in 0..MEASUREMENTS {
            let measured = measure();
            println!("{measured:#}");
            for phase in measured["phases"].as_array().expect("phases") {
                assert_nothing_is_wrong(phase);
            }
            missed = missed_figures(&measured);
            if missed.is_empty() {
                return;
            }
            eprintln!("missed: {missed:#?}");
        }
        panic!("missed in each of {MEASUREMENTS} measurements, and in the last: {missed:#?}");
    })
    .await;
}

/// `entente bench overload` measures; it says that an answer without a time to come back, and one that never comes, is wrong.
fn measure() -> Value {
    let mut bench = Command::new(program());
    bench.args(["bench", "overload", "--seconds", "6"]);
    if release().is_some() {
        // Its phases are short, because more tasks would be open than the registry takes.
        bench.args(["--modest-rate", "10"]);
    }
    let output = bench.output().expect("a bench");
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{why}");
    serde_json::from_slice(&output.stdout).expect("one document")
}

fn number(it: &Value) -> f64 {
    it.as_f64().unwrap_or(f64::NAN)
}

fn count(it: &Value) -> u64 {
    it.as_u64().expect("a count")
}

/// Looks at any gateway's health that found this.
fn looks(phase: &Value, found: impl Fn(&str) -> bool) -> f64 {
    let health = phase["gateways"]["health"].as_object().expect("what was said");
    health.iter().filter(|(said, _)| found(said)).map(|(_, times)| number(times)).sum()
}

fn is_tenfold(phase: &Value) -> bool {
    phase["times"] == 10.0
}

/// What holds however slow this machine is.
fn assert_nothing_is_wrong(phase: &Value) {
    let (crowd, gateways) = (&phase["crowd"], &phase["gateways"]);
    for seen in [&phase["modest"], &phase["afterwards"]] {
        assert_eq!(seen["wrong"], serde_json::json!({}), "{phase:#}");
    }
    let wrong: u64 = crowd["wrong"].as_object().expect("what was wrong").values().map(count).sum();
    // A connection on which very much is refused may be ended, with what else was asked on it.
    let wrong_max = if is_tenfold(phase) { count(&crowd["asked"]) / 50 } else { 0 };
    assert!(wrong <= wrong_max, "{phase:#}");
    if is_tenfold(phase) {
        let [before, most] = ["before", "most"].map(|it| gateways[format!("resident_mib_{it}")].as_array());
        for (before, most) in before.expect("sizes").iter().zip(most.expect("sizes")) {
            assert!(count(most) < count(before) + MIB_MORE_MAX, "{phase:#}");
        }
    }
    for said in gateways["health"].as_object().expect("what was said").keys() {
        assert!(said.starts_with("ok, ") || said.starts_with("no-leader, "), "{phase:#}");
    }
}

/// What was asked for and not reached.
fn missed_figures(measured: &Value) -> Vec<String> {
    let sustained = ["sustained", "sustained_again"].map(|it| number(&measured[it]["goodput_per_second"]));
    let alone_ms = number(&measured["modest_alone"]["p50_ms"]);
    let [goodput_min, modest_min] = [GOODPUT_MIN, MODEST_MIN].map(|[dev, of_release]| figure(dev, of_release));
    let mut missed = vec![];
    let mut at_least = |what: &str, phase: &Value, found: f64, min: f64| {
        // What cannot be said is not enough either.
        if found.is_nan() || found < min {
            missed.push(format!("{what} at {} times: {found:.3} of at least {min:.3}", phase["times"]));
        }
    };
    for phase in measured["phases"].as_array().expect("phases") {
        let (crowd, modest, after) = (&phase["crowd"], &phase["modest"], &phase["afterwards"]);
        if is_tenfold(phase) {
            let served = (count(&modest["good"]) + count(&modest["late"])) as f64;
            at_least("modest callers served", phase, served / number(&modest["asked"]), modest_min);
            // Or the crowd was no crowd: on a machine that has other things to do it asks for less.
            let refused = number(&crowd["refused"]) / number(&crowd["asked"]);
            at_least("refused of what was asked", phase, refused, REFUSED_MIN);
            let says_so = looks(phase, |said| said == "ok, full" || said == "ok, behind");
            at_least("looks at health that found a gateway full or behind", phase, says_so, 1.0);
        } else {
            let ratio = number(&crowd["goodput_per_second"]) / sustained[0].max(sustained[1]);
            at_least("goodput of what is sustained", phase, ratio, goodput_min);
            at_least("modest callers served in time", phase, number(&phase["modest_ratio"]), modest_min);
        }
        // Health is always answered, and says that all can place jobs; on a busy machine a leader may be late, and then it says that.
        let well = looks(phase, |said| said.starts_with("ok, ")) / looks(phase, |_| true);
        at_least("looks at health that found it well", phase, well, 0.9);
        let normal = phase["load_afterwards"].as_array().map_or(0, |it| it.iter().filter(|it| *it == "normal").count());
        at_least("gateways with a normal load 2 s later", phase, normal as f64, 3.0);
        at_least("modest callers served 2 s later", phase, number(&after["good"]) / number(&after["asked"]), 1.0);
        let as_before_ms = 4.0 * alone_ms + 100.0;
        at_least("how soon 2 s later, of what is soon enough", phase, as_before_ms / number(&after["p50_ms"]), 1.0);
    }
    missed
}
