//! A state with one gateway, started and stopped in this process.

use std::path::{Path, PathBuf};

use certs::{FederationId, GatewayKey, GatewayName, MemberState, TrustBundle, gateway_key_proof};
use federation::{GatewayRecord, GenesisMember, Revision};

use super::*;
use crate::authority::{Authority, GatewayFiles, replace};
use crate::config::PolicyFile;
use crate::reader::hanging::Hanging;
use crate::samples::CONFIG;

/// Turns an event that does not come into a failure.
const PATIENCE: Duration = Duration::from_secs(60);

/// FR, its authority and the files of its gateway.
struct State {
    folder: PathBuf,
    authority: Authority,
    first: TrustBundle,
}

impl State {
    fn found(folder: &Path) -> anyhow::Result<State> {
        let (federation, state) = (FederationId::parse("entente.example")?, MemberState::parse("FR")?);
        let mut authority = Authority::create(&folder.join("state"), federation.clone(), state)?;
        let name = GatewayName::parse("fr-1")?;
        let files = GatewayFiles::in_folder(folder);
        authority.issue_gateway(&name, &["localhost".into()], 1, &files)?;
        let bundle = authority.sign_bundle()?;
        let record = GatewayRecord {
            id: GatewayId { state, name },
            node_id: 1,
            peer_address: "127.0.0.1:1".into(),
            api_url: "https://localhost:1".into(),
        };
        let member = GenesisMember { bundle: bundle.clone(), gateways: vec![record] };
        let genesis = Genesis::draft(federation, 1, vec![member])?.sign(state, &authority.root()?)?.complete()?;
        replace(&folder.join("genesis.json"), &serde_json::to_vec(&genesis)?, 0o644)?;
        Ok(State { folder: folder.to_owned(), authority, first: bundle.verify_first()? })
    }

    fn config(&self) -> anyhow::Result<Config> {
        let path = self.folder.join("gateway.toml");
        replace(&path, CONFIG.as_bytes(), 0o644)?;
        Ok(Config::read(&path)?)
    }

    /// Starts the gateway, as soon as the one before has let go of the folder.
    async fn start(&self) -> anyhow::Result<Gateway> {
        let starting = async {
            loop {
                match Gateway::start(self.config()?).await {
                    Err(cause) if cause.to_string().contains("already open") => tokio::task::yield_now().await,
                    started => return started,
                }
            }
        };
        tokio::time::timeout(PATIENCE, starting).await?
    }

    /// The state gives its gateway another key; the bundle that says so is there to be published.
    fn rotate(&self, key: &SigningKey) -> anyhow::Result<()> {
        let name = GatewayName::parse("fr-1")?;
        let proof = gateway_key_proof(&self.first.federation, self.first.state, &name, key);
        let next = TrustBundle {
            sequence: 2,
            previous: Some(self.first.digest()),
            gateways: vec![GatewayKey { name, key: key.public(), proof }],
            ..self.first.clone()
        };
        let signed = serde_json::to_vec(&next.sign(&self.authority.root()?))?;
        replace(&self.folder.join("bundle.json"), &signed, 0o644)
    }

    fn use_key(&self, key: &SigningKey) -> anyhow::Result<()> {
        replace(&self.folder.join("signing.pem"), key.to_pkcs8_pem().as_bytes(), 0o600)
    }
}

#[tokio::test]
async fn the_registry_says_whose_key_it_is_and_not_the_genesis() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let state = State::found(folder.path()).expect("a state");
    let old = read_signing_key(&folder.path().join("signing.pem")).expect("a key");
    let new = SigningKey::from_seed([7; 32]);
    state.rotate(&new).expect("a bundle");

    let gateway = state.start().await.expect("a start");
    let mut revisions = gateway.consensus.changes();
    let published = async {
        while gateway.consensus.read(|it| it.members().all(|member| member.bundle_at == Revision(0))) {
            revisions.changed().await.expect("a revision");
        }
    };
    tokio::time::timeout(PATIENCE, published).await.expect("a publication");
    gateway.stop().await;

    for (key, is_its_own) in [(&new, true), (&old, false)] {
        state.use_key(key).expect("another key");
        let gateway = state.start().await.expect("a start");
        let refused = tokio::time::timeout(PATIENCE, gateway.refused_key()).await.expect("a judgement");
        assert_eq!(refused.is_none(), is_its_own, "{refused:?}");
        gateway.stop().await;
    }
}

#[tokio::test]
async fn a_stop_waits_for_what_a_client_began() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let state = State::found(folder.path()).expect("a state");
    std::fs::write(folder.path().join("bundle.json"), "none yet").expect("a file");
    let gateway = state.start().await.expect("a start");
    let stopping = gateway.work.stop.clone();
    let (began, ended) = tokio::sync::oneshot::channel();
    gateway.work.tasks.spawn(async move {
        stopping.cancelled().await;
        tokio::task::yield_now().await;
        began.send(()).expect("somebody waits");
    });
    gateway.stop().await;
    assert_eq!(ended.await, Ok(()));
}

#[tokio::test]
async fn an_address_for_a_gateway_that_nobody_knows_is_a_mistake() {
    let folder = tempfile::tempdir().expect("a folder");
    let state = State::found(folder.path()).expect("a state");
    let mut config = state.config().expect("a configuration");
    let stranger = GatewayId::parse("DE/de-1").expect("an id");
    config.peer_addresses.insert(stranger, "127.0.0.1:1".into());
    let refused = Gateway::start(config).await.map(|_| ()).expect_err("a refusal");
    assert!(refused.to_string().contains("DE/de-1"), "{refused}");
}

/// Whether the state's next bundle is published while a file of its gateway hangs, and anything else goes on.
async fn goes_on_without(file: &str) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let state = State::found(folder.path()).expect("a state");
    std::fs::write(folder.path().join("bundle.json"), "none yet").expect("a file");
    std::fs::write(folder.path().join("policy.cedar"), "").expect("a file");
    let mut config = state.config().expect("a configuration");
    let (title, contact) = ("Everything".into(), "law@example.fr".into());
    config.policy = Some(PolicyFile { cedar: folder.path().join("policy.cedar"), title, contact });
    let gateway = Gateway::start(config).await.expect("a start");
    let hanging = Hanging::at(folder.path().join(file)).await;

    // On a thread that is none of the runtime's: without a worker no timer of it rings.
    let (say, said) = std::sync::mpsc::channel();
    tokio::spawn(async move { say.send(()) });
    said.recv_timeout(PATIENCE).expect("the worker does something else");
    state.rotate(&SigningKey::from_seed([7; 32])).expect("a bundle");
    let mut revisions = gateway.consensus.changes();
    let published = async {
        while gateway.consensus.read(|it| it.members().all(|member| member.bundle_at == Revision(0))) {
            revisions.changed().await.expect("a revision");
        }
    };
    tokio::time::timeout(PATIENCE, published).await.expect("a publication");
    gateway.stop().await;
    drop(hanging);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_pack_that_cannot_be_read_to_its_end_holds_up_nothing_else() {
    goes_on_without("policy.cedar").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_certificate_that_cannot_be_read_to_its_end_holds_up_nothing_else() {
    goes_on_without("public.pem").await;
}
