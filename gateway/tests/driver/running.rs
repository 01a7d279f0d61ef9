//! What runs, with what, and what comes of it.

use std::collections::BTreeSet;

use federation::End;
use gateway::driver::{
    AttemptStatus, Driver, DriverError, Isolation, LogStream, Pipe, Source, StageIn, StageKind, StageOut, WorkOrder,
};

use super::bench::{Bench, isolations, order, pool, sh, step, steps};

#[tokio::test]
async fn what_a_step_writes_is_in_its_log_and_its_record() {
    for isolation in isolations() {
        let bench = Bench::new(isolation);
        let (end, record) = bench.run(sh("echo out; echo err >&2")).await;
        assert_eq!(end, End::Complete, "{record:?}");
        let [executor] = &record.executors[..] else {
            panic!("{record:?}");
        };
        assert_eq!((executor.stdout.as_str(), executor.stderr.as_str()), ("out\n", "err\n"));
        assert_eq!(executor.exit_code, 0);
        assert!(record.running_ms.is_some() && record.end_ms >= record.running_ms);
        let named = format!("{isolation:?}").to_lowercase();
        assert_eq!(record.metadata["isolation"], named);
    }
}

async fn ends(order: WorkOrder, expected: End, codes: &[i32]) {
    for isolation in isolations() {
        let (end, record) = Bench::new(isolation).run(order.clone()).await;
        assert_eq!(end, expected, "{record:?}");
        let seen: Vec<i32> = record.executors.iter().map(|it| it.exit_code).collect();
        assert_eq!(seen, codes);
    }
}

#[tokio::test]
async fn an_exit_code_is_the_answer() {
    ends(sh("exit 3"), End::ExecutorError { exit_code: 3 }, &[3]).await;
    ends(sh("kill -9 $$"), End::ExecutorError { exit_code: 137 }, &[137]).await;
}

#[tokio::test]
async fn a_failing_step_ends_the_task_unless_it_may_fail() {
    let script = |text: &str| step(&["sh", "-c", text]);
    let mut may_fail = script("exit 3");
    may_fail.ignore_error = true;
    let all = vec![may_fail.clone(), script("true"), script("exit 4"), script("true")];
    ends(steps(all), End::ExecutorError { exit_code: 4 }, &[3, 0, 4]).await;
    ends(steps(vec![may_fail]), End::Complete, &[3]).await;
}

#[tokio::test]
async fn a_program_that_is_not_there_is_the_tasks_fault() {
    for (isolation, said) in isolations().into_iter().zip(["cannot start", "No such file"]) {
        let bench = Bench::new(isolation);
        let (end, record) = bench.run(order(&["no-such-program"])).await;
        assert_eq!(end, End::ExecutorError { exit_code: 127 }, "{isolation:?}: {record:?}");
        assert!(record.executors[0].stderr.contains(said), "{isolation:?}: {record:?}");
    }
}

#[tokio::test]
async fn steps_share_volumes_and_nothing_is_left_of_them() {
    for isolation in isolations() {
        let bench = Bench::new(isolation);
        let script = |text: &str| {
            let mut step = step(&["sh", "-c", text]);
            step.workdir = Some("/shared/deep".into());
            step
        };
        let mut both = steps(vec![script("echo kept > a"), script("cat a")]);
        both.volumes = vec!["/shared".into()];
        let job = both.job;
        let (end, record) = bench.run(both).await;
        assert_eq!(end, End::Complete, "{record:?}");
        assert_eq!(record.executors[1].stdout, "kept\n");
        let work = bench.attempt_folder(job).join("work");
        super::bench::until("the task's files are gone", || !work.exists()).await;
    }
}

#[tokio::test]
async fn arguments_and_variables_are_never_read_by_a_shell() {
    let hostile = "$(touch /tmp/pwned) `id`; rm -rf / | & > x \n \"'\\ *";
    for isolation in isolations() {
        let bench = Bench::new(isolation);
        let mut echo = step(&["printf", "%s", hostile]);
        echo.env.insert("V".into(), hostile.into());
        let mut print = step(&["printenv", "V"]);
        print.env = echo.env.clone();
        print.workdir = Some("/$(id)/; a".into());
        let (end, record) = bench.run(steps(vec![echo, print])).await;
        assert_eq!(end, End::Complete, "{record:?}");
        assert_eq!(record.executors[0].stdout, hostile);
        assert_eq!(record.executors[1].stdout, format!("{hostile}\n"));
    }
}

#[tokio::test]
async fn the_environment_is_the_tasks_and_ours_and_nothing_else() {
    for isolation in isolations() {
        let bench = Bench::new(isolation);
        let mut env = step(&["env"]);
        env.env.insert("OWN".into(), "1".into());
        env.env.insert("CUDA_VISIBLE_DEVICES".into(), "0,1,2,3,4,5,6,7".into());
        let order = steps(vec![env]);
        let job = order.job;
        let (_, record) = bench.run(order).await;
        let lines: BTreeSet<&str> = record.executors[0].stdout.lines().collect();
        let names: BTreeSet<&str> = lines.iter().filter_map(|it| Some(it.split_once('=')?.0)).collect();
        let expected = [
            "CUDA_VISIBLE_DEVICES",
            "ENTENTE_ATTEMPT",
            "ENTENTE_GPUS",
            "ENTENTE_JOB",
            "ENTENTE_ROOT",
            "HOME",
            "OWN",
            "PATH",
            "TMPDIR",
        ];
        // Bubblewrap says where it is.
        let names: Vec<&str> = names.into_iter().filter(|it| *it != "PWD").collect();
        assert_eq!(names, expected, "{isolation:?}");
        assert!(lines.contains("CUDA_VISIBLE_DEVICES=0"), "{lines:?}");
        assert!(lines.contains(format!("ENTENTE_JOB={job}").as_str()));
    }
}

/// Refused by `check` and by `submit`, with this reason, which must not repeat what the task says.
async fn is_refused(order: WorkOrder, reason: &str) {
    let bench = Bench::new(Isolation::Process);
    let text = bench.local().check(&order).expect_err(reason);
    assert!(text.contains(reason), "{text}");
    assert!(!text.contains("secret"), "{text}");
    match bench.local().submit(order).await {
        Err(DriverError::Refused(same)) => assert_eq!(same.as_str(), text),
        other => panic!("{reason}: {other:?}"),
    }
}

#[tokio::test]
async fn what_cannot_run_is_refused_with_a_reason_that_betrays_nothing() {
    let changed = |change: fn(&mut WorkOrder)| {
        let mut order = order(&["true", "secret"]);
        change(&mut order);
        order
    };
    let input = |url: &str, path: &str| {
        let mut order = order(&["true", "secret"]);
        order.inputs = vec![StageIn { path: path.into(), source: Source::Url(url.into()), kind: StageKind::File }];
        order
    };
    let output = |url: &str, path: &str| {
        let mut order = order(&["true", "secret"]);
        let (url, path) = (url.to_owned(), path.to_owned());
        order.outputs = vec![StageOut { url, path, path_prefix: None, kind: StageKind::File }];
        order
    };
    for (order, reason) in [
        (steps(vec![]), "executors"),
        (steps(vec![step(&["true"]); 65]), "executors"),
        (order(&[]), "executor 0 has no command"),
        (order(&["echo", "secret\0b"]), "zero byte"),
        (changed(|it| drop(it.executors[0].env.insert("secret=B".into(), "1".into()))), "without a name"),
        (changed(|it| it.executors[0].workdir = Some("/secret/../../etc".into())), "without .."),
        (changed(|it| it.volumes = vec!["/usr/share/secret".into()]), "volume 0 belongs to the system"),
        (changed(|it| it.pool = federation::PoolId::parse("FR/secret/other").expect("a pool")), "pool"),
        (changed(|it| it.gpus = 9), "has 8 GPUs, the task needs 9"),
        (input("https://secret.example/a?sig=secret", "/in/a"), "URL of input 0"),
        (input("file:///secret", "/in/a"), "not below a folder"),
        (input("file:///secret", "/etc/secret"), "input 0"),
        (output("ftp://secret.example", "/out/a"), "URL of output 0"),
        (output("ftp://secret.example", "/out/secret*"), "path_prefix"),
    ] {
        is_refused(order, reason).await;
    }
}

#[tokio::test]
async fn what_can_run_is_taken() {
    let bench = Bench::new(Isolation::Process);
    let mut busy = sh("sleep 1000");
    busy.gpus = 8;
    assert_eq!(bench.local().check(&busy), Ok(()));
    let job = bench.submit(busy).await;
    assert_eq!(bench.local().check(&sh("true")), Ok(()), "it has no room now, but will have");
    assert_eq!(bench.local().held(), [(job, 1)]);
    bench.cancel(job).await;
    bench.done(job).await;
    assert_eq!(bench.local().held(), [(job, 1)]);
    bench.local().forget(&job, 1).await.expect("forgotten");
    assert_eq!(bench.local().held(), []);
}

#[tokio::test]
async fn logs_are_read_by_offset_while_the_step_runs() {
    let bench = Bench::new(Isolation::Process);
    let job = bench.submit(sh("printf abcdef; sleep 1000")).await;
    bench.says(job, "abcdef").await;
    let read = async |offset, max| {
        let stream = LogStream { executor: 0, pipe: Pipe::Stdout };
        bench.local().logs(&job, 1, stream, offset, max).await.expect("a log")
    };
    let piece = read(2, 3).await;
    assert_eq!((&piece.bytes[..], piece.next_offset, piece.end), (&b"cde"[..], 5, false));
    let waiting = read(6, 10).await;
    assert_eq!((waiting.bytes.len(), waiting.next_offset, waiting.end), (0, 6, false));
    bench.cancel(job).await;
    bench.done(job).await;
    assert!(read(6, 10).await.end);
}

#[tokio::test]
async fn two_attempts_never_share_a_device() {
    let bench = Bench::new(Isolation::Process);
    let asking = |gpus| {
        let mut order = sh("echo up; sleep 1000");
        order.gpus = gpus;
        order
    };
    let mut devices = BTreeSet::new();
    let mut jobs = vec![];
    for gpus in [3, 4, 1] {
        let job = bench.submit(asking(gpus)).await;
        bench.says(job, "up").await;
        let record = bench.record(job).await;
        let given: Vec<u32> = record.metadata["devices"].split(',').map(|it| it.parse().expect("a number")).collect();
        assert_eq!(given.len(), gpus as usize);
        devices.extend(given);
        jobs.push(job);
    }
    assert_eq!(devices, (0..8).collect());
    let refused = bench.local().submit(asking(1)).await;
    assert!(matches!(refused, Err(DriverError::NoRoom { free: 0, need: 1, .. })), "{refused:?}");
    bench.cancel(jobs[2]).await;
    bench.done(jobs[2]).await;
    jobs[2] = bench.submit(asking(1)).await;
    for job in jobs {
        bench.cancel(job).await;
        bench.done(job).await;
    }
}

#[tokio::test]
async fn a_pool_lends_what_is_declared() {
    let bench = Bench::new(Isolation::Process);
    assert_eq!(bench.local().pools(), [pool()]);
    let report = bench.local().capacity(&pool()).expect("a report");
    assert_eq!((report.pool, report.problem.as_deref()), (pool(), None));
    assert_eq!((report.lendable[0].gpus, report.lendable[0].nodes), (4, 2));
    assert_eq!(bench.local().capacity(&pool()), Some(report), "it changes only when something has changed");
    let other = federation::PoolId::parse("FR/jean-zay/other").expect("a pool");
    assert_eq!(bench.local().capacity(&other), None);
}

#[tokio::test]
async fn what_is_asked_often_does_not_wait_for_a_disk() {
    let mut bench = Bench::new(Isolation::Process);
    let job = bench.submit(sh("exit 3")).await;
    bench.done(job).await;
    // Whoever reads this waits until somebody writes.
    let done = bench.attempt_folder(job).join("done.json");
    std::fs::remove_file(&done).expect("removed");
    nix::unistd::mkfifo(&done, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    let record = bench.local().record(&job, 1);
    tokio::task::yield_now().await;
    let status = bench.local().poll(&job, 1);
    let expected = End::ExecutorError { exit_code: 3 };
    assert!(matches!(status, AttemptStatus::Done { end, started_ms: Some(_) } if end == expected));
    assert_eq!(bench.local().held(), [(job, 1)]);
    bench.run(sh("true")).await;
    std::fs::write(&done, "{}").expect("written");
    let record = record.await.expect("a record");
    assert_eq!(record.system_logs[0], "the record of the attempt is unreadable");
    // Now for the one that comes up with such a file.
    std::fs::remove_file(&done).expect("removed");
    std::fs::write(&done, "{}").expect("written");
    bench.restart();
    let AttemptStatus::Done { end, started_ms: None } = bench.local().poll(&job, 1) else { panic!("it ran") };
    assert_eq!(end, End::system_error("the record of the attempt is unreadable"));
}
