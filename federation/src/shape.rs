//! The shape of a job: how many of which GPUs, for how long.
//! Invariant: a shape in the registry divides evenly over the nodes that it asks for.

use serde::{Deserialize, Serialize};

use crate::{command::Rejection, limits};

/// What a job asks of a pool. Source: TES 1.1, `tesResources` and its `backend_parameters`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Shape {
    /// GPUs in all, as the device is sold. 0: a task without GPUs, which takes one task slot.
    pub gpus: u32,
    /// Nodes to spread the GPUs over evenly. 0: let the pool decide.
    pub nodes: u32,
    /// Device model in the researcher's words, e.g. `h100`; see [`crate::offer::DeviceModel::answers_to`].
    pub model: Option<String>,
    /// Memory that each GPU must have at least, in GiB.
    pub memory_gib_min: u32,
    /// Longest time the job may run, in seconds.
    pub walltime_s: u32,
    pub cpu_cores: u32,
    pub ram_gib: u32,
    pub disk_gib: u32,
}

impl Shape {
    /// What the job takes from a pool's nodes.
    pub fn need(&self) -> Need {
        Need { gpus: self.gpus, nodes: self.nodes }
    }

    /// GPU-seconds that the job may use at most.
    pub fn gpu_seconds_max(&self) -> u64 {
        u64::from(self.gpus) * u64::from(self.walltime_s)
    }

    pub(crate) fn check(&self) -> Result<(), Rejection> {
        limits::at_most("shape.gpus", self.gpus, limits::GPUS_PER_JOB_MAX)?;
        limits::at_most("shape.nodes", self.nodes, limits::NODES_PER_POOL_MAX)?;
        limits::at_most("shape.memory_gib_min", self.memory_gib_min, limits::MEMORY_GIB_MAX)?;
        limits::at_most("shape.walltime_s", self.walltime_s, limits::WALLTIME_S_MAX)?;
        limits::at_most("shape.cpu_cores", self.cpu_cores, limits::CPU_CORES_MAX)?;
        limits::at_most("shape.ram_gib", self.ram_gib, limits::RAM_GIB_MAX)?;
        limits::at_most("shape.disk_gib", self.disk_gib, limits::DISK_GIB_MAX)?;
        limits::text("shape.model", self.model.as_deref().unwrap_or_default(), limits::MODEL_BYTES_MAX)?;
        let even = self.nodes == 0 || (self.gpus > 0 && self.gpus.is_multiple_of(self.nodes));
        if even && self.walltime_s > 0 { Ok(()) } else { Err(Rejection::BadShape) }
    }
}

/// GPUs and nodes of a gang, the key by which jobs that fit alike wait together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Need {
    pub gpus: u32,
    pub nodes: u32,
}

impl Need {
    /// The nodes that this takes where a node has `per_node` GPUs: (nodes, GPUs on each) and, if the last
    /// node takes fewer, the GPUs on that one.
    pub(crate) fn split(&self, per_node: u32) -> (u32, u32, u32) {
        match self.nodes {
            0 if self.gpus <= per_node || per_node == 0 => (1, self.gpus, 0),
            0 => (self.gpus / per_node, per_node, self.gpus % per_node),
            nodes => (nodes, self.gpus / nodes, 0),
        }
    }
}
