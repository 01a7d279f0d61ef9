//! Listeners: how bytes from outside become requests. Both faces, public and peer, stand behind this.
//!
//! A client that is silent, slow, greedy or ambiguous costs a bounded amount of memory for a bounded
//! time, and nobody else notices.
//!
//! Invariants: the accept loop waits for no client; every wait has a limit (see [`Limits`]); a handler
//! on the peer face knows who speaks ([`PeerIdentity`]) and from TLS alone; no request carries a
//! header in which somebody claims to know who is speaking.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::response::IntoResponse;
use certs::GatewayId;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::header::{CONNECTION, TRANSFER_ENCODING};
use http::{HeaderValue, Request, Response, Version};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use crate::error::{Code, Problem};
use crate::peer::RELAYED;

mod addresses;
mod connections;
mod frames;
mod framing;
#[doc(hidden)]
pub mod fuzzing;
mod handshakes;
mod head;
mod limits;
mod pulse;
mod requests;
mod unused;
mod watched;

#[cfg(test)]
pub(crate) mod tests;

pub use connections::{Connections, Registered};
pub use limits::{HEAD_BYTES_MAX, HEADERS_MAX, Limits, raise_open_files};
pub use requests::{BadBody, gather, read_body};

use addresses::{Addresses, Place};
use handshakes::{Handshake, Handshakes};
use pulse::{Pulse, Verdict};
use requests::{AnswerBody, Places, RequestBody, Rest, let_go};
use unused::Unused;
use watched::{WatchedSocket, WatchedStream};

/// Out of descriptors, memory or slots: others have to let go first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Streams that a client reset before they were answered (rapid reset).
const PENDING_RESETS_MAX: usize = 20;
/// Streams that this side had to reset, before the connection ends: as many as the library has it. Somebody who is often told
/// to come back is not to be taken for one who means harm, and what harms by frames alone is noticed in `frames.rs`.
const OWN_RESETS_MAX: usize = 1_024;
/// Bytes of one stream's answer that wait for the client.
const SEND_BUFFER_BYTES: usize = 64 * 1_024;
/// For a ping to come back.
const PONG_TIMEOUT: Duration = Duration::from_secs(10);
/// For the last ping to come back, with which HTTP/2 makes sure that no request has crossed the farewell. Who is mute is
/// not waited for any longer: several round trips through Europe, on a busy machine too.
const FAREWELL: Duration = Duration::from_secs(1);

/// Which face listens.
#[derive(Clone, Debug)]
pub enum Face {
    /// HTTPS, HTTP/2 or HTTP/1.1, clients known by their tokens.
    Public,
    /// Mutual TLS, HTTP/2 only, clients are gateways; theirs are these connections.
    Peer(Connections),
}

/// In the extensions of every request on the peer face: the gateway at the other end of the TLS
/// session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity(pub GatewayId);

/// What all connections of a face share.
struct Server {
    tls: TlsAcceptor,
    face: Face,
    app: Router,
    limits: Limits,
    places: Places,
    handshakes: Handshakes,
    unused: Unused,
    shutdown: CancellationToken,
}

/// One connection, after its handshake.
struct Connection {
    server: Arc<Server>,
    pulse: Arc<Pulse>,
    peer: Option<Registered>,
    http2: bool,
    from: IpAddr,
    gives_way: CancellationToken,
}

/// Accepts and serves connections until `shutdown`, then lets requests in flight end for
/// `limits.grace`. Resolves when every connection is closed.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    face: Face,
    app: Router,
    limits: Limits,
    shutdown: CancellationToken,
) {
    let limits = limits.that_fit(limits::open_files());
    let slots = Arc::new(Semaphore::new(limits.connections));
    let addresses = Addresses::default();
    let server = Arc::new(Server {
        tls: TlsAcceptor::from(tls),
        face,
        app,
        places: Places::new(&limits),
        handshakes: Handshakes::new(&limits),
        unused: Unused::default(),
        limits,
        shutdown: shutdown.clone(),
    });
    let connections = TaskTracker::new();
    let accept_all = async {
        loop {
            let (socket, from) = accept(&listener).await;
            let limit = server.limits.connections_per_address;
            let Some(place) = addresses.place(from.ip(), limit) else {
                tracing::debug!(%from, "refused: too many connections of this address");
                continue;
            };
            let Some(begun) = server.handshakes.begin(from.ip()) else {
                tracing::debug!(%from, "refused: too many unfinished handshakes of this address");
                continue;
            };
            let slot = server.slot(&slots).await;
            let connection = Arc::clone(&server).connection(socket, from, place, begun);
            connections.spawn(async move {
                connection.await;
                drop(slot);
            });
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = accept_all => {}
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// The next connection. A client that is gone again is skipped; a lack of descriptors is waited out.
async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(cause) if is_of_one_client(&cause) => {}
            Err(cause) => {
                tracing::warn!(%cause, "cannot accept connections right now");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn is_of_one_client(cause: &io::Error) -> bool {
    matches!(
        cause.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}

impl Server {
    /// A slot for a newcomer. A few are kept free, so that he does not wait until somebody has noticed that he has to go.
    async fn slot(&self, slots: &Arc<Semaphore>) -> OwnedSemaphorePermit {
        loop {
            let free = slots.available_permits() + self.handshakes.leaving() + self.unused.leaving();
            if free < self.limits.connections_kept_free() {
                self.unused.give_way();
            }
            if let Ok(slot) = timeout(ACCEPT_PAUSE, Arc::clone(slots).acquire_owned()).await {
                return slot.expect("invariant: the slots are never closed");
            }
        }
    }

    async fn connection(self: Arc<Self>, socket: TcpStream, from: SocketAddr, _place: Place, begun: Handshake) {
        let shutdown = self.shutdown.clone();
        // What it needs is much more than what the connection needs afterwards, which may stay for days.
        let handshake = Box::pin(timeout(self.limits.handshake, self.handshake(socket, from.ip())));
        let serving = {
            let done = tokio::select! {
                done = handshake => done,
                () = begun.superseded() => return tracing::debug!(%from, "handshake gave way to newer ones"),
                () = shutdown.cancelled() => return,
            };
            drop(begun);
            match done {
                Ok(Ok((stream, connection))) => connection.serve(stream),
                Ok(Err(reason)) => return tracing::debug!(%from, %reason, "handshake failed"),
                Err(_) => return tracing::debug!(%from, "handshake not done in time"),
            }
        };
        serving.await;
    }

    async fn handshake(
        self: &Arc<Self>,
        socket: TcpStream,
        from: IpAddr,
    ) -> Result<(TlsStream<WatchedSocket>, Connection), String> {
        let began = match &self.face {
            Face::Public => None,
            Face::Peer(connections) => Some((connections, connections.begin())),
        };
        let _slower_without = socket.set_nodelay(true);
        let pulse = Arc::new(Pulse::new(Instant::now(), self.unused.turn()));
        let socket = WatchedSocket::new(socket, Arc::clone(&pulse));
        let stream = self.tls.accept(socket).await.map_err(|cause| cause.to_string())?;
        let (_, session) = stream.get_ref();
        let http2 = session.alpn_protocol() == Some(b"h2");
        let peer = match began {
            None => None,
            Some(_) if !http2 => return Err("the peer does not speak HTTP/2".into()),
            Some((connections, began)) => {
                let certificates = session.peer_certificates().unwrap_or_default();
                let peer = certs::peer_of(certificates).map_err(|bad| bad.to_string())?;
                let registered = connections.register(peer, began);
                Some(registered.ok_or("the peer was closed during its handshake")?)
            }
        };
        let server = Arc::clone(self);
        let gives_way = pulse.begin_waiting(Instant::now());
        let connection = Connection { server, pulse, peer, http2, from, gives_way };
        Ok((stream, connection))
    }
}

impl Connection {
    /// The protocol is what ALPN agreed on; nothing is guessed from the first bytes. What is returned has only what is
    /// needed from then on.
    fn serve(self, stream: TlsStream<WatchedSocket>) -> BoxFuture<'static, ()> {
        let this = Arc::new(self);
        let answering = Arc::clone(&this);
        let service = service_fn(move |request| {
            let connection = Arc::clone(&answering);
            async move { Ok::<_, Infallible>(connection.answer(request).await) }
        });
        if this.http2 {
            let io = TokioIo::new(WatchedStream::http2(stream, this.peer.is_some(), Arc::clone(&this.pulse)));
            let connection = Box::pin(http2_builder(&this.server.limits).serve_connection(io, service));
            this.drive(connection).boxed()
        } else {
            let io = TokioIo::new(WatchedStream::http1(stream, Arc::clone(&this.pulse)));
            let connection = Box::pin(http1_builder(&this.server.limits).serve_connection(io, service));
            this.drive(connection).boxed()
        }
    }

    /// Runs the protocol until it ends, or until one of the connection's clocks runs out.
    async fn drive<C>(self: Arc<Self>, mut connection: Pin<Box<C>>)
    where
        C: GracefulConnection,
        C::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let limits = &self.server.limits;
        let mut look = interval(limits.look_every());
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ending_since = None;
        loop {
            tokio::select! {
                ended = connection.as_mut() => {
                    if let Err(cause) = ended {
                        // What the library says, and what made it say so.
                        tracing::debug!(cause = format!("{:#}", anyhow::Error::from_boxed(cause.into())), "connection ended");
                    }
                    return;
                }
                () = self.evicted() => return self.cut("the gateway was evicted"),
                () = self.gives_way.cancelled(), if ending_since.is_none() => {
                    connection.as_mut().graceful_shutdown();
                    if self.pulse.gives_way() {
                        // Not cut: the farewell is sent. Whoever takes its place does not wait for an answer to it.
                        let _said = connection.as_mut().now_or_never();
                        return tracing::debug!("unused, and gave way to a newer connection");
                    }
                    ending_since = Some(Instant::now());
                }
                () = self.server.shutdown.cancelled(), if ending_since.is_none() => {
                    connection.as_mut().graceful_shutdown();
                    ending_since = Some(Instant::now());
                    // A stop waits for the last connection.
                    look = interval(limits.look_every().min(FAREWELL / 4));
                }
                now = look.tick() => match self.pulse.verdict(now, limits, self.http2) {
                    Verdict::Dead(reason) => return self.cut(reason),
                    Verdict::Idle if ending_since.is_none() => {
                        connection.as_mut().graceful_shutdown();
                        ending_since = Some(now);
                    }
                    Verdict::Idle | Verdict::Alive => {
                        let over = |since| now.duration_since(since) >= limits.grace;
                        if ending_since.is_some_and(over) {
                            return self.cut("the grace time is over");
                        }
                        let mute = |since| now.duration_since(since) > FAREWELL && self.pulse.is_still(now, FAREWELL);
                        if ending_since.is_some_and(mute) {
                            // Not cut: what the socket still holds is sent.
                            return tracing::debug!("closed without a farewell");
                        }
                    }
                },
            }
        }
    }

    /// Notes that what the socket still holds is thrown away with the connection.
    fn cut(&self, reason: &'static str) {
        tracing::debug!(reason, "connection cut");
        self.pulse.cut();
    }

    async fn evicted(&self) {
        match &self.peer {
            Some(registered) => registered.closed().await,
            None => std::future::pending().await,
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let (mut head, body) = request.into_parts();
        let is_http1 = head.version < Version::HTTP_2;
        // Who frames a body in chunks may have a proxy in front that read it otherwise: what
        // follows on this connection is nobody's request. Source: RFC 9112, 6.1.
        let is_last = is_http1 && head.headers.contains_key(TRANSFER_ENCODING);
        let refused = if self.pulse.is_ambiguous() {
            let detail = "say once where the body ends: by one Content-Length, or by `Transfer-Encoding: chunked`";
            Err(Problem::new(Code::BadHead, detail))
        } else {
            head::check(&head).and_then(|()| match self.server.face {
                Face::Public if !body.is_end_stream() => head::check_media(&head.headers),
                // What gateways send each other is not JSON; what they relay was looked at where it came in.
                Face::Public | Face::Peer(_) => Ok(()),
            })
        };
        let rest = if is_http1 { Rest::HTTP1 } else { Rest::HTTP2 };
        let path = head.uri.path();
        let place = self.server.places.take(self.from, path, &self.pulse).ok_or_else(|| self.overloaded(path));
        let place = match refused.and(place) {
            Ok(place) => place,
            Err(problem) => {
                let_go(body, rest, &self.pulse);
                return ended(problem.into_response(), is_http1);
            }
        };
        head::drop_identity(&mut head.headers);
        if let Some(registered) = &self.peer {
            head.extensions.insert(PeerIdentity(registered.peer().clone()));
        }
        let body = RequestBody::new(body, self.server.limits.body, rest, Arc::clone(&place));
        let request = Request::from_parts(head, Body::new(body));
        let response = match self.server.app.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        };
        let response = response.map(|body| Body::new(AnswerBody::new(body, place)));
        ended(response, is_last)
    }

    /// A TES client repeats whatever got a 5xx, so researchers are told 429, also when they came by another gateway.
    fn overloaded(&self, path: &str) -> Problem {
        let code = match self.server.face {
            Face::Peer(_) if !path.starts_with(RELAYED) => Code::PeerOverloaded,
            Face::Public | Face::Peer(_) => Code::Overloaded,
        };
        Problem::new(code, "this gateway is answering as many requests as it can; try again")
    }
}

/// The answer, with which an HTTP/1 connection ends if it is its last.
fn ended(mut response: Response<Body>, is_last: bool) -> Response<Body> {
    if is_last {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

fn http1_builder(limits: &Limits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_headers(HEADERS_MAX)
        .max_header_size(HEAD_BYTES_MAX)
        .max_buf_size(SEND_BUFFER_BYTES);
    builder
}

fn http2_builder(limits: &Limits) -> http2::Builder<TokioExecutor> {
    // 16 KiB is what the protocol starts with; a request's headers are checked again one by one.
    let head_bytes = u32::try_from(HEAD_BYTES_MAX).expect("invariant: 16 KiB fit");
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(limits.ping_every)
        .keep_alive_timeout(PONG_TIMEOUT)
        .max_concurrent_streams(limits.streams)
        .initial_stream_window_size(limits.stream_window_bytes)
        .initial_connection_window_size(limits.connection_window_bytes)
        .max_header_list_size(head_bytes)
        .max_pending_accept_reset_streams(PENDING_RESETS_MAX)
        .max_local_error_reset_streams(OWN_RESETS_MAX)
        .max_send_buf_size(SEND_BUFFER_BYTES);
    builder
}
