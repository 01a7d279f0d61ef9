//! What runs, with what, and what comes of it.

use std::collections::BTreeSet;

use federation::End;
use gateway::driver::{Driver, DriverError, Isolation, LogStream, Pipe, WorkOrder};

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
    let bench = Bench::new(Isolation::Process);
    let (end, record) = bench.run(order(&["no-such-program"])).await;
    assert_eq!(end, End::ExecutorError { exit_code: 127 });
    assert!(record.executors[0].stderr.contains("cannot start"), "{record:?}");
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

#[tokio::test]
async fn what_cannot_run_is_refused_with_a_reason() {
    let bench = Bench::new(Isolation::Process);
    let mut nameless = order(&["true"]);
    nameless.executors[0].env.insert("A=B".into(), "1".into());
    let mut outside = order(&["true"]);
    outside.executors[0].workdir = Some("/a/../../etc".into());
    let mut system = order(&["true"]);
    system.volumes = vec!["/usr/share/x".into()];
    let mut elsewhere = order(&["true"]);
    elsewhere.pool = federation::PoolId::parse("FR/jean-zay/other").expect("a pool");
    let zero = order(&["echo", "a\0b"]);
    for (order, reason) in [
        (steps(vec![]), "executors"),
        (order(&[]), "no command"),
        (zero, "zero byte"),
        (nameless, "without a name"),
        (outside, "without .."),
        (system, "belongs to the system"),
        (elsewhere, "not a pool"),
    ] {
        match bench.local().submit(order).await {
            Err(DriverError::Refused(text)) => assert!(text.contains(reason), "{text}"),
            other => panic!("{reason}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn logs_are_read_by_offset_while_the_step_runs() {
    let bench = Bench::new(Isolation::Process);
    let job = bench.submit(sh("printf abcdef; sleep 1000")).await;
    bench.says(job, "abcdef").await;
    let read = |offset, max| {
        let stream = LogStream { executor: 0, pipe: Pipe::Stdout };
        bench.local().logs(&job, 1, stream, offset, max).expect("a log")
    };
    let piece = read(2, 3);
    assert_eq!((&piece.bytes[..], piece.next_offset, piece.end), (&b"cde"[..], 5, false));
    let waiting = read(6, 10);
    assert_eq!((waiting.bytes.len(), waiting.next_offset, waiting.end), (0, 6, false));
    bench.cancel(job).await;
    bench.done(job).await;
    assert!(read(6, 10).end);
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
        let record = bench.local().record(&job, 1).expect("a record");
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
    let reports = bench.local().capacity().await.expect("a report");
    assert_eq!(reports.len(), 1);
    assert_eq!(reports[0].pool, pool());
    assert_eq!((reports[0].lendable[0].gpus, reports[0].lendable[0].nodes), (4, 2));
}
