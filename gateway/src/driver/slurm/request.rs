//! Requests: what Slurm is asked for, from a work order and the pool that it was granted.

use std::path::Path;
use std::time::Duration;

use super::accounts::Mapped;
use super::dialect::{Gpus, Request};
use super::settings::{SlurmPool, SlurmSettings};
use crate::driver::WorkOrder;
use crate::driver::folder::Key;

/// What a batch script starts with. Slurm adds its own, and whatever the site's prologs set.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Between the supervisor's own end of a task and Slurm's: to end the processes and to write the record.
const GRACE_MIN: u32 = 1;

/// The name of an attempt's job: what it is found by.
pub(super) fn name((job, attempt): Key) -> String {
    format!("ent-{job}.{attempt}")
}

/// Whether a job may be one of ours.
pub(super) fn is_ours(name: &str) -> bool {
    name.starts_with("ent-")
}

impl Request {
    /// `time_max_min` is the partition's.
    pub fn of(
        order: &WorkOrder,
        pool: &SlurmPool,
        mapped: &Mapped,
        folder: &Path,
        settings: &SlurmSettings,
        time_max_min: Option<u32>,
    ) -> Request {
        let nodes = nodes(order, pool);
        let folder = folder.to_string_lossy().into_owned();
        let program = quoted(&settings.program.to_string_lossy());
        let key = (order.job, order.attempt);
        Request {
            name: name(key),
            comment: format!("entente {}", order.pool),
            script: format!("#!/bin/sh\nexec {program} run-attempt {}\n", quoted(&folder)),
            output: format!("{folder}/supervisor.log"),
            folder,
            partition: pool.partition.clone(),
            account: mapped.account.as_ref().map(ToString::to_string),
            qos: pool.qos.clone(),
            constraint: pool.constraint.clone(),
            reservation: pool.reservation.clone(),
            nodes,
            gpus: gpus(order, pool, nodes),
            cpus_per_node: (order.cpu_cores > 0).then(|| order.cpu_cores.div_ceil(nodes)),
            memory_per_node_mib: (order.ram_gib > 0).then(|| u64::from(order.ram_gib.div_ceil(nodes)) * 1_024),
            time_limit_min: time_limit_min(order.walltime_s, settings.staging, time_max_min),
            environment: vec![("PATH".to_owned(), PATH.to_owned())],
        }
    }
}

/// As few nodes as hold the GPUs, where the order does not say.
fn nodes(order: &WorkOrder, pool: &SlurmPool) -> u32 {
    let fewest = order.gpus.div_ceil(pool.gpus_per_node.max(1)).max(1);
    if order.nodes > 0 { order.nodes } else { fewest }
}

fn gpus(order: &WorkOrder, pool: &SlurmPool, nodes: u32) -> Gpus {
    if order.gpus == 0 {
        Gpus::None
    } else if order.gpus.is_multiple_of(nodes) {
        Gpus::PerNode(format!("{}:{}", pool.gres, order.gpus / nodes * pool.units_per_gpu))
    } else {
        Gpus::InAll {
            name: pool.gres.name().to_owned(),
            kind: pool.gres.kind().map(str::to_owned),
            count: order.gpus * pool.units_per_gpu,
        }
    }
}

/// The walltime counts from the start of the first step, Slurm's limit from the start of the job. Slurm's is the later
/// one, as far as the partition allows it.
fn time_limit_min(walltime_s: u32, staging: Duration, time_max_min: Option<u32>) -> u32 {
    let staging_min = u32::try_from(staging.as_secs().div_ceil(60)).unwrap_or(u32::MAX);
    let wanted = walltime_s.div_ceil(60).saturating_add(staging_min).saturating_add(GRACE_MIN);
    time_max_min.map_or(wanted, |max| wanted.min(max))
}

/// As one word of a shell's.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::super::settings::tests::{pool, settings};
    use super::*;
    use crate::driver::WorkOwner;
    use certs::MemberState;
    use federation::{JobId, PoolId, Pseudonym};

    fn order(gpus: u32, nodes: u32) -> WorkOrder {
        WorkOrder {
            job: JobId::new(1, [0; 10]),
            attempt: 2,
            pool: PoolId::parse("FR/jean-zay/h100-80").expect("a pool"),
            researcher: WorkOwner {
                home: MemberState::parse("FI").expect("a state"),
                pseudonym: Pseudonym([0; 16]),
                project: None,
            },
            gpus,
            nodes,
            cpu_cores: 6,
            ram_gib: 3,
            disk_gib: 0,
            walltime_s: 90,
            executors: vec![],
            inputs: vec![],
            outputs: vec![],
            volumes: vec![],
            lease_until_ms: None,
        }
    }

    fn check(order: &WorkOrder, pool: &SlurmPool) -> Request {
        let user = super::super::accounts::LocalName::parse("alice").expect("a name");
        let mapped = Mapped { user: user.clone(), account: Some(user) };
        Request::of(order, pool, &mapped, Path::new("/spool/al'ice/x"), &settings(), Some(240))
    }

    #[test]
    fn a_job_is_named_and_starts_the_supervisor_and_nothing_else() {
        let request = check(&order(0, 0), &pool("gpu:h100", 2, 4, 1));
        assert_eq!(request.name, "ent-job_00000000010000000000000000.2");
        assert_eq!(request.script, "#!/bin/sh\nexec '/opt/entente' run-attempt '/spool/al'\\''ice/x'\n");
        assert_eq!((request.nodes, request.gpus), (1, Gpus::None));
        assert_eq!(request.account.as_deref(), Some("alice"));
    }

    #[test]
    fn gpus_are_asked_for_by_node_and_in_slurms_units() {
        let h100 = pool("gpu:h100", 4, 4, 1);
        for (gpus, nodes, expected) in
            [(1, 0, "1 gpu:h100:1"), (4, 0, "1 gpu:h100:4"), (8, 0, "2 gpu:h100:4"), (6, 3, "3 gpu:h100:2")]
        {
            let request = check(&order(gpus, nodes), &h100);
            let Gpus::PerNode(gres) = &request.gpus else { panic!("{request:?}") };
            assert_eq!(format!("{} {gres}", request.nodes), expected);
        }
        let uneven = check(&order(5, 0), &h100).gpus;
        assert_eq!(uneven, Gpus::InAll { name: "gpu".into(), kind: Some("h100".into()), count: 5 });
        let mi250x = check(&order(2, 0), &pool("gpu:mi250x", 1, 4, 2));
        assert_eq!(mi250x.gpus, Gpus::PerNode("gpu:mi250x:4".into()));
    }

    #[test]
    fn what_a_task_asks_for_is_spread_over_its_nodes() {
        let request = check(&order(8, 2), &pool("gpu:h100", 4, 4, 1));
        assert_eq!((request.cpus_per_node, request.memory_per_node_mib), (Some(3), Some(2_048)));
        let unsaid = WorkOrder { cpu_cores: 0, ram_gib: 0, ..order(1, 0) };
        let request = check(&unsaid, &pool("gpu:h100", 4, 4, 1));
        assert_eq!((request.cpus_per_node, request.memory_per_node_mib), (None, None), "Slurm's own defaults");
    }

    #[test]
    fn slurms_limit_is_later_than_the_tasks_own() {
        let staging = Duration::from_secs(600);
        assert_eq!(time_limit_min(90, staging, None), 2 + 10 + 1);
        assert_eq!(time_limit_min(3_600, staging, Some(65)), 65);
        assert_eq!(time_limit_min(u32::MAX, Duration::MAX, Some(9)), 9);
    }
}
