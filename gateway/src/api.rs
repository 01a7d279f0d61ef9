//! The public face: TES 1.1 for tasks, `/v1` for everything that TES has no word for.
//!
//! A handler reads like its sentence: parse, authenticate, decide and place, commit, answer. What
//! only the caller's home may answer stands behind [`entry::at_home`]; what any member answers from
//! its own replica stands behind [`entry::anywhere`].

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRequest, FromRequestParts, Query, Request};
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use axum::{Router, response::IntoResponse};
use federation::raft::Consensus;
use http::request::Parts;
use serde::de::DeserializeOwned;
use tokio_util::task::TaskTracker;

use crate::entry::{self, Entry};
use crate::error::{Code, Problem};
use crate::expiry::Warnings;
use crate::home::Home;
use crate::listener::read_body;
use crate::orders::Orders;
use crate::stages::Stages;
use crate::store::Store;
use crate::tes::BODY_BYTES_MAX;

mod documents;
mod federation_view;
mod tasks;

pub use documents::{Documents, Room};

/// How the gateway is. Answered by it also when it answers nothing else any more.
pub const HEALTH: &str = "/v1/health";

/// What the handlers need.
#[derive(Clone)]
pub struct Api {
    /// Knows callers.
    pub entry: Arc<Entry>,
    /// Keeps tasks.
    pub home: Arc<Home>,
    /// Asks hosts.
    pub orders: Arc<Orders>,
    /// The replica.
    pub consensus: Consensus,
    /// Tasks of this home.
    pub store: Store,
    /// Where the time goes.
    pub stages: Arc<Stages>,
    /// What others refuse of this gateway, or soon will.
    pub warnings: Warnings,
    /// Room for what clients send.
    pub documents: Documents,
    /// What a stop of this gateway waits for; closed as soon as it stops.
    pub tasks: TaskTracker,
}

/// All routes of the public face. The same router answers what entry gateways relay.
pub fn routes(api: Api) -> Router {
    let entry = Arc::clone(&api.entry);
    let own = Router::new()
        .merge(tasks::own_routes("/ga4gh/tes/v1"))
        .merge(tasks::own_routes("/v1"))
        .merge(tasks::own_routes(""))
        .route("/v1/tasks/{id}/why", get(tasks::why))
        .route("/v1/tasks/{id}/logs", get(tasks::logs))
        .route("/v1/explain", post(tasks::explain))
        .layer(from_fn_with_state(Arc::clone(&entry), entry::at_home));
    let shared = Router::new()
        .route("/v1/capacity", get(federation_view::capacity))
        .route("/v1/members", get(federation_view::members))
        .route("/v1/policies", get(federation_view::policies))
        .route("/v1/policies/{state}", get(federation_view::policy))
        .layer(from_fn_with_state(entry, entry::anywhere));
    let open = Router::new()
        .route("/ga4gh/tes/v1/service-info", get(tasks::service_info))
        .route("/v1/service-info", get(tasks::service_info))
        .route("/service-info", get(tasks::service_info))
        .route(HEALTH, get(federation_view::health));
    own.merge(shared)
        .merge(open)
        .fallback(nothing_here)
        .method_not_allowed_fallback(not_this_way)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(api)
}

/// A request's body, whole and within its limit.
pub struct Document(pub Bytes);

impl<S: Sync> FromRequest<S> for Document {
    type Rejection = Problem;

    async fn from_request(request: Request, _state: &S) -> Result<Document, Problem> {
        read_body(request.into_body(), BODY_BYTES_MAX).await.map(Document)
    }
}

/// A request's query, understood to its last parameter.
pub struct Asked<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Asked<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Asked<T>, Problem> {
        let query = Query::try_from_uri(&parts.uri);
        query.map(|Query(asked)| Asked(asked)).map_err(|bad| {
            let text = bad.body_text();
            // What the library puts before the parameter and what is wrong with it.
            let plain = text.rsplit_once("query string: ").map_or(text.as_str(), |(_, plain)| plain);
            Problem::new(Code::BadQuery, plain)
        })
    }
}

async fn nothing_here() -> impl IntoResponse {
    Problem::new(Code::NoSuchPath, "there is nothing at this path; tasks are at /ga4gh/tes/v1/tasks")
}

async fn not_this_way() -> impl IntoResponse {
    Problem::new(Code::MethodNotAllowed, "this path does not take this method")
}
