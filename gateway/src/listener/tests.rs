//! Clients that are silent, slow, greedy or ambiguous, over real sockets.
//!
//! Every wait is for an event; [`PATIENCE`] only turns a missing one into a failure.

use std::convert::Infallible;
use std::net::SocketAddr;

use axum::extract::{Extension, State};
use axum::http::HeaderMap;
use axum::routing::{get, post};
use bytes::Bytes;
use futures_util::stream;
use http::StatusCode;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2 as client_http2;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream as ClientStream;

use super::*;

mod bodies;
mod ends;
mod heads;
mod shares;
pub(crate) mod tls;
mod waits;

use tls::{Ends, HOST};

const PATIENCE: Duration = Duration::from_secs(60);
/// For limits that a test runs into.
const SHORT: Duration = Duration::from_secs(2);

/// A face with an app that shows what reaches it.
struct Under {
    address: SocketAddr,
    client: Arc<ClientConfig>,
    shutdown: CancellationToken,
    done: JoinHandle<()>,
    /// One entry per endless answer that was dropped.
    dropped: mpsc::UnboundedReceiver<()>,
    /// Lets `/held` end.
    release: watch::Sender<bool>,
}

#[derive(Clone)]
struct App {
    dropped: mpsc::UnboundedSender<()>,
    release: watch::Receiver<bool>,
}

/// Sends when it is dropped.
struct Witness(mpsc::UnboundedSender<()>);

impl Drop for Witness {
    fn drop(&mut self) {
        let _the_test_may_be_over = self.0.send(());
    }
}

async fn start(ends: Ends, face: Face, limits: Limits) -> Under {
    let (dropped_sender, dropped) = mpsc::unbounded_channel();
    let (release, released) = watch::channel(false);
    let app = Router::new()
        .route("/", get(async || "fine"))
        .route("/headers", get(header_names))
        .route("/echo", post(echo))
        .route("/endless", get(endless))
        .route("/held", get(held))
        .route("/who", get(async |Extension(PeerIdentity(peer)): Extension<PeerIdentity>| peer.to_string()))
        .with_state(App { dropped: dropped_sender, release: released });
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let shutdown = CancellationToken::new();
    let done = tokio::spawn(serve(listener, ends.server, face, app, limits, shutdown.clone()));
    Under { address, client: ends.client, shutdown, done, dropped, release }
}

async fn header_names(headers: HeaderMap) -> String {
    headers.keys().map(|name| format!("{name}\n")).collect()
}

async fn echo(body: Body) -> Result<Bytes, Problem> {
    read_body(body, 4_096).await
}

async fn endless(State(app): State<App>) -> Body {
    let witness = Witness(app.dropped);
    Body::from_stream(stream::unfold(witness, async |witness| {
        let piece = Bytes::from_static(&[b'x'; 64 * 1_024]);
        Some((Ok::<_, Infallible>(piece), witness))
    }))
}

async fn held(State(mut app): State<App>) -> Body {
    Body::from_stream(stream::once(async move {
        let released = app.release.wait_for(|released| *released).await;
        assert!(released.is_ok(), "the test went away");
        Ok::<_, Infallible>(Bytes::from_static(b"released"))
    }))
}

impl Under {
    async fn public(limits: Limits) -> Under {
        start(tls::public(b"http/1.1"), Face::Public, limits).await
    }

    async fn connect(&self) -> ClientStream<TcpStream> {
        let socket = TcpStream::connect(self.address).await.expect("a connection");
        let name = ServerName::try_from(HOST).expect("a name");
        let connector = TlsConnector::from(Arc::clone(&self.client));
        patient(connector.connect(name, socket)).await.expect("a handshake")
    }

    /// Sends bytes and returns everything that comes back until the server ends the connection.
    async fn exchange(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect().await;
        // The server may refuse before it has read everything.
        let _refused_early = stream.write_all(bytes).await;
        until_end(&mut stream).await
    }

    /// An HTTP/2 client; its connection runs in a task of its own.
    async fn http2(&self) -> client_http2::SendRequest<Empty<Bytes>> {
        Self::speak_http2(self.connect().await).await
    }

    async fn speak_http2(stream: ClientStream<TcpStream>) -> client_http2::SendRequest<Empty<Bytes>> {
        let handshake = client_http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (sender, connection) = patient(handshake).await.expect("a handshake");
        tokio::spawn(connection);
        sender
    }

    /// From another of this machine's addresses, of which each has only so many connections.
    async fn connect_from(&self, host: u8) -> ClientStream<TcpStream> {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(([127, 0, 0, host], 0).into()).expect("an address of this machine");
        let socket = socket.connect(self.address).await.expect("a connection");
        let name = ServerName::try_from(HOST).expect("a name");
        let connector = TlsConnector::from(Arc::clone(&self.client));
        patient(connector.connect(name, socket)).await.expect("a handshake")
    }

    async fn http2_from(&self, host: u8) -> client_http2::SendRequest<Empty<Bytes>> {
        Self::speak_http2(self.connect_from(host).await).await
    }

    async fn dropped(&mut self) {
        patient(self.dropped.recv()).await.expect("an endless answer that ends");
    }
}

async fn patient<F: Future>(future: F) -> F::Output {
    timeout(PATIENCE, future).await.expect("an event that does not come")
}

async fn until_end(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut bytes = vec![];
    // A cut connection ends with an error, a closed one without.
    let _cut = patient(stream.read_to_end(&mut bytes)).await;
    String::from_utf8_lossy(&bytes).into_owned()
}

fn status(answer: &str) -> &str {
    answer.get(9..12).unwrap_or(answer)
}

fn get_request(path: &str) -> Request<Empty<Bytes>> {
    let uri = format!("https://{HOST}{path}");
    Request::get(uri).body(Empty::new()).expect("a request")
}
