//! The peer server: answers other gateways. Each handler first asks who speaks.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Extension, Path, Query, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use federation::JobId;
use federation::raft::{Consensus, Rpc};
use http::{StatusCode, Uri};
use serde::{Deserialize, Serialize};
use tower::ServiceExt;

use crate::driver::{LogStream, Pipe};
use crate::listener::PeerIdentity;
use crate::orders::{LogRequest, NoOrder, Orders};

/// The largest peer message: a piece of a snapshot or a full append.
const PEER_BODY_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The largest piece of a log that is sent at once.
pub const LOG_BYTES_MAX: usize = 1024 * 1024;

#[derive(Clone)]
struct Peered {
    consensus: Consensus,
    orders: Arc<Orders>,
    public: Router,
}

/// The routes of the peer face. `public` answers what an entry gateway relays.
pub fn routes(consensus: Consensus, orders: Arc<Orders>, public: Router) -> Router {
    Router::new()
        .route("/raft/{rpc}", post(raft))
        .route("/relay/{*path}", any(relayed))
        .route("/orders/{job}/{attempt}", get(order))
        .route("/attempts/{job}/{attempt}/record", get(record))
        .route("/attempts/{job}/{attempt}/logs", get(logs))
        .layer(DefaultBodyLimit::max(PEER_BODY_BYTES_MAX))
        .with_state(Peered { consensus, orders, public })
}

async fn raft(
    State(peered): State<Peered>,
    Extension(PeerIdentity(peer)): Extension<PeerIdentity>,
    Path(rpc): Path<String>,
    body: Bytes,
) -> Response {
    let Some(rpc) = Rpc::parse(&rpc) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    match peered.consensus.handle(peer.clone(), rpc, body).await {
        Ok(answer) => answer.into_response(),
        Err(refused) => {
            tracing::warn!(%peer, rpc = rpc.as_str(), %refused, "peer refused");
            (StatusCode::FORBIDDEN, refused.to_string()).into_response()
        }
    }
}

/// What an entry gateway relays is answered as if the researcher had come here, by his token.
async fn relayed(State(peered): State<Peered>, Extension(peer): Extension<PeerIdentity>, request: Request) -> Response {
    let path = request.uri().path_and_query().map_or("/", |it| it.as_str());
    let inner = path.strip_prefix("/relay").unwrap_or(path);
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
) -> Response {
    answer(peered.orders.give(&peer, job, attempt))
}

async fn record(
    State(peered): State<Peered>,
    Extension(PeerIdentity(peer)): Extension<PeerIdentity>,
    Path((job, attempt)): Path<(JobId, u32)>,
) -> Response {
    answer(peered.orders.record_for(&peer, job, attempt))
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
) -> Response {
    let wanted = LogRequest {
        stream: LogStream { executor: query.executor, pipe: query.pipe },
        offset: query.offset,
        max: query.max.min(LOG_BYTES_MAX),
    };
    answer(peered.orders.logs_for(&peer, job, attempt, &wanted))
}

fn answer<T: Serialize>(result: Result<T, NoOrder>) -> Response {
    let encoded = result.map(|value| postcard::to_stdvec(&value));
    match encoded {
        Ok(Ok(bytes)) => bytes.into_response(),
        Ok(Err(cause)) => (StatusCode::INTERNAL_SERVER_ERROR, cause.to_string()).into_response(),
        Err(why) => (why.status(), why.to_string()).into_response(),
    }
}
