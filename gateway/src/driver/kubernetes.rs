//! The Kubernetes driver: attempts as Jobs of a cluster, each in the namespace that its researcher is mapped to.
//!
//! Nothing of ours runs in a pod: a task's executors are its containers, so a task that needs staging by URL, outputs or
//! redirected streams is refused. The Job's name is the attempt's, and a finalizer keeps it until the end is noted; so an
//! attempt that was asked for twice is one Job.
//!
//! Invariants: an attempt is in the journal before Kubernetes hears of it; it is `Done` only when its pods are over or
//! gone, by the API's word; one task writes to a cluster; what answers from memory waits for neither disk nor API.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use federation::{CapacityReport, PoolId, Reason, Timestamp};
use futures_util::future::FutureExt;
use tokio::sync::Notify;

mod api;
mod capacity;
mod credentials;
mod entry;
mod logs;
mod manifest;
mod mapping;
mod names;
mod next;
mod observed;
mod outcome;
mod seen;
mod settings;
mod tries;
mod watch_cluster;
mod watch_logs;
mod write;

pub use mapping::BadMapping;
pub use names::{BadKubernetesName, LabelValue, ObjectName, QualifiedName};
pub use settings::{KubernetesPool, KubernetesSettings, NoKubernetes};

use self::api::Api;
use self::entry::{Entry, Work};
use self::logs::Logs;
use self::mapping::Mapping;
use self::seen::Seen;
use super::cluster::{ClusterDriver, Scheduler};
use super::folder::Key;
use super::ledger::{Ledger, Row};
use super::{AttemptRecord, Driver, DriverError, LogStream, Pipe, WorkOrder, io_failed, now_ms};

struct Cluster {
    settings: KubernetesSettings,
    api: Api,
    logs: Logs,
    ledger: Arc<Ledger<Entry>>,
    seen: Mutex<Seen>,
    /// Something of ours has moved.
    look: Notify,
    /// There is something to write.
    write: Notify,
}

/// Starts the driver of a cluster of Kubernetes' and takes up every attempt that an earlier one left. The API server need
/// not be there. Needs a tokio runtime around it.
pub fn start_kubernetes(settings: KubernetesSettings) -> Result<Arc<dyn Driver>, NoKubernetes> {
    let cluster = Arc::new(Cluster::open(settings)?);
    let work = [
        Arc::clone(&cluster).watch_kubernetes().boxed(),
        Arc::clone(&cluster).write_to_kubernetes().boxed(),
        Arc::clone(&cluster).watch_logs().boxed(),
    ];
    Ok(Arc::new(ClusterDriver::run(cluster, work)))
}

impl Cluster {
    fn open(settings: KubernetesSettings) -> Result<Cluster, NoKubernetes> {
        let api = Api::open(&settings)?;
        Cluster::with(settings, api)
    }

    fn with(settings: KubernetesSettings, api: Api) -> Result<Cluster, NoKubernetes> {
        let (mapping, mapping_of) = Mapping::read(&settings.namespaces)?;
        let failed = |cause| NoKubernetes::Folder { path: settings.journal.clone(), cause };
        let ledger = Ledger::open(&settings.journal).map_err(failed)?;
        let logs = Logs::open(&settings.journal.join("logs")).map_err(failed)?;
        Ok(Cluster {
            api,
            logs,
            ledger: Arc::new(ledger),
            seen: Mutex::new(Seen::new(mapping, mapping_of)),
            look: Notify::new(),
            write: Notify::new(),
            settings,
        })
    }

    /// Would this cluster ever run it, and as whom? Every state reads why not.
    fn accept(&self, order: &WorkOrder) -> Result<Work, String> {
        let pool = self.pool(&order.pool).ok_or("the pool is not one of this gateway")?;
        let mapped = self.seen().mapping.map(&order.researcher);
        let mapped = mapped.ok_or("this factory has no namespace for the researcher: its operator can map one")?;
        let queue = mapped.queue.as_ref().or(self.settings.queue.as_ref()).map(ObjectName::as_str);
        let made = manifest::make(order, pool, &mapped, queue, self.settings.start).map_err(|bad| bad.to_string())?;
        Ok(Work {
            pool: pool.id,
            namespace: mapped.namespace,
            job: made.job,
            inputs: made.inputs,
            steps: order.executors.len(),
            walltime_s: order.walltime_s,
            start_s: self.settings.start.as_secs(),
        })
    }

    fn tails(&self, key: Key, entry: &Entry) -> BTreeMap<usize, String> {
        let steps = entry.work.as_ref().map_or(0, |work| work.steps);
        (0..steps).filter_map(|step| Some((step, self.logs.tail(key, step).ok()?))).collect()
    }

    fn pool(&self, id: &PoolId) -> Option<&KubernetesPool> {
        self.settings.pools.iter().find(|it| it.id == *id)
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().expect("invariant: nothing panics while it holds what was seen")
    }
}

impl Scheduler for Cluster {
    type Entry = Entry;

    fn ledger(&self) -> &Ledger<Entry> {
        &self.ledger
    }

    fn pools(&self) -> Vec<PoolId> {
        self.settings.pools.iter().map(|pool| pool.id).collect()
    }

    fn report(&self, pool: PoolId) -> Option<CapacityReport> {
        self.pool(&pool)?;
        self.seen().report(pool, Timestamp(now_ms()), self.api.silence())
    }

    fn check(&self, order: &WorkOrder) -> Result<(), String> {
        self.accept(order).map(drop)
    }

    fn submit(&self, order: WorkOrder) -> Result<(), DriverError> {
        let key = (order.job, order.attempt);
        if self.ledger.entry(key).is_some() {
            return Ok(());
        }
        let work = self.accept(&order).map_err(|reason| DriverError::Refused(Reason::new(&reason)))?;
        if self.ledger.take(key, Entry::new(work), None).map_err(io_failed("note the order"))? {
            self.look.notify_one();
        }
        Ok(())
    }

    fn cancel(&self, key: Key) -> io::Result<()> {
        if self.ledger.cancel(key)?.is_some() {
            self.look.notify_one();
        }
        Ok(())
    }

    /// A pod's log has both streams in one: it answers for `stdout`.
    fn read_log(&self, key: Key, _: &Entry, stream: LogStream, offset: u64, max: usize) -> io::Result<Vec<u8>> {
        match stream.pipe {
            Pipe::Stdout => self.logs.read(key, stream.executor as usize, offset, max),
            Pipe::Stderr => Ok(Vec::new()),
        }
    }

    fn progress(&self, key: Key, entry: &Entry) -> Option<AttemptRecord> {
        let pod = self.ledger.with(key, |row| row.memory.pod.clone())?;
        Some(outcome::record(pod.as_ref(), &self.tails(key, entry), now_ms()))
    }

    /// Its Job, if it is still there, is nobody's from here on, and swept.
    fn remove(&self, key: Key, entry: &Entry) -> io::Result<()> {
        self.logs.remove(key, entry.work.as_ref().map_or(0, |work| work.steps))
    }
}
