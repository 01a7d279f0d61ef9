//! Manifests: a work order as a Kubernetes Job, or why it cannot be one.
//!
//! Executors are the containers of one pod: all but the last are init containers, which Kubernetes runs one after another
//! and each only if the one before it succeeded. What a pod cannot do without a program of ours inside it is refused.
//! Invariants: an order makes the same manifest each time; no command, variable or person is in a name or a label; no
//! text of the task is expanded by Kubernetes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use federation::FactoryId;
use k8s_openapi::ByteString;
use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{
    Affinity, Capabilities, Container, EmptyDirVolumeSource, EnvVar, PodAffinity, PodAffinityTerm, PodSecurityContext,
    PodSpec, PodTemplateSpec, ResourceRequirements, SeccompProfile, Secret, SecretVolumeSource, SecurityContext,
    Toleration, Volume, VolumeMount, WeightedPodAffinityTerm,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};

use super::mapping::Mapped;
use super::settings::KubernetesPool;
use crate::driver::folder::Key;
use crate::driver::order::{BadPath, TaskPath};
use crate::driver::record::STEPS_MAX;
use crate::driver::{Source, StageKind, Step, WorkOrder};

/// Keeps a Job's evidence until the driver has noted how it ended, whoever deletes it: so a name is never free again
/// while the attempt is open, and an attempt cannot run twice.
pub(super) const FINALIZER: &str = "entente/noted";
pub(super) const FACTORY: &str = "entente/factory";
pub(super) const JOB: &str = "entente/job";
pub(super) const ATTEMPT: &str = "entente/attempt";
/// Source: Kueue, its constants package.
const QUEUE: &str = "kueue.x-k8s.io/queue-name";
/// Where a task works that does not say where.
const WORKDIR: &str = "/work";
/// Volumes that are ours.
const INPUTS: &str = "inputs";
/// A Secret has 1 MiB, names and all.
const CONTENT_BYTES_MAX: usize = 1_000_000;
/// An object has 1.5 MiB in etcd, which the API server shares with its own fields.
const MANIFEST_BYTES_MAX: usize = 1_000_000;
/// By these, container runtimes of some vendors hand devices out, whatever the scheduler has granted. What a program may
/// see of the devices that it has (`CUDA_VISIBLE_DEVICES`, …) is its own.
const DEVICE_VARIABLES: [&str; 8] = [
    "NVIDIA_VISIBLE_DEVICES",
    "NVIDIA_MIG_CONFIG_DEVICES",
    "NVIDIA_MIG_MONITOR_DEVICES",
    "NVIDIA_IMEX_CHANNELS",
    "DOCKER_RESOURCE_GPU",
    "AMD_VISIBLE_DEVICES",
    "HABANA_VISIBLE_DEVICES",
    "ASCEND_VISIBLE_DEVICES",
];
/// For who has no GPU: images of CUDA's ask for all.
const NO_DEVICES: (&str, &str) = ("NVIDIA_VISIBLE_DEVICES", "void");
/// Between the signal to stop and the end.
const GRACE_S: i64 = 10;

/// What Kubernetes is asked for.
pub(super) struct Made {
    pub job: Job,
    /// Contents of inputs, by their key in the Secret.
    pub inputs: BTreeMap<String, Vec<u8>>,
}

/// Why a task cannot be a Job. Every state reads it: it has numbers, and nothing that the task says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unmappable {
    #[error("a task has 1 to {STEPS_MAX} executors")]
    Steps,
    #[error("this factory runs a task in one pod on one node of {gpus_per_node} GPUs")]
    OneNode { gpus_per_node: u32 },
    #[error("the pool takes no tasks without a GPU")]
    NoSlots,
    #[error("executor {0} has no image that can be named, and this factory runs nothing without one")]
    NoImage(usize),
    #[error("executor {0} has no command")]
    NoCommand(usize),
    #[error("executor {0} has a zero byte in its command or environment")]
    ZeroByte(usize),
    #[error("executor {0} has an environment variable whose name Kubernetes does not take")]
    VariableName(usize),
    #[error("executor {0} sets a variable by which container runtimes hand out devices: the factory does that")]
    DeviceVariable(usize),
    #[error("executor {0} has ignore_error: this factory runs executors as init containers, which end at an error")]
    IgnoreError(usize),
    #[error("executor {0} reads or writes a file as its stdin, stdout or stderr, which this factory cannot do")]
    Streams(usize),
    #[error("a path of executor {0} {1}")]
    StepPath(usize, BadPath),
    #[error("the path of volume {0} {1}")]
    VolumePath(usize, BadPath),
    #[error("the path of input {0} {1}")]
    InputPath(usize, BadPath),
    #[error("input {0} has the path of another input or a volume")]
    InputTwice(usize),
    #[error("input {0} comes from a URL: this factory brings inputs by content only, as its pods fetch nothing")]
    InputUrl(usize),
    #[error("input {0}: content cannot be a directory")]
    ContentDirectory(usize),
    #[error("the inputs are larger than {CONTENT_BYTES_MAX} bytes in all, and this factory takes no more by content")]
    ContentTooLarge,
    #[error("this factory delivers no outputs: the task has to send them itself")]
    Outputs,
    #[error("the task is larger than Kubernetes takes")]
    TooLarge,
}

/// The name of an attempt's Job and Secret. A DNS label, as the pod's name and label are made of it.
pub(super) fn name((job, attempt): Key) -> String {
    let job = job.to_string();
    format!("ent-{}-{attempt}", job.strip_prefix("job_").unwrap_or(&job))
}

/// `step-0`: the container of an executor.
pub(super) fn container_name(index: usize) -> String {
    format!("step-{index}")
}

pub(super) fn factory_label(factory: &FactoryId) -> String {
    factory.to_string().replace('/', ".")
}

pub(super) fn labels(factory: &FactoryId, (job, attempt): Key) -> BTreeMap<String, String> {
    [
        ("app.kubernetes.io/managed-by", "entente".to_owned()),
        (FACTORY, factory_label(factory)),
        (JOB, job.to_string()),
        (ATTEMPT, attempt.to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

/// The Job of an order.
pub(super) fn make(
    order: &WorkOrder,
    pool: &KubernetesPool,
    mapped: &Mapped,
    queue: Option<&str>,
    start: Duration,
) -> Result<Made, Unmappable> {
    let too_wide = order.nodes > 1 || order.gpus > pool.gpus_per_node;
    match order {
        _ if too_wide => return Err(Unmappable::OneNode { gpus_per_node: pool.gpus_per_node }),
        _ if order.gpus == 0 && pool.task_slots == 0 => return Err(Unmappable::NoSlots),
        _ if order.executors.is_empty() || order.executors.len() > STEPS_MAX => return Err(Unmappable::Steps),
        _ if !order.outputs.is_empty() => return Err(Unmappable::Outputs),
        _ => {}
    }
    let folders = folders(order)?;
    let (inputs, mut mounts) = inputs(order, &folders)?;
    let emptied = folders.iter().enumerate().map(|(index, path)| VolumeMount {
        name: folder_name(index),
        mount_path: path.clone(),
        ..VolumeMount::default()
    });
    mounts.extend(emptied);
    let resources = resources(order, pool);
    let container = |(index, step): (usize, &Step)| container(index, step, &mounts, &resources, order.gpus == 0);
    let mut containers = order.executors.iter().enumerate().map(container).collect::<Result<Vec<_>, _>>()?;
    let main = containers.pop().into_iter().collect();
    let key = (order.job, order.attempt);
    let labels = labels(&pool.id.factory, key);
    let mut job_labels = labels.clone();
    job_labels.extend(queue.map(|queue| (QUEUE.to_owned(), queue.to_owned())));
    let start_s = i64::try_from(start.as_secs()).unwrap_or(i64::MAX / 2);
    // For when the gateway is away. Also the pod's own, as it is the kubelet that keeps that one, whatever becomes of the
    // Job.
    let deadline_s = Some(start_s + i64::from(order.walltime_s));
    let job = Job {
        metadata: ObjectMeta {
            name: Some(name(key)),
            namespace: Some(mapped.namespace.clone()),
            labels: Some(job_labels),
            finalizers: Some(vec![FINALIZER.to_owned()]),
            ..ObjectMeta::default()
        },
        spec: Some(JobSpec {
            active_deadline_seconds: deadline_s,
            backoff_limit: Some(0),
            completions: Some(1),
            parallelism: Some(1),
            // From 1.29: no second pod beside one that is being deleted.
            pod_replacement_policy: Some("Failed".to_owned()),
            // So that it never runs past a queue that is not there.
            suspend: queue.map(|_| true),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta { labels: Some(labels), ..ObjectMeta::default() }),
                spec: Some(PodSpec {
                    active_deadline_seconds: deadline_s,
                    affinity: Some(affinity(&pool.id.factory)),
                    automount_service_account_token: Some(false),
                    containers: main,
                    enable_service_links: Some(false),
                    init_containers: Some(containers),
                    node_selector: Some(node_selector(pool)),
                    priority_class_name: pool.priority_class.clone().map(String::from),
                    restart_policy: Some("Never".to_owned()),
                    runtime_class_name: pool.runtime_class.clone().map(String::from),
                    security_context: Some(pod_security(mapped)),
                    termination_grace_period_seconds: Some(GRACE_S),
                    tolerations: Some(pool.tolerate.iter().map(|key| toleration(key.as_str())).collect()),
                    volumes: Some(volumes(order, &folders, !inputs.is_empty(), key)),
                    ..PodSpec::default()
                }),
            },
            ..JobSpec::default()
        }),
        ..Job::default()
    };
    match serde_json::to_vec(&job) {
        Ok(bytes) if bytes.len() <= MANIFEST_BYTES_MAX => Ok(Made { job, inputs }),
        _ => Err(Unmappable::TooLarge),
    }
}

/// The contents of an attempt's inputs; it goes with its Job.
pub(super) fn secret(factory: &FactoryId, key: Key, uid: &str, inputs: &BTreeMap<String, Vec<u8>>) -> Secret {
    Secret {
        metadata: ObjectMeta {
            name: Some(name(key)),
            labels: Some(labels(factory, key)),
            owner_references: Some(vec![OwnerReference {
                api_version: "batch/v1".to_owned(),
                kind: "Job".to_owned(),
                name: name(key),
                uid: uid.to_owned(),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        },
        data: Some(inputs.iter().map(|(name, bytes)| (name.clone(), ByteString(bytes.clone()))).collect()),
        immutable: Some(true),
        ..Secret::default()
    }
}

/// Folders that all steps share, empty at first.
fn folders(order: &WorkOrder) -> Result<BTreeSet<String>, Unmappable> {
    let parse = |(index, path): (usize, &String)| {
        TaskPath::parse(path).map(String::from).map_err(|bad| Unmappable::VolumePath(index, bad))
    };
    let mut folders = order.volumes.iter().enumerate().map(parse).collect::<Result<BTreeSet<_>, _>>()?;
    if order.executors.iter().any(|step| step.workdir.is_none()) {
        folders.insert(WORKDIR.to_owned());
    }
    Ok(folders)
}

type Inputs = (BTreeMap<String, Vec<u8>>, Vec<VolumeMount>);

fn inputs(order: &WorkOrder, folders: &BTreeSet<String>) -> Result<Inputs, Unmappable> {
    let (mut contents, mut mounts) = (BTreeMap::new(), Vec::new());
    let mut taken = folders.clone();
    for (index, input) in order.inputs.iter().enumerate() {
        let Source::Content(bytes) = &input.source else {
            return Err(Unmappable::InputUrl(index));
        };
        if input.kind == StageKind::Directory {
            return Err(Unmappable::ContentDirectory(index));
        }
        let path = TaskPath::parse(&input.path).map_err(|bad| Unmappable::InputPath(index, bad))?;
        // It separates the parts of a mount in what runs containers.
        if path.as_str().contains(':') {
            return Err(Unmappable::InputPath(index, BadPath::Form));
        }
        if !taken.insert(path.as_str().to_owned()) {
            return Err(Unmappable::InputTwice(index));
        }
        let key = format!("input-{index}");
        mounts.push(VolumeMount {
            name: INPUTS.to_owned(),
            mount_path: path.into(),
            sub_path: Some(key.clone()),
            read_only: Some(true),
            ..VolumeMount::default()
        });
        contents.insert(key, bytes.clone());
    }
    let size: usize = contents.iter().map(|(name, bytes)| name.len() + bytes.len()).sum();
    if size > CONTENT_BYTES_MAX { Err(Unmappable::ContentTooLarge) } else { Ok((contents, mounts)) }
}

fn container(
    index: usize,
    step: &Step,
    mounts: &[VolumeMount],
    resources: &ResourceRequirements,
    has_no_gpus: bool,
) -> Result<Container, Unmappable> {
    let is_variable = |name: &str| {
        let known = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        !name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit()) && name.chars().all(known)
    };
    let texts = step.command.iter().chain(step.env.values());
    match step {
        _ if step.image.is_empty() || step.image.trim() != step.image => return Err(Unmappable::NoImage(index)),
        _ if step.command.first().is_none_or(String::is_empty) => return Err(Unmappable::NoCommand(index)),
        _ if texts.chain([&step.image]).any(|it| it.contains('\0')) => return Err(Unmappable::ZeroByte(index)),
        _ if !step.env.keys().all(|name| is_variable(name)) => return Err(Unmappable::VariableName(index)),
        _ if step.env.keys().any(|name| DEVICE_VARIABLES.contains(&name.as_str())) => {
            return Err(Unmappable::DeviceVariable(index));
        }
        _ if step.ignore_error => return Err(Unmappable::IgnoreError(index)),
        Step { stdin: None, stdout: None, stderr: None, .. } => {}
        _ => return Err(Unmappable::Streams(index)),
    }
    let workdir = step.workdir.as_deref().unwrap_or(WORKDIR);
    let workdir = TaskPath::parse(workdir).map_err(|bad| Unmappable::StepPath(index, bad))?;
    let variable = |(name, value): (&str, &str)| EnvVar {
        name: name.to_owned(),
        value: Some(literal(value)),
        ..EnvVar::default()
    };
    let env = step.env.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    Ok(Container {
        name: container_name(index),
        image: Some(step.image.clone()),
        command: Some(step.command.iter().map(|it| literal(it)).collect()),
        env: Some(env.chain(has_no_gpus.then_some(NO_DEVICES)).map(variable).collect()),
        // Who has no right to an image must not get it because somebody else has run it on that node.
        image_pull_policy: Some("Always".to_owned()),
        working_dir: Some(workdir.into()),
        resources: Some(resources.clone()),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), ..Capabilities::default() }),
            privileged: Some(false),
            ..SecurityContext::default()
        }),
        volume_mounts: Some(mounts.to_vec()),
        ..Container::default()
    })
}

/// Kubernetes expands `$(NAME)` in commands and variables, and takes `$$` for `$`.
fn literal(text: &str) -> String {
    text.replace('$', "$$")
}

/// Each container asks for all: they run one after another, so the pod asks for the most that one does.
fn resources(order: &WorkOrder, pool: &KubernetesPool) -> ResourceRequirements {
    let mut requests = BTreeMap::new();
    let mut limits = BTreeMap::new();
    let gib = |count: u32| Quantity(format!("{count}Gi"));
    if order.gpus > 0 {
        let units = Quantity((u64::from(order.gpus) * u64::from(pool.units_per_gpu.max(1))).to_string());
        requests.insert(pool.resource.to_string(), units.clone());
        limits.insert(pool.resource.to_string(), units);
    }
    if order.cpu_cores > 0 {
        requests.insert("cpu".to_owned(), Quantity(order.cpu_cores.to_string()));
    }
    if order.ram_gib > 0 {
        requests.insert("memory".to_owned(), gib(order.ram_gib));
        limits.insert("memory".to_owned(), gib(order.ram_gib));
    }
    if order.disk_gib > 0 {
        requests.insert("ephemeral-storage".to_owned(), gib(order.disk_gib));
        limits.insert("ephemeral-storage".to_owned(), gib(order.disk_gib));
    }
    ResourceRequirements { requests: Some(requests), limits: Some(limits), ..ResourceRequirements::default() }
}

fn pod_security(mapped: &Mapped) -> PodSecurityContext {
    let gid = mapped.gid.or(mapped.uid).map(i64::from);
    PodSecurityContext {
        run_as_non_root: mapped.uid.map(|_| true),
        run_as_user: mapped.uid.map(i64::from),
        run_as_group: gid,
        fs_group: gid,
        seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), ..SeccompProfile::default() }),
        ..PodSecurityContext::default()
    }
}

fn node_selector(pool: &KubernetesPool) -> BTreeMap<String, String> {
    pool.node_labels.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

/// Nodes that run the factory's jobs already come first, so that others stay whole for jobs that need all of one.
fn affinity(factory: &FactoryId) -> Affinity {
    let selector = |labels| LabelSelector { match_labels: labels, ..LabelSelector::default() };
    let near = PodAffinityTerm {
        label_selector: Some(selector(Some([(FACTORY.to_owned(), factory_label(factory))].into()))),
        // Of all namespaces: every researcher may have one of his own.
        namespace_selector: Some(selector(None)),
        topology_key: "kubernetes.io/hostname".to_owned(),
        ..PodAffinityTerm::default()
    };
    let preferred = WeightedPodAffinityTerm { pod_affinity_term: near, weight: 100 };
    let affinity = PodAffinity {
        preferred_during_scheduling_ignored_during_execution: Some(vec![preferred]),
        ..PodAffinity::default()
    };
    Affinity { pod_affinity: Some(affinity), ..Affinity::default() }
}

fn toleration(key: &str) -> Toleration {
    Toleration {
        key: Some(key.to_owned()),
        operator: Some("Exists".to_owned()),
        effect: Some("NoSchedule".to_owned()),
        ..Toleration::default()
    }
}

fn volumes(order: &WorkOrder, folders: &BTreeSet<String>, has_inputs: bool, key: Key) -> Vec<Volume> {
    let size_limit = (order.disk_gib > 0).then(|| Quantity(format!("{}Gi", order.disk_gib)));
    let empty = |(index, _)| Volume {
        name: folder_name(index),
        empty_dir: Some(EmptyDirVolumeSource { size_limit: size_limit.clone(), ..EmptyDirVolumeSource::default() }),
        ..Volume::default()
    };
    let inputs = has_inputs.then(|| Volume {
        name: INPUTS.to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(name(key)),
            // Readable for whoever the image runs as; the pod is the researcher's alone.
            default_mode: Some(0o444),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    });
    folders.iter().enumerate().map(empty).chain(inputs).collect()
}

fn folder_name(index: usize) -> String {
    format!("folder-{index}")
}

#[cfg(test)]
pub(super) mod tests {
    use certs::MemberState;
    use federation::{JobId, Pseudonym};

    use super::super::settings::tests::pool;
    use super::*;
    use crate::driver::{StageIn, StageOut, WorkOwner};

    pub fn mapped() -> Mapped {
        Mapped { namespace: "climate".into(), uid: Some(20001), gid: None, queue: None }
    }

    pub fn order() -> WorkOrder {
        let home = MemberState::parse("FI").expect("a state");
        WorkOrder {
            job: JobId::new(7, [1; 10]),
            attempt: 2,
            pool: pool(2, 4, 1).id,
            researcher: WorkOwner { home, pseudonym: Pseudonym([1; 16]), project: None },
            gpus: 2,
            nodes: 0,
            cpu_cores: 8,
            ram_gib: 64,
            disk_gib: 10,
            walltime_s: 3_600,
            executors: vec![step("first"), step("second")],
            inputs: vec![],
            outputs: vec![],
            volumes: vec!["/data".into()],
            lease_until_ms: None,
        }
    }

    pub fn step(word: &str) -> Step {
        Step {
            image: "registry.example/tool:1".into(),
            command: vec!["sh".into(), "-c".into(), format!("echo {word} $(HOME) $$")],
            workdir: None,
            stdin: None,
            stdout: None,
            stderr: None,
            env: [("SECRET".to_owned(), "$(PATH)".to_owned())].into(),
            ignore_error: false,
        }
    }

    fn made(order: &WorkOrder) -> Made {
        let made = make(order, &pool(2, 4, 2), &mapped(), Some("night"), Duration::from_secs(600));
        made.unwrap_or_else(|bad| panic!("{bad}"))
    }

    #[test]
    fn executors_become_containers_in_their_order() {
        let made = made(&order());
        let spec = made.job.spec.expect("a spec");
        assert_eq!(
            (spec.backoff_limit, spec.active_deadline_seconds, spec.suspend),
            (Some(0), Some(4_200), Some(true))
        );
        let pod = spec.template.spec.expect("a pod");
        assert_eq!((pod.restart_policy.as_deref(), pod.active_deadline_seconds), (Some("Never"), Some(4_200)));
        assert_eq!(pod.automount_service_account_token, Some(false));
        let init = pod.init_containers.expect("containers");
        assert_eq!((init[0].name.as_str(), pod.containers[0].name.as_str()), ("step-0", "step-1"));
        assert_eq!((init.len(), pod.containers.len()), (1, 1));
        for container in init.iter().chain(&pod.containers) {
            let limits = container.resources.as_ref().and_then(|it| it.limits.as_ref()).expect("limits");
            assert_eq!(limits["nvidia.com/gpu"].0, "4", "two per device");
            assert_eq!(limits["memory"].0, "64Gi");
            let security = container.security_context.as_ref().expect("a context");
            assert_eq!(security.allow_privilege_escalation, Some(false));
            assert_eq!(container.working_dir.as_deref(), Some("/work"));
            assert_eq!(container.image_pull_policy.as_deref(), Some("Always"));
        }
        let near = pod.affinity.and_then(|it| it.pod_affinity).expect("an affinity");
        let near = near.preferred_during_scheduling_ignored_during_execution.expect("terms");
        let labels = near[0].pod_affinity_term.label_selector.clone().and_then(|it| it.match_labels).expect("labels");
        assert_eq!(
            Some(labels[FACTORY].as_str()),
            spec.template.metadata.and_then(|it| it.labels).map(|it| it[FACTORY].clone()).as_deref()
        );
        let security = pod.security_context.expect("a context");
        assert_eq!((security.run_as_user, security.run_as_non_root), (Some(20001), Some(true)));
        assert_eq!(pod.node_selector.expect("labels")["gpu"], "h100");
    }

    #[test]
    fn nothing_of_the_task_is_expanded_and_nothing_of_it_is_a_label() {
        let job = made(&order()).job;
        let pod = job.spec.as_ref().and_then(|it| it.template.spec.as_ref()).expect("a pod");
        assert_eq!(pod.containers[0].command.as_ref().expect("a command")[2], "echo second $$(HOME) $$$$");
        assert_eq!(pod.containers[0].env.as_ref().expect("variables")[0].value.as_deref(), Some("$$(PATH)"));
        let labels = serde_json::to_string(&job.metadata).expect("JSON");
        assert!(!labels.contains("echo") && !labels.contains("SECRET") && !labels.contains("0101010101"), "{labels}");
        let name = job.metadata.name.expect("a name");
        assert!(name.len() <= 57 && name.ends_with("-2") && !name.contains('_'), "{name}: a pod's name is longer by 6");
    }

    #[test]
    fn who_asks_for_no_gpu_has_none() {
        let values = |gpus| {
            let job = made(&WorkOrder { gpus, ..order() }).job;
            let env = job.spec.and_then(|it| it.template.spec).expect("a pod").containers.remove(0).env;
            env.into_iter().flatten().filter(|it| it.name == NO_DEVICES.0).filter_map(|it| it.value).collect::<Vec<_>>()
        };
        assert_eq!((values(0), values(1)), (vec!["void".to_owned()], vec![]));
    }

    #[test]
    fn contents_are_a_secret_that_is_mounted_where_the_task_says() {
        let mut order = order();
        let content = |path: &str| StageIn {
            path: path.into(),
            source: Source::Content(b"hello".to_vec()),
            kind: StageKind::File,
        };
        order.inputs = vec![content("/data/a"), content("/tmp/run.sh")];
        let Made { job, inputs } = made(&order);
        assert_eq!(inputs["input-1"], b"hello");
        let pod = job.spec.and_then(|it| it.template.spec).expect("a pod");
        let mounts = pod.containers[0].volume_mounts.as_ref().expect("mounts");
        let shown: Vec<_> = mounts.iter().map(|it| (it.name.as_str(), it.mount_path.as_str())).collect();
        assert_eq!(
            shown,
            [("inputs", "/data/a"), ("inputs", "/tmp/run.sh"), ("folder-0", "/data"), ("folder-1", "/work")]
        );
        let factory = pool(1, 1, 1).id.factory;
        let secret = secret(&factory, (order.job, 2), "some-uid", &inputs);
        assert_eq!(secret.metadata.owner_references.expect("an owner")[0].uid, "some-uid");
    }

    #[test]
    fn what_a_pod_cannot_do_is_refused_with_the_reason() {
        let check = |expected: Unmappable, change: fn(&mut WorkOrder)| {
            let mut order = order();
            change(&mut order);
            let made = make(&order, &pool(2, 4, 1), &mapped(), None, Duration::from_secs(600));
            assert_eq!(made.err(), Some(expected));
        };
        check(Unmappable::OneNode { gpus_per_node: 4 }, |it| it.gpus = 5);
        check(Unmappable::OneNode { gpus_per_node: 4 }, |it| it.nodes = 2);
        check(Unmappable::Steps, |it| it.executors.clear());
        check(Unmappable::IgnoreError(0), |it| it.executors[0].ignore_error = true);
        check(Unmappable::Streams(1), |it| it.executors[1].stdout = Some("/out/a".into()));
        check(Unmappable::NoImage(1), |it| it.executors[1].image = " ".into());
        check(Unmappable::NoCommand(0), |it| it.executors[0].command.clear());
        check(Unmappable::VariableName(0), |it| drop(it.executors[0].env.insert("1 a".into(), String::new())));
        for name in DEVICE_VARIABLES {
            let mut order = order();
            order.executors[1].env.insert(name.into(), "all".into());
            let made = make(&order, &pool(2, 4, 1), &mapped(), None, Duration::from_secs(600));
            assert_eq!(made.err(), Some(Unmappable::DeviceVariable(1)));
        }
        check(Unmappable::StepPath(0, BadPath::System), |it| it.executors[0].workdir = Some("/etc".into()));
        check(Unmappable::VolumePath(0, BadPath::System), |it| it.volumes = vec!["/usr/x".into()]);
        check(Unmappable::Outputs, |it| {
            let url = "https://a.example/b".into();
            it.outputs = vec![StageOut { url, path: "/out/a".into(), path_prefix: None, kind: StageKind::File }];
        });
        let input = |path: &str, source| StageIn { path: path.into(), source, kind: StageKind::File };
        for (inputs, expected) in [
            (vec![input("/in/a", Source::Url("https://a.example/b".into()))], Unmappable::InputUrl(0)),
            (vec![input("/etc/a", Source::Content(vec![]))], Unmappable::InputPath(0, BadPath::System)),
            (vec![input("/data", Source::Content(vec![]))], Unmappable::InputTwice(0)),
            (vec![input("/in/a", Source::Content(vec![0; CONTENT_BYTES_MAX]))], Unmappable::ContentTooLarge),
        ] {
            let order = WorkOrder { inputs, ..order() };
            let made = make(&order, &pool(2, 4, 1), &mapped(), None, Duration::from_secs(600));
            assert_eq!(made.err(), Some(expected));
        }
    }
}
