//! Strangers: how clients that nobody knows connect to a gateway's public face and speak, and what they cost it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use integration_tests::Federation;
use rustls::{ClientConfig, ClientConnection};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// The address of a gateway's public face.
pub fn public(federation: &Federation, state: &str) -> SocketAddr {
    let url = federation.url(state).strip_prefix("https://").expect("a url");
    url.parse().expect("an address")
}

/// As whom a gateway is asked for here.
pub fn name() -> ServerName<'static> {
    ServerName::try_from("127.0.0.1").expect("a name")
}

pub async fn tls(config: Arc<ClientConfig>, socket: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
    TlsConnector::from(config).connect(name(), socket).await
}

/// Speaks one protocol, and makes every handshake a full one.
pub fn strange_client(federation: &Federation, state: &str, protocol: &str) -> Arc<ClientConfig> {
    let config = certs::public_client_config(&federation.ca(state)).expect("a CA");
    let mut config = ClientConfig::clone(&config);
    config.alpn_protocols = vec![protocol.into()];
    config.resumption = rustls::client::Resumption::disabled();
    Arc::new(config)
}

/// From another of this machine's addresses, because one has only so many connections.
pub async fn connect_from(host: u8, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(([127, 0, 0, host], 0).into())?;
    socket.connect(to).await
}

/// The first flight of a client, which costs whoever repeats it nothing, and whoever answers it a signature.
pub fn client_hello(federation: &Federation, state: &str) -> Vec<u8> {
    let config = strange_client(federation, state, "h2");
    let mut client = ClientConnection::new(config, name()).expect("a client");
    let mut hello = vec![];
    while client.wants_write() {
        client.write_tls(&mut hello).expect("it is memory");
    }
    hello
}

/// One handshake up to the server's flight; then the client says no more.
pub async fn begin_handshake(host: u8, to: SocketAddr, hello: &[u8]) -> std::io::Result<TcpStream> {
    let mut socket = connect_from(host, to).await?;
    // Its end costs no port for a minute.
    socket.set_zero_linger()?;
    socket.write_all(hello).await?;
    let mut first = [0];
    socket.read_exact(&mut first).await?;
    Ok(socket)
}

/// What a client says in HTTP/2 before its first frame.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub const HEADERS: u8 = 1;
pub const SETTINGS: u8 = 4;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// A frame of this kind.
pub fn frame(kind: u8, flags: u8, stream: u32, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).expect("a small frame").to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(content);
    frame
}

/// A head of `GET /v1/health`, packed without memory. Source: RFC 7541, appendix A.
pub fn get_health() -> Vec<u8> {
    let text = |index: u8, text: &str| [&[index, u8::try_from(text.len()).expect("short")], text.as_bytes()].concat();
    [vec![0x82, 0x87], text(0x04, "/v1/health"), text(0x01, "127.0.0.1")].concat()
}

/// What a process holds of the machine's memory.
pub fn resident_kib(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("a running process");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a size");
    line.split_whitespace().nth(1).expect("a number").parse().expect("a number")
}

/// How long a process has computed, on all cores together. Source: proc(5), `utime` and `stime`.
pub fn computed(process: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).expect("a running process");
    let (_, after_name) = stat.rsplit_once(')').expect("a name");
    let ticks: Vec<u64> = after_name.split_whitespace().skip(11).take(2).map(|it| it.parse().expect("ticks")).collect();
    // A hundred a second, whatever the kernel counts in.
    Duration::from_millis(ticks.iter().sum::<u64>() * 10)
}

/// Asks a gateway for its health like anybody who has just come: with a new connection each time.
pub async fn newcomer(federation: &Federation, state: &str) -> (serde_json::Value, Duration) {
    let begun = Instant::now();
    let health = federation.client_with(state, None).read("/v1/health").await.expect("a newcomer is answered");
    (health, begun.elapsed())
}

/// Asks again and again until `over`: every answer's leader, and how long the slowest one took.
pub async fn newcomers(
    federation: &Federation,
    state: &str,
    mut over: impl FnMut() -> bool,
) -> (Vec<serde_json::Value>, Duration) {
    let (mut led, mut slowest) = (vec![], Duration::ZERO);
    while !over() {
        let (health, took) = newcomer(federation, state).await;
        assert_eq!(health["status"], "ok", "{health}");
        led.push(health["leader"].clone());
        slowest = slowest.max(took);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    (led, slowest)
}
