//! Floods at a gateway's public face: of handshakes, and of HTTP/2 frames that ask for nothing. Whoever sends them is cut
//! off or gives way, what is kept for him is bounded, others are answered, and the federation does not notice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use integration_tests::persistent::Persistent;
use integration_tests::{Federation, PATIENCE, STATES, eventually, task, turns};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader, split};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use super::strangers::{
    END_HEADERS, END_STREAM, HEADERS, PREFACE, SETTINGS, begin_handshake, client_hello, computed, frame, get_health,
    newcomers, public, resident_kib, strange_client, tls,
};

const STORM: Duration = Duration::from_secs(5);
/// Addresses that storm, 127.0.0.10 and following.
const STORMERS: u8 = 16;
/// At once, of each of them.
const LANES: usize = 3;
/// Handshakes that each lane leaves unfinished: more than a face has of them.
const UNFINISHED: usize = 32;
/// Fewer are a storm only where the machine can do no more of them.
const HANDSHAKES_PER_S: f64 = 2_000.0;
/// Of the cores' time, in a storm that is all that a machine can do.
const BUSY_MIN: f64 = 0.85;
/// Of any machine; whoever is refused again and again keeps it busy too.
const HANDSHAKES_PER_S_MIN: f64 = 200.0;
const COMMITS_MIN: usize = 5;
/// For a newcomer in the storm: its handshake waits behind those that came before it.
const IN_THE_STORM_MAX: Duration = Duration::from_secs(5);
/// What a face's unfinished handshakes and their buffers take.
const STORM_KIB_MAX: u64 = 96 * 1_024;

/// Whatever else this machine does makes a storm slower and never faster: the first of so many that is one counts.
const STORMS: usize = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_handshakes_moves_no_leader_and_stops_no_commit() {
    turns::alone(async || {
        gateway::listener::raise_open_files().expect("room for so many sockets here");
        let federation = Federation::start();
        let leader = eventually("a leader", async || federation.leader("FR").await).await;
        let before = resident_kib(federation.process(&leader));
        let mut missed = vec![];
        for number in 0..STORMS {
            let earlier = CoreTimes::now();
            let per_s = storm(&federation, &leader, number, before).await;
            let busy = CoreTimes::now().busy_since(&earlier);
            eprintln!("the cores were busy for {busy:.3} of the time");
            if per_s >= HANDSHAKES_PER_S || (busy >= BUSY_MIN && per_s >= HANDSHAKES_PER_S_MIN) {
                return;
            }
            missed.push((per_s, busy));
        }
        panic!("so many handshakes a second, with the cores so busy, are no storm: {missed:?}");
    })
    .await;
}

/// What all cores did since this machine started, in ticks.
struct CoreTimes {
    idle: u64,
    all: u64,
}

impl CoreTimes {
    fn now() -> CoreTimes {
        let text = std::fs::read_to_string("/proc/stat").expect("a Linux machine");
        let line = text.lines().next().expect("all cores come first");
        // user, nice, system, idle, iowait, irq, softirq, steal; what guests take is part of user and nice.
        let ticks: Vec<u64> = line.split_whitespace().skip(1).take(8).map(|it| it.parse().expect("ticks")).collect();
        CoreTimes { idle: ticks[3] + ticks[4], all: ticks.iter().sum() }
    }

    /// The share of the cores' time in which they did something.
    fn busy_since(&self, earlier: &CoreTimes) -> f64 {
        // Source: proc_stat(5): what was spent waiting for a disk may become less.
        1.0 - self.idle.saturating_sub(earlier.idle) as f64 / (self.all - earlier.all) as f64
    }
}

/// One storm at the leader, which nobody else notices: handshakes a second. It held `before` KiB.
async fn storm(federation: &Federation, leader: &str, number: usize, before: u64) -> f64 {
    let other = *STATES.iter().find(|state| **state != leader).expect("three states");
    let (over, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (address, hello) = (public(federation, leader), Arc::new(client_hello(federation, leader)));
    let process = federation.process(leader);
    let mut stormers = JoinSet::new();
    for lane in 0..LANES * usize::from(STORMERS) {
        let host = 10 + u8::try_from(lane % usize::from(STORMERS)).expect("a few addresses");
        let (over, done, hello) = (Arc::clone(&over), Arc::clone(&done), Arc::clone(&hello));
        stormers.spawn(async move {
            let mut unfinished = std::collections::VecDeque::new();
            while !over.load(Ordering::Relaxed) {
                // One that is refused has cost nothing.
                let Ok(Ok(socket)) = timeout(PATIENCE, begin_handshake(host, address, &hello)).await else { continue };
                done.fetch_add(1, Ordering::Relaxed);
                unfinished.push_back(socket);
                if unfinished.len() > UNFINISHED {
                    unfinished.pop_front();
                }
            }
        });
    }
    let begun = Instant::now();
    let submitting = async {
        let mut researcher = Persistent::at(federation, &[other], &format!("researcher.{other}"));
        let (mut commits, mut slowest) = (0, Duration::ZERO);
        while begun.elapsed() < STORM || commits < COMMITS_MIN {
            let asked = Instant::now();
            researcher.submit(&format!("storm-{number}-{commits}"), &task(&["true"])).await;
            slowest = slowest.max(asked.elapsed());
            commits += 1;
        }
        over.store(true, Ordering::Relaxed);
        (commits, slowest)
    };
    // A look takes less than an election: nobody could lead for a moment and not be missed, or another one.
    let watching = async {
        let mut reader = federation.client_with(other, None);
        let mut led = vec![];
        while !over.load(Ordering::Relaxed) {
            led.push(reader.read("/v1/health").await.expect("an answer")["leader"].clone());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        led
    };
    let coming = newcomers(federation, leader, || over.load(Ordering::Relaxed));
    let ((commits, slowest), led, (_, newcomer)) = tokio::join!(submitting, watching, coming);
    let took = begun.elapsed();
    let after = resident_kib(process);
    while let Some(stormer) = stormers.join_next().await {
        stormer.expect("no panic");
    }
    let per_s = done.load(Ordering::Relaxed) as f64 / took.as_secs_f64();
    eprintln!(
        "{per_s:.0} handshakes a second, {commits} commits, the slowest in {slowest:?}; {} looks; the slowest newcomer \
         in {newcomer:?}; {before} KiB before, {after} KiB after",
        led.len()
    );
    assert!(led.iter().all(|it| *it == led[0] && it.is_u64()), "{led:?}");
    assert!(newcomer < IN_THE_STORM_MAX, "{newcomer:?} for a newcomer");
    assert!(after < before + STORM_KIB_MAX, "{before} KiB before, {after} KiB after");
    assert_eq!(federation.leader(other).await.as_deref(), Some(leader), "the same leads");
    per_s
}

const DATA: u8 = 0;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const ACK: u8 = 1;

/// A header with this value's length, which nobody has to remember.
fn header(bytes: u8) -> Vec<u8> {
    [&[0x10, 1, b'x', bytes][..], &vec![b'y'; bytes.into()]].concat()
}

/// What is said again, by its number.
type Again = fn(u32) -> Vec<u8>;

/// What each flood says first and then again and again, by its number.
fn of_frames() -> Vec<(&'static str, Vec<u8>, Again)> {
    let open = frame(HEADERS, END_HEADERS, 1, &get_health());
    vec![
        ("rapid reset", vec![], |number| {
            let stream = 2 * number + 1;
            let head = frame(HEADERS, END_HEADERS | END_STREAM, stream, &get_health());
            [head, frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())].concat()
        }),
        ("headers without end", frame(HEADERS, END_STREAM, 1, &get_health()), |_| {
            frame(CONTINUATION, 0, 1, &header(100))
        }),
        ("empty headers without end", frame(HEADERS, END_STREAM, 1, &get_health()), |_| frame(CONTINUATION, 0, 1, &[])),
        ("pings", vec![], |_| frame(PING, 0, 0, b"12345678")),
        ("settings", vec![], |_| frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0])),
        ("priorities", vec![], |number| frame(PRIORITY, 0, 2 * number + 1, &[0, 0, 0, 0, 1])),
        ("windows", vec![], |_| frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes())),
        ("empty data", open, |_| frame(DATA, 0, 1, &[])),
        ("frames that nobody knows", vec![], |_| frame(200, 0, 0, b"?")),
    ]
}

/// How one flood ended.
#[derive(Debug)]
struct Ended {
    farewell: bool,
    frames: u32,
    took: Duration,
}

/// Reads frames until there are no more. Answers pings by `pong`, as an honest client does; whether there was a farewell.
async fn read_frames(reading: impl AsyncRead + Unpin, pong: watch::Sender<Option<Vec<u8>>>) -> bool {
    let mut reading = BufReader::new(reading);
    let mut farewell = false;
    let mut head = [0; 9];
    while reading.read_exact(&mut head).await.is_ok() {
        let [a, b, c, kind, flags, ..] = head;
        let mut content = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        if reading.read_exact(&mut content).await.is_err() {
            break;
        }
        match (kind, flags) {
            (PING, 0) => pong.send_modify(|it| *it = Some(frame(PING, ACK, 0, &content))),
            (GOAWAY, _) => farewell = true,
            _ => {}
        }
    }
    farewell
}

/// Sends frames as fast as they are taken until the other side ends it.
async fn flood(stream: TlsStream<TcpStream>, first: &[u8], more: Again) -> Ended {
    let begun = Instant::now();
    let (reading, mut writing) = split(stream);
    let (pong, pinged) = watch::channel(None);
    let mut frames = 0;
    let write = async {
        let mut bytes = [PREFACE, &frame(SETTINGS, 0, 0, &[]), first].concat();
        while writing.write_all(&bytes).await.is_ok() {
            bytes = pinged.borrow().clone().unwrap_or_default();
            // A packet's worth.
            bytes.extend((frames..frames + 32).flat_map(more));
            frames += 32;
            tokio::task::yield_now().await;
        }
        // What was said to the end is read.
        std::future::pending().await
    };
    let both = async {
        tokio::select! { farewell = read_frames(reading, pong) => farewell, farewell = write => farewell }
    };
    let farewell = timeout(PATIENCE, both).await.expect("a flood that is ended");
    Ended { farewell, frames, took: begun.elapsed() }
}

const FLOODS: Duration = Duration::from_secs(5);
/// A connection that floods is over by then, on a busy machine too.
const FLOOD_MAX: Duration = Duration::from_secs(20);
/// For a newcomer beside them.
const BESIDE_MAX: Duration = Duration::from_secs(5);
const FLOOD_KIB_MAX: u64 = 48 * 1_024;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_frames_are_ended_and_hold_up_nobody() {
    turns::alone(async || {
        let federation = Federation::start();
        let (address, client) = (public(&federation, "FR"), strange_client(&federation, "FR", "h2"));
        let process = federation.process("FR");
        let (before, computed_before) = (resident_kib(process), computed(process));
        let begun = Instant::now();
        let mut floods = JoinSet::new();
        for (what, first, more) in of_frames() {
            let client = Arc::clone(&client);
            floods.spawn(async move {
                let mut slowest = Duration::ZERO;
                let (mut rounds, mut farewells, mut frames) = (0, 0, 0);
                while rounds == 0 || begun.elapsed() < FLOODS {
                    let socket = TcpStream::connect(address).await.expect("a connection");
                    let stream = tls(Arc::clone(&client), socket).await.expect("a handshake");
                    let ended = flood(stream, &first, more).await;
                    slowest = slowest.max(ended.took);
                    farewells += u32::from(ended.farewell);
                    frames = frames.max(ended.frames);
                    rounds += 1;
                }
                eprintln!(
                    "{what}: {rounds} rounds, {farewells} farewells, {frames} frames at most, the slowest {slowest:?}"
                );
                (what, slowest)
            });
        }
        let (led, newcomer) = newcomers(&federation, "FR", || begun.elapsed() > FLOODS).await;
        let after = resident_kib(process);
        while let Some(ended) = floods.join_next().await {
            let (what, slowest) = ended.expect("no panic");
            assert!(slowest < FLOOD_MAX, "{what} went on for {slowest:?}");
        }
        eprintln!(
            "the slowest newcomer in {newcomer:?}; {before} KiB before, {after} KiB after; {:?} computed",
            computed(process) - computed_before
        );
        assert!(led.iter().all(|it| *it == led[0] && it.is_u64()), "{led:?}");
        assert!(newcomer < BESIDE_MAX, "{newcomer:?} for a newcomer");
        assert!(after < before + FLOOD_KIB_MAX, "{before} KiB before, {after} KiB after");
    })
    .await;
}
