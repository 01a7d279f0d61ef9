//! What a pool lends: what Slurm's nodes have, less what local users hold of it.
//!
//! Devices are counted as they are sold; a device of which local users hold one of two units is theirs.
//! Invariants: a node lends at least what the federation's own jobs hold there, whatever state it is in, since that
//! room is theirs until they end; and never more than the offer says.

use std::collections::BTreeMap;

use federation::NodeCount;

use super::dialect::{JobState, Node, Partition, SlurmJob};
use super::gres::hosts;
use super::settings::SlurmPool;

/// Of a node's state, what keeps new jobs away. Beginnings of words: `MAINT` is also `MAINTENANCE`.
const CLOSED: [&str; 11] = [
    "DOWN",
    "ERROR",
    "FUTURE",
    "UNKNOWN",
    "INVALID",
    "DRAIN",
    "FAIL",
    "MAINT",
    "NOT_RESPONDING",
    "NO_RESPOND",
    "REBOOT",
];

/// What the federation's own jobs hold, by node, in Slurm's words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Own(BTreeMap<String, Vec<String>>);

/// What a pool lends at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Lent {
    pub lendable: Vec<NodeCount>,
    /// For everybody: names no node and no person.
    pub problem: Option<String>,
}

impl Own {
    pub fn of<'a>(jobs: impl IntoIterator<Item = &'a SlurmJob>) -> Own {
        let mut own = Own::default();
        for job in jobs.into_iter().filter(|it| it.state == JobState::Holding) {
            for (host, gres) in hosts(&job.nodes).into_iter().zip(&job.gres) {
                own.0.entry(host).or_default().push(gres.clone());
            }
        }
        own
    }

    fn units_on(&self, node: &str, pool: &SlurmPool) -> u32 {
        let held = self.0.get(node).into_iter().flatten();
        held.map(|gres| pool.gres.count_in(gres)).fold(0, u32::saturating_add)
    }
}

/// What a pool lends. Nodes and jobs are not seen at the same instant: of the two looks at the own jobs around the
/// look at the nodes, on each node the larger counts, so that a job that starts or ends there is never taken for a
/// local user's.
pub(super) fn lent(pool: &SlurmPool, nodes: &[Node], partitions: &[Partition], own: [&Own; 2]) -> Lent {
    let Some(partition) = partitions.iter().find(|it| it.name == pool.partition) else {
        return Lent { lendable: vec![], problem: Some("the pool's partition does not exist".to_owned()) };
    };
    let is_open = partition.state.split(' ').any(|word| word == "UP");
    let mut counted = Counted::default();
    let mut lends = Vec::new();
    for node in nodes.iter().filter(|it| it.partitions.contains(&pool.partition)) {
        let units = pool.gres.count_in(&node.gres);
        if units == 0 && pool.gpus_per_node > 0 {
            continue;
        }
        counted.there += 1;
        let is_usable = is_open && is_usable(node, pool);
        counted.closed += u32::from(!is_usable);
        let own = own.iter().map(|own| own.units_on(&node.name, pool)).max().unwrap_or_default();
        lends.push(devices(pool, units, pool.gres.count_in(&node.gres_used), own, is_usable && node.idle_cpus > 0));
    }
    // A pool may be a part of its partition: then the federation is lent the nodes that have most to give.
    lends.sort_unstable_by(|a, b| b.cmp(a));
    lends.truncate(pool.nodes as usize);
    let problem =
        if is_open { counted.problem(pool) } else { Some(format!("the pool's partition is {}", partition.state)) };
    Lent { lendable: grouped(&lends), problem }
}

/// Devices that a node lends, its own jobs' included.
fn devices(pool: &SlurmPool, units: u32, used: u32, own: u32, takes_jobs: bool) -> u32 {
    let per_device = pool.units_per_gpu.max(1);
    // The federation asks for whole devices, so of its own jobs' units none is half of one.
    let own = own.min(units).div_ceil(per_device);
    let others = used.saturating_sub(own * per_device);
    let lends = if takes_jobs { (units - others.min(units)) / per_device } else { own };
    lends.max(own).min(pool.gpus_per_node)
}

fn is_usable(node: &Node, pool: &SlurmPool) -> bool {
    let closed = |word: &String| {
        CLOSED.iter().any(|it| word.starts_with(it)) || (word.starts_with("RESERVED") && pool.reservation.is_none())
    };
    !node.states.iter().any(closed)
}

#[derive(Default)]
struct Counted {
    there: u32,
    closed: u32,
}

impl Counted {
    fn problem(&self, pool: &SlurmPool) -> Option<String> {
        if self.there < pool.nodes {
            return Some(format!(
                "the partition has {} nodes with such GPUs, the offer says {}",
                self.there, pool.nodes
            ));
        }
        let left = self.there - self.closed;
        (left < pool.nodes).then(|| format!("{} of {} nodes are down, drained or reserved", self.closed, self.there))
    }
}

fn grouped(sorted: &[u32]) -> Vec<NodeCount> {
    let mut grouped: Vec<NodeCount> = Vec::new();
    for gpus in sorted.iter().copied().filter(|gpus| *gpus > 0) {
        match grouped.last_mut() {
            Some(last) if last.gpus == gpus => last.nodes += 1,
            _ => grouped.push(NodeCount { gpus, nodes: 1 }),
        }
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::super::settings::tests::pool;
    use super::*;

    fn node(name: &str, state: &str, gres: &str, used: &str) -> Node {
        Node {
            name: name.into(),
            states: state.split(' ').map(str::to_owned).collect(),
            partitions: vec!["federated".into()],
            gres: gres.into(),
            gres_used: used.into(),
            idle_cpus: 8,
        }
    }

    fn partition(state: &str) -> Partition {
        Partition { name: "federated".into(), state: state.into(), time_max_min: None }
    }

    /// Four GPUs on each of two nodes, and what is said of them: `4x1 3x1` and why not more.
    fn check(pool: &SlurmPool, nodes: &[Node], own: &[(&str, &str)]) -> (String, Option<String>) {
        check_in(pool, &partition("UP"), nodes, own)
    }

    fn check_in(
        pool: &SlurmPool,
        partition: &Partition,
        nodes: &[Node],
        own: &[(&str, &str)],
    ) -> (String, Option<String>) {
        let own = own.iter().map(|(host, gres)| ((*host).to_owned(), vec![(*gres).to_owned()])).collect();
        let lent = lent(pool, nodes, std::slice::from_ref(partition), [&Own(own), &Own::default()]);
        let lendable: Vec<_> = lent.lendable.iter().map(|it| format!("{}x{}", it.gpus, it.nodes)).collect();
        (lendable.join(" "), lent.problem)
    }

    const FREE: &str = "gpu:h100:0(IDX:N/A)";

    #[test]
    fn local_users_gpus_are_not_lent_and_our_own_are() {
        let pool = pool("gpu:h100", 2, 4, 1);
        let other = node("n2", "IDLE", "gpu:h100:4", FREE);
        for (used, own, expected) in [
            (FREE, None, "4x2"),
            ("gpu:h100:3(IDX:0-2)", None, "4x1 1x1"),
            ("gpu:h100:3(IDX:0-2)", Some("gpu:h100:2(IDX:0-1)"), "4x1 3x1"),
            ("gpu:h100:4(IDX:0-3)", Some("gpu:h100:4(IDX:0-3)"), "4x2"),
            // It has just started, or has just ended: the two looks differ.
            (FREE, Some("gpu:h100:4(IDX:0-3)"), "4x2"),
            ("gpu:h100:4(IDX:0-3)", None, "4x1"),
        ] {
            let own: Vec<_> = own.map(|it| ("n1", it)).into_iter().collect();
            let nodes = [node("n1", "MIXED", "gpu:h100:4", used), other.clone()];
            assert_eq!(check(&pool, &nodes, &own), (expected.to_owned(), None), "{used} {own:?}");
        }
    }

    #[test]
    fn a_closed_node_lends_what_our_jobs_still_hold() {
        let pool = pool("gpu:h100", 2, 4, 1);
        let other = node("n2", "IDLE", "gpu:h100:4", FREE);
        for state in ["IDLE DRAIN", "MIXED DRAIN", "DOWN", "DOWN NOT_RESPONDING", "IDLE RESERVED", "MIXED MAINTENANCE"]
        {
            let nodes = [node("n1", state, "gpu:h100:4", "gpu:h100:2(IDX:0-1)"), other.clone()];
            let (lends, problem) = check(&pool, &nodes, &[]);
            assert_eq!(lends, "4x1", "{state}");
            assert_eq!(problem.as_deref(), Some("1 of 2 nodes are down, drained or reserved"), "{state}");
            assert_eq!(check(&pool, &nodes, &[("n1", "gpu:h100:1(IDX:0)")]).0, "4x1 1x1", "{state}");
        }
        let reserved = SlurmPool { reservation: Some("entente".into()), ..pool };
        let nodes = [node("n1", "IDLE RESERVED", "gpu:h100:4", FREE), other];
        assert_eq!(check(&reserved, &nodes, &[]), ("4x2".to_owned(), None));
    }

    #[test]
    fn cards_are_counted_and_not_slurms_units() {
        let pool = pool("gpu:mi250x", 1, 4, 2);
        for (used, own, expected) in [
            ("gpu:mi250x:0", None, "4x1"),
            ("gpu:mi250x:1(IDX:0)", None, "3x1"),
            ("gpu:mi250x:2(IDX:0-1)", None, "3x1"),
            ("gpu:mi250x:3(IDX:0-2)", Some("gpu:mi250x:2(IDX:0-1)"), "3x1"),
            ("gpu:mi250x:8(IDX:0-7)", Some("gpu:mi250x:4(IDX:0-3)"), "2x1"),
        ] {
            let own: Vec<_> = own.map(|it| ("n1", it)).into_iter().collect();
            let nodes = [node("n1", "MIXED", "gpu:mi250x:8(S:0-3)", used)];
            assert_eq!(check(&pool, &nodes, &own).0, expected, "{used} {own:?}");
        }
    }

    #[test]
    fn only_the_pools_own_type_in_its_own_partition_counts() {
        let pool = pool("gpu:h100", 2, 4, 1);
        let mut elsewhere = node("n3", "IDLE", "gpu:h100:4", FREE);
        elsewhere.partitions = vec!["local".into()];
        let mixed = node("n1", "MIXED", "gpu:a100:4,gpu:h100:4(S:0)", "gpu:a100:4(IDX:0-3),gpu:h100:1(IDX:4)");
        let nodes = [mixed, node("n2", "IDLE", "gpu:a100:8", "gpu:a100:0"), elsewhere];
        let (lends, problem) = check(&pool, &nodes, &[]);
        assert_eq!(lends, "3x1");
        assert_eq!(problem.as_deref(), Some("the partition has 1 nodes with such GPUs, the offer says 2"));
    }

    #[test]
    fn no_more_than_the_offer_is_lent() {
        let pool = pool("gpu:h100", 2, 4, 1);
        let nodes: Vec<_> = (1..=5).map(|it| node(&format!("n{it}"), "IDLE", "gpu:h100:8", FREE)).collect();
        assert_eq!(check(&pool, &nodes, &[]), ("4x2".to_owned(), None));
        let mut busy = nodes.clone();
        for node in &mut busy[..3] {
            node.states = vec!["DOWN".into()];
        }
        assert_eq!(check(&pool, &busy, &[]), ("4x2".to_owned(), None), "enough are left");
    }

    #[test]
    fn a_closed_or_missing_partition_lends_nothing_new() {
        let pool = pool("gpu:h100", 1, 4, 1);
        let nodes = [node("n1", "MIXED", "gpu:h100:4", "gpu:h100:2(IDX:0-1)")];
        for state in ["DOWN", "DRAIN", "INACTIVE"] {
            let (lends, problem) = check_in(&pool, &partition(state), &nodes, &[("n1", "gpu:h100:2(IDX:0-1)")]);
            assert_eq!((lends.as_str(), problem), ("2x1", Some(format!("the pool's partition is {state}"))));
        }
        let other = Partition { name: "other".into(), ..partition("UP") };
        let (lends, problem) = check_in(&pool, &other, &nodes, &[]);
        assert_eq!((lends.as_str(), problem.is_some()), ("", true));
    }

    #[test]
    fn gpus_without_a_free_core_are_of_no_use() {
        let pool = pool("gpu:h100", 1, 4, 1);
        let mut full = node("n1", "ALLOCATED", "gpu:h100:4", "gpu:h100:1(IDX:0)");
        full.idle_cpus = 0;
        assert_eq!(check(&pool, std::slice::from_ref(&full), &[]).0, "");
        assert_eq!(check(&pool, &[full], &[("n1", "gpu:h100:1(IDX:0)")]).0, "1x1");
    }

    #[test]
    fn own_jobs_are_found_on_the_nodes_that_they_hold() {
        let job = SlurmJob {
            id: 1,
            name: "ent-x.1".into(),
            user: "alice".into(),
            state: JobState::Holding,
            reason: String::new(),
            exit: Default::default(),
            submit_time: 1,
            start_time: 1,
            nodes: "n[1-2]".into(),
            gres: vec!["gpu:h100:4(IDX:0-3)".into(), "gpu:h100:1(IDX:0)".into()],
            restarts: 0,
            time_limit_min: None,
        };
        let waiting = SlurmJob { state: JobState::Waiting, ..job.clone() };
        let own = Own::of([&job, &job, &waiting]);
        let pool = pool("gpu:h100", 2, 4, 1);
        assert_eq!((own.units_on("n1", &pool), own.units_on("n2", &pool), own.units_on("n3", &pool)), (8, 2, 0));
    }
}
