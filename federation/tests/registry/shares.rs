//! Shares: what a state held of a pool before a job came.

use federation::{Ceiling, Command, JobId, NotACeiling, Outcome, Registry, limits};

use crate::world::{World, check, pool, state, submit};

fn id(nth: u64) -> JobId {
    JobId::new(nth, [1; 10])
}

fn submits(ids: &[u64]) -> Vec<Command> {
    ids.iter().map(|nth| Command::Submit(submit(id(*nth), 4, vec![pool("main")]))).collect()
}

/// Forty GPUs, of which France takes eight times four, Germany once.
fn world() -> World {
    let mut world = World::new().tell("offer 5x8");
    for (of, ids) in [("FR", &[7][..]), ("DE", &[3]), ("FR", &[6, 2, 5]), ("FR", &[1]), ("FR", &[9, 8, 4])] {
        let outcomes = world.commit(of, submits(ids));
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Granted { .. })), "{outcomes:?}");
    }
    world
}

/// In the order of their grants; those of one revision in the order of their ids.
const FRENCH: [u64; 8] = [7, 2, 5, 6, 1, 4, 8, 9];

#[test]
fn a_share_counts_what_was_granted_before() {
    let registry = world().registry;
    let main = pool("main");
    for (before, nth) in FRENCH.iter().enumerate() {
        let held = 4 * before as u32;
        assert_eq!(registry.held_before(&main, state("FR"), &id(*nth)), held, "job {nth}");
        assert_eq!(registry.share_percent_before(&main, &id(*nth)), 10 * before as u32, "job {nth}");
    }
    assert_eq!(registry.share_percent_before(&main, &id(3)), 0, "what France holds is not Germany's");
    assert_eq!(registry.held_before(&main, state("FR"), &id(3)), 4, "one was granted before the German one");
    assert_eq!(registry.held_before(&main, state("DE"), &id(9)), 4);
    let read = Registry::from_bytes(&registry.to_bytes()).unwrap();
    assert_eq!(read.held_before(&main, state("FR"), &id(9)), 28);
}

/// Threat 21: all are dispatched at once. Whoever decides about them, in whatever order, starts the same ones.
#[test]
fn a_share_rule_lets_through_exactly_what_fits() {
    let order: Vec<usize> = vec![3, 0, 7, 5, 1, 6, 2, 4];
    for rotated in 0..order.len() {
        let (mut world, mut order) = (world(), order.clone());
        order.rotate_left(rotated);
        let mut started = vec![];
        for place in order {
            let (job, attempt, at) = (id(FRENCH[place]), 1, world.now);
            let permitted = world.registry.share_percent_before(&pool("main"), &job) < 30;
            let decline = Command::Decline { job, attempt, reason: "30 %".into(), below: None, at };
            let answer = if permitted { Command::Start { job, attempt, at } } else { decline };
            assert_eq!(world.commit("FI", vec![answer]), vec![Outcome::Done]);
            started.extend(permitted.then_some(FRENCH[place]));
        }
        started.sort_unstable();
        assert_eq!(started, [2, 5, 7], "12 of 40 GPUs are 30 %");
    }
}

#[test]
fn who_holds_nothing_there_comes_after_all() {
    let mut world = world();
    let main = pool("main");
    assert_eq!(world.registry.held_before(&main, state("FR"), &id(99)), 32, "a job that is not known yet");
    assert_eq!(world.registry.share_percent_before(&main, &id(99)), 100, "nobody is permitted by mistake");
    assert_eq!(world.registry.share_percent_before(&pool("gone"), &id(7)), 100);

    // One that waits, and one that another pool has.
    world = world.tell("offer 8 on b");
    let waits = submit(id(50), 8, vec![main]);
    let elsewhere = submit(id(51), 4, vec![pool("b")]);
    world.commit("FR", vec![Command::Submit(waits), Command::Submit(elsewhere)]);
    for nth in [50, 51] {
        assert_eq!(world.registry.share_percent_before(&main, &id(nth)), 80);
    }
    // What ends counts no more; what is rounded is rounded up.
    let (job, attempt, at) = (id(7), 1, world.now);
    world.commit("FI", vec![Command::Decline { job, attempt, reason: "no".into(), below: None, at }]);
    assert_eq!(world.registry.held_before(&main, state("FR"), &id(2)), 0);
    world = world.tell("offer 7x8");
    assert_eq!(world.registry.share_percent_before(&main, &id(5)), 8, "4 of 56 are 7.1 %");
}

/// Eighty GPUs, of which the French job `a` has 60 percent; `b` is to wait until that is less.
const B_WAITS: &str = "offer 10x8; submit a 48; submit b 8 below 60";

#[test]
fn a_job_has_no_turn_above_its_ceiling() {
    check(B_WAITS, "b QUEUED, free 32, last Queued");
    check(&format!("{B_WAITS}; finish a"), "b GRANTED main 8");
    // What holds for one kind of job does not hold for all, and what holds for France not for Germany.
    check(&format!("{B_WAITS}; submit c 8; submit d 8 below 60 by DE"), "b QUEUED, c GRANTED main 8, d GRANTED main 8");
    check(&format!("{B_WAITS}; submit c 8; finish c"), "b QUEUED");
    check(&format!("{B_WAITS}; decline a"), "a FAILED, b GRANTED main 8");
    check(&format!("{B_WAITS}; cancel b"), "b CANCELED");
    // A larger pool, of which less is held.
    check(&format!("{B_WAITS}; offer 11x8"), "b GRANTED main 8");
    check("offer 10x8; submit a 47; submit b 1 below 60; submit c 1 below 60", "b GRANTED main 1, c QUEUED");
}

#[test]
fn who_has_no_turn_goes_elsewhere_if_he_may() {
    check("offer 10x8; offer 8 on x; submit a 48; submit b 8 on main+x below 60", "b GRANTED x 8");
}

#[test]
fn a_job_that_is_declined_above_a_share_waits_for_its_turn() {
    let declined = "offer 10x8; submit a 48; submit b 8; decline b below-60";
    check(declined, "b QUEUED, free 32, last Done, due FI dispatch:a report:main");
    check(&format!("{declined}; finish a"), "b GRANTED main 8");
    check(&format!("{declined}; finish a; decline b"), "b FAILED, free 80");
    check(&format!("{declined}; finish a; decline b below-5"), "b GRANTED main 8");
    // The others come first.
    check("offer 8; offer 8 on x; submit b 8 on main+x; decline b below-60", "b GRANTED x 8");
}

/// A host that says "below a share" of whatever it is given costs an attempt or two, and not all of them.
#[test]
fn who_declines_again_and_again_is_left() {
    let twice = "offer 8; offer 8 on x; submit z 8 on x; submit b 8 on main+x; decline b below-100; decline b below-99";
    check(twice, "b GRANTED main 8");
    let left = format!("{twice}; decline b below-98");
    check(&left, "b QUEUED, free 8");
    check(&format!("{left}; finish z"), "b GRANTED x 8");
    check("offer 8; submit b 8; decline b below-9; decline b below-8; decline b below-7", "b FAILED, free 8");
}

/// A host that shows a larger ceiling than home knows of does not raise it.
#[test]
fn the_lower_ceiling_counts() {
    let declined = "offer 10x8; submit a 40; submit b 8 below 60; decline b below-70; submit c 16; finish a";
    check(declined, "b GRANTED main 8");
    let above = "offer 10x8; submit a 40; submit b 8 below 60; submit c 8; decline b below-70";
    check(above, "c GRANTED main 8, b QUEUED");
}

#[test]
fn whoever_waits_comes_before_whoever_comes_back() {
    check("offer 8; submit b 8; submit c 8 by DE; decline b below-60", "c GRANTED main 8, b QUEUED");
}

#[test]
fn a_ceiling_holds_until_the_job_is_decided_again() {
    let again = "offer 10x8; submit a 48; submit b 8 decided 0 below 60; pack FI";
    check(&format!("{again}; submit z 1"), "b QUEUED, due FR rerank:b");
    check(&format!("{again}; rerank b"), "b GRANTED main 8");
    check(&format!("{again}; rerank b below 60"), "b QUEUED");
    check(&format!("{again}; rerank b below 70"), "b GRANTED main 8");
}

#[test]
fn below_a_share_age_counts_as_above_it() {
    check("offer 10x8; submit a 48; submit b 32 below 60; submit c 60; finish a", "b GRANTED, c QUEUED");
    check("offer 10x8; submit a 48; submit c 60; submit b 32 below 60; finish a", "c GRANTED, b QUEUED");
}

#[test]
fn who_has_no_turn_is_not_passed_over() {
    let pass = |mut world: World| {
        for nth in 0..=limits::PASSED_OVER_MAX {
            world = world.tell(&format!("submit s{nth} 8 by DE; finish s{nth}"));
        }
        world
    };
    let waits = "offer 10x8; submit a 48; submit big 32 below 60; submit d 8 by DE";
    pass(World::new().tell(waits)).expect("big QUEUED, kept none");
    // Its home holds nothing any more, and somebody else took what that freed.
    let world = World::new().tell(waits).tell("submit e 48 priority 9 by DE; finish a");
    pass(world).expect("big QUEUED, kept big");
}

#[test]
fn a_snapshot_keeps_who_waits_below_a_share() {
    let mut world = World::new().tell(B_WAITS);
    world.registry = Registry::from_bytes(&world.registry.to_bytes()).unwrap();
    world.expect("b QUEUED");
    world.tell("finish a").expect("b GRANTED main 8");
}

#[test]
fn a_ceiling_is_a_percentage() {
    for percent in [0, 101, 256, 257, u32::MAX] {
        assert_eq!(Ceiling::parse(percent), Err(NotACeiling), "{percent}");
    }
    for percent in 1..=100_u8 {
        let read: Ceiling = postcard::from_bytes(&[percent]).unwrap();
        assert_eq!(Ceiling::parse(percent.into()), Ok(read));
        assert_eq!(postcard::to_stdvec(&read).unwrap(), [percent]);
    }
    assert!(postcard::from_bytes::<Ceiling>(&[0]).is_err() && postcard::from_bytes::<Ceiling>(&[101]).is_err());
}
