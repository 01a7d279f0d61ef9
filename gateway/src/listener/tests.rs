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

pub(crate) mod tls;

use tls::{Ends, HOST};

const PATIENCE: Duration = Duration::from_secs(20);
/// For limits that a test runs into.
const SHORT: Duration = Duration::from_millis(200);

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
        let io = TokioIo::new(self.connect().await);
        let handshake = client_http2::handshake(TokioExecutor::new(), io);
        let (sender, connection) = patient(handshake).await.expect("a handshake");
        tokio::spawn(connection);
        sender
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

#[tokio::test]
async fn ambiguous_and_oversized_heads_are_refused() {
    let under = Under::public(Limits::public()).await;
    let many: String = (0..100).map(|number| format!("x-{number}: y\r\n")).collect();
    let large = format!("x: {}\r\n", "y".repeat(20_000));
    let rows = [
        ("200", "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".to_owned()),
        ("400", "GET / HTTP/1.1\r\n\r\n".to_owned()),
        ("400", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".to_owned()),
        ("400", "GET /a/../b HTTP/1.1\r\nHost: a\r\n\r\n".to_owned()),
        ("400", "GET /%2e%2E/b HTTP/1.1\r\nHost: a\r\n\r\n".to_owned()),
        ("501", "TRACE / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned()),
        ("501", "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n".to_owned()),
        (
            "400",
            "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
                .to_owned(),
        ),
        (
            "400",
            "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"
                .to_owned(),
        ),
        ("200", "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned()),
        ("431", format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n")),
        ("431", format!("GET / HTTP/1.1\r\nHost: a\r\n{large}\r\n")),
    ];
    for (expected, request) in rows {
        let answer = under.exchange(request.as_bytes()).await;
        assert_eq!(status(&answer), expected, "{request:.200}\n{answer}");
    }
}

#[tokio::test]
async fn a_smuggled_request_is_never_answered() {
    let under = Under::public(Limits::public()).await;
    let smuggled = "GET /headers HTTP/1.1\r\nHost: a\r\nsmuggled: yes\r\n\r\n";
    for head in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Transfer-Encoding: chunked\r\n",
    ] {
        let request = format!("POST /echo HTTP/1.1\r\nHost: a\r\n{head}\r\n0\r\n\r\n{smuggled}");
        let answer = under.exchange(request.as_bytes()).await;
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
        assert!(!answer.contains("smuggled"), "{answer}");
    }
}

#[tokio::test]
async fn claims_of_identity_do_not_reach_the_app() {
    let under = Under::public(Limits::public()).await;
    let request = "GET /headers HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: me\r\nForwarded: for=me\r\n\
                   X-Forwarded-Client-Cert: me\r\nX-Entente-Caller: me\r\nX-Real-IP: me\r\n\
                   Accept: text/plain\r\nConnection: close\r\n\r\n";
    let answer = under.exchange(request.as_bytes()).await;
    let (_, names) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let mut names: Vec<_> = names.lines().collect();
    names.sort_unstable();
    assert_eq!(names, ["accept", "connection", "host"]);
}

#[tokio::test]
async fn silent_clients_stop_nobody_and_are_cut() {
    let limits = Limits { handshake: SHORT, ..Limits::public() };
    let under = Under::public(limits).await;
    let mut silent = vec![];
    for _ in 0..20 {
        silent.push(TcpStream::connect(under.address).await.expect("a connection"));
    }
    let answer = under.exchange(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert_eq!(status(&answer), "200");
    for mut socket in silent {
        assert_eq!(until_end(&mut socket).await, "");
    }
}

#[tokio::test]
async fn silent_clients_give_way_to_those_who_speak() {
    let for_ever = Duration::from_secs(3_600);
    let limits = Limits { handshakes: 1, handshake: for_ever, ..Limits::public() };
    let under = Under::public(limits).await;
    let connect_from = async |host: u8| {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(([127, 0, 0, host], 0).into()).expect("an address of this machine");
        socket.connect(under.address).await.expect("a connection")
    };
    let mut silent = connect_from(2).await;
    let mut another = connect_from(2).await;
    assert_eq!(until_end(&mut another).await, "", "an address has only so many");
    let connector = TlsConnector::from(Arc::clone(&under.client));
    let name = ServerName::try_from(HOST).expect("a name");
    patient(connector.connect(name, connect_from(3).await)).await.expect("a handshake");
    assert_eq!(until_end(&mut silent).await, "", "the oldest gives way");
}

#[tokio::test]
async fn slow_heads_and_slow_bodies_are_cut() {
    let limits = Limits { head: SHORT, body: SHORT, ..Limits::public() };
    let under = Under::public(limits).await;
    let answer = under.exchange(b"GET / HTTP/1.1\r\nHost: a\r\nx-slow").await;
    assert!(matches!(status(&answer), "" | "408"), "{answer}");
    let head = b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc";
    let answer = under.exchange(head).await;
    assert_eq!(status(&answer), "408", "{answer}");
    assert!(answer.contains("body-too-slow"), "{answer}");
}

#[tokio::test]
async fn bodies_are_bounded_one_by_one_and_together() {
    let limits = Limits { body_bytes: 3_000, ..Limits::public() };
    let one_by_one = Under::public(Limits::public()).await;
    let together = Under::public(limits).await;
    for (under, bytes, expected) in [
        (&one_by_one, 4_096, "200"),
        (&one_by_one, 4_097, "413"),
        (&together, 2_500, "200"),
        (&together, 3_500, "429"),
        // What was held is given back.
        (&together, 2_500, "200"),
    ] {
        let body = "x".repeat(bytes);
        let request =
            format!("POST /echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {bytes}\r\n\r\n{body}");
        let answer = under.exchange(request.as_bytes()).await;
        assert_eq!(status(&answer), expected, "{bytes}: {answer:.500}");
    }
}

fn impatient() -> Limits {
    Limits { untaken: SHORT, ..Limits::public() }
}

#[tokio::test]
async fn a_reader_that_never_reads_is_cut() {
    let mut under = Under::public(impatient()).await;
    let mut stream = under.connect().await;
    let request = b"GET /endless HTTP/1.1\r\nHost: a\r\n\r\n";
    stream.write_all(request).await.expect("a request");
    under.dropped().await;
}

#[tokio::test]
async fn a_stream_that_is_never_read_is_cut_though_the_connection_lives() {
    let mut under = start(tls::public(b"h2"), Face::Public, impatient()).await;
    let mut client = under.http2().await;
    let answer = patient(client.send_request(get_request("/endless"))).await;
    let unread = answer.expect("a head");
    under.dropped().await;
    drop(unread);
}

#[tokio::test]
async fn an_http2_client_that_never_speaks_is_cut() {
    let limits = Limits { silent: SHORT, ping_every: SHORT / 4, ..Limits::public() };
    let under = start(tls::public(b"h2"), Face::Public, limits).await;
    // This one answers pings, and so outlives one that connects later and answers nothing.
    let mut client = under.http2().await;
    let mut mute = under.connect().await;
    until_end(&mut mute).await;
    let answer = patient(client.send_request(get_request("/"))).await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::OK);
}

#[tokio::test]
async fn an_unused_connection_ends_in_order() {
    let limits = Limits { idle: SHORT, ..Limits::public() };
    let under = start(tls::public(b"h2"), Face::Public, limits).await;
    let mut client = under.http2().await;
    let answer = patient(client.send_request(get_request("/"))).await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::OK);
    drop(answer);
    patient(async {
        while client.ready().await.is_ok() {
            tokio::task::yield_now().await
        }
    })
    .await;
}

#[tokio::test]
async fn over_the_limit_researchers_are_told_to_come_back_until_an_answer_has_ended() {
    let limits = Limits { requests: 1, ..Limits::public() };
    let under = start(tls::public(b"h2"), Face::Public, limits).await;
    let mut client = under.http2().await;
    let first = patient(client.send_request(get_request("/held"))).await.expect("a head");
    let second = patient(client.send_request(get_request("/"))).await.expect("an answer");
    assert_eq!(second.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(second.headers()["retry-after"], "1");
    under.release.send(true).expect("somebody waits");
    let body = patient(first.into_body().collect()).await.expect("a body").to_bytes();
    assert_eq!(body, "released");
    let room_again = async {
        loop {
            let answer = client.send_request(get_request("/")).await.expect("an answer");
            if answer.status() == StatusCode::OK {
                return;
            }
        }
    };
    patient(room_again).await;
}

#[tokio::test]
async fn one_address_has_only_so_many_connections() {
    let limits = Limits { connections_per_address: 2, ..Limits::public() };
    let under = Under::public(limits).await;
    let first = under.connect().await;
    let _second = under.connect().await;
    let mut third = TcpStream::connect(under.address).await.expect("a connection");
    assert_eq!(until_end(&mut third).await, "");
    drop(first);
    let room_again = async {
        loop {
            let socket = TcpStream::connect(under.address).await.expect("a connection");
            let connector = TlsConnector::from(Arc::clone(&under.client));
            let name = ServerName::try_from(HOST).expect("a name");
            if connector.connect(name, socket).await.is_ok() {
                return;
            }
        }
    };
    patient(room_again).await;
}

#[tokio::test]
async fn the_end_waits_for_requests_but_not_for_ever() {
    let limits = Limits::public().with_grace(SHORT);
    let mut under = start(tls::public(b"h2"), Face::Public, limits).await;
    let _silent = TcpStream::connect(under.address).await.expect("a connection");
    let _mute = under.connect().await;
    let mut client = under.http2().await;
    let held = patient(client.send_request(get_request("/held"))).await.expect("a head");
    let endless = patient(client.send_request(get_request("/endless"))).await.expect("a head");
    under.shutdown.cancel();
    patient(&mut under.done).await.expect("no panic");
    under.dropped().await;
    drop((held, endless));
    assert!(TcpStream::connect(under.address).await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn a_peer_is_known_by_its_certificate_and_closed_with_its_state() {
    let connections = Connections::default();
    let face = Face::Peer(connections.clone());
    let limits = Limits { requests: 1, ..Limits::peer() };
    let mut under = start(tls::peer(), face, limits).await;
    let mut client = under.http2().await;
    let answer = patient(client.send_request(get_request("/who"))).await.expect("an answer");
    let body = patient(answer.into_body().collect()).await.expect("a body").to_bytes();
    assert_eq!(body, "FR/fr-2");

    let endless = async {
        loop {
            let answer = client.send_request(get_request("/endless")).await.expect("a head");
            if answer.status() == StatusCode::OK {
                return answer;
            }
        }
    };
    let endless = patient(endless).await;
    let shed = patient(client.send_request(get_request("/who"))).await.expect("an answer");
    assert_eq!(shed.status(), StatusCode::SERVICE_UNAVAILABLE);
    let relayed = patient(client.send_request(get_request("/relay/ga4gh/tes/v1/tasks"))).await.expect("an answer");
    assert_eq!(relayed.status(), StatusCode::TOO_MANY_REQUESTS, "its researcher's client would repeat a 503");

    assert_eq!(connections.close_all_of(tls::id("DE/de-1").state), 0);
    assert_eq!(connections.close_all_of(tls::id("FR/fr-2").state), 1);
    under.dropped().await;
    drop(endless);
    let mut again = under.http2().await;
    let answer = patient(again.send_request(get_request("/who"))).await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::OK);
}
