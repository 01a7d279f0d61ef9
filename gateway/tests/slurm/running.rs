//! What runs, as whom, with what, and what comes of it.

use std::os::unix::fs::MetadataExt;

use federation::End;
use gateway::driver::{AttemptStatus, LogStream, Pipe, Source, StageIn, StageKind, StageOut};

use super::bench::{Like, USUAL, account, name, on, reason, sh, step, steps};

#[test]
fn a_task_runs_as_its_researchers_account_on_devices_of_slurms_choice() {
    on(USUAL, async |bench| {
        let script =
            "id -un; id -gn; echo $CUDA_VISIBLE_DEVICES; echo $ENTENTE_GPUS; echo $SLURM_JOB_NAME; pwd; echo err >&2";
        let mut order = sh(script);
        order.gpus = 3;
        order.executors[0].env.insert("CUDA_VISIBLE_DEVICES".into(), "0,1,2,3,4,5,6,7".into());
        let job = order.job;
        let (end, record) = bench.run(order).await;
        assert_eq!(end, End::Complete, "{record:?}");
        let lines: Vec<&str> = record.executors[0].stdout.lines().collect();
        assert_eq!(lines[..5], ["ent-alice", "ent-alice", "0,1,2", "3", &name(job)], "{record:?}");
        assert_eq!(record.executors[0].stderr, "err\n");
        assert_eq!((record.metadata["isolation"].as_str(), record.metadata["devices"].as_str()), ("process", "0,1,2"));
        assert!(record.system_logs.iter().any(|line| line.contains("is COMPLETED, exit 0:0")), "{record:?}");
        assert!(record.begin_ms > 0 && record.running_ms.is_some() && record.end_ms >= record.running_ms);
        let listed = bench.cluster.jobs_named(&name(job));
        assert!(listed.len() == 1 && listed[0].ends_with(" ent-alice"), "{listed:?}");
    });
}

#[test]
fn an_end_is_the_tasks_own_with_slurms_word_beside_it() {
    on(USUAL, async |bench| {
        for (script, code) in [("exit 3", 3), ("kill -9 $$", 137), ("kill -TERM $$", 143)] {
            let (end, record) = bench.run(sh(script)).await;
            assert_eq!(end, End::ExecutorError { exit_code: code }, "{script}: {record:?}");
            assert_eq!(record.executors[0].exit_code, code);
        }
        let (end, record) = bench.run(steps(vec![step(&["no-such-program"])])).await;
        assert_eq!(end, End::ExecutorError { exit_code: 127 }, "{record:?}");
        let mut late = sh("sleep 1000");
        late.walltime_s = 1;
        let (end, _) = bench.run(late).await;
        assert_eq!(reason(&end), "walltime of 1 s is over");
    });
}

#[test]
fn steps_run_in_order_and_logs_are_read_while_they_do() {
    on(USUAL, async |bench| {
        let first = step(&["sh", "-c", "echo one; while [ ! -e go ]; do sleep 0.1; done; echo two; exit 5"]);
        let mut may_fail = first.clone();
        may_fail.ignore_error = true;
        let second = step(&["sh", "-c", "echo three; exit 6"]);
        let job = bench.submit(steps(vec![may_fail, second.clone(), second])).await;
        bench.says(job, "one\n").await;
        bench.runs(job).await;
        assert_eq!(bench.log(job, 4).await, "", "nothing yet");
        let stream = LogStream { executor: 0, pipe: Pipe::Stdout };
        let chunk = bench.driver().logs(&job, 1, stream, 2, 1).await.expect("a chunk");
        assert_eq!((chunk.bytes.as_slice(), chunk.next_offset, chunk.end), (&b"e"[..], 3, false));
        let folder = bench.spool("ent-alice", job);
        std::fs::write(folder.join("work/root/work/go"), "").expect("a file");
        let (end, record) = bench.done(job).await;
        assert_eq!(end, End::ExecutorError { exit_code: 6 });
        let codes: Vec<i32> = record.executors.iter().map(|it| it.exit_code).collect();
        assert_eq!(codes, [5, 6], "the third never ran");
        let chunk = bench.driver().logs(&job, 1, stream, 4, 100).await.expect("a chunk");
        assert_eq!((chunk.bytes.as_slice(), chunk.end), (&b"two\n"[..], true));
        assert!(!folder.join("work").exists() && !folder.join("order.json").exists(), "the task's files are gone");
        bench.driver().forget(&job, 1).await.expect("forgotten");
        assert!(!folder.exists());
        assert_eq!(bench.driver().poll(&job, 1), AttemptStatus::Unknown);
        assert_eq!(bench.driver().held(), []);
    });
}

#[test]
fn files_are_brought_and_delivered_as_the_account() {
    on(USUAL, async |bench| {
        let mut order =
            sh("tr a-z A-Z </in/text >/dev/null 2>&1; tr a-z A-Z <$ENTENTE_ROOT/in/text >$ENTENTE_ROOT/out/text");
        order.inputs = vec![StageIn {
            path: "/in/text".into(),
            source: Source::Content(b"hello".to_vec()),
            kind: StageKind::File,
        }];
        let url = |name: &str| format!("file://{}", bench.files().join(name).display());
        order.outputs =
            vec![StageOut { url: url("text"), path: "/out/text".into(), path_prefix: None, kind: StageKind::File }];
        let (end, record) = bench.run(order).await;
        assert_eq!(end, End::Complete, "{record:?}");
        let delivered = bench.files().join("text");
        assert_eq!(std::fs::read_to_string(&delivered).expect("a file"), "HELLO");
        assert_eq!(std::fs::metadata(&delivered).expect("a file").uid(), account("ent-alice").uid.as_raw());
        assert_eq!(record.outputs[0].size_bytes, 5);
        let mut outside = sh("true");
        outside.outputs = vec![StageOut {
            url: "file:///etc/x".into(),
            path: "/out/x".into(),
            path_prefix: None,
            kind: StageKind::File,
        }];
        assert!(bench.driver().check(&outside).is_err());
    });
}

#[test]
fn a_sites_launcher_is_put_before_the_command() {
    on(USUAL, async |bench| {
        let launcher = ["env", "IMAGE={image}", "DIR={workdir}", "BIND={root}/{top}:/{top}"];
        bench.settings.launcher = launcher.map(str::to_owned).into();
        bench.restart().await;
        let mut order = sh("echo $IMAGE $DIR; echo $BIND; echo [$ENTENTE_ROOT]");
        order.executors[0].image = "py thon;x".into();
        let (end, record) = bench.run(order).await;
        assert_eq!(end, End::Complete, "{record:?}");
        let lines: Vec<&str> = record.executors[0].stdout.lines().collect();
        assert_eq!((lines[0], lines[2]), ("py thon;x /work", "[]"), "{record:?}");
        assert!(lines[1].ends_with("/work/root/work:/work"), "{record:?}");
        let mut option = sh("true");
        option.executors[0].image = "--privileged".into();
        assert!(bench.driver().check(&option).is_err());
        bench.settings.launcher = vec!["/nowhere/apptainer".into(), "{image}".into()];
        bench.restart().await;
        let (end, record) = bench.run(sh("true")).await;
        assert_eq!(reason(&end), "executor 0 could not be run", "{record:?}");
    });
}

#[test]
fn memory_is_slurms_to_limit() {
    on(Like { options: &[("CGROUPS", "1")], ..USUAL }, async |bench| {
        // Shared memory counts for the job and not for one process.
        let file = format!("/dev/shm/entente-{}", std::process::id());
        let mut order = sh(&format!("head -c 1500M /dev/zero >{file}; code=$?; rm -f {file}; exit $code"));
        order.ram_gib = 1;
        let (end, record) = bench.run(order).await;
        let _not_there = std::fs::remove_file(&file);
        let said = record.system_logs.join("\n");
        assert!(said.contains("OUT_OF_MEMORY"), "{end:?} {record:?}");
        match end {
            End::ExecutorError { exit_code: 137 } => {}
            other => assert_eq!(reason(&other), "the job ran out of memory"),
        }
        let (end, record) = bench.run(sh("echo fine")).await;
        assert_eq!(end, End::Complete, "{record:?}");
    });
}

#[test]
fn slurms_own_time_limit_ends_what_is_over_it() {
    on(USUAL, async |bench| {
        let job = bench.submit(sh("sleep 1000")).await;
        bench.runs(job).await;
        let listed = bench.cluster.jobs_named(&name(job));
        let id = listed[0].split(' ').nth(1).expect("a number").to_owned();
        bench.cluster.admin(&["scontrol", "update", &format!("JobId={id}"), "TimeLimit=1"]);
        let (end, record) = bench.done(job).await;
        assert_eq!(reason(&end), "the factory's time limit of 1 min was reached", "{record:?}");
        assert!(record.system_logs.iter().any(|line| line.contains("TIMEOUT")), "{record:?}");
    });
}
