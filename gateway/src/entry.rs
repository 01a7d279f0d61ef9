//! Entry: any gateway takes any request; the caller's home answers it.
//!
//! The token says who the caller is and its issuer says which state is home, by the registry's
//! mapping and never by a claim. A caller of another state is relayed there, once, with his token;
//! home checks the token again and answers, and the answer goes back as it is.
//!
//! Where a state runs several gateways, each keeps the tasks that were submitted to it: a request that names a task
//! goes to the one that the registry names as the task's home.
//!
//! Invariants: no caller has more than [`PER_CALLER_MAX`] requests under way; behind this layer a [`Caller`] is in the request's extensions and is of this state,
//! except on the routes that every member may answer from its own replica.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use certs::{BadToken, Caller, Digest, GatewayId, MemberState, SharedTrust, TrustStore};
use federation::raft::Consensus;
use federation::{JobId, Registry};
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderName};
use http_body_util::Full;

use crate::authority::now_s;
use crate::error::{Code, Problem};
use crate::listener::{PeerIdentity, read_body};
use crate::peer::{Lane, PeerError, Peers, RELAYED};
use crate::stages::{Stage, Stages};
use crate::tes::BODY_BYTES_MAX;

mod under_way;

pub use under_way::{Does, Load, PER_CALLER_MAX, UnderWay};

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
    /// What each caller has under way.
    pub under_way: UnderWay,
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

    /// Sends a request to one of these gateways, the first that can be reached, and returns its answer.
    async fn relay(&self, homes: &[GatewayId], request: Request) -> Result<Response, Problem> {
        let relayed = relayed(request).await?;
        let is_safe = relayed.method().is_safe();
        let deadline = Instant::now() + RELAY_TIMEOUT;
        let mut unreachable = Problem::new(Code::HomeUnreachable, "the caller's state runs no gateway");
        for home in homes {
            let send = async || {
                let left = deadline.saturating_duration_since(Instant::now());
                self.peers.send(home, Lane::Tasks, relayed.clone(), left).await
            };
            let sent = match send().await {
                // Connections end whenever a state's trust changes, and what was only read is asked again on the next one.
                Err(PeerError::Broken { .. }) if is_safe => send().await,
                sent => sent,
            };
            match sent {
                Ok(answer) => return Ok(answer.map(Body::new)),
                // It was surely not sent, so another one may have it.
                Err(reason @ PeerError::Unreachable { .. }) => unreachable = home_unreachable(&reason),
                Err(reason) if is_safe => return Err(home_unreachable(&reason)),
                Err(reason) => return Err(outcome_unknown(&reason)),
            }
        }
        Err(unreachable)
    }
}

/// What of a request goes to another gateway.
async fn relayed(request: Request) -> Result<http::Request<Full<Bytes>>, Problem> {
    let (head, body) = request.into_parts();
    let body = read_body(body, BODY_BYTES_MAX).await?;
    let path = head.uri.path_and_query().map_or("/", |it| it.as_str());
    let path = format!("{RELAYED}{}", path.trim_start_matches('/'));
    let mut relayed = http::Request::builder().method(head.method).uri(path);
    for name in RELAYED_HEADERS {
        if let Some(value) = head.headers.get(&name) {
            relayed = relayed.header(name, value);
        }
    }
    relayed.body(Full::new(body)).map_err(|_| Problem::new(Code::BadRequest, "the path cannot be relayed"))
}

/// The layer in front of everything that only the caller's home may answer.
pub async fn at_home(State(entry): State<Arc<Entry>>, mut request: Request, next: Next) -> Result<Response, Problem> {
    let caller = entry.authenticate(request.headers())?;
    let does = if request.method().is_safe() { Does::Read } else { Does::Change };
    let _counted_until_it_is_answered = entry.under_way.one_more(&caller, does, Instant::now())?;
    let was_relayed = request.extensions().get::<PeerIdentity>().is_some();
    if was_relayed && caller.state != entry.me.state {
        return Err(Problem::new(Code::NotHome, "this request was relayed to a state that is not its caller's home"));
    }
    let homes = entry.consensus.read(|registry| homes(registry, &entry.me, caller.state, request.uri().path()));
    if was_relayed || homes.contains(&entry.me) {
        request.extensions_mut().insert(caller);
        return Ok(next.run(request).await);
    }
    entry.relay(&homes, request).await
}

/// The gateways that may answer this path for a caller of this state: the one that keeps the task that it names, or else
/// any of the state. The registry forgets a task some time after its end; then any of the state is asked, too.
fn homes(registry: &Registry, me: &GatewayId, state: MemberState, path: &str) -> Vec<GatewayId> {
    let job = task_in(path).and_then(|job| registry.job(&job)).filter(|job| job.home == state);
    match job {
        Some(job) => vec![GatewayId { state, name: job.home_gateway.clone() }],
        None if state == me.state => vec![me.clone()],
        None => registry.member(state).map_or(vec![], |it| it.gateways.iter().map(|it| it.id.clone()).collect()),
    }
}

/// The task that a path names: `…/tasks/{id}`, `…/tasks/{id}:cancel`, `…/tasks/{id}/logs`.
fn task_in(path: &str) -> Option<JobId> {
    let (_, named) = path.split_once("/tasks/")?;
    let id = named.split(['/', ':']).next()?;
    JobId::parse(id).ok()
}

/// The layer in front of what every member answers from its own replica, to any known caller.
pub async fn anywhere(State(entry): State<Arc<Entry>>, mut request: Request, next: Next) -> Result<Response, Problem> {
    let caller = entry.authenticate(request.headers())?;
    let _counted_until_it_is_answered = entry.under_way.one_more(&caller, Does::Read, Instant::now())?;
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

fn home_unreachable(reason: &PeerError) -> Problem {
    Problem::new(Code::HomeUnreachable, format!("your home gateway did not answer: {reason}"))
}

/// What changes something may have reached home before its answer was lost.
fn outcome_unknown(reason: &PeerError) -> Problem {
    let detail = format!(
        "your home gateway did not say whether it was done: {reason}; ask again, and under the same Idempotency-Key \
         if you sent one"
    );
    Problem::new(Code::OutcomeUnknown, detail)
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use http_body_util::BodyExt;

    use super::*;
    use crate::listener::BadBody;

    fn request(body: Body) -> Request {
        http::Request::post("/ga4gh/tes/v1/tasks?view=FULL")
            .header(AUTHORIZATION, "Bearer it")
            .header("cookie", "stays")
            .body(body)
            .expect("a request")
    }

    #[tokio::test]
    async fn only_what_home_needs_is_relayed() {
        let relayed = relayed(request(Body::from("{}"))).await.expect("relayed");
        assert_eq!(relayed.uri(), "/relay/ga4gh/tes/v1/tasks?view=FULL");
        assert_eq!(relayed.headers().keys().collect::<Vec<_>>(), [AUTHORIZATION]);
        assert_eq!(relayed.into_body().collect().await.expect("a body").to_bytes(), "{}");
    }

    #[tokio::test]
    async fn a_body_that_cannot_be_relayed_is_refused_for_what_is_wrong_with_it() {
        let fails = |bad: BadBody| Body::from_stream(stream::iter([Err::<Bytes, _>(bad)]));
        for (body, code) in [
            (fails(BadBody::TooSlow), Code::BodyTooSlow),
            (fails(BadBody::TooManyBytesHeld), Code::Overloaded),
            (Body::from(vec![0; BODY_BYTES_MAX + 1]), Code::BodyTooLarge),
        ] {
            assert_eq!(relayed(request(body)).await.expect_err("refused").code(), code);
        }
    }

    #[test]
    fn a_path_names_a_task_or_does_not() {
        let job = JobId::new(1_700_000_000_000, [7; 10]);
        for path in ["/tasks/ID", "/ga4gh/tes/v1/tasks/ID:cancel", "/v1/tasks/ID/logs", "/v1/tasks/ID/why"] {
            assert_eq!(task_in(&path.replace("ID", &job.to_string())), Some(job), "{path}");
        }
        for path in ["/tasks", "/v1/tasks/", "/v1/tasks/job_x", "/v1/capacity", "/tasks/a/tasks/ID"] {
            assert_eq!(task_in(&path.replace("ID", &job.to_string())), None, "{path}");
        }
    }
}
