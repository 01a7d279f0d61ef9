//! Files and sockets are a process's scarcest good. Connections take none of those that a gateway itself needs, and where
//! there are none left all the same it waits, and goes on when there are.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use gateway::cli::client::Client;
use integration_tests::persistent::Persistent;
use integration_tests::{Federation, PATIENCE, STATES, ended, eventually, submit, task, turns};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::strangers::{computed, connect_from, newcomer, public, strange_client, tls};

/// What each gateway may open here.
const FILES: u64 = 512;
/// What its connections leave it of that: a third, with a few to spare for what is accepted and refused.
const LEFT_MIN: usize = 160;
/// Connections at once, from 127.0.0.20 and following: more than it may open.
const HOLDERS: usize = 800;
const ADDRESSES: usize = 40;
/// So many at once are a full face, where more come all the time.
const HELD_MIN: usize = 100;
/// How long a siege lasts.
const SIEGE: Duration = Duration::from_secs(5);
const COMMITS_MIN: usize = 5;
/// What the leader may compute meanwhile; one that spins takes a core, or what it gets of one.
const COMPUTED_MAX: Duration = Duration::from_secs(4);
/// For a newcomer beside them, and when they are gone.
const NEWCOMER_MAX: Duration = Duration::from_secs(10);
/// No gateway without a descriptor tries more often than that.
const TRIES_EVERY: Duration = Duration::from_millis(40);
const FAILED_TO_ACCEPT: &str = "cannot accept connections right now";

/// Connects, says little or nothing, stays as long as it may, and comes again.
async fn hold(number: usize, to: SocketAddr, client: Arc<rustls::ClientConfig>, held: Arc<AtomicUsize>) {
    let host = 20 + u8::try_from(number % ADDRESSES).expect("a few addresses");
    loop {
        if let Ok(mut socket) = connect_from(host, to).await {
            held.fetch_add(1, Ordering::Relaxed);
            let mut rest = vec![];
            // Silent, or with a head that does not end.
            if number.is_multiple_of(2) {
                let _closed = socket.read_to_end(&mut rest).await;
            } else if let Ok(mut stream) = tls(Arc::clone(&client), socket).await {
                let _cut = stream.write_all(b"GET /v1/health HTTP/1.1\r\nHost: a\r\nX-A: ").await;
                let _closed = stream.read_to_end(&mut rest).await;
            }
            held.fetch_sub(1, Ordering::Relaxed);
        }
        // As often as it is refused.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn open_files(process: u32) -> usize {
    std::fs::read_dir(format!("/proc/{process}/fd")).expect("a running process").count()
}

fn log(federation: &Federation, state: &str) -> String {
    std::fs::read_to_string(federation.log(state)).unwrap_or_default()
}

/// What a siege did to a gateway that leads, as those see it who were there before.
struct Siege {
    acknowledged: Vec<String>,
    took: Duration,
    computed: Duration,
    most_files: usize,
}

/// Commits go on from elsewhere, who leads goes on leading, and tells the truth to whoever is connected to it.
async fn besieged(federation: &Federation, leader: &str, other: &str, connected: &mut Client) -> Siege {
    let process = federation.process(leader);
    let (begun, over, computed_before) = (Instant::now(), AtomicBool::new(false), computed(process));
    let submitting = async {
        let mut researcher = Persistent::at(federation, &[other], &format!("researcher.{other}"));
        let mut body = task(&["true"]);
        body["resources"] = json!({"zones": [other]});
        let mut acknowledged = vec![];
        while begun.elapsed() < SIEGE || acknowledged.len() < COMMITS_MIN {
            let key = format!("siege-{}", acknowledged.len());
            acknowledged.push(researcher.submit(&key, &body).await.0);
        }
        over.store(true, Ordering::Relaxed);
        acknowledged
    };
    let watching = async {
        let mut most_files = 0;
        while !over.load(Ordering::Relaxed) {
            let health = connected.read("/v1/health").await.expect("who is connected is answered");
            assert_eq!(health["status"], "ok", "{health}");
            let node = STATES.iter().position(|state| *state == leader).expect("a state") + 1;
            assert_eq!(health["leader"], node, "it leads: {health}");
            most_files = most_files.max(open_files(process));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        most_files
    };
    let (acknowledged, most_files) = tokio::join!(submitting, watching);
    assert_eq!(federation.leader(other).await.as_deref(), Some(leader), "it leads for the others too");
    let took = begun.elapsed();
    // As if it had lasted as long as it should.
    let share = SIEGE.as_secs_f64() / took.as_secs_f64();
    Siege { acknowledged, took, computed: (computed(process) - computed_before).mul_f64(share), most_files }
}

async fn nothing_is_lost(federation: &Federation, other: &str, acknowledged: &[String]) {
    let mut client = federation.client(other, &format!("researcher.{other}"));
    for id in acknowledged {
        assert_eq!(ended(&mut client, id).await["state"], "COMPLETE");
    }
}

async fn leader_and_other(federation: &Federation) -> (String, &'static str) {
    let leader = eventually("a leader", async || federation.leader("FR").await).await;
    let other = *STATES.iter().find(|state| **state != leader).expect("three states");
    (leader, other)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_take_no_descriptor_that_a_gateway_needs() {
    turns::alone(async || {
        gateway::listener::raise_open_files().expect("room for so many sockets here");
        let mut federation = Federation::start();
        for state in STATES {
            federation.kill(state);
        }
        for state in STATES {
            federation.launch_with_files(state, FILES);
        }
        for state in STATES {
            federation.answers(state).await;
        }
        let (leader, other) = leader_and_other(&federation).await;
        let mut connected = federation.client_with(&leader, None);
        connected.read("/v1/health").await.expect("a connection");
        let (to, client) = (public(&federation, &leader), strange_client(&federation, &leader, "http/1.1"));
        let (mut holders, held) = (JoinSet::new(), Arc::default());
        for number in 0..HOLDERS {
            holders.spawn(hold(number, to, Arc::clone(&client), Arc::clone(&held)));
        }
        eventually("the face is full", async || (held.load(Ordering::Relaxed) >= HELD_MIN).then_some(())).await;
        let siege = besieged(&federation, &leader, other, &mut connected).await;
        let asked = Instant::now();
        // So many come at once that its turn may be over before it has asked: then it comes again.
        eventually("a newcomer is answered", async || {
            federation.client_with(&leader, None).read("/v1/health").await.ok()
        })
        .await;
        let beside = asked.elapsed();
        holders.shutdown().await;
        let (_, after) = newcomer(&federation, &leader).await;
        eprintln!(
            "{} commits, {:?} computed, {} files at most; a newcomer in {beside:?} beside and {after:?} afterwards",
            siege.acknowledged.len(),
            siege.computed,
            siege.most_files
        );
        let files = usize::try_from(FILES).expect("a small number");
        assert!(siege.most_files <= files - LEFT_MIN, "{} of {FILES} are open", siege.most_files);
        assert!(!log(&federation, &leader).contains(FAILED_TO_ACCEPT), "it never lacked one");
        // It does the handshakes of all who come.
        assert!(siege.computed < 2 * COMPUTED_MAX, "{:?} computed", siege.computed);
        assert!(beside.max(after) < NEWCOMER_MAX, "{beside:?} beside and {after:?} afterwards");
        nothing_is_lost(&federation, other, &siege.acknowledged).await;
        federation.kill(&leader);
        federation.launch_with_files(&leader, FILES);
        federation.answers(&leader).await;
    })
    .await;
}

/// Lets a running process have so many files and sockets, and no more.
fn limit_files(process: u32, files: usize) {
    let limit = format!("--nofile={files}:");
    let limited = Command::new("prlimit").args(["--pid", &process.to_string(), &limit]).status();
    assert!(limited.expect("a program of the system").success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_without_a_descriptor_waits_and_goes_on() {
    turns::alone(async || {
        let mut federation = Federation::start();
        // What a gateway says is written to a file where it was started here.
        for state in STATES {
            federation.stop(state);
            federation.restart(state).await;
        }
        let (leader, other) = leader_and_other(&federation).await;
        // Everybody has told it something, and so has its connections.
        let mut researcher = federation.client(other, &format!("researcher.{other}"));
        let id = submit(&mut researcher, &task(&["true"])).await;
        ended(&mut researcher, &id).await;
        eventually("every state lends", async || {
            let shown = researcher.read("/v1/capacity?consistency=linearizable").await.ok()?;
            let mut pools = shown["pools"].as_array()?.iter();
            pools.all(|it| it["age_ms"].as_u64().is_some_and(|age| age < 3_000)).then_some(())
        })
        .await;
        let mut connected = federation.client_with(&leader, None);
        connected.read("/v1/health").await.expect("a connection");
        let process = federation.process(&leader);
        limit_files(process, open_files(process));
        let to = public(&federation, &leader);
        // The system takes them; nobody accepts them.
        let mut waiting = vec![];
        for _ in 0..50 {
            waiting.push(connect_from(20, to).await.expect("the system takes it"));
        }
        let siege = besieged(&federation, &leader, other, &mut connected).await;
        let failures = log(&federation, &leader).matches(FAILED_TO_ACCEPT).count();
        eprintln!(
            "{} commits, {:?} computed, {failures} times without a descriptor",
            siege.acknowledged.len(),
            siege.computed
        );
        assert!(failures > 0, "it never lacked a descriptor");
        let patient = usize::try_from(siege.took.as_millis() / TRIES_EVERY.as_millis()).expect("a short siege");
        assert!(failures < patient, "{failures} tries in {:?}", siege.took);
        assert!(siege.computed < COMPUTED_MAX, "{:?} computed", siege.computed);
        limit_files(process, 4_096);
        drop(waiting);
        let (_, after) = timeout(PATIENCE, newcomer(&federation, &leader)).await.expect("an answer");
        assert!(after < NEWCOMER_MAX, "{after:?} for a newcomer");
        nothing_is_lost(&federation, other, &siege.acknowledged).await;
    })
    .await;
}
