//! The archive: when a task of this home has ended, its record is fetched from the host and kept.
//!
//! The registry forgets finished jobs after a while; the archive does not. Until the host has
//! answered, the task stays on the list and is tried again.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use federation::raft::Consensus;
use federation::{Job, JobId};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::driver::AttemptRecord;
use crate::orders::Orders;
use crate::store::{Change, Store, StoreFailed};

/// How long a host that did not answer is left alone.
const RETRY: Duration = Duration::from_secs(2);

/// What remains of a task when its job has left the registry.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Archived {
    /// The job in its final state.
    pub job: Job,
    /// What the host reported, if the job ever got to one.
    pub record: Option<AttemptRecord>,
}

/// The tasks of this home that are not archived yet.
pub struct Archive {
    consensus: Consensus,
    store: Store,
    orders: Arc<Orders>,
    open: Mutex<BTreeSet<JobId>>,
}

impl Archive {
    /// Reads from the store what is still to be archived.
    pub fn open(consensus: Consensus, store: Store, orders: Arc<Orders>) -> Result<Archive, StoreFailed> {
        let open = store.unarchived()?.into_iter().collect();
        Ok(Archive { consensus, store, orders, open: Mutex::new(open) })
    }

    /// Puts a newly accepted task on the list.
    pub fn expect(&self, job: JobId) {
        self.lock().insert(job);
    }

    /// Runs until `stop`.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut revisions = self.consensus.changes();
        loop {
            revisions.borrow_and_update();
            let late = self.archive_ended().await;
            let retry = if late { RETRY } else { Duration::MAX };
            tokio::select! {
                () = stop.cancelled() => return,
                _ = revisions.changed() => {}
                () = tokio::time::sleep(retry) => {}
            }
        }
    }

    /// Archives what has ended; true if some of it could not be archived yet.
    async fn archive_ended(&self) -> bool {
        let ended: Vec<Job> = self.consensus.read(|registry| {
            let open = self.lock();
            let ended = |job: &JobId| registry.job(job).filter(|it| it.state.is_final()).cloned();
            open.iter().filter_map(ended).collect()
        });
        let mut late = false;
        for job in ended {
            match self.archive(&job).await {
                Ok(()) => {
                    self.lock().remove(&job.id);
                }
                Err(reason) => {
                    tracing::info!(job = %job.id, reason, "not archived yet");
                    late = true;
                }
            }
        }
        late
    }

    async fn archive(&self, job: &Job) -> Result<(), String> {
        let record = self.orders.record(job).await.map_err(|why| why.to_string())?;
        let archived = Archived { job: job.clone(), record };
        let record = serde_json::to_vec(&archived).map_err(|why| why.to_string())?;
        let change = Change::Archive { job: job.id, record };
        self.store.write(change).await.map_err(|why| why.to_string())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeSet<JobId>> {
        self.open.lock().expect("invariant: nothing panics while it holds the list")
    }
}
