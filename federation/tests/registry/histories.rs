//! Random histories: whatever the states ask for, in whatever order, the invariants hold.

use certs::Envelope;
use federation::{Batch, Command, End, JobId, JobState, Outcome, Registry, Revision, Timestamp, Verdict};
use proptest::prelude::*;

use crate::asks::{Ask, asks, clocks, command};
use crate::audit::audit;
use crate::world::{STATES, World, genesis, pack_of, pool, seal, submit};

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn every_history_keeps_the_invariants(asks in prop::collection::vec((asks(), 0u64..4_000, clocks()), 1..160)) {
        live_through("offer 2x8; offer 4x4 on b", &asks);
    }
}

/// Carries out what is asked, on one replica that lives and on one that restarts from a snapshot every time.
fn live_through(offers: &str, asks: &[(Ask, u64, Option<Timestamp>)]) {
    let mut world = World::new().tell(offers);
    let mut replica = world.registry.clone();
    let mut past: Vec<Envelope> = vec![];
    for (serial, (ask, pause_s, clock)) in (1_000..).zip(asks) {
        world.now = world.now.plus_s(*pause_s);
        let envelope = match ask {
            Ask::Replay { which } if !past.is_empty() => which.get(&past).clone(),
            _ => match command(ask, &world.registry, clock.unwrap_or(world.now), serial) {
                Some((of, command)) => seal(&of, serial, vec![command]),
                None => continue,
            },
        };
        let revision = Revision(world.registry.revision().0 + 1);
        let before = world.registry.clone();
        let outcomes = world.registry.apply(revision, &envelope, Verdict::Verified);
        assert_eq!(outcomes.len(), 1);
        assert_eq!(outcomes[0] == Outcome::Replayed, matches!(ask, Ask::Replay { .. }));
        audit(&world.registry);

        assert_eq!(replica.apply(revision, &envelope, Verdict::Unknown), outcomes);
        let bytes = world.registry.to_bytes();
        assert!(replica.to_bytes() == bytes, "replicas differ after {ask:?}");
        if let [Outcome::Rejected(_) | Outcome::Duplicate | Outcome::Replayed] = outcomes[..] {
            assert!(untouched(before, &envelope, revision) == bytes, "{ask:?} left a trace: {outcomes:?}");
        }
        past.push(envelope);
        replica = Registry::from_bytes(&bytes).expect("a snapshot of a sound registry");
        assert!(replica.agrees_with(&world.registry), "what follows from the records differs after {ask:?}");
    }
}

/// A busy pool for a long time: small jobs come and go, and now and then a gang needs all of it.
#[test]
fn a_long_busy_history_starves_nobody() {
    let mut world = World::new().tell("offer 2x8");
    let mut chance = 7u64;
    let mut choose = move |below: usize| {
        chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (chance >> 33) as usize % below
    };
    let (mut kept_free, mut gangs) = (0, vec![]);
    for nth in 0..3_000 {
        let holding: Vec<JobId> = world.registry.jobs().filter(|job| job.state.holds()).map(|job| job.id).collect();
        if choose(2) == 0 && !holding.is_empty() {
            finish(&mut world, holding[choose(holding.len())]);
        } else if world.registry.jobs().filter(|job| job.state == JobState::Queued).count() < 20 {
            let gang = choose(40) == 0;
            let mut it =
                submit(JobId::new(nth, [3; 10]), if gang { 16 } else { 1 + choose(4) as u32 }, vec![pool("main")]);
            it.priority = if gang { 5 } else { 5 - choose(2) as u8 };
            gangs.extend(gang.then_some(it.job));
            world.commit(STATES[choose(3)], vec![Command::Submit(it)]);
        }
        world.now = world.now.plus_s(60);
        kept_free += u32::from(world.registry.kept_free_for(&pool("main")).is_some());
        audit(&world.registry);
        if nth % 100 == 0 {
            let read = Registry::from_bytes(&world.registry.to_bytes()).expect("a snapshot of a sound registry");
            assert!(read.agrees_with(&world.registry));
        }
    }
    assert!(kept_free > 0, "nobody was ever passed over too often: the history proves nothing");
    let granted = |id: &JobId| !world.registry.job(id).expect("kept").attempts.is_empty();
    assert!(gangs.iter().filter(|id| granted(id)).count() + 3 >= gangs.len(), "gangs starve");

    let held = |world: &World| world.registry.jobs().find(|job| job.state.holds()).map(|job| job.id);
    while let Some(job) = held(&world) {
        finish(&mut world, job);
    }
    assert_eq!(world.registry.jobs().find(|job| !job.state.is_final()), None, "somebody waits in an idle federation");
}

fn finish(world: &mut World, job: JobId) {
    let (attempt, at) = (1, world.now);
    let end = End::Complete;
    let whole_life = vec![
        Command::Start { job, attempt, at },
        Command::Run { job, attempt, at },
        Command::Finish { job, attempt, end, at },
    ];
    assert_eq!(world.commit("FI", whole_life), vec![Outcome::Done; 3]);
}

/// A registry after an envelope without commands: the revision and the serial, nothing else.
fn untouched(mut registry: Registry, envelope: &Envelope, revision: Revision) -> Vec<u8> {
    let header = envelope.header();
    registry.apply(revision, &seal(header.owner.as_str(), header.serial, vec![]), Verdict::Verified);
    registry.to_bytes()
}

#[test]
fn replicas_that_apply_the_same_log_are_equal() {
    let log = ["FI", "DE", "FR"].map(|of| {
        let it = Batch(vec![Command::PublishPack(pack_of(of, 1, &Registry::from_genesis(&genesis())))]);
        certs::Envelope::seal(crate::world::header(of, 1), &it.to_bytes(), &crate::world::gateway_key(of)).unwrap()
    });
    let run = |verdict| {
        let mut registry = Registry::from_genesis(&genesis());
        log.iter()
            .zip(1..)
            .for_each(|(envelope, revision)| drop(registry.apply(Revision(revision), envelope, verdict)));
        registry.root()
    };
    assert_eq!(run(Verdict::Unknown), run(Verdict::Verified));
    assert_ne!(run(Verdict::Unknown), Registry::from_genesis(&genesis()).root());
}
