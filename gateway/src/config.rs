//! The configuration of one gateway: a TOML file, parsed once into this.
//!
//! Paths in the file are relative to the file. Unknown keys are refused, so that a misspelt
//! limit is an error at start and not a limit that silently does not hold.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use certs::GatewayId;
use federation::limits::{GPUS_PER_NODE_MAX, NODES_PER_POOL_MAX, OFFERS_PER_STATE_MAX};
use federation::{DeviceModel, FactoryId, FactoryName, Offer, PoolId, PoolName};
use serde::Deserialize;

use crate::driver::{Isolation, RunAs};

mod kubernetes;
mod slurm;

pub use kubernetes::{KubernetesFactory, KubernetesNodes};
pub use slurm::{SlurmFactory, SlurmPartition};

/// Largest configuration file that is read: 64 factories x 16 pools x 1 KiB.
const CONFIG_BYTES_MAX: u64 = 1024 * 1024;

/// Everything that one gateway is told from outside.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Who this gateway is, `FR/fr-1`.
    pub gateway: GatewayId,
    /// Where the registry's log, the tasks and the attempts live; one gateway per folder.
    pub data_dir: PathBuf,
    /// The genesis document that every founding state signed.
    pub genesis: PathBuf,
    /// Address of the public face (HTTPS: TES, `/v1`).
    pub public_listen: SocketAddr,
    /// Address of the peer face (mutual TLS: Raft, relays, orders).
    pub peer_listen: SocketAddr,
    /// Other gateways that are dialled here instead of where the genesis says, `host:port`: behind address translation,
    /// or by a tunnel. Who answers there is checked as always.
    #[serde(default)]
    pub peer_addresses: BTreeMap<GatewayId, String>,
    /// This gateway's certificates and keys.
    pub keys: Keys,
    /// The state's policy pack; published at start when it differs from the registry's.
    #[serde(default)]
    pub policy: Option<PolicyFile>,
    /// The state's newest signed trust bundle; published when it continues the one in the registry.
    #[serde(default)]
    pub bundle: Option<PathBuf>,
    /// Timers of the consensus: `local` (one building) or `wan` (Europe).
    #[serde(default)]
    pub timers: TimersProfile,
    /// The factories whose scheduler this gateway drives.
    #[serde(default, rename = "factory")]
    pub factories: Vec<Factory>,
    /// The built-in driver: processes on this machine.
    #[serde(default)]
    pub local: LocalDriver,
    /// How long a stop waits for requests in flight.
    #[serde(default = "default_grace_ms")]
    pub grace_ms: u64,
}

/// Files with this gateway's identities. Signing keys are not TLS keys.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keys {
    /// Ed25519 key, PKCS#8 PEM: signs this gateway's envelopes.
    pub signing: PathBuf,
    /// Certificate chain with the SPIFFE URI, and its key.
    pub peer_cert: PathBuf,
    /// Key of `peer_cert`.
    pub peer_key: PathBuf,
    /// Server certificate of the public face, and its key.
    pub public_cert: PathBuf,
    /// Key of `public_cert`.
    pub public_key: PathBuf,
    /// Secret that turns issuer and subject into a pseudonym; the same on all gateways of a state.
    pub pseudonym_secret: PathBuf,
}

/// A pack as its authors keep it: Cedar text in a file, and who answers for it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyFile {
    /// Cedar policies.
    pub cedar: PathBuf,
    /// One line for people.
    pub title: String,
    /// Where questions about the pack go.
    pub contact: String,
}

/// Which of the two timer profiles the consensus uses.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum TimersProfile {
    /// Heartbeat 100 ms: one machine or one building.
    #[default]
    Local,
    /// Heartbeat 200 ms: gateways across Europe.
    Wan,
}

/// A factory and the pools that it lends.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Factory {
    /// `jean-zay`
    pub name: FactoryName,
    /// For people.
    pub city: String,
    /// What the factory is certified for: `HDS`, `C5`, `SecNumCloud`.
    #[serde(default)]
    pub certifications: Vec<String>,
    /// Of the electricity, yearly mean.
    #[serde(default)]
    pub carbon_g_per_kwh: u32,
    /// Asked price; 0 is a gift.
    #[serde(default)]
    pub price_milli_eur_per_gpu_hour: u32,
    /// Its scheduler, if that is Slurm; without it and the next, the built-in driver runs its jobs.
    pub slurm: Option<SlurmFactory>,
    /// Its scheduler, if that is Kubernetes.
    pub kubernetes: Option<KubernetesFactory>,
    /// The pools of this factory.
    #[serde(rename = "pool")]
    pub pools: Vec<Pool>,
}

/// Identical GPUs of one factory.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pool {
    /// `h100-80`
    pub name: PoolName,
    /// Device model as it is sold: `H100-80`.
    pub model: String,
    /// `NVIDIA`
    pub vendor: String,
    /// Memory of one device.
    pub memory_gib: u32,
    /// How many "GPUs" the local scheduler counts per device: 2 for an MI250X.
    #[serde(default = "one")]
    pub scheduler_units: u32,
    /// Nodes lent.
    pub nodes: u32,
    /// Devices per node, as they are sold.
    pub gpus_per_node: u32,
    /// How many jobs without a GPU run here at once.
    #[serde(default = "default_task_slots")]
    pub task_slots: u32,
    /// Longest job.
    #[serde(default = "default_walltime_max_s")]
    pub walltime_max_s: u32,
    /// What Slurm calls these GPUs, in a factory whose scheduler is Slurm.
    pub slurm: Option<SlurmPartition>,
    /// What Kubernetes calls them, in a factory whose scheduler is Kubernetes.
    pub kubernetes: Option<KubernetesNodes>,
}

/// The built-in driver's rules.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LocalDriver {
    /// `bubblewrap`, `auto` or `process`.
    pub isolation: Isolation,
    /// For a gateway that runs as root: the account of its tasks, `{ uid = 990, gid = 990 }`.
    pub run_as: Option<RunAs>,
    /// Where attempts live, to have them on another file system; without it, in `data_dir`.
    pub attempts_dir: Option<PathBuf>,
    /// Disk there that no task may use up.
    pub disk_reserve_gib: u32,
    /// Folders that `file://` inputs and outputs may name.
    pub file_roots: Vec<PathBuf>,
    /// Hosts (`name` or `name:port`) that `http(s)://` inputs and outputs may name.
    pub http_hosts: Vec<String>,
    /// Roots for `https://` inputs and outputs.
    pub https_ca_file: Option<PathBuf>,
}

impl Default for LocalDriver {
    fn default() -> LocalDriver {
        LocalDriver {
            isolation: Isolation::default(),
            run_as: None,
            attempts_dir: None,
            disk_reserve_gib: 1,
            file_roots: Vec::new(),
            http_hosts: Vec::new(),
            https_ca_file: None,
        }
    }
}

fn one() -> u32 {
    1
}

fn default_task_slots() -> u32 {
    256
}

fn default_walltime_max_s() -> u32 {
    7 * 24 * 3600
}

fn default_grace_ms() -> u64 {
    10_000
}

/// Why a configuration cannot be used. Always the operator's to mend.
#[derive(Debug, thiserror::Error)]
pub enum BadConfig {
    /// The file cannot be read.
    #[error("cannot read {path}: {cause}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        cause: std::io::Error,
    },
    /// The file is not the TOML that we know.
    #[error("{path} is not a gateway's configuration: {cause}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The parser's reason, with line and column.
        cause: Box<toml::de::Error>,
    },
    /// A pool has more than the registry takes.
    #[error("{path}: {name} has {what} = {found}, at most {limit} are possible")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The pool, or the gateway.
        name: String,
        /// The key in the file.
        what: &'static str,
        /// What it says.
        found: u32,
        /// What is possible.
        limit: u32,
    },
    /// A factory or a pool is named twice.
    #[error("{path} names {name} twice")]
    Twice {
        /// The file.
        path: PathBuf,
        /// The factory or pool.
        name: String,
    },
}

impl Factory {
    /// Whether the built-in driver runs its tasks, on the gateway's own machine.
    pub fn is_local(&self) -> bool {
        self.slurm.is_none() && self.kubernetes.is_none()
    }
}

impl Config {
    /// Reads and parses a configuration file; paths in it become absolute.
    pub fn read(path: &Path) -> Result<Config, BadConfig> {
        let unreadable = |cause| BadConfig::Unreadable { path: path.to_owned(), cause };
        let size = std::fs::metadata(path).map_err(unreadable)?.len();
        if size > CONFIG_BYTES_MAX {
            return Err(unreadable(std::io::Error::other("larger than 1 MiB")));
        }
        let text = std::fs::read_to_string(path).map_err(unreadable)?;
        let mut config: Config = toml::from_str(&text)
            .map_err(|cause| BadConfig::Malformed { path: path.to_owned(), cause: Box::new(cause) })?;
        let base = std::path::absolute(path).map_err(unreadable)?;
        config.resolve(base.parent().unwrap_or(Path::new("/")));
        config.refuse_excess(path)?;
        config.refuse_duplicates(path)?;
        Ok(config)
    }

    /// The offers of this gateway's factories. Sequences are chosen when they are published.
    pub fn offers(&self) -> Vec<Offer> {
        self.factories.iter().flat_map(|factory| self.offers_of(factory)).collect()
    }

    /// The offers of one of them.
    pub fn offers_of(&self, factory: &Factory) -> Vec<Offer> {
        factory.pools.iter().map(|pool| self.offer(factory, pool)).collect()
    }

    /// The id of a factory of this gateway's state.
    pub fn factory_id(&self, factory: &Factory) -> FactoryId {
        FactoryId { state: self.gateway.state, name: factory.name }
    }

    fn offer(&self, factory: &Factory, pool: &Pool) -> Offer {
        Offer {
            pool: PoolId { factory: self.factory_id(factory), name: pool.name },
            served_by: self.gateway.name.clone(),
            sequence: 0,
            model: DeviceModel {
                name: pool.model.clone(),
                vendor: pool.vendor.clone(),
                memory_gib: pool.memory_gib,
                scheduler_units: pool.scheduler_units,
                partition: None,
            },
            nodes: pool.nodes,
            gpus_per_node: pool.gpus_per_node,
            task_slots: pool.task_slots,
            walltime_max_s: pool.walltime_max_s,
            certifications: factory.certifications.clone(),
            carbon_g_per_kwh: factory.carbon_g_per_kwh,
            price_milli_eur_per_gpu_hour: factory.price_milli_eur_per_gpu_hour,
            city: factory.city.clone(),
            until: None,
            keeps_leases: self.keeps_leases(factory),
        }
    }

    /// Finds out what `auto` comes to here: offers say what follows from it.
    pub fn settle_isolation(&mut self) {
        if self.factories.iter().any(Factory::is_local) {
            self.local.isolation = self.local.isolation.found(self.local.run_as);
        }
    }

    /// Only what runs on the gateway's own machine is stopped without the gateway, and a plain process can kill whoever would
    /// stop it.
    fn keeps_leases(&self, factory: &Factory) -> bool {
        factory.is_local() && self.local.isolation != Isolation::Process
    }

    fn resolve(&mut self, base: &Path) {
        let Keys { signing, peer_cert, peer_key, public_cert, public_key, pseudonym_secret } = &mut self.keys;
        let named = [
            &mut self.data_dir,
            &mut self.genesis,
            signing,
            peer_cert,
            peer_key,
            public_cert,
            public_key,
            pseudonym_secret,
        ];
        let optional = self.policy.iter_mut().map(|policy| &mut policy.cedar);
        let LocalDriver { file_roots, https_ca_file, attempts_dir, .. } = &mut self.local;
        let local = file_roots.iter_mut().chain(https_ca_file).chain(attempts_dir);
        for path in named.into_iter().chain(optional).chain(local).chain(&mut self.bundle) {
            *path = base.join(&*path);
        }
        for factory in &mut self.factories {
            factory.slurm.iter_mut().for_each(|slurm| slurm.resolve(base));
            factory.kubernetes.iter_mut().for_each(|kubernetes| kubernetes.resolve(base));
        }
    }

    /// Bounds what is multiplied and numbered here; the registry checks the rest of an offer.
    fn refuse_excess(&self, path: &Path) -> Result<(), BadConfig> {
        let offers = self.offers();
        let pools = u32::try_from(offers.len()).unwrap_or(u32::MAX);
        let pools = (self.gateway.to_string(), "pool", pools, OFFERS_PER_STATE_MAX as u32);
        let of_each = offers.iter().flat_map(|offer| {
            [("nodes", offer.nodes, NODES_PER_POOL_MAX), ("gpus_per_node", offer.gpus_per_node, GPUS_PER_NODE_MAX)]
                .map(|(what, found, limit)| (offer.pool.to_string(), what, found, limit))
        });
        match of_each.chain([pools]).find(|(_, _, found, limit)| found > limit) {
            Some((name, what, found, limit)) => {
                Err(BadConfig::TooLarge { path: path.to_owned(), name, what, found, limit })
            }
            None => Ok(()),
        }
    }

    fn refuse_duplicates(&self, path: &Path) -> Result<(), BadConfig> {
        let mut seen = BTreeMap::new();
        for offer in self.offers() {
            if seen.insert(offer.pool.to_string(), ()).is_some() {
                return Err(BadConfig::Twice { path: path.to_owned(), name: offer.pool.to_string() });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::{KubernetesSettings, SlurmSettings};

    const GOOD: &str = r#"
gateway = "FR/fr-1"
data_dir = "data"
genesis = "../genesis.json"
public_listen = "127.0.0.1:0"
peer_listen = "127.0.0.1:0"

[keys]
signing = "signing.pem"
peer_cert = "peer.pem"
peer_key = "peer.key"
public_cert = "public.pem"
public_key = "public.key"
pseudonym_secret = "pseudonym.secret"

[[factory]]
name = "jean-zay"
city = "Orsay"
certifications = ["HDS"]

[[factory.pool]]
name = "h100-80"
model = "H100-80"
vendor = "NVIDIA"
memory_gib = 80
nodes = 364
gpus_per_node = 4
"#;

    fn check(text: &str) -> Result<Config, String> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("gateway.toml");
        std::fs::write(&path, text).expect("a written file");
        Config::read(&path).map_err(|bad| bad.to_string())
    }

    #[test]
    fn a_configuration_becomes_offers_and_absolute_paths() {
        let config = check(GOOD).expect("a good configuration");
        assert!(config.data_dir.is_absolute());
        let offers = config.offers();
        assert_eq!(offers.len(), 1);
        assert_eq!(offers[0].pool.to_string(), "FR/jean-zay/h100-80");
        assert_eq!(offers[0].nodes, 364);
    }

    #[test]
    fn tasks_are_closed_in_unless_the_operator_says_otherwise() {
        let local = check(GOOD).expect("a good configuration").local;
        assert_eq!((local.isolation, local.run_as), (Isolation::Bubblewrap, None));
        let text = "[local]\nisolation = \"auto\"\nrun_as = { uid = 990, gid = 991 }\nattempts_dir = \"a\"\n";
        let local = check(&format!("{GOOD}{text}")).expect("a good configuration").local;
        assert_eq!((local.isolation, local.run_as), (Isolation::Auto, Some(RunAs { uid: 990, gid: 991 })));
        assert!(local.attempts_dir.expect("a folder").is_absolute());
        assert_eq!(local.disk_reserve_gib, 1, "what is not named keeps its default");
    }

    #[test]
    fn a_factory_promises_to_end_what_must_not_run_twice_only_if_it_can() {
        let kept =
            |local: &str| check(&format!("{GOOD}{local}")).expect("a good configuration").offers()[0].keeps_leases;
        assert!(kept(""));
        assert!(!kept("[local]\nisolation = \"process\"\n"));
    }

    const SLURM: &str = r#"slurm = { partition = "federated", gres = "gpu:h100" }

[factory.slurm]
url = "http://slurm.example:6820"
account = "entente"
token_command = ["/usr/local/bin/entente-token"]
spool = "/shared/entente/spool"
accounts = "accounts.toml"
program = "/shared/entente/bin/entente"
launcher = ["apptainer", "exec", "--nv", "--bind={root}/{top}:/{top}", "--pwd={workdir}", "docker://{image}"]
file_roots = ["/shared/data"]
"#;

    #[test]
    fn a_factory_with_slurm_has_pools_that_slurm_knows() {
        let settings = |text: &str| {
            let config = check(text)?;
            SlurmSettings::of(&config, &config.factories[0]).map_err(|bad| bad.to_string())
        };
        assert!(settings(GOOD).expect("settings").is_none());
        let slurm = settings(&format!("{GOOD}{SLURM}")).expect("settings").expect("a cluster");
        assert_eq!(slurm.pools[0].id.to_string(), "FR/jean-zay/h100-80");
        assert_eq!((slurm.pools[0].gres.to_string().as_str(), slurm.pools[0].nodes), ("gpu:h100", 364));
        assert!(slurm.accounts.is_absolute() && slurm.journal.ends_with("data/slurm/jean-zay"));
        for (good, bad, reason) in [
            ("slurm = {", "# slurm = {", "needs slurm ="),
            ("\"gpu:h100\"", "\"gpu:h100:4\"", "not a name of GPUs"),
            ("account = \"entente\"", "account = \"root\"", "not a local name"),
            ("program =", "token_file = \"/run/{user}\"\nprogram =", "one of them"),
            ("spool = \"/shared/entente/spool\"\n", "", "spool"),
        ] {
            let text = format!("{GOOD}{SLURM}").replace(good, bad);
            assert!(settings(&text).is_err_and(|why| why.contains(reason)), "{bad}");
        }
        let (pool, _) = SLURM.split_once('\n').expect("lines");
        assert!(settings(&format!("{GOOD}{pool}\n")).is_err_and(|why| why.contains("has no [factory.slurm]")));
    }

    const KUBERNETES: &str = r#"kubernetes = { resource = "nvidia.com/gpu", node_labels = { gpu = "h100" } }

[factory.kubernetes]
kubeconfig = "kubeconfig"
namespaces = "namespaces.toml"
queue = "federation"
"#;

    #[test]
    fn a_factory_with_kubernetes_has_pools_that_kubernetes_knows() {
        let settings = |text: &str| {
            let config = check(text)?;
            KubernetesSettings::of(&config, &config.factories[0]).map_err(|bad| bad.to_string())
        };
        assert!(settings(GOOD).expect("settings").is_none());
        let kubernetes = settings(&format!("{GOOD}{KUBERNETES}")).expect("settings").expect("a cluster");
        let labels = kubernetes.pools[0].node_labels.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        assert_eq!(labels.collect::<Vec<_>>(), [("gpu", "h100")]);
        assert_eq!((kubernetes.pools[0].nodes, kubernetes.start.as_secs()), (364, 600));
        assert!(kubernetes.namespaces.is_absolute() && kubernetes.kubeconfig.is_some_and(|it| it.is_absolute()));
        assert!(kubernetes.journal.ends_with("data/kubernetes/jean-zay"));
        for (good, bad, reason) in [
            ("kubernetes = {", "# kubernetes = {", "needs kubernetes ="),
            ("\"nvidia.com/gpu\"", "\"gpu\"", "not an extended resource"),
            ("{ gpu = \"h100\" }", "{}", "needs node_labels"),
            ("namespaces = \"namespaces.toml\"\n", "", "namespaces"),
            ("namespaces = ", "start_min = 0\nnamespaces = ", "nonzero"),
            ("queue = \"federation\"", "queue = \"night shift\"", "night shift"),
            ("\"h100\" }", "\"h100 80\" }", "h100 80"),
            ("\"h100\" } }", "\"h100\" }, tolerate = [\"a=b\"] }", "a=b"),
            ("\"h100\" } }", "\"h100\" }, runtime_class = \"Not A Name\" }", "Not A Name"),
        ] {
            let text = format!("{GOOD}{KUBERNETES}").replace(good, bad);
            assert!(settings(&text).is_err_and(|why| why.contains(reason)), "{bad}");
        }
        let (pool, _) = KUBERNETES.split_once('\n').expect("lines");
        assert!(settings(&format!("{GOOD}{pool}\n")).is_err_and(|why| why.contains("has no [factory.kubernetes]")));
        let (_, slurm) = SLURM.split_once('\n').expect("lines");
        assert!(settings(&format!("{GOOD}{KUBERNETES}{slurm}")).is_err_and(|why| why.contains("one scheduler")));
    }

    #[test]
    fn an_operator_may_say_where_a_peer_is_dialled() {
        let text = format!("{GOOD}\n[peer_addresses]\n\"DE/de-1\" = \"10.8.0.2:7443\"\n");
        let config = check(&text).expect("a good configuration");
        let (peer, address) = config.peer_addresses.first_key_value().expect("an address");
        assert_eq!((peer.to_string().as_str(), address.as_str()), ("DE/de-1", "10.8.0.2:7443"));
        let nobody = text.replace("DE/de-1", "somebody");
        assert!(check(&nobody).is_err_and(|why| why.contains("somebody")));
    }

    #[test]
    fn a_misspelt_key_is_refused() {
        let text = GOOD.replace("gpus_per_node", "gpu_per_node");
        assert!(check(&text).is_err_and(|bad| bad.contains("gpu_per_node")));
    }

    #[test]
    fn more_than_the_registry_takes_is_refused() {
        for (good, bad) in [("nodes = 364", "nodes = 10001"), ("gpus_per_node = 4", "gpus_per_node = 4000000000")] {
            assert!(check(&GOOD.replace(good, bad)).is_err_and(|why| why.contains(bad)), "{bad}");
        }
    }

    #[test]
    fn a_pool_named_twice_is_refused() {
        let factory = &GOOD[GOOD.find("[[factory]]").expect("a factory")..];
        assert!(check(&format!("{GOOD}{factory}")).is_err_and(|bad| bad.contains("twice")));
    }
}
