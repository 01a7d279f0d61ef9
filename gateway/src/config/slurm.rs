//! `[factory.slurm]` and a pool's `slurm`: a factory whose scheduler is Slurm.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::driver::{GresName, LocalName};

/// A factory's cluster.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlurmFactory {
    /// slurmrestd: `http://host:6820`, `https://host:6820` or `unix:/run/slurmrestd/rest.sock`.
    pub url: String,
    /// Roots for an `https` url.
    pub ca_file: Option<PathBuf>,
    /// The local account that looks at nodes and jobs; an ordinary one.
    pub account: LocalName,
    /// A program that prints a user's token; the user's name is appended.
    #[serde(default)]
    pub token_command: Vec<String>,
    /// Instead: a file per user, with `{user}` in its name. Without either, slurmrestd has to know the gateway by a
    /// unix socket, and every job runs as `account`.
    pub token_file: Option<String>,
    /// A folder that the gateway shares with the nodes, under the same path; in it one folder per local user.
    pub spool: PathBuf,
    /// Which local user a researcher is.
    pub accounts: PathBuf,
    /// `entente`, as the nodes have it; without it, where this program lies.
    pub program: Option<PathBuf>,
    /// What is put before a task's command.
    #[serde(default)]
    pub launcher: Vec<String>,
    /// Folders that `file://` inputs and outputs may name, as the nodes have them.
    #[serde(default)]
    pub file_roots: Vec<PathBuf>,
    /// Hosts (`name` or `name:port`) that `http(s)://` inputs and outputs may name.
    #[serde(default)]
    pub http_hosts: Vec<String>,
    /// Roots for `https://` inputs and outputs, as the nodes have them.
    pub https_ca_file: Option<PathBuf>,
    /// Disk of the spool that no task may use up.
    #[serde(default)]
    pub disk_reserve_gib: u32,
    /// Time for inputs and outputs that a job is given on top of its walltime.
    #[serde(default = "default_staging_min")]
    pub staging_min: u32,
}

/// A pool's GPUs, as Slurm calls them.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlurmPartition {
    /// `federated`
    pub partition: String,
    /// `gpu:h100`, or `gpu` where they have no type.
    pub gres: GresName,
    /// Quality of service of the federation's jobs.
    pub qos: Option<String>,
    /// Features that the nodes must have.
    pub constraint: Option<String>,
    /// A reservation that the pool is.
    pub reservation: Option<String>,
}

fn default_staging_min() -> u32 {
    10
}

impl SlurmFactory {
    /// Makes the paths that are the gateway's own absolute. Those that the nodes have as well must be so already.
    pub(super) fn resolve(&mut self, base: &Path) {
        for path in [&mut self.accounts, &mut self.spool].into_iter().chain(&mut self.ca_file) {
            *path = base.join(&*path);
        }
    }
}
