//! What grows is bounded.

use federation::{Command, JobId, Outcome, Rejection, limits};

use crate::world::{World, pool, state, submit};

#[test]
fn a_job_that_every_host_declines_ends() {
    let pools = ["main", "b", "c", "d", "e", "f", "g", "h", "i"];
    let mut world = World::new();
    for pool in pools {
        world = world.tell(&format!("offer 8 on {pool}"));
    }
    world = world.tell(&format!("submit a 8 on {}", pools.join("+")));
    for _ in 1..limits::ATTEMPTS_MAX {
        world = world.tell("decline a");
        world.expect("a GRANTED");
    }
    world.tell("decline a").expect("a FAILED, free 8");
}

#[test]
fn open_and_finished_jobs_are_bounded() {
    let mut world = World::new().tell("offer 8; submit z 8 by DE");
    let submits = |from: usize, count: usize| -> Vec<Command> {
        let ids = (from..from + count).map(|nth| JobId::new(nth as u64, [9; 10]));
        ids.map(|id| Command::Submit(submit(id, 8, vec![pool("main")]))).collect()
    };
    for from in (0..limits::OPEN_JOBS_PER_STATE_MAX).step_by(1_000) {
        assert_eq!(world.commit("FR", submits(from, 1_000)), vec![Outcome::Queued; 1_000]);
    }
    let refused = Rejection::TooMany { limit: limits::OPEN_JOBS_PER_STATE_MAX as u64 };
    assert_eq!(world.commit("FR", submits(9_999, 1)), vec![Outcome::Rejected(refused)]);

    let all: Vec<JobId> = world.registry.jobs().filter(|job| job.home == state("FR")).map(|job| job.id).collect();
    for some in all.chunks(1_000) {
        let cancels = some.iter().map(|job| Command::Cancel { job: *job, at: world.now }).collect();
        assert_eq!(world.commit("FR", cancels), vec![Outcome::Done; some.len()]);
    }
    // The oldest are forgotten; other states' jobs are not theirs to push out.
    assert_eq!(world.registry.open_jobs(state("FR")), 0);
    assert_eq!(world.registry.jobs().len(), limits::FINISHED_JOBS_PER_STATE_MAX + 1);
    assert!(world.registry.job(&all[0]).is_none() && world.registry.job(all.last().unwrap()).is_some());
    world.expect("z GRANTED main 8");
}
