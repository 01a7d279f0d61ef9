//! What states may ask in a random history, right or wrong.

use federation::{
    Attest, CapacityReport, Ceiling, Command, End, Job, JobId, NodeCount, Reason, Registry, Rerank, Revision, Timestamp,
};
use proptest::{prelude::*, sample::Index};

use crate::world::{HOST, STATES, World, offer, pack_of, pool, state, submit};

const POOLS: [&str; 3] = ["main", "b", "c"];

/// One thing that somebody asks, right or wrong.
#[derive(Clone, Debug)]
pub enum Ask {
    Offer {
        pool: Index,
        nodes: u32,
        per_node: u32,
    },
    Withdraw {
        pool: Index,
    },
    Report {
        pool: Index,
        nodes: u32,
        gpus: u32,
    },
    Attest {
        by: Index,
        late: bool,
        gone: bool,
    },
    Pack {
        of: Index,
    },
    Submit {
        by: Index,
        gpus: u32,
        nodes: u32,
        priority: u8,
        first: usize,
        both: bool,
        below: [Option<u32>; 2],
    },
    /// To one pool, or to none.
    Rerank {
        job: Index,
        to: Option<Index>,
    },
    /// The submission of a job that is known, once more.
    Resubmit {
        job: Index,
        by: Index,
    },
    /// An envelope that was carried out, once more.
    Replay {
        which: Index,
    },
    Cancel {
        job: Index,
    },
    Step {
        job: Index,
    },
    Finish {
        job: Index,
        how: Index,
    },
    Decline {
        job: Index,
        below: Option<u32>,
    },
    /// A transition by a state or for an attempt that may be wrong.
    Wrong {
        job: Index,
        by: Index,
        attempt: u32,
        kind: Index,
    },
}

pub fn asks() -> impl Strategy<Value = Ask> {
    let one = any::<Index>;
    prop_oneof![
        2 => (one(), 0u32..5, 0u32..9).prop_map(|(pool, nodes, per_node)| Ask::Offer { pool, nodes, per_node }),
        1 => one().prop_map(|pool| Ask::Withdraw { pool }),
        3 => (one(), 0u32..5, 0u32..9).prop_map(|(pool, nodes, gpus)| Ask::Report { pool, nodes, gpus }),
        4 => (one(), any::<bool>(), any::<bool>()).prop_map(|(by, late, gone)| Ask::Attest { by, late, gone }),
        1 => one().prop_map(|of| Ask::Pack { of }),
        16 => (one(), 0u32..20, 0u32..3, 4u8..7, 0usize..3, any::<bool>(), prop::array::uniform2(prop::option::weighted(0.3, 1u32..101)))
            .prop_map(|(by, gpus, nodes, priority, first, both, below)| Ask::Submit { by, gpus, nodes, priority, first, both, below }),
        2 => (one(), prop::option::of(one())).prop_map(|(job, to)| Ask::Rerank { job, to }),
        1 => (one(), one()).prop_map(|(job, by)| Ask::Resubmit { job, by }),
        2 => one().prop_map(|which| Ask::Replay { which }),
        2 => one().prop_map(|job| Ask::Cancel { job }),
        8 => one().prop_map(|job| Ask::Step { job }),
        8 => (one(), one()).prop_map(|(job, how)| Ask::Finish { job, how }),
        2 => (one(), prop::option::of(1u32..101)).prop_map(|(job, below)| Ask::Decline { job, below }),
        3 => (one(), one(), 0u32..4, one()).prop_map(|(job, by, attempt, kind)| Ask::Wrong { job, by, attempt, kind }),
    ]
}

/// What a signer's clock says: mostly the time, sometimes nonsense.
pub fn clocks() -> impl Strategy<Value = Option<Timestamp>> {
    const YEAR_2099_MS: u64 = 4_090_000_000_000;
    prop_oneof![
        12 => Just(None),
        1 => prop::sample::select(vec![0, 1, YEAR_2099_MS, u64::MAX]).prop_map(|ms| Some(Timestamp(ms))),
    ]
}

/// Turns what is asked into a command and its author, as the registry stands.
pub fn command(ask: &Ask, registry: &Registry, at: Timestamp, nth: u64) -> Option<(String, Command)> {
    let of_owner = of_owner(ask, registry, at).map(|command| (HOST.to_owned(), command));
    of_owner.or_else(|| of_home(ask, registry, at, nth)).or_else(|| of_host(ask, registry, at))
}

fn of_owner(ask: &Ask, registry: &Registry, at: Timestamp) -> Option<Command> {
    let (Ask::Offer { pool: index, .. } | Ask::Withdraw { pool: index } | Ask::Report { pool: index, .. }) = ask else {
        return None;
    };
    let pool = pool(index.get::<&str>(&POOLS));
    let sequence = registry.offer(&pool).map_or(1, |known| known.offer.sequence + 1);
    Some(match *ask {
        Ask::Offer { nodes, per_node, .. } => Command::PublishOffer(offer(pool, sequence, nodes, per_node)),
        Ask::Report { nodes, gpus, .. } => {
            let lendable = vec![NodeCount { gpus, nodes }];
            Command::ReportCapacity(CapacityReport { pool, lendable, at, problem: None })
        }
        _ => Command::WithdrawOffer { pool, sequence },
    })
}

fn of_home(ask: &Ask, registry: &Registry, at: Timestamp, nth: u64) -> Option<(String, Command)> {
    Some(match ask {
        Ask::Pack { of } => {
            let of = *of.get(&STATES);
            let next = registry.pack(state(of)).map_or(1, |pack| pack.sequence + 1);
            (of.into(), Command::PublishPack(pack_of(of, next, registry)))
        }
        Ask::Attest { by, late, gone } => {
            let about = World::gateway(HOST);
            let heard_at = if *late { Revision(1) } else { registry.heard_at(&about) };
            (by.get(&STATES).to_string(), Command::Attest(Attest { about, heard_at, gone: *gone }))
        }
        Ask::Submit { by, gpus, nodes, priority, first, both, below } => {
            let mut candidates = vec![pool(POOLS[*first])];
            candidates.extend(both.then(|| pool("b")).filter(|other| *other != candidates[0]));
            let mut it = submit(JobId::new(nth, [3; 10]), *gpus, candidates);
            for (candidate, below) in it.candidates.iter_mut().zip(below) {
                candidate.below = below.and_then(|it| Ceiling::parse(it).ok());
            }
            (it.shape.nodes, it.priority, it.at) = (*nodes, *priority, at);
            (it.restartable, it.exclusive) = (*gpus % 3 > 0, *gpus % 2 > 0);
            (by.get(&STATES).to_string(), Command::Submit(it))
        }
        Ask::Rerank { job, to } => {
            let job = pick(registry, job)?;
            let candidates = to.iter().map(|to| pool(to.get::<&str>(&POOLS)).into()).collect();
            let it = Rerank { job: job.id, candidates, decided_on: vec![], reason: None };
            (job.home.to_string(), Command::Rerank(it))
        }
        Ask::Resubmit { job, by } => {
            let known = pick(registry, job)?;
            (by.get(&STATES).to_string(), Command::Submit(submit(known.id, 4, vec![pool("main")])))
        }
        Ask::Cancel { job } => {
            let job = pick(registry, job)?;
            (job.home.to_string(), Command::Cancel { job: job.id, at })
        }
        _ => return None,
    })
}

fn of_host(ask: &Ask, registry: &Registry, at: Timestamp) -> Option<(String, Command)> {
    let (Ask::Step { job } | Ask::Finish { job, .. } | Ask::Decline { job, .. } | Ask::Wrong { job, .. }) = ask else {
        return None;
    };
    let known = pick(registry, job)?;
    let job = known.id;
    if let Ask::Wrong { by, attempt, kind, .. } = ask {
        let attempt = *attempt;
        let kinds = [
            Command::Start { job, attempt, at },
            Command::Run { job, attempt, at },
            Command::Finish { job, attempt, end: End::Complete, at },
            Command::Decline { job, attempt, reason: Reason::new(&"x".repeat(300)), below: None, at },
            Command::Cancel { job, at },
        ];
        return Some((by.get(&STATES).to_string(), kind.get(&kinds).clone()));
    }
    let current = known.attempt()?;
    let attempt = current.number;
    let command = match ask {
        Ask::Finish { how, .. } => {
            let never = End::NotPermitted { reason: "not for hosts to say".into() };
            let failed = End::ExecutorError { exit_code: 3 };
            let ends = [End::Complete, failed, End::system_error("broken"), End::lost("lost"), End::Canceled, never];
            Command::Finish { job, attempt, end: how.get(&ends).clone(), at }
        }
        Ask::Decline { below, .. } => {
            let below = below.and_then(|it| Ceiling::parse(it).ok());
            Command::Decline { job, attempt, reason: "full".into(), below, at }
        }
        _ if current.started_at.is_some() => Command::Run { job, attempt, at },
        _ => Command::Start { job, attempt, at },
    };
    Some((HOST.to_owned(), command))
}

fn pick<'a>(registry: &'a Registry, index: &Index) -> Option<&'a Job> {
    let ids: Vec<JobId> = registry.jobs().map(|job| job.id).collect();
    if ids.is_empty() { None } else { registry.job(index.get(&ids)) }
}
