//! Credentials: the client, made of what the disk says about who the gateway is.
//!
//! Making one may read files and wait for a program, so that is done on a thread that may block, and once at a time,
//! however many ask. Invariant: one that works is kept until it expires, is not believed any more, or its files change.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::SystemTime;

use futures_util::future::{BoxFuture, FutureExt, Shared};
use k8s_openapi::jiff::Timestamp;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tokio::runtime::Handle;

use super::api::{ANSWER_TIMEOUT, Trouble, chain};
use super::settings::{KubernetesSettings, NoKubernetes};

/// What a service account in a cluster trusts. Its token is read again by the client itself.
const CLUSTER_CA: &str = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";

type Made = Shared<BoxFuture<'static, Result<Client, String>>>;

/// Who asks, and where.
pub(super) struct Credentials {
    source: Option<Source>,
    made: Mutex<Option<Made>>,
    /// When its files were last changed.
    changed: Mutex<Vec<Option<SystemTime>>>,
}

/// A kubeconfig; without one, the gateway is a pod of the cluster.
#[derive(Clone)]
struct Source {
    path: PathBuf,
    context: Option<String>,
    /// As it was at the start.
    first: Kubeconfig,
}

impl Credentials {
    /// Reads who the gateway is. The API server need not be there.
    pub fn open(settings: &KubernetesSettings) -> Result<Credentials, NoKubernetes> {
        let source = match &settings.kubeconfig {
            Some(path) => {
                let failed = |cause| NoKubernetes::Kubeconfig { path: path.clone(), cause: Box::new(cause) };
                let first = Kubeconfig::read_from(path).map_err(failed)?;
                Some(Source { path: path.clone(), context: settings.context.clone(), first })
            }
            None => {
                Config::incluster().map_err(|cause| NoKubernetes::NotInCluster(Box::new(cause)))?;
                None
            }
        };
        let changed = Mutex::new(changes(source.as_ref()));
        Ok(Credentials { source, made: Mutex::default(), changed })
    }

    pub async fn client(&self) -> Result<Client, Trouble> {
        match tokio::time::timeout(ANSWER_TIMEOUT, self.made_or_begun()).await {
            Ok(Ok(client)) => Ok(client),
            Ok(Err(text)) => {
                self.forget();
                Err(Trouble::Credentials(text))
            }
            // What hangs is waited for again, and not begun a second time.
            Err(_) => Err(Trouble::Credentials(format!("they are not there within {} s", ANSWER_TIMEOUT.as_secs()))),
        }
    }

    /// The next client is made of what then is on disk; `false` if one is being made.
    pub fn forget(&self) -> bool {
        let mut made = self.made();
        let is_over = made.as_ref().is_none_or(|it| it.peek().is_some());
        if is_over {
            *made = None;
        }
        is_over
    }

    /// Forgets a client whose files have changed. Blocks.
    pub fn look_at_files(&self) {
        let now = changes(self.source.as_ref());
        let mut changed = self.changed.lock().expect("invariant: nothing panics while it compares times");
        if *changed != now && self.forget() {
            *changed = now;
        }
    }

    fn made_or_begun(&self) -> Made {
        let mut made = self.made();
        let has_expired = |it: &Made| matches!(it.peek(), Some(Ok(client)) if has_expired(client));
        if made.as_ref().is_some_and(has_expired) {
            *made = None;
        }
        made.get_or_insert_with(|| begin(self.source.clone())).clone()
    }

    fn made(&self) -> MutexGuard<'_, Option<Made>> {
        self.made.lock().expect("invariant: nothing panics while it holds the client")
    }
}

fn has_expired(client: &Client) -> bool {
    client.valid_until().is_some_and(|at| at <= Timestamp::now())
}

fn begin(source: Option<Source>) -> Made {
    let runtime = Handle::current();
    let making = tokio::task::spawn_blocking(move || runtime.block_on(make(source)));
    making.map(|made| made.unwrap_or_else(|cause| Err(cause.to_string()))).boxed().shared()
}

async fn make(source: Option<Source>) -> Result<Client, String> {
    let mut config = match source {
        Some(source) => {
            // One that is being written may be unreadable for a moment: then the first one counts.
            let read = Kubeconfig::read_from(&source.path).unwrap_or(source.first);
            let options = KubeConfigOptions { context: source.context, ..KubeConfigOptions::default() };
            Config::from_custom_kubeconfig(read, &options).await.map_err(|cause| chain(&cause))?
        }
        None => Config::incluster().map_err(|cause| chain(&cause))?,
    };
    config.connect_timeout = Some(ANSWER_TIMEOUT / 2);
    // What is asked again is the driver's to say.
    config.default_retry = false;
    Client::try_from(config).map_err(|cause| chain(&cause))
}

/// When each file was last changed that the credentials are made of, as far as the client does not read it again itself.
fn changes(source: Option<&Source>) -> Vec<Option<SystemTime>> {
    let files = source.map_or_else(|| vec![PathBuf::from(CLUSTER_CA)], |source| files(&source.path));
    files.iter().map(|path| std::fs::metadata(path).and_then(|it| it.modified()).ok()).collect()
}

/// A kubeconfig and the files that it names.
fn files(path: &Path) -> Vec<PathBuf> {
    let read = Kubeconfig::read_from(path).unwrap_or_default();
    let clusters = read.clusters.into_iter().filter_map(|it| it.cluster?.certificate_authority);
    let users = read.auth_infos.into_iter().filter_map(|it| it.auth_info);
    let users = users.flat_map(|it| [it.client_certificate, it.client_key]).flatten();
    [path.to_owned()].into_iter().chain(clusters.chain(users).map(PathBuf::from)).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Those of a client that is there already.
    pub fn of(client: Client) -> Credentials {
        let made = futures_util::future::ready(Ok(client)).boxed().shared();
        Credentials { source: None, made: Mutex::new(Some(made)), changed: Mutex::new(changes(None)) }
    }

    impl Credentials {
        pub fn is_made(&self) -> bool {
            self.made().is_some()
        }
    }

    fn kubeconfig(folder: &Path, command: &str) -> Credentials {
        let path = folder.join("kubeconfig");
        let exec =
            format!("{{apiVersion: client.authentication.k8s.io/v1, command: {command}, interactiveMode: Never}}");
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: x\n\
             clusters: [{{name: c, cluster: {{server: \"https://127.0.0.1:1\", certificate-authority: ca.crt}}}}]\n\
             users: [{{name: u, user: {{exec: {exec}}}}}]\ncontexts: [{{name: x, context: {{cluster: c, user: u}}}}]\n"
        );
        std::fs::write(&path, text).expect("a file");
        let first = Kubeconfig::read_from(&path).expect("a kubeconfig");
        let source = Some(Source { path, context: None, first });
        let changed = Mutex::new(changes(source.as_ref()));
        Credentials { source, made: Mutex::default(), changed }
    }

    #[tokio::test]
    async fn what_fails_is_made_again_and_what_is_being_made_is_not() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let credentials = kubeconfig(folder.path(), "/no/such/program");
        assert!(matches!(credentials.client().await, Err(Trouble::Credentials(_))));
        assert!(credentials.made().is_none());
        *credentials.made() = Some(futures_util::future::pending().boxed().shared());
        assert!(!credentials.forget());
        assert!(credentials.made().is_some());
    }

    #[tokio::test]
    async fn a_client_is_kept_until_its_files_change() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let credentials = kubeconfig(folder.path(), "/no/such/program");
        let made = async || {
            let made = futures_util::future::ready(Err("kept".to_owned())).boxed().shared();
            let _polled = made.clone().await;
            *credentials.made() = Some(made);
        };
        made().await;
        credentials.look_at_files();
        assert!(credentials.made().is_some());
        std::fs::write(folder.path().join("ca.crt"), "new").expect("a file");
        credentials.look_at_files();
        assert!(credentials.made().is_none(), "a file that the kubeconfig names");
        made().await;
        credentials.look_at_files();
        assert!(credentials.made().is_some());
    }
}
