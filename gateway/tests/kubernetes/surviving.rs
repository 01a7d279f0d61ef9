//! What survives the gateway, and what is never done twice.

use federation::End;
use gateway::driver::AttemptStatus;
use k8s_openapi::api::batch::v1::Job;
use kube::api::PostParams;
use serde_json::json;

use super::bench::{ended, name, on, reason, statuses};

#[test]
fn an_attempt_goes_on_under_the_next_gateway() {
    on(async |bench| {
        let order = bench.order(&["true"]);
        let job = bench.submit(order.clone()).await;
        let pod = bench.starts(job).await;
        let before = bench.jobs().get(&name(job)).await.expect("a Job").metadata.uid;
        bench.restart().await;
        bench.driver().submit(order.clone()).await.expect("taken before");
        bench.reaches(job, |it| matches!(it, AttemptStatus::Running { .. })).await;
        assert_eq!(bench.jobs().get(&name(job)).await.expect("a Job").metadata.uid, before);
        assert_eq!(bench.pods_of(job).await.len(), 1);
        bench.stop();
        // It ends while nobody looks.
        bench.report(&pod, statuses("Succeeded", &pod, &[ended(0, "Completed")])).await;
        bench.restart().await;
        assert_eq!(bench.done(job).await.0, End::Complete);
        bench.restart().await;
        assert_eq!(bench.done(job).await.0, End::Complete);
        bench.is_gone(job).await;
    });
}

#[test]
fn an_attempt_that_ended_before_its_pod_was_seen_has_its_exit_code_and_its_log() {
    on(async |bench| {
        let job = bench.submit(bench.order(&["false"])).await;
        let pod = bench.bound(job).await;
        bench.stop();
        bench.forgets(job, &["pod"]);
        bench.writes(&pod, 0, b"2026-01-01T00:00:01.9Z no\n");
        bench.report(&pod, statuses("Failed", &pod, &[ended(3, "Error")])).await;
        bench.finished(job).await;
        bench.restart().await;
        let (end, record) = bench.done(job).await;
        assert_eq!(end, End::ExecutorError { exit_code: 3 });
        assert!(record.running_ms.is_some());
        assert_eq!((record.executors[0].exit_code, record.executors[0].stdout.as_str()), (3, "no\n"));
        assert_eq!(bench.log(job, 0).await, "no\n");
    });
}

#[test]
fn a_job_whose_answer_was_lost_is_found_and_made_once() {
    on(async |bench| {
        let order = bench.order(&["true"]);
        let job = bench.submit(order.clone()).await;
        let pod = bench.bound(job).await;
        let uid = bench.jobs().get(&name(job)).await.expect("a Job").metadata.uid;
        bench.stop();
        // As if the gateway had been killed between the request and the note of its answer.
        bench.forgets(job, &["uid", "pod"]);
        bench.restart().await;
        bench.until("the Job is found again", async || bench.entry(job)["pod"].is_string().then_some(())).await;
        assert_eq!(bench.entry(job)["uid"].as_str(), uid.as_deref());
        assert_eq!(bench.jobs().get(&name(job)).await.expect("a Job").metadata.uid, uid);
        let pods = bench.pods_of(job).await;
        assert_eq!(pods.iter().map(|it| &it.metadata.uid).collect::<Vec<_>>(), [&pod.metadata.uid]);
        bench.report(&pod, statuses("Succeeded", &pod, &[ended(0, "Completed")])).await;
        assert_eq!(bench.done(job).await.0, End::Complete);
        bench.is_gone(job).await;
    });
}

#[test]
fn a_name_that_somebody_else_has_is_left_alone() {
    on(async |bench| {
        let order = bench.order(&["true"]);
        let name = name(order.job);
        let theirs = json!({"metadata": {"name": name}, "spec": {"suspend": true, "template": {"spec": {
            "restartPolicy": "Never", "containers": [{"name": "a", "image": "i"}]}}}});
        let theirs: Job = serde_json::from_value(theirs).expect("a Job");
        let theirs = bench.jobs().create(&PostParams::default(), &theirs).await.expect("a Job");
        let job = bench.submit(order).await;
        let (end, _) = bench.done(job).await;
        assert!(reason(&end).contains("is taken"), "{end:?}");
        let still = bench.jobs().get(&name).await.expect("a Job");
        assert_eq!((still.metadata.uid, still.metadata.deletion_timestamp), (theirs.metadata.uid, None));
    });
}

#[test]
fn what_nobody_remembers_does_not_run_on() {
    on(async |bench| {
        let job = bench.submit(bench.order(&["sleep 1000"])).await;
        let pod = bench.starts(job).await;
        bench.stop();
        std::fs::remove_dir_all(&bench.settings.journal).expect("a lost disk");
        bench.restart().await;
        bench
            .until("the pod is being deleted", async || {
                bench.pods_of(job).await.iter().any(|it| it.metadata.deletion_timestamp.is_some()).then_some(())
            })
            .await;
        bench.removes(&pod).await;
        bench.is_gone(job).await;
        assert_eq!(bench.driver().poll(&job, 1), AttemptStatus::Unknown);
    });
}
