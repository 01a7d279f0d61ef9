//! A gateway: everything that one process of a member state runs, put together in one place.
//!
//! Start: identity, store, consensus, driver, the two faces, and the loops that do what is due.
//! Stop: no new work, requests in flight end, leadership is handed over, the log is closed. Running
//! jobs go on under their own supervisors.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use certs::{LeafIdentity, SharedLeaf, SharedTrust, SigningKey};
use federation::Genesis;
use federation::raft::{Consensus, RaftConfig, Timers};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::archive::Archive;
use crate::authority::read_signing_key;
use crate::config::{Config, TimersProfile};
use crate::driver::{Driver, Local};
use crate::entry::{Entry, Tokens};
use crate::home::Home;
use crate::host::Host;
use crate::listener::{Connections, Face, Limits, serve};
use crate::orders::Orders;
use crate::peer::client::{PeerAddress, RaftLanes};
use crate::peer::{Peers, server};
use crate::proposer::{Proposer, Signer};
use crate::publish;
use crate::stages::Stages;
use crate::store::Store;
use crate::verdicts::Judge;
use crate::{api, peer};

/// How often the certificate files are looked at for renewal.
const RELOAD_EVERY: Duration = Duration::from_secs(2);

/// A running gateway.
pub struct Gateway {
    consensus: Consensus,
    store: Store,
    stop: CancellationToken,
    tasks: TaskTracker,
    grace: Duration,
}

/// What this gateway is known by.
struct Identity {
    genesis: Genesis,
    node: u64,
    trust: SharedTrust,
    peer_leaf: SharedLeaf,
    public_leaf: SharedLeaf,
    signing: SigningKey,
    pseudonym_secret: Vec<u8>,
}

impl Gateway {
    /// Starts everything; returns when both faces listen.
    pub async fn start(config: Config) -> anyhow::Result<Gateway> {
        let identity = Identity::read(&config)?;
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        fs::create_dir_all(&config.data_dir).with_context(|| format!("cannot make {}", config.data_dir.display()))?;
        let store = Store::open(&config.data_dir)?;
        // Both ports first: a taken one is the most likely fault, and nothing has happened yet.
        let public = listen(config.public_listen).await?;
        let peer = listen(config.peer_listen).await?;

        let peers = Arc::new(identity.peers());
        let consensus = Consensus::start(
            RaftConfig {
                node: identity.node,
                data_dir: config.data_dir.join("raft"),
                timers: match config.timers {
                    TimersProfile::Local => Timers::local(),
                    TimersProfile::Wan => Timers::wan(),
                },
            },
            identity.genesis.clone(),
            Arc::new(RaftLanes(Arc::clone(&peers))),
        )
        .await?;
        let driver: Arc<dyn Driver> = Arc::new(Local::open(&config)?);
        let signer = Signer { owner: config.gateway.state, key: identity.signing.clone() };
        let proposer = Proposer::start(consensus.clone(), signer, &tasks, stop.clone());
        let orders = Arc::new(Orders {
            me: config.gateway.clone(),
            consensus: consensus.clone(),
            store: store.clone(),
            driver: Arc::clone(&driver),
            peers: Arc::clone(&peers),
            signing: identity.signing.clone(),
        });
        let archive = Arc::new(Archive::open(consensus.clone(), store.clone(), Arc::clone(&orders))?);
        let judge = Arc::new(Judge::default());
        let stages = Arc::new(Stages::default());
        let home = Arc::new(Home::new(
            config.gateway.clone(),
            consensus.clone(),
            proposer.clone(),
            store.clone(),
            Arc::clone(&judge),
            identity.pseudonym_secret.clone(),
            Arc::clone(&stages),
        ));
        let entry = Arc::new(Entry {
            me: config.gateway.clone(),
            consensus: consensus.clone(),
            peers: Arc::clone(&peers),
            tokens: Tokens::new(identity.trust.clone()),
            stages: Arc::clone(&stages),
        });
        let app = api::routes(api::Api {
            entry,
            home: Arc::clone(&home),
            archive: Arc::clone(&archive),
            orders: Arc::clone(&orders),
            consensus: consensus.clone(),
            store: store.clone(),
            judge: Arc::clone(&judge),
            stages,
        });
        let peer_app = server::routes(consensus.clone(), Arc::clone(&orders), app.clone());
        let grace = Duration::from_millis(config.grace_ms);
        let connections = Connections::default();
        let peer_tls = certs::peer_server_config(identity.trust.clone(), identity.peer_leaf.clone());
        let public_tls = certs::public_server_config(identity.public_leaf.clone());
        tasks.spawn(serve(
            peer,
            peer_tls,
            Face::Peer(connections.clone()),
            peer_app,
            Limits::peer().with_grace(grace),
            stop.clone(),
        ));
        tasks.spawn(serve(public, public_tls, Face::Public, app, Limits::public().with_grace(grace), stop.clone()));
        consensus.initialize_if_first().await?;

        let host = Arc::new(Host {
            me: config.gateway.clone(),
            consensus: consensus.clone(),
            proposer: proposer.clone(),
            driver,
            judge,
            home,
            orders,
        });
        tasks.spawn(host.run(tasks.clone(), stop.clone()));
        tasks.spawn(archive.run(stop.clone()));
        tasks.spawn(publish::run(config.clone(), consensus.clone(), proposer, stop.clone()));
        tasks.spawn(reload(config, identity, (connections, peers), consensus.clone(), stop.clone()));
        Ok(Gateway { consensus, store, stop, tasks, grace })
    }

    /// Resolves when this gateway can no longer tell the truth: its log or its store has failed.
    pub async fn failed(&self) -> String {
        tokio::select! {
            reason = self.consensus.failed() => format!("the registry's log failed: {reason}"),
            reason = self.store.failed() => reason.to_string(),
        }
    }

    /// Stops in order.
    pub async fn stop(self) {
        self.consensus.hand_over().await;
        self.stop.cancel();
        self.tasks.close();
        let drained = tokio::time::timeout(self.grace, self.tasks.wait()).await;
        if drained.is_err() {
            tracing::warn!("some requests did not end in time and are cut");
        }
        self.consensus.shutdown().await;
    }
}

impl Identity {
    fn read(config: &Config) -> anyhow::Result<Identity> {
        let genesis: Genesis = serde_json::from_slice(
            &fs::read(&config.genesis).with_context(|| format!("cannot read {}", config.genesis.display()))?,
        )
        .with_context(|| {
            format!("{} is not a genesis that every founding state has signed", config.genesis.display())
        })?;
        let own = genesis
            .gateways()
            .find(|record| record.id == config.gateway)
            .with_context(|| format!("the genesis names no gateway {}", config.gateway))?;
        let node = own.node_id;
        let signing = read_signing_key(&config.keys.signing)?;
        let trust = Arc::clone(genesis.trust());
        let known = trust.gateway_key(config.gateway.state, &signing.public().id());
        if known.is_none_or(|(name, _)| *name != config.gateway.name) {
            bail!(
                "{} is not the signing key that the genesis has for {}",
                config.keys.signing.display(),
                config.gateway
            );
        }
        let secret = fs::read_to_string(&config.keys.pseudonym_secret)
            .with_context(|| format!("cannot read {}", config.keys.pseudonym_secret.display()))?;
        Ok(Identity {
            node,
            trust: SharedTrust::new(trust),
            peer_leaf: SharedLeaf::new(read_leaf(&config.keys.peer_cert, &config.keys.peer_key)?),
            public_leaf: SharedLeaf::new(read_leaf(&config.keys.public_cert, &config.keys.public_key)?),
            signing,
            pseudonym_secret: BASE64.decode(secret.trim()).context("the pseudonym secret is not base64")?,
            genesis,
        })
    }

    fn peers(&self) -> peer::Peers {
        let addresses = self.genesis.gateways().map(|record| PeerAddress {
            id: record.id.clone(),
            node: record.node_id,
            address: record.peer_address.clone(),
        });
        Peers::new(self.trust.clone(), self.peer_leaf.clone(), addresses)
    }
}

fn read_leaf(cert: &Path, key: &Path) -> anyhow::Result<LeafIdentity> {
    let read = |path: &Path| fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
    LeafIdentity::from_pem(&read(cert)?, &read(key)?)
        .with_context(|| format!("{} and its key do not belong together", cert.display()))
}

async fn listen(address: std::net::SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}; is another gateway or program using this port?"))
}

/// New trust takes effect with the revision that brings it, renewed certificate files without a restart.
async fn reload(
    config: Config,
    identity: Identity,
    live: (Connections, Arc<Peers>),
    consensus: Consensus,
    stop: CancellationToken,
) {
    let mut revisions = consensus.changes();
    let mut files_at = tokio::time::interval(RELOAD_EVERY);
    loop {
        revisions.borrow_and_update();
        let trust = consensus.read(|registry| Arc::clone(registry.trust()));
        if !Arc::ptr_eq(&trust, &identity.trust.load()) {
            identity.trust.store(Arc::clone(&trust));
            evict(&identity, &live);
        }
        tokio::select! {
            () = stop.cancelled() => return,
            _ = revisions.changed() => {}
            _ = files_at.tick() => renew(&config, &identity),
        }
    }
}

/// Who is no longer named loses the connections that he still has.
fn evict(identity: &Identity, (connections, peers): &(Connections, Arc<Peers>)) {
    let trust = identity.trust.load();
    for gateway in identity.genesis.gateways().filter(|it| !trust.names(&it.id)) {
        let closed = connections.close(&gateway.id);
        peers.hang_up(&gateway.id);
        tracing::warn!(gateway = %gateway.id, closed, "gateway evicted");
    }
}

fn renew(config: &Config, identity: &Identity) {
    let keys = &config.keys;
    for (leaf, cert, key) in [
        (&identity.peer_leaf, &keys.peer_cert, &keys.peer_key),
        (&identity.public_leaf, &keys.public_cert, &keys.public_key),
    ] {
        match read_leaf(cert, key) {
            Ok(read) if *leaf.load() != read => {
                tracing::info!(file = %cert.display(), "certificate renewed");
                leaf.store(Arc::new(read));
            }
            Ok(_) => {}
            Err(cause) => tracing::warn!(%cause, "the certificate stays as it was"),
        }
    }
}
