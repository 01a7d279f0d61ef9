//! A host that nobody hears: what the registry makes of what the states attest, and what a state attests.

use std::collections::BTreeSet;

use certs::{GatewayId, GatewayName};
use federation::{Attest, Clocks, Command, End, Offer, Outcome, Registry, Revision, Watch, limits};

use crate::world::{HOST, World, check, genesis, genesis_with_a_second_host, pool, state};

const TWO_POOLS: &str = "offer 8; report 1x8; offer 8 on b";

#[test]
fn a_majority_makes_a_host_quiet_and_one_state_does_not() {
    check("offer 8; report 1x8; quiet DE; submit a 4", "a GRANTED");
    check("offer 8; report 1x8; quiet DE; quiet FR; submit a 4", "a QUEUED");
    check("offer 8; report 1x8; quiet DE; quiet DE; submit a 4", "last Granted, a GRANTED");
    check("offer 8; report 1x8; quiet DE; gone FR; submit a 4", "a QUEUED");
    check("offer 8; report 1x8; quiet FI", "last Rejected NotOwner");
}

#[test]
fn what_a_quiet_host_has_not_begun_goes_elsewhere() {
    check("offer 8; submit a 4; report 1x8; quiet DE; quiet FR", "a QUEUED, used 0");
    // It comes too late with its `Start`.
    check("offer 8; submit a 4; report 1x8; quiet DE; quiet FR; start a 1", "a QUEUED, last Rejected WrongState");
    check("offer 8; submit a 4; start a; report 1x8; quiet DE; quiet FR", "a STARTING");
    check("offer 8; submit a 4; cancel a; report 1x8; quiet DE; quiet FR", "a GRANTED main 4 STOP");
}

#[test]
fn a_report_takes_everything_back() {
    check("offer 8; report 1x8; quiet DE; quiet FR; submit a 4; report 1x8", "a GRANTED");
    check("offer 8; report 1x8; quiet DE; report 1x8; quiet FR; submit a 4", "a GRANTED");
    // Who attests what it heard last is not believed about what it did not hear.
    check("offer 8; report 1x8; report 1x8; quiet DE since 2", "last Rejected HeardSince");
    check("offer 8; submit a 4; start a; report 1x8; gone DE; report 1x8; gone FR", "a STARTING");
}

/// Else a gateway would be heard, and what must not run twice would go on, by the voice of another one.
#[test]
fn only_the_gateway_that_serves_a_pool_reports_of_it() {
    let mut world = World::of(&genesis_with_a_second_host()).tell("offer 8; report 1x8");
    let known = world.registry.offer(&pool("main")).unwrap().clone();
    let second = GatewayName::parse("gw-2").unwrap();
    let handed_on = Offer { served_by: second.clone(), sequence: known.offer.sequence + 1, ..known.offer };
    assert_eq!(world.commit(HOST, vec![Command::PublishOffer(handed_on)]), [Outcome::Done]);
    let world = world.tell("report 1x8");
    world.expect("last Rejected NotServing");
    let second = GatewayId { name: second, ..World::gateway(HOST) };
    assert_eq!(world.registry.heard_at(&second), known.reported_at);
}

/// What a silent gateway had been given in a pool that another one serves now goes to whoever waits there.
#[test]
fn what_is_lost_in_a_pool_that_was_handed_on_is_granted_again() {
    let mut world = World::of(&genesis_with_a_second_host()).tell("offer 8; offer 8 on b; report 1x8 on b; submit a 8");
    let known = world.registry.offer(&pool("main")).unwrap().offer.clone();
    let second = GatewayName::parse("gw-2").unwrap();
    let handed_on = Offer { served_by: second, sequence: 9, ..known };
    assert_eq!(world.commit(HOST, vec![Command::PublishOffer(handed_on)]), [Outcome::Done]);
    let world = world.tell("submit w 8 by DE; quiet DE; quiet FR");
    world.expect("w GRANTED main 8, a QUEUED");
}

#[test]
fn what_may_be_run_again_is_when_its_host_is_gone() {
    check("offer 8; submit a 4; start a; run a; report 1x8; gone DE", "a RUNNING");
    check("offer 8; submit a 4; start a; run a; report 1x8; gone DE; gone FR", "a QUEUED, used 0");
    check("offer 8; submit a 4; start a; run a; report 1x8; gone DE; gone FR; report 1x8", "a GRANTED main 4");
    check("offer 8; submit a 4 once; start a; run a; report 1x8; gone DE; gone FR", "a RUNNING");
    check("offer 8; submit a 4; start a; run a; cancel a; report 1x8; gone DE; gone FR", "a RUNNING main 4 STOP");
    // The host that comes back has nothing more to say about it.
    check(
        "offer 8; submit a 4; start a; run a; report 1x8; gone DE; gone FR; complete a 1",
        "last Rejected WrongState",
    );
}

/// Else whoever looks at the job waits for an answer of the silent host.
#[test]
fn a_job_that_waits_again_asks_nobody_about_what_was_lost() {
    let running = World::new().tell("offer 8; submit a 4; start a; run a; report 1x8");
    let decisive = |world: &World| world.registry.jobs().next().unwrap().decisive_attempt().map(|it| it.number);
    assert_eq!(decisive(&running), Some(1));
    let lost = running.tell("gone DE; gone FR");
    lost.expect("a QUEUED");
    assert_eq!(decisive(&lost), None);
}

#[test]
fn what_must_not_run_twice_is_run_again_only_where_it_stops_by_itself() {
    let gone = "report 1x8; gone DE; gone FR";
    check(&format!("offer 8; submit a 4 exclusive; start a; {gone}"), "a QUEUED");
    check(&format!("offer 8 leaseless; submit a 4 exclusive; start a; {gone}"), "a STARTING");
    check(&format!("offer 8; submit a 4 exclusive once; start a; {gone}"), "a STARTING");
    // What the pool promises later says nothing of an attempt that was begun without, and the other way round.
    check(&format!("offer 8 leaseless; submit a 4 exclusive; start a; offer 8; {gone}"), "a STARTING");
    check(&format!("offer 8; submit a 4 exclusive; start a; offer 8 leaseless; {gone}"), "a QUEUED");
}

#[test]
fn what_is_lost_is_charged_until_its_host_was_heard_last() {
    let ran = "offer 8; submit a 4; start a; run a; wait 100; report 1x8; wait 500; gone DE; gone FR";
    check(ran, "a QUEUED, charged 400");
}

#[test]
fn a_host_may_give_up_what_it_lost_itself() {
    check("offer 8; submit a 4; start a; run a; lose a", "a GRANTED main 4");
    check("offer 8; submit a 4; lose a", "last Rejected WrongState, a GRANTED");
    check("offer 8; submit a 4 once; start a; lose a", "a FAILED, why a Lost { reason: Reason(\"node lost\") }");
    check("offer 8; submit a 4; start a; cancel a; lose a", "a CANCELED");
    let again = "start a; lose a; ".repeat(8);
    check(&format!("offer 8; submit a 4; {again}"), "a FAILED");
}

/// Else a host that fails at once ends a job that others could run, before anybody has seen that it fails.
#[test]
fn what_was_lost_is_tried_elsewhere_first() {
    check("offer 8; offer 8 on b; submit a 4 on main+b; start a; lose a", "a GRANTED b 4");
    check("offer 8; offer 8 on b; submit a 4 on main+b; start a; lose a; start a; lose a", "a GRANTED main 4");
}

#[test]
fn a_silent_pool_is_kept_free_for_nobody() {
    let mut world = World::new().tell("offer 8; submit s0 4; submit big 8 by DE");
    for turn in 1..=limits::PASSED_OVER_MAX {
        world = world.tell(&format!("submit s{turn} 4; finish s{}", turn - 1));
    }
    world.expect("kept big, big QUEUED");
    let world = world.tell("report 1x8; quiet DE; quiet FR");
    world.expect("kept none");
    world.tell("report 1x8").expect("big GRANTED main 8");
}

/// A report of one of them is a sign of life for both.
#[test]
fn all_pools_of_a_gateway_are_silent_together() {
    let world = World::new().tell(TWO_POOLS).tell("submit a 8 on b; start a; submit b 8 on b; gone DE; gone FR");
    assert!(world.registry.is_gone(&World::gateway(HOST)));
    assert!([pool("main"), pool("b")].iter().all(|pool| world.registry.offer(pool).is_some_and(|it| it.quiet)));
    world.expect("a QUEUED, b QUEUED");
    world.tell("report 1x8").expect("a GRANTED b 8, b QUEUED");
}

/// What a snapshot says of silences must be what members can have attested.
#[test]
fn a_snapshot_cannot_make_anybody_silent_that_nobody_attested() {
    let quiet = World::new().tell("offer 8; report 1x8; quiet DE; quiet FR").registry;
    let bytes = quiet.to_bytes();
    let read = Registry::from_bytes(&bytes).expect("a sound snapshot");
    assert!(read.agrees_with(&quiet) && read.is_quiet(&World::gateway(HOST)));
    // The last bytes are the silences: name, two states quiet, none gone.
    let of_its_own = [&bytes[..bytes.len() - 6], b"FI", &bytes[bytes.len() - 4..]].concat();
    assert!(Registry::from_bytes(&of_its_own).is_err());
}

const CLOCKS: Clocks = Clocks { quiet_ms: 1_000, lease_ms: 2_000, gone_ms: 4_000 };

/// One state watches: `hears` says at which of the looks, one every 250 ms, which state answers directly.
fn watch(registry: &Registry, looks: u64, hears: impl Fn(u64, &GatewayId) -> bool) -> Vec<(u64, Attest)> {
    let mut watch = Watch::new(World::gateway("DE"), CLOCKS, 0);
    let mut attested = vec![];
    for look in 0..looks {
        let now_ms = look * 250;
        for asked in watch.look(registry, now_ms) {
            if hears(look, &asked) {
                watch.has_answered(&asked, now_ms);
            }
        }
        for it in watch.attestations(now_ms) {
            watch.has_attested(&it);
            attested.push((now_ms, it));
        }
    }
    attested
}

#[test]
fn a_watch_attests_each_clock_once() {
    let registry = World::new().tell("offer 8; report 1x8").registry;
    let about = World::gateway(HOST);
    let it = |gone| Attest { about: about.clone(), heard_at: Revision(2), gone };
    let told = watch(&registry, 40, |_, asked| asked.state != state(HOST));
    assert_eq!(told, [(1_000, it(false)), (4_000, it(true))]);
}

#[test]
fn who_answers_directly_is_heard() {
    let registry = World::new().tell("offer 8; report 1x8").registry;
    assert_eq!(watch(&registry, 40, |_, _| true), []);
    // Until it does not any more.
    let told = watch(&registry, 24, |look, asked| asked.state != state(HOST) || look < 20);
    assert_eq!(told.iter().map(|(at_ms, it)| (*at_ms, it.gone)).collect::<Vec<_>>(), [(5_500, false)]);
}

#[test]
fn if_all_are_silent_it_is_me() {
    let registry = World::new().tell("offer 8; report 1x8").registry;
    assert_eq!(watch(&registry, 40, |_, _| false), []);
}

/// One state that is cut off is one that is silent, however many gateways it has.
#[test]
fn all_gateways_of_one_state_may_be_silent() {
    let registry = World::of(&genesis_with_a_second_host()).tell("offer 8; report 1x8").registry;
    let told = watch(&registry, 8, |_, asked| asked.state != state(HOST));
    assert_eq!(told.iter().map(|(at_ms, it)| (*at_ms, it.about.state)).collect::<Vec<_>>(), [(1_000, state(HOST)); 2]);
    // One of two that are silent speaks for nobody but itself.
    let told = watch(&registry, 8, |_, asked| asked.name == World::gateway(HOST).name);
    assert_eq!(told.iter().map(|(_, it)| it.about.name.as_str()).collect::<Vec<_>>(), ["gw-2"]);
}

#[test]
fn who_slept_has_heard_nothing_of_that_time() {
    let registry = World::new().tell("offer 8; report 1x8").registry;
    let mut watch = Watch::new(World::gateway("DE"), CLOCKS, 0);
    watch.look(&registry, 0);
    watch.look(&registry, 250);
    let asked: BTreeSet<_> = watch.look(&registry, 60_000).into_iter().collect();
    assert_eq!((asked.len(), watch.attestations(60_000)), (0, vec![]));
}

#[test]
fn a_report_begins_the_clocks_again() {
    let world = World::new().tell("offer 8; report 1x8");
    let mut watch = Watch::new(World::gateway("DE"), CLOCKS, 0);
    let france = World::gateway("FR");
    let look = |watch: &mut Watch, registry: &Registry, now_ms: u64| {
        watch.look(registry, now_ms);
        watch.has_answered(&france, now_ms);
        watch.attestations(now_ms)
    };
    for now_ms in [0, 300, 600, 900] {
        assert_eq!(look(&mut watch, &world.registry, now_ms), []);
    }
    let world = world.tell("report 1x8");
    for now_ms in [1_200, 1_500, 1_800, 2_100] {
        assert_eq!(look(&mut watch, &world.registry, now_ms), []);
    }
    let told = look(&mut watch, &world.registry, 2_400);
    assert_eq!(told.iter().map(|it| it.heard_at).collect::<Vec<_>>(), [Revision(3)]);
}

#[test]
fn clocks_leave_time_to_stop() {
    let sound = |quiet_ms, lease_ms, gone_ms| Clocks { quiet_ms, lease_ms, gone_ms }.are_sound();
    assert!(Clocks::local().are_sound() && Clocks::wan().are_sound());
    assert!(sound(2_000, 2_000, 4_000));
    assert!(!sound(1_999, 2_000, 4_000) && !sound(2_001, 2_000, 4_000));
    assert!(!sound(2_000, 2_000, 3_999) && !sound(2_000, u64::MAX, u64::MAX));
    let unsound = Clocks { quiet_ms: 5_000, lease_ms: 6_000, gone_ms: 7_000 };
    let draft = federation::GenesisDraft::from(genesis()).with_clocks(unsound);
    assert_eq!(draft.complete().unwrap_err(), federation::BadGenesis::Clocks);
}

#[test]
fn an_end_that_is_lost_says_so() {
    assert_eq!(End::lost("gone"), End::Lost { reason: "gone".into() });
    let world = World::new().tell("offer 8; submit a 4; report 1x8; quiet DE; quiet FR");
    let job = world.registry.job(&world.jobs["a"]).expect("it waits");
    assert_eq!(job.attempts[0].end, Some(End::lost("its host fell silent before it began")));
    assert!(matches!(world.registry.silences().next(), Some((gateway, silence)) if *gateway == World::gateway(HOST)
        && silence.quiet.len() == 2 && silence.gone.is_empty()));
}
