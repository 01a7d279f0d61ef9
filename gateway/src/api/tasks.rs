//! Tasks: the endpoints of TES 1.1, and why and logs of a task, at the caller's home.
//!
//! Invariants: a caller sees his own tasks and nobody else's, and a task of somebody else is answered like one that does
//! not exist; what has an effect goes on when the client hangs up.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Extension, Path, RawQuery, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use bytes::Bytes;
use certs::{Caller, Digest, Role};
use federation::{Candidate, Job, JobId, JobState, Pseudonym, Registry};
use http::HeaderMap;
use http::header::{CONTENT_TYPE, HeaderName};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio_util::task::TaskTracker;

use super::{Api, Asked, Document, Room};
use crate::archive;
use crate::driver::{AttemptRecord, LogStream, Pipe};
use crate::entry::IDEMPOTENCY_KEY;
use crate::error::{Code, Problem};
use crate::explain;
use crate::home::Arrival;
use crate::orders::{LogRequest, NoOrder};
use crate::peer::PeerError;
use crate::peer::server::LOG_BYTES_MAX;
use crate::stages::Stage;
use crate::store::{Ended, TaskRecord};
use crate::tes::model::{
    CancelTaskResponse, CreateTaskResponse, ListTasksResponse, Organization, ServiceInfo, ServiceType,
    State as TesState, Task,
};
use crate::tes::view::{Known, show, state_of};
use crate::tes::{self, BACKEND_PARAMETERS, ListQuery, PageToken, Requirements, Submission, View};

/// A document beyond this takes more than a millisecond.
const LARGE_BYTES: usize = 64 * 1_024;
/// Longest Idempotency-Key in bytes; a UUID has 36.
const KEY_BYTES_MAX: usize = 128;
/// Tasks read at once while a list is filtered.
const READ_AT_ONCE: usize = 256;
/// Tasks looked at for one page; a rarer filter gets a short page and a token.
const LOOKED_AT_MAX: usize = 8_192;
/// Bytes of documents and records on one page; larger tasks make shorter pages.
const PAGE_BYTES_MAX: u64 = 4 * 1_024 * 1_024;
/// A host that does not answer must not hold up a look at a task.
const HOST_TIMEOUT: Duration = Duration::from_secs(3);
/// No file is longer.
const LOG_OFFSET_MAX: u64 = i64::MAX as u64;
const REVISION: HeaderName = HeaderName::from_static("entente-revision");
const NEXT_OFFSET: HeaderName = HeaderName::from_static("entente-next-offset");
const END: HeaderName = HeaderName::from_static("entente-end");

/// The endpoints of TES under one prefix.
pub fn own_routes(prefix: &'static str) -> Router<Api> {
    let create = move |state, caller, headers, body| create(prefix, state, caller, headers, body);
    Router::new()
        .route(&format!("{prefix}/tasks"), get(list).post(create))
        .route(&format!("{prefix}/tasks/{{id}}"), get(read).post(cancel))
}

async fn create(
    prefix: &'static str,
    State(api): State<Api>,
    Extension(caller): Extension<Arc<Caller>>,
    headers: HeaderMap,
    Document(body): Document,
) -> Result<Response, Problem> {
    if !caller.is(Role::Researcher) {
        return Err(Problem::new(
            Code::RoleMissing,
            "only researchers submit tasks; your token gives you another role",
        ));
    }
    let room = api.documents.room(body.len()).await?;
    let begun = Instant::now();
    let arrival = Arrival { key: idempotency_key(&headers)?, body: Digest::of(&body), face: prefix.to_owned() };
    let (room, submission, requirements) = understood(room, body).await?;
    api.stages.add(Stage::Parse, begun);
    let (home, tasks) = (Arc::clone(&api.home), api.tasks.clone());
    let delivery = home.delivery(&caller, &arrival);
    let work = async move {
        let _held_until_it_is_stored = room;
        let accepted = api.home.submit(&caller, &submission, &requirements, &arrival).await?;
        let revision = [(REVISION, accepted.revision.0.to_string())];
        Ok((revision, Json(CreateTaskResponse { id: accepted.job.to_string() })).into_response())
    };
    let answer = tracked(&tasks, work).await;
    delivery.done(answer.is_ok());
    answer
}

/// What a document says. A large one takes a tenth of a second, so that it is understood where nobody waits behind it.
/// Its room is held until then, also if the client has hung up.
async fn understood(room: Room, body: Bytes) -> Result<(Room, Submission, Requirements), Problem> {
    let is_large = body.len() > LARGE_BYTES;
    let understand = move || {
        let submission = Submission::parse(&body)?;
        let requirements = submission.requirements()?;
        Ok((room, submission, requirements))
    };
    if !is_large {
        return understand();
    }
    tokio::task::spawn_blocking(understand).await.unwrap_or_else(|_| Err(failed_inside()))
}

async fn list(
    State(api): State<Api>,
    Extension(caller): Extension<Arc<Caller>>,
    RawQuery(query): RawQuery,
) -> Result<Json<ListTasksResponse>, Problem> {
    let query = ListQuery::parse(query.as_deref())?;
    let owner = api.home.pseudonym(&caller);
    let _room = match query.view {
        View::Minimal => None,
        View::Basic | View::Full => Some(api.documents.room(PAGE_BYTES_MAX as usize).await?),
    };
    let page = tokio::task::spawn_blocking(move || page(&api, &owner, &query)).await;
    page.unwrap_or_else(|_| Err(failed_inside())).map(Json)
}

/// One page of a list, newest first. Runs where blocking does no harm: it reads from disk.
fn page(api: &Api, owner: &Pseudonym, query: &ListQuery) -> Result<ListTasksResponse, Problem> {
    let mut before = query.page_token.map(|token| token.0);
    let mut page = Vec::new();
    let (mut looked_at, mut bytes) = (0, 0);
    loop {
        let found = api.store.tasks_of(owner, before.as_ref(), READ_AT_ONCE)?;
        let last = found.len() < READ_AT_ONCE;
        for (job, summary) in found {
            if page.len() == query.page_size || bytes >= PAGE_BYTES_MAX {
                return Ok(ListTasksResponse { tasks: page, next_page_token: before.map(token) });
            }
            before = Some(job);
            looked_at += 1;
            let seen = Seen::of(api, &job)?;
            if !query.matches(summary.name.as_deref(), &summary.tags, seen.state()) {
                continue;
            }
            if query.view == View::Minimal {
                page.push(Task { id: Some(job.to_string()), state: Some(seen.state()), ..Task::default() });
                continue;
            }
            let Some(record) = api.store.task(&job)? else {
                continue;
            };
            let (attempt, attempt_bytes) = kept_record(api, &job)?;
            bytes += summary.payload_bytes + attempt_bytes;
            page.push(seen.with(attempt).show(&record, &submission_of(&record)?, query.view));
        }
        if last || looked_at >= LOOKED_AT_MAX {
            let next_page_token = if last { None } else { before.map(token) };
            return Ok(ListTasksResponse { tasks: page, next_page_token });
        }
    }
}

fn token(job: JobId) -> String {
    PageToken(job).to_text()
}

/// What the archive has of a host's record, and how many bytes that is. A list asks no other gateway.
fn kept_record(api: &Api, job: &JobId) -> Result<(Option<AttemptRecord>, u64), Problem> {
    let Some(bytes) = api.store.record(job)? else {
        return Ok((None, 0));
    };
    let record = archive::host_record(&bytes).map_err(|_| unreadable("record"))?;
    Ok((record, bytes.len() as u64))
}

async fn read(
    State(api): State<Api>,
    Extension(caller): Extension<Arc<Caller>>,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Json<Task>, Problem> {
    let view = View::from_query(query.as_deref())?;
    let record = own_task(&api, &caller, &id)?;
    let mut seen = Seen::of(&api, &record.job)?;
    if view == View::Minimal {
        let state = Some(seen.state());
        return Ok(Json(Task { id: Some(record.job.to_string()), state, ..Task::default() }));
    }
    let _room = api.documents.room(record.payload.len()).await?;
    let submission = submission_of(&record)?;
    if let Some(kept) = api.store.record(&record.job)? {
        seen = seen.with(archive::host_record(&kept).map_err(|_| unreadable("record"))?);
    } else if let Some(job) = seen.job.clone() {
        match tokio::time::timeout(HOST_TIMEOUT, api.orders.record(&job)).await {
            Ok(Ok(attempt)) => seen = seen.with(attempt),
            Ok(Err(why)) => seen.notes.push(format!("the host's record is not here yet: {why}")),
            Err(_) => seen.notes.push("the host's record is not here yet: it did not answer in time".into()),
        }
    }
    Ok(Json(seen.show(&record, &submission, view)))
}

async fn cancel(
    State(api): State<Api>,
    Extension(caller): Extension<Arc<Caller>>,
    Path(id): Path<String>,
) -> Result<Json<CancelTaskResponse>, Problem> {
    let Some(id) = id.strip_suffix(":cancel") else {
        return Err(Problem::new(Code::NoSuchPath, "a task takes POST only as /tasks/{id}:cancel"));
    };
    let job = own_task(&api, &caller, id)?.job;
    let tasks = api.tasks.clone();
    let work = async move { api.home.cancel(job).await.map(|()| Json(CancelTaskResponse {})) };
    tracked(&tasks, work).await
}

/// Why a task is where it is: every pool with what each state said when it was placed, and the capacity now.
pub async fn why(
    State(api): State<Api>,
    Extension(caller): Extension<Arc<Caller>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Problem> {
    let record = own_task(&api, &caller, &id)?;
    let seen = Seen::of(&api, &record.job)?;
    let stored = api.store.explanation(&record.explanation)?.unwrap_or_else(|| b"[]".to_vec());
    let pools: Vec<explain::PoolAnswers> = serde_json::from_slice(&stored).map_err(|_| unreadable("verdicts"))?;
    let requirements = submission_of(&record)?.requirements()?;
    let (revision, shown, summary) = api.consensus.read(|registry| {
        let waits = seen.job.as_deref().filter(|job| job.state == JobState::Queued);
        let shown = explain::pools(registry, &pools, record.researcher.home, waits, &requirements);
        (registry.revision().0, shown, seen.summary(registry))
    });
    let attempts: Vec<Value> = seen.job.iter().flat_map(|job| &job.attempts).map(explain::attempt).collect();
    Ok(Json(json!({
        "task": record.job,
        "state": seen.state(),
        "summary": summary,
        "attempts": attempts,
        "pools": shown,
        "revision": revision,
    })))
}

/// Where a task could run, without submitting it.
pub async fn explain(
    State(api): State<Api>,
    Extension(caller): Extension<Arc<Caller>>,
    Document(body): Document,
) -> Result<Json<Value>, Problem> {
    let room = api.documents.room(body.len()).await?;
    let (_room, _, requirements) = understood(room, body).await?;
    let verdicts = api.home.explain(&caller, &requirements)?;
    let answer = api.consensus.read(|registry| {
        let (home, permits) = (caller.state, verdicts.permits());
        let placed = federation::place(registry, home, &requirements.shape, &permits, &requirements.zones);
        json!({
            "summary": explain::summary(registry, home, permits.len(), placed),
            "pools": explain::pools(registry, &explain::answers(&verdicts), home, None, &requirements),
            "revision": registry.revision().0,
        })
    });
    Ok(Json(answer))
}

/// Which part of which stream.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogQuery {
    #[serde(default)]
    executor: u32,
    #[serde(default = "stdout")]
    pipe: Pipe,
    #[serde(default)]
    offset: u64,
}

fn stdout() -> Pipe {
    Pipe::Stdout
}

/// A piece of a task's output, as bytes. Where the next piece begins, and whether there will be one, is in the headers.
pub async fn logs(
    State(api): State<Api>,
    Extension(caller): Extension<Arc<Caller>>,
    Path(id): Path<String>,
    Asked(query): Asked<LogQuery>,
) -> Result<Response, Problem> {
    let record = own_task(&api, &caller, &id)?;
    if query.offset > LOG_OFFSET_MAX {
        return Err(Problem::new(Code::BadQuery, "offset: no output is that long"));
    }
    // The first is always there, and reading the document takes longer than reading the log.
    if query.executor > 0 && query.executor as usize >= submission_of(&record)?.task().executors.len() {
        return Err(Problem::new(Code::NotFound, "this task has no such executor; they are counted from 0"));
    }
    let Some(job) = Seen::of(&api, &record.job)?.job else {
        return Err(Problem::new(Code::NotFound, "the registry holds no such task yet; ask again"));
    };
    let stream = LogStream { executor: query.executor, pipe: query.pipe };
    let wanted = LogRequest { stream, offset: query.offset, max: LOG_BYTES_MAX };
    let chunk = api.orders.logs(&job, &wanted).await.map_err(no_logs)?;
    let headers = [
        (CONTENT_TYPE, "application/octet-stream".to_owned()),
        (NEXT_OFFSET, chunk.next_offset.to_string()),
        (END, chunk.end.to_string()),
    ];
    Ok((headers, chunk.bytes).into_response())
}

/// What this service is; needs no token.
pub async fn service_info(State(api): State<Api>) -> Json<ServiceInfo> {
    let me = &api.entry.me;
    let (federation, url) = api.consensus.read(|registry| {
        let url = registry.gateway(me).map(|record| record.api_url.clone());
        (registry.federation().clone(), url.unwrap_or_default())
    });
    // Reverse domain order, as the specification asks.
    let labels: Vec<&str> = federation.as_str().split('.').rev().collect();
    Json(ServiceInfo {
        id: format!("{}.{}.{}", labels.join("."), me.state.lower(), me.name),
        name: format!("Entente gateway {me}"),
        service_type: ServiceType::tes(),
        description: Some("Runs tasks at factories of member states, where every concerned state allows it".into()),
        organization: Organization { name: me.state.to_string(), url },
        contact_url: None,
        documentation_url: None,
        created_at: None,
        updated_at: None,
        environment: None,
        version: env!("CARGO_PKG_VERSION").into(),
        storage: vec!["file://".into(), "http://".into(), "https://".into()],
        backend_parameters: BACKEND_PARAMETERS.iter().map(|name| (*name).to_owned()).collect(),
    })
}

/// What is known of a task now: its job, from the registry or the archive, and what its host said.
struct Seen {
    job: Option<Arc<Job>>,
    attempt: Option<AttemptRecord>,
    notes: Vec<String>,
    /// Why there is no job and will be none.
    given_up: Option<&'static str>,
}

impl Seen {
    fn of(api: &Api, job: &JobId) -> Result<Seen, Problem> {
        let seen = |job| Seen { job, attempt: None, notes: vec![], given_up: None };
        if let Some(job) = api.consensus.read(|registry| registry.job_arc(job)) {
            return Ok(seen(Some(job)));
        }
        let why = match api.store.ended(job)? {
            None => return Ok(seen(None)),
            Some(Ended::Job(job)) => return Ok(seen(Some(Arc::from(job)))),
            Some(Ended::NeverTaken) => "the registry never took this submission, and its client was told so",
            Some(Ended::Forgotten) => {
                "the registry forgot this task while its home was away: it has ended, and nobody knows how"
            }
        };
        Ok(Seen { given_up: Some(why), ..seen(None) })
    }

    fn with(mut self, attempt: Option<AttemptRecord>) -> Seen {
        self.attempt = attempt.or(self.attempt);
        self
    }

    /// A task whose commit was never heard of is on its way, or will be submitted again by its client.
    fn state(&self) -> TesState {
        match &self.job {
            Some(job) => state_of(job),
            None if self.given_up.is_some() => TesState::SystemError,
            None => TesState::Unknown,
        }
    }

    fn show(self, record: &TaskRecord, submission: &Submission, view: View) -> Task {
        let state = self.state();
        let notes = [record.warnings.clone(), self.notes].concat();
        let logs = match &self.job {
            Some(job) => tes::logs(job, self.attempt, &notes),
            None => self.given_up.map_or(vec![], |why| tes::given_up(&[notes, vec![why.into()]].concat())),
        };
        show(submission, Known { id: record.job.to_string(), state, created_at: record.created_at, logs }, view)
    }

    fn summary(&self, registry: &Registry) -> String {
        let Some(job) = &self.job else {
            return self.given_up.unwrap_or("the registry has not shown this task yet").into();
        };
        let at = job.attempt().map(|attempt| attempt.pool.to_string()).unwrap_or_default();
        match job.state {
            JobState::Queued => {
                let has_turn =
                    |it: &&Candidate| registry.offer(&it.pool).is_none_or(|offer| it.has_turn(offer, job.home));
                match job.candidates.iter().filter(has_turn).count() {
                    0 => format!("waits until {} holds less of the pools that it may run in", job.home),
                    pools => format!("waits for room in one of {pools} permitted pools"),
                }
            }
            JobState::Granted | JobState::Starting => format!("has its GPUs in {at} and is being started"),
            JobState::Running => format!("runs in {at}"),
            JobState::Complete => format!("ran in {at} and is complete"),
            JobState::Canceled => "was canceled".into(),
            JobState::Failed => match &job.end {
                Some(end) => format!("failed: {}", explain::end(end)),
                None => "failed".into(),
            },
        }
    }
}

fn own_task(api: &Api, caller: &Caller, id: &str) -> Result<TaskRecord, Problem> {
    let none = || Problem::new(Code::NotFound, "you have no task of this id; `GET /tasks` lists yours");
    let job = JobId::parse(id).map_err(|_| none())?;
    let record = api.store.task(&job)?.ok_or_else(none)?;
    if record.owner == api.home.pseudonym(caller) { Ok(record) } else { Err(none()) }
}

fn submission_of(record: &TaskRecord) -> Result<Submission, Problem> {
    Submission::from_payload(&record.payload).map_err(|_| unreadable("document"))
}

fn unreadable(what: &str) -> Problem {
    Problem::new(Code::StoreFailed, format!("the {what} of this task cannot be read any more"))
}

fn failed_inside() -> Problem {
    Problem::new(Code::Internal, "this gateway failed at it; its log says more")
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let bad =
        || Problem::new(Code::BadRequest, "send one Idempotency-Key of at most 128 visible ASCII characters, or none");
    let mut keys = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(key) = keys.next() else {
        return Ok(None);
    };
    let text = key.to_str().map_err(|_| bad())?;
    let sound = !text.is_empty() && text.len() <= KEY_BYTES_MAX && text.bytes().all(|it| it.is_ascii_graphic());
    if sound && keys.next().is_none() { Ok(Some(text.to_owned())) } else { Err(bad()) }
}

fn no_logs(why: NoOrder) -> Problem {
    if why.is_final() {
        return Problem::new(Code::NotFound, "the host holds no output of this task any more");
    }
    if matches!(why, NoOrder::Peer(PeerError::Busy { .. })) {
        return Problem::new(Code::Overloaded, why.to_string());
    }
    Problem::new(Code::HostUnreachable, why.to_string())
}

/// Does work that must not end with its client's patience, and waits for it; a stop of the gateway waits too.
async fn tracked<T: Send + 'static>(
    tasks: &TaskTracker,
    work: impl Future<Output = Result<T, Problem>> + Send + 'static,
) -> Result<T, Problem> {
    tasks.spawn(work).await.unwrap_or_else(|_| Err(failed_inside()))
}
