//! What survives: a slurmctld that stops, one that forgets, a gateway that comes back late, and a second cluster.

use std::time::Duration;

use federation::End;
use gateway::driver::{AttemptStatus, start_slurm};

use super::bench::{Bench, Like, USUAL, name, on, pool, reason, settings, sh};

#[test]
fn a_slurmctld_that_stops_and_returns_costs_nothing() {
    on(USUAL, async |bench| {
        let running = bench.submit(sh("echo started; sleep 15; echo ended")).await;
        bench.says(running, "started").await;
        bench.runs(running).await;
        bench.cluster.daemon("stop", "slurmctld");
        let asked = bench.submit(sh("echo later")).await;
        let report = bench.lends(pool(), "").await;
        assert!(report.problem.is_some_and(|it| it.contains("Slurm")), "it says why");
        assert_eq!(bench.driver().poll(&asked, 1), AttemptStatus::Starting);
        assert!(matches!(bench.driver().poll(&running, 1), AttemptStatus::Running { .. }));
        bench.cluster.daemon("start", "slurmctld");
        bench.lends(pool(), "4x2").await;
        for job in [running, asked] {
            let (end, record) = bench.done(job).await;
            assert_eq!(end, End::Complete, "{record:?}");
            assert_eq!(bench.cluster.jobs_named(&name(job)).len(), 1);
        }
    });
}

#[test]
fn a_job_that_slurmctld_forgot_in_a_crash_is_given_to_it_again() {
    on(USUAL, async |bench| {
        // Everything is taken, so that it waits; and it is killed before it saves what it was just given.
        for _ in 0..2 {
            bench.cluster.local_job("ent-bob", &["--gres=gpu:h100:4"]);
        }
        tokio::time::sleep(Duration::from_secs(7)).await;
        let file = bench.files().join("lines");
        let job = bench.submit(sh(&format!("echo ran >>{}", file.display()))).await;
        bench.is_at_slurm(job).await;
        bench.cluster.daemon("kill", "slurmctld");
        bench.cluster.daemon("start", "slurmctld");
        bench.lends(pool(), "").await;
        bench.cluster.admin(&["scancel", "--user=ent-bob"]);
        let (end, record) = bench.done(job).await;
        assert_eq!(end, End::Complete, "{record:?}");
        assert_eq!(std::fs::read_to_string(file).expect("a file"), "ran\n");
    });
}

#[test]
fn a_job_that_has_aged_out_ends_as_its_supervisor_wrote() {
    on(Like { options: &[("MIN_JOB_AGE", "2")], ..USUAL }, async |bench| {
        let [fine, failed] = [bench.submit(sh("echo fine")).await, bench.submit(sh("exit 4")).await];
        let killed = bench.submit(sh("echo up; sleep 1000")).await;
        bench.says(killed, "up").await;
        let have_ended =
            |it: &Bench| [fine, failed].iter().all(|job| it.spool("ent-alice", *job).join("done.json").exists());
        bench.until("the others have ended", have_ended).await;
        bench.stop();
        // Nothing is left of it that could write a record.
        let supervisor = std::fs::read_to_string(bench.spool("ent-alice", killed).join("started")).expect("a start");
        let supervisor: serde_json::Value = serde_json::from_str(&supervisor).expect("a birth");
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(supervisor["pid"].as_i64().expect("a number") as i32),
            nix::sys::signal::Signal::SIGKILL,
        )
        .expect("killed");
        let all_gone =
            |it: &Bench| [fine, failed, killed].iter().all(|job| it.cluster.jobs_named(&name(*job)).is_empty());
        bench.until("they are forgotten", all_gone).await;
        bench.restart().await;
        assert_eq!(bench.done(fine).await.0, End::Complete);
        assert_eq!(bench.done(failed).await.0, End::ExecutorError { exit_code: 4 });
        let (end, record) = bench.done(killed).await;
        assert_eq!(reason(&end), "the factory's Slurm lost the job while it ran", "{record:?}");
    });
}

#[test]
fn a_gateway_that_comes_back_follows_what_runs() {
    on(USUAL, async |bench| {
        let job = bench.submit(sh("echo one; while [ ! -e go ]; do sleep 0.1; done; echo two")).await;
        bench.says(job, "one").await;
        bench.restart().await;
        bench.runs(job).await;
        std::fs::write(bench.spool("ent-alice", job).join("work/root/work/go"), "").expect("a file");
        let (end, record) = bench.done(job).await;
        assert_eq!((end, record.executors[0].stdout.as_str()), (End::Complete, "one\ntwo\n"));
        bench.restart().await;
        assert_eq!(bench.done(job).await.0, End::Complete, "what is done stays done");
    });
}

#[test]
fn two_clusters_are_driven_side_by_side() {
    on(USUAL, async |bench| {
        let other = super::bench::Cluster::start(Like { nodes: &["a100:8"], options: &[] });
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut second = settings(&other, folder.path());
        second.pools = vec![super::bench::slurm_pool("a100-40", "gpu:a100", 1, 8, 1)];
        let a100 = second.pools[0].id;
        let second = tokio::task::spawn_blocking(move || start_slurm(second)).await.expect("no panic");
        let second = second.expect("a driver");
        let mut there = sh("echo $CUDA_VISIBLE_DEVICES");
        (there.pool, there.gpus) = (a100, 8);
        let there_id = there.job;
        second.submit(there).await.expect("taken");
        let (end, _) = bench.run(sh("true")).await;
        assert_eq!(end, End::Complete);
        bench.until("the other ends", |_| matches!(second.poll(&there_id, 1), AttemptStatus::Done { .. })).await;
        let record = second.record(&there_id, 1).await.expect("a record");
        assert_eq!(record.executors[0].stdout, "0,1,2,3,4,5,6,7\n");
        assert!(bench.cluster.jobs_named(&name(there_id)).is_empty());
        assert_eq!(second.pools(), [a100]);
    });
}
