//! Entry: any gateway takes any request; the caller's home answers it.
//!
//! The token says who the caller is and its issuer says which state is home, by the registry's
//! mapping and never by a claim. A caller of another state is relayed there, once, with his token;
//! home checks the token again and answers, and the answer goes back as it is.
//!
//! Invariant: behind this layer a [`Caller`] is in the request's extensions and is of this state,
//! except on the routes that every member may answer from its own replica.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use certs::{BadToken, Caller, Digest, GatewayId, SharedTrust, TrustStore};
use federation::raft::Consensus;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderName};
use http_body_util::{BodyExt, Full, Limited};

use crate::authority::now_s;
use crate::error::{Code, Problem};
use crate::listener::PeerIdentity;
use crate::peer::{Lane, PeerError, Peers};
use crate::stages::{Stage, Stages};
use crate::tes::BODY_BYTES_MAX;

/// Verified tokens remembered: 10,000 x ~1 KiB = 10 MiB.
const TOKENS_MAX: usize = 10_000;
/// A relayed submission waits for home's commit; clients give up after 10 s.
const RELAY_TIMEOUT: Duration = Duration::from_secs(9);
/// The client's own header; everything else it sends stays here.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// What a relayed request may bring along.
const RELAYED_HEADERS: [HeaderName; 4] = [AUTHORIZATION, CONTENT_TYPE, ACCEPT, IDEMPOTENCY_KEY];

/// Knows callers and where they are at home.
pub struct Entry {
    /// This gateway.
    pub me: GatewayId,
    /// The replica.
    pub consensus: Consensus,
    /// Other gateways.
    pub peers: Arc<Peers>,
    /// Whose tokens count.
    pub tokens: Tokens,
    /// Where the time goes.
    pub stages: Arc<Stages>,
}

/// Verified tokens, so that a signature is checked once and not with every request.
pub struct Tokens {
    trust: SharedTrust,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// The trust that the callers below were verified with.
    under: Option<Arc<TrustStore>>,
    callers: HashMap<Digest, Arc<Caller>>,
}

impl Tokens {
    /// Tokens of the issuers in this trust.
    pub fn new(trust: SharedTrust) -> Tokens {
        Tokens { trust, known: Mutex::default() }
    }

    /// Who presents this token now.
    pub fn verify(&self, token: &str, now_s: u64) -> Result<Arc<Caller>, BadToken> {
        let trust = self.trust.load();
        let digest = Digest::of(token.as_bytes());
        if let Some(caller) = self.lock(&trust).callers.get(&digest)
            && caller.expires_s > now_s
        {
            return Ok(Arc::clone(caller));
        }
        let audience = trust.federation().as_str();
        let caller = Arc::new(trust.issuers().verify(token, audience, now_s)?);
        let mut known = self.lock(&trust);
        if known.callers.len() >= TOKENS_MAX {
            known.callers.clear();
        }
        known.callers.insert(digest, Arc::clone(&caller));
        Ok(caller)
    }

    /// What is known under this trust; under another one nothing is.
    fn lock(&self, trust: &Arc<TrustStore>) -> std::sync::MutexGuard<'_, Known> {
        let mut known = self.known.lock().expect("invariant: nothing panics while it holds the callers");
        if !known.under.as_ref().is_some_and(|it| Arc::ptr_eq(it, trust)) {
            *known = Known { under: Some(Arc::clone(trust)), callers: HashMap::new() };
        }
        known
    }
}

impl Entry {
    /// Who makes this request; by the token alone.
    pub fn authenticate(&self, headers: &HeaderMap) -> Result<Arc<Caller>, Problem> {
        let token = bearer(headers)?;
        let begun = Instant::now();
        let caller = self.tokens.verify(token, now_s());
        self.stages.add(Stage::Token, begun);
        caller.map_err(|bad| Problem::new(Code::InvalidToken, bad.to_string()))
    }

    /// Sends a request to the caller's home and returns its answer.
    async fn relay(&self, caller: &Caller, request: Request) -> Result<Response, Problem> {
        let home = self
            .consensus
            .read(|registry| registry.member(caller.state)?.gateways.first().map(|it| it.id.clone()))
            .ok_or_else(|| Problem::new(Code::HomeUnreachable, "the caller's state runs no gateway"))?;
        let (head, body) = request.into_parts();
        let body = Limited::new(body, BODY_BYTES_MAX)
            .collect()
            .await
            .map_err(|_| Problem::new(Code::BodyTooLarge, "send at most 4 MiB"))?
            .to_bytes();
        let path = head.uri.path_and_query().map_or("/", |it| it.as_str());
        let mut relayed = http::Request::builder().method(head.method).uri(format!("/relay{path}"));
        for name in RELAYED_HEADERS {
            if let Some(value) = head.headers.get(&name) {
                relayed = relayed.header(name, value);
            }
        }
        let relayed =
            relayed.body(Full::new(body)).map_err(|_| Problem::new(Code::BadRequest, "the path cannot be relayed"))?;
        let answer = self.peers.send(&home, Lane::Tasks, relayed, RELAY_TIMEOUT).await.map_err(home_unreachable)?;
        Ok(answer.map(Body::new))
    }
}

/// The layer in front of everything that only the caller's home may answer.
pub async fn at_home(State(entry): State<Arc<Entry>>, mut request: Request, next: Next) -> Result<Response, Problem> {
    let caller = entry.authenticate(request.headers())?;
    if caller.state == entry.me.state {
        request.extensions_mut().insert(caller);
        return Ok(next.run(request).await);
    }
    if request.extensions().get::<PeerIdentity>().is_some() {
        return Err(Problem::new(Code::NotHome, "this request was relayed to a state that is not its caller's home"));
    }
    entry.relay(&caller, request).await
}

/// The layer in front of what every member answers from its own replica, to any known caller.
pub async fn anywhere(State(entry): State<Arc<Entry>>, mut request: Request, next: Next) -> Result<Response, Problem> {
    let caller = entry.authenticate(request.headers())?;
    request.extensions_mut().insert(caller);
    Ok(next.run(request).await)
}

fn bearer(headers: &HeaderMap) -> Result<&str, Problem> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err(Problem::new(
            Code::NoToken,
            "send one Authorization header: `Bearer` and an access token of your state",
        ));
    };
    let text = value.to_str().unwrap_or_default();
    match text.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(token.trim()),
        _ => Err(Problem::new(
            Code::NoToken,
            "only bearer tokens are accepted: send `Authorization: Bearer <access token>`",
        )),
    }
}

fn home_unreachable(reason: PeerError) -> Problem {
    Problem::new(Code::HomeUnreachable, format!("your home gateway did not answer: {reason}"))
}
