//! A federation for tests: `entente up` as a real user starts it, in real processes.
//!
//! [`Federation`] reads the one line that `up --json` prints and gives clients, tokens and the means
//! to kill, stop and restart single gateways. Dropping it ends everything that it started.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use gateway::cli::client::Client;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

pub mod countries;
pub mod history;
pub mod links;
pub mod persistent;
pub mod slurm;
mod tasks;
pub mod turns;

use countries::Countries;
use links::Link;
use turns::Shared;

pub use tasks::{TASKS, ended, gpu_task, look, post_raw, reaches, submit, task};

/// Every wait for an event ends after this: far above any wait seen, so that only a fault reaches it.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Three gateways in a folder of their own.
pub struct Federation {
    up: Child,
    about: Value,
    folder: tempfile::TempDir,
    restarted: Vec<Child>,
    /// From one gateway to another, where peers dial each other through links.
    links: BTreeMap<(String, String), Link>,
    /// The clients' ways into the countries.
    doors: Vec<Link>,
    countries: Option<Countries>,
    /// Given back when all of it is gone.
    _turn: Shared,
}

/// The states of every federation here.
pub const STATES: [&str; 3] = ["FR", "DE", "FI"];

/// The program under test, built beside the tests.
pub fn program() -> PathBuf {
    if let Some(release) = release() {
        return release;
    }
    let tests = std::env::current_exe().expect("a test knows its own file");
    let program = tests.parent().and_then(Path::parent).expect("a test lies in target/<profile>/deps").join("entente");
    assert!(program.exists(), "{} is missing; run `cargo build` or `cargo test --workspace`", program.display());
    program
}

/// A release build, if `ENTENTE_TEST_RELEASE` names one: it is tested in place of the one beside the tests, and held to the
/// figures of docs/benchmarks.md.
pub fn release() -> Option<PathBuf> {
    std::env::var_os("ENTENTE_TEST_RELEASE").map(PathBuf::from)
}

/// What is asked of the program, as it was built.
pub fn figure(dev: f64, of_release: f64) -> f64 {
    if release().is_some() { of_release } else { dev }
}

/// The first of six ports that no other test here uses, also not while one of its gateways is dead, and that the system
/// gives to no outgoing connection.
fn first_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let blocks = 3_000;
    let offset = (std::process::id() % blocks) as u16;
    10_000 + (offset + NEXT.fetch_add(1, Ordering::Relaxed)) % blocks as u16 * 6
}

impl Federation {
    /// Starts a federation and returns when it is ready.
    pub fn start() -> Federation {
        let turn = turns::shared();
        loop {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let mut up = Command::new(program())
                .args(["up", "--json", "--port", &first_port().to_string(), "--data-dir"])
                .arg(folder.path().join("federation"))
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("the program starts");
            let mut line = String::new();
            BufReader::new(up.stdout.take().expect("a pipe")).read_line(&mut line).expect("a readable pipe");
            if line.is_empty() {
                let output = up.wait_with_output().expect("an ended program");
                let why = String::from_utf8_lossy(&output.stderr);
                assert!(why.contains("is taken"), "up failed: {why}");
                continue;
            }
            let about = serde_json::from_str(&line).expect("one line of JSON");
            return Federation {
                about,
                up,
                folder,
                restarted: vec![],
                links: BTreeMap::new(),
                doors: vec![],
                countries: None,
                _turn: turn,
            };
        }
    }

    /// The same, with every gateway's configuration changed before it starts anew.
    pub async fn start_with(change: impl Fn(&str, String) -> String) -> Federation {
        let mut federation = Federation::start();
        federation.reconfigure(change).await;
        federation
    }

    /// The same, where every gateway dials every other one through a [`Link`] of its own.
    pub async fn start_linked(change: impl Fn(&str, String) -> String) -> Federation {
        let mut federation = Federation::start();
        for from in STATES {
            for to in STATES.iter().filter(|to| **to != from) {
                let link = Link::to(&federation.peer_address(to));
                federation.links.insert((from.to_owned(), (*to).to_owned()), link);
            }
        }
        let addresses: BTreeMap<_, _> =
            federation.links.iter().map(|(way, link)| (way.clone(), link.address())).collect();
        federation
            .reconfigure(|state, text| {
                dialling(change(state, text), state, |to| addresses[&(state.to_owned(), to.to_owned())].clone())
            })
            .await;
        federation
    }

    /// The same, where every gateway has a network of its own; clients come in by doors that are never cut.
    pub async fn start_in(countries: Countries, change: impl Fn(&str, String) -> String) -> Federation {
        let mut federation = Federation::start();
        let mut peers = BTreeMap::new();
        for state in STATES {
            let port = |address: &str| address.rsplit_once(':').expect("a port").1.to_owned();
            peers.insert(state, countries.address(state, &port(&federation.peer_address(state))));
            let door = Link::to(&countries.address(state, &port(federation.url(state))));
            let url = format!("https://{}", door.address());
            let about = federation.about["gateways"].as_array_mut().expect("gateways");
            about.iter_mut().find(|it| it["state"] == state).expect("a founding state")["url"] = url.into();
            federation.doors.push(door);
        }
        federation.countries = Some(countries);
        federation
            .reconfigure(|state, text| {
                let text = change(state, text).replace("_listen = \"127.0.0.1:", "_listen = \"0.0.0.0:");
                dialling(text, state, |to| peers[to].clone())
            })
            .await;
        federation
    }

    async fn reconfigure(&mut self, change: impl Fn(&str, String) -> String) {
        for state in STATES {
            self.kill(state);
            let path = self.gateway_folder(state).join("gateway.toml");
            let text = std::fs::read_to_string(&path).expect("a configuration");
            std::fs::write(&path, change(state, text)).expect("a written configuration");
        }
        for state in STATES {
            self.launch(state);
        }
        for state in STATES {
            self.answers(state).await;
        }
        let mut client = self.client("FR", "agency");
        eventually("every state lends again", async || {
            let shown = client.read("/v1/capacity").await.ok()?;
            let fresh =
                shown["pools"].as_array()?.iter().all(|it| it["age_ms"].as_u64().is_some_and(|age| age < 3_000));
            fresh.then_some(())
        })
        .await;
    }

    /// The link by which `from` dials `to`.
    pub fn link(&self, from: &str, to: &str) -> &Link {
        &self.links[&(from.to_owned(), to.to_owned())]
    }

    /// All links.
    pub fn links(&self) -> impl Iterator<Item = &Link> {
        self.links.values()
    }

    /// The networks of the gateways.
    pub fn countries(&self) -> &Countries {
        self.countries.as_ref().expect("a federation that was started in countries")
    }

    /// Where the genesis says that a gateway listens for its peers.
    fn peer_address(&self, state: &str) -> String {
        let bytes = std::fs::read(self.folder().join("genesis.json")).expect("a genesis");
        let genesis: federation::Genesis =
            serde_json::from_slice(&bytes).expect("a genesis that every state has signed");
        let record = genesis.gateways().find(|it| it.id.state.as_str() == state).expect("a founding gateway");
        record.peer_address.clone()
    }

    /// Who leads, as this state's gateway knows.
    pub async fn leader(&self, as_known_in: &str) -> Option<String> {
        let mut client = self.client_with(as_known_in, None);
        let health = client.read("/v1/health").await.ok()?;
        STATES.into_iter().zip(1..).find(|(_, node)| health["leader"] == *node).map(|(state, _)| state.to_owned())
    }

    /// The process of `up`.
    pub fn up(&self) -> u32 {
        self.up.id()
    }

    /// What `up --json` printed.
    pub fn about(&self) -> &Value {
        &self.about
    }

    /// Where everything lies.
    pub fn folder(&self) -> PathBuf {
        self.folder.path().join("federation")
    }

    /// A gateway's public address.
    pub fn url(&self, state: &str) -> &str {
        self.gateway(state)["url"].as_str().expect("a url")
    }

    /// The PEM text of a gateway's public CA.
    pub fn ca(&self, state: &str) -> String {
        let path = self.gateway(state)["ca_file"].as_str().expect("a path");
        std::fs::read_to_string(path).expect("a CA file")
    }

    /// A role's token: `researcher.FR`, `operator.DE`, `agency`.
    pub fn token(&self, role: &str) -> String {
        let path = self.about["tokens"][role].as_str().expect("a role");
        std::fs::read_to_string(path).expect("a token file").trim().to_owned()
    }

    /// A client of one gateway with one role's token.
    pub fn client(&self, state: &str, role: &str) -> Client {
        self.client_with(state, Some(&self.token(role)))
    }

    /// A client of one gateway with any token, or none.
    pub fn client_with(&self, state: &str, token: Option<&str>) -> Client {
        Client::new(self.url(state), &self.ca(state), token).expect("a client")
    }

    /// Kills a gateway at once, as a power cut would.
    pub fn kill(&mut self, state: &str) {
        signal(self.pid(state), Signal::SIGKILL);
        self.wait_gone(state);
    }

    /// Stops a gateway in order, as an update does, and says how long that took.
    pub fn stop(&mut self, state: &str) -> Duration {
        let begun = Instant::now();
        signal(self.pid(state), Signal::SIGTERM);
        self.wait_gone(state);
        begun.elapsed()
    }

    /// Sends a signal to a gateway.
    pub fn signal(&self, state: &str, what: Signal) {
        signal(self.pid(state), what);
    }

    /// Starts a killed gateway again from its own configuration, as whom its folder belongs to, and waits until it answers.
    pub async fn restart(&mut self, state: &str) {
        self.restart_with(state, &[]).await;
    }

    /// The same with these variables in its environment.
    pub async fn restart_with(&mut self, state: &str, variables: &[(&str, &str)]) {
        self.launch_with(state, variables);
        self.answers(state).await;
    }

    /// Starts a killed gateway again and does not wait for it.
    pub fn launch(&mut self, state: &str) {
        self.launch_with(state, &[]);
    }

    /// The same with these variables in its environment.
    pub fn launch_with(&mut self, state: &str, variables: &[(&str, &str)]) {
        let command = match &self.countries {
            None => Command::new(program()),
            Some(countries) => countries.command(state, &program()),
        };
        self.launch_as(state, command, variables);
    }

    /// Starts a killed gateway again where no more files may be open, and does not wait for it.
    pub fn launch_with_files(&mut self, state: &str, files: u64) {
        let mut command = Command::new("prlimit");
        command.arg(format!("--nofile={files}:{files}")).arg(program());
        self.launch_as(state, command, &[]);
    }

    fn launch_as(&mut self, state: &str, mut command: Command, variables: &[(&str, &str)]) {
        let folder = self.gateway_folder(state);
        let log = std::fs::OpenOptions::new().append(true).create(true).open(self.log(state)).expect("a log");
        let owner = std::fs::metadata(&folder).expect("a folder");
        let child = command
            .arg("gateway")
            .arg("--config")
            .arg(folder.join("gateway.toml"))
            .envs(variables.iter().copied())
            .uid(owner.uid())
            .gid(owner.gid())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("the gateway starts");
        self.about["processes"][state] = child.id().into();
        self.restarted.push(child);
    }

    /// Waits until a gateway that was launched knows a leader.
    pub async fn answers(&mut self, state: &str) {
        let folder = self.gateway_folder(state);
        let mut client = self.client(state, &format!("operator.{state}"));
        let pid = self.pid(state);
        let child = self.restarted.iter_mut().find(|it| it.id() as i32 == pid).expect("it was launched");
        eventually("the restarted gateway answers", async || {
            if let Some(status) = child.try_wait().expect("a child to look at") {
                let log = std::fs::read_to_string(folder.join("gateway.log")).unwrap_or_default();
                let last: Vec<_> = log.lines().rev().take(5).collect();
                panic!("the restarted gateway of {state} ended: {status}; its last words, backwards: {last:#?}");
            }
            let health = client.read("/v1/health").await.ok()?;
            (health["status"] == "ok").then_some(())
        })
        .await;
    }

    /// Waits until the gateway that was launched last has ended by itself.
    pub async fn ends(&mut self) -> ExitStatus {
        let child = self.restarted.last_mut().expect("a launched gateway");
        eventually("the gateway ends by itself", async || child.try_wait().expect("a child to look at")).await
    }

    /// What a restarted gateway has said since it was first restarted.
    pub fn log(&self, state: &str) -> PathBuf {
        self.gateway_folder(state).join("gateway.log")
    }

    /// The process of a gateway.
    pub fn process(&self, state: &str) -> u32 {
        self.pid(state).unsigned_abs()
    }

    /// The folder of one gateway.
    pub fn gateway_folder(&self, state: &str) -> PathBuf {
        self.folder().join("gateways").join(state)
    }

    fn gateway(&self, state: &str) -> &Value {
        self.about["gateways"]
            .as_array()
            .expect("gateways")
            .iter()
            .find(|it| it["state"] == state)
            .expect("a founding state")
    }

    fn pid(&self, state: &str) -> i32 {
        let pid = self.about["processes"][state].as_i64().expect("a process");
        i32::try_from(pid).expect("a process id")
    }

    /// Panics after [`PATIENCE`].
    fn wait_gone(&mut self, state: &str) {
        let pid = self.pid(state);
        // The first ones are children of `up`, which reaps them.
        let mut child = self.restarted.iter_mut().find(|it| it.id() as i32 == pid);
        let stat = format!("/proc/{pid}/stat");
        let mut is_gone = || match &mut child {
            Some(child) => child.try_wait().expect("a child to wait for").is_some(),
            None => std::fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z ")),
        };
        let begun = Instant::now();
        while !is_gone() {
            assert!(begun.elapsed() < PATIENCE, "the gateway of {state} does not end");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Federation {
    fn drop(&mut self) {
        for child in &mut self.restarted {
            let _already_gone = child.kill();
            let _status = child.wait();
        }
        signal(self.up.id() as i32, Signal::SIGTERM);
        let _status = self.up.wait();
    }
}

/// A configuration whose tasks see this machine's folders, also where bubblewrap would close them in: tests look at the
/// marks that they leave there.
pub fn unconfined(_state: &str, text: String) -> String {
    assert!(text.contains("isolation = \"auto\""), "{text}");
    text.replace("isolation = \"auto\"", "isolation = \"process\"")
}

/// A configuration whose gateway dials the others where `address` says.
fn dialling(text: String, state: &str, address: impl Fn(&str) -> String) -> String {
    let others = STATES.into_iter().filter(|to| *to != state);
    let lines: Vec<_> = others.map(|to| format!("\"{to}/{}-1\" = {:?}\n", to.to_lowercase(), address(to))).collect();
    format!("{text}\n[peer_addresses]\n{}", lines.concat())
}

fn signal(pid: i32, what: Signal) {
    let _already_gone = kill(Pid::from_raw(pid), what);
}

/// Waits until `look` finds something; panics with `what` after [`PATIENCE`].
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    match tokio::time::timeout(PATIENCE, looking).await {
        Ok(found) => found,
        Err(_) => panic!("not within {} s: {what}", PATIENCE.as_secs()),
    }
}

/// Skips a test whose tool is missing, with a printed reason; where it must not be missing (the
/// variable `ENTENTE_TEST_REQUIRE` names it) the test fails instead.
pub fn skip_without(tool: &str, there: bool) -> bool {
    if there {
        return false;
    }
    let required = std::env::var("ENTENTE_TEST_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|name| name == tool), "{tool} is required here and missing");
    eprintln!("SKIPPED: {tool} is not on this machine");
    true
}
