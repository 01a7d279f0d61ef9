//! The Kubernetes driver on a real control plane: what is lent, what is asked for, and what comes of it.
//!
//! There is no kubelet: a test writes what one would report to the status subresources, and answers for logs. So nothing
//! here shows that a container runs. `integration-tests/kubernetes/cluster.sh` builds and starts the control plane.

mod kubernetes {
    mod bench;
    mod capacity;
    mod running;
    mod stopping;
    mod surviving;
}
