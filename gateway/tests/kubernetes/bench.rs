//! A control plane, a driver of it, a stand-in for kubelets, and the words that the tests use.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use certs::MemberState;
use federation::{CapacityReport, End, JobId, PoolId, Pseudonym};
use gateway::driver::{
    AttemptRecord, AttemptStatus, Driver, KubernetesPool, KubernetesSettings, LabelValue, LogStream, Pipe,
    QualifiedName, Step, WorkOrder, WorkOwner, start_kubernetes,
};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Far above anything seen, so that only a fault reaches it.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// What containers have written, as the API gives it; by pod and container.
type Written = Arc<Mutex<BTreeMap<(String, String), Vec<u8>>>>;

/// A control plane that ends with this process.
pub struct Cluster {
    folder: PathBuf,
}

/// A driver in a fresh folder, with a factory and nodes of its own.
pub struct Bench {
    pub cluster: &'static Cluster,
    _folder: TempDir,
    pub settings: KubernetesSettings,
    pub client: Client,
    written: Written,
    kubelet_port: u16,
    driver: Option<Arc<dyn Driver>>,
}

/// Runs a test on the shared control plane, or prints why not.
pub fn on(test: impl AsyncFnOnce(&mut Bench)) {
    if is_skipped() {
        return;
    }
    static SHARED: OnceLock<Cluster> = OnceLock::new();
    run(SHARED.get_or_init(Cluster::start), test);
}

/// Runs a test on one of its own.
pub fn on_its_own(test: impl AsyncFnOnce(&mut Bench)) {
    if !is_skipped() {
        run(Box::leak(Box::new(Cluster::start())), test);
    }
}

fn run(cluster: &'static Cluster, test: impl AsyncFnOnce(&mut Bench)) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut bench = Bench::prepare(cluster).await;
        test(&mut bench).await;
        bench.stop();
        bench.clear().await;
    });
}

/// Prints why a test is skipped. What `ENTENTE_TEST_REQUIRE` lists must not be missing.
fn is_skipped() -> bool {
    let has = Command::new("bash").arg(script()).arg("has").status().expect("bash");
    if has.success() {
        return false;
    }
    let required = std::env::var("ENTENTE_TEST_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|name| name == "kubernetes"), "kubernetes is required here: build it first");
    eprintln!("SKIPPED: without kubernetes: `integration-tests/kubernetes/cluster.sh build` makes its programs");
    true
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../integration-tests/kubernetes/cluster.sh")
}

impl Cluster {
    fn start() -> Cluster {
        static STARTED: AtomicU16 = AtomicU16::new(0);
        // Below what outgoing connections are given. The tests with Slurm are another program, which runs at another time.
        let first = 30_000 + (std::process::id() % 40) as u16 * 50;
        let is_free = |port: u16| (0..5).all(|it| std::net::TcpListener::bind(("127.0.0.1", port + it)).is_ok());
        let port = std::iter::repeat_with(|| first + STARTED.fetch_add(1, Ordering::Relaxed) % 10 * 5)
            .take(10)
            .find(|port| is_free(*port))
            .expect("a free range of ports");
        // The script removes it.
        let folder = tempfile::tempdir().expect("a temporary folder").keep();
        let up = Command::new("bash")
            .arg(script())
            .arg("up")
            .arg(&folder)
            .args(["climate", "guests-fi"])
            .env("PORT", port.to_string())
            .env("UNTIL", std::process::id().to_string())
            .stdin(Stdio::null())
            .output()
            .expect("bash");
        assert!(up.status.success(), "{}", String::from_utf8_lossy(&up.stderr));
        Cluster { folder }
    }

    /// `start`, `stop`, `pause` or `resume` a daemon.
    pub fn daemon(&self, what: &str, which: &str) {
        let done = Command::new("bash").arg(script()).arg(what).arg(&self.folder).arg(which).output().expect("bash");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    async fn admin(&self) -> Client {
        let read = Kubeconfig::read_from(self.folder.join("admin.kubeconfig")).expect("a kubeconfig");
        let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await.expect("a config");
        Client::try_from(config).expect("a client")
    }
}

impl Bench {
    /// Two nodes of four GPUs, and a driver that has seen them.
    async fn prepare(cluster: &'static Cluster) -> Bench {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let rules = "[[rule]]\nhome = \"FI\"\nnamespace = \"climate\"\nuid = 20001\n\n\
                     [[rule]]\nhome = \"SE\"\nnamespace = \"no-such-namespace\"\n";
        std::fs::write(folder.path().join("namespaces.toml"), rules).expect("a mapping");
        let random = u32::from_le_bytes(certs::entropy::bytes());
        let pool = PoolId::parse(&format!("FR/k{random:08x}/h100")).expect("a pool");
        let settings = KubernetesSettings {
            factory: pool.factory,
            journal: folder.path().join("journal"),
            kubeconfig: Some(cluster.folder.join("gateway.kubeconfig")),
            context: None,
            namespaces: folder.path().join("namespaces.toml"),
            queue: None,
            start: Duration::from_secs(600),
            pools: vec![KubernetesPool {
                id: pool,
                resource: QualifiedName::parse("nvidia.com/gpu").expect("a name"),
                node_labels: [(
                    QualifiedName::parse("pool").expect("a name"),
                    LabelValue::parse(&pool.factory.name.to_string()).expect("a value"),
                )]
                .into(),
                tolerate: vec![],
                runtime_class: None,
                priority_class: None,
                nodes: 2,
                gpus_per_node: 4,
                task_slots: 100,
                units_per_gpu: 1,
            }],
        };
        let written = Arc::default();
        let kubelet_port = kubelet(cluster, Arc::clone(&written)).await;
        let client = cluster.admin().await;
        let mut bench = Bench { cluster, _folder: folder, settings, client, written, kubelet_port, driver: None };
        bench.add_node(1).await;
        bench.add_node(2).await;
        bench.restart().await;
        bench.lends("4x2").await;
        bench
    }

    /// What a gateway does that comes up again.
    pub async fn restart(&mut self) {
        self.stop();
        self.driver = Some(start_kubernetes(self.settings.clone()).expect("a driver"));
    }

    pub fn stop(&mut self) {
        self.driver = None;
    }

    pub fn driver(&self) -> &dyn Driver {
        self.driver.as_deref().expect("a driver that was not stopped")
    }

    pub fn pool(&self) -> PoolId {
        self.settings.pools[0].id
    }

    pub fn node(&self, number: u32) -> String {
        format!("{}-n{number}", self.settings.factory.name)
    }

    async fn add_node(&self, number: u32) {
        let api: Api<Node> = Api::all(self.client.clone());
        let (name, pool) = (self.node(number), self.settings.factory.name.to_string());
        let node = json!({"metadata": {"name": name, "labels": {"pool": pool}}});
        api.create(&PostParams::default(), &serde_json::from_value(node).expect("a node")).await.expect("a node");
        // An admission plugin taints what is new.
        self.change_node(number, json!({"spec": {"taints": null}})).await;
        let resources = json!({"cpu": "64", "memory": "512Gi", "pods": "110", "ephemeral-storage": "1Ti",
            "nvidia.com/gpu": "4"});
        let status = json!({
            "capacity": resources, "allocatable": resources,
            "conditions": [{"type": "Ready", "status": "True", "reason": "Test", "message": "",
                "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self.kubelet_port}},
        });
        let patch = Patch::Merge(json!({ "status": status }));
        api.patch_status(&name, &PatchParams::default(), &patch).await.expect("a status");
    }

    pub async fn change_node(&self, number: u32, change: Value) {
        let api: Api<Node> = Api::all(self.client.clone());
        api.patch(&self.node(number), &PatchParams::default(), &Patch::Merge(change)).await.expect("a changed node");
    }

    pub fn jobs(&self) -> Api<Job> {
        Api::namespaced(self.client.clone(), "climate")
    }

    pub fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), "climate")
    }

    /// Pods of an attempt, as the Job controller made them.
    pub async fn pods_of(&self, job: JobId) -> Vec<Pod> {
        let params = ListParams::default().labels(&format!("job-name={}", name(job)));
        self.pods().list(&params).await.expect("pods").items
    }

    /// The pod of an attempt when the scheduler has given it a node.
    pub async fn bound(&self, job: JobId) -> Pod {
        let has_node = |pod: &Pod| pod.spec.as_ref().is_some_and(|it| it.node_name.is_some());
        self.until("a pod has a node", async || self.pods_of(job).await.into_iter().find(has_node)).await
    }

    /// What a kubelet reports of a pod.
    pub async fn report(&self, pod: &Pod, status: Value) {
        let name = pod.metadata.name.as_deref().expect("a name");
        let patch = Patch::Merge(json!({ "status": status }));
        self.pods().patch_status(name, &PatchParams::default(), &patch).await.expect("a status");
    }

    /// Waits for a pod and lets its first container run.
    pub async fn starts(&self, job: JobId) -> Pod {
        let pod = self.bound(job).await;
        self.report(&pod, statuses("Running", &pod, &[running()])).await;
        self.reaches(job, |it| matches!(it, AttemptStatus::Running { .. })).await;
        pod
    }

    /// Takes something out of a stopped gateway's journal, as if that had been killed before it could note it.
    pub fn forgets(&self, job: JobId, fields: &[&str]) {
        let mut entry = self.entry(job);
        fields.iter().for_each(|field| entry[*field] = Value::Null);
        std::fs::write(self.entry_path(job), entry.to_string()).expect("a file");
    }

    /// What the journal has of an attempt.
    pub fn entry(&self, job: JobId) -> Value {
        serde_json::from_slice(&std::fs::read(self.entry_path(job)).expect("a file")).expect("JSON")
    }

    fn entry_path(&self, job: JobId) -> PathBuf {
        self.settings.journal.join(format!("{job}.1.json"))
    }

    /// What a container has written, by its kubelet's word.
    pub fn writes(&self, pod: &Pod, container: usize, lines: &[u8]) {
        let key = (pod.metadata.name.clone().expect("a name"), format!("step-{container}"));
        self.written.lock().expect("a lock").insert(key, lines.to_vec());
    }

    /// Waits until the Job controller says how a Job has ended.
    pub async fn finished(&self, job: JobId) {
        self.until("the Job has ended", async || {
            let job = self.jobs().get(&name(job)).await.expect("a Job");
            let conditions = job.status.and_then(|it| it.conditions).unwrap_or_default();
            conditions.iter().any(|it| it.status == "True").then_some(())
        })
        .await;
    }

    /// What a kubelet does at the end of a pod that is deleted.
    pub async fn removes(&self, pod: &Pod) {
        let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        self.pods().delete(pod.metadata.name.as_deref().expect("a name"), &now).await.expect("a removed pod");
    }

    pub fn order(&self, steps: &[&str]) -> WorkOrder {
        let step = |script: &&str| Step {
            image: "registry.example/tool:1".into(),
            command: vec!["sh".into(), "-c".into(), (*script).into()],
            workdir: None,
            stdin: None,
            stdout: None,
            stderr: None,
            env: BTreeMap::new(),
            ignore_error: false,
        };
        WorkOrder {
            job: JobId::new(0, certs::entropy::bytes()),
            attempt: 1,
            pool: self.pool(),
            researcher: WorkOwner {
                home: MemberState::parse("FI").expect("a state"),
                pseudonym: Pseudonym([1; 16]),
                project: None,
            },
            gpus: 2,
            nodes: 0,
            cpu_cores: 0,
            ram_gib: 0,
            disk_gib: 0,
            walltime_s: 600,
            executors: steps.iter().map(step).collect(),
            inputs: vec![],
            outputs: vec![],
            volumes: vec![],
            lease_until_ms: None,
        }
    }

    pub async fn submit(&self, order: WorkOrder) -> JobId {
        let job = order.job;
        assert_eq!(self.driver().check(&order), Ok(()));
        self.driver().submit(order).await.expect("a taken order");
        job
    }

    pub async fn done(&self, job: JobId) -> (End, AttemptRecord) {
        let status = self.reaches(job, |it| matches!(it, AttemptStatus::Done { .. })).await;
        let AttemptStatus::Done { end, started_ms } = status else {
            unreachable!("it was waited for");
        };
        let record = self.driver().record(&job, 1).await.expect("a record");
        assert_eq!(record.running_ms, started_ms);
        (end, record)
    }

    pub async fn reaches(&self, job: JobId, right: impl Fn(&AttemptStatus) -> bool) -> AttemptStatus {
        let mut changes = self.driver().changes();
        let waiting = async {
            loop {
                changes.borrow_and_update();
                let status = self.driver().poll(&job, 1);
                if right(&status) {
                    return status;
                }
                changes.changed().await.expect("a driver that lives");
            }
        };
        let waited = tokio::time::timeout(PATIENCE, waiting).await;
        waited.unwrap_or_else(|_| panic!("never: {:?}", self.driver().poll(&job, 1)))
    }

    /// Waits until the pool lends this: `4x2`, nodes after GPUs.
    pub async fn lends(&self, expected: &str) -> CapacityReport {
        let mut changes = self.driver().changes();
        let waiting = async {
            loop {
                changes.borrow_and_update();
                match self.driver().capacity(&self.pool()) {
                    Some(report) if shown(&report) == expected => return report,
                    _ => changes.changed().await.expect("a driver that lives"),
                }
            }
        };
        let waited = tokio::time::timeout(PATIENCE, waiting).await;
        waited.unwrap_or_else(|_| panic!("never {expected}: {:?}", self.driver().capacity(&self.pool())))
    }

    pub async fn log(&self, job: JobId, executor: u32) -> String {
        let stream = LogStream { executor, pipe: Pipe::Stdout };
        let chunk = self.driver().logs(&job, 1, stream, 0, 1 << 20).await.expect("a log");
        String::from_utf8_lossy(&chunk.bytes).into_owned()
    }

    /// Waits until Kubernetes has nothing of an attempt.
    pub async fn is_gone(&self, job: JobId) {
        self.until("the Job is gone", async || {
            self.jobs().get_opt(&name(job)).await.expect("an answer").is_none().then_some(())
        })
        .await;
    }

    pub async fn until<T>(&self, what: &str, happened: impl AsyncFn() -> Option<T>) -> T {
        let waiting = async {
            loop {
                if let Some(it) = happened().await {
                    return it;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, waiting).await;
        waited.unwrap_or_else(|_| panic!("did not happen: {what}"))
    }

    /// Nodes are everybody's on a shared control plane.
    async fn clear(&self) {
        let nodes: Api<Node> = Api::all(self.client.clone());
        for number in [1, 2] {
            let _it_may_be_away = nodes.delete(&self.node(number), &DeleteParams::default()).await;
        }
    }
}

/// What Kubernetes calls a job's first attempt.
pub fn name(job: JobId) -> String {
    format!("ent-{}-1", job.to_string().trim_start_matches("job_"))
}

pub fn shown(report: &CapacityReport) -> String {
    let each: Vec<_> = report.lendable.iter().map(|it| format!("{}x{}", it.gpus, it.nodes)).collect();
    each.join(" ")
}

pub fn running() -> Value {
    json!({"running": {"startedAt": now()}})
}

pub fn ended(exit_code: i32, reason: &str) -> Value {
    json!({"terminated": {"exitCode": exit_code, "reason": reason, "startedAt": now(), "finishedAt": now()}})
}

/// Of a pod's containers in their order; those that are not named have not started.
pub fn statuses(phase: &str, pod: &Pod, states: &[Value]) -> Value {
    let spec = pod.spec.as_ref().expect("a spec");
    let init = spec.init_containers.as_deref().unwrap_or_default();
    let status = |(index, name): (usize, &String)| {
        let waiting = json!({"waiting": {"reason": "PodInitializing"}});
        let state = states.get(index).cloned().unwrap_or(waiting);
        json!({"name": name, "state": state, "image": "i", "imageID": "i", "ready": false, "restartCount": 0})
    };
    let names: Vec<&String> = init.iter().chain(&spec.containers).map(|it| &it.name).collect();
    let all: Vec<Value> = names.into_iter().enumerate().map(status).collect();
    json!({"phase": phase, "initContainerStatuses": all[..init.len()], "containerStatuses": all[init.len()..]})
}

fn now() -> String {
    let text = Timestamp::now().to_string();
    format!("{}Z", text.split('.').next().unwrap_or_default().trim_end_matches('Z'))
}

/// What every state reads of an end that is the system's.
pub fn reason(end: &impl Debug) -> String {
    format!("{end:?}")
}

/// Answers the API server's requests for logs, with the text of the container of that name.
async fn kubelet(cluster: &Cluster, written: Written) -> u16 {
    let certs = CertificateDer::pem_file_iter(cluster.folder.join("certs/apiserver.crt")).expect("a certificate");
    let certs = certs.collect::<Result<Vec<_>, _>>().expect("a certificate");
    let key = PrivateKeyDer::from_pem_file(cluster.folder.join("certs/apiserver.key")).expect("a key");
    let config = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(certs, key).expect("a pair");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, written) = (acceptor.clone(), Arc::clone(&written));
            tokio::spawn(async move {
                let mut stream = acceptor.accept(stream).await.ok()?;
                let mut head = [0; 4096];
                let length = stream.read(&mut head).await.ok()?;
                let head = String::from_utf8_lossy(&head[..length]).into_owned();
                // GET /containerLogs/<namespace>/<pod>/<container>?…
                let mut path = head.split(['/', '?', ' ']).skip(4).map(str::to_owned);
                let key = (path.next().unwrap_or_default(), path.next().unwrap_or_default());
                let written = written.lock().expect("a lock").get(&key).cloned().unwrap_or_default();
                let text = since(&written, &head);
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", text.len());
                stream.write_all(&[head.as_bytes(), &text].concat()).await.ok()?;
                stream.shutdown().await.ok()
            });
        }
    });
    port
}

/// Of what a container has written, what a kubelet gives to whom asks with `sinceTime`: lines from then on.
fn since(written: &[u8], head: &str) -> Vec<u8> {
    let asked = head.split(['?', '&', ' ']).find_map(|it| it.strip_prefix("sinceTime="));
    let Some(since) = asked.map(|it| it.replace("%3A", ":").parse::<Timestamp>().expect("a time")) else {
        return written.to_vec();
    };
    let is_wanted = |line: &&[u8]| {
        let stamp = line.split(|it| *it == b' ').next().unwrap_or_default();
        let stamp: Option<Timestamp> = std::str::from_utf8(stamp).ok().and_then(|it| it.parse().ok());
        stamp.is_none_or(|at| at >= since)
    };
    written.split_inclusive(|it| *it == b'\n').filter(is_wanted).collect::<Vec<_>>().concat()
}
