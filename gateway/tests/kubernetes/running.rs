//! What is asked for, and what comes of it.

use certs::MemberState;
use federation::End;
use gateway::driver::{AttemptStatus, LogStream, Pipe, Source, StageIn, StageKind};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use serde_json::json;

use super::bench::{PATIENCE, ended, name, on, reason, running, statuses};

#[test]
fn a_task_is_a_job_and_ends_when_its_pod_does() {
    on(async |bench| {
        let mut order = bench.order(&["echo one", "echo two"]);
        order.inputs = vec![StageIn {
            path: "/in/text".into(),
            source: Source::Content(b"hello".to_vec()),
            kind: StageKind::File,
        }];
        let job = bench.submit(order).await;
        let pod = bench.bound(job).await;
        assert_eq!(bench.driver().poll(&job, 1), AttemptStatus::Starting);
        let spec = pod.spec.clone().expect("a spec");
        assert_eq!(spec.security_context.and_then(|it| it.run_as_user), Some(20001));
        assert_eq!(spec.automount_service_account_token, Some(false));
        let secrets: Api<Secret> = Api::namespaced(bench.client.clone(), "climate");
        let secret =
            bench.until("the inputs are there", async || secrets.get_opt(&name(job)).await.expect("an answer"));
        assert_eq!(secret.await.data.expect("data")["input-0"].0, b"hello");

        // All within one second, and beyond its half.
        let one = b"2026-01-01T00:00:01.6Z one\n".as_slice();
        let more = b"2026-01-01T00:00:01.7Z m\xffre\n".as_slice();
        bench.writes(&pod, 0, one);
        bench.report(&pod, statuses("Running", &pod, &[running()])).await;
        bench.reaches(job, |it| matches!(it, AttemptStatus::Running { .. })).await;
        let has = async |executor, text: &str| {
            let happened = async || (bench.log(job, executor).await == text).then_some(());
            bench.until(text, happened).await;
        };
        has(0, "one\n").await;
        bench.writes(&pod, 0, &[one, more].concat());
        has(0, "one\nm\u{fffd}re\n").await;
        bench.report(&pod, statuses("Running", &pod, &[ended(0, "Completed"), running()])).await;
        bench.writes(&pod, 1, b"2026-01-01T00:00:03Z two");
        bench.report(&pod, statuses("Succeeded", &pod, &[ended(0, "Completed"), ended(0, "Completed")])).await;
        let (end, record) = bench.done(job).await;
        assert_eq!(end, End::Complete, "{record:?}");
        let outputs: Vec<_> = record.executors.iter().map(|it| (it.exit_code, it.stdout.as_str())).collect();
        assert_eq!(outputs, [(0, "one\nm\u{fffd}re\n"), (0, "two")], "the last lines are waited for");
        let stream = LogStream { executor: 1, pipe: Pipe::Stdout };
        let chunk = bench.driver().logs(&job, 1, stream, 1, 100).await.expect("a chunk");
        assert_eq!((chunk.bytes.as_slice(), chunk.end), (&b"wo"[..], true));
        bench.is_gone(job).await;
        bench
            .until("the inputs are gone", async || {
                secrets.get_opt(&name(job)).await.expect("an answer").is_none().then_some(())
            })
            .await;
        bench.driver().forget(&job, 1).await.expect("forgotten");
        assert_eq!(bench.driver().poll(&job, 1), AttemptStatus::Unknown);
    });
}

#[test]
fn an_end_is_the_tasks_own_or_says_what_kubernetes_did() {
    on(async |bench| {
        for (code, word, evicted, expected) in [
            (3, "Error", None, "ExecutorError { exit_code: 3 }"),
            (137, "OOMKilled", None, "the job ran out of memory"),
            (137, "Error", Some("Evicted"), "the factory evicted the job"),
        ] {
            let job = bench.submit(bench.order(&["false"])).await;
            let pod = bench.starts(job).await;
            let mut status = statuses("Failed", &pod, &[ended(code, word)]);
            status["reason"] = json!(evicted);
            bench.report(&pod, status).await;
            let (end, record) = bench.done(job).await;
            assert!(reason(&end).contains(expected), "{end:?}");
            assert_eq!(record.executors[0].exit_code, code);
            assert!(record.system_logs.iter().any(|it| it.contains("Failed")), "{record:?}");
        }
    });
}

#[test]
fn an_image_that_cannot_be_is_given_up() {
    on(async |bench| {
        let job = bench.submit(bench.order(&["true"])).await;
        let pod = bench.bound(job).await;
        let waiting = json!({"waiting": {"reason": "InvalidImageName", "message": "couldn't parse secret.example"}});
        bench.report(&pod, statuses("Pending", &pod, &[waiting])).await;
        bench
            .until("the pod is deleted", async || {
                bench.pods_of(job).await.iter().any(|it| it.metadata.deletion_timestamp.is_some()).then_some(())
            })
            .await;
        bench.removes(&pod).await;
        let (end, record) = bench.done(job).await;
        assert!(reason(&end).contains("the image of executor 0 could not be pulled"), "{end:?}");
        assert!(record.system_logs.iter().any(|it| it.contains("secret.example")), "{record:?}");
    });
}

#[test]
fn a_namespace_that_the_cluster_does_not_have_is_waited_for() {
    on(async |bench| {
        let mut order = bench.order(&["true"]);
        order.researcher.home = MemberState::parse("SE").expect("a state");
        let job = bench.submit(order).await;
        // Others go on meanwhile.
        let other = bench.submit(bench.order(&["true"])).await;
        bench.bound(other).await;
        let entry = || bench.entry(job);
        bench.until("it was asked for", async || entry()["posted_ms"].is_u64().then_some(())).await;
        assert_eq!((bench.driver().poll(&job, 1), entry()["uid"].is_null()), (AttemptStatus::Starting, true));
        bench.driver().cancel(&job, 1).await.expect("a heard cancel");
        // It was certainly refused, so nothing is waited for as after a lost answer.
        let done = tokio::time::timeout(PATIENCE / 3, bench.done(job)).await.expect("an end at once");
        assert_eq!(done.0, End::Canceled);
    });
}

#[test]
fn who_is_not_mapped_and_what_cannot_be_is_refused() {
    on(async |bench| {
        let mut nobody = bench.order(&["true"]);
        nobody.researcher.home = MemberState::parse("DE").expect("a state");
        let why = bench.driver().check(&nobody).expect_err("refused");
        assert!(why.contains("no namespace for the researcher"), "{why}");
        let mut ignoring = bench.order(&["true"]);
        ignoring.executors[0].ignore_error = true;
        assert!(bench.driver().check(&ignoring).expect_err("refused").contains("ignore_error"));
        // What only the API server knows to be wrong.
        let mut endless = bench.order(&["true"]);
        endless.walltime_s = u32::MAX;
        let job = bench.submit(endless).await;
        let (end, record) = bench.done(job).await;
        assert!(reason(&end).contains("the factory's Kubernetes does not take the job"), "{end:?}");
        assert!(record.system_logs.iter().any(|it| it.contains("activeDeadlineSeconds")), "{record:?}");
    });
}
