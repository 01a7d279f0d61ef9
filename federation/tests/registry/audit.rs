//! What must hold after every command, recounted from the jobs.

use std::collections::BTreeMap;

use certs::MemberState;
use federation::{Candidate, Fit, JobState, PoolId, Registry, Revision};

/// Panics when the ledgers differ from the jobs, a pool is oversold, or a job waits in front of room.
#[track_caller]
pub fn audit(registry: &Registry) {
    let mut used: BTreeMap<PoolId, Vec<u32>> =
        registry.offers().map(|it| (it.offer.pool, vec![0; it.offer.nodes as usize])).collect();
    let mut grants: BTreeMap<(PoolId, MemberState, Revision, federation::JobId), u32> = BTreeMap::new();
    for job in registry.jobs() {
        assert_eq!(job.state.holds(), job.holding().is_some());
        let ended = job.attempts.len() - usize::from(job.state.holds());
        assert!(job.attempts[..ended].iter().all(|it| it.grant.nodes.is_empty() && it.ended_at.is_some()));
        let Some(attempt) = job.holding() else {
            continue;
        };
        let nodes = used.get_mut(&attempt.pool).expect("a grant names a known offer");
        for span in &attempt.grant.nodes {
            (span.first..span.first + span.count).for_each(|node| nodes[node as usize] += span.gpus);
        }
        let spanned: u32 = attempt.grant.nodes.iter().map(|span| span.count * span.gpus).sum();
        assert_eq!(spanned, job.shape.gpus, "a gang is granted whole");
        grants.insert((attempt.pool, job.home, attempt.granted_at, job.id), attempt.grant.gpus);
    }
    let mut held: BTreeMap<(PoolId, MemberState), u32> = BTreeMap::new();
    for ((pool, home, _, job), gpus) in grants {
        let before = held.entry((pool, home)).or_default();
        assert_eq!(registry.held_before(&pool, home, &job), *before, "grants come one after the other");
        *before += gpus;
    }
    for ((pool, home), gpus) in held {
        assert_eq!(registry.offer(&pool).expect("a grant names a known offer").ledger.held_by(home), gpus);
    }
    for it in registry.offers() {
        let recounted = &used[&it.offer.pool];
        let ledger: Vec<u32> = it.ledger.per_node().map(|(_, used)| used).collect();
        assert_eq!(&ledger, recounted);
        assert!(recounted.iter().all(|used| *used <= it.offer.gpus_per_node), "oversold: {recounted:?}");
        let free: u32 = it.ledger.per_node().map(|(lendable, used)| lendable.saturating_sub(used)).sum();
        assert_eq!(free, it.ledger.free_gpus());
    }
    for job in registry.jobs().filter(|job| job.state == JobState::Queued) {
        let has_turn = |it: &Candidate| registry.offer(&it.pool).is_some_and(|offer| it.has_turn(offer, job.home));
        let has_room = |it: &Candidate| registry.fit(&it.pool, &job.shape) == Some(Fit::FitsNow);
        let idle = job.candidates.iter().find(|it| has_room(it) && has_turn(it));
        assert_eq!(idle, None, "{} waits for a pool that has room", job.id);
    }
}
