//! How an attempt is stopped, by whom, and when it is over.

use std::time::Duration;

use federation::End;
use gateway::driver::AttemptStatus;
use kube::api::{DeleteParams, PropagationPolicy};
use serde_json::json;

use super::bench::{Bench, ended, on, reason, statuses};

use federation::JobId;

async fn is_being_deleted(bench: &Bench, job: JobId) {
    bench
        .until("the pod is being deleted", async || {
            bench.pods_of(job).await.iter().any(|it| it.metadata.deletion_timestamp.is_some()).then_some(())
        })
        .await;
}

#[test]
fn a_cancel_is_done_when_the_pod_is_gone() {
    on(async |bench| {
        let job = bench.submit(bench.order(&["sleep 1000"])).await;
        let pod = bench.starts(job).await;
        bench.driver().cancel(&job, 1).await.expect("a heard cancel");
        is_being_deleted(bench, job).await;
        // Its GPUs are its own until then, also on nodes that take nothing more.
        bench.change_node(1, json!({"spec": {"unschedulable": true}})).await;
        bench.change_node(2, json!({"spec": {"unschedulable": true}})).await;
        bench.lends("2x1").await;
        assert!(matches!(bench.driver().poll(&job, 1), AttemptStatus::Running { .. }));
        bench.removes(&pod).await;
        let (end, _) = bench.done(job).await;
        assert_eq!(end, End::Canceled);
        bench.lends("").await;
        bench.is_gone(job).await;
    });
}

#[test]
fn an_attempt_that_was_cancelled_before_it_came_never_runs() {
    on(async |bench| {
        let order = bench.order(&["true"]);
        bench.driver().cancel(&order.job, 1).await.expect("a heard cancel");
        bench.driver().submit(order.clone()).await.expect("taken");
        let (end, _) = bench.done(order.job).await;
        assert_eq!(end, End::Canceled);
        // What is submitted after it is there when it would have been, too.
        let next = bench.submit(bench.order(&["true"])).await;
        bench.bound(next).await;
        assert!(bench.jobs().get_opt(&super::bench::name(order.job)).await.expect("an answer").is_none());
        assert_eq!(bench.pods_of(order.job).await.len(), 0);
    });
}

#[test]
fn a_pod_that_ends_well_on_the_signal_is_stopped_and_not_complete() {
    on(async |bench| {
        let job = bench.submit(bench.order(&["trap 'exit 0' TERM; sleep 1000"])).await;
        let pod = bench.starts(job).await;
        bench.driver().cancel(&job, 1).await.expect("a heard cancel");
        is_being_deleted(bench, job).await;
        bench.report(&pod, statuses("Succeeded", &pod, &[ended(0, "Completed")])).await;
        bench.removes(&pod).await;
        assert_eq!(bench.done(job).await.0, End::Canceled);
    });
}

#[test]
fn a_job_that_got_no_node_is_given_back() {
    on(async |bench| {
        bench.settings.start = Duration::from_secs(15);
        bench.change_node(1, json!({"spec": {"unschedulable": true}})).await;
        bench.change_node(2, json!({"spec": {"unschedulable": true}})).await;
        bench.restart().await;
        let job = bench.submit(bench.order(&["true"])).await;
        let (end, record) = bench.done(job).await;
        // Nobody asked for it: so the host declines it.
        assert_eq!((end, record.running_ms), (End::Canceled, None));
        assert!(record.system_logs.iter().any(|it| it.contains("nodes are available")), "{record:?}");
        bench.is_gone(job).await;
    });
}

#[test]
fn a_job_that_somebody_deletes_without_its_pod_is_over_when_that_is() {
    on(async |bench| {
        let job = bench.submit(bench.order(&["sleep 1000"])).await;
        let pod = bench.starts(job).await;
        let orphaning = DeleteParams { propagation_policy: Some(PropagationPolicy::Orphan), ..DeleteParams::default() };
        bench.jobs().delete(&super::bench::name(job), &orphaning).await.expect("deleted");
        let name = pod.metadata.name.as_deref().expect("a name");
        let is_orphan = async || {
            let pod = bench.pods().get(name).await.expect("a pod");
            pod.metadata.owner_references.unwrap_or_default().is_empty().then_some(())
        };
        bench.until("the pod is an orphan", is_orphan).await;
        bench.until("it is given up", async || bench.entry(job)["given_up"].is_string().then_some(())).await;
        // Another attempt passes through meanwhile, so it has been looked at often enough.
        let other = bench.submit(bench.order(&["true"])).await;
        let others = bench.starts(other).await;
        bench.report(&others, statuses("Succeeded", &others, &[ended(0, "Completed")])).await;
        bench.done(other).await;
        assert!(matches!(bench.driver().poll(&job, 1), AttemptStatus::Running { .. }));
        bench.report(&pod, statuses("Failed", &pod, &[ended(137, "Error")])).await;
        let (end, _) = bench.done(job).await;
        assert!(reason(&end).contains("the factory removed the job"), "{end:?}");
        bench.is_gone(job).await;
    });
}

#[test]
fn a_walltime_is_kept_to_the_second_of_the_first_step() {
    on(async |bench| {
        let mut order = bench.order(&["sleep 1000"]);
        order.walltime_s = 2;
        let job = bench.submit(order).await;
        let pod = bench.starts(job).await;
        is_being_deleted(bench, job).await;
        // As the kubelet leaves it when the signal is heard.
        bench.report(&pod, statuses("Failed", &pod, &[ended(143, "Error")])).await;
        bench.removes(&pod).await;
        let (end, _) = bench.done(job).await;
        assert!(reason(&end).contains("walltime of 2 s is over"), "{end:?}");
    });
}

#[test]
fn a_job_that_somebody_deletes_ends_and_its_name_stays_taken_until_then() {
    on(async |bench| {
        let job = bench.submit(bench.order(&["sleep 1000"])).await;
        let pod = bench.starts(job).await;
        bench.jobs().delete(&super::bench::name(job), &DeleteParams::background()).await.expect("deleted");
        is_being_deleted(bench, job).await;
        assert!(matches!(bench.driver().poll(&job, 1), AttemptStatus::Running { .. }));
        bench.removes(&pod).await;
        let (end, _) = bench.done(job).await;
        assert!(reason(&end).contains("the factory removed the job"), "{end:?}");
        bench.is_gone(job).await;
    });
}

#[test]
fn a_pod_that_is_replaced_is_not_run_again() {
    on(async |bench| {
        let job = bench.submit(bench.order(&["sleep 1000"])).await;
        let pod = bench.starts(job).await;
        // Before 1.29, the Job controller makes another at once.
        bench.removes(&pod).await;
        let (end, _) = {
            let second = bench.bound(job).await;
            assert_ne!(second.metadata.uid, pod.metadata.uid);
            is_being_deleted(bench, job).await;
            bench.removes(&second).await;
            bench.done(job).await
        };
        assert!(reason(&end).contains("started another, which was ended"), "{end:?}");
        bench.is_gone(job).await;
    });
}
