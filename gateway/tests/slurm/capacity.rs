//! What is lent: GPUs that local users leave, on nodes and partitions that take jobs.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::bench::{Bench, Like, USUAL, on, pool, sh, slurm_pool};

#[test]
fn what_local_users_hold_is_not_lent_and_what_we_hold_is() {
    on(USUAL, async |bench| {
        bench.lends(pool(), "4x2").await;
        let theirs = bench.cluster.local_job("ent-bob", &["--gres=gpu:h100:3"]);
        let report = bench.lends(pool(), "4x1 1x1").await;
        assert_eq!(report.problem, None, "local users are no problem");
        let mut ours = sh("sleep 1000");
        ours.gpus = 4;
        let ours = bench.submit(ours).await;
        bench.runs(ours).await;
        // The driver has certainly looked again since it runs.
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(super::bench::shown(&bench.driver().capacity(&pool()).expect("a report")), "4x1 1x1");
        bench.cluster.admin(&["scancel", &theirs]);
        bench.lends(pool(), "4x2").await;
        bench.cancel(ours).await;
        bench.done(ours).await;
        bench.lends(pool(), "4x2").await;
    });
}

#[test]
fn a_drained_node_is_seen_within_three_seconds() {
    on(USUAL, async |bench| {
        bench.lends(pool(), "4x2").await;
        let mut quickest = BTreeMap::new();
        for (state, lends) in [("drain", "4x1"), ("resume", "4x2"), ("down", "4x1"), ("resume", "4x2")].repeat(2) {
            let begun = Instant::now();
            set(bench, &format!("NodeName={}", bench.cluster.node(2)), state);
            let report = bench.lends(pool(), lends).await;
            let took: &mut Duration = quickest.entry(state).or_insert(Duration::MAX);
            *took = begun.elapsed().min(*took);
            let expected = (lends == "4x1").then_some("1 of 2 nodes are down, drained or reserved");
            assert_eq!(report.problem.as_deref(), expected);
        }
        // Of each kind one of several, because another cluster is busy on this machine, and may hold up any single one.
        assert!(quickest.values().all(|took| *took < Duration::from_secs(3)), "{quickest:?}");
    });
}

#[test]
fn a_closed_partition_lends_nothing_new_and_says_so() {
    on(USUAL, async |bench| {
        bench.lends(pool(), "4x2").await;
        let mut order = sh("sleep 1000");
        order.gpus = 2;
        let job = bench.submit(order).await;
        bench.runs(job).await;
        set(bench, "PartitionName=federated", "DRAIN");
        let report = bench.lends(pool(), "2x1").await;
        assert_eq!(report.problem.as_deref(), Some("the pool's partition is DRAIN"));
        set(bench, "PartitionName=federated", "UP");
        bench.lends(pool(), "4x2").await;
    });
}

#[test]
fn cards_are_lent_and_not_units_and_other_types_are_other_pools() {
    on(Like { nodes: &["h100:4", "mi250x:8", "-"], options: &[] }, async |bench| {
        let amd = slurm_pool("mi250x", "gpu:mi250x", 1, 4, 2);
        let mi250x = amd.id;
        bench.settings.pools = vec![slurm_pool("h100-80", "gpu:h100", 1, 4, 1), amd];
        bench.restart().await;
        bench.lends(pool(), "4x1").await;
        bench.lends(mi250x, "4x1").await;
        bench.cluster.local_job("ent-bob", &["--gres=gpu:mi250x:1"]);
        bench.lends(mi250x, "3x1").await;
        let mut order = sh("echo $CUDA_VISIBLE_DEVICES");
        (order.pool, order.gpus) = (mi250x, 3);
        let (_, record) = bench.run(order).await;
        let units = record.executors[0].stdout.trim().split(',').count();
        assert_eq!(units, 6, "{record:?}");
        let mut order = sh("true");
        (order.pool, order.gpus) = (mi250x, 5);
        assert_eq!(bench.driver().check(&order), Err("the pool has 4 GPUs, the task needs 5".into()));
    });
}

#[test]
fn a_gang_gets_its_nodes() {
    on(USUAL, async |bench| {
        for (gpus, nodes, expected) in [(8, 0, "2 4"), (2, 2, "2 1"), (5, 0, "2 ")] {
            let mut order = sh("echo $SLURM_JOB_NUM_NODES $(echo $CUDA_VISIBLE_DEVICES | tr , '\\n' | wc -l)");
            (order.gpus, order.nodes) = (gpus, nodes);
            let (_, record) = bench.run(order).await;
            assert!(record.executors[0].stdout.starts_with(expected), "{gpus} on {nodes}: {record:?}");
        }
        let mut order = sh("true");
        (order.gpus, order.nodes) = (8, 1);
        assert_eq!(bench.driver().check(&order), Err("the pool has 2 nodes of 4 GPUs".into()));
    });
}

#[test]
fn a_slurm_that_says_nothing_lends_nothing() {
    on(USUAL, async |bench| {
        bench.lends(pool(), "4x2").await;
        bench.cluster.daemon("stop", "slurmrestd");
        let report = bench.lends(pool(), "").await;
        assert_eq!(report.problem.as_deref(), Some("Slurm does not answer"));
        bench.cluster.daemon("start", "slurmrestd");
        assert_eq!(bench.lends(pool(), "4x2").await.problem, None);
    });
}

fn set(bench: &Bench, what: &str, state: &str) {
    let state = format!("State={state}");
    let mut words = vec!["scontrol", "update", what, state.as_str()];
    if what.starts_with("NodeName") {
        words.push("Reason=test");
    }
    bench.cluster.admin(&words);
}
