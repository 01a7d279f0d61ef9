//! What grows is bounded.

use certs::GatewayName;
use federation::{
    Attempt, Candidate, Ceiling, Command, End, FactoryId, FactoryName, Grant, Job, JobId, JobState, Outcome, PoolId,
    PoolName, Pseudonym, Reason, Rejection, Revision, Shape, Timestamp, limits,
};
use policy::{DataClass, Labels, Purpose};

use crate::world::{World, offer, pool, state, submit};

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

#[test]
fn a_state_offers_a_bounded_number_of_gpus() {
    let mut world = World::new();
    let publish = |name, nodes, per_node| vec![Command::PublishOffer(offer(pool(name), 1, nodes, per_node))];
    let most = limits::GPUS_PER_STATE_MAX / 64;
    assert_eq!(world.commit("FI", publish("a", most, 32)), vec![Outcome::Done]);
    assert_eq!(world.commit("FI", publish("b", most, 32)), vec![Outcome::Done]);
    assert!(matches!(world.commit("FI", publish("c", 1, 1))[..], [Outcome::Rejected(Rejection::OutOfRange { .. })]));
}

#[test]
fn a_job_waits_for_a_bounded_number_of_pools() {
    let mut world = World::new();
    let pools: Vec<PoolId> = (0..=limits::CANDIDATES_MAX).map(|nth| pool(&format!("p{nth}"))).collect();
    world.commit("FI", pools.iter().map(|pool| Command::PublishOffer(offer(*pool, 1, 1, 8))).collect());
    let refused = vec![Outcome::Rejected(Rejection::TooMany { limit: limits::CANDIDATES_MAX as u64 })];
    assert_eq!(world.commit("FR", vec![Command::Submit(submit(JobId::new(1, [1; 10]), 4, pools))]), refused);
}

/// The arithmetic of the limits begins with the size of one job.
#[test]
fn the_largest_job_is_as_large_as_reckoned() {
    let job = largest_job();
    let bytes = postcard::to_stdvec(&job).unwrap().len();
    assert!(bytes <= limits::JOB_BYTES_MAX, "{bytes}");
    assert!(bytes + 512 > limits::JOB_BYTES_MAX, "{bytes}: the constant can be lowered");
}

/// A job of which everything that may grow has grown, without the nodes that it holds.
fn largest_job() -> Job {
    let name = "x".repeat(limits::NAME_BYTES_MAX);
    let factory = FactoryId { state: state("FI"), name: FactoryName::parse(&name).unwrap() };
    let pool = PoolId { factory, name: PoolName::parse(&name).unwrap() };
    let gateway = GatewayName::parse(&"g".repeat(31)).unwrap();
    assert!(GatewayName::parse(&"g".repeat(32)).is_err());
    let reason = || Reason::new(&"because ".repeat(100));
    let (at, revision) = (Timestamp(u64::MAX), Revision(u64::MAX));
    let declined = |number| Attempt {
        number,
        pool,
        served_by: gateway.clone(),
        leased: true,
        grant: Grant { gpus: limits::GPUS_PER_JOB_MAX, nodes: vec![] },
        granted_at: revision,
        started_at: Some(at),
        running_at: Some(at),
        ended_at: Some(at),
        declined: Some(reason()),
        below: Some(Ceiling::parse(100).unwrap()),
        end: None,
        gpu_seconds: u64::MAX,
    };
    let mut attempts: Vec<Attempt> = (1..=limits::ATTEMPTS_MAX as u32).map(declined).collect();
    let last = attempts.last_mut().unwrap();
    (last.declined, last.end) = (None, Some(End::SystemError { reason: reason() }));
    Job {
        id: JobId::new(u64::MAX, [255; 10]),
        home: state("FR"),
        home_gateway: gateway.clone(),
        pseudonym: Pseudonym([255; 16]),
        shape: Shape {
            gpus: limits::GPUS_PER_JOB_MAX,
            nodes: limits::NODES_PER_POOL_MAX,
            model: Some("m".repeat(limits::MODEL_BYTES_MAX)),
            memory_gib_min: limits::MEMORY_GIB_MAX,
            walltime_s: limits::WALLTIME_S_MAX,
            cpu_cores: limits::CPU_CORES_MAX,
            ram_gib: limits::RAM_GIB_MAX,
            disk_gib: limits::DISK_GIB_MAX,
        },
        labels: Labels {
            data_class: DataClass::Health,
            purpose: Purpose::Defence,
            dual_use: true,
            project: Some("p".repeat(limits::PROJECT_BYTES_MAX)),
        },
        payload: certs::Digest([255; 32]),
        priority: limits::PRIORITY_MAX,
        restartable: true,
        exclusive: true,
        candidates: vec![Candidate { pool, below: Some(Ceiling::parse(100).unwrap()) }; limits::CANDIDATES_MAX],
        decided_on: vec![(state("FI"), u64::MAX); limits::MEMBERS_MAX],
        decided_at: revision,
        state: JobState::Failed,
        cancel_requested: true,
        attempts,
        end: Some(End::NotPermitted { reason: reason() }),
        passed_over: u32::MAX,
        reserved: Some(pool),
        submitted_at: revision,
        submitted: at,
        changed_at: revision,
    }
}
