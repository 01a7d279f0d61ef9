//! Settings of a Slurm driver: one cluster, and the pools that it lends.

use std::path::PathBuf;
use std::time::Duration;

use federation::PoolId;

use super::accounts::{BadAccounts, LocalName};
use super::gres::GresName;
use super::rest::BadAddress;
use crate::config::{Config, Factory, Pool};
use crate::driver::BadLauncher;

/// What a Slurm driver is told.
#[derive(Clone, Debug)]
pub struct SlurmSettings {
    /// Whose cluster it is, for the gateway's own log.
    pub name: String,
    /// Where the driver remembers what it has submitted. On a disk of the gateway's own; one driver per folder.
    pub journal: PathBuf,
    /// slurmrestd: `http://host:port`, `https://host:port` or `unix:/path`.
    pub url: String,
    /// Roots for an `https` url.
    pub ca_file: Option<PathBuf>,
    /// The account that looks at nodes and jobs.
    pub reader: LocalName,
    pub tokens: TokenSource,
    /// On the file system that the gateway shares with the nodes; in it one folder per local user.
    pub spool: PathBuf,
    /// Which local user a researcher is.
    pub accounts: PathBuf,
    /// `entente`, as the nodes have it.
    pub program: PathBuf,
    /// What is put before a task's command; `{image}`, `{root}`, `{top}` and `{workdir}` stand for the task's own.
    pub launcher: Vec<String>,
    /// Folders that `file://` inputs and outputs may name.
    pub file_roots: Vec<PathBuf>,
    /// Hosts that `http(s)://` may name: `name` (then the scheme's own port) or `name:port`.
    pub http_hosts: Vec<String>,
    /// Roots for `https://` inputs and outputs, as the nodes have them.
    pub https_ca_file: Option<PathBuf>,
    /// Bytes of the spool's disk that no attempt may use up.
    pub disk_reserve: u64,
    /// Time for inputs and outputs that a job is given on top of its walltime.
    pub staging: Duration,
    pub pools: Vec<SlurmPool>,
}

/// Where tokens come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenSource {
    /// None are needed: slurmrestd sees by its socket who calls, so all jobs run as the reader.
    Socket,
    /// A program and its first arguments; the user's name is appended. It prints a token.
    Command(Vec<String>),
    /// A file per user, whose name has `{user}` in it. Somebody else keeps it fresh.
    File(String),
}

/// GPUs of one type in one partition.
#[derive(Clone, Debug)]
pub struct SlurmPool {
    pub id: PoolId,
    pub partition: String,
    pub gres: GresName,
    /// Nodes that are lent, as the offer has them; so for the next two.
    pub nodes: u32,
    /// Devices per node, as they are sold.
    pub gpus_per_node: u32,
    pub task_slots: u32,
    /// What Slurm counts per device: 2 for an MI250X.
    pub units_per_gpu: u32,
    pub qos: Option<String>,
    pub constraint: Option<String>,
    pub reservation: Option<String>,
}

impl SlurmSettings {
    /// The settings of a factory, as it is configured; `None` for one that has another scheduler.
    pub fn of(config: &Config, factory: &Factory) -> Result<Option<SlurmSettings>, NoSlurm> {
        let Some(slurm) = &factory.slurm else {
            return match factory.pools.iter().find(|pool| pool.slurm.is_some()) {
                Some(pool) => Err(NoSlurm::NoCluster(pool.name.to_string())),
                None => Ok(None),
            };
        };
        let tokens = match (&slurm.token_command[..], &slurm.token_file) {
            ([], None) => TokenSource::Socket,
            ([], Some(path)) => TokenSource::File(path.clone()),
            (words, None) => TokenSource::Command(words.to_vec()),
            (_, Some(_)) => return Err(NoSlurm::TwoTokens),
        };
        let own = std::env::current_exe();
        let program = slurm.program.clone().map_or(own, Ok);
        let program = program.map_err(|cause| NoSlurm::Folder { path: "this program's own file".into(), cause })?;
        let pool = |pool: &Pool| {
            let Some(part) = &pool.slurm else {
                return Err(NoSlurm::NoPartition(pool.name.to_string()));
            };
            Ok(SlurmPool {
                id: PoolId { factory: config.factory_id(factory), name: pool.name },
                partition: part.partition.clone(),
                gres: part.gres.clone(),
                nodes: pool.nodes,
                gpus_per_node: pool.gpus_per_node,
                task_slots: pool.task_slots,
                units_per_gpu: pool.scheduler_units,
                qos: part.qos.clone(),
                constraint: part.constraint.clone(),
                reservation: part.reservation.clone(),
            })
        };
        Ok(Some(SlurmSettings {
            name: factory.name.to_string(),
            journal: config.data_dir.join("slurm").join(factory.name.to_string()),
            url: slurm.url.clone(),
            ca_file: slurm.ca_file.clone(),
            reader: slurm.account.clone(),
            tokens,
            spool: slurm.spool.clone(),
            accounts: slurm.accounts.clone(),
            program,
            launcher: slurm.launcher.clone(),
            file_roots: slurm.file_roots.clone(),
            http_hosts: slurm.http_hosts.clone(),
            https_ca_file: slurm.https_ca_file.clone(),
            disk_reserve: u64::from(slurm.disk_reserve_gib) << 30,
            staging: Duration::from_secs(u64::from(slurm.staging_min) * 60),
            pools: factory.pools.iter().map(pool).collect::<Result<_, _>>()?,
        }))
    }
}

/// Why there is no driver. Always the operator's to mend.
#[derive(Debug, thiserror::Error)]
pub enum NoSlurm {
    #[error("its pool {0} needs slurm = {{ partition = \"…\", gres = \"…\" }}")]
    NoPartition(String),
    #[error("its pool {0} names a partition, and the factory has no [factory.slurm]")]
    NoCluster(String),
    #[error("token_command and token_file: one of them")]
    TwoTokens,
    #[error("cannot use {path}: {cause}")]
    Folder { path: PathBuf, cause: std::io::Error },
    #[error(transparent)]
    Address(#[from] BadAddress),
    #[error(transparent)]
    Accounts(#[from] BadAccounts),
    #[error("{0} cannot be written in a batch script: it needs an absolute path of plain characters")]
    Path(PathBuf),
    #[error(transparent)]
    Launcher(#[from] BadLauncher),
    #[error("token_command needs a program")]
    TokenCommand,
    #[error("token_file needs {{user}} in it, so that every account has its own")]
    TokenFile,
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn settings() -> SlurmSettings {
        SlurmSettings {
            name: "jean-zay".into(),
            journal: "/var/lib/entente/slurm".into(),
            url: "http://127.0.0.1:6820".into(),
            ca_file: None,
            reader: LocalName::parse("entente").expect("a name"),
            tokens: TokenSource::Socket,
            spool: "/spool".into(),
            accounts: "/etc/entente/accounts.toml".into(),
            program: "/opt/entente".into(),
            launcher: vec![],
            file_roots: vec![],
            http_hosts: vec![],
            https_ca_file: None,
            disk_reserve: 0,
            staging: Duration::from_secs(600),
            pools: vec![pool("gpu:h100", 2, 4, 1)],
        }
    }

    pub fn pool(gres: &str, nodes: u32, gpus_per_node: u32, units_per_gpu: u32) -> SlurmPool {
        SlurmPool {
            id: PoolId::parse("FR/jean-zay/h100-80").expect("a pool"),
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
}
