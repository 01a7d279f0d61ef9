//! Sandboxes: how a step's command is wrapped before it is started.
//!
//! `bubblewrap` closes it in. `process` does not: it gives a working folder, a clean environment and limits.
//! Absolute paths in a command are then the machine's; a task finds its own files below `$ENTENTE_ROOT`, which
//! is empty in bubblewrap, so that `$ENTENTE_ROOT/out/a` is right in both.
//!
//! Images are not unpacked in either: commands are the programs of the machine.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;

use serde::{Deserialize, Serialize};
use tokio::process::Command;

use super::bubblewrap;
use super::folder::Folder;
use super::order::{Order, OrderStep};
use super::{gpus, launcher};

pub(super) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What an operator asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// Bubblewrap if it works here, else plain processes; every record says which.
    Auto,
    /// Bubblewrap, or the gateway does not start.
    #[default]
    Bubblewrap,
    /// Plain processes.
    Process,
}

/// An account to run steps as, for a gateway that runs as root. It must be able to enter the attempts' folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunAs {
    pub uid: u32,
    pub gid: u32,
}

/// What is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Sandbox {
    Bubblewrap,
    Process,
    /// As the launcher of the site does it.
    Launcher,
}

/// A command, and what must stay open until it is started: the supervisor starts one child at a time.
pub(super) struct Wrapped {
    pub command: Command,
    _options: Option<File>,
}

impl Isolation {
    /// What it comes to on this machine: `Auto` is one of the others.
    pub fn found(self, run_as: Option<RunAs>) -> Isolation {
        match self {
            Isolation::Auto if self.choose(run_as) == Ok(Sandbox::Process) => Isolation::Process,
            Isolation::Auto => Isolation::Bubblewrap,
            asked => asked,
        }
    }

    /// Tries bubblewrap once. `Err` says why it does not work although it was asked for.
    pub(super) fn choose(self, run_as: Option<RunAs>) -> Result<Sandbox, String> {
        match self {
            Isolation::Process => Ok(Sandbox::Process),
            Isolation::Auto | Isolation::Bubblewrap => self.accept(bubblewrap::try_out(run_as)),
        }
    }

    fn accept(self, tried: Result<(), String>) -> Result<Sandbox, String> {
        match (tried, self) {
            (Ok(()), _) => Ok(Sandbox::Bubblewrap),
            (Err(reason), Isolation::Bubblewrap) => Err(reason),
            (Err(reason), _) => {
                tracing::warn!(%reason, "bubblewrap does not work here: tasks run as plain processes");
                Ok(Sandbox::Process)
            }
        }
    }
}

impl Sandbox {
    pub fn as_str(self) -> &'static str {
        match self {
            Sandbox::Bubblewrap => "bubblewrap",
            Sandbox::Process => "process",
            Sandbox::Launcher => "launcher",
        }
    }

    /// Whether steps see the machine's network whatever the rules say.
    pub fn shares_network(self) -> bool {
        self != Sandbox::Bubblewrap
    }

    /// The command that runs a step; its streams and limits are the caller's.
    pub fn wrap(self, order: &Order, step: &OrderStep, folder: &Folder) -> io::Result<Wrapped> {
        let root = folder.root();
        let (mut command, options) = match self {
            Sandbox::Bubblewrap => {
                let (command, options) = bubblewrap::command(order, step, folder)?;
                (command, Some(options))
            }
            Sandbox::Process | Sandbox::Launcher => {
                let words = match &order.rules.launcher {
                    Some(launcher) => &launcher.command(order, step, &root),
                    None => &step.command,
                };
                let variables = match &order.rules.launcher {
                    Some(launcher) => launcher::environment(order, step, &root, launcher.mounts()),
                    None => environment(order, step, root.as_os_str()),
                };
                let mut command = Command::new(&words[0]);
                command.args(&words[1..]).env_clear().envs(variables).current_dir(root.join(step.workdir.below()));
                (command, None)
            }
        };
        if let Some(account) = order.rules.run_as {
            command.uid(account.uid).gid(account.gid);
        }
        Ok(Wrapped { command, _options: options })
    }
}

/// Exactly these variables: ours to start with, then the task's, then those that a task cannot change.
pub(super) fn environment(order: &Order, step: &OrderStep, root: &OsStr) -> Vec<(OsString, OsString)> {
    let mut temporary = root.to_owned();
    temporary.push("/tmp");
    let first = [("PATH", PATH.into()), ("HOME", temporary.clone()), ("TMPDIR", temporary)];
    let last = [
        ("CUDA_VISIBLE_DEVICES", gpus::visible(&order.devices).into()),
        ("ENTENTE_GPUS", order.devices.len().to_string().into()),
        ("ENTENTE_JOB", order.job.to_string().into()),
        ("ENTENTE_ATTEMPT", order.attempt.to_string().into()),
        ("ENTENTE_ROOT", root.to_owned()),
    ];
    let named = |(name, value): (&str, OsString)| (name.into(), value);
    let tasks = step.env.iter().map(|(name, value)| (name.into(), value.into()));
    let first = first.into_iter().map(named);
    first.chain(tasks).chain(last.into_iter().map(named)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn less_than_bubblewrap_is_only_what_was_asked_for() {
        let missing = || Err("bwrap does not start".to_owned());
        assert_eq!(Isolation::default().accept(missing()), Err("bwrap does not start".to_owned()));
        assert_eq!(Isolation::default().accept(Ok(())), Ok(Sandbox::Bubblewrap));
        assert_eq!(Isolation::Auto.accept(missing()), Ok(Sandbox::Process));
        assert_eq!(Isolation::Auto.accept(Ok(())), Ok(Sandbox::Bubblewrap));
    }
}
