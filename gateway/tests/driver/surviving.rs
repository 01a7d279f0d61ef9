//! What happens to attempts when processes are killed: nothing runs twice, nothing is lost.

use std::process::Command;

use federation::End;
use gateway::driver::{AttemptStatus, Driver, Isolation};

use super::bench::{Bench, isolations, marked_sleep, processes_with, sh, supervisor, until};

fn kill(pid: i32) {
    let pid = nix::unistd::Pid::from_raw(pid);
    nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL).expect("a kill");
}

#[tokio::test]
async fn a_running_attempt_survives_its_driver_and_is_concluded_by_the_next() {
    for isolation in isolations() {
        let mut bench = Bench::new(isolation);
        let go = bench.files().join("go");
        let mut order = sh("echo up; while ! [ -s /tmp/go ]; do sleep 0.02; done; echo done");
        if isolation == Isolation::Process {
            order = sh(&format!("echo up; while ! [ -e '{}' ]; do sleep 0.02; done; echo done", go.display()));
        }
        let job = bench.submit(order).await;
        bench.says(job, "up").await;
        bench.restart();
        assert!(!matches!(bench.local().poll(&job, 1), AttemptStatus::Unknown));
        bench.reaches(job, |it| matches!(it, AttemptStatus::Running { .. })).await;
        // Also what ends while nobody looks.
        bench.stop();
        std::fs::write(go, "go").expect("a file");
        let inside = bench.attempt_folder(job).join("work/root/tmp/go");
        std::fs::write(inside, "go").expect("a file");
        let done = bench.attempt_folder(job).join("done.json");
        until("the supervisor concludes alone", || done.exists()).await;
        bench.restart();
        let (end, record) = bench.done(job).await;
        assert_eq!(end, End::Complete, "{record:?}");
        assert_eq!(record.executors[0].stdout, "up\ndone\n", "it ran once");
    }
}

#[tokio::test]
async fn devices_stay_taken_over_a_restart() {
    let mut bench = Bench::new(Isolation::Process);
    let mut order = sh("echo up; sleep 1000");
    order.gpus = 8;
    let job = bench.submit(order).await;
    bench.restart();
    assert!(bench.local().submit(sh("true")).await.is_err());
    bench.cancel(job).await;
    bench.done(job).await;
    bench.run(sh("true")).await;
}

#[tokio::test]
async fn a_killed_supervisor_is_a_loss_and_not_a_second_run() {
    for isolation in isolations() {
        for driver_sees_it in [true, false] {
            let mut bench = Bench::new(isolation);
            let seconds = marked_sleep();
            let job = bench.submit(sh(&format!("echo up; setsid sleep {seconds}"))).await;
            bench.says(job, "up").await;
            until("the sleeper", || processes_with(&seconds) > 0).await;
            if !driver_sees_it {
                bench.stop();
            }
            kill(supervisor(&bench, job));
            if !driver_sees_it {
                bench.restart();
            }
            let (end, record) = bench.done(job).await;
            assert!(matches!(end, End::Lost { .. }), "{record:?}");
            assert_eq!(processes_with(&seconds), 0, "{isolation:?}");
            bench.restart();
            assert!(matches!(bench.done(job).await.0, End::Lost { .. }));
            assert_eq!(bench.stdout(job).await, "up\n", "it ran once");
        }
    }
}

#[tokio::test]
async fn an_order_that_comes_twice_runs_once() {
    let mut bench = Bench::new(Isolation::Process);
    let order = sh("echo ran");
    let job = order.job;
    let local = bench.local();
    let both = tokio::join!(local.submit(order.clone()), local.submit(order.clone()));
    assert!(both.0.is_ok() && both.1.is_ok());
    bench.done(job).await;
    bench.restart();
    bench.submit(order).await;
    bench.done(job).await;
    assert_eq!(bench.stdout(job).await, "ran\n");
}

#[tokio::test]
async fn a_claim_whose_driver_was_killed_before_it_started_a_supervisor_runs_once() {
    let mut bench = Bench::prepare(Isolation::Process);
    let real = bench.settings.supervisor.clone();
    // Stands for the crash: a supervisor that never takes the attempt.
    bench.settings.supervisor = vec!["/bin/sh".into(), "-c".into(), "sleep 1000".into()];
    bench.restart();
    let job = bench.submit(sh("echo ran")).await;
    bench.stop();
    bench.settings.supervisor = real;
    bench.restart();
    assert_eq!(bench.done(job).await.0, End::Complete);
    assert_eq!(bench.stdout(job).await, "ran\n");
}

#[tokio::test]
async fn of_many_supervisors_of_one_attempt_one_runs_it() {
    let mut bench = Bench::prepare(Isolation::Process);
    let real = env!("CARGO_BIN_EXE_entente");
    bench.settings.supervisor = vec!["/bin/sh".into(), "-c".into(), "sleep 1000".into()];
    bench.restart();
    let job = bench.submit(sh("echo ran")).await;
    let folder = bench.attempt_folder(job);
    let start = |_| {
        let mut command = Command::new(real);
        command.arg("run-attempt").arg(&folder).spawn().expect("a supervisor")
    };
    let supervisors: Vec<_> = (0..8).map(start).collect();
    assert_eq!(bench.done(job).await.0, End::Complete);
    for mut supervisor in supervisors {
        assert!(supervisor.wait().expect("an end").success());
    }
    assert_eq!(bench.stdout(job).await, "ran\n");
}

#[tokio::test]
async fn a_supervisor_that_cannot_start_ends_the_attempt() {
    let mut bench = Bench::prepare(Isolation::Process);
    bench.settings.supervisor = vec!["/bin/false".into()];
    bench.restart();
    let (end, record) = bench.run(sh("echo ran")).await;
    assert!(matches!(end, End::Lost { .. }));
    assert!(record.system_logs[0].contains("did not start"), "{record:?}");
}

#[tokio::test]
async fn half_made_claims_are_swept() {
    let mut bench = Bench::new(Isolation::Process);
    let draft = bench.settings.attempts.join(".draft-0123456789abcdef");
    std::fs::create_dir(&draft).expect("a folder");
    bench.restart();
    assert!(!draft.exists());
}
