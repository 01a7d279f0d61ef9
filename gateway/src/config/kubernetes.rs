//! `[factory.kubernetes]` and a pool's `kubernetes`: a factory whose scheduler is Kubernetes.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::driver::{LabelValue, ObjectName, QualifiedName};

/// A factory's cluster.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KubernetesFactory {
    /// Where the API is and who the gateway is there. Without it, the gateway is a pod of the cluster and uses its
    /// service account.
    pub kubeconfig: Option<PathBuf>,
    /// Of the kubeconfig's contexts, another one than its current.
    pub context: Option<String>,
    /// Which namespace, and which user id, a researcher's jobs have.
    pub namespaces: PathBuf,
    /// The Kueue queue of the jobs, where a rule of `namespaces` names no other.
    pub queue: Option<ObjectName>,
    /// Time for a job to get a node and for its images to be pulled, on top of its walltime.
    #[serde(default = "default_start_min")]
    pub start_min: NonZeroU32,
}

/// A pool's GPUs, as Kubernetes calls them.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KubernetesNodes {
    /// The extended resource: `nvidia.com/gpu`.
    pub resource: QualifiedName,
    /// Labels of the pool's nodes, and of no other pool's: `{ "nvidia.com/gpu.product" = "NVIDIA-H100-80GB-HBM3" }`.
    pub node_labels: BTreeMap<QualifiedName, LabelValue>,
    /// Keys of the taints that the pool's jobs tolerate: `nvidia.com/gpu`.
    #[serde(default)]
    pub tolerate: Vec<QualifiedName>,
    /// `nvidia`, where GPUs need a runtime of their own.
    pub runtime_class: Option<ObjectName>,
    /// Of the federation's jobs.
    pub priority_class: Option<ObjectName>,
}

fn default_start_min() -> NonZeroU32 {
    const { NonZeroU32::new(10).expect("invariant: ten is not zero") }
}

impl KubernetesFactory {
    pub(super) fn resolve(&mut self, base: &Path) {
        for path in [&mut self.namespaces].into_iter().chain(&mut self.kubeconfig) {
            *path = base.join(&*path);
        }
    }
}
