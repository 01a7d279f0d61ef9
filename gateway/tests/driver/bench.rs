//! A driver in a fresh folder, and the words that the tests use.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use certs::MemberState;
use federation::{End, JobId, PoolId, Pseudonym};
use gateway::driver::{
    AttemptRecord, AttemptStatus, Driver, Isolation, Local, LocalPool, LocalSettings, LogStream, Pipe, Step, WorkOrder,
    WorkOwner,
};
use tempfile::TempDir;

/// Nothing here takes seconds; a loaded machine may.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Bench {
    pub folder: TempDir,
    pub settings: LocalSettings,
    local: Option<Local>,
}

/// The isolations that work on this machine.
pub fn isolations() -> Vec<Isolation> {
    let mut working = vec![Isolation::Process];
    let bench = Bench::prepare(Isolation::Bubblewrap);
    let reason = Local::start(bench.settings.clone()).err().map(|no_driver| no_driver.to_string());
    if !skip_without("bubblewrap", reason) {
        working.push(Isolation::Bubblewrap);
    }
    working
}

/// Prints why a test, or a part of it, is skipped. What `ENTENTE_TEST_REQUIRE` lists must not be missing.
pub fn skip_without(needed: &str, missing: Option<String>) -> bool {
    let Some(reason) = missing else {
        return false;
    };
    let required = std::env::var("ENTENTE_TEST_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|name| name == needed), "{needed} is required here: {reason}");
    eprintln!("SKIPPED without {needed}: {reason}");
    true
}

impl Bench {
    /// Settings without a driver: 2 nodes of 4 GPUs, and the folder `files` for `file://`.
    pub fn prepare(isolation: Isolation) -> Bench {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let files = folder.path().join("files");
        std::fs::create_dir(&files).expect("a folder");
        let settings = LocalSettings {
            attempts: folder.path().join("attempts"),
            pools: vec![LocalPool { id: pool(), nodes: 2, gpus_per_node: 4, task_slots: 100 }],
            isolation,
            network: false,
            run_as: None,
            file_roots: vec![files],
            http_hosts: vec![],
            https_ca_file: None,
            disk_reserve: 0,
            supervisor: vec![env!("CARGO_BIN_EXE_entente").into(), "run-attempt".into()],
        };
        Bench { folder, settings, local: None }
    }

    pub fn new(isolation: Isolation) -> Bench {
        let mut bench = Bench::prepare(isolation);
        bench.restart();
        bench
    }

    /// What a gateway does that comes up again.
    pub fn restart(&mut self) {
        self.stop();
        self.local = Some(Local::start(self.settings.clone()).expect("a driver"));
    }

    /// What is left of a gateway that was killed: its attempts.
    pub fn stop(&mut self) {
        self.local = None;
    }

    pub fn local(&self) -> &Local {
        self.local.as_ref().expect("a driver that was not stopped")
    }

    pub fn files(&self) -> PathBuf {
        self.settings.file_roots[0].clone()
    }

    /// The URL of a name below the allowed folder.
    pub fn url(&self, name: &str) -> String {
        format!("file://{}", self.files().join(name).display())
    }

    pub fn attempt_folder(&self, job: JobId) -> PathBuf {
        self.settings.attempts.join(format!("{job}.1"))
    }

    pub async fn submit(&self, order: WorkOrder) -> JobId {
        let job = order.job;
        self.local().submit(order).await.expect("a taken order");
        job
    }

    pub async fn run(&self, order: WorkOrder) -> (End, AttemptRecord) {
        let job = self.submit(order).await;
        self.done(job).await
    }

    pub async fn cancel(&self, job: JobId) {
        self.local().cancel(&job, 1).await.expect("a heard cancel");
    }

    /// Waits for the end of a job's first attempt.
    pub async fn done(&self, job: JobId) -> (End, AttemptRecord) {
        let status = self.reaches(job, |it| matches!(it, AttemptStatus::Done { .. }));
        let AttemptStatus::Done { end, started_ms } = status.await else {
            unreachable!("it was waited for");
        };
        let record = self.record(job).await;
        assert_eq!(record.running_ms, started_ms);
        (end, record)
    }

    /// Waits for the attempt's next changes until its status is right.
    pub async fn reaches(&self, job: JobId, right: impl Fn(&AttemptStatus) -> bool) -> AttemptStatus {
        let mut changes = self.local().changes();
        let waiting = async {
            loop {
                changes.borrow_and_update();
                let status = self.local().poll(&job, 1);
                if right(&status) {
                    return status;
                }
                changes.changed().await.expect("a driver that lives");
            }
        };
        let waited = tokio::time::timeout(PATIENCE, waiting).await;
        waited.unwrap_or_else(|_| panic!("{:?}", self.local().poll(&job, 1)))
    }

    pub async fn record(&self, job: JobId) -> AttemptRecord {
        self.local().record(&job, 1).await.expect("a record")
    }

    /// The first step's output so far.
    pub async fn stdout(&self, job: JobId) -> String {
        let stream = LogStream { executor: 0, pipe: Pipe::Stdout };
        let chunk = self.local().logs(&job, 1, stream, 0, 1 << 20).await;
        String::from_utf8(chunk.expect("a log").bytes).expect("text")
    }

    /// Waits until the first step has written this.
    pub async fn says(&self, job: JobId, text: &str) {
        let waiting = async {
            while !self.stdout(job).await.contains(text) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, waiting).await;
        waited.unwrap_or_else(|_| panic!("never said: {text}"));
    }
}

/// Waits for something that nobody announces.
pub async fn until(what: &str, happened: impl Fn() -> bool) {
    let waiting = async {
        while !happened() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    waited.unwrap_or_else(|_| panic!("did not happen: {what}"));
}

pub fn pool() -> PoolId {
    PoolId::parse("FR/jean-zay/h100-80").expect("a pool")
}

/// An order of these steps for one GPU.
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

pub fn order(command: &[&str]) -> WorkOrder {
    steps(vec![step(command)])
}

pub fn sh(script: &str) -> WorkOrder {
    order(&["sh", "-c", script])
}

/// The process of an attempt's supervisor.
pub fn supervisor(bench: &Bench, job: JobId) -> i32 {
    let text = std::fs::read_to_string(bench.attempt_folder(job).join("started")).expect("a start");
    let birth: serde_json::Value = serde_json::from_str(&text).expect("a birth");
    birth["pid"].as_i64().expect("a number") as i32
}

/// A number of seconds that nobody else sleeps, to find the sleeper by.
pub fn marked_sleep() -> String {
    let [high, low] = certs::entropy::bytes::<2>();
    format!("9{high:03}{low:03}{}", std::process::id())
}

/// Processes with this word in their command line.
pub fn processes_with(word: &str) -> usize {
    let entries = std::fs::read_dir("/proc").expect("processes");
    let has = |path: &Path| {
        let line = std::fs::read(path.join("cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|it| it == word.as_bytes())
    };
    entries.flatten().filter(|it| has(&it.path())).count()
}
