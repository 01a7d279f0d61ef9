//! Settings of the local driver, and what of them is found out when it starts.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use federation::PoolId;

use super::order::Rules;
use super::sandbox::{Isolation, RunAs, Sandbox};
use crate::config::Config;

/// What the local driver is told.
#[derive(Clone, Debug)]
pub struct LocalSettings {
    /// Where attempts live; one driver per folder.
    pub attempts: PathBuf,
    pub pools: Vec<LocalPool>,
    pub isolation: Isolation,
    /// Give tasks in bubblewrap the machine's network.
    pub network: bool,
    /// For a gateway that runs as root.
    pub run_as: Option<RunAs>,
    /// Folders that `file://` inputs and outputs may name.
    pub file_roots: Vec<PathBuf>,
    /// Hosts that `http(s)://` may name: `name` (then the scheme's own port) or `name:port`.
    pub http_hosts: Vec<String>,
    /// Roots for `https://`; without it there is no https.
    pub https_ca_file: Option<PathBuf>,
    /// Bytes of the attempts' disk that no attempt may use up.
    pub disk_reserve: u64,
    /// Program and first arguments that run an attempt; its folder is appended.
    pub supervisor: Vec<OsString>,
}

/// GPUs that are declared, not detected: numbered over all pools in this order.
#[derive(Clone, Debug)]
pub struct LocalPool {
    pub id: PoolId,
    pub nodes: u32,
    pub gpus_per_node: u32,
    /// Attempts without a GPU that run at once.
    pub task_slots: u32,
}

/// Why there is no driver. Always the operator's to mend.
#[derive(Debug, thiserror::Error)]
pub enum NoDriver {
    #[error("cannot use {path}: {cause}")]
    Folder { path: PathBuf, cause: io::Error },
    #[error(
        "tasks cannot be closed in, since bubblewrap does not work here: {0}. Install the package bubblewrap, \
         or accept less: in [local], isolation = \"auto\" takes plain processes where bubblewrap does not work, \
         isolation = \"process\" always"
    )]
    Isolation(String),
    #[error("[local] run_as needs a gateway that runs as root, and an account that is not")]
    RunAs,
    #[error("the account of [local] run_as cannot enter {path}: {reason}")]
    RunAsOutside { path: PathBuf, reason: String },
    #[error("a supervisor needs a program")]
    Supervisor,
}

impl LocalSettings {
    /// The settings of a gateway, as it is configured: for the factories that have no scheduler of their own.
    pub fn of(config: &Config) -> LocalSettings {
        let factories = config.factories.iter().filter(|it| it.is_local());
        let pools = factories.flat_map(|factory| config.offers_of(factory)).map(|offer| LocalPool {
            id: offer.pool,
            nodes: offer.nodes,
            gpus_per_node: offer.gpus_per_node,
            task_slots: offer.task_slots,
        });
        let local = &config.local;
        LocalSettings {
            attempts: local.attempts_dir.clone().unwrap_or_else(|| config.data_dir.join("attempts")),
            pools: pools.collect(),
            isolation: local.isolation,
            network: false,
            run_as: local.run_as,
            file_roots: local.file_roots.clone(),
            http_hosts: local.http_hosts.clone(),
            https_ca_file: local.https_ca_file.clone(),
            disk_reserve: u64::from(local.disk_reserve_gib) << 30,
            // The running program itself, also after its file was replaced by an upgrade.
            supervisor: vec!["/proc/self/exe".into(), "run-attempt".into()],
        }
    }

    /// Makes the attempts' folder, finds out what works here, and returns the settings with real paths.
    pub(super) fn prepare(self) -> Result<(LocalSettings, Rules), NoDriver> {
        if self.supervisor.is_empty() {
            return Err(NoDriver::Supervisor);
        }
        let attempts = make_private(&self.attempts, self.run_as);
        let attempts = attempts.map_err(|cause| NoDriver::Folder { path: self.attempts.clone(), cause })?;
        if let Some(account) = self.run_as {
            try_to_enter(&attempts, account)?;
        }
        let rules = self.rules()?;
        Ok((LocalSettings { attempts, ..self }, rules))
    }

    fn rules(&self) -> Result<Rules, NoDriver> {
        let real =
            |path: &PathBuf| fs::canonicalize(path).map_err(|cause| NoDriver::Folder { path: path.clone(), cause });
        let file_roots: Vec<PathBuf> = self.file_roots.iter().map(real).collect::<Result<_, _>>()?;
        let sandbox = self.isolation.choose(self.run_as);
        let sandbox = sandbox.map_err(NoDriver::Isolation)?;
        if sandbox == Sandbox::Process && self.run_as.is_none() {
            tracing::warn!("tasks run under the gateway's own account and can do what it can");
        }
        Ok(Rules {
            sandbox,
            network: self.network,
            run_as: self.run_as,
            file_roots,
            http_hosts: self.http_hosts.clone(),
            https_ca_file: self.https_ca_file.as_ref().map(real).transpose()?,
            disk_reserve: self.disk_reserve,
            launcher: None,
        })
    }
}

/// Makes the folder of all attempts, closed to other accounts, and returns its real path.
fn make_private(attempts: &Path, run_as: Option<RunAs>) -> io::Result<PathBuf> {
    fs::create_dir_all(attempts)?;
    let mode = if run_as.is_some() { 0o711 } else { 0o700 };
    fs::set_permissions(attempts, Permissions::from_mode(mode))?;
    fs::canonicalize(attempts)
}

/// Every task would fail, one by one, with a reason that no operator reads.
fn try_to_enter(attempts: &Path, account: RunAs) -> Result<(), NoDriver> {
    if !nix::unistd::geteuid().is_root() || account.uid == 0 || account.gid == 0 {
        return Err(NoDriver::RunAs);
    }
    let tried = Command::new("/bin/sh")
        .args(["-c", "cd -- \"$0\""])
        .arg(attempts)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .uid(account.uid)
        .gid(account.gid)
        .output();
    let outside = |reason| NoDriver::RunAsOutside { path: attempts.to_owned(), reason };
    match tried {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(outside(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
        Err(cause) => Err(outside(cause.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operator_without_bubblewrap_reads_what_to_do() {
        let message = NoDriver::Isolation("bwrap does not start".into()).to_string();
        for part in ["bwrap does not start", "package bubblewrap", "isolation = \"auto\"", "isolation = \"process\""] {
            assert!(message.contains(part), "{message}");
        }
    }

    const KEYS: [&str; 6] = ["signing", "peer_cert", "peer_key", "public_cert", "public_key", "pseudonym_secret"];

    fn check(local: &str) -> LocalSettings {
        let keys: String = KEYS.map(|name| format!("{name} = \"k\"\n")).concat();
        let text = format!(
            "gateway = \"FR/fr-1\"\ndata_dir = \"/data\"\ngenesis = \"g\"\npublic_listen = \"127.0.0.1:0\"\n\
             peer_listen = \"127.0.0.1:0\"\n[keys]\n{keys}[local]\n{local}"
        );
        LocalSettings::of(&toml::from_str(&text).expect("a configuration"))
    }

    #[test]
    fn what_the_operator_says_arrives() {
        let settings = check("");
        assert_eq!((settings.attempts, settings.disk_reserve), (PathBuf::from("/data/attempts"), 1 << 30));
        let settings = check("attempts_dir = \"/fast\"\ndisk_reserve_gib = 5\nrun_as = { uid = 7, gid = 8 }\n");
        assert_eq!((settings.attempts, settings.disk_reserve), (PathBuf::from("/fast"), 5 << 30));
        assert_eq!(settings.run_as, Some(RunAs { uid: 7, gid: 8 }));
    }
}
