//! What a pool lends: what its nodes have, less what pods of others hold of it.
//!
//! Devices are counted as they are sold; a device of which others hold one of two units is theirs. Nodes are looked at
//! before pods, and own and foreign pods in the same look.
//! Invariants: a node lends at least what the federation's own pods hold there, whatever state it is in, since that room
//! is theirs until they end; and never more than the offer says.

use std::collections::{BTreeMap, HashMap};

use federation::NodeCount;
use k8s_openapi::api::core::v1::{Container, Node, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::names::{LabelValue, QualifiedName};
use super::observed::owner;
use super::settings::KubernetesPool;

/// What a pool lends at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Lent {
    pub lendable: Vec<NodeCount>,
    /// For everybody: names no node and no person.
    pub problem: Option<String>,
}

/// What a pool lends. `is_own` tells the federation's pods of this driver.
pub(super) fn lent(pool: &KubernetesPool, nodes: &[Node], pods: &[Pod], is_own: impl Fn(&Pod) -> bool) -> Lent {
    let mut held: BTreeMap<&str, Held> = BTreeMap::new();
    for pod in pods.iter().filter(|it| !is_over(it)) {
        let Some(node) = pod.spec.as_ref().and_then(|it| it.node_name.as_deref()) else {
            continue;
        };
        let units = units_of(pod, pool.resource.as_str());
        let held = held.entry(node).or_default();
        let whose = if is_own(pod) { &mut held.own } else { &mut held.others };
        *whose = whose.saturating_add(units);
    }
    let mut counted = Counted::default();
    let mut lends = Vec::new();
    for node in nodes.iter().filter(|it| has_labels(it, &pool.node_labels)) {
        let units = allocatable(node, pool.resource.as_str());
        let held = held.get(node.metadata.name.as_deref().unwrap_or_default()).copied().unwrap_or_default();
        // One whose device plugin is away has no GPUs now, and is one of the pool's all the same.
        counted.there += 1;
        let is_usable = is_usable(node, pool) && (units > 0 || pool.gpus_per_node == 0);
        counted.closed += u32::from(!is_usable);
        lends.push(devices(pool, units, held, is_usable));
    }
    // A pool may be a part of its nodes: then the federation is lent those that have most to give.
    lends.sort_unstable_by(|a, b| b.cmp(a));
    lends.truncate(pool.nodes as usize);
    Lent { lendable: grouped(&lends), problem: counted.problem(pool) }
}

/// Whether a pod is of one of these Jobs, by the uid that the API server gave to the Job, and in its namespace: labels can
/// be anybody's.
pub(super) fn is_of(jobs: &HashMap<String, String>, pod: &Pod) -> bool {
    let namespace = owner(pod).and_then(|uid| jobs.get(uid));
    namespace.is_some() && namespace == pod.metadata.namespace.as_ref()
}

/// Whether Kubernetes has given its resources back.
pub(super) fn is_over(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|it| it.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

#[derive(Clone, Copy, Default)]
struct Held {
    own: u32,
    others: u32,
}

/// Devices that a node lends, its own pods' included.
fn devices(pool: &KubernetesPool, units: u32, held: Held, takes_jobs: bool) -> u32 {
    let per_device = pool.units_per_gpu.max(1);
    // The federation asks for whole devices, so of its own pods' units none is half of one.
    let own = held.own.div_ceil(per_device);
    let lends = if takes_jobs { units.saturating_sub(held.others) / per_device } else { own };
    lends.max(own).min(pool.gpus_per_node)
}

fn has_labels(node: &Node, wanted: &BTreeMap<QualifiedName, LabelValue>) -> bool {
    let of = |name: &QualifiedName| node.metadata.labels.as_ref().and_then(|it| it.get(name.as_str()));
    wanted.iter().all(|(name, value)| of(name).map(String::as_str) == Some(value.as_str()))
}

fn is_usable(node: &Node, pool: &KubernetesPool) -> bool {
    let spec = node.spec.clone().unwrap_or_default();
    let is_tolerated = |key: &str| pool.tolerate.iter().any(|it| it.as_str() == key);
    let keeps_away = |effect: &str, key: &str| effect == "NoExecute" || (effect == "NoSchedule" && !is_tolerated(key));
    let is_tainted = spec.taints.iter().flatten().any(|it| keeps_away(&it.effect, &it.key));
    let conditions = node.status.as_ref().and_then(|it| it.conditions.as_deref()).unwrap_or_default();
    let is_ready = conditions.iter().any(|it| it.type_ == "Ready" && it.status == "True");
    let is_leaving = node.metadata.deletion_timestamp.is_some();
    is_ready && !is_tainted && !is_leaving && spec.unschedulable != Some(true)
}

fn allocatable(node: &Node, resource: &str) -> u32 {
    let allocatable = node.status.as_ref().and_then(|it| it.allocatable.as_ref());
    allocatable.and_then(|it| it.get(resource)).map_or(0, count)
}

/// What the scheduler counts for a pod: its containers' together, or the most that one of its init containers asks for
/// beside the sidecars before it. Sidecars are init containers that are restarted always.
fn units_of(pod: &Pod, resource: &str) -> u32 {
    let Some(spec) = &pod.spec else {
        return 0;
    };
    let sum = |sum: u32, it: &Container| sum.saturating_add(requested(it, resource));
    let (mut sidecars, mut most) = (0u32, 0u32);
    for container in spec.init_containers.iter().flatten() {
        let units = requested(container, resource);
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars = sidecars.saturating_add(units);
            most = most.max(sidecars);
        } else {
            most = most.max(sidecars.saturating_add(units));
        }
    }
    spec.containers.iter().fold(sidecars, sum).max(most)
}

fn requested(container: &Container, resource: &str) -> u32 {
    let resources = container.resources.as_ref();
    let of = |list: Option<&BTreeMap<String, Quantity>>| list.and_then(|it| it.get(resource)).map(count);
    // Of an extended resource, a limit is a request.
    let asked = of(resources.and_then(|it| it.requests.as_ref()));
    asked.or_else(|| of(resources.and_then(|it| it.limits.as_ref()))).unwrap_or_default()
}

/// Extended resources are whole numbers; Kubernetes may write `2` as `2`, `2000m` or `2k`.
fn count(quantity: &Quantity) -> u32 {
    let text = quantity.0.as_str();
    let number = |digits: &str, scale: u64| digits.parse::<u64>().ok().map(|it| it.saturating_mul(scale));
    let counted = match text.strip_suffix(['k', 'm']) {
        Some(digits) if text.ends_with('k') => number(digits, 1_000),
        Some(digits) => number(digits, 1).map(|it| it / 1_000),
        None => number(text, 1),
    };
    counted.and_then(|it| u32::try_from(it).ok()).unwrap_or(0)
}

#[derive(Default)]
struct Counted {
    there: u32,
    closed: u32,
}

impl Counted {
    fn problem(&self, pool: &KubernetesPool) -> Option<String> {
        if self.there < pool.nodes {
            return Some(format!("the cluster has {} such nodes, the offer says {}", self.there, pool.nodes));
        }
        let left = self.there - self.closed;
        (left < pool.nodes).then(|| {
            format!("{} of {} nodes are not ready, cordoned, tainted or without GPUs", self.closed, self.there)
        })
    }
}

fn grouped(sorted: &[u32]) -> Vec<NodeCount> {
    let mut grouped: Vec<NodeCount> = Vec::new();
    for gpus in sorted.iter().copied().filter(|gpus| *gpus > 0) {
        match grouped.last_mut() {
            Some(last) if last.gpus == gpus => last.nodes += 1,
            _ => grouped.push(NodeCount { gpus, nodes: 1 }),
        }
    }
    grouped
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::settings::tests::{label, pool};
    use super::*;

    fn node(name: &str, gpus: &str, ready: &str, more: Value) -> Node {
        let node = json!({
            "metadata": {"name": name, "labels": {"gpu": "h100", "zone": "a"}},
            "spec": more,
            "status": {"allocatable": {"nvidia.com/gpu": gpus}, "conditions": [{"type": "Ready", "status": ready}]},
        });
        serde_json::from_value(node).expect("a node")
    }

    fn pod(node: &str, gpus: &str, phase: &str, labels: Value) -> Pod {
        let resources = json!({"limits": {"nvidia.com/gpu": gpus}});
        let pod = json!({
            "metadata": {"name": "p", "labels": labels},
            "spec": {"nodeName": node, "containers": [{"name": "a", "resources": resources}]},
            "status": {"phase": phase},
        });
        serde_json::from_value(pod).expect("a pod")
    }

    fn own() -> Value {
        json!({"ours": "1"})
    }

    fn is_own(pod: &Pod) -> bool {
        pod.metadata.labels.as_ref().is_some_and(|it| it.contains_key("ours"))
    }

    fn check(pool: &KubernetesPool, nodes: &[Node], pods: &[Pod]) -> (String, Option<String>) {
        let lent = lent(pool, nodes, pods, is_own);
        let each: Vec<_> = lent.lendable.iter().map(|it| format!("{}x{}", it.gpus, it.nodes)).collect();
        (each.join(" "), lent.problem)
    }

    #[test]
    fn what_others_hold_is_theirs_and_what_we_hold_stays_lent() {
        let nodes = [node("n1", "4", "True", json!({})), node("n2", "4", "True", json!({}))];
        let lends = |pods: &[Pod]| check(&pool(2, 4, 1), &nodes, pods);
        assert_eq!(lends(&[]), ("4x2".into(), None));
        assert_eq!(lends(&[pod("n1", "3", "Running", json!({}))]).0, "4x1 1x1");
        assert_eq!(lends(&[pod("n1", "3", "Running", own())]).0, "4x2");
        assert_eq!(lends(&[pod("n1", "3", "Succeeded", json!({})), pod("n2", "4", "Failed", json!({}))]).0, "4x2");
        assert_eq!(lends(&[pod("n1", "1", "Pending", json!({})), pod("n1", "3", "Running", own())]).0, "4x1 3x1");
        assert_eq!(lends(&[pod("elsewhere", "4", "Running", json!({}))]).0, "4x2");
    }

    #[test]
    fn a_pod_is_ours_by_the_uid_of_its_job_and_where_that_is() {
        let jobs = [("u".to_owned(), "climate".to_owned())].into();
        let check = |namespace: &str, owners: Value| {
            let labels = json!({"entente/factory": "FR.jean-zay"});
            let metadata = json!({"namespace": namespace, "labels": labels, "ownerReferences": owners});
            is_of(&jobs, &serde_json::from_value(json!({"metadata": metadata})).expect("a pod"))
        };
        let of =
            |uid: &str| json!([{"kind": "Job", "controller": true, "uid": uid, "name": "j", "apiVersion": "batch/v1"}]);
        assert!(check("climate", of("u")));
        assert!(!check("elsewhere", of("u")) && !check("climate", of("x")) && !check("climate", json!([])));
    }

    #[test]
    fn a_closed_node_lends_what_our_own_pods_hold() {
        for (ready, spec) in [
            ("True", json!({"unschedulable": true})),
            ("False", json!({})),
            ("Unknown", json!({})),
            ("True", json!({"taints": [{"key": "other", "effect": "NoSchedule"}]})),
            ("True", json!({"taints": [{"key": "nvidia.com/gpu", "effect": "NoExecute"}]})),
        ] {
            let nodes = [node("n1", "4", ready, spec.clone()), node("n2", "4", "True", json!({}))];
            let (lends, problem) = check(&pool(2, 4, 1), &nodes, &[pod("n1", "2", "Running", own())]);
            assert_eq!(lends, "4x1 2x1", "{spec}");
            assert!(problem.expect("a problem").starts_with("1 of 2 nodes"), "{spec}");
        }
        let tolerated = json!({"taints": [{"key": "nvidia.com/gpu", "effect": "NoSchedule"},
            {"key": "soft", "effect": "PreferNoSchedule"}]});
        assert_eq!(check(&pool(1, 4, 1), &[node("n1", "4", "True", tolerated)], &[]), ("4x1".into(), None));
    }

    #[test]
    fn devices_are_counted_as_they_are_sold_and_never_above_the_offer() {
        let nodes = [node("n1", "8", "True", json!({})), node("n2", "16", "True", json!({}))];
        assert_eq!(check(&pool(2, 4, 2), &nodes, &[pod("n1", "1", "Running", json!({}))]).0, "4x1 3x1");
        assert_eq!(check(&pool(1, 4, 1), &nodes, &[]).0, "4x1", "a part of the nodes");
        let few = check(&pool(3, 4, 1), &nodes, &[]).1.expect("a problem");
        assert_eq!(few, "the cluster has 2 such nodes, the offer says 3");
        let without = check(&pool(1, 4, 1), &[node("n1", "0", "True", json!({}))], &[]);
        assert_eq!(without.0, "");
        assert!(without.1.is_some_and(|it| it.contains("without GPUs")));
        let other = KubernetesPool { node_labels: label("gpu", "a100"), ..pool(1, 4, 1) };
        assert_eq!(check(&other, &nodes, &[]).0, "");
    }

    #[test]
    fn a_pod_holds_the_most_that_it_needs_at_once() {
        let ask = |gpus: &str| json!({"requests": {"nvidia.com/gpu": gpus}});
        let check = |init: Value, containers: Value| {
            let pod = json!({"spec": {"initContainers": init, "containers": containers}});
            units_of(&serde_json::from_value(pod).expect("a pod"), "nvidia.com/gpu")
        };
        let one = |gpus: &str| json!({"name": "a", "resources": ask(gpus)});
        let sidecar = json!({"name": "s", "restartPolicy": "Always", "resources": ask("1")});
        assert_eq!(check(json!([one("4"), one("2")]), json!([one("1"), one("2")])), 4);
        assert_eq!(check(json!([one("1")]), json!([one("1"), one("2")])), 3);
        assert_eq!(check(json!([sidecar, one("2")]), json!([one("1")])), 3);
        let counts = ["2", "2000m", "2k", "", "x"].map(|text| count(&Quantity(text.into())));
        assert_eq!(counts, [2, 2, 2_000, 0, 0]);
    }
}
