//! Launchers: what a site puts before a task's command, so that it runs in its image.
//!
//! Words, never a shell. In each of them `{image}`, `{workdir}` and `{root}` stand for the task's own; a word with
//! `{top}` stands for one word per top folder of the task, so that a container can be given exactly these:
//! ```toml
//! launcher = ["apptainer", "exec", "--nv", "--bind={root}/{top}:/{top}", "--pwd={workdir}", "docker://{image}"]
//! ```
//! A launcher that names no `{top}` starts tasks in the machine's own file system, where their files are below
//! `$ENTENTE_ROOT`.

use std::env;
use std::ffi::OsString;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::order::{Order, OrderStep};

const KNOWN: [&str; 4] = ["image", "workdir", "root", "top"];
/// Of the scheduler's environment, what a task must not change: which devices are its own, and which job it is in.
const KEPT: [&str; 5] =
    ["CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ZE_AFFINITY_MASK"];

/// Words, as an operator gives them. Without any, tasks are programs of the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Launcher(Vec<String>);

/// Why words are no launcher. Always the operator's to mend.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} in a launcher stands for nothing: there are {{image}}, {{workdir}}, {{root}} and {{top}}")]
pub struct BadLauncher(String);

impl Launcher {
    pub fn parse(words: &[String]) -> Result<Launcher, BadLauncher> {
        for word in words {
            expand(word, |name| KNOWN.contains(&name).then(String::new)).map_err(BadLauncher)?;
        }
        Ok(Launcher(words.to_vec()))
    }

    pub fn is_plain(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a task sees its files where it says that they are.
    pub fn mounts(&self) -> bool {
        self.0.iter().any(|word| word.contains("{top}"))
    }

    pub fn uses_image(&self) -> bool {
        self.0.iter().any(|word| word.contains("{image}"))
    }

    /// The whole command of a step, program first.
    pub fn command(&self, order: &Order, step: &OrderStep, root: &Path) -> Vec<String> {
        let root = root.to_string_lossy().into_owned();
        let workdir =
            if self.mounts() { step.workdir.as_str().to_owned() } else { root.clone() + step.workdir.as_str() };
        let value = |name: &str, top: &str| match name {
            "image" => Some(step.image.clone()),
            "workdir" => Some(workdir.clone()),
            "root" => Some(root.clone()),
            "top" => Some(top.to_owned()),
            _ => None,
        };
        let tops: Vec<String> = order.tops().into_iter().collect();
        let mut command = Vec::new();
        for word in &self.0 {
            let each = if word.contains("{top}") { &tops[..] } else { &tops[..1] };
            command.extend(each.iter().filter_map(|top| expand(word, |name| value(name, top)).ok()));
        }
        command.extend(step.command.iter().cloned());
        command
    }
}

/// A step's environment where a scheduler started the supervisor: what the scheduler and the site set, then the
/// task's, then what a task cannot change.
pub(super) fn environment(order: &Order, step: &OrderStep, root: &Path, mounts: bool) -> Vec<(OsString, OsString)> {
    let inherited: Vec<(OsString, OsString)> = env::vars_os().collect();
    let is_kept =
        |name: &OsString| name.to_str().is_some_and(|name| KEPT.contains(&name) || name.starts_with("SLURM_"));
    let root = if mounts { OsString::new() } else { root.as_os_str().to_owned() };
    let mut temporary = root.clone();
    temporary.push("/tmp");
    let first = [("HOME", temporary.clone()), ("TMPDIR", temporary)];
    let last = [
        ("ENTENTE_GPUS", order.gpus.to_string().into()),
        ("ENTENTE_JOB", order.job.to_string().into()),
        ("ENTENTE_ATTEMPT", order.attempt.to_string().into()),
        ("ENTENTE_ROOT", root),
    ];
    let named = |(name, value): (&str, OsString)| (name.into(), value);
    let tasks = step.env.iter().map(|(name, value)| (name.into(), value.into()));
    let kept: Vec<_> = inherited.iter().filter(|(name, _)| is_kept(name)).cloned().collect();
    let first = inherited.into_iter().chain(first.into_iter().map(named));
    first.chain(tasks).chain(kept).chain(last.into_iter().map(named)).collect()
}

/// The devices that a scheduler gave this process, as it calls them.
pub(super) fn devices() -> String {
    KEPT.iter().find_map(|name| env::var(name).ok()).unwrap_or_default()
}

/// Puts values in the place of names in braces. `Err` is a name that has none.
fn expand(word: &str, value: impl Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut expanded = String::new();
    let mut rest = word;
    while let Some((before, after)) = rest.split_once('{') {
        let (name, after) = after.split_once('}').ok_or_else(|| word.to_owned())?;
        expanded += before;
        expanded += &value(name).ok_or_else(|| format!("{{{name}}}"))?;
        rest = after;
    }
    Ok(expanded + rest)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use federation::{JobId, PoolId, Pseudonym};

    use super::super::order::Rules;
    use super::super::sandbox::Sandbox;
    use super::super::{Step, WorkOrder, WorkOwner};
    use super::*;

    fn check(words: &[&str], image: &str) -> String {
        let words: Vec<String> = words.iter().map(|it| (*it).to_owned()).collect();
        let launcher = Launcher::parse(&words).expect("a launcher");
        let step = Step {
            image: image.into(),
            command: vec!["python".into(), "{root}".into()],
            workdir: Some("/work/a".into()),
            stdin: None,
            stdout: Some("/out/log".into()),
            stderr: None,
            env: BTreeMap::new(),
            ignore_error: false,
        };
        let work = WorkOrder {
            job: JobId::new(1, [0; 10]),
            attempt: 1,
            pool: PoolId::parse("FR/jean-zay/h100-80").expect("a pool"),
            researcher: WorkOwner {
                home: certs::MemberState::parse("FI").expect("a state"),
                pseudonym: Pseudonym([0; 16]),
                project: None,
            },
            gpus: 1,
            nodes: 0,
            cpu_cores: 0,
            ram_gib: 0,
            disk_gib: 0,
            walltime_s: 1,
            executors: vec![step],
            inputs: vec![],
            outputs: vec![],
            volumes: vec![],
            lease_until_ms: None,
        };
        let rules = Rules {
            sandbox: Sandbox::Launcher,
            network: true,
            run_as: None,
            file_roots: vec![],
            http_hosts: vec![],
            https_ca_file: None,
            disk_reserve: 0,
            launcher: Some(launcher.clone()),
        };
        let order = Order::parse(work, rules).expect("an order");
        launcher.command(&order, &order.steps[0], Path::new("/spool/x")).join(" ")
    }

    #[test]
    fn names_in_braces_stand_for_the_tasks_own() {
        let expected = "apptainer exec --nv docker://py:3 python {root}";
        assert_eq!(check(&["apptainer", "exec", "--nv", "docker://{image}"], "py:3"), expected);
        let words = ["podman", "--volume={root}/{top}:/{top}", "--workdir={workdir}", "{image}"];
        let bound = "--volume=/spool/x/out:/out --volume=/spool/x/tmp:/tmp --volume=/spool/x/work:/work";
        assert_eq!(check(&words, "i"), format!("podman {bound} --workdir=/work/a i python {{root}}"));
        assert_eq!(check(&["in", "{workdir}"], "i"), "in /spool/x/work/a python {root}");
        assert_eq!(check(&["run", "{image}"], "{root}"), "run {root} python {root}", "a task's words are not read");
        assert_eq!(check(&[], "i"), "python {root}");
    }

    #[test]
    fn a_name_that_stands_for_nothing_is_refused() {
        for word in ["{imag}", "{image", "{}"] {
            assert!(Launcher::parse(&[word.to_owned()]).is_err(), "{word}");
        }
    }
}
