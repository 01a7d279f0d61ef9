//! Connections on which nothing happens: they cost little, and keep nobody out.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use integration_tests::{Federation, PATIENCE, skip_without, turns};
use rustls::ClientConfig;
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use super::peers;
use super::strangers::{
    begin_handshake, client_hello, connect_from, newcomer, newcomers, public, resident_kib, strange_client, tls,
};

type Peer = SendRequest<Full<Bytes>>;

/// A peer's connection that has asked for something once.
async fn peer(config: Arc<ClientConfig>, host: u8, to: SocketAddr) -> Peer {
    let socket = connect_from(host, to).await.expect("a connection");
    let io = TokioIo::new(tls(config, socket).await.expect("a handshake"));
    let (mut peer, connection) = http2::handshake(TokioExecutor::new(), io).await.expect("HTTP/2");
    tokio::spawn(connection);
    let request = Request::get("https://peer.invalid/alive").body(Full::default()).expect("a request");
    let answer = peer.send_request(request).await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::NO_CONTENT);
    answer.into_body().collect().await.expect("nothing");
    peer
}

const IDLE_PEERS: usize = 1_000;
const KIB_PER_IDLE_PEER_MAX: u64 = 37;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_idle_peers_cost_little_memory() {
    turns::alone(async || {
        gateway::listener::raise_open_files().expect("room for so many sockets here");
        let federation = Federation::start();
        let to = peers::address(&federation, "FR").parse().expect("an address");
        let config = peers::client_config(&federation, peers::own_leaf(&federation, "DE"), "FR");
        let mut open = vec![];
        // The first ones fill what all share.
        for _ in 0..20 {
            open.push(peer(Arc::clone(&config), 2, to).await);
        }
        let process = federation.process("FR");
        let before = resident_kib(process);
        for number in 0..IDLE_PEERS {
            let host = u8::try_from(3 + number / 200).expect("a few addresses");
            open.push(peer(Arc::clone(&config), host, to).await);
        }
        let after = resident_kib(process);
        let each = after.saturating_sub(before) as f64 / IDLE_PEERS as f64;
        eprintln!("{IDLE_PEERS} idle peers: {before} KiB before, {after} KiB after, {each:.1} KiB each");
        assert!(open.iter().all(|it| !it.is_closed()), "all of them are still open");
        assert!(each <= KIB_PER_IDLE_PEER_MAX as f64, "{each:.1} KiB each");
    })
    .await;
}

/// More than a face has connections.
const STRANGERS: usize = 4_300;
/// Handshakes that are begun and left.
const BEGUN: usize = 700;
/// Addresses that they come from, 127.0.0.20 and following.
const ADDRESSES: usize = 12;
/// Fewer would leave room for everybody.
const HELD_MIN: usize = 3_000;
const KIB_PER_STRANGER_MAX: u64 = 37;
/// For a newcomer among them.
const NEWCOMER_MAX: Duration = Duration::from_secs(5);

fn host(number: usize) -> u8 {
    20 + u8::try_from(number % ADDRESSES).expect("a few addresses")
}

/// An idle connection that answers pings; it ends when it is closed.
async fn stranger(config: Arc<ClientConfig>, number: usize, to: SocketAddr) -> Option<SendRequest<Full<Bytes>>> {
    let socket = connect_from(host(number), to).await.ok()?;
    let io = TokioIo::new(tls(config, socket).await.ok()?);
    let (stranger, connection) = http2::handshake(TokioExecutor::new(), io).await.ok()?;
    tokio::spawn(connection);
    Some(stranger)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_idle_strangers_keep_nobody_out() {
    turns::alone(async || {
    let files = gateway::listener::raise_open_files().expect("room for so many sockets here");
    if skip_without("15000 open files", files >= 15_000) {
        return;
    }
    let federation = Federation::start();
    let (to, process) = (public(&federation, "FR"), federation.process("FR"));
    let config = strange_client(&federation, "FR", "h2");
    let hello = client_hello(&federation, "FR");
    newcomer(&federation, "FR").await;
    let before = resident_kib(process);
    let all_there = AtomicBool::new(false);
    let coming = async {
        let mut begun = vec![];
        for number in 0..BEGUN {
            begun.push(begin_handshake(host(number), to, &hello).await);
        }
        let numbers = futures_util::stream::iter(0..STRANGERS);
        let strangers = numbers.map(|number| stranger(Arc::clone(&config), number, to)).buffer_unordered(4);
        let strangers: Vec<_> = strangers.filter_map(std::future::ready).collect().await;
        all_there.store(true, Ordering::Relaxed);
        (begun, strangers)
    };
    let newcomers = newcomers(&federation, "FR", || all_there.load(Ordering::Relaxed));
    let ((begun, mut strangers), (_, slowest)) = tokio::join!(coming, newcomers);
    let (_, last) = newcomer(&federation, "FR").await;
    let after = resident_kib(process);
    let came = strangers.len();
    strangers.retain(|it| !it.is_closed());
    let each = after.saturating_sub(before) as f64 / strangers.len() as f64;
    eprintln!(
        "{} of {came} idle strangers held: {before} KiB before, {after} KiB after, {each:.1} KiB each; newcomers in \
         {slowest:?} at most, and {last:?} at last",
        strangers.len()
    );
    assert!(strangers.len() >= HELD_MIN, "{} held", strangers.len());
    assert!(strangers.len() < STRANGERS, "all of them are held, so the face was not full");
    assert!(each <= KIB_PER_STRANGER_MAX as f64, "{each:.1} KiB each");
    assert!(slowest.max(last) < NEWCOMER_MAX, "{slowest:?} and {last:?} for a newcomer");
    // Who has begun a handshake and says no more is cut before long.
    for socket in begun.into_iter().flatten() {
        let mut socket = socket;
        let mut rest = vec![];
        let _cut = timeout(PATIENCE, socket.read_to_end(&mut rest)).await.expect("an end");
    }
    })
    .await;
}
