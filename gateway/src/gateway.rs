//! A gateway: everything that one process of a member state runs, put together in one place.
//!
//! Start: identity, store, consensus, driver, the two faces, and the loops that do what is due.
//! Stop: leadership is handed over; no new work, requests in flight end; the other gateways are let go; the log is
//! closed. Running jobs go on under their own supervisors.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use certs::{GatewayId, KeyId, SharedTrust, SigningKey};
use federation::Genesis;
use federation::raft::{Consensus, RaftConfig, Timers};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::archive::Archive;
use crate::authority::read_signing_key;
use crate::config::{Config, TimersProfile};
use crate::driver::Driver;
use crate::drivers::Drivers;
use crate::entry::{Entry, Tokens, UnderWay};
use crate::expiry::Warnings;
use crate::home::Home;
use crate::host::Host;
use crate::leaves::Leaves;
use crate::listener::{Connections, Face, Limits, raise_open_files, serve};
use crate::orders::Orders;
use crate::peer::client::{PeerAddress, RaftLanes};
use crate::peer::{PeerThreads, Peers, server};
use crate::proposer::{Proposer, Serials, Signer, lowest_serial};
use crate::stages::Stages;
use crate::store::Store;
use crate::verdicts::Judge;
use crate::witness::Witness;
use crate::{api, publish};

mod renewal;

#[cfg(test)]
mod tests;

use renewal::Renewal;

/// One look for the newest state of the registry.
const SURE_TIMEOUT: Duration = Duration::from_secs(5);

/// With fewer open files than a shell allows, faces are too small for a federation.
const FEW_FILES: u64 = 1_024;

/// A running gateway.
pub struct Gateway {
    consensus: Consensus,
    store: Store,
    broken: watch::Receiver<Option<String>>,
    own_key: OwnKey,
    /// The public face, what is due, and what both began.
    work: Part,
    /// The peer face and the proposer, without which no work ends.
    ties: Part,
    grace: Duration,
    /// Last, because everything else uses them.
    _peer_threads: PeerThreads,
}

/// What ends together.
#[derive(Clone, Default)]
struct Part {
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// The key by which others know what this gateway says.
struct OwnKey {
    gateway: GatewayId,
    id: KeyId,
    file: PathBuf,
}

/// What this gateway is known by.
struct Identity {
    genesis: Genesis,
    node: u64,
    trust: SharedTrust,
    leaves: Arc<Leaves>,
    signing: SigningKey,
    own_key: OwnKey,
    pseudonym_secret: [u8; 32],
}

impl Gateway {
    /// Starts everything; returns when both faces listen.
    pub async fn start(mut config: Config) -> anyhow::Result<Gateway> {
        let identity = Identity::read(&config)?;
        match raise_open_files() {
            Ok(files) if files < FEW_FILES => tracing::warn!(files, "few files may be open, so few clients are served"),
            Ok(_) => {}
            Err(cause) => tracing::warn!(%cause, "the limit of open files stays as it is"),
        }
        config.settle_isolation();
        let (work, ties) = (Part::default(), Part::default());
        let peer_threads = PeerThreads::start().context("cannot start threads")?;
        fs::create_dir_all(&config.data_dir).with_context(|| format!("cannot make {}", config.data_dir.display()))?;
        let store = Store::open(&config.data_dir).await?;
        // Both ports first: a taken one is the most likely fault, and nothing has happened yet.
        let public = listen(config.public_listen).await?;
        let peer = peer_threads.handle().spawn(listen(config.peer_listen)).await??;

        let peers = Arc::new(identity.peers(&config.peer_addresses)?);
        let raft = RaftConfig {
            node: identity.node,
            data_dir: config.data_dir.join("raft"),
            timers: match config.timers {
                TimersProfile::Local => Timers::local(),
                TimersProfile::Wan => Timers::wan(),
            },
        };
        let clocks = identity.genesis.clocks();
        let transport = Arc::new(RaftLanes(Arc::clone(&peers)));
        let consensus = Consensus::start(raft, identity.genesis.clone(), transport).await?;
        let connections = Connections::default();
        let warnings = Warnings::default();
        let mut renewal = Renewal {
            state: config.gateway.state,
            leaves: Arc::clone(&identity.leaves),
            warnings: warnings.clone(),
            consensus: consensus.clone(),
            trust: identity.trust.clone(),
            connections: connections.clone(),
            peers: Arc::clone(&peers),
            in_force: Default::default(),
        };
        // Since the genesis others may have lost what it says of them.
        renewal.follow().await;
        let driver: Arc<dyn Driver> = Arc::new(Drivers::open(&config)?);
        let signer = Signer { owner: config.gateway.state, key: identity.signing.clone() };
        let serials = Serials::open(&config.data_dir, lowest_serial(&consensus, &signer))
            .context("cannot tell which serials were used before")?;
        let proposer = Proposer::start(consensus.clone(), signer, serials, &ties.tasks, ties.stop.clone());
        let judge = Arc::new(Judge::default());
        let orders = Arc::new(Orders {
            me: config.gateway.clone(),
            consensus: consensus.clone(),
            store: store.clone(),
            driver: Arc::clone(&driver),
            peers: Arc::clone(&peers),
            judge: Arc::clone(&judge),
            signing: identity.signing.clone(),
        });
        let archive = Arc::new(Archive::open(consensus.clone(), store.clone(), Arc::clone(&orders))?);
        let stages = Arc::new(Stages::default());
        let home = Arc::new(Home::new(
            config.gateway.clone(),
            consensus.clone(),
            proposer.clone(),
            store.clone(),
            Arc::clone(&judge),
            identity.pseudonym_secret,
            Arc::clone(&stages),
            Arc::clone(&archive),
        ));
        let entry = Arc::new(Entry {
            me: config.gateway.clone(),
            consensus: consensus.clone(),
            peers: Arc::clone(&peers),
            tokens: Tokens::new(identity.trust.clone()),
            stages: Arc::clone(&stages),
            under_way: UnderWay::default(),
        });
        let app = api::routes(api::Api {
            entry,
            home: Arc::clone(&home),
            orders: Arc::clone(&orders),
            consensus: consensus.clone(),
            store: store.clone(),
            stages,
            warnings,
            documents: api::Documents::default(),
            tasks: work.tasks.clone(),
        });
        let peer_app = server::routes(consensus.clone(), Arc::clone(&orders), app.clone(), Handle::current());
        let grace = Duration::from_millis(config.grace_ms);
        let peer_face = serve(
            peer,
            certs::peer_server_config(identity.trust.clone(), identity.leaves.peer.shown.clone()),
            Face::Peer(connections),
            peer_app,
            Limits::peer().with_grace(grace),
            ties.stop.clone(),
        );
        ties.tasks.spawn_on(peer_face, peer_threads.handle());
        let public_face = serve(
            public,
            certs::public_server_config(identity.leaves.public.shown.clone()),
            Face::Public,
            app,
            Limits::public().with_grace(grace),
            work.stop.clone(),
        );
        work.tasks.spawn(public_face);
        consensus.initialize_if_first().await?;

        let host = Arc::new(Host {
            me: config.gateway.clone(),
            consensus: consensus.clone(),
            proposer: proposer.clone(),
            driver,
            judge,
            home,
            orders,
            lease_ms: clocks.lease_ms,
            leased_until_ms: AtomicU64::new(0),
        });
        let witness = Witness {
            me: config.gateway.clone(),
            consensus: consensus.clone(),
            proposer: proposer.clone(),
            peers,
            clocks,
        };
        let Part { tasks, stop } = &work;
        let loops = [
            ("host", tasks.spawn(host.run(tasks.clone(), stop.clone()))),
            ("archive", tasks.spawn(archive.run(tasks.clone(), stop.clone()))),
            ("publish", tasks.spawn(publish::run(config, consensus.clone(), proposer, identity.leaves, stop.clone()))),
            ("renewal", tasks.spawn(renewal.run(stop.clone()))),
            ("witness", tasks.spawn(witness.run(stop.clone()))),
        ];
        let (report, broken) = watch::channel(None);
        for (name, running) in loops {
            let report = report.clone();
            tokio::spawn(async move {
                if let Err(panicked) = running.await {
                    report.send_replace(Some(format!("the {name} loop broke: {panicked}")));
                }
            });
        }
        Ok(Gateway {
            consensus,
            store,
            broken,
            own_key: identity.own_key,
            work,
            ties,
            grace,
            _peer_threads: peer_threads,
        })
    }

    /// Resolves when this gateway can no longer tell the truth: its log or its store has failed, or nobody would believe
    /// it.
    pub async fn failed(&self) -> String {
        let nobody_believes_it = async {
            match self.refused_key().await {
                Some(reason) => reason,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            reason = self.consensus.failed() => format!("the registry's log failed: {reason}"),
            reason = self.store.failed() => reason.to_string(),
            reason = self.broken() => reason,
            reason = nobody_believes_it => reason,
        }
    }

    /// Resolves when one of the loops that do this gateway's duties is gone. Half a gateway promises what it does not keep.
    async fn broken(&self) -> String {
        match self.broken.clone().wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            // Every loop has ended in order.
            Err(_) => std::future::pending().await,
        }
    }

    /// Why this gateway's signing key is none, if it is none. The registry says it, and not the genesis, because keys are
    /// replaced; and it says so when it is up to date, because the key may be newer than what this gateway has heard.
    async fn refused_key(&self) -> Option<String> {
        while self.consensus.linearize(SURE_TIMEOUT).await.is_err() {}
        let OwnKey { gateway, id, file } = &self.own_key;
        let is_named = self.consensus.read(|registry| {
            let named = registry.trust().gateway_key(gateway.state, id);
            named.is_some_and(|(name, _)| *name == gateway.name)
        });
        (!is_named).then(|| format!("{} is not a signing key that the registry has for {gateway}", file.display()))
    }

    /// Stops in order. The whole takes no longer than the grace time and a few seconds.
    pub async fn stop(self) {
        self.work.says_that_it_ends();
        // Of a leader that nobody has answered lately nobody takes over.
        if self.consensus.leader() == Some(self.consensus.node()) {
            self.consensus.hand_over().await;
        }
        let deadline = Instant::now() + self.grace;
        // While the last work is done the others are still needed, and still need this gateway.
        let in_time = [self.work.end(deadline).await, self.ties.end(deadline).await];
        if in_time.contains(&false) {
            tracing::warn!("some requests did not end in time and are cut");
        }
        self.consensus.shutdown().await;
    }
}

impl Part {
    /// What is asked of it meanwhile is done all the same.
    fn says_that_it_ends(&self) {
        self.tasks.close();
    }

    /// Whether all of it ended by then.
    async fn end(&self, deadline: Instant) -> bool {
        self.stop.cancel();
        self.says_that_it_ends();
        timeout_at(deadline, self.tasks.wait()).await.is_ok()
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
        let file = config.keys.signing.clone();
        let signing = read_signing_key(&file)?;
        let own_key = OwnKey { gateway: config.gateway.clone(), id: signing.public().id(), file };
        let path = &config.keys.pseudonym_secret;
        let secret = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let secret = BASE64.decode(secret.trim()).with_context(|| format!("{} is not base64", path.display()))?;
        let Ok(pseudonym_secret) = <[u8; 32]>::try_from(secret.as_slice()) else {
            bail!("{} holds {} bytes and not the 32 of a pseudonym secret", path.display(), secret.len());
        };
        Ok(Identity {
            node,
            trust: SharedTrust::new(Arc::clone(genesis.trust())),
            leaves: Arc::new(Leaves::read(&config.keys)?),
            signing,
            own_key,
            pseudonym_secret,
            genesis,
        })
    }

    /// The others, where the genesis says or where the operator says instead.
    fn peers(&self, instead: &BTreeMap<GatewayId, String>) -> anyhow::Result<Peers> {
        let known: BTreeSet<_> = self.genesis.gateways().map(|record| &record.id).collect();
        if let Some(stranger) = instead.keys().find(|id| !known.contains(id)) {
            bail!("peer_addresses names {stranger}, and the genesis names no such gateway");
        }
        let addresses = self.genesis.gateways().map(|record| PeerAddress {
            id: record.id.clone(),
            node: record.node_id,
            address: instead.get(&record.id).unwrap_or(&record.peer_address).clone(),
        });
        Ok(Peers::new(self.trust.clone(), self.leaves.peer.shown.clone(), addresses))
    }
}

async fn listen(address: std::net::SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}; is another gateway or program using this port?"))
}
