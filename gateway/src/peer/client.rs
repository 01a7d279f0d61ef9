//! The peer client: a few long-lived HTTP/2 connections to every other gateway.
//!
//! Lanes keep traffic apart: a large snapshot or a slow relay must not delay a heartbeat. A
//! connection that fails is dropped and dialled again by the next call, once for all who wait for it.
//! A request that was sent is not repeated here, because only the caller knows whether it may be.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use certs::{GatewayId, MemberState, SharedLeaf, SharedTrust};
use federation::raft::{NodeId, Rpc, Transport, TransportError};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper::rt::Executor;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use crate::listener::gather;

/// A gateway that does not accept or shake hands within this is away.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// A silent peer is noticed within interval + timeout.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(2);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(4);
/// A snapshot is the largest answer and is sent in pieces below this.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Bytes of one answer that come before they are read, and the answers at once on one connection, as many as a peer gives.
/// There is room for all of them: those that nobody takes hold up no others.
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
const STREAMS_MAX: u32 = 256;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Log entries and forwarded proposals.
    Log,
    /// Votes and read indexes: small and urgent.
    Votes,
    /// Snapshots: large and patient.
    Snapshot,
    /// Relayed requests, orders, records and logs.
    Tasks,
}

/// Why a peer gave no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PeerError {
    /// The registry names no such gateway.
    #[error("the registry knows no gateway {0}")]
    Unknown(String),
    /// No connection: the request was surely not sent.
    #[error("gateway {gateway} cannot be reached: {reason}")]
    Unreachable {
        /// Who was called.
        gateway: String,
        /// The first cause, in the system's words.
        reason: String,
    },
    /// The connection broke: the request may have arrived.
    #[error("the connection to gateway {gateway} broke: {reason}")]
    Broken {
        /// Who was called.
        gateway: String,
        /// The first cause, in the system's words.
        reason: String,
    },
    /// The peer has too much to do, or is about to stop: the request was not carried out and may be repeated.
    #[error("gateway {gateway} is busy: {status}")]
    Busy {
        /// Who was called.
        gateway: String,
        /// HTTP status.
        status: StatusCode,
    },
    /// No answer in time.
    #[error("gateway {0} did not answer in time")]
    Late(String),
    /// The peer refused the request.
    #[error("gateway {gateway} refused: {status} {reason}")]
    Refused {
        /// Who was called.
        gateway: String,
        /// HTTP status.
        status: StatusCode,
        /// The peer's words, shortened.
        reason: String,
    },
}

/// Where a gateway listens for its peers.
#[derive(Clone, Debug)]
pub struct PeerAddress {
    /// Who answers there.
    pub id: GatewayId,
    /// Its node in the consensus.
    pub node: NodeId,
    /// `host:port`
    pub address: String,
}

type Connection = SendRequest<Full<Bytes>>;

/// A connection from the moment at which it is dialled. Everybody who waits for it gets the same one, or the same failure.
#[derive(Clone)]
struct Dialled {
    connection: Shared<BoxFuture<'static, Result<Connection, PeerError>>>,
    hung_up: CancellationToken,
}

/// All other gateways, ready to be called.
pub struct Peers {
    trust: SharedTrust,
    leaf: SharedLeaf,
    addresses: BTreeMap<GatewayId, PeerAddress>,
    by_node: BTreeMap<NodeId, GatewayId>,
    dialled: Mutex<HashMap<(GatewayId, Lane), Dialled>>,
    away: Away,
}

/// The peers that cannot be reached, so that the log says it once and not with every try.
#[derive(Clone, Default)]
struct Away(Arc<Mutex<BTreeSet<GatewayId>>>);

impl Away {
    fn note(&self, peer: &GatewayId, failure: Option<&PeerError>) {
        let mut away = self.0.lock().expect("invariant: nothing panics while it notes who is away");
        match failure {
            Some(cause) if away.insert(peer.clone()) => tracing::warn!(%peer, %cause, "a peer is lost"),
            None if away.remove(peer) => tracing::info!(%peer, "a peer is back"),
            _ => {}
        }
    }
}

impl Peers {
    /// Peers at these addresses; nothing is dialled yet.
    pub fn new(trust: SharedTrust, leaf: SharedLeaf, addresses: impl IntoIterator<Item = PeerAddress>) -> Peers {
        let addresses: BTreeMap<_, _> = addresses.into_iter().map(|peer| (peer.id.clone(), peer)).collect();
        let by_node = addresses.values().map(|peer| (peer.node, peer.id.clone())).collect();
        Peers { trust, leaf, addresses, by_node, dialled: Mutex::default(), away: Away::default() }
    }

    /// Sends one request and returns the answer's head; the body streams.
    pub async fn send(
        &self,
        to: &GatewayId,
        lane: Lane,
        mut request: Request<Full<Bytes>>,
        at_most: Duration,
    ) -> Result<Response<Incoming>, PeerError> {
        *request.uri_mut() = absolute(to, request.uri());
        let sending = async {
            let (dialled, mut connection) = self.ready(to, lane).await?;
            let answer = connection.send_request(request).await;
            answer.map_err(|cause| {
                self.forget(to, lane, &dialled);
                broken(to, &cause)
            })
        };
        timeout(at_most, sending).await.unwrap_or_else(|_| Err(PeerError::Late(to.to_string())))
    }

    /// Sends one request and collects a successful answer.
    pub async fn call(
        &self,
        to: &GatewayId,
        lane: Lane,
        request: Request<Full<Bytes>>,
        at_most: Duration,
    ) -> Result<(http::response::Parts, Bytes), PeerError> {
        let calling = async {
            let (head, body) = self.send(to, lane, request, at_most).await?.into_parts();
            let body = gather(Limited::new(body, ANSWER_BYTES_MAX)).await.map_err(|cause| broken(to, &cause))?;
            match head.status {
                status if status.is_success() => Ok((head, body)),
                status if may_be_repeated(status) => Err(PeerError::Busy { gateway: to.to_string(), status }),
                status => {
                    let reason = String::from_utf8_lossy(&body).chars().take(500).collect();
                    Err(PeerError::Refused { gateway: to.to_string(), status, reason })
                }
            }
        };
        timeout(at_most, calling).await.unwrap_or_else(|_| Err(PeerError::Late(to.to_string())))
    }

    /// Ends every connection to a state's gateways, also those that are being dialled; requests on them break off.
    pub fn hang_up_all_of(&self, state: MemberState) {
        for (_, dialled) in self.lock().extract_if(|(gateway, _), _| gateway.state == state) {
            dialled.hung_up.cancel();
        }
    }

    /// A connection that takes a request now. One that turns out to be closed is dialled again, once: nothing was sent.
    async fn ready(&self, to: &GatewayId, lane: Lane) -> Result<(Dialled, Connection), PeerError> {
        for _ in 0..2 {
            let dialled = self.dialled(to, lane);
            let mut connection = dialled.connection.clone().await?;
            if connection.ready().await.is_ok() {
                return Ok((dialled, connection));
            }
            self.forget(to, lane, &dialled);
        }
        Err(unreachable(to, &"its connections are closed at once"))
    }

    fn dialled(&self, to: &GatewayId, lane: Lane) -> Dialled {
        let mut all = self.lock();
        if let Some(dialled) = all.get(&(to.clone(), lane)).filter(|it| it.is_of_use()) {
            return dialled.clone();
        }
        let dialled = self.dial(to);
        all.insert((to.clone(), lane), dialled.clone());
        dialled
    }

    /// Dials in a task of its own: a caller that gives up does not end it for the others. The connection lives on the
    /// threads of its first caller, which are Raft's for Raft's lanes.
    fn dial(&self, to: &GatewayId) -> Dialled {
        let hung_up = CancellationToken::new();
        let dialling = match self.addresses.get(to) {
            None => return Dialled::failed(PeerError::Unknown(to.to_string())),
            Some(peer) => dial(peer.clone(), self.trust.clone(), self.leaf.clone(), hung_up.clone()),
        };
        let (away, peer) = (self.away.clone(), to.clone());
        let dialling = tokio::spawn(async move {
            let dialled = dialling.await;
            away.note(&peer, dialled.as_ref().err());
            dialled
        });
        let to = to.clone();
        let connection = async move { dialling.await.unwrap_or_else(|cause| Err(unreachable(&to, &cause))) };
        Dialled { connection: connection.boxed().shared(), hung_up }
    }

    fn forget(&self, to: &GatewayId, lane: Lane, dialled: &Dialled) {
        let mut all = self.lock();
        let key = (to.clone(), lane);
        // Somebody else may have dialled anew already.
        if all.get(&key).is_some_and(|it| it.connection.ptr_eq(&dialled.connection)) {
            all.remove(&key);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(GatewayId, Lane), Dialled>> {
        self.dialled.lock().expect("invariant: nothing panics while it holds the connections")
    }
}

impl Dialled {
    fn failed(error: PeerError) -> Dialled {
        let connection = std::future::ready(Err(error)).boxed().shared();
        Dialled { connection, hung_up: CancellationToken::new() }
    }

    /// Open, or not yet known to be of no use.
    fn is_of_use(&self) -> bool {
        match self.connection.peek() {
            None => true,
            Some(Ok(connection)) => !connection.is_closed(),
            Some(Err(_)) => false,
        }
    }
}

/// Dials within [`DIAL_TIMEOUT`], and serves the connection until it ends or is hung up.
async fn dial(
    peer: PeerAddress,
    trust: SharedTrust,
    leaf: SharedLeaf,
    hung_up: CancellationToken,
) -> Result<Connection, PeerError> {
    let to = &peer.id;
    let connecting = async {
        let unreachable = |cause| unreachable(to, &cause);
        let stream = TcpStream::connect(&peer.address).await.map_err(unreachable)?;
        stream.set_nodelay(true).map_err(unreachable)?;
        let config = certs::peer_client_config(trust, leaf, to.clone());
        TlsConnector::from(config).connect(server_name(&peer.address), stream).await.map_err(unreachable)
    };
    let stream = tokio::select! {
        connected = timeout(DIAL_TIMEOUT, connecting) => connected.map_err(|_| unreachable(to, &"it is silent"))??,
        () = hung_up.cancelled() => return Err(unreachable(to, &"its state's certificates have changed meanwhile")),
    };
    let tasks = UntilHungUp(hung_up);
    let (connection, driver) = http2::Builder::new(tasks.clone())
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE_EVERY)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(STREAMS_MAX * STREAM_WINDOW_BYTES)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|cause| unreachable(to, &cause))?;
    tasks.execute(async move {
        if let Err(cause) = driver.await {
            tracing::debug!(peer = %peer.id, %cause, "peer connection ended");
        }
    });
    Ok(connection)
}

/// Runs a connection's tasks, and drops them when it is hung up; the socket goes with them.
#[derive(Clone)]
struct UntilHungUp(CancellationToken);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for UntilHungUp {
    fn execute(&self, task: F) {
        tokio::spawn(self.0.clone().run_until_cancelled_owned(task));
    }
}

/// The peer's way to say that it did nothing, and that it may do it later.
fn may_be_repeated(status: StatusCode) -> bool {
    [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE].contains(&status)
}

/// The consensus's view of its peers.
pub struct RaftLanes(pub Arc<Peers>);

impl Transport for RaftLanes {
    fn call(
        &self,
        to: NodeId,
        rpc: Rpc,
        body: Bytes,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>> {
        let peers = Arc::clone(&self.0);
        Box::pin(async move {
            let Some(gateway) = peers.by_node.get(&to).cloned() else {
                return Err(TransportError::Unreachable(format!("no gateway has node {to}")));
            };
            let deadline = Instant::now() + timeout;
            let call = async || {
                let request = Request::builder()
                    .method(Method::POST)
                    .uri(format!("/raft/{}", rpc.as_str()))
                    .body(Full::new(body.clone()))
                    .expect("invariant: an RPC's name is a path segment");
                peers.call(&gateway, lane(rpc), request, timeout).await
            };
            let calling = async {
                match call().await {
                    // Raft's messages may be repeated, and so may an envelope: its serial names it. Without this a
                    // connection that was closed for new certificates looks like a peer that is away.
                    Err(PeerError::Broken { .. }) => call().await,
                    answered => answered,
                }
            };
            match timeout_at(deadline, calling).await {
                Ok(Ok((_, answer))) => Ok(answer),
                Err(_) | Ok(Err(PeerError::Late(_))) => Err(TransportError::Timeout),
                Ok(Err(refused @ PeerError::Refused { .. })) => Err(TransportError::Refused(refused.to_string())),
                Ok(Err(away)) => Err(TransportError::Unreachable(away.to_string())),
            }
        })
    }
}

fn lane(rpc: Rpc) -> Lane {
    match rpc {
        Rpc::Append | Rpc::Propose => Lane::Log,
        Rpc::Heartbeat | Rpc::Vote | Rpc::PreVote | Rpc::TransferLeader | Rpc::ReadIndex => Lane::Votes,
        Rpc::Snapshot => Lane::Snapshot,
    }
}

/// HTTP/2 wants an absolute URI. The authority is for logs; who answers is checked by TLS.
fn absolute(to: &GatewayId, uri: &Uri) -> Uri {
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    format!("https://{}.{}{path}", to.name, to.state.lower())
        .parse()
        .expect("invariant: a gateway's name is a DNS label")
}

/// Gateways are known by their SPIFFE URI, so this name is never checked; TLS wants one.
fn server_name(address: &str) -> ServerName<'static> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    ServerName::try_from(host.to_owned())
        .unwrap_or_else(|_| ServerName::try_from("gateway.invalid").expect("invariant: a DNS name"))
}

fn unreachable(to: &GatewayId, cause: &dyn std::fmt::Display) -> PeerError {
    PeerError::Unreachable { gateway: to.to_string(), reason: cause.to_string() }
}

fn broken(to: &GatewayId, cause: &dyn std::fmt::Display) -> PeerError {
    PeerError::Broken { gateway: to.to_string(), reason: cause.to_string() }
}
