//! The API server: the few requests that the driver makes, each with a limit in time and in bytes.
//!
//! Answers are read and parsed here: the client's own way has no limits, and logs whole bodies that it cannot parse.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Node, Pod, Secret};
use k8s_openapi::jiff::Timestamp;
use kube::Resource;
use kube::api::{
    DeleteParams, GetParams, ListParams, LogParams, ObjectList, Patch, PatchParams, PostParams, Preconditions,
};
use kube::client::Body;
use kube::core::{Request, Status};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::credentials::Credentials;
use super::logs::ANSWER_BYTES_MAX;
use super::manifest::{FACTORY, FINALIZER};
use super::settings::{KubernetesSettings, NoKubernetes};
use crate::driver::record::one_line;

/// For one request: far above what an API server takes that is well.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Of one object: etcd takes 1.5 MiB.
const OBJECT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Of a page of a list: 50 objects of ours of 1.5 MiB each, or 500 of others of ~20 KiB, with some that are larger.
const PAGE_BYTES_MAX: usize = 80 * 1024 * 1024;
/// 10,000 Jobs of this factory, or their pods.
const OWN: Pages = Pages { size: 50, count: 200 };
/// 5,000 nodes with 110 pods each.
const ALL: Pages = Pages { size: 500, count: 1_100 };
/// Of an error that is not the API server's own, but of something before it.
const ERROR_BYTES_MAX: usize = 1024;

/// How a list is read.
#[derive(Clone, Copy)]
struct Pages {
    size: u32,
    count: u32,
}

/// The API server, as the gateway may use it.
pub(super) struct Api {
    credentials: Credentials,
    heard: Mutex<Instant>,
}

/// Why a request came to nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error("the API server answers {code}: {text}")]
    Answer { code: u16, reason: String, text: String },
    /// It may have been carried out all the same; so with the next two.
    #[error("no answer within {} s", ANSWER_TIMEOUT.as_secs())]
    Silence,
    #[error("{0}")]
    NoAnswer(String),
    #[error("an answer that cannot be read: {0}")]
    Malformed(String),
    #[error("the gateway's credentials cannot be used: {0}")]
    Credentials(String),
    #[error("a request that cannot be made: {0}")]
    Unsent(String),
    #[error("a list is longer than the gateway reads")]
    TooMany,
}

impl Trouble {
    /// Of an answer that is an error: the API server's own words where it has some.
    fn answer(code: http::StatusCode, body: &[u8]) -> Trouble {
        let status: Status = serde_json::from_slice(body).unwrap_or_default();
        let text = match status.message.is_empty() {
            true => String::from_utf8_lossy(&body[..body.len().min(ERROR_BYTES_MAX)]).into_owned(),
            false => status.message,
        };
        Trouble::Answer { code: code.as_u16(), reason: status.reason, text: one_line(&text) }
    }

    /// What everybody may read of it: it names no host, path or person.
    pub fn public(&self) -> String {
        match self {
            Trouble::Answer { code: 401, .. } | Trouble::Credentials(_) => {
                "the gateway cannot prove to Kubernetes who it is".to_owned()
            }
            Trouble::Answer { code: 403, .. } => "Kubernetes does not let the gateway look".to_owned(),
            Trouble::Answer { code, .. } => format!("Kubernetes answers with its error {code}"),
            Trouble::Silence | Trouble::NoAnswer(_) | Trouble::Unsent(_) => "Kubernetes does not answer".to_owned(),
            Trouble::Malformed(_) => "Kubernetes answers what the gateway cannot read".to_owned(),
            Trouble::TooMany => "Kubernetes has more pods than the gateway counts".to_owned(),
        }
    }

    /// There is an object of that name. A conflict may also be one of versions, of a quota's for example.
    pub fn is_there_already(&self) -> bool {
        matches!(self, Trouble::Answer { code: 409, reason, .. } if reason == "AlreadyExists")
    }

    /// Whether the API server may have heard of the request.
    pub fn was_sent(&self) -> bool {
        !matches!(self, Trouble::Credentials(_) | Trouble::Unsent(_))
    }

    pub fn code(&self) -> Option<u16> {
        match self {
            Trouble::Answer { code, .. } => Some(*code),
            _ => None,
        }
    }
}

impl From<kube::Error> for Trouble {
    fn from(error: kube::Error) -> Trouble {
        match error {
            kube::Error::Auth(cause) => Trouble::Credentials(one_line(&cause.to_string())),
            other => Trouble::NoAnswer(chain(&other)),
        }
    }
}

impl Api {
    /// Reads who the gateway is. The API server need not be there.
    pub fn open(settings: &KubernetesSettings) -> Result<Api, NoKubernetes> {
        Ok(Api::with(Credentials::open(settings)?))
    }

    fn with(credentials: Credentials) -> Api {
        Api { credentials, heard: Mutex::new(Instant::now()) }
    }

    /// For how long it has not answered, whatever was asked.
    pub fn silence(&self) -> Duration {
        self.heard.lock().expect("invariant: nothing panics while it holds a time").elapsed()
    }

    /// Uses credentials that have changed on disk. Blocks.
    pub fn look_at_credentials(&self) {
        self.credentials.look_at_files();
    }

    pub async fn nodes(&self) -> Result<Vec<Node>, Trouble> {
        self.all(ListParams::default(), ALL).await
    }

    /// Pods that hold something.
    pub async fn pods(&self) -> Result<Vec<Pod>, Trouble> {
        let live = ListParams::default().fields("status.phase!=Succeeded,status.phase!=Failed");
        self.all(live, ALL).await
    }

    /// Pods of the factory's Jobs, also those that are over.
    pub async fn own_pods(&self, factory: &str) -> Result<Vec<Pod>, Trouble> {
        self.all(of_factory(factory), OWN).await
    }

    pub async fn own_jobs(&self, factory: &str) -> Result<Vec<Job>, Trouble> {
        self.all(of_factory(factory), OWN).await
    }

    pub async fn job(&self, namespace: &str, name: &str) -> Result<Job, Trouble> {
        let get = of::<Job>(namespace).get(name, &GetParams::default());
        parse(&self.ask(get, OBJECT_BYTES_MAX).await?)
    }

    pub async fn create_job(&self, namespace: &str, job: &Job) -> Result<Job, Trouble> {
        parse(&self.create::<Job>(namespace, job).await?)
    }

    pub async fn create_secret(&self, namespace: &str, secret: &Secret) -> Result<(), Trouble> {
        self.create::<Secret>(namespace, secret).await.map(drop)
    }

    /// Its pods first, then itself, but for our finalizer. Of this uid only.
    pub async fn delete_job(&self, namespace: &str, name: &str, uid: &str) -> Result<(), Trouble> {
        let this = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
        let delete = of::<Job>(namespace).delete(name, &DeleteParams::foreground().preconditions(this));
        self.ask(delete, OBJECT_BYTES_MAX).await.map(drop)
    }

    /// Lets go of a Job whose end is noted.
    pub async fn release_job(&self, namespace: &str, name: &str, uid: &str) -> Result<(), Trouble> {
        let job = self.job(namespace, name).await?;
        if job.metadata.uid.as_deref() != Some(uid) {
            return Ok(());
        }
        let others: Vec<_> = job.metadata.finalizers.iter().flatten().filter(|it| *it != FINALIZER).collect();
        // With the version, so that a finalizer that somebody else adds meanwhile is not taken away.
        let metadata = json!({"finalizers": others, "resourceVersion": job.metadata.resource_version});
        let patch = Patch::Merge(json!({ "metadata": metadata }));
        let patch = of::<Job>(namespace).patch(name, &PatchParams::default(), &patch);
        self.ask(patch, OBJECT_BYTES_MAX).await.map(drop)
    }

    /// Lines of a container's log with their times, from the second of `since` on, as far as there is room.
    /// Bytes, since what a task writes need not be text.
    pub async fn log(
        &self,
        namespace: &str,
        pod: &str,
        container: String,
        since: Option<Timestamp>,
    ) -> Result<Vec<u8>, Trouble> {
        self.ask(log_request(namespace, pod, container, since), ANSWER_BYTES_MAX).await
    }

    async fn create<K>(&self, namespace: &str, object: &impl Serialize) -> Result<Vec<u8>, Trouble>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        let bytes = serde_json::to_vec(object).map_err(|cause| Trouble::Unsent(cause.to_string()))?;
        self.ask(of::<K>(namespace).create(&PostParams::default(), bytes), OBJECT_BYTES_MAX).await
    }

    async fn all<K>(&self, params: ListParams, pages: Pages) -> Result<Vec<K>, Trouble>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Send + 'static,
    {
        let everywhere = Request::new(K::url_path(&(), None));
        let mut params = params.limit(pages.size);
        let mut found = Vec::new();
        for _ in 0..pages.count {
            let bytes = self.ask(everywhere.list(&params), PAGE_BYTES_MAX).await?;
            // Some megabytes are a moment's work, and others wait on this thread.
            let parsing = tokio::task::spawn_blocking(move || parse::<ObjectList<K>>(&bytes));
            let mut page = parsing.await.map_err(|cause| Trouble::Malformed(cause.to_string()))??;
            found.append(&mut page.items);
            match page.metadata.continue_.filter(|it| !it.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => return Ok(found),
            }
        }
        Err(Trouble::TooMany)
    }

    /// Sends a request and reads at most so much of its answer.
    async fn ask(&self, request: Asked, max: usize) -> Result<Vec<u8>, Trouble> {
        let request = request.map_err(|cause| Trouble::Unsent(chain(&cause)))?;
        let client = self.credentials.client().await?;
        let asking = async {
            let answer = client.send(request.map(Body::from)).await?;
            let status = answer.status();
            let bytes = up_to(max, answer.into_body()).await?;
            if status.is_success() { Ok(bytes) } else { Err(Trouble::answer(status, &bytes)) }
        };
        let answered = tokio::time::timeout(ANSWER_TIMEOUT, asking).await.unwrap_or(Err(Trouble::Silence));
        match &answered {
            Ok(_) => *self.heard.lock().expect("invariant: nothing panics while it holds a time") = Instant::now(),
            Err(Trouble::Credentials(_) | Trouble::Answer { code: 401, .. }) => drop(self.credentials.forget()),
            Err(_) => {}
        }
        answered
    }
}

/// A request, or why it cannot be one.
type Asked = Result<http::Request<Vec<u8>>, kube::core::request::Error>;

fn of<K>(namespace: &str) -> Request
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    Request::new(K::url_path(&(), Some(namespace)))
}

fn of_factory(factory: &str) -> ListParams {
    ListParams::default().labels(&format!("{FACTORY}={factory}"))
}

fn log_request(namespace: &str, pod: &str, container: String, since: Option<Timestamp>) -> Asked {
    let params = LogParams {
        container: Some(container),
        limit_bytes: i64::try_from(ANSWER_BYTES_MAX).ok(),
        // Requests have whole seconds. The client would round to the nearest, and half a second of lines would be lost.
        since_time: since.and_then(|at| Timestamp::from_second(at.as_second()).ok()),
        timestamps: true,
        ..LogParams::default()
    };
    of::<Pod>(namespace).logs(pod, &params)
}

/// The beginning of a body; what is beyond it is not read.
async fn up_to(max: usize, mut body: Body) -> Result<Vec<u8>, Trouble> {
    let mut bytes = Vec::new();
    while bytes.len() < max
        && let Some(frame) = body.frame().await
    {
        let frame = frame?;
        let data = frame.data_ref().map_or(&[][..], |it| it);
        bytes.extend_from_slice(&data[..data.len().min(max - bytes.len())]);
    }
    Ok(bytes)
}

/// One that was cut cannot be parsed. What is said of it says nothing that is in it, which may be a task's.
fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Trouble> {
    let why = |cause: serde_json::Error| format!("{:?} at {}:{}", cause.classify(), cause.line(), cause.column());
    serde_json::from_slice(bytes).map_err(|cause| Trouble::Malformed(why(cause)))
}

/// An error with its causes: the first alone says nothing of a connection.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |it| it.source());
    let text = causes.fold(error.to_string(), |text, cause| {
        let cause = cause.to_string();
        if text.contains(&cause) { text } else { format!("{text}: {cause}") }
    });
    one_line(&text)
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::super::credentials::tests::of as credentials_of;
    use super::*;

    /// An API server that answers a method and a path with a status and a text; with `None`, never.
    pub fn server(answer: impl Fn(&str, &str) -> Option<(u16, String)> + Send + Sync + 'static) -> Api {
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let answer = answer(request.method().as_str(), request.uri().path());
            async move {
                match answer {
                    Some((status, text)) => {
                        http::Response::builder().status(status).body(Body::from(text.into_bytes()))
                    }
                    None => std::future::pending().await,
                }
            }
        });
        Api::with(credentials_of(kube::Client::new(service, "default")))
    }

    /// One that always answers this, and how often it was asked.
    fn answers(status: u16, text: &str) -> (Api, Arc<AtomicU32>) {
        let (text, asked) = (text.to_owned(), Arc::<AtomicU32>::default());
        let count = Arc::clone(&asked);
        let answer = move |_: &str, _: &str| {
            count.fetch_add(1, Ordering::Relaxed);
            Some((status, text.clone()))
        };
        (server(answer), asked)
    }

    #[tokio::test]
    async fn a_list_without_an_end_is_given_up() {
        let page = r#"{"kind":"JobList","apiVersion":"batch/v1","metadata":{"continue":"x"},"items":[]}"#;
        let (api, asked) = answers(200, page);
        assert!(matches!(api.own_jobs("f").await, Err(Trouble::TooMany)));
        assert_eq!(asked.load(Ordering::Relaxed), OWN.count);
        let (api, _) = answers(200, &page.replace("\"x\"", "\"\""));
        assert_eq!(api.own_jobs("f").await.expect("a list"), []);
    }

    #[tokio::test]
    async fn an_answer_that_is_too_large_or_none_is_not_said_again() {
        for text in [format!("{{\"metadata\": \"{}\"}}", "secret".repeat(OBJECT_BYTES_MAX)), "<secret>".to_owned()] {
            let trouble = answers(200, &text).0.create_job("n", &Job::default()).await.expect_err("unreadable");
            assert!(matches!(trouble, Trouble::Malformed(_)) && trouble.to_string().len() < 200, "{trouble}");
            assert!(trouble.was_sent() && trouble.code().is_none());
        }
    }

    #[tokio::test]
    async fn only_who_is_not_believed_proves_anew_who_he_is() {
        let is_kept = async |status: u16| {
            let (api, asked) = answers(status, "");
            let _an_error = api.job("n", "j").await;
            assert_eq!(asked.load(Ordering::Relaxed), 1);
            api.credentials.is_made()
        };
        assert_eq!([is_kept(403).await, is_kept(500).await, is_kept(401).await], [true, true, false]);
    }

    #[test]
    fn a_log_is_asked_for_from_the_second_of_its_last_line_on() {
        let since = "2026-01-01T00:00:01.7Z".parse().expect("a time");
        let request = log_request("climate", "p", "step-0".into(), Some(since)).expect("a request");
        let uri = request.uri().to_string();
        assert!(uri.starts_with("/api/v1/namespaces/climate/pods/p/log?"), "{uri}");
        assert!(uri.contains("sinceTime=2026-01-01T00%3A00%3A01Z"), "{uri}");
    }

    #[tokio::test]
    async fn a_body_is_read_as_far_as_there_is_room() {
        let body = || Body::from(b"a\xff line".to_vec());
        assert_eq!(up_to(100, body()).await.expect("read"), b"a\xff line");
        assert_eq!(up_to(3, body()).await.expect("read"), b"a\xff ");
    }

    #[test]
    fn a_conflict_is_not_always_an_object_of_that_name() {
        let conflict = |reason: &str| {
            let body = format!("{{\"code\":409,\"reason\":\"{reason}\",\"message\":\"m\"}}");
            Trouble::answer(http::StatusCode::CONFLICT, body.as_bytes()).is_there_already()
        };
        assert_eq!((conflict("AlreadyExists"), conflict("Conflict")), (true, false));
    }

    #[test]
    fn an_error_has_the_servers_words_on_one_line() {
        let status = br#"{"kind":"Status","code":403,"reason":"Forbidden","message":"jobs is\nforbidden"}"#;
        let trouble = Trouble::answer(http::StatusCode::FORBIDDEN, status);
        assert_eq!(trouble.to_string(), "the API server answers 403: jobs is forbidden");
        let proxy = Trouble::answer(http::StatusCode::BAD_GATEWAY, &[b'x'; 5_000]);
        assert_eq!((proxy.code(), proxy.to_string().len()), (Some(502), "the API server answers 502: ".len() + 1_024));
    }
}
