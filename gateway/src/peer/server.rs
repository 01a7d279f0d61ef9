//! The peer server: answers other gateways. Each handler first asks who speaks.
//!
//! Raft's messages are answered where they arrive, on the peer threads; everything else may compute or read files, and is
//! sent to the main runtime.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, Path, Query, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use federation::raft::{Consensus, Refused, Rpc};
use federation::{JobId, Revision};
use http::{HeaderMap, StatusCode, Uri};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;
use tower::ServiceExt;

use super::RELAYED;
use crate::driver::{LogStream, Pipe};
use crate::listener::{PeerIdentity, read_body};
use crate::orders::{LogRequest, NoOrder, Orders, REVISION};

/// The largest peer message: a piece of a snapshot or a full append.
const PEER_BODY_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The largest piece of a log that is sent at once.
pub const LOG_BYTES_MAX: usize = 1024 * 1024;

/// Asked by whoever has not heard of this gateway for a while. Answered where everything else is done, so that an answer
/// means that something is.
pub const ALIVE: &str = "/alive";

#[derive(Clone)]
struct Peered {
    consensus: Consensus,
    orders: Arc<Orders>,
    public: Router,
}

/// The routes of the peer face. `public` answers what an entry gateway relays; `main` is where that happens.
pub fn routes(consensus: Consensus, orders: Arc<Orders>, public: Router, main: Handle) -> Router {
    let raft = Router::new().route("/raft/{rpc}", post(raft));
    let other = Router::new()
        .route(ALIVE, get(async || StatusCode::NO_CONTENT))
        .route("/relay/{*path}", any(relayed))
        .route("/orders/{job}/{attempt}", get(order))
        .route("/attempts/{job}/{attempt}/record", get(record))
        .route("/attempts/{job}/{attempt}/logs", get(logs))
        .layer(from_fn_with_state(main, elsewhere));
    raft.merge(other).with_state(Peered { consensus, orders, public })
}

/// The layer in front of what must not hold up the peer threads. It ends with its client, as if it ran here.
pub(super) async fn elsewhere(State(main): State<Handle>, request: Request, next: Next) -> Response {
    let answered = AbortOnDropHandle::new(main.spawn(next.run(request))).await;
    answered.unwrap_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response())
}

async fn raft(
    State(peered): State<Peered>,
    Extension(PeerIdentity(peer)): Extension<PeerIdentity>,
    Path(rpc): Path<String>,
    body: Body,
) -> Response {
    let Some(rpc) = Rpc::parse(&rpc) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let body = match read_body(body, PEER_BODY_BYTES_MAX).await {
        Ok(body) => body,
        Err(problem) => return problem.into_response(),
    };
    match peered.consensus.handle(peer.clone(), rpc, body).await {
        Ok(answer) => answer.into_response(),
        Err(Refused::Stopped) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        Err(refused) => {
            tracing::warn!(%peer, rpc = rpc.as_str(), %refused, "peer refused");
            (StatusCode::FORBIDDEN, refused.to_string()).into_response()
        }
    }
}

/// What an entry gateway relays is answered as if the researcher had come here, by his token.
async fn relayed(State(peered): State<Peered>, Extension(peer): Extension<PeerIdentity>, request: Request) -> Response {
    let path = request.uri().path_and_query().map_or("/", |it| it.as_str());
    let inner = format!("/{}", path.strip_prefix(RELAYED).unwrap_or_default());
    let Ok(uri) = inner.parse::<Uri>() else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    // A request of its own: what the outer router noted about this one does not concern the inner.
    let (head, body) = request.into_parts();
    let mut inner = Request::new(body);
    *inner.method_mut() = head.method;
    *inner.uri_mut() = uri;
    *inner.headers_mut() = head.headers;
    inner.extensions_mut().insert(peer);
    match peered.public.oneshot(inner).await {
        Ok(answer) => answer,
        Err(never) => match never {},
    }
}

async fn order(
    State(peered): State<Peered>,
    Extension(PeerIdentity(peer)): Extension<PeerIdentity>,
    Path((job, attempt)): Path<(JobId, u32)>,
    headers: HeaderMap,
) -> Response {
    let order = async {
        peered.orders.catch_up(seen(&headers)).await?;
        peered.orders.give(&peer, job, attempt)
    };
    answer(order.await)
}

async fn record(
    State(peered): State<Peered>,
    Extension(PeerIdentity(peer)): Extension<PeerIdentity>,
    Path((job, attempt)): Path<(JobId, u32)>,
    headers: HeaderMap,
) -> Response {
    let record = async {
        peered.orders.catch_up(seen(&headers)).await?;
        peered.orders.record_for(&peer, job, attempt).await
    };
    answer(record.await)
}

#[derive(Deserialize)]
struct LogQuery {
    executor: u32,
    pipe: Pipe,
    offset: u64,
    max: usize,
}

async fn logs(
    State(peered): State<Peered>,
    Extension(PeerIdentity(peer)): Extension<PeerIdentity>,
    Path((job, attempt)): Path<(JobId, u32)>,
    Query(query): Query<LogQuery>,
    headers: HeaderMap,
) -> Response {
    let wanted = LogRequest {
        stream: LogStream { executor: query.executor, pipe: query.pipe },
        offset: query.offset,
        max: query.max.min(LOG_BYTES_MAX),
    };
    let chunk = async {
        peered.orders.catch_up(seen(&headers)).await?;
        peered.orders.logs_for(&peer, job, attempt, &wanted).await
    };
    answer(chunk.await)
}

/// The revision that a peer says it has seen; one from the far future only makes its own request wait.
fn seen(headers: &HeaderMap) -> Revision {
    let text = headers.get(REVISION).and_then(|value| value.to_str().ok());
    Revision(text.and_then(|text| text.parse().ok()).unwrap_or(0))
}

fn answer<T: Serialize>(result: Result<T, NoOrder>) -> Response {
    let encoded = result.map(|value| postcard::to_stdvec(&value));
    match encoded {
        Ok(Ok(bytes)) => bytes.into_response(),
        Ok(Err(cause)) => (StatusCode::INTERNAL_SERVER_ERROR, cause.to_string()).into_response(),
        Err(why) => (why.status(), why.to_string()).into_response(),
    }
}
