//! How an attempt is ended, and that nothing of it is left.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use federation::End;
use gateway::driver::{AttemptStatus, Driver, Isolation};

use super::bench::{Bench, isolations, marked_sleep, processes_with, sh, skip_without, until};

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

/// A supervisor on whose machine bubblewrap waits for a file before it does anything. It needs a mount of its own.
fn with_late_bubblewrap(bench: &mut Bench) -> Result<PathBuf, String> {
    let (late, found, go) = (bench.files().join("late"), bench.files().join("bwrap"), bench.files().join("go"));
    std::fs::copy("/usr/bin/bwrap", &found).map_err(|cause| cause.to_string())?;
    let script = format!("#!/bin/sh\nwhile ! [ -e {} ]; do :; done\nexec {} \"$@\"\n", go.display(), found.display());
    std::fs::write(&late, script).expect("a script");
    std::fs::set_permissions(&late, std::fs::Permissions::from_mode(0o755)).expect("a mode");
    let mount = format!("mount --bind {} /usr/bin/bwrap && exec \"$@\"", late.display());
    let words = ["unshare", "--mount", "sh", "-c", &mount, "sh"];
    let tried = Command::new(words[0]).args(&words[1..]).arg("true").output().map_err(|cause| cause.to_string())?;
    if !tried.status.success() {
        return Err(String::from_utf8_lossy(&tried.stderr).trim().to_owned());
    }
    let supervisor = std::mem::take(&mut bench.settings.supervisor);
    bench.settings.supervisor = words.map(Into::into).into_iter().chain(supervisor).collect();
    Ok(go)
}

/// Who asks is there before the sandbox has started anything that could hear it.
#[tokio::test]
async fn a_task_whose_sandbox_is_still_being_made_is_asked_when_it_is_there() {
    if !isolations().contains(&Isolation::Bubblewrap) {
        return;
    }
    let mut bench = Bench::prepare(Isolation::Bubblewrap);
    let go = match with_late_bubblewrap(&mut bench) {
        Ok(go) => go,
        Err(missing) => {
            assert!(skip_without("mount", Some(missing)));
            return;
        }
    };
    bench.restart();
    let job = bench.submit(sh("exec sleep 1000")).await;
    bench.reaches(job, |it| matches!(it, AttemptStatus::Running { .. })).await;
    bench.cancel(job).await;
    // In this time it is asked. If it is asked later, it is there.
    tokio::time::sleep(Duration::from_secs(1)).await;
    std::fs::write(go, "").expect("a file");
    let (end, record) = bench.done(job).await;
    assert_eq!((end, record.executors[0].exit_code), (End::Canceled, 128 + 15), "{record:?}");
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
