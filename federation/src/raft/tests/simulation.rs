//! Whole members, with the real Raft, the real log, guard, pipeline and snapshots, in one thread and in virtual time, from
//! one number.
//!
//! A seed is a run of 60 simulated seconds. Members are founded, clients of each propose signed envelopes and read, and for
//! 48 s things go wrong: messages are lost, late, doubled and overtaken; links break in one direction or both, and come and
//! go; members crash one by one and all at once and lose what was not synced, at any operation of their disk, too; disks are
//! slow, full, fail to write and to sync; timers run up to a tenth too fast or too slow; leaders hand over. Then nothing goes
//! wrong any more, and everybody must commit within 12 s and have the same. What is checked is in `record.rs`.
//!
//! ```text
//! cargo test -p entente-federation --lib simulation                           the runs of a commit
//! ENTENTE_SIM_SEEDS=10000 cargo test …                                        a night: how many, or from..to
//! ENTENTE_SIM_SEED=17 ENTENTE_SIM_STATES=5 cargo test … -- --nocapture        one seed, with its trace
//! ```
//!
//! Invariant: a run is a function of its seed and its size.

pub mod chance;
pub mod disk;
pub mod life;
pub mod record;
pub mod runtime;
pub mod watch;
mod world;

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Instant;

use record::{Counts, Invariant};
use world::{Setting, run};

const PLAIN: Setting = Setting { states: 3, text: false, bug: None, watched: None };
/// States, and how many runs are made of so many by default.
const SEEDS: [(usize, u64); 3] = [(3, 150), (5, 44), (27, 6)];

fn of(states: usize) -> Setting {
    Setting { states, ..PLAIN }
}

fn number(name: &str) -> Option<u64> {
    Some(std::env::var(name).ok()?.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// `from..to`, or how many.
fn many_seeds() -> Option<Range<u64>> {
    let text = std::env::var("ENTENTE_SIM_SEEDS").ok()?;
    let number = |text: &str| text.parse::<u64>().expect("ENTENTE_SIM_SEEDS is a number, or two with `..` between");
    Some(text.split_once("..").map_or_else(|| 0..number(&text), |(from, to)| number(from)..number(to)))
}

/// Makes the runs, on two threads, and fails with the first that breaks an invariant.
fn check(seeds: Range<u64>, setting: Setting) -> Counts {
    let begun = Instant::now();
    let count = seeds.end - seeds.start;
    let share = |nth: usize| {
        let seeds = seeds.clone().skip(nth).step_by(2);
        move || seeds.fold(Counts::default(), |sum, seed| sum.and(&sound(seed, setting)))
    };
    let sum = std::thread::scope(|scope| {
        let shares = [scope.spawn(share(0)), scope.spawn(share(1))];
        shares.into_iter().fold(Counts::default(), |sum, share| sum.and(&share.join().expect("every run is sound")))
    });
    println!("{count} seeds of {} states in {:.1} s; {sum:?}", setting.states, begun.elapsed().as_secs_f64());
    sum
}

fn sound(seed: u64, setting: Setting) -> Counts {
    let report = run(seed, setting);
    if let Some((invariant, what)) = report.violation {
        let states = setting.states;
        panic!(
            "seed {seed} of {states} states breaks {invariant:?}: {what}\nrepeat it with\n  ENTENTE_SIM_STATES={states} \
             ENTENTE_SIM_SEED={seed} cargo test -p entente-federation --lib every_seed -- --nocapture"
        );
    }
    report.counts
}

#[test]
fn every_seed_keeps_what_raft_promises() {
    let states = number("ENTENTE_SIM_STATES").map_or(3, |states| states as usize);
    if let Some(seed) = number("ENTENTE_SIM_SEED") {
        let report = run(seed, Setting { text: true, ..of(states) });
        report.lines.iter().for_each(|line| println!("{line}"));
        println!("seed {seed}: trace {:016x}; {:?}", report.digest, report.counts);
        return assert!(report.violation.is_none(), "seed {seed}: {:?}", report.violation);
    }
    if let Some(seeds) = many_seeds() {
        check(seeds, of(states));
        return;
    }
    let runs = SEEDS.map(|(states, seeds)| check(0..seeds, of(states)));
    let sum = runs.iter().fold(Counts::default(), |sum, counts| sum.and(counts));
    let seen = [sum.acknowledged, sum.unanswered, sum.reads, sum.crashes, sum.failed_disks, sum.leaders, sum.snapshots];
    assert!(seen.iter().all(|count| *count > 0), "something was never seen: {sum:?}");
}

/// The only piece of a snapshot is lost. Until it is sent again, the leader sends that member no entries: it acknowledges
/// what it has had and applies nothing.
#[test]
fn a_snapshot_that_is_lost_is_sent_again_soon() {
    sound(12, PLAIN);
}

/// The power went between the first frame of a segment and the next: the first said how far was committed, and the entries
/// were in the next. The member did not start any more.
#[test]
fn a_segment_without_its_entries_is_no_end() {
    sound(59, PLAIN);
}

#[test]
fn a_seed_is_one_run() {
    let digests =
        || [(0, 3), (1, 3), (2, 3), (3, 3), (1, 5), (0, 27)].map(|(seed, states)| run(seed, of(states)).digest);
    let first = digests();
    assert_eq!(digests(), first);
    assert_eq!(BTreeSet::from(first).len(), first.len(), "another seed is another run");
    assert_eq!(run(0, Setting { text: true, ..PLAIN }).digest, first[0], "being told changes nothing");
}

/// The first seed at which an invariant finds a bug that is planted.
#[track_caller]
fn finds(invariant: Invariant, bug: &'static str, within: u64) {
    let setting = Setting { bug: Some(bug), watched: Some(invariant), ..PLAIN };
    let found = (0..within).find_map(|seed| run(seed, setting).violation.map(|(_, what)| (seed, what)));
    let (seed, what) = found.unwrap_or_else(|| panic!("that {bug} is not found within {within} seeds"));
    println!("that {bug} is found at seed {seed}: {what}");
}

#[test]
fn a_disk_that_ignores_syncs_is_found_by_its_votes() {
    finds(Invariant::VotesAreKept, "syncs are ignored", 10);
}

#[test]
fn a_disk_that_ignores_syncs_is_found_by_its_entries() {
    finds(Invariant::EntriesAreEqual, "syncs are ignored", 20);
}

#[test]
fn votes_that_are_not_saved_are_found() {
    finds(Invariant::VotesAreKept, "votes are not saved", 10);
}

#[test]
fn local_reads_are_found_stale() {
    finds(Invariant::ReadsAreNotStale, "reads are local", 10);
}

#[test]
fn a_replica_that_skips_entries_is_found() {
    finds(Invariant::EntriesAreEqual, "an entry is skipped", 10);
}

#[test]
fn elections_that_fail_are_found() {
    finds(Invariant::ItGoesOn, "votes are lost", 10);
}

#[test]
fn serials_that_are_forgotten_are_found_by_what_is_done_twice() {
    finds(Invariant::CarriedOutOnce, "serials are forgotten", 10);
}

#[test]
fn an_entry_of_an_earlier_leader_is_found() {
    finds(Invariant::LeadersFollow, "every tenth entry is the first leader's", 10);
}

#[test]
fn a_disk_that_ignores_syncs_is_found_by_what_was_acknowledged() {
    finds(Invariant::AcknowledgedStays, "syncs are ignored", 20);
}

#[test]
fn an_old_snapshot_is_found_by_a_revision_that_falls() {
    finds(Invariant::NothingFalls, "the snapshot of before is installed", 100);
}

#[test]
fn a_replica_that_skips_entries_is_found_in_the_end() {
    finds(Invariant::ReplicasAreEqual, "an entry is skipped", 10);
}
