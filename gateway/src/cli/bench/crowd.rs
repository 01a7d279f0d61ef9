//! Crowds: many callers who submit by the clock, whether they are answered or not.
//!
//! Clients who wait for one answer before they ask again spare a gateway that is slow; a crowd does not. It is cheap, because
//! it shares the machine with what it measures: callers share HTTP/2 connections, and nothing is read but what is counted.
//! Invariant: every request that was sent is counted once, under what became of it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use certs::TokenIssuer;
use http::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;

use super::{STATES, TASKS, job};
use crate::authority::now_s;
use crate::laptop::{FEDERATION, Laptop, RESEARCHER};

/// Requests that one connection carries at once; more would wait in the client. Source: `Limits::public`.
const STREAMS: usize = 100;
/// Accepted tasks after which a phase ends: with what is under way then, 1,024 at each gateway, fewer than the registry takes
/// from three states, 4,000 each.
pub const TASKS_PER_PHASE: usize = 7_000;
/// Between two looks at the clock.
const TICK: Duration = Duration::from_millis(5);
/// After the last request, for all answers: above any time that a gateway takes for one.
const LAST_ANSWERS: Duration = Duration::from_secs(15);
/// Between two tries of what has to be done.
const AGAIN: Duration = Duration::from_millis(100);

/// Callers with accounts of their own, spread over the states.
pub struct Crowd {
    callers: Vec<Arc<Caller>>,
}

struct Caller {
    authorization: HeaderValue,
    /// His state's gateway, over one of the crowd's connections.
    lane: SendRequest<Full<Bytes>>,
    /// What may be asked there at once; the rest waits here, where it can be forgotten.
    streams: Arc<Semaphore>,
    authority: String,
}

/// What became of requests.
#[derive(Default)]
pub struct Seen {
    /// Accepted in time; how long each took from when it was due.
    pub good: Vec<Duration>,
    /// Accepted, but too late to be of use.
    pub late: u64,
    /// 429 and 503 that say when to come back.
    pub refused: u64,
    /// Everything else, and how often.
    pub wrong: BTreeMap<String, u64>,
    /// From the first request to the last accepted one.
    pub spread: Duration,
    /// From the last request to the last answer.
    pub rest: Duration,
    /// What was accepted, and whose it is.
    accepted: Vec<(Arc<Caller>, String)>,
}

impl Seen {
    /// Accepted in time, a second.
    pub fn goodput(&self) -> f64 {
        self.good.len() as f64 / self.spread.as_secs_f64().max(0.001)
    }

    /// How many were asked.
    pub fn asked(&self) -> u64 {
        self.good.len() as u64 + self.late + self.refused + self.wrong.values().sum::<u64>()
    }

    /// Milliseconds in which this part of what was good was answered.
    pub fn percentile_ms(&mut self, part: f64) -> f64 {
        self.good.sort_unstable();
        let index = (self.good.len().saturating_sub(1) as f64 * part) as usize;
        self.good.get(index).map_or(f64::NAN, |it| it.as_secs_f64() * 1_000.0)
    }

    /// For the report.
    pub fn document(&mut self) -> Value {
        json!({
            "asked": self.asked(),
            "good": self.good.len(),
            "goodput_per_second": self.goodput().round(),
            "late": self.late,
            "refused": self.refused,
            "wrong": self.wrong,
            "p50_ms": self.percentile_ms(0.50),
            "p99_ms": self.percentile_ms(0.99),
            "last_answer_after_ms": self.rest.as_millis() as u64,
        })
    }
}

impl Crowd {
    /// So many callers of each state, whose names begin like this, over so many connections to each gateway.
    pub async fn gather(laptop: &Laptop, name: &str, callers: usize, connections: usize) -> anyhow::Result<Crowd> {
        let mut crowd = vec![];
        for state in STATES {
            let member = laptop.member(state);
            let ca = std::fs::read_to_string(&member.ca_file)?;
            let issuer = format!("https://login.{}.entente.example", state.to_lowercase());
            let issuer = TokenIssuer::from_pkcs8_pem(&issuer, "demo-1", &std::fs::read_to_string(&member.issuer_key)?)?;
            let mut lanes = vec![];
            for _ in 0..connections {
                lanes.push((dial(&member.url, &ca).await?, Arc::new(Semaphore::new(STREAMS))));
            }
            for number in 0..callers {
                let now = now_s();
                let token = issuer.mint(&json!({
                    "iss": issuer.issuer(),
                    "aud": FEDERATION,
                    "sub": format!("{name}-{number}@demo"),
                    "jti": format!("{name}-{number}-{now}"),
                    "iat": now,
                    "nbf": now,
                    "exp": now + 3_600,
                    "entitlements": [RESEARCHER],
                    "eduperson_assurance": ["https://refeds.org/assurance/IAP/medium"],
                    "residency": state,
                }))?;
                let ((lane, authority), streams) = lanes[number % connections].clone();
                let authorization = format!("Bearer {token}").parse()?;
                crowd.push(Arc::new(Caller { authorization, lane, streams, authority }));
            }
        }
        // By turns of the states, so that each has the same load at every moment.
        let crowd = (0..callers * STATES.len())
            .map(|it| Arc::clone(&crowd[it % STATES.len() * callers + it / STATES.len()]))
            .collect();
        Ok(Crowd { callers: crowd })
    }

    /// So many of them at once, each one submission after the other.
    pub async fn one_by_one(&self, at_once: usize, bound: Duration, lasts: Duration) -> anyhow::Result<Seen> {
        let (counted, begun) = (Counted::default(), Instant::now());
        let mut running = JoinSet::new();
        for number in 0..at_once {
            let (counted, caller) = (counted.clone(), Arc::clone(&self.callers[number % self.callers.len()]));
            running.spawn(async move {
                let mut serial = 0;
                while begun.elapsed() < lasts {
                    serial += 1;
                    let due = Instant::now();
                    let name = format!("{number}-{serial}");
                    counted.add(begun, due, bound, &caller, caller.submit(&name).await);
                }
            });
        }
        while let Some(ended) = running.join_next().await {
            ended?;
        }
        Ok(counted.take(lasts))
    }

    /// All of them in turn, together so many submissions a second, until it is over; it is over when that lasts for so long, or
    /// when [`TASKS_PER_PHASE`] are accepted. What still waits for a stream then is not asked any more.
    pub async fn by_the_clock(
        &self,
        per_second: f64,
        bound: Duration,
        lasts: Duration,
        over: &AtomicBool,
    ) -> anyhow::Result<Seen> {
        let (counted, begun) = (Counted::default(), Instant::now());
        let has_gone = Arc::new(AtomicBool::default());
        let mut running = JoinSet::new();
        let mut sent = 0;
        while begun.elapsed() < lasts && !over.load(Ordering::Relaxed) && counted.accepted() < TASKS_PER_PHASE {
            let due = (begun.elapsed().as_secs_f64() * per_second) as usize;
            while sent < due {
                let caller = Arc::clone(&self.callers[sent % self.callers.len()]);
                sent += 1;
                let (counted, name) = (counted.clone(), format!("due-{sent}"));
                let due = begun + Duration::from_secs_f64(sent as f64 / per_second);
                let has_gone = Arc::clone(&has_gone);
                running.spawn(async move {
                    let _stream = caller.streams.acquire().await.expect("invariant: it is never closed");
                    if has_gone.load(Ordering::Relaxed) {
                        return;
                    }
                    counted.add(begun, due, bound, &caller, caller.submit(&name).await);
                });
            }
            while running.try_join_next().is_some() {}
            sleep(TICK).await;
        }
        over.store(true, Ordering::Relaxed);
        has_gone.store(true, Ordering::Relaxed);
        let lasted = begun.elapsed();
        let _some_never_are = timeout(LAST_ANSWERS, async { while running.join_next().await.is_some() {} }).await;
        let mut seen = counted.take(lasted);
        if !running.is_empty() {
            seen.wrong.insert("no answer".to_owned(), running.len() as u64);
        }
        Ok(seen)
    }
}

/// Cancels all that was accepted, so that no state has too many open tasks.
pub async fn cancel(seen: &mut Seen) -> anyhow::Result<()> {
    let accepted = Arc::new(Mutex::new(std::mem::take(&mut seen.accepted)));
    let mut running = JoinSet::new();
    for _ in 0..STREAMS {
        let accepted = Arc::clone(&accepted);
        running.spawn(async move {
            loop {
                let next = accepted.lock().expect("invariant: nothing panics while it takes one").pop();
                let Some((caller, id)) = next else { return };
                let path = format!("{TASKS}/{id}:cancel");
                // A connection on which too much was given up is closed; what came by it stays.
                while let Ok((status, ..)) = caller.post(&path, Bytes::from_static(b"{}")).await
                    && status != StatusCode::OK
                {
                    sleep(AGAIN).await;
                }
            }
        });
    }
    while let Some(ended) = running.join_next().await {
        ended?;
    }
    Ok(())
}

/// An answer: its status, whether it says when to come back, and its body.
type Answer = (StatusCode, bool, Bytes);

impl Caller {
    async fn submit(&self, name: &str) -> anyhow::Result<Answer> {
        self.post(TASKS, serde_json::to_vec(&job(name, "4"))?.into()).await
    }

    async fn post(&self, path: &str, body: Bytes) -> anyhow::Result<Answer> {
        let request = Request::post(format!("https://{}{path}", self.authority))
            .header(AUTHORIZATION, self.authorization.clone())
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))?;
        let answer = self.lane.clone().send_request(request).await?;
        let (status, again) = (answer.status(), answer.headers().contains_key(RETRY_AFTER));
        Ok((status, again, answer.into_body().collect().await?.to_bytes()))
    }
}

#[derive(Clone, Default)]
struct Counted(Arc<Mutex<Seen>>);

impl Counted {
    fn add(&self, begun: Instant, due: Instant, bound: Duration, caller: &Arc<Caller>, answer: anyhow::Result<Answer>) {
        let (now, took) = (Instant::now(), due.elapsed());
        let mut seen = self.0.lock().expect("invariant: nothing panics while it counts");
        seen.rest = now - begun;
        match answer {
            Ok((StatusCode::OK, _, body)) => {
                seen.spread = now - begun;
                if took <= bound {
                    seen.good.push(took)
                } else {
                    seen.late += 1
                }
                let id = serde_json::from_slice::<Value>(&body).ok().and_then(|it| Some(it["id"].as_str()?.to_owned()));
                seen.accepted.extend(id.map(|id| (Arc::clone(caller), id)));
            }
            Ok((StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE, true, _)) => seen.refused += 1,
            Ok((status, _, body)) => {
                let what = format!("{status}: {}", String::from_utf8_lossy(&body));
                *seen.wrong.entry(what).or_default() += 1;
            }
            Err(cause) => *seen.wrong.entry(format!("{cause:#}")).or_default() += 1,
        }
    }

    fn accepted(&self) -> usize {
        self.0.lock().expect("invariant: nothing panics while it counts").accepted.len()
    }

    /// What was counted, when requests were sent for so long.
    fn take(&self, lasted: Duration) -> Seen {
        let mut seen = std::mem::take(&mut *self.0.lock().expect("invariant: nothing panics while it counts"));
        seen.rest = seen.rest.saturating_sub(lasted);
        seen
    }
}

async fn dial(url: &str, ca_pem: &str) -> anyhow::Result<(SendRequest<Full<Bytes>>, String)> {
    let authority = url.parse::<Uri>()?.authority().context("a gateway has an address")?.clone();
    let mut tls = rustls::ClientConfig::clone(&*certs::public_client_config(ca_pem)?);
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(authority.as_str()).await?;
    stream.set_nodelay(true)?;
    let name = ServerName::try_from(authority.host().to_owned())?;
    let stream = TlsConnector::from(Arc::new(tls)).connect(name, stream).await?;
    let (lane, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok((lane, authority.to_string()))
}
