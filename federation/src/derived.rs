//! What follows from the registry's records, kept so that nothing scans them all.
//! Invariant: never stored; rebuilt from the records it equals what the commands made of it.

use std::collections::{BTreeMap, BTreeSet};

use certs::MemberState;

use crate::{
    id::{JobId, PoolId},
    limits::FINISHED_JOBS_PER_STATE_MAX,
    queue::Queue,
    time::Revision,
};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Derived {
    pub(crate) queues: BTreeMap<PoolId, Queue>,
    /// Queued jobs of each home, by when their candidates were decided.
    pub(crate) waiting: BTreeMap<MemberState, BTreeSet<(Revision, JobId)>>,
    /// Finished jobs of each home, oldest first.
    finished: BTreeMap<MemberState, BTreeSet<(Revision, JobId)>>,
    /// Jobs of each home that are not finished.
    open: BTreeMap<MemberState, usize>,
}

impl Derived {
    pub(crate) fn open_jobs(&self, home: MemberState) -> usize {
        self.open.get(&home).copied().unwrap_or(0)
    }

    pub(crate) fn open(&mut self, home: MemberState) {
        *self.open.entry(home).or_default() += 1;
    }

    /// Counts an open job as finished; names the one that is forgotten for it.
    pub(crate) fn close(&mut self, home: MemberState, at: Revision, job: JobId) -> Option<JobId> {
        let open = self.open.get_mut(&home).expect("invariant: who finishes was open");
        *open -= 1;
        if *open == 0 {
            self.open.remove(&home);
        }
        self.keep(home, at, job)
    }

    /// Enters a finished job; names the oldest when there are too many.
    pub(crate) fn keep(&mut self, home: MemberState, at: Revision, job: JobId) -> Option<JobId> {
        let finished = self.finished.entry(home).or_default();
        finished.insert((at, job));
        let oldest = if finished.len() > FINISHED_JOBS_PER_STATE_MAX { finished.pop_first() } else { None };
        oldest.map(|(_, job)| job)
    }
}
