//! The peer client: a few long-lived HTTP/2 connections to every other gateway.
//!
//! Lanes keep traffic apart: a large snapshot or a slow relay must not delay a heartbeat. A
//! connection that fails is dropped and dialled again by the next call; nothing is retried here,
//! because only the caller knows whether its request may be repeated.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use certs::{GatewayId, SharedLeaf, SharedTrust};
use federation::raft::{NodeId, Rpc, Transport, TransportError};
use futures_util::future::BoxFuture;
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// A gateway that does not accept or shake hands within this is away.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// A silent peer is noticed within interval + timeout.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(2);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(4);
/// A snapshot is the largest answer and is sent in pieces below this.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

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
    /// No connection, or it broke.
    #[error("gateway {gateway} cannot be reached: {reason}")]
    Unreachable {
        /// Who was called.
        gateway: String,
        /// The first cause, in the system's words.
        reason: String,
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

/// All other gateways, ready to be called.
pub struct Peers {
    trust: SharedTrust,
    leaf: SharedLeaf,
    addresses: BTreeMap<GatewayId, PeerAddress>,
    by_node: BTreeMap<NodeId, GatewayId>,
    connections: Mutex<HashMap<(GatewayId, Lane), Connection>>,
}

impl Peers {
    /// Peers at these addresses; nothing is dialled yet.
    pub fn new(trust: SharedTrust, leaf: SharedLeaf, addresses: impl IntoIterator<Item = PeerAddress>) -> Peers {
        let addresses: BTreeMap<_, _> = addresses.into_iter().map(|peer| (peer.id.clone(), peer)).collect();
        let by_node = addresses.values().map(|peer| (peer.node, peer.id.clone())).collect();
        Peers { trust, leaf, addresses, by_node, connections: Mutex::new(HashMap::new()) }
    }

    /// Sends one request and returns the answer's head; the body streams.
    pub async fn send(
        &self,
        to: &GatewayId,
        lane: Lane,
        mut request: Request<Full<Bytes>>,
        timeout: Duration,
    ) -> Result<Response<Incoming>, PeerError> {
        *request.uri_mut() = absolute(to, request.uri());
        let sending = async {
            let mut connection = self.connection(to, lane).await?;
            let unreachable = |cause| unreachable(to, &cause);
            connection.ready().await.map_err(unreachable)?;
            connection.send_request(request).await.map_err(unreachable)
        };
        match tokio::time::timeout(timeout, sending).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => {
                self.drop_connection(to, lane);
                Err(error)
            }
            Err(_) => Err(PeerError::Late(to.to_string())),
        }
    }

    /// Sends one request and collects a successful answer.
    pub async fn call(
        &self,
        to: &GatewayId,
        lane: Lane,
        request: Request<Full<Bytes>>,
        timeout: Duration,
    ) -> Result<(http::response::Parts, Bytes), PeerError> {
        let calling = async {
            let (head, body) = self.send(to, lane, request, timeout).await?.into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX)
                .collect()
                .await
                .map_err(|cause| unreachable(to, &cause))?
                .to_bytes();
            if !head.status.is_success() {
                let reason = String::from_utf8_lossy(&body).chars().take(500).collect();
                return Err(PeerError::Refused { gateway: to.to_string(), status: head.status, reason });
            }
            Ok((head, body))
        };
        tokio::time::timeout(timeout, calling).await.unwrap_or_else(|_| Err(PeerError::Late(to.to_string())))
    }

    async fn connection(&self, to: &GatewayId, lane: Lane) -> Result<Connection, PeerError> {
        let key = (to.clone(), lane);
        if let Some(connection) = self.lock().get(&key).filter(|it| !it.is_closed()) {
            return Ok(connection.clone());
        }
        let connection = tokio::time::timeout(DIAL_TIMEOUT, self.dial(to))
            .await
            .unwrap_or_else(|_| Err(PeerError::Late(to.to_string())))?;
        self.lock().insert(key, connection.clone());
        Ok(connection)
    }

    async fn dial(&self, to: &GatewayId) -> Result<Connection, PeerError> {
        let peer = self.addresses.get(to).ok_or_else(|| PeerError::Unknown(to.to_string()))?;
        let stream = TcpStream::connect(&peer.address).await.map_err(|cause| unreachable(to, &cause))?;
        stream.set_nodelay(true).map_err(|cause| unreachable(to, &cause))?;
        let config = certs::peer_client_config(self.trust.clone(), self.leaf.clone(), to.clone());
        let stream = TlsConnector::from(config)
            .connect(server_name(&peer.address), stream)
            .await
            .map_err(|cause| unreachable(to, &cause))?;
        let (connection, driver) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEP_ALIVE_EVERY)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(1024 * 1024)
            .initial_connection_window_size(4 * 1024 * 1024)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|cause| unreachable(to, &cause))?;
        let peer = to.to_string();
        tokio::spawn(async move {
            if let Err(cause) = driver.await {
                tracing::debug!(peer, %cause, "peer connection ended");
            }
        });
        Ok(connection)
    }

    /// Drops every connection to a gateway; requests on them break off.
    pub fn hang_up(&self, from: &GatewayId) {
        self.lock().retain(|(gateway, _), _| gateway != from);
    }

    fn drop_connection(&self, to: &GatewayId, lane: Lane) {
        self.lock().remove(&(to.clone(), lane));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(GatewayId, Lane), Connection>> {
        self.connections.lock().expect("invariant: nothing panics while it holds the connections")
    }
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
            let request = Request::builder()
                .method(Method::POST)
                .uri(format!("/raft/{}", rpc.as_str()))
                .body(Full::new(body))
                .expect("invariant: an RPC's name is a path segment");
            match peers.call(&gateway, lane(rpc), request, timeout).await {
                Ok((_, answer)) => Ok(answer),
                Err(PeerError::Late(_)) => Err(TransportError::Timeout),
                Err(refused @ PeerError::Refused { .. }) => Err(TransportError::Refused(refused.to_string())),
                Err(away) => Err(TransportError::Unreachable(away.to_string())),
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
