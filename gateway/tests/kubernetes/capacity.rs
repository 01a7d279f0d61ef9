//! What is lent.

use k8s_openapi::api::core::v1::Pod;
use kube::api::PostParams;
use serde_json::json;

use super::bench::{on, on_its_own, running, statuses};

#[test]
fn a_pool_lends_what_local_pods_leave_on_nodes_that_take_jobs() {
    on(async |bench| {
        let local = json!({
            "metadata": {"name": format!("local-{}", bench.settings.factory.name)},
            "spec": {"nodeName": bench.node(1), "automountServiceAccountToken": false, "containers": [
                {"name": "a", "image": "i", "resources": {"limits": {"nvidia.com/gpu": "3"}}}]},
        });
        let local: Pod = serde_json::from_value(local).expect("a pod");
        let local = bench.pods().create(&PostParams::default(), &local).await.expect("a pod");
        bench.lends("4x1 1x1").await;
        bench.report(&local, statuses("Running", &local, &[running()])).await;
        bench.change_node(2, json!({"spec": {"unschedulable": true}})).await;
        let report = bench.lends("1x1").await;
        assert!(report.problem.is_some_and(|it| it.starts_with("1 of 2 nodes are not ready, cordoned")));
        bench.change_node(2, json!({"spec": {"unschedulable": null}})).await;
        bench.lends("4x1 1x1").await;
        bench.removes(&local).await;
        bench.lends("4x2").await;
    });
}

#[test]
fn the_federations_own_pods_are_not_subtracted() {
    on(async |bench| {
        let job = bench.submit(bench.order(&["true"])).await;
        bench.starts(job).await;
        bench.change_node(1, json!({"spec": {"unschedulable": true}})).await;
        bench.change_node(2, json!({"spec": {"unschedulable": true}})).await;
        bench.lends("2x1").await;
    });
}

#[test]
fn an_api_server_that_is_silent_for_10_s_lends_nothing() {
    on_its_own(async |bench| {
        bench.cluster.daemon("pause", "apiserver");
        let report = bench.lends("").await;
        assert_eq!(report.problem.as_ref().map(|it| it.as_str()), Some("Kubernetes does not answer"));
        bench.cluster.daemon("resume", "apiserver");
        bench.lends("4x2").await;
        assert_eq!(bench.driver().held(), []);
    });
}
