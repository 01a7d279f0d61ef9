//! Planted bugs: each is found by the invariant that is there for it, within a number of seeds.
//! Invariant: only what that invariant finds counts, whatever else the bug breaks.

use crate::{
    bugs::Bug,
    invariants::Invariant,
    size::{OUTAGES, SMALL, Size},
    world::{Setting, run},
};

/// The first seed at which the invariant finds the bug.
#[track_caller]
fn check(bug: Bug, invariant: Invariant, within: u64) {
    check_in(&SMALL, bug, invariant, within);
}

#[track_caller]
fn check_in(size: &'static Size, bug: Bug, invariant: Invariant, within: u64) {
    let setting = Setting { bug: Some(bug), watched: Some(invariant), ..Setting::of(size) };
    let found = (0..within).find_map(|seed| run(seed, setting).violation.map(|violation| (seed, violation)));
    let (seed, violation) = found.unwrap_or_else(|| panic!("{bug:?} is not found within {within} seeds"));
    println!("{bug:?} at seed {seed}: {violation}");
}

#[test]
fn oversold_nodes_are_found() {
    check(Bug::ViewCountsGrantsTwice, Invariant::NothingIsOversold, 1_000);
}

#[test]
fn two_current_attempts_are_found() {
    check(Bug::ViewReopensAttempts, Invariant::OneCurrentAttempt, 1_000);
}

#[test]
fn a_yes_without_an_answer_is_found() {
    check(Bug::HomeAcknowledgesUnknown, Invariant::NothingAcknowledgedIsForgotten, 1_000);
}

#[test]
fn a_home_that_does_not_sync_is_found() {
    check(Bug::HomeDoesNotSync, Invariant::NothingAcknowledgedIsForgotten, 1_000);
}

#[test]
fn a_key_that_is_forgotten_is_found() {
    check(Bug::HomeKeepsKeysInMemory, Invariant::OneTaskPerKey, 1_000);
}

#[test]
fn a_home_that_gives_unasked_is_found() {
    check(Bug::HomeGivesUnasked, Invariant::PacksPermitLeaving, 1_000);
}

#[test]
fn a_host_that_does_not_decide_is_found() {
    check(Bug::HostDoesNotDecide, Invariant::PacksPermitStarts, 1_000);
}

#[test]
fn a_host_that_decides_only_once_is_found() {
    check(Bug::HostDecidesOnlyOnce, Invariant::PacksPermitStarts, 1_000);
}

#[test]
fn a_start_that_nobody_wants_any_more_is_found() {
    check(Bug::HostHandsOverUnlooked, Invariant::StartsAreWanted, 1_000);
}

#[test]
fn an_exclusive_job_that_runs_twice_is_found() {
    check(Bug::HostDeclinesUnstopped, Invariant::ExclusiveRunsAlone, 1_000);
}

#[test]
fn an_attempt_that_outlives_its_end_is_found() {
    check(Bug::HostDeclinesUnstopped, Invariant::NothingRunsAfterItsEnd, 1_000);
}

#[test]
fn a_run_that_nobody_says_is_found() {
    check(Bug::HostSkipsRun, Invariant::UsageIsWhatRan, 1_000);
}

#[test]
fn a_second_start_is_found() {
    check(Bug::DriverDoesNotSync, Invariant::AnAttemptStartsOnce, 1_000);
}

#[test]
fn a_replica_that_skips_an_entry_is_found() {
    check(Bug::ReplicaSkipsEntry, Invariant::ReplicasAgree, 1_000);
}

#[test]
fn a_duty_that_is_given_up_is_found() {
    check(Bug::HostForgetsUnanswered, Invariant::JobsEnd, 1_000);
}

#[test]
fn a_driver_that_keeps_no_leases_is_found() {
    check_in(&OUTAGES, Bug::DriverIgnoresLeases, Invariant::ExclusiveRunsAlone, 1_000);
}

#[test]
fn a_lease_that_nobody_has_committed_is_found() {
    check_in(&OUTAGES, Bug::HostRenewsUncommitted, Invariant::ExclusiveRunsAlone, 1_000);
}
