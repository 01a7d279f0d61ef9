//! Stopping: by those who asked for the task, and by the factory.

use federation::End;
use gateway::driver::AttemptStatus;

use super::bench::{USUAL, name, on, reason, sh};

#[test]
fn a_cancelled_task_is_canceled_when_slurm_has_its_nodes_back() {
    on(USUAL, async |bench| {
        let job = bench.submit(sh("trap 'echo bye; exit 0' TERM; echo hello; while :; do sleep 0.1; done")).await;
        bench.says(job, "hello").await;
        bench.cancel(job).await;
        bench.cancel(job).await;
        let (end, record) = bench.done(job).await;
        assert_eq!(end, End::Canceled, "{record:?}");
        let listed = bench.cluster.jobs_named(&name(job));
        assert!(listed[0].contains(" CANCELLED ") || listed[0].contains(" COMPLETED "), "{listed:?}");
    });
}

#[test]
fn a_task_that_waits_in_slurm_or_never_came_is_canceled_too() {
    on(USUAL, async |bench| {
        for _ in 0..2 {
            bench.cluster.local_job("ent-bob", &["--gres=gpu:h100:4"]);
        }
        let waiting = bench.submit(sh("true")).await;
        bench.is_at_slurm(waiting).await;
        assert_eq!(bench.driver().poll(&waiting, 1), AttemptStatus::Starting);
        let mut said = String::new();
        while !said.contains("is PENDING, exit 0:0, reason Resources") {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            let record = bench.driver().record(&waiting, 1).await;
            said = record.map(|it| it.system_logs.join("\n")).unwrap_or_default();
        }
        bench.cancel(waiting).await;
        let (end, record) = bench.done(waiting).await;
        assert_eq!((end, record.running_ms), (End::Canceled, None));
        assert!(bench.cluster.jobs_named(&name(waiting))[0].contains(" CANCELLED "));

        let order = sh("true");
        let never = order.job;
        bench.cancel(never).await;
        assert_eq!(bench.done(never).await.0, End::Canceled);
        bench.driver().submit(order).await.expect("taken as what it is");
        assert_eq!(bench.done(never).await.0, End::Canceled);
        assert!(bench.cluster.jobs_named(&name(never)).is_empty());
        bench.restart().await;
        assert_eq!(bench.done(never).await.0, End::Canceled, "also after a restart");
    });
}

#[test]
fn what_the_factory_ends_is_not_the_tasks_fault() {
    on(USUAL, async |bench| {
        let [cancelled, failed] = [bench.submit(sh("sleep 1000")).await, bench.submit(sh("sleep 1000")).await];
        bench.runs(cancelled).await;
        bench.runs(failed).await;
        bench.cluster.admin(&["scancel", "--name", &name(cancelled)]);
        let (end, record) = bench.done(cancelled).await;
        assert_eq!(reason(&end), "the factory cancelled the job", "{record:?}");
        let node = &bench.cluster.admin(&["squeue", "--noheader", "--name", &name(failed), "--format=%N"]);
        bench.cluster.admin(&["scontrol", "update", &format!("NodeName={node}"), "State=down", "Reason=test"]);
        let (end, record) = bench.done(failed).await;
        let expected = ["a node of the job failed", "the factory's Slurm stopped the job and queued it again"];
        assert!(expected.contains(&reason(&end)), "{end:?} {record:?}");
    });
}

#[test]
fn what_slurm_will_never_run_ends_with_the_reason() {
    on(USUAL, async |bench| {
        bench.settings.pools[0].constraint = Some("no-such-feature".into());
        bench.restart().await;
        let (end, record) = bench.run(sh("true")).await;
        let expected = "the factory's Slurm refused the job: the pool's constraint names what no node has";
        assert_eq!(reason(&end), expected, "{record:?}");
        bench.settings.pools[0].constraint = None;
        bench.restart().await;
        let mut large = sh("true");
        large.cpu_cores = 400;
        let job = large.job;
        let (end, record) = bench.run(large).await;
        assert_eq!(
            reason(&end),
            "the factory's Slurm refused the job: it is beyond the limits of the partition",
            "{record:?}"
        );
        assert!(record.system_logs.iter().any(|line| line.contains("2015")), "{record:?}");
        assert!(bench.cluster.jobs_named(&name(job))[0].contains(" CANCELLED "));
        let mut long = sh("true");
        long.walltime_s = 5 * 3_600;
        assert_eq!(bench.driver().check(&long), Err("the partition's jobs are limited to 240 min".into()));
    });
}
