//! An order as the supervisor runs it: a work order parsed against the rules of this machine.
//!
//! Invariants: every path is absolute, without `..`, and not among the system's own; every URL names a
//! folder or host that the factory allows; no argument or variable has a zero byte.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use federation::{JobId, PoolId};
use serde::{Deserialize, Serialize};

use super::folder::Key;
use super::glob::has_wildcard;
use super::launcher::Launcher;
use super::place::{BadUrl, Place};
use super::record::STEPS_MAX;
use super::sandbox::{RunAs, Sandbox};
use super::{SYSTEM_TOPS, Source, StageIn, StageKind, StageOut, Step, TOPS_MAX, WorkOrder};

/// Linux: PATH_MAX.
const PATH_BYTES_MAX: usize = 4_096;
/// Where a task works that does not say where.
const WORKDIR: &str = "/work";
/// Why a task cannot be run here. Always the task's to mend.
///
/// Every state may read it, so it names places in the task by number and never what is written there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadOrder {
    #[error("the pool is not one of this gateway")]
    NoPool,
    #[error("the pool has {all} GPUs, the task needs {need}")]
    Gpus { all: u32, need: u32 },
    #[error("the pool takes no tasks without a GPU")]
    NoSlots,
    #[error("a task has 1 to {STEPS_MAX} executors")]
    Steps,
    #[error("executor {0} has no command")]
    NoCommand(usize),
    #[error("executor {0} has a zero byte in its command or environment")]
    ZeroByte(usize),
    #[error("executor {0} has an environment variable without a name or with = in its name")]
    VariableName(usize),
    #[error("a path of executor {0} {1}")]
    StepPath(usize, BadPath),
    #[error("the path of volume {0} {1}")]
    VolumePath(usize, BadPath),
    #[error("the path of input {0} {1}")]
    InputPath(usize, BadPath),
    #[error("the path or path_prefix of output {0} {1}")]
    OutputPath(usize, BadPath),
    #[error("output {0} has wildcards, so it needs a path_prefix")]
    NoPrefix(usize),
    #[error("the URL of input {0} cannot be used: {1}")]
    InputUrl(usize, BadUrl),
    #[error("the URL of output {0} cannot be used: {1}")]
    OutputUrl(usize, BadUrl),
    #[error("input {0}: content cannot be a directory")]
    ContentDirectory(usize),
    #[error("its paths lie in more than {TOPS_MAX} folders of the root")]
    Tops,
}

/// Why a text is not a path of a task's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadPath {
    #[error("is not an absolute path without ..")]
    Form,
    #[error("belongs to the system")]
    System,
}

/// What the machine allows and how it runs tasks. Travels with the order, so that a supervisor needs nothing else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Rules {
    pub sandbox: Sandbox,
    /// Without it, tasks in bubblewrap have no network.
    pub network: bool,
    pub run_as: Option<RunAs>,
    /// Real paths.
    pub file_roots: Vec<PathBuf>,
    /// `name` (then the scheme's own port) or `name:port`.
    pub http_hosts: Vec<String>,
    pub https_ca_file: Option<PathBuf>,
    /// Disk that no attempt may use up, in bytes.
    #[serde(default)]
    pub disk_reserve: u64,
    /// Set where a scheduler starts supervisors: as the task's own account, on devices of its choice, in a folder that
    /// the gateway shares with the nodes.
    #[serde(default)]
    pub launcher: Option<Launcher>,
}

/// What runs.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Order {
    pub job: JobId,
    pub attempt: u32,
    pub pool: PoolId,
    /// Numbers of the devices that are this attempt's alone until it is done.
    pub devices: Vec<u32>,
    #[serde(default)]
    pub gpus: u32,
    pub ram_gib: u32,
    pub disk_gib: u32,
    pub walltime_s: u32,
    pub steps: Vec<OrderStep>,
    pub inputs: Vec<Input>,
    pub outputs: Vec<Output>,
    pub volumes: Vec<TaskPath>,
    /// For what must not run twice: until when it may go on at first.
    #[serde(default)]
    pub lease_until_ms: Option<u64>,
    pub rules: Rules,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OrderStep {
    pub image: String,
    pub command: Vec<String>,
    pub workdir: TaskPath,
    pub stdin: Option<TaskPath>,
    pub stdout: Option<TaskPath>,
    pub stderr: Option<TaskPath>,
    pub env: BTreeMap<String, String>,
    pub ignore_error: bool,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Input {
    pub path: TaskPath,
    pub from: Origin,
    pub kind: StageKind,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Origin {
    Content(#[serde(with = "base64_text")] Vec<u8>),
    Place(Place),
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Output {
    pub url: String,
    pub to: Place,
    pub path: TaskPath,
    /// There if and only if `path` has wildcards.
    pub prefix: Option<TaskPath>,
    pub kind: StageKind,
}

/// An absolute path as the task sees it, without `.`, `..` and doubled slashes, and not a system's folder.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(super) struct TaskPath(String);

impl Order {
    /// Parses what was asked for against what is allowed. Devices are assigned by whoever claims the order.
    pub fn parse(work: WorkOrder, rules: Rules) -> Result<Order, BadOrder> {
        if work.executors.is_empty() || work.executors.len() > STEPS_MAX {
            return Err(BadOrder::Steps);
        }
        let steps = work.executors.into_iter().enumerate();
        let inputs = work.inputs.into_iter().enumerate();
        let outputs = work.outputs.into_iter().enumerate();
        let volumes = work.volumes.iter().enumerate();
        let volume =
            |(index, path): (usize, &String)| TaskPath::parse(path).map_err(|bad| BadOrder::VolumePath(index, bad));
        let order = Order {
            job: work.job,
            attempt: work.attempt,
            pool: work.pool,
            devices: Vec::new(),
            gpus: work.gpus,
            ram_gib: work.ram_gib,
            disk_gib: work.disk_gib,
            walltime_s: work.walltime_s,
            steps: steps.map(OrderStep::parse).collect::<Result<_, _>>()?,
            inputs: inputs.map(|it| Input::parse(it, &rules)).collect::<Result<_, _>>()?,
            outputs: outputs.map(|it| Output::parse(it, &rules)).collect::<Result<_, _>>()?,
            volumes: volumes.map(volume).collect::<Result<_, _>>()?,
            lease_until_ms: work.lease_until_ms,
            rules,
        };
        // `/tmp` is always there, and `/work` where a step names no folder.
        if order.tops().len() > TOPS_MAX + 2 { Err(BadOrder::Tops) } else { Ok(order) }
    }

    pub fn key(&self) -> Key {
        (self.job, self.attempt)
    }

    /// Folders that are there before the first step.
    pub fn folders(&self) -> BTreeSet<PathBuf> {
        let outputs = self.outputs.iter().filter_map(|it| match (&it.prefix, it.kind) {
            (Some(prefix), _) => Some(prefix.below()),
            (None, StageKind::Directory) => Some(it.path.below()),
            (None, StageKind::File) => it.path.below().parent(),
        });
        let workdirs = self.steps.iter().map(|step| step.workdir.below());
        let volumes = self.volumes.iter().map(TaskPath::below);
        let all = workdirs.chain(volumes).chain(outputs).chain([Path::new("tmp")]);
        all.filter(|path| !path.as_os_str().is_empty()).map(Path::to_owned).collect()
    }

    /// The top folders (`tmp`, `work`, …) that hold every path of the task: all that it can write.
    pub fn tops(&self) -> BTreeSet<String> {
        let streams = |step: &'_ OrderStep| [step.stdin.clone(), step.stdout.clone(), step.stderr.clone()];
        let streams = self.steps.iter().flat_map(streams).flatten();
        let workdirs = self.steps.iter().map(|step| step.workdir.clone());
        let staged = self.inputs.iter().map(|it| it.path.clone());
        let outputs = self.outputs.iter().map(|it| it.path.clone());
        streams
            .chain(workdirs)
            .chain(staged)
            .chain(outputs)
            .chain(self.volumes.iter().cloned())
            .map(|path| path.top().to_owned())
            .chain(["tmp".to_owned()])
            .collect()
    }
}

impl OrderStep {
    fn parse((index, step): (usize, Step)) -> Result<OrderStep, BadOrder> {
        if step.command.first().is_none_or(String::is_empty) {
            return Err(BadOrder::NoCommand(index));
        }
        let variables = step.env.iter().flat_map(|(name, value)| [name, value]);
        if step.command.iter().chain(variables).any(|it| it.contains('\0')) {
            return Err(BadOrder::ZeroByte(index));
        }
        if step.env.keys().any(|name| name.is_empty() || name.contains('=')) {
            return Err(BadOrder::VariableName(index));
        }
        let path = |path: Option<String>| {
            let parsed = path.map(|it| TaskPath::parse(&it)).transpose();
            parsed.map_err(|bad| BadOrder::StepPath(index, bad))
        };
        Ok(OrderStep {
            image: step.image,
            command: step.command,
            workdir: path(step.workdir)?.unwrap_or_else(|| TaskPath(WORKDIR.to_owned())),
            stdin: path(step.stdin)?,
            stdout: path(step.stdout)?,
            stderr: path(step.stderr)?,
            env: step.env,
            ignore_error: step.ignore_error,
        })
    }
}

impl Input {
    fn parse((index, it): (usize, StageIn), rules: &Rules) -> Result<Input, BadOrder> {
        let from = match it.source {
            Source::Content(_) if it.kind == StageKind::Directory => {
                return Err(BadOrder::ContentDirectory(index));
            }
            Source::Content(bytes) => Origin::Content(bytes),
            Source::Url(url) => match Place::parse(&url, rules) {
                Ok(Place::Http { .. }) if it.kind == StageKind::Directory => {
                    return Err(BadOrder::InputUrl(index, BadUrl::HttpDirectory));
                }
                place => Origin::Place(place.map_err(|bad| BadOrder::InputUrl(index, bad))?),
            },
        };
        let path = TaskPath::parse(&it.path).map_err(|bad| BadOrder::InputPath(index, bad))?;
        Ok(Input { path, from, kind: it.kind })
    }
}

impl Output {
    fn parse((index, it): (usize, StageOut), rules: &Rules) -> Result<Output, BadOrder> {
        let wild = has_wildcard(&it.path);
        if wild && it.path_prefix.is_none() {
            return Err(BadOrder::NoPrefix(index));
        }
        let path = |text: &str| TaskPath::parse(text).map_err(|bad| BadOrder::OutputPath(index, bad));
        Ok(Output {
            to: Place::parse(&it.url, rules).map_err(|bad| BadOrder::OutputUrl(index, bad))?,
            url: it.url,
            path: path(&it.path)?,
            prefix: it.path_prefix.filter(|_| wild).map(|it| path(&it)).transpose()?,
            kind: it.kind,
        })
    }
}

impl TaskPath {
    pub fn parse(text: &str) -> Result<TaskPath, BadPath> {
        if text.len() > PATH_BYTES_MAX || text.contains('\0') || !text.starts_with('/') {
            return Err(BadPath::Form);
        }
        let mut path = String::new();
        for component in text.split('/').filter(|it| !matches!(*it, "" | ".")) {
            if component == ".." {
                return Err(BadPath::Form);
            }
            path.push('/');
            path.push_str(component);
        }
        let path = TaskPath(path);
        if path.top().is_empty() || has_wildcard(path.top()) {
            return Err(BadPath::Form);
        }
        if SYSTEM_TOPS.contains(&path.top()) {
            return Err(BadPath::System);
        }
        Ok(path)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The same below a root: `out/a` for `/out/a`.
    pub fn below(&self) -> &Path {
        Path::new(self.0.trim_start_matches('/'))
    }

    fn top(&self) -> &str {
        self.0.split('/').nth(1).unwrap_or_default()
    }
}

impl fmt::Debug for TaskPath {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

impl TryFrom<String> for TaskPath {
    type Error = BadPath;
    fn try_from(text: String) -> Result<TaskPath, BadPath> {
        TaskPath::parse(&text)
    }
}

impl From<TaskPath> for String {
    fn from(path: TaskPath) -> String {
        path.0
    }
}

/// Bytes in JSON: as base64, a third larger, not as a list of numbers, four times as large.
mod base64_text {
    use base64::{Engine, engine::general_purpose::STANDARD};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(bytes: &[u8], out: S) -> Result<S::Ok, S::Error> {
        out.serialize_str(&STANDARD.encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<Vec<u8>, D::Error> {
        STANDARD.decode(String::deserialize(input)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_absolute_and_the_tasks_own() {
        for (text, expected) in [("/out//a/./b", "/out/a/b"), ("/tmp", "/tmp"), ("/a b/ü", "/a b/ü")] {
            assert_eq!(TaskPath::parse(text).map(String::from).as_deref(), Ok(expected));
        }
        for text in ["", "/", "//", "a", "/a/../b", "/usr/x", "/./etc/passwd", "/proc", "/a\0", "/*/a"] {
            assert!(TaskPath::parse(text).is_err(), "{text:?}");
        }
    }
}
