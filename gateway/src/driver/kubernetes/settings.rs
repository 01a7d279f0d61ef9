//! Settings of a Kubernetes driver: one cluster, and the pools that it lends.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use federation::{FactoryId, PoolId};

use super::mapping::BadMapping;
use super::names::{LabelValue, ObjectName, QualifiedName};
use crate::config::{Config, Factory, Pool};

/// What a Kubernetes driver is told.
#[derive(Clone, Debug)]
pub struct KubernetesSettings {
    /// Whose jobs they are: several gateways may use one cluster.
    pub factory: FactoryId,
    /// Where the driver remembers what it has submitted, and keeps logs. On a disk of the gateway's own; one driver per
    /// folder.
    pub journal: PathBuf,
    /// `None`: the service account of the pod that the gateway is.
    pub kubeconfig: Option<PathBuf>,
    pub context: Option<String>,
    /// Which namespace a researcher's jobs run in.
    pub namespaces: PathBuf,
    /// Kueue's local queue, where the mapping names no other.
    pub queue: Option<ObjectName>,
    /// For a node and for images, before the first step.
    pub start: Duration,
    pub pools: Vec<KubernetesPool>,
}

/// Nodes with GPUs of one kind.
#[derive(Clone, Debug)]
pub struct KubernetesPool {
    pub id: PoolId,
    pub resource: QualifiedName,
    pub node_labels: BTreeMap<QualifiedName, LabelValue>,
    /// Keys of taints.
    pub tolerate: Vec<QualifiedName>,
    pub runtime_class: Option<ObjectName>,
    pub priority_class: Option<ObjectName>,
    /// Nodes that are lent, as the offer has them; so for the next two.
    pub nodes: u32,
    /// Devices per node, as they are sold.
    pub gpus_per_node: u32,
    pub task_slots: u32,
    /// What the device plugin counts per device: 2 for an MI250X.
    pub units_per_gpu: u32,
}

impl KubernetesSettings {
    /// The settings of a factory, as it is configured; `None` for one that has another scheduler.
    pub fn of(config: &Config, factory: &Factory) -> Result<Option<KubernetesSettings>, NoKubernetes> {
        let Some(kubernetes) = &factory.kubernetes else {
            return match factory.pools.iter().find(|pool| pool.kubernetes.is_some()) {
                Some(pool) => Err(NoKubernetes::NoCluster(pool.name.to_string())),
                None => Ok(None),
            };
        };
        if factory.slurm.is_some() {
            return Err(NoKubernetes::TwoSchedulers);
        }
        let pool = |pool: &Pool| {
            let Some(nodes) = &pool.kubernetes else {
                return Err(NoKubernetes::NoNodes(pool.name.to_string()));
            };
            if nodes.node_labels.is_empty() {
                return Err(NoKubernetes::NoLabels(pool.name.to_string()));
            }
            if pool.gpus_per_node > 0 && !nodes.resource.has_domain() {
                return Err(NoKubernetes::Resource(nodes.resource.to_string()));
            }
            Ok(KubernetesPool {
                id: PoolId { factory: config.factory_id(factory), name: pool.name },
                resource: nodes.resource.clone(),
                node_labels: nodes.node_labels.clone(),
                tolerate: nodes.tolerate.clone(),
                runtime_class: nodes.runtime_class.clone(),
                priority_class: nodes.priority_class.clone(),
                nodes: pool.nodes,
                gpus_per_node: pool.gpus_per_node,
                task_slots: pool.task_slots,
                units_per_gpu: pool.scheduler_units,
            })
        };
        Ok(Some(KubernetesSettings {
            factory: config.factory_id(factory),
            journal: config.data_dir.join("kubernetes").join(factory.name.to_string()),
            kubeconfig: kubernetes.kubeconfig.clone(),
            context: kubernetes.context.clone(),
            namespaces: kubernetes.namespaces.clone(),
            queue: kubernetes.queue.clone(),
            start: Duration::from_secs(u64::from(kubernetes.start_min.get()) * 60),
            pools: factory.pools.iter().map(pool).collect::<Result<_, _>>()?,
        }))
    }
}

/// Why there is no driver. Always the operator's to mend.
#[derive(Debug, thiserror::Error)]
pub enum NoKubernetes {
    #[error("its pool {0} needs kubernetes = {{ resource = \"…\", node_labels = {{ … }} }}")]
    NoNodes(String),
    #[error("its pool {0} names a resource, and the factory has no [factory.kubernetes]")]
    NoCluster(String),
    #[error("a factory has one scheduler: [factory.slurm] or [factory.kubernetes]")]
    TwoSchedulers,
    #[error("its pool {0} needs node_labels, which say which nodes it is")]
    NoLabels(String),
    #[error("{0:?} is not an extended resource such as nvidia.com/gpu")]
    Resource(String),
    #[error("cannot use {path}: {cause}")]
    Folder { path: PathBuf, cause: std::io::Error },
    #[error("cannot use {path} as a kubeconfig: {cause}")]
    Kubeconfig { path: PathBuf, cause: Box<kube::config::KubeconfigError> },
    #[error("without a kubeconfig, the gateway must be a pod of the cluster: {0}")]
    NotInCluster(Box<kube::config::InClusterError>),
    #[error(transparent)]
    Mapping(#[from] BadMapping),
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn qualified(text: &str) -> QualifiedName {
        QualifiedName::parse(text).expect("a name")
    }

    pub fn label(name: &str, value: &str) -> BTreeMap<QualifiedName, LabelValue> {
        [(qualified(name), LabelValue::parse(value).expect("a value"))].into()
    }

    /// With everything in a folder, and a namespace for Finland's researchers.
    pub fn settings(folder: &std::path::Path) -> KubernetesSettings {
        let namespaces = folder.join("namespaces.toml");
        std::fs::write(&namespaces, "[[rule]]\nhome = \"FI\"\nnamespace = \"climate\"\n").expect("a mapping");
        KubernetesSettings {
            factory: pool(2, 4, 1).id.factory,
            journal: folder.join("journal"),
            kubeconfig: None,
            context: None,
            namespaces,
            queue: None,
            start: Duration::from_secs(600),
            pools: vec![pool(2, 4, 1)],
        }
    }

    pub fn pool(nodes: u32, gpus_per_node: u32, units_per_gpu: u32) -> KubernetesPool {
        KubernetesPool {
            id: PoolId::parse("FR/jean-zay/h100-80").expect("a pool"),
            resource: qualified("nvidia.com/gpu"),
            node_labels: label("gpu", "h100"),
            tolerate: vec![qualified("nvidia.com/gpu")],
            runtime_class: None,
            priority_class: None,
            nodes,
            gpus_per_node,
            task_slots: 100,
            units_per_gpu,
        }
    }
}
