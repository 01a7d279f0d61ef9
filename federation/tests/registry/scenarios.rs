//! What the registry does, one sentence each.

use certs::{GatewayId, GatewayName};
use federation::{Action, Command, Outcome, Registry, due, limits};

use crate::audit::audit;
use crate::world::{HOST, POOL, World, check, genesis_with_a_second_host, offer, pool};

#[test]
fn the_first_candidate_with_room_is_granted() {
    check("offer 8; offer 8 on b; submit a 8; submit b 8 on main+b", "a GRANTED main 8, b GRANTED b 8, free 0");
    check("offer 8; submit a 6; submit b 4", "a GRANTED main 6, b QUEUED, last Queued, free 2");
}

#[test]
fn a_finished_job_frees_its_gpus() {
    check("offer 8; submit a 8; submit b 4; finish a", "a COMPLETE, b GRANTED main 4, free 4");
    check("offer 8; submit a 8; start a; run a; fail a", "a FAILED, free 8");
    check("offer 8; submit a 8; break a", "a FAILED, free 8");
}

#[test]
fn transitions_are_exactly_those() {
    check("offer 8; submit a 8; start a", "a STARTING, last Done");
    check("offer 8; submit a 8; start a; start a", "a STARTING, last Duplicate");
    check("offer 8; submit a 8; run a", "a GRANTED, last Rejected WrongState");
    check("offer 8; submit a 8; complete a", "a GRANTED, last Rejected WrongState");
    check("offer 8; submit a 8; start a; run a; start a", "a RUNNING, last Rejected WrongState");
    check("offer 8; submit a 8; start a; run a; decline a", "a RUNNING, last Rejected WrongState");
    check("offer 8; submit a 8; finish a; finish a", "a COMPLETE, last Duplicate, free 8");
    check("offer 8; submit a 8; finish a; start a", "a COMPLETE, last Rejected WrongState");
}

#[test]
fn an_attempt_may_have_ended_before_anyone_saw_it_run() {
    check("offer 8; submit a 8; start a; complete a", "a COMPLETE, free 8, last Done");
    check("offer 8; submit a 8; start a; fail a", "a FAILED, free 8, last Done");
    check("offer 8; submit a 8; start a; cancel a; complete a", "a COMPLETE, free 8");
    check("offer 8; submit a 8; start a; cancel a; stopped a", "a CANCELED, free 8");
    check("offer 8; submit a 8; cancel a; complete a", "a GRANTED main 8 STOP, last Rejected WrongState");
    check("offer 8; submit z 8; submit a 8; complete z", "z GRANTED, a QUEUED, last Rejected WrongState");
}

#[test]
fn only_the_current_attempt_moves_a_job() {
    check(
        "offer 8; offer 8 on b; submit a 8 on main+b; decline a; start a 1",
        "a GRANTED b 8, last Rejected WrongAttempt",
    );
    check(
        "offer 8; offer 8 on b; submit a 8 on main+b; decline a; break a 1",
        "a GRANTED b 8, last Rejected WrongAttempt",
    );
    check("offer 8; submit a 8; start a 2", "a GRANTED, last Rejected WrongAttempt");
    check("offer 8; submit z 8; submit a 8; start a 1", "a QUEUED, last Rejected WrongAttempt");
}

#[test]
fn a_declined_job_goes_to_its_next_candidate() {
    check("offer 8; offer 8 on b; submit a 8 on main+b; decline a", "a GRANTED b 8, free 8");
    check("offer 8; submit a 8; decline a", "a FAILED, free 8");
    check("offer 8; offer 8 on b; submit a 8 on main+b; start a; decline a", "a GRANTED b 8, free 8");
    check("offer 8; submit a 8; decline a; decline a", "a FAILED, last Duplicate");
    check(
        "offer 8; offer 8 on b; submit z 8 on b; submit a 8 on main+b; submit c 8; decline a",
        "a QUEUED, c GRANTED main 8",
    );
    check(
        "offer 8; offer 8 on b; submit z 8 on b; submit a 8 on main+b; decline a; break a",
        "a QUEUED, last Rejected WrongState, free 8",
    );
}

#[test]
fn a_cancel_waits_until_the_host_proves_the_gpus_free() {
    check("offer 8; submit a 8; submit b 8; cancel b", "a GRANTED, b CANCELED");
    check(
        "offer 8; submit a 8; start a; run a; submit b 8; cancel a",
        "a RUNNING main 8 STOP, b QUEUED, due FI stop:a report:main",
    );
    check("offer 8; submit a 8; start a; run a; submit b 8; cancel a; stopped a", "a CANCELED, b GRANTED main 8");
    check("offer 8; submit a 8; start a; run a; cancel a; complete a", "a COMPLETE, free 8");
    check("offer 8; submit a 8; cancel a; cancel a", "a GRANTED main 8 STOP, last Duplicate");
    check("offer 8; submit a 8; cancel a; start a", "a GRANTED main 8 STOP, last Rejected CancelRequested");
    check("offer 8; offer 8 on b; submit a 8 on main+b; cancel a; decline a", "a CANCELED, free 8");
    check("offer 8; submit a 8; finish a; cancel a", "a COMPLETE, last Duplicate");
}

#[test]
fn a_gang_fits_node_by_node() {
    // Four nodes of eight.
    check("offer 4x8; submit a 32", "a GRANTED main 32, free 0");
    check("offer 4x8; submit a 33", "last Rejected NoneSuits, free 32");
    check("offer 4x8; submit a 16 nodes 2; submit b 16 nodes 4", "a GRANTED, b QUEUED, free 16");
    check("offer 4x8; submit a 5 nodes 2", "last Rejected BadShape, free 32");
    check("offer 4x8; submit a 9 nodes 1", "last Rejected NoneSuits, free 32");
    check("offer 2x8; submit a 5; submit b 5; submit c 6", "a GRANTED, b GRANTED, c QUEUED, free 6");
    check("offer 2x8; submit a 5; submit b 3; submit c 8", "a GRANTED, b GRANTED, c GRANTED, free 0");
    check("offer 3x8; submit a 1; submit b 20", "a GRANTED, b GRANTED, free 3");
    check("offer 3x8; submit a 5; submit b 20", "a GRANTED, b QUEUED, free 19");
    check("offer 2x8; submit a 1; submit b 9", "a GRANTED, b GRANTED, free 6");
    check("offer 2x8; submit a 1; submit b 16", "a GRANTED, b QUEUED, free 15");
}

#[test]
fn tasks_without_gpus_take_slots() {
    check("offer 8; submit a 0; submit b 0; submit c 0", "a GRANTED main 0, b GRANTED, c QUEUED, free 8");
    check("offer 8; submit a 0; submit b 0; submit c 0; finish b", "c GRANTED main 0, free 8");
}

#[test]
fn higher_priority_goes_first_then_age() {
    check("offer 8; submit z 8; submit a 8; submit b 8 priority 7; finish z", "a QUEUED, b GRANTED");
    check("offer 8; submit z 8; submit a 8; submit b 8; finish z", "a GRANTED, b QUEUED");
    check("offer 8; submit a 8 priority 10", "last Rejected OutOfRange");
}

#[test]
fn the_state_that_used_least_goes_first() {
    check(
        "offer 8; submit z 8 by DE; submit a 8 by DE; submit b 8 by FR; start z; run z; wait 600; complete z",
        "a QUEUED, b GRANTED",
    );
    // What is held now counts like an hour of past use.
    check(
        "offer 2x4; submit x 4 by DE; submit z 4 by FI; submit a 4 by DE; submit b 4 by FR; finish z",
        "a QUEUED, b GRANTED",
    );
    // Half a year later what was used is forgotten, and age decides.
    check(
        "offer 8; submit z 8 by DE; start z; run z; wait 600; complete z; wait 16000000; report 1x8; \
         submit y 8 by FI; submit a 8 by DE; submit b 8 by FR; finish y",
        "a GRANTED, b QUEUED",
    );
}

#[test]
fn a_large_gang_is_not_starved() {
    let mut world = World::new().tell("offer 8; submit s0 4; submit big 8 by DE");
    let mut grants_before = 0;
    for turn in 1..=limits::PASSED_OVER_MAX + 3 {
        world = world.tell(&format!("submit s{turn} 4; finish s{}", turn - 1));
        audit(&world.registry);
        grants_before += u32::from(world.registry.kept_free_for(&pool("main")).is_none());
        if world.registry.jobs().any(|job| job.shape.gpus == 8 && job.state.holds()) {
            break;
        }
    }
    world.expect("big GRANTED main 8, free 0, kept none");
    assert!(grants_before <= limits::PASSED_OVER_MAX, "{grants_before} went before it");
}

#[test]
fn a_gang_is_not_starved_behind_one_that_local_users_leave_no_room_for() {
    // One of two nodes is lent: A waits for the local users, B only for its turn.
    let mut world = World::new().tell("offer 2x8; report 1x8; submit s0 4; submit A 16 by DE; submit B 8 by DE");
    for turn in 1..=limits::PASSED_OVER_MAX + 2 {
        world = world.tell(&format!("submit s{turn} 4; finish s{}", turn - 1));
        audit(&world.registry);
    }
    world.expect("B GRANTED main 8, A QUEUED, kept none");
    // When they leave, A is the first in line again, and passed over like anyone.
    world = world.tell("finish B; wait 1; report 2x8");
    world.expect("A QUEUED");
    for turn in limits::PASSED_OVER_MAX + 3..=3 * limits::PASSED_OVER_MAX {
        world = world.tell(&format!("submit s{turn} 4; finish s{}", turn - 1));
        if world.registry.kept_free_for(&pool("main")).is_some() {
            return world.expect("kept A");
        }
    }
    panic!("A starves");
}

#[test]
fn who_waits_counts_for_the_first_that_could_have_fitted() {
    // The pool is always full, so that every small job is granted from the queue, not when it comes.
    let mut world = World::new().tell("offer 2x8; report 1x8; submit s0 4; submit s1 4; submit A 16 by DE");
    world = world.tell("submit B 8 by DE; submit s2 4");
    for turn in 0..limits::PASSED_OVER_MAX {
        world.expect("kept none");
        world = world.tell(&format!("finish s{turn}; submit s{} 4", turn + 3));
    }
    world.expect("kept B, A QUEUED");
}

#[test]
fn a_pool_is_not_kept_free_for_what_local_users_leave_no_room_for() {
    let mut world = World::new().tell("offer 8; submit s0 4; submit big 8 by DE");
    for turn in 1..=limits::PASSED_OVER_MAX {
        world = world.tell(&format!("submit s{turn} 4; finish s{}", turn - 1));
    }
    world.expect("kept big, big QUEUED");
    let world = world.tell("report 1x6; submit late 2 priority 9");
    world.expect("kept none, late GRANTED main 2, big QUEUED");
    world.tell("wait 1; report 1x8; submit later 2").expect("kept big, later QUEUED");
}

#[test]
fn who_was_kept_a_place_gives_it_back_when_it_leaves() {
    let mut world = World::new().tell("offer 8; submit s0 4; submit big 8 by DE");
    for turn in 1..=limits::PASSED_OVER_MAX {
        world = world.tell(&format!("submit s{turn} 4; finish s{}", turn - 1));
    }
    // Not when it comes, not when the pool is served again, not after a restart.
    let mut world = world.tell("submit next 4; report 1x8");
    world.expect("kept big, next QUEUED, free 4");
    let restarted = Registry::from_bytes(&world.registry.to_bytes()).unwrap();
    assert!(restarted.agrees_with(&world.registry));
    world.registry = restarted;
    world = world.tell("cancel big");
    world.expect("kept none, big CANCELED, next GRANTED main 4, free 0");

    let mut world = World::new().tell("offer 8; submit s0 4; submit big 8");
    for turn in 1..=limits::PASSED_OVER_MAX {
        world = world.tell(&format!("submit s{turn} 4; finish s{}", turn - 1));
    }
    world.tell("submit next 4; rerank big nowhere").expect("kept none, big FAILED, next GRANTED main 4, free 0");
}

#[test]
fn local_users_take_capacity_but_never_a_grant() {
    check("offer 8; report 1x4; submit a 6", "a QUEUED, free 4");
    check("offer 8; report 1x4; submit a 6; report 1x6", "a GRANTED main 6, free 0");
    check("offer 8; submit a 6; report 1x2", "a GRANTED main 6, free 0, used 6");
    check("offer 2x4; submit a 2; report 1x4", "a GRANTED main 2, free 2");
    check("offer 2x4; report 1x4+1x2; submit a 4; submit b 2", "a GRANTED, b GRANTED, free 0");
    check("offer 8; report 2x8", "last Rejected OutOfRange, free 8");
    check("offer 8; report 1x9", "last Rejected OutOfRange, free 8");
    // Which node lends is not said: the busy one is taken to.
    check("offer 2x4; submit z 4; submit a 2; finish z; report 1x4", "a GRANTED main 2, free 2");
}

#[test]
fn an_offer_grows_at_once_and_never_shrinks_below_its_grants() {
    check("offer 1x8; submit a 8; submit b 8; offer 2x8", "a GRANTED, b GRANTED, free 0");
    check("offer 2x8; submit a 16; offer 1x8", "last Rejected GrantsOutstanding, used 16");
    check("offer 2x8; submit a 16; offer 2x4", "last Rejected GrantsOutstanding, used 16");
    check("offer 2x8; submit a 8; offer 1x8", "last Done, a GRANTED, used 8, free 0");
}

#[test]
fn a_withdrawn_offer_drains() {
    check("offer 8; submit a 4; withdraw; submit b 4", "a GRANTED main 4, last Rejected NoneSuits, used 4");
    check("offer 8; submit a 4; withdraw; finish a", "a COMPLETE, gone");
    check("offer 8; submit a 8; submit b 8; withdraw; finish a", "b QUEUED, gone, due FR rerank:b");
    check("offer 8; submit a 8; submit b 8; withdraw; finish a; offer 8", "b GRANTED main 8, due FR");
    check("offer 8; withdraw; withdraw", "last Rejected UnknownPool");
}

#[test]
fn an_offer_that_changes_its_terms_keeps_only_those_it_suits() {
    check(
        "offer 8; submit a 8; submit b 8 memory 80; offer 8 memory 40; finish a",
        "b QUEUED, free 8, due FR rerank:b",
    );
    check(
        "offer 8; submit a 8; submit b 8 memory 80; offer 8 memory 40; finish a; offer 8 memory 80",
        "b GRANTED, free 0",
    );
    check("offer 8 memory 40; submit a 8 memory 80", "last Rejected NoneSuits");
    check("offer 8; submit a 8 for 86401", "last Rejected NoneSuits");
}

#[test]
fn decisions_on_an_older_pack_are_stale() {
    check("offer 8; pack FI; submit a 8 decided 0", "last Rejected StalePolicy, free 8");
    check("offer 8; pack FI; submit a 8 decided 1", "a GRANTED");
    check("offer 8; pack FI; submit z 8 decided 1; submit a 8 decided 1; pack FI", "a QUEUED, due FR rerank:a");
    check(
        "offer 8; offer 8 on b; pack FI; submit z 8 decided 1; submit a 8 decided 1; pack FI; rerank a on b",
        "a GRANTED b 8, due FR",
    );
    check("offer 8; submit a 8; rerank a", "last Rejected WrongState");
}

#[test]
fn a_job_that_is_permitted_nowhere_any_more_ends() {
    let moved = "offer 8; pack FI; submit z 8 decided 1; submit a 8 decided 1; pack FI";
    check(
        &format!("{moved}; rerank a nowhere because denied"),
        r#"a FAILED, why a NotPermitted { reason: Reason("denied") }, last Done, due FR"#,
    );
    check(
        &format!("{moved}; rerank a nowhere"),
        r#"why a NotPermitted { reason: Reason("nothing that could run the job is permitted any more") }"#,
    );
    // Its GPUs were never held, and the others go on.
    check(&format!("{moved}; rerank a nowhere; finish z; submit b 8"), "z COMPLETE, b GRANTED main 8, free 0");
    check(&format!("{moved}; rerank a nowhere; rerank a nowhere"), "a FAILED, last Rejected WrongState");
    // Not on an older pack, not by another state, and not a job that its host has.
    check(&format!("{moved}; rerank a nowhere decided 1"), "a QUEUED, last Rejected StalePolicy");
    check(&format!("{moved}; rerank a nowhere by FI"), "a QUEUED, last Rejected NotOwner");
    check(&format!("{moved}; rerank z nowhere"), "z GRANTED main 8, last Rejected WrongState");
    check("offer 8; submit a 8; start a; forbid a", "a STARTING, last Rejected WrongState");
    // A withdrawn pool leaves nothing to wait for; one that comes back in time does.
    check("offer 8; submit z 8; submit a 8; withdraw; rerank a nowhere", "a FAILED, due FR");
}

#[test]
fn each_gateway_is_due_only_its_own() {
    check("offer 8; submit a 4; submit b 4; start b", "due FI dispatch:a poll:b report:main, due FR, due DE");
    check("offer 8; report 1x8", "due FI");
    check("offer 8; report 1x8; wait 1", "due FI report:main");
    check("offer 8; submit a 4; cancel a; report 1x8", "due FI stop:a");
}

#[test]
fn a_wrong_clock_does_not_outlast_its_correction() {
    // In the year 2099, and then again now: the newest report is the last one in the log.
    let poisoned = "offer 8; report 1x4 at 4090000000000";
    check(poisoned, "free 4, due FI report:main");
    check(&format!("{poisoned}; report 1x8"), "free 8, last Done, due FI");
    check(&format!("{poisoned}; report 1x8; wait 1"), "due FI report:main");
    check("offer 8; report 1x4 at 18446744073709551615; report 1x8", "free 8, due FI");
    // What was used fades by the right clock again.
    check(
        &format!(
            "{poisoned}; report 1x8; submit z 8 by DE; start z; run z; wait 600; complete z; wait 16000000; report 1x8; \
             submit y 8 by FI; submit a 8 by DE; submit b 8 by FR; finish y"
        ),
        "a GRANTED, b QUEUED",
    );
    // A transition with a wrong time moves no clock but its own attempt's.
    check("offer 8; report 1x8; submit a 4; wait 5000000000; start a; run a; complete a; submit b 4", "b GRANTED");
}

#[test]
fn an_attempt_remembers_its_gateway() {
    let world = World::new().tell("offer 8; submit a 8; withdraw; finish a");
    world.expect("a COMPLETE, gone");
    let job = world.registry.job(&world.jobs["a"]).unwrap();
    assert_eq!(job.attempt().unwrap().host(), World::gateway("FI"));
}

#[test]
fn used_gpu_seconds_are_charged_when_an_attempt_ends() {
    check("offer 8; submit a 4; start a; wait 50; run a; wait 100; complete a", "charged 400");
    check("offer 8; submit a 4 for 60; start a; run a; wait 1000; complete a", "charged 480");
    check("offer 8; submit a 4; start a; wait 100; break a", "charged 0");
    // It ran at some time since it was started, which nobody else could use.
    check("offer 8; submit a 4; start a; wait 100; complete a", "charged 400");
    check("offer 8; submit a 4; start a; wait 100; fail a", "charged 400");
    check("offer 8; submit a 4 for 60; start a; wait 1000; complete a", "charged 480");
    check("offer 8; submit a 4; start a; wait 50; run a; wait 100; fail a", "charged 400");
    check("offer 8; submit a 4; wait 100; decline a", "charged 0");
}

#[test]
fn nobody_moves_what_belongs_to_another() {
    check("offer 8 by DE", "last Rejected NotOwner");
    check("offer 8; withdraw by FR", "last Rejected NotOwner, free 8");
    check("offer 8; report 1x1 by FR", "last Rejected NotOwner, free 8");
    check("pack FI by DE", "last Rejected NotOwner");
    check("offer 8; submit a 8; start a by FR", "last Rejected NotOwner, a GRANTED");
    check("offer 8; submit a 8; finish a by DE", "last Rejected NotOwner, a GRANTED");
    check("offer 8; submit a 8; decline a by DE", "last Rejected NotOwner, a GRANTED");
    check("offer 8; submit a 8; cancel a by FI", "last Rejected NotOwner, a GRANTED");
    check("offer 8; submit z 8; submit a 8; rerank a by FI", "last Rejected NotOwner, a QUEUED");
}

/// Its driver has the attempt; the other gateway's would start it a second time.
#[test]
fn an_attempt_stays_with_its_gateway_when_the_pool_is_handed_on() {
    let mut world = World::of(&genesis_with_a_second_host()).tell("offer 8; submit a 4; start a; submit b 8");
    let first = World::gateway(HOST);
    let second = GatewayId { name: GatewayName::parse("gw-2").unwrap(), ..first.clone() };
    let handed_on = federation::Offer { served_by: second.name.clone(), ..offer(pool(POOL), 2, 1, 8) };
    assert_eq!(world.commit(HOST, vec![Command::PublishOffer(handed_on)]), [Outcome::Done]);
    let duties = |world: &World, of: &GatewayId| due(&world.registry, of, world.now);
    let [a, b] = ["a", "b"].map(|job| world.jobs[job]);
    assert_eq!(duties(&world, &first), [Action::Poll { job: a, attempt: 1 }]);
    assert_eq!(duties(&world, &second), [Action::Report { pool: pool(POOL) }]);

    // What is granted from now on is the second one's.
    let world = world.tell("finish a");
    assert_eq!(duties(&world, &first), []);
    let granted = [Action::Dispatch { job: b, attempt: 1 }, Action::Report { pool: pool(POOL) }];
    assert_eq!(duties(&world, &second), granted);
}
