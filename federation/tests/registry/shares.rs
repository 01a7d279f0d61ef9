//! Shares: what a state held of a pool before a job came.

use federation::{Command, JobId, Outcome, Registry};

use crate::world::{World, pool, state, submit};

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
            let decline = Command::Decline { job, attempt, reason: "30 %".into(), at };
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
    world.commit("FI", vec![Command::Decline { job, attempt, reason: "no".into(), at }]);
    assert_eq!(world.registry.held_before(&main, state("FR"), &id(2)), 0);
    world = world.tell("offer 7x8");
    assert_eq!(world.registry.share_percent_before(&main, &id(5)), 8, "4 of 56 are 7.1 %");
}
