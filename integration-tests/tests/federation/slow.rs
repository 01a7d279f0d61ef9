//! Clients that are slow or have no end, each with the limits that a whole gateway has: their time is over, one by one,
//! nothing of them is kept, and others are answered meanwhile.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use integration_tests::{Federation, TASKS};
use rustls::ClientConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt, split};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::client::TlsStream;

use super::strangers::{
    END_HEADERS, END_STREAM, HEADERS, PREFACE, SETTINGS, frame, get_health, newcomers, public, resident_kib,
    strange_client, tls,
};

/// What a client does, and what becomes of it.
struct Row {
    what: &'static str,
    protocol: &'static str,
    /// Said at once.
    first: Vec<u8>,
    /// Said again and again with a pause.
    then: Vec<u8>,
    pause: Duration,
    /// Whether it takes what it is answered.
    reads: bool,
    /// With which it is told why, if it is told.
    answer: &'static str,
    /// It is over by then: its limit, and what a busy machine needs.
    within: Duration,
}

/// A drop of a head or a body.
const DRIP: Duration = Duration::from_millis(500);
const NEWCOMER_MAX: Duration = Duration::from_secs(5);
const KIB_MAX: u64 = 32 * 1_024;

fn rows(token: &str) -> Vec<Row> {
    let post = |headers: &str| {
        let known = format!("Authorization: Bearer {token}\r\nContent-Type: application/json\r\n");
        format!("POST {TASKS} HTTP/1.1\r\nHost: a\r\n{known}{headers}\r\n").into_bytes()
    };
    let chunk = |bytes: usize| format!("{bytes:x}\r\n{}\r\n", "x".repeat(bytes)).into_bytes();
    let http2 = |settings: &[u8], more: &[u8]| [PREFACE, &frame(SETTINGS, 0, 0, settings), more].concat();
    let silent = || (vec![], Duration::from_secs(3_600));
    let row = |what, protocol, first: Vec<u8>, (then, pause), answer, within_s| Row {
        what,
        protocol,
        first,
        then,
        pause,
        reads: true,
        answer,
        within: Duration::from_secs(within_s),
    };
    let [http1, h2] = ["http/1.1", "h2"];
    let get = b"GET /v1/capacity HTTP/1.1\r\nHost: a\r\n\r\n".to_vec();
    let no_window = [0, 4, 0, 0, 0, 0];
    vec![
        row("says nothing", http1, vec![], silent(), "", 30),
        row("a head that drips", http1, b"GET / HTTP/1.1\r\nX-A: ".to_vec(), (b"x".to_vec(), DRIP), "", 30),
        row("headers that drip", http1, b"GET / HTTP/1.1\r\n".to_vec(), (b"X-A: x\r\n".to_vec(), DRIP), "", 30),
        row(
            "endless headers",
            http1,
            b"GET / HTTP/1.1\r\n".to_vec(),
            (b"X-A: x\r\n".to_vec(), Duration::ZERO),
            "431",
            30,
        ),
        row("a body that drips", http1, post("Content-Length: 4000\r\n"), (b"x".to_vec(), DRIP), "408", 75),
        row("a body that stops", http1, post("Content-Length: 4000\r\n"), silent(), "408", 75),
        row("a body that is said to be giant", http1, post("Content-Length: 1099511627776\r\n"), silent(), "413", 30),
        row(
            "an endless body",
            http1,
            post("Transfer-Encoding: chunked\r\n"),
            (chunk(10_000), Duration::ZERO),
            "413",
            30,
        ),
        row("half a preface", h2, b"PRI * HTT".to_vec(), silent(), "", 60),
        row("nothing but a preface", h2, http2(&[], &[]), silent(), "", 35),
        row("half a head", h2, http2(&[], &frame(HEADERS, END_STREAM, 1, &get_health())), silent(), "", 35),
        Row {
            reads: false,
            ..row("answers that nobody reads", http1, vec![], (get.repeat(50), Duration::ZERO), "", 30)
        },
        row(
            "an answer that is never let through",
            h2,
            http2(&no_window, &frame(HEADERS, END_HEADERS | END_STREAM, 1, &get_health())),
            silent(),
            "",
            30,
        ),
    ]
}

/// Does that until the other side ends it: what it answered.
async fn endure(stream: TlsStream<TcpStream>, row: &Row) -> Vec<u8> {
    let (mut reading, mut writing) = split(stream);
    let mut answer = vec![];
    let write = async {
        let mut written = writing.write_all(&row.first).await;
        while written.is_ok() {
            sleep(row.pause).await;
            written = writing.write_all(&row.then).await;
        }
    };
    let read = async {
        let _cut = reading.read_to_end(&mut answer).await;
    };
    if row.reads {
        // What was said before the end is read.
        let forever = async {
            write.await;
            std::future::pending::<()>().await;
        };
        tokio::select! { () = read => {}, () = forever => {} }
    } else {
        write.await;
    }
    answer
}

async fn connect(client: Arc<ClientConfig>, to: SocketAddr) -> TlsStream<TcpStream> {
    tls(client, TcpStream::connect(to).await.expect("a connection")).await.expect("a handshake")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_slow_and_the_endless_are_cut_in_time() {
    let federation = Federation::start();
    let (to, process) = (public(&federation, "FR"), federation.process("FR"));
    let before = resident_kib(process);
    let rows = rows(&federation.token("researcher.FR"));
    let all = join_all(rows.iter().map(async |row| {
        let stream = connect(strange_client(&federation, "FR", row.protocol), to).await;
        let begun = Instant::now();
        let answer = timeout(row.within, endure(stream, row)).await;
        (answer, begun.elapsed())
    }));
    let over = AtomicBool::new(false);
    let all = async {
        let all = all.await;
        over.store(true, Ordering::Relaxed);
        all
    };
    let others = newcomers(&federation, "FR", || over.load(Ordering::Relaxed));
    let (all, (_, slowest)) = tokio::join!(all, others);
    let after = resident_kib(process);
    eprintln!("{before} KiB before, {after} KiB after; the slowest newcomer in {slowest:?}");
    for (row, (answer, took)) in rows.iter().zip(all) {
        let answer = answer.unwrap_or_else(|_| panic!("{}: not within {:?}", row.what, row.within));
        let text = String::from_utf8_lossy(&answer);
        let said = text.lines().next().filter(|line| line.starts_with("HTTP/"));
        eprintln!("{}: {took:?}, {said:?}", row.what);
        assert!(row.answer.is_empty() || text.starts_with(&format!("HTTP/1.1 {}", row.answer)), "{}: {text}", row.what);
    }
    assert!(slowest < NEWCOMER_MAX, "{slowest:?} for a newcomer");
    assert!(after < before + KIB_MAX, "{before} KiB before, {after} KiB after");
}
