//! What must hold after every command, recounted from the jobs.

use std::collections::BTreeMap;

use federation::{Fit, JobState, PoolId, Registry};

/// Panics when the ledgers differ from the jobs, a pool is oversold, or a job waits in front of room.
#[track_caller]
pub fn audit(registry: &Registry) {
    let mut used: BTreeMap<PoolId, Vec<u32>> =
        registry.offers().map(|it| (it.offer.pool, vec![0; it.offer.nodes as usize])).collect();
    for job in registry.jobs() {
        assert_eq!(job.state.holds(), job.holding().is_some());
        let Some(attempt) = job.holding() else {
            continue;
        };
        let nodes = used.get_mut(&attempt.pool).expect("a grant names a known offer");
        for span in &attempt.grant.nodes {
            (span.first..span.first + span.count).for_each(|node| nodes[node as usize] += span.gpus);
        }
        let spanned: u32 = attempt.grant.nodes.iter().map(|span| span.count * span.gpus).sum();
        assert_eq!(spanned, job.shape.gpus, "a gang is granted whole");
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
        let idle = job.candidates.iter().find(|pool| registry.fit(pool, &job.shape) == Some(Fit::FitsNow));
        assert_eq!(idle, None, "{} waits for a pool that has room", job.id);
    }
}
