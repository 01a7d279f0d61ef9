//! Once and only once: whatever answer is lost, and whoever else uses the same name.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use federation::End;
use gateway::driver::AttemptStatus;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::bench::{Bench, Like, USUAL, name, on, pool, sh};

/// What becomes of the next submissions on their way.
#[derive(Clone, Copy, PartialEq)]
enum Fate {
    /// Slurm carries it out, and its answer is lost.
    AnswerLost,
    /// It never arrives, and nobody says so.
    RequestLost,
}

/// A way to slurmrestd that loses some submissions.
async fn lossy(bench: &mut Bench, fate: Fate, count: u32) -> Arc<AtomicU32> {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let behind = bench.cluster.url().trim_start_matches("http://").to_owned();
    let left = Arc::new(AtomicU32::new(count));
    let losses = Arc::clone(&left);
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            tokio::spawn(pass(near, behind.clone(), fate, Arc::clone(&losses)));
        }
    });
    bench.settings.url = format!("http://{address}");
    bench.restart().await;
    left
}

async fn pass(mut near: TcpStream, behind: String, fate: Fate, left: Arc<AtomicU32>) {
    let mut heard = vec![0; 65_536];
    let length = near.read(&mut heard).await.unwrap_or_default();
    let is_submission = heard[..length].starts_with(b"POST");
    let is_lost = is_submission && left.try_update(Ordering::SeqCst, Ordering::SeqCst, |it| it.checked_sub(1)).is_ok();
    if is_lost && fate == Fate::RequestLost {
        return;
    }
    let Ok(mut far) = TcpStream::connect(&behind).await else {
        return;
    };
    if far.write_all(&heard[..length]).await.is_err() {
        return;
    }
    if is_lost {
        // Headers and body may come apart: the body's end is the answer's begin.
        let (mut answer, mut request) = far.split();
        let mut first = [0; 1];
        tokio::select! {
            _ = tokio::io::copy(&mut near, &mut request) => {}
            _ = answer.read(&mut first) => {}
        }
        return;
    }
    let _ended = tokio::io::copy_bidirectional(&mut near, &mut far).await;
}

#[test]
fn a_lost_answer_is_found_by_name() {
    on(USUAL, async |bench| {
        let left = lossy(bench, Fate::AnswerLost, 3).await;
        for _ in 0..5 {
            let order = sh("echo ran");
            let job = order.job;
            let (end, record) = bench.run(order).await;
            assert_eq!(end, End::Complete, "{record:?}");
            assert_eq!(bench.cluster.jobs_named(&name(job)).len(), 1);
        }
        assert_eq!(left.load(Ordering::SeqCst), 0);
    });
}

#[test]
fn a_lost_request_is_repeated_when_it_can_no_longer_arrive() {
    on(USUAL, async |bench| {
        lossy(bench, Fate::RequestLost, 1).await;
        let order = sh("echo ran");
        let job = order.job;
        let begun = std::time::Instant::now();
        let (end, record) = bench.run(order).await;
        assert_eq!(end, End::Complete, "{record:?}");
        assert!(begun.elapsed() > Duration::from_secs(20), "it could still have arrived");
        assert_eq!(bench.cluster.jobs_named(&name(job)).len(), 1);
    });
}

#[test]
fn a_gateway_that_was_killed_before_it_heard_the_answer_finds_its_job() {
    on(USUAL, async |bench| {
        lossy(bench, Fate::AnswerLost, 1).await;
        let job = bench.submit(sh("sleep 2; echo ran")).await;
        bench.is_at_slurm(job).await;
        bench.restart().await;
        let (end, record) = bench.done(job).await;
        assert_eq!(end, End::Complete, "{record:?}");
        assert_eq!(bench.cluster.jobs_named(&name(job)).len(), 1);
    });
}

#[test]
fn the_same_order_twice_is_one_job_and_a_name_alone_is_nobodys() {
    on(USUAL, async |bench| {
        let order = sh("sleep 1; echo $(id -un)");
        let job = order.job;
        // A local user knows the name before us.
        let words = [
            "sbatch",
            "--parsable",
            "--partition=local",
            "--output=/dev/null",
            "--job-name",
            &name(job),
            "--wrap=sleep 1000",
        ];
        bench.cluster.as_user("ent-bob", &words);
        let (first, second) = tokio::join!(bench.driver().submit(order.clone()), bench.driver().submit(order.clone()));
        first.expect("taken");
        second.expect("taken");
        bench.driver().submit(order.clone()).await.expect("taken");
        bench.restart().await;
        bench.driver().submit(order).await.expect("taken");
        let (end, record) = bench.done(job).await;
        assert_eq!((end, record.executors[0].stdout.as_str()), (End::Complete, "ent-alice\n"), "{record:?}");
        let listed = bench.cluster.jobs_named(&name(job));
        assert_eq!(listed.iter().filter(|it| it.ends_with(" ent-alice")).count(), 1, "{listed:?}");
        assert!(listed.iter().any(|it| it.contains(" RUNNING ent-bob")), "not ours to end: {listed:?}");
    });
}

#[test]
fn a_gateway_that_may_not_see_jobs_asks_as_their_owner_and_says_so() {
    on(Like { options: &[("CONF", "PrivateData=jobs")], ..USUAL }, async |bench| {
        let order = sh("sleep 20; echo ran");
        let job = order.job;
        let (end, record) = bench.run(order).await;
        assert_eq!((end, record.executors[0].stdout.as_str()), (End::Complete, "ran\n"), "{record:?}");
        assert_eq!(bench.cluster.jobs_named(&name(job)).len(), 1);
        let report = bench.driver().capacity(&pool()).expect("a report");
        assert_eq!(report.problem.as_deref(), Some("Slurm hides jobs from the gateway's account"));
        assert_eq!(report.lendable, []);
    });
}

#[test]
fn a_second_job_of_an_attempt_runs_nothing() {
    on(Like { nodes: &["h100:4"], options: &[] }, async |bench| {
        bench.settings.pools[0].nodes = 1;
        bench.restart().await;
        let file = bench.files().join("lines");
        let go = bench.files().join("go");
        let script = format!("echo ran >>{}; while ! [ -e {} ]; do sleep 0.1; done", file.display(), go.display());
        let job = bench.submit(sh(&script)).await;
        bench.runs(job).await;
        let folder = bench.spool("ent-alice", job);
        let line = format!("--wrap={} run-attempt {}", bench.settings.program.display(), folder.display());
        let words =
            ["sbatch", "--parsable", "--partition=federated", "--output=/dev/null", "--job-name", &name(job), &line];
        bench.cluster.as_user("ent-alice", &words);
        std::fs::write(go, "").expect("a file");
        let (end, record) = bench.done(job).await;
        assert_eq!(end, End::Complete, "{record:?}");
        assert_eq!(std::fs::read_to_string(file).expect("a file"), "ran\n");
        assert!(matches!(bench.driver().poll(&job, 1), AttemptStatus::Done { .. }));
    });
}

/// As a try that Slurm carries out late, after it was made again, leaves one behind.
#[test]
fn a_second_job_of_an_attempt_that_waits_is_ended() {
    on(USUAL, async |bench| {
        bench.lends(pool(), "4x2").await;
        let theirs = bench.cluster.local_job("ent-bob", &["--nodes=2", "--gres=gpu:h100:4"]);
        bench.lends(pool(), "").await;
        let job = bench.submit(sh("echo ran")).await;
        bench.is_at_slurm(job).await;
        let own = bench.cluster.jobs_named(&name(job));
        let named = name(job);
        let words = ["sbatch", "--parsable", "--partition=federated", "--gres=gpu:h100:1", "--output=/dev/null"];
        let second = bench.cluster.as_user("ent-alice", &[&words[..], &["--job-name", &named, "--wrap=true"]].concat());
        let ended = format!("{named} {second} CANCELLED ent-alice");
        bench.until("the second is ended", |it| it.cluster.jobs_named(&named).contains(&ended)).await;
        assert!(
            own[0].ends_with(" PENDING ent-alice") && bench.cluster.jobs_named(&named).contains(&own[0]),
            "{own:?}"
        );
        bench.cluster.admin(&["scancel", &theirs]);
        let (end, record) = bench.done(job).await;
        assert_eq!((end, record.executors[0].stdout.as_str()), (End::Complete, "ran\n"), "{record:?}");
    });
}
