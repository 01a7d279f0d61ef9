//! A federation on one machine: three states, each with its own authority, keys and gateway.
//!
//! It is made from the same parts that operators use, in a fresh folder, and runs the same program
//! as production in separate processes. Nothing knows that it is a demonstration.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use certs::{FederationId, GatewayId, GatewayName, IssuerEntry, MemberState, Role, TokenIssuer};
use federation::{Clocks, GatewayRecord, Genesis, GenesisMember};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::process::{Child, ChildStdin, Command};

use crate::authority::{Authority, GatewayFiles, now_s, replace, write_secret};
use crate::cli::client::Client;
use crate::driver::stop_attempts;

/// European factories, as public knowledge has them; see `about` in the file.
const FACTORIES: &str = include_str!("../data/factories.json");
/// The founding states of the laptop's federation.
const STATES: [&str; 3] = ["FR", "DE", "FI"];
/// Its name, which is also whom tokens are for.
pub const FEDERATION: &str = "entente.example";
/// Leaves of a laptop live a day.
const LEAF_HOURS: u32 = 24;
/// The token profile allows no longer life.
const TOKEN_LIFE_S: u64 = 6 * 3600 - 60;
/// Three processes on a busy machine elect a leader in about two seconds.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// What makes a caller a researcher.
pub const RESEARCHER: &str = "urn:geant:entente.example:group:researchers";
const OPERATOR: &str = "urn:geant:entente.example:group:operators";
const AGENCY: &str = "urn:geant:entente.example:group:agencies";

/// One gateway of the laptop's federation.
pub struct Member {
    /// Its state.
    pub state: MemberState,
    /// Public face, `https://127.0.0.1:port`.
    pub url: String,
    /// The CA of the public face.
    pub ca_file: PathBuf,
    /// The signing key of its state's demo identity provider.
    pub issuer_key: PathBuf,
    folder: PathBuf,
    process: Option<Child>,
    /// Its standard input. When this process is gone, however it ended, the gateway stops.
    lifeline: Option<ChildStdin>,
}

/// Three gateways and what is needed to use them. Dropping it stops the processes.
pub struct Laptop {
    /// Everything lies below this folder.
    pub folder: PathBuf,
    /// The gateways, FR first.
    pub members: Vec<Member>,
    /// Token files by role: `researcher.FR`, `operator.FR`, `agency`, …
    pub tokens: BTreeMap<String, PathBuf>,
    program: PathBuf,
    /// Each gateway could place jobs once.
    was_ready: bool,
}

/// How long the tasks that still run at the end have to stop.
const ATTEMPTS_STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// How far the start is; printed for people.
pub type Progress<'a> = &'a dyn Fn(&str);

impl Laptop {
    /// Makes keys, certificates, genesis and configurations in a folder that has none yet.
    pub fn found(folder: &Path, first_port: Option<u16>, progress: Progress<'_>) -> anyhow::Result<Laptop> {
        if folder.join("genesis.json").exists() {
            bail!("{} holds a federation already; name another folder with --data-dir or remove it", folder.display());
        }
        if folder.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
            bail!("{} holds files already; name a new or an empty folder with --data-dir", folder.display());
        }
        let ports = Ports::reserve(first_port)?;
        make_private(folder)?;
        let folder = std::path::absolute(folder)?;
        progress("making one certificate authority, one root key and one gateway per state");
        let mut founding = Vec::new();
        for (index, code) in STATES.iter().enumerate() {
            founding.push(Founding::prepare(&folder, code, index, &ports)?);
        }
        progress("signing the genesis with every state's root key");
        sign_genesis(&folder, &founding)?;
        let mut tokens = BTreeMap::new();
        for state in &founding {
            state.write_config(&folder)?;
            state.mint_tokens(&folder, &mut tokens)?;
        }
        Ok(Laptop {
            members: founding.into_iter().map(Founding::into_member).collect(),
            folder,
            tokens,
            program: std::env::current_exe().context("cannot find this program's own file")?,
            was_ready: false,
        })
    }

    /// Starts the gateways and returns when each of them can place jobs.
    pub async fn start(&mut self, progress: Progress<'_>) -> anyhow::Result<()> {
        progress("starting the gateways of FR, DE and FI");
        for index in 0..self.members.len() {
            self.start_member(index)?;
        }
        progress("waiting for a leader and for every state's offers and policies");
        let ready = async {
            for index in 0..self.members.len() {
                self.wait_ready(index).await?;
            }
            Ok(())
        };
        match tokio::time::timeout(READY_TIMEOUT, ready).await {
            Ok(result) => {
                self.was_ready = result.is_ok();
                result
            }
            Err(_) => bail!("the gateways are not ready after 60 s; {}", self.where_logs()),
        }
    }

    /// The member of this state.
    pub fn member(&self, code: &str) -> &Member {
        self.members
            .iter()
            .find(|member| member.state.as_str() == code)
            .expect("invariant: the laptop's states are FR, DE and FI")
    }

    /// A client of a state's gateway with a role's token.
    pub fn client(&self, state: &str, role: &str) -> anyhow::Result<Client> {
        let member = self.member(state);
        let ca = std::fs::read_to_string(&member.ca_file)?;
        let token = std::fs::read_to_string(&self.tokens[role])?;
        Client::new(&member.url, &ca, Some(token.trim()))
    }

    /// The description that scripts build on.
    pub fn describe(&self) -> Value {
        let gateways: Vec<_> =
            self.members.iter().map(|it| json!({"state": it.state, "url": it.url, "ca_file": it.ca_file})).collect();
        let issuers: BTreeMap<_, _> = self.members.iter().map(|it| (it.state, &it.issuer_key)).collect();
        let processes: BTreeMap<_, _> =
            self.members.iter().map(|it| (it.state, it.process.as_ref().and_then(Child::id))).collect();
        json!({
            "gateways": gateways,
            "tokens": self.tokens,
            "issuers": issuers,
            "processes": processes,
            "data_dir": self.folder,
        })
    }

    /// Asks every gateway to stop and waits; kills what does not. Then ends the tasks that still run: a laptop's
    /// federation leaves nothing behind. One that was never ready has nothing to end in order, and no quorum to do it with.
    pub async fn stop(&mut self) {
        let how = if self.was_ready { Signal::SIGTERM } else { Signal::SIGKILL };
        for member in &self.members {
            if let Some(pid) = member.process.as_ref().and_then(Child::id) {
                signal(pid, how);
            }
        }
        for member in &mut self.members {
            let Some(mut process) = member.process.take() else {
                continue;
            };
            let waited = tokio::time::timeout(Duration::from_secs(15), process.wait()).await;
            if waited.is_err() {
                let _already_gone = process.kill().await;
            }
        }
        for member in &self.members {
            match stop_attempts(&member.folder.join("data"), ATTEMPTS_STOP_TIMEOUT).await {
                Ok(true) => {}
                Ok(false) => tracing::warn!(state = %member.state, "some tasks did not stop in time"),
                Err(cause) => tracing::warn!(state = %member.state, %cause, "some tasks may still run"),
            }
        }
    }

    /// Resolves when a gateway ends by itself, with the reason and how to start it again.
    pub async fn lost(&mut self) -> String {
        let program = self.program.display().to_string();
        let waits = self.members.iter_mut().filter_map(|member| {
            let process = member.process.as_mut()?;
            Some(Box::pin(async { (process.wait().await, member.state, member.folder.clone()) }))
        });
        let waits: Vec<_> = waits.collect();
        if waits.is_empty() {
            return std::future::pending().await;
        }
        let ((ended, state, folder), ..) = futures_util::future::select_all(waits).await;
        if let Some(member) = self.members.iter_mut().find(|member| member.state == state) {
            member.process = None;
        }
        let how = ended.map_or_else(|cause| cause.to_string(), |status| status.to_string());
        let folder = folder.display();
        format!(
            "the gateway of {state} ended ({how}); its log is {folder}/gateway.log; \
             `{program} gateway --config {folder}/gateway.toml` starts it again"
        )
    }

    fn start_member(&mut self, index: usize) -> anyhow::Result<()> {
        let member = &mut self.members[index];
        let log = member.folder.join("gateway.log");
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&log)
            .with_context(|| format!("cannot write {}", log.display()))?;
        let mut process = Command::new(&self.program)
            .arg("gateway")
            .arg("--config")
            .arg(member.folder.join("gateway.toml"))
            .arg("--while-stdin-is-open")
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("cannot start a gateway process")?;
        member.lifeline = process.stdin.take();
        member.process = Some(process);
        Ok(())
    }

    async fn wait_ready(&mut self, index: usize) -> anyhow::Result<()> {
        let states = self.members.len();
        let role = format!("operator.{}", self.members[index].state);
        let token = std::fs::read_to_string(&self.tokens[&role])?;
        let ca = std::fs::read_to_string(&self.members[index].ca_file)?;
        let mut client = Client::new(&self.members[index].url, &ca, Some(token.trim()))?;
        loop {
            let process = self.members[index].process.as_mut();
            if let Some(status) = process.and_then(|it| it.try_wait().ok().flatten()) {
                let state = self.members[index].state;
                bail!("the gateway of {state} ended at once ({status}); {}", self.where_logs());
            }
            if is_ready(&mut client, states).await {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn where_logs(&self) -> String {
        let last: Vec<_> = self
            .members
            .iter()
            .filter_map(|member| {
                let text = std::fs::read_to_string(member.folder.join("gateway.log")).ok()?;
                let line = text.lines().last()?.to_owned();
                Some(format!("{}: {line}", member.state))
            })
            .collect();
        format!(
            "their last words:\n  {}\nthe logs are in {}/gateways/*/gateway.log",
            last.join("\n  "),
            self.folder.display()
        )
    }
}

/// A gateway is ready when it has a leader, every state's pack, and fresh capacity of every pool.
async fn is_ready(client: &mut Client, states: usize) -> bool {
    let Ok(health) = client.read("/v1/health").await else {
        return false;
    };
    let Ok(capacity) = client.read("/v1/capacity").await else {
        return false;
    };
    let pools = capacity["pools"].as_array().map_or(&[][..], Vec::as_slice);
    let lending: std::collections::BTreeSet<_> =
        pools.iter().filter(|pool| pool["age_ms"].is_u64()).filter_map(|pool| pool["state"].as_str()).collect();
    health["status"] == "ok" && health["packs"].as_u64() == Some(states as u64) && lending.len() == states
}

/// A folder for this user only: it holds keys and what tasks say.
fn make_private(folder: &Path) -> anyhow::Result<()> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.with_context(|| format!("cannot make the folder {}", folder.display()))
}

fn signal(pid: u32, what: Signal) {
    if let Ok(pid) = i32::try_from(pid) {
        let _already_gone = kill(Pid::from_raw(pid), what);
    }
}

/// Free loopback ports, held until the configurations are written, so that no two are the same.
struct Ports {
    held: Vec<TcpListener>,
}

impl Ports {
    fn reserve(first: Option<u16>) -> anyhow::Result<Ports> {
        let mut held = Vec::new();
        for number in 0..2 * STATES.len() as u16 {
            // 0: any that is free.
            let port = first.map_or(Some(0), |first| first.checked_add(number));
            let port =
                port.with_context(|| format!("--port {} leaves no six ports: they end at 65535", first.unwrap_or(0)))?;
            let bound = TcpListener::bind(("127.0.0.1", port));
            held.push(bound.with_context(|| match port {
                0 => "no free port on 127.0.0.1".to_owned(),
                port => format!("port {port} of 127.0.0.1 is taken; choose six others with --port"),
            })?);
        }
        Ok(Ports { held })
    }

    fn port(&self, index: usize) -> anyhow::Result<u16> {
        Ok(self.held[index].local_addr()?.port())
    }
}

/// A state while it is being founded.
struct Founding {
    id: GatewayId,
    node: u64,
    authority: Authority,
    folder: PathBuf,
    public_port: u16,
    peer_port: u16,
    issuer: TokenIssuer,
    issuer_key: PathBuf,
}

impl Founding {
    fn prepare(folder: &Path, code: &str, index: usize, ports: &Ports) -> anyhow::Result<Founding> {
        let state = MemberState::parse(code)?;
        let federation = FederationId::parse(FEDERATION)?;
        let name = GatewayName::parse(&format!("{}-1", state.lower()))?;
        let home = folder.join("states").join(code);
        let mut authority = Authority::create(&home, federation, state)?;
        let gateway = folder.join("gateways").join(code);
        let files = GatewayFiles::in_folder(&gateway);
        authority.issue_gateway(&name, &["127.0.0.1".into(), "localhost".into()], LEAF_HOURS, &files)?;
        let issuer_key = home.join("identity-provider.pem");
        let pem = certs::SigningKey::from_seed(certs::entropy::bytes()).to_pkcs8_pem();
        write_secret(&issuer_key, pem.as_bytes())?;
        let url = format!("https://login.{}.{FEDERATION}", state.lower());
        let issuer = TokenIssuer::from_pkcs8_pem(&url, "demo-1", &pem)?;
        authority.add_issuer(IssuerEntry {
            issuer: url,
            jwks_json: issuer.jwks_json(),
            entitlements: vec![
                (RESEARCHER.into(), Role::Researcher),
                (OPERATOR.into(), Role::Operator),
                (AGENCY.into(), Role::Agency),
            ],
            assurance_max: certs::Assurance::High,
            clearances: vec!["dual-use".into()],
            residencies: vec![],
        })?;
        Ok(Founding {
            id: GatewayId { state, name },
            node: index as u64 + 1,
            authority,
            folder: gateway,
            public_port: ports.port(2 * index)?,
            peer_port: ports.port(2 * index + 1)?,
            issuer,
            issuer_key,
        })
    }

    fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.public_port)
    }

    fn write_config(&self, folder: &Path) -> anyhow::Result<()> {
        let state = self.id.state;
        let pack = policy::founding::pack(state).context("a founding state ships a pack")?;
        let cedar = self.folder.join("policy.cedar");
        replace(&cedar, pack.cedar.as_bytes(), 0o644)?;
        let mut text = format!(
            "gateway = \"{}\"\ndata_dir = \"data\"\ngenesis = {:?}\n\
             bundle = {:?}\npublic_listen = \"127.0.0.1:{}\"\npeer_listen = \"127.0.0.1:{}\"\n\n\
             [keys]\nsigning = \"signing.pem\"\npeer_cert = \"peer.pem\"\npeer_key = \"peer.key\"\n\
             public_cert = \"public.pem\"\npublic_key = \"public.key\"\n\
             pseudonym_secret = \"pseudonym.secret\"\n\n\
             [policy]\ncedar = \"policy.cedar\"\ntitle = {:?}\ncontact = {:?}\n\n\
             [local]\nisolation = \"auto\"\nfile_roots = [{:?}]\n",
            self.id,
            folder.join("genesis.json"),
            folder.join("states").join(state.as_str()).join("bundle.json"),
            self.public_port,
            self.peer_port,
            pack.title,
            pack.contact,
            folder.join("files"),
        );
        text.push_str(&factories_toml(state)?);
        std::fs::create_dir_all(folder.join("files"))?;
        replace(&self.folder.join("gateway.toml"), text.as_bytes(), 0o644)
    }

    fn mint_tokens(&self, folder: &Path, tokens: &mut BTreeMap<String, PathBuf>) -> anyhow::Result<()> {
        let state = self.id.state;
        self.mint(folder, tokens, &format!("researcher.{state}"), RESEARCHER)?;
        self.mint(folder, tokens, &format!("operator.{state}"), OPERATOR)?;
        if state.as_str() == STATES[0] {
            self.mint(folder, tokens, "agency", AGENCY)?;
        }
        Ok(())
    }

    fn mint(
        &self,
        folder: &Path,
        tokens: &mut BTreeMap<String, PathBuf>,
        name: &str,
        entitlement: &str,
    ) -> anyhow::Result<()> {
        let now = now_s();
        let token = self.issuer.mint(&json!({
            "iss": self.issuer.issuer(),
            "aud": FEDERATION,
            "sub": format!("{name}@demo"),
            "jti": format!("{name}-{now}"),
            "iat": now,
            "nbf": now,
            "exp": now + TOKEN_LIFE_S,
            "entitlements": [entitlement],
            "eduperson_assurance": ["https://refeds.org/assurance/IAP/medium"],
            "residency": self.id.state,
        }))?;
        let path = folder.join("tokens").join(format!("{name}.jwt"));
        std::fs::create_dir_all(folder.join("tokens"))?;
        write_secret(&path, token.as_bytes())?;
        tokens.insert(name.to_owned(), path);
        Ok(())
    }

    fn into_member(self) -> Member {
        Member {
            state: self.id.state,
            url: self.url(),
            ca_file: self.folder.parent().and_then(Path::parent).map_or_else(
                || self.folder.clone(),
                |top| top.join("states").join(self.id.state.as_str()).join("ca.pem"),
            ),
            issuer_key: self.issuer_key,
            folder: self.folder,
            process: None,
            lifeline: None,
        }
    }
}

fn sign_genesis(folder: &Path, founding: &[Founding]) -> anyhow::Result<()> {
    let mut members = Vec::new();
    for state in founding {
        members.push(GenesisMember {
            bundle: state.authority.sign_bundle()?,
            gateways: vec![GatewayRecord {
                id: state.id.clone(),
                node_id: state.node,
                peer_address: format!("127.0.0.1:{}", state.peer_port),
                api_url: state.url(),
            }],
        });
    }
    let mut draft = Genesis::draft(FederationId::parse(FEDERATION)?, 1, members)?.with_clocks(Clocks::local());
    for state in founding {
        draft = draft.sign(state.id.state, &state.authority.root()?)?;
    }
    let genesis = draft.complete()?;
    replace(&folder.join("genesis.json"), &serde_json::to_vec_pretty(&genesis)?, 0o644)
}

/// The state's factories from the shipped data, as sections of a gateway's configuration.
fn factories_toml(state: MemberState) -> anyhow::Result<String> {
    let data: Value = serde_json::from_str(FACTORIES).context("the shipped factories")?;
    let carbon = data["carbon_g_per_kwh"][state.as_str()].as_u64().unwrap_or(0);
    let mut text = String::new();
    let factories = data["factories"].as_array().map_or(&[][..], Vec::as_slice);
    for factory in factories.iter().filter(|it| it["state"] == state.as_str()) {
        let certifications = factory.get("demo_certifications").cloned().unwrap_or(json!([]));
        text.push_str(&format!(
            "\n[[factory]]\nname = {}\ncity = {}\ncertifications = {certifications}\n\
             carbon_g_per_kwh = {carbon}\n",
            factory["name"], factory["city"],
        ));
        for pool in factory["pools"].as_array().map_or(&[][..], Vec::as_slice) {
            let model = pool["model"].as_str().context("a pool names its model")?;
            let device = &data["device_models"][model];
            text.push_str(&format!(
                "\n[[factory.pool]]\nname = {:?}\nmodel = {model:?}\nvendor = {}\n\
                 memory_gib = {}\nscheduler_units = {}\nnodes = {}\ngpus_per_node = {}\n",
                model.to_lowercase(),
                device["vendor"],
                device["memory_gib"],
                device["scheduler_units"],
                pool["nodes"],
                pool["gpus_per_node"],
            ));
        }
    }
    Ok(text)
}
