//! A cluster, a driver of it, and the words that the tests use.

use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use certs::MemberState;
use federation::{CapacityReport, End, JobId, PoolId, Pseudonym};
use gateway::driver::{
    AttemptRecord, AttemptStatus, Driver, GresName, LocalName, LogStream, Pipe, SlurmPool, SlurmSettings, Step,
    TokenSource, WorkOrder, WorkOwner, start_slurm,
};
use nix::unistd::{Group, User, geteuid, setfsgid, setfsuid};
use tempfile::TempDir;

/// Far above anything seen, so that only a fault reaches it.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// The account that the driver's threads work as.
const GATEWAY: &str = "ent-gateway";
pub const USERS: [&str; 3] = ["ent-alice", "ent-bob", "ent-carol"];

/// A cluster that ends with this value, or with this process.
pub struct Cluster {
    folder: TempDir,
    name: String,
    port: u16,
}

/// What a cluster is to be like: the environment of `cluster.sh`, and its nodes.
#[derive(Clone, Copy)]
pub struct Like<'a> {
    pub nodes: &'a [&'a str],
    pub options: &'a [(&'a str, &'a str)],
}

/// Two nodes of four GPUs.
pub const USUAL: Like = Like { nodes: &["h100:4", "h100:4"], options: &[] };

/// A driver in a fresh folder.
pub struct Bench {
    pub cluster: Cluster,
    pub folder: TempDir,
    pub settings: SlurmSettings,
    driver: Option<Arc<dyn Driver>>,
}

/// Runs a test on a cluster, or prints why not.
pub fn on(like: Like, test: impl AsyncFnOnce(&mut Bench)) {
    let missing = missing();
    if skip_without("slurm", missing) {
        return;
    }
    let gateway = account(GATEWAY);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .on_thread_start(move || {
            // Of this thread alone, and with it go root's rights over other accounts' files.
            setfsgid(gateway.gid);
            setfsuid(gateway.uid);
        })
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let mut bench = Bench::prepare(like);
        bench.restart().await;
        test(&mut bench).await;
    });
}

/// Prints why a test is skipped. What `ENTENTE_TEST_REQUIRE` lists must not be missing.
pub fn skip_without(needed: &str, missing: Option<String>) -> bool {
    let Some(reason) = missing else {
        return false;
    };
    let required = std::env::var("ENTENTE_TEST_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|name| name == needed), "{needed} is required here: {reason}");
    eprintln!("SKIPPED: without {needed}: {reason}");
    true
}

pub fn missing() -> Option<String> {
    if !geteuid().is_root() {
        return Some("only root can start a cluster".into());
    }
    let programs = ["slurmctld", "slurmd", "slurmrestd", "munged", "sbatch"];
    let paths = ["/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin"];
    let is_missing = |program: &&&str| !paths.iter().any(|path| Path::new(path).join(program).exists());
    programs.iter().find(is_missing).map(|program| format!("{program} is not on this machine"))
}

pub fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../integration-tests/slurm/cluster.sh")
}

/// A local account, made if it is missing.
pub fn account(name: &str) -> User {
    if User::from_name(name).expect("accounts").is_none() {
        // As the script does: two cannot change the list at once.
        let mut command = Command::new("flock");
        command.arg(script()).args(["/usr/sbin/useradd", "-M", "-d", "/nonexistent", "-s", "/bin/sh", name]);
        let _somebody_was_faster = command.status();
    }
    User::from_name(name).expect("accounts").expect("an account")
}

impl Cluster {
    pub fn start(like: Like) -> Cluster {
        static STARTED: AtomicU16 = AtomicU16::new(0);
        let folder = tempfile::tempdir().expect("a temporary folder");
        open_up(folder.path());
        let first = 10_000 + (std::process::id() % 8) as u16 * 2_500;
        let is_free = |port: u16| (0..92).all(|it| std::net::TcpListener::bind(("127.0.0.1", port + it)).is_ok());
        let port = std::iter::repeat_with(|| first + STARTED.fetch_add(1, Ordering::Relaxed) % 25 * 100)
            .find(|port| is_free(*port))
            .expect("a free range of ports");
        let name = format!("c{port}");
        let cluster = Cluster { folder, name, port };
        let up = Command::new("bash")
            .arg(script())
            .arg("up")
            .arg(cluster.path())
            .args(like.nodes)
            .env("NAME", &cluster.name)
            .env("PORT", port.to_string())
            .env("ACCOUNTS", USERS.join(" "))
            .env("UNTIL", std::process::id().to_string())
            .envs(like.options.iter().copied())
            .stdin(Stdio::null())
            .output()
            .expect("bash");
        assert!(up.status.success(), "{}", String::from_utf8_lossy(&up.stderr));
        cluster
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("cluster")
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port + 90)
    }

    /// `n1` as Slurm calls it.
    pub fn node(&self, number: u32) -> String {
        format!("{}-n{number}", self.name)
    }

    /// `start`, `stop` or `kill` a daemon.
    pub fn daemon(&self, what: &str, which: &str) {
        let done = Command::new("bash").arg(script()).arg(what).arg(self.path()).arg(which).output().expect("bash");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    /// A command of Slurm's, as root.
    pub fn admin(&self, words: &[&str]) -> String {
        self.run(Command::new(words[0]).args(&words[1..]))
    }

    /// A command of Slurm's, as a local user.
    pub fn as_user(&self, user: &str, words: &[&str]) -> String {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", user, "--regid", user, "--clear-groups"]).args(words);
        self.run(&mut command)
    }

    fn run(&self, command: &mut Command) -> String {
        let command = command.env("SLURM_CONF", self.path().join("etc/slurm.conf")).current_dir("/tmp");
        let output = command.env_remove("SLURM_JWT").stdin(Stdio::null()).output().expect("a command");
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{command:?}: {out}{err}");
        out.trim().to_owned()
    }

    /// A local user's job that sleeps; its number.
    pub fn local_job(&self, user: &str, words: &[&str]) -> String {
        let mut all = vec!["sbatch", "--parsable", "--partition=local", "--output=/dev/null"];
        all.extend(words);
        all.push("--wrap=sleep 1000");
        self.as_user(user, &all)
    }

    /// The jobs of this name that Slurm has or had.
    pub fn jobs_named(&self, name: &str) -> Vec<String> {
        let all = self.admin(&["squeue", "--noheader", "--states=all", "--format=%j %i %T %u"]);
        all.lines().filter(|line| line.split(' ').next() == Some(name)).map(str::to_owned).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for log in ["slurmctld", "slurmrestd"] {
                let text = std::fs::read_to_string(self.path().join(format!("log/{log}.log"))).unwrap_or_default();
                let lines: Vec<&str> = text.lines().collect();
                eprintln!("--- {log}\n{}", lines[lines.len().saturating_sub(25)..].join("\n"));
            }
        }
        let _down = Command::new("bash").arg(script()).arg("down").arg(self.path()).status();
    }
}

impl Bench {
    /// A cluster, and settings without a driver.
    pub fn prepare(like: Like) -> Bench {
        let cluster = Cluster::start(like);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let settings = settings(&cluster, folder.path());
        Bench { cluster, folder, settings, driver: None }
    }

    /// What a gateway does that comes up again.
    pub async fn restart(&mut self) {
        self.stop();
        let settings = self.settings.clone();
        // On a thread of the gateway's account.
        let started = tokio::task::spawn_blocking(move || start_slurm(settings)).await.expect("no panic");
        self.driver = Some(started.expect("a driver"));
        self.until("the cluster is seen", |it| it.driver().capacity(&pool()).is_some()).await;
    }

    /// What is left of a gateway that was killed: its journal and its jobs.
    pub fn stop(&mut self) {
        self.driver = None;
    }

    pub fn driver(&self) -> &dyn Driver {
        self.driver.as_deref().expect("a driver that was not stopped")
    }

    pub async fn submit(&self, order: WorkOrder) -> JobId {
        let job = order.job;
        assert_eq!(self.driver().check(&order), Ok(()));
        self.driver().submit(order).await.expect("a taken order");
        job
    }

    pub async fn run(&self, order: WorkOrder) -> (End, AttemptRecord) {
        let job = self.submit(order).await;
        self.done(job).await
    }

    pub async fn cancel(&self, job: JobId) {
        self.driver().cancel(&job, 1).await.expect("a heard cancel");
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

    pub async fn runs(&self, job: JobId) {
        self.reaches(job, |it| matches!(it, AttemptStatus::Running { .. })).await;
    }

    /// Waits until Slurm has the attempt.
    pub async fn is_at_slurm(&self, job: JobId) {
        self.until("Slurm has the job", |it| !it.cluster.jobs_named(&name(job)).is_empty()).await;
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
        waited
            .unwrap_or_else(|_| panic!("{:?}; {:?}", self.driver().poll(&job, 1), self.cluster.jobs_named(&name(job))))
    }

    /// Waits until a pool lends this: `4x2`, nodes after GPUs.
    pub async fn lends(&self, pool: PoolId, expected: &str) -> CapacityReport {
        let mut changes = self.driver().changes();
        let waiting = async {
            loop {
                changes.borrow_and_update();
                match self.driver().capacity(&pool) {
                    Some(report) if shown(&report) == expected => return report,
                    _ => changes.changed().await.expect("a driver that lives"),
                }
            }
        };
        let waited = tokio::time::timeout(PATIENCE, waiting).await;
        waited.unwrap_or_else(|_| panic!("never {expected}: {:?}", self.driver().capacity(&pool)))
    }

    pub async fn log(&self, job: JobId, offset: u64) -> String {
        let stream = LogStream { executor: 0, pipe: Pipe::Stdout };
        let chunk = self.driver().logs(&job, 1, stream, offset, 1 << 20).await.expect("a log");
        String::from_utf8(chunk.bytes).expect("text")
    }

    /// Waits until the first step has written this.
    pub async fn says(&self, job: JobId, text: &str) {
        let waiting = async {
            while !self.log(job, 0).await.contains(text) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, waiting).await;
        waited.unwrap_or_else(|_| panic!("never said: {text}"));
    }

    pub fn spool(&self, user: &str, job: JobId) -> PathBuf {
        self.settings.spool.join(user).join(format!("{job}.1"))
    }

    /// A folder that `file://` may name, of a user's own.
    pub fn files(&self) -> PathBuf {
        self.settings.file_roots[0].clone()
    }

    pub async fn until(&self, what: &str, happened: impl Fn(&Bench) -> bool) {
        let waiting = async {
            while !happened(self) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, waiting).await;
        waited.unwrap_or_else(|_| panic!("did not happen: {what}"));
    }
}

/// As an operator sets it up: a spool with a folder for each user, a mapping, and a program that gives tokens.
pub fn settings(cluster: &Cluster, folder: &Path) -> SlurmSettings {
    open_up(folder);
    let gateway = account(GATEWAY);
    let make = |name: &str, owner: &User, group: u32, mode: u32| {
        let path = folder.join(name);
        std::fs::create_dir(&path).expect("a folder");
        chown(&path, Some(owner.uid.as_raw()), Some(group)).expect("an owner");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("a mode");
    };
    make("spool", &account("root"), 0, 0o711);
    for user in USERS {
        let group = Group::from_name(user).expect("groups").expect("a group of his own").gid.as_raw();
        make(&format!("spool/{user}"), &gateway, group, 0o2770);
    }
    make("data", &gateway, gateway.gid.as_raw(), 0o700);
    make("files", &account(USERS[0]), 0, 0o755);
    let rules = "[[rule]]\npseudonym = \"02020202020202020202020202020202\"\nuser = \"ent-bob\"\n\n\
                 [[rule]]\nhome = \"FI\"\nuser = \"ent-alice\"\naccount = \"guests\"\n\n\
                 [[rule]]\nhome = \"SE\"\nuser = \"ent-unprepared\"\n";
    std::fs::write(folder.join("accounts.toml"), rules).expect("a mapping");
    let words =
        ["bash".to_owned(), script().display().to_string(), "token".to_owned(), cluster.path().display().to_string()];
    SlurmSettings {
        name: cluster.name.clone(),
        url: cluster.url(),
        tokens: TokenSource::Command(words.into()),
        ..settings_in(folder)
    }
}

/// The settings of a folder that was set up.
pub fn settings_in(folder: &Path) -> SlurmSettings {
    SlurmSettings {
        name: "cluster".into(),
        journal: folder.join("data/slurm"),
        url: String::new(),
        ca_file: None,
        reader: LocalName::parse("ent-carol").expect("a name"),
        tokens: TokenSource::Socket,
        spool: folder.join("spool"),
        accounts: folder.join("accounts.toml"),
        program: env!("CARGO_BIN_EXE_entente").into(),
        launcher: vec![],
        file_roots: vec![folder.join("files")],
        http_hosts: vec![],
        https_ca_file: None,
        disk_reserve: 0,
        staging: Duration::from_secs(60),
        pools: vec![slurm_pool("h100-80", "gpu:h100", 2, 4, 1)],
    }
}

pub fn slurm_pool(name: &str, gres: &str, nodes: u32, gpus_per_node: u32, units_per_gpu: u32) -> SlurmPool {
    SlurmPool {
        id: PoolId::parse(&format!("FR/jean-zay/{name}")).expect("a pool"),
        partition: "federated".into(),
        gres: GresName::parse(gres).expect("a name"),
        nodes,
        gpus_per_node,
        task_slots: 100,
        units_per_gpu,
        qos: None,
        constraint: None,
        reservation: None,
    }
}

fn open_up(folder: &Path) {
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o711)).expect("a mode");
}

/// `4x2 1x1`: two nodes of four GPUs, one of one.
pub fn shown(report: &CapacityReport) -> String {
    let each: Vec<_> = report.lendable.iter().map(|it| format!("{}x{}", it.gpus, it.nodes)).collect();
    each.join(" ")
}

/// What Slurm calls a job's first attempt.
pub fn name(job: JobId) -> String {
    format!("ent-{job}.1")
}

pub fn pool() -> PoolId {
    PoolId::parse("FR/jean-zay/h100-80").expect("a pool")
}

/// An order of these steps for one GPU, of a researcher who is alice here.
pub fn steps(executors: Vec<Step>) -> WorkOrder {
    WorkOrder {
        job: JobId::new(0, certs::entropy::bytes()),
        attempt: 1,
        pool: pool(),
        researcher: WorkOwner {
            home: MemberState::parse("FI").expect("a state"),
            pseudonym: Pseudonym([1; 16]),
            project: None,
        },
        gpus: 1,
        nodes: 0,
        cpu_cores: 0,
        ram_gib: 0,
        disk_gib: 0,
        walltime_s: 600,
        executors,
        inputs: vec![],
        outputs: vec![],
        volumes: vec![],
        lease_until_ms: None,
    }
}

pub fn step(command: &[&str]) -> Step {
    Step {
        image: "none".into(),
        command: command.iter().map(|it| it.to_string()).collect(),
        workdir: None,
        stdin: None,
        stdout: None,
        stderr: None,
        env: BTreeMap::new(),
        ignore_error: false,
    }
}

pub fn sh(script: &str) -> WorkOrder {
    steps(vec![step(&["sh", "-c", script])])
}

/// What every state reads of an end that is the system's.
pub fn reason(end: &End) -> &str {
    match end {
        End::SystemError { reason } => reason.as_str(),
        other => panic!("{other:?}"),
    }
}
