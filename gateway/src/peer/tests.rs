//! Two gateways, and what one of them gets to hear when the other is slow, busy, away or let go.
//!
//! Every wait is for an event; [`PATIENCE`] only turns a missing one into a failure.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use bytes::Bytes;
use federation::raft::{Rpc, Transport, TransportError};
use futures_util::future::join_all;
use http::{Request, StatusCode};
use http_body_util::Full;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::client::{PeerAddress, RaftLanes};
use super::server::elsewhere;
use super::*;
use crate::listener::tests::tls::{Peering, id};
use crate::listener::{Connections, Face, Limits, serve};

const PATIENCE: Duration = Duration::from_secs(60);

/// FR/fr-1 listens, and FR/fr-2 calls it.
struct Pair {
    peers: Arc<Peers>,
    connections: Connections,
}

impl Pair {
    /// FR/fr-1 listens on `threads`.
    async fn on(threads: &Handle, app: Router) -> Pair {
        let peering = Peering::new();
        let listener = threads.spawn(TcpListener::bind("127.0.0.1:0")).await.expect("no panic").expect("a port");
        let address = listener.local_addr().expect("an address");
        let connections = Connections::default();
        let face = Face::Peer(connections.clone());
        let server = peering.server("FR/fr-1");
        threads.spawn(serve(listener, server, face, app, Limits::peer(), CancellationToken::new()));
        Pair { peers: Arc::new(peers(&peering, address)), connections }
    }

    async fn get(&self, lane: Lane, path: &str) -> Result<Bytes, PeerError> {
        let called = self.peers.call(&id("FR/fr-1"), lane, request(path), PATIENCE).await;
        called.map(|(_, body)| body)
    }
}

fn peers(peering: &Peering, address: SocketAddr) -> Peers {
    let address = PeerAddress { id: id("FR/fr-1"), node: 1, address: address.to_string() };
    Peers::new(peering.trust(), peering.leaf("FR/fr-2"), [address])
}

fn request(path: &str) -> Request<Full<Bytes>> {
    Request::get(path).body(Full::default()).expect("a request")
}

async fn patient<F: Future>(future: F) -> F::Output {
    timeout(PATIENCE, future).await.expect("an event that does not come")
}

#[tokio::test]
async fn callers_who_wait_for_a_connection_share_it() {
    let peering = Peering::new();
    let server = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let behind = server.local_addr().expect("an address");
    let app = Router::new().route("/", get(async || "fine"));
    let face = Face::Peer(Connections::default());
    tokio::spawn(serve(server, peering.server("FR/fr-1"), face, app, Limits::peer(), CancellationToken::new()));

    let between = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let peers = peers(&peering, between.local_addr().expect("an address"));
    let accepted = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&accepted);
    tokio::spawn(async move {
        while let Ok((mut from, _)) = between.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                let mut to = TcpStream::connect(behind).await.expect("a connection");
                let _either_end_closed = copy_bidirectional(&mut from, &mut to).await;
            });
        }
    });
    let gateway = id("FR/fr-1");
    let calls = (0..8).map(|_| peers.call(&gateway, Lane::Tasks, request("/"), PATIENCE));
    for answer in join_all(calls).await {
        assert_eq!(answer.expect("an answer").1, "fine");
    }
    assert_eq!(accepted.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn who_is_busy_has_refused_nothing() {
    let answer = async |Path(status): Path<u16>| StatusCode::from_u16(status).expect("a status");
    let raft = async |Path(rpc): Path<String>| match rpc.as_str() {
        "propose" => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::FORBIDDEN,
    };
    let app = Router::new().route("/{status}", get(answer)).route("/raft/{rpc}", post(raft));
    let pair = Pair::on(&Handle::current(), app).await;
    for (path, busy) in [("/408", true), ("/429", true), ("/503", true), ("/403", false), ("/500", false)] {
        let error = pair.get(Lane::Tasks, path).await.expect_err("an error");
        assert_eq!(matches!(error, PeerError::Busy { .. }), busy, "{path}: {error}");
        assert_eq!(matches!(error, PeerError::Refused { .. }), !busy, "{path}: {error}");
    }
    let lanes = RaftLanes(pair.peers);
    let proposed = lanes.call(1, Rpc::Propose, Bytes::new(), PATIENCE).await;
    assert!(matches!(proposed, Err(TransportError::Unreachable(_))), "{proposed:?}");
    let voted = lanes.call(1, Rpc::Vote, Bytes::new(), PATIENCE).await;
    assert!(matches!(voted, Err(TransportError::Refused(_))), "{voted:?}");
}

/// A researcher who takes nothing of what is relayed to him shares a connection with all others of his gateway.
#[tokio::test]
async fn answers_that_nobody_takes_hold_up_no_others() {
    let large = async || Bytes::from(vec![0; 1_024 * 1_024]);
    let app = Router::new().route("/large", get(large)).route("/small", get(async || Bytes::from(vec![0; 32 * 1_024])));
    let pair = Pair::on(&Handle::current(), app).await;
    let mut untaken = vec![];
    for _ in 0..16 {
        let sent = pair.peers.send(&id("FR/fr-1"), Lane::Tasks, request("/large"), PATIENCE).await;
        untaken.push(sent.expect("an answer's head"));
    }
    for _ in 0..100 {
        let small = pair.get(Lane::Tasks, "/small").await;
        assert_eq!(small.expect("an answer").len(), 32 * 1_024);
    }
}

#[tokio::test]
async fn a_gateway_that_is_away_has_surely_not_heard_it() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = nobody.local_addr().expect("an address");
    drop(nobody);
    let peers = peers(&Peering::new(), address);
    for _ in 0..2 {
        let called = peers.call(&id("FR/fr-1"), Lane::Votes, request("/"), PATIENCE).await;
        assert!(matches!(called, Err(PeerError::Unreachable { .. })), "{called:?}");
    }
}

/// The first call of `/` and of a heartbeat is never answered; each call is noted.
#[derive(Clone, Default)]
struct First {
    calls: Arc<AtomicUsize>,
    came: Arc<Notify>,
}

async fn first_never(State(first): State<First>) -> &'static str {
    let number = first.calls.fetch_add(1, Ordering::SeqCst);
    first.came.notify_one();
    if number == 0 {
        std::future::pending::<()>().await;
    }
    "fine"
}

fn first_never_app(first: &First) -> Router {
    let app = Router::new().route("/", get(first_never)).route("/raft/{rpc}", post(first_never));
    app.with_state(first.clone())
}

#[tokio::test]
async fn hanging_up_breaks_off_what_is_under_way_and_the_next_call_dials_again() {
    let first = First::default();
    let pair = Pair::on(&Handle::current(), first_never_app(&first)).await;
    let hang_up = async {
        first.came.notified().await;
        pair.peers.hang_up_all_of(id("DE/de-1").state);
        pair.peers.hang_up_all_of(id("FR/fr-1").state);
    };
    let (broken, ()) = patient(async { tokio::join!(pair.get(Lane::Tasks, "/"), hang_up) }).await;
    assert!(matches!(broken, Err(PeerError::Broken { .. })), "{broken:?}");
    assert_eq!(pair.get(Lane::Tasks, "/").await.expect("an answer"), "fine");
}

#[tokio::test]
async fn raft_speaks_on_when_its_connection_was_closed_for_a_new_certificate() {
    for closed_here in [true, false] {
        let first = First::default();
        let pair = Pair::on(&Handle::current(), first_never_app(&first)).await;
        let lanes = RaftLanes(Arc::clone(&pair.peers));
        let close = async {
            first.came.notified().await;
            if closed_here {
                pair.peers.hang_up_all_of(id("FR/fr-1").state);
            } else {
                assert_eq!(pair.connections.close_all_of(id("FR/fr-2").state), 1);
            }
        };
        let call = lanes.call(1, Rpc::Heartbeat, Bytes::new(), PATIENCE);
        let (answered, ()) = patient(async { tokio::join!(call, close) }).await;
        assert_eq!(answered.expect("an answer"), "fine", "closed here: {closed_here}");
        assert_eq!(first.calls.load(Ordering::SeqCst), 2);
    }
}

#[tokio::test]
async fn raft_is_heard_while_the_main_runtime_is_busy() {
    let rafts_own = PeerThreads::start().expect("threads");
    let threads = PeerThreads::start().expect("threads");
    let name = async || std::thread::current().name().unwrap_or_default().to_owned();
    let other = Router::new().route("/other", get(name)).layer(from_fn_with_state(Handle::current(), elsewhere));
    let app = Router::new().route("/raft/{rpc}", post(name)).merge(other);
    let pair = Pair::on(threads.handle(), app).await;
    let elsewhere = pair.get(Lane::Tasks, "/other").await.expect("an answer");
    assert_ne!(elsewhere, "entente-peers");

    // This test's runtime has one thread, and that does nothing but wait now.
    let (heard, hear) = mpsc::channel();
    let lanes = RaftLanes(pair.peers);
    rafts_own.handle().spawn(async move {
        for rpc in [Rpc::Heartbeat, Rpc::Append, Rpc::Propose] {
            let answered = lanes.call(1, rpc, Bytes::new(), PATIENCE).await;
            heard.send(answered).expect("somebody listens");
        }
    });
    for _ in 0..3 {
        let answered = hear.recv_timeout(PATIENCE).expect("an event that does not come");
        assert_eq!(answered.expect("an answer"), "entente-peers");
    }
}
