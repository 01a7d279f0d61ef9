//! How an attempt is ended, and that nothing of it is left.

use federation::End;
use gateway::driver::{AttemptStatus, Driver, Isolation};

use super::bench::{Bench, isolations, marked_sleep, processes_with, sh, until};

/// A script whose sleeper has left its parent, its group and its session.
fn detaching(seconds: &str, then: &str) -> String {
    format!("(setsid sh -c 'trap \"\" TERM HUP; sleep {seconds} & echo up; wait' &) ; {then}")
}

#[tokio::test]
async fn a_cancel_ends_what_detached_itself_and_only_then_is_it_done() {
    for isolation in isolations() {
        let bench = Bench::new(isolation);
        let seconds = marked_sleep();
        let job = bench.submit(sh(&detaching(&seconds, "sleep 1000"))).await;
        bench.says(job, "up").await;
        until("the sleeper", || processes_with(&seconds) == 1).await;
        bench.cancel(job).await;
        let (end, record) = bench.done(job).await;
        assert_eq!(end, End::Canceled, "{record:?}");
        assert_eq!(processes_with(&seconds), 0, "{isolation:?}");
    }
}

#[tokio::test]
async fn a_step_that_ends_takes_its_background_with_it() {
    for isolation in isolations() {
        let bench = Bench::new(isolation);
        let seconds = marked_sleep();
        let wait_up = "while ! [ -e up ]; do :; done";
        let script = detaching(&seconds, wait_up).replace("echo up", "touch up");
        let (end, record) = bench.run(sh(&script)).await;
        assert_eq!(end, End::Complete, "{record:?}");
        assert_eq!(processes_with(&seconds), 0, "{isolation:?}");
    }
}

#[tokio::test]
async fn a_task_is_asked_to_end_before_it_is_killed() {
    for isolation in isolations() {
        let bench = Bench::new(isolation);
        let script = "trap 'echo saved; exit 0' TERM; echo up; while :; do sleep 0.05; done";
        let job = bench.submit(sh(script)).await;
        bench.says(job, "up").await;
        bench.cancel(job).await;
        let (end, record) = bench.done(job).await;
        assert_eq!(end, End::Canceled);
        assert_eq!(record.executors[0].stdout, "up\nsaved\n", "{isolation:?}");
    }
}

#[tokio::test]
async fn a_walltime_ends_a_task_with_its_reason() {
    for isolation in isolations() {
        let bench = Bench::new(isolation);
        let seconds = marked_sleep();
        let mut order = sh(&format!("sleep {seconds}"));
        order.walltime_s = 1;
        let (end, record) = bench.run(order).await;
        let reason = "walltime of 1 s is over";
        assert_eq!(record.system_logs, [reason]);
        assert_eq!(end, End::system_error(reason));
        assert_eq!(processes_with(&seconds), 0, "{isolation:?}");
    }
}

#[tokio::test]
async fn an_attempt_cancelled_before_it_came_never_runs() {
    let mut bench = Bench::new(Isolation::Process);
    let order = sh("echo ran");
    bench.cancel(order.job).await;
    let job = bench.submit(order.clone()).await;
    assert_eq!(bench.done(job).await.0, End::Canceled);
    bench.restart();
    bench.submit(order).await;
    assert_eq!(bench.done(job).await.0, End::Canceled);
    assert_eq!(bench.stdout(job).await, "");
}

#[tokio::test]
async fn a_cancel_after_the_end_changes_nothing() {
    let bench = Bench::new(Isolation::Process);
    let order = sh("true");
    let job = order.job;
    assert_eq!(bench.run(order).await.0, End::Complete);
    bench.cancel(job).await;
    assert_eq!(bench.done(job).await.0, End::Complete);
}

#[tokio::test]
async fn only_what_is_done_can_be_forgotten() {
    let bench = Bench::new(Isolation::Process);
    let job = bench.submit(sh("sleep 1000")).await;
    assert!(bench.local().forget(&job, 1).await.is_err());
    bench.cancel(job).await;
    bench.done(job).await;
    bench.local().forget(&job, 1).await.expect("forgotten");
    assert_eq!(bench.local().poll(&job, 1), AttemptStatus::Unknown);
    assert!(!bench.attempt_folder(job).exists());
}
