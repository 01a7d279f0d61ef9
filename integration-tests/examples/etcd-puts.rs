//! `etcd-puts`: keeps N clients putting to etcd, for `bench/against-etcd.sh` to compare with.
//!
//! It asks of etcd what `entente bench place` asks of the gateways: closed-loop clients, each with an
//! HTTP/2 connection of its own, spread over the servers, and a fresh key with every put, as every
//! placement is a fresh job. gRPC is encoded by hand over the same hyper client, in plain text, so
//! that the load generator costs as little as ours. Connections are dialled before the clock starts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, TE};
use http::uri::Authority;
use http::{HeaderMap, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

const USAGE: &str = "usage: etcd-puts --endpoints host:port[,host:port...] --clients N --puts M";
const PUT: &str = "/etcdserverpb.KV/Put";
/// Every client holds one descriptor.
const CLIENTS_MAX: usize = 10_000;
/// 1_000_000 puts x 1 KiB = 1 GiB in etcd, whose quota is 2 GiB unless told otherwise.
const PUTS_MAX: u64 = 1_000_000;
/// Bytes per key: six digits of the client, ten of its put.
const KEY_BYTES: usize = 16;
/// Bytes per value.
const VALUE_BYTES: usize = 1024;
/// gRPC's prefix of a message: one byte of flags, four of length.
const PREFIX_BYTES: usize = 5;
/// etcd's answer to a put is a header of some twenty bytes.
const ANSWER_BYTES_MAX: usize = 16 * 1024;
/// A server that has not answered by then is reported as silent.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let settings = Settings::parse(std::env::args().skip(1)).context(USAGE)?;
    println!("{}", measure(&settings).await?);
    Ok(())
}

/// What is measured.
struct Settings {
    endpoints: Vec<Authority>,
    clients: usize,
    puts: u64,
}

impl Settings {
    fn parse(mut arguments: impl Iterator<Item = String>) -> anyhow::Result<Settings> {
        let (mut endpoints, mut clients, mut puts) = (None, None, None);
        while let Some(name) = arguments.next() {
            let value = arguments.next().with_context(|| format!("{name} needs a value"))?;
            match name.as_str() {
                "--endpoints" => endpoints = Some(value.split(',').map(endpoint).collect::<Result<_, _>>()?),
                "--clients" => clients = Some(value.parse().with_context(|| format!("--clients {value}"))?),
                "--puts" => puts = Some(value.parse().with_context(|| format!("--puts {value}"))?),
                _ => bail!("{name} is not an option"),
            }
        }
        let endpoints = endpoints.context("--endpoints is missing")?;
        let clients = clients.context("--clients is missing")?;
        let puts = puts.context("--puts is missing")?;
        ensure!((1..=CLIENTS_MAX).contains(&clients), "--clients is between 1 and {CLIENTS_MAX}");
        ensure!((1..=PUTS_MAX).contains(&puts), "--puts is between 1 and {PUTS_MAX}");
        Ok(Settings { endpoints, clients, puts })
    }
}

fn endpoint(text: &str) -> anyhow::Result<Authority> {
    let authority: Authority = text.parse().with_context(|| format!("{text} is not host:port"))?;
    ensure!(authority.port_u16().is_some(), "{text} names no port");
    Ok(authority)
}

async fn measure(settings: &Settings) -> anyhow::Result<Value> {
    let mut clients = Vec::new();
    for (number, endpoint) in (0..settings.clients).zip(settings.endpoints.iter().cycle()) {
        clients.push(Client::dial(number, endpoint).await?);
    }
    let left = Arc::new(AtomicU64::new(settings.puts));
    let mut running = JoinSet::new();
    let started = Instant::now();
    for mut client in clients {
        let left = Arc::clone(&left);
        running.spawn(async move {
            let mut seen = Vec::new();
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |it| it.checked_sub(1)).is_ok() {
                let message = client.next_put();
                let asked = Instant::now();
                client.put(message).await?;
                seen.push(asked.elapsed());
            }
            anyhow::Ok(seen)
        });
    }
    let mut latencies = Vec::new();
    while let Some(seen) = running.join_next().await {
        latencies.append(&mut seen??);
    }
    let busy = started.elapsed();
    latencies.sort_unstable();
    let percentile = |part: f64| {
        let index = ((latencies.len() - 1) as f64 * part) as usize;
        latencies[index].as_secs_f64() * 1000.0
    };
    Ok(json!({
        "clients": settings.clients,
        "puts": latencies.len(),
        "per_second": (latencies.len() as f64 / busy.as_secs_f64()).round(),
        "p50_ms": percentile(0.50),
        "p99_ms": percentile(0.99),
    }))
}

/// One closed-loop client with its own connection.
struct Client {
    number: usize,
    serial: u64,
    noise: Noise,
    endpoint: Authority,
    uri: Uri,
    connection: SendRequest<Full<Bytes>>,
}

impl Client {
    async fn dial(number: usize, endpoint: &Authority) -> anyhow::Result<Client> {
        let uri = Uri::builder().scheme("http").authority(endpoint.clone()).path_and_query(PUT).build()?;
        let stream =
            TcpStream::connect(endpoint.as_str()).await.with_context(|| format!("no etcd answers at {endpoint}"))?;
        stream.set_nodelay(true)?;
        let (connection, driver) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(driver);
        Ok(Client { number, serial: 0, noise: Noise(number as u64), endpoint: endpoint.clone(), uri, connection })
    }

    /// A message that puts a fresh value at a fresh key.
    fn next_put(&mut self) -> Bytes {
        self.serial += 1;
        let key = format!("{:06}{:010}", self.number, self.serial);
        let mut value = [0; VALUE_BYTES];
        self.noise.fill(&mut value);
        put_request(key.as_bytes(), &value)
    }

    /// Puts and returns when etcd has committed it.
    async fn put(&mut self, message: Bytes) -> anyhow::Result<()> {
        match tokio::time::timeout(ANSWER_TIMEOUT, self.exchange(message)).await {
            Ok(answered) => answered.with_context(|| format!("a put to {} failed", self.endpoint)),
            Err(_) => bail!("{} did not answer within 30 s", self.endpoint),
        }
    }

    async fn exchange(&mut self, message: Bytes) -> anyhow::Result<()> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(self.uri.clone())
            .header(CONTENT_TYPE, "application/grpc")
            .header(TE, "trailers")
            .body(Full::new(message))?;
        self.connection.ready().await?;
        let (head, body) = self.connection.send_request(request).await?.into_parts();
        ensure!(head.status == StatusCode::OK, "the answer is {}", head.status);
        let answer = Limited::new(body, ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(|cause| anyhow::anyhow!("the answer broke off: {cause}"))?;
        // An error may come without a body; its status then stands in the headers.
        check_status(answer.trailers().unwrap_or(&head.headers))?;
        check_message(&answer.to_bytes())
    }
}

/// `etcdserverpb.PutRequest` with its gRPC prefix. Source: etcd 3.4, etcdserverpb/rpc.proto: key is
/// field 1, value is field 2, both bytes.
fn put_request(key: &[u8], value: &[u8]) -> Bytes {
    let mut message = vec![0; PREFIX_BYTES];
    message.reserve(KEY_BYTES + VALUE_BYTES + 16);
    for (field, bytes) in [(1u8, key), (2, value)] {
        message.push(field << 3 | 2);
        push_varint(&mut message, bytes.len());
        message.extend_from_slice(bytes);
    }
    let length = u32::try_from(message.len() - PREFIX_BYTES).expect("invariant: a put is about a kibibyte");
    message[1..PREFIX_BYTES].copy_from_slice(&length.to_be_bytes());
    Bytes::from(message)
}

fn push_varint(message: &mut Vec<u8>, mut number: usize) {
    while number >= 0x80 {
        message.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    message.push(number as u8);
}

fn check_status(trailers: &HeaderMap) -> anyhow::Result<()> {
    let text = |name: &str| trailers.get(name).map(|it| String::from_utf8_lossy(it.as_bytes()));
    match text("grpc-status").as_deref() {
        Some("0") => Ok(()),
        Some(code) => bail!("grpc-status {code}: {}", text("grpc-message").unwrap_or_default()),
        None => bail!("the answer has no grpc-status"),
    }
}

/// The answer is one uncompressed message, whole, that opens with its header (field 1).
fn check_message(body: &[u8]) -> anyhow::Result<()> {
    let (prefix, message) = body.split_at_checked(PREFIX_BYTES).context("the answer holds no message")?;
    let length = u32::to_be_bytes(u32::try_from(message.len())?);
    ensure!(prefix[0] == 0 && prefix[1..] == length, "the answer is not one whole message");
    ensure!(message.first() == Some(&(1 << 3 | 2)), "the answer is not one to a put");
    Ok(())
}

/// SplitMix64: bytes that do not compress, cheap to make, the same in every run.
struct Noise(u64);

impl Noise {
    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut word = self.0;
            word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            chunk.copy_from_slice(&(word ^ (word >> 31)).to_le_bytes()[..chunk.len()]);
        }
    }
}
