//! Whole federations of 3, 5 and 27 states in one thread: their log, their gateways and everything that goes wrong
//! between them, from one number.
//!
//! A seed is a run. It founds a federation, lets clients ask and lets things go wrong for a while, then lets nothing
//! go wrong any more and waits until every job has ended. After each step every invariant is checked
//! (`invariants.rs`); that replicas are equal byte for byte is checked now and then and at the end, and that every
//! entry does the same to each of them, always. The first step that breaks one ends the run, and the seed repeats it.
//!
//! ```text
//! cargo test -p entente-federation --test simulation                         10,000 seeds, in under a minute
//! ENTENTE_SIM_SEEDS=1000000 cargo test …                                     a night: how many, or from..to
//! ENTENTE_SIM_SEED=17 cargo test … every_seed -- --nocapture                 one seed, with its trace
//! ENTENTE_SIM_STATES=27 …                                                    of another federation: 3, 5 or 27
//! … --config 'profile.dev.package.entente-federation.opt-level=1'            twice as many a second
//! ```
//!
//! **The product's own**: the registry with everything in it (`apply`, queues, grants, serials, usage), `due`,
//! `place`, mandates against jobs, snapshots, and the policy engine under small packs. Every replica applies every
//! entry for itself.
//!
//! **Modelled, after the gateway's code**: the proposer (gathering, deadlines, the same bytes again, blocks of
//! serials), home (keys, store before commit, deciding again when a pack moved, forgetting what was surely refused,
//! ranking again, ends), orders (catching up, home's own decision, patience), host (dispatch, poll, stop, conclude,
//! reconcile, one duty per attempt), publishing, a driver with its durable table and with processes that outlive the
//! gateway, leases, and the witness (clocks that differ by a tenth; who answers directly). Times of the gateway that are longer than a second are a fifth of it or less, so that runs meet them.
//!
//! **What goes wrong**: proposals, answers, orders and requests are lost, late, doubled and overtaken; gateways are
//! killed wherever they wait, lose what was not synced, and come back on an older snapshot; they are cut off;
//! replicas fall behind; nobody leads; wall clocks are set; packs move and offers are withdrawn while jobs wait and
//! start; local users take GPUs; nodes fail; clients repeat themselves, at once or later, and cancel.
//!
//! **Not modelled**: Raft (elections, logs that differ, membership, snapshots on the wire) and so any failure of its
//! promises; disks that fail or fill; signatures, beyond a few runs that sign and verify everything and must be the
//! same; hostile members and wrong orders; trust bundles and certificates; several gateways of one state; repeated
//! bodies without a key, limits of open tasks, and keys that expire; places per home for orders; logs, results and
//! records; a registry so full that it forgets ended jobs.
//!
//! Invariant: a run is a function of its seed and its size; nothing in it asks a clock, a thread or a hash map's
//! order.

#![allow(clippy::unwrap_used)]

mod bugs;
#[path = "../../src/raft/tests/simulation/chance.rs"]
mod chance;
mod clients;
mod clockwork;
mod factory;
mod faults;
mod gateway;
mod history;
mod home;
mod host;
mod invariants;
mod log;
mod machine;
mod orders;
mod packs;
mod planted;
mod proposer;
mod seeds;
mod sights;
mod size;
mod trace;
mod witness;
mod world;

use size::{MIDDLE, OUTAGES, SMALL, Size, UNION};
use world::{Setting, run};

#[test]
fn every_seed_keeps_the_invariants() {
    let size: &'static Size = match seeds::asked_size() {
        None | Some(3) => &SMALL,
        Some(5) => &MIDDLE,
        Some(27) => &UNION,
        Some(other) => panic!("there is no federation of {other} states here"),
    };
    if let Some(seed) = seeds::one_seed() {
        return seeds::tell(seed, size);
    }
    let asked = seeds::many_seeds();
    let sights = seeds::check(asked.clone().unwrap_or(0..seeds::SEEDS), size);
    assert!(asked.is_some() || sights.missing().is_empty(), "never seen: {:?}", sights.missing());
}

#[test]
fn larger_federations_keep_them_too() {
    seeds::check(0..40, &MIDDLE);
    seeds::check(0..2, &UNION);
}

#[test]
fn hosts_that_are_silent_for_long_lose_what_may_be_run_again() {
    let sights = seeds::check(0..seeds::SEEDS / 25, &OUTAGES);
    assert!(sights.number(sights::SUPERSEDED) > 0, "no host was silent for long enough: {sights}");
}

#[test]
fn a_seed_is_one_run() {
    let digest = |seed, signed| run(seed, Setting { signed, ..Setting::of(&SMALL) }).digest;
    let digests: Vec<u64> = (0..20).map(|seed| digest(seed, false)).collect();
    assert_eq!((0..20).map(|seed| digest(seed, false)).collect::<Vec<_>>(), digests);
    assert_eq!(digests.iter().collect::<std::collections::BTreeSet<_>>().len(), digests.len());
    assert_eq!((0..4).map(|seed| digest(seed, true)).collect::<Vec<_>>(), digests[..4], "signatures change nothing");
    let told = run(3, Setting { text: true, ..Setting::of(&SMALL) });
    assert_eq!((told.digest, told.lines.is_empty()), (digests[3], false), "being told changes nothing");
}
