//! The Slurm driver on real clusters: what is lent, what runs and as whom, how it is stopped, and what survives.
//!
//! Each test starts a cluster of its own on loopback (`integration-tests/slurm/cluster.sh`) and needs root for that. The
//! driver does not: its threads read and write files as an ordinary account that is in nobody's group.

mod slurm {
    mod accounts;
    mod bench;
    mod capacity;
    mod killed;
    mod once;
    mod running;
    mod stopping;
    mod surviving;
}
