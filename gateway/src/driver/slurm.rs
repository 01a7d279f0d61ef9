//! The Slurm driver: attempts as batch jobs of a cluster, each under its researcher's own local account.
//!
//! A batch script is one line: the supervisor on an attempt's folder in a spool that gateway and nodes share. So steps,
//! staging, logs, walltime and the fence against a second run are the supervisor's, as they are for the local driver, and
//! a job that Slurm was given twice runs once. What the driver adds is to be sure that Slurm has it, to follow it, and to
//! say what a cluster lends.
//!
//! Invariants: an attempt is in the journal before Slurm hears of it; it is `Done` only when Slurm has given its nodes
//! back; one task writes to a cluster, one looks at it; what answers from memory waits for neither disk nor Slurm. The
//! driver needs no root and no administrator's rights in Slurm.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use federation::{CapacityReport, JobId, PoolId, Reason, Timestamp};
use futures_util::future::{BoxFuture, FutureExt};
use tokio::sync::{Notify, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

mod accounts;
mod capacity;
mod dialect;
mod entry;
mod gres;
mod next;
mod outcome;
mod refusal;
mod request;
mod rest;
mod seen;
mod settings;
mod spool;
mod table;
mod token;
mod v0038;
mod v0040;
mod watch_files;
mod watch_slurm;
mod write;

pub use accounts::{BadAccounts, BadName, LocalName};
pub use gres::{BadGres, GresName};
pub use rest::BadAddress;
pub use settings::{NoSlurm, SlurmPool, SlurmSettings, TokenSource};
pub(super) use spool::sweep_beside;

use self::accounts::{Accounts, Mapped};
use self::dialect::Request;
use self::entry::{Entry, Work};
use self::rest::{Caller, Rest};
use self::seen::Seen;
use self::spool::Spool;
use self::table::{Deed, Phase, Row, Table};
use self::token::{NoToken, Tokens};
use super::fault::Fault;
use super::folder::{Done, Key};
use super::journal::Journal;
use super::launcher::Launcher;
use super::order::{Order, Rules};
use super::record::one_line;
use super::sandbox::Sandbox;
use super::{
    AttemptRecord, AttemptStatus, Driver, DriverError, LOG_CHUNK_BYTES_MAX, LogChunk, LogStream, WorkOrder, now_ms,
};

/// The driver of one cluster. Needs a tokio runtime around it.
pub struct Slurm {
    cluster: Arc<Cluster>,
    _stop: DropGuard,
}

struct Cluster {
    settings: SlurmSettings,
    rules: Rules,
    rest: Rest,
    tokens: Tokens,
    journal: Journal<Entry>,
    spool: Spool,
    table: Table,
    /// Held while a folder in the spool appears or goes. It may take as long as a shared file system takes, so nothing
    /// else waits for it. Taken before the claims.
    spooling: Mutex<()>,
    /// Held while the journal and the table change together. Only for threads that may block.
    claims: Mutex<()>,
    seen: Mutex<Seen>,
    /// There is something to look at, or to write.
    look: Notify,
    write: Notify,
}

impl Slurm {
    /// Starts a driver and takes up every attempt that an earlier one left. Slurm need not be there.
    pub fn start(settings: SlurmSettings) -> Result<Slurm, NoSlurm> {
        let cluster = Arc::new(Cluster::open(settings)?);
        cluster.take_up().map_err(|cause| NoSlurm::Folder { path: cluster.settings.journal.clone(), cause })?;
        let stop = CancellationToken::new();
        let spawn = |work: BoxFuture<'static, ()>| {
            let stop = stop.clone();
            tokio::spawn(async move { stop.run_until_cancelled(work).await });
        };
        spawn(Arc::clone(&cluster).watch_slurm().boxed());
        spawn(Arc::clone(&cluster).watch_files().boxed());
        spawn(Arc::clone(&cluster).watch_reports().boxed());
        spawn(Arc::clone(&cluster).write_to_slurm().boxed());
        Ok(Slurm { cluster, _stop: stop.drop_guard() })
    }
}

impl Driver for Slurm {
    fn pools(&self) -> Vec<PoolId> {
        self.cluster.settings.pools.iter().map(|pool| pool.id).collect()
    }

    fn capacity(&self, pool: &PoolId) -> Option<CapacityReport> {
        let pool = self.cluster.pool(pool)?;
        self.cluster.seen().report(pool.id, Timestamp(now_ms()))
    }

    fn check(&self, order: &WorkOrder) -> Result<(), String> {
        self.cluster.accept(order.clone()).map(drop)
    }

    fn submit(&self, order: WorkOrder) -> BoxFuture<'_, Result<(), DriverError>> {
        let cluster = Arc::clone(&self.cluster);
        on_a_thread("take the order", move || cluster.submit(order))
    }

    fn poll(&self, job: &JobId, attempt: u32) -> AttemptStatus {
        self.cluster.table.status((*job, attempt))
    }

    fn cancel(&self, job: &JobId, attempt: u32) -> BoxFuture<'_, Result<(), DriverError>> {
        let (cluster, key) = (Arc::clone(&self.cluster), (*job, attempt));
        on_a_thread("cancel the attempt", move || cluster.cancel(key))
    }

    fn logs(
        &self,
        job: &JobId,
        attempt: u32,
        stream: LogStream,
        offset: u64,
        max: usize,
    ) -> BoxFuture<'_, Result<LogChunk, DriverError>> {
        let (cluster, key) = (Arc::clone(&self.cluster), (*job, attempt));
        on_a_thread("read the log", move || cluster.logs(key, stream, offset, max))
    }

    fn record(&self, job: &JobId, attempt: u32) -> BoxFuture<'_, Option<AttemptRecord>> {
        let (cluster, key) = (Arc::clone(&self.cluster), (*job, attempt));
        on_a_thread("read the record", move || Ok(cluster.record(key))).map(|read| read.ok().flatten()).boxed()
    }

    fn forget(&self, job: &JobId, attempt: u32) -> BoxFuture<'_, Result<(), DriverError>> {
        let (cluster, key) = (Arc::clone(&self.cluster), (*job, attempt));
        on_a_thread("remove the attempt", move || cluster.forget(key))
    }

    fn held(&self) -> Vec<(JobId, u32)> {
        self.cluster.table.keys()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.cluster.table.changes()
    }
}

/// An order that this cluster would run.
struct Accepted {
    order: Order,
    work: Work,
}

impl Cluster {
    fn open(settings: SlurmSettings) -> Result<Cluster, NoSlurm> {
        let rest = Rest::new(&settings.url, settings.ca_file.as_ref())?;
        for path in [&settings.spool, &settings.program] {
            refuse_odd(path)?;
        }
        match &settings.tokens {
            TokenSource::Command(words) if words.is_empty() => return Err(NoSlurm::TokenCommand),
            TokenSource::File(path) if !path.contains("{user}") => return Err(NoSlurm::TokenFile),
            TokenSource::Socket | TokenSource::Command(_) | TokenSource::File(_) => {}
        }
        let launcher = Launcher::parse(&settings.launcher)?;
        let (accounts, _) = Accounts::read(&settings.accounts)?;
        let journal = Journal::open(&settings.journal);
        let journal = journal.map_err(|cause| NoSlurm::Folder { path: settings.journal.clone(), cause })?;
        if nix::unistd::geteuid().is_root() {
            tracing::warn!(
                cluster = settings.name,
                "this gateway runs as root: to drive Slurm it need not, and should not"
            );
        }
        Ok(Cluster {
            rules: Rules {
                sandbox: if launcher.is_plain() { Sandbox::Process } else { Sandbox::Launcher },
                network: true,
                run_as: None,
                file_roots: settings.file_roots.clone(),
                http_hosts: settings.http_hosts.clone(),
                https_ca_file: settings.https_ca_file.clone(),
                disk_reserve: settings.disk_reserve,
                launcher: Some(launcher),
            },
            rest,
            tokens: Tokens::new(settings.tokens.clone()),
            journal,
            spool: Spool::new(settings.spool.clone()),
            table: Table::new(),
            spooling: Mutex::default(),
            claims: Mutex::default(),
            seen: Mutex::new(Seen::new(accounts)),
            look: Notify::new(),
            write: Notify::new(),
            settings,
        })
    }

    /// Reads every entry. One that is damaged keeps none of the others from going on.
    fn take_up(&self) -> io::Result<()> {
        for found in self.journal.load()? {
            let row = match (found.entry, found.done) {
                (Ok(entry), None) => Row::new(entry),
                (Ok(entry), Some(done)) => Row::done(entry, &done),
                (Err(cause), _) => {
                    let (job, attempt) = found.key;
                    tracing::error!(%job, attempt, %cause, "an entry of the journal is unreadable");
                    Row::done(Entry::buried(), &Err(cause))
                }
            };
            self.table.insert(found.key, row);
        }
        Ok(())
    }

    /// Would this cluster ever run it, and as whom? Every state reads why not.
    fn accept(&self, order: WorkOrder) -> Result<Accepted, String> {
        let pool = self.pool(&order.pool).ok_or("the pool is not one of this gateway")?;
        let all = pool.nodes * pool.gpus_per_node;
        if order.gpus > all {
            return Err(format!("the pool has {all} GPUs, the task needs {}", order.gpus));
        }
        if order.gpus == 0 && pool.task_slots == 0 {
            return Err("the pool takes no tasks without a GPU".to_owned());
        }
        if order.nodes > pool.nodes || (order.nodes > 0 && order.gpus > order.nodes * pool.gpus_per_node) {
            return Err(format!("the pool has {} nodes of {} GPUs", pool.nodes, pool.gpus_per_node));
        }
        if order.executors.iter().any(|step| step.image.starts_with('-') || step.image.contains('\0')) {
            return Err("an image's name cannot begin with a dash".to_owned());
        }
        let (mapped, time_max_min) = self.admit(&order, &pool.partition)?;
        let folder = self.spool.path(&mapped.user, (order.job, order.attempt));
        let request = Request::of(&order, pool, &mapped, &folder, &self.settings, time_max_min);
        let work = Work { pool: pool.id, mapped, request };
        let order = Order::parse(order, self.rules.clone()).map_err(|bad| bad.to_string())?;
        Ok(Accepted { order, work })
    }

    /// Who the researcher is here, and how long a job of the partition may be.
    fn admit(&self, order: &WorkOrder, partition: &str) -> Result<(Mapped, Option<u32>), String> {
        let seen = self.seen();
        let mapped = seen.accounts.map(&order.researcher);
        let mapped = mapped.ok_or("this factory has no local account for the researcher: its operator can map one")?;
        if self.settings.tokens == TokenSource::Socket && mapped.user != self.settings.reader {
            return Err(
                "this factory's Slurm runs jobs of one local account only, and it is not the researcher's".to_owned()
            );
        }
        if seen.users.as_ref().is_some_and(|users| !users.contains(&mapped.user)) {
            return Err("this factory has not prepared a folder for the researcher's local account".to_owned());
        }
        let time_max_min = seen.partitions.iter().find(|it| it.name == partition).and_then(|it| it.time_max_min);
        if time_max_min.is_some_and(|max| order.walltime_s.div_ceil(60) > max) {
            return Err(format!("the partition's jobs are limited to {} min", time_max_min.unwrap_or_default()));
        }
        Ok((mapped, time_max_min))
    }

    fn submit(&self, order: WorkOrder) -> Result<(), DriverError> {
        let key = (order.job, order.attempt);
        if self.table.entry(key).is_some() {
            return Ok(());
        }
        let accepted = self.accept(order).map_err(|reason| DriverError::Refused(Reason::new(&reason)))?;
        {
            let _spooling = self.spooling();
            if self.table.entry(key).is_some() {
                return Ok(());
            }
            let user = accepted.work.mapped.user.clone();
            self.spool.claim(&user, &accepted.order).map_err(io("write the order"))?;
            let _claim = self.claim();
            if self.table.entry(key).is_some() {
                // Cancelled while it was written.
                return self.spool.forget(&user, key).map_err(io("remove the order"));
            }
            let entry = Entry::new(accepted.work);
            self.journal.write(key, &entry).map_err(io("note the order"))?;
            let mut row = Row::new(entry);
            row.wanted = Some(Deed::Post);
            self.table.insert(key, row);
        }
        self.write.notify_one();
        Ok(())
    }

    fn cancel(&self, key: Key) -> Result<(), DriverError> {
        let claim = self.claim();
        let Some(entry) = self.table.entry(key) else {
            // An order that is still on its way must find that it came too late.
            let done = Done { end: federation::End::Canceled, record: AttemptRecord::default() };
            let entry = Entry::buried();
            let noted = self.journal.write(key, &entry).and_then(|()| self.journal.conclude(key, &done));
            noted.map_err(io("note the cancellation"))?;
            self.table.insert(key, Row::done(entry, &Ok(done)));
            return Ok(());
        };
        if self.table.with(key, |row| row.is_done()) == Some(true) {
            return Ok(());
        }
        if !entry.cancel {
            self.change(key, |entry| entry.cancel = true).map_err(io("note the cancellation"))?;
            drop(claim);
            if let Some(work) = entry.work() {
                // The supervisor ends the task in good order; if it cannot be told, Slurm ends it.
                if let Err(cause) = self.spool.request_cancel(&work.mapped.user, key) {
                    tracing::warn!(job = %key.0, %cause, "the supervisor cannot be told of the cancellation");
                }
            }
        }
        self.look.notify_one();
        Ok(())
    }

    fn logs(&self, key: Key, stream: LogStream, offset: u64, max: usize) -> Result<LogChunk, DriverError> {
        let (job, attempt) = key;
        // Read before the log: what is done writes nothing more.
        let row = self.table.with(key, |row| (Arc::clone(&row.entry), row.is_done()));
        let (entry, is_done) = row.ok_or(DriverError::Unknown { job, attempt })?;
        let limit = max.min(LOG_CHUNK_BYTES_MAX);
        let bytes = match entry.work() {
            Some(work) => self.spool.log(&work.mapped.user, key, stream, offset, limit).map_err(io("read the log"))?,
            None => Vec::new(),
        };
        let end = is_done && bytes.len() < limit.max(1);
        Ok(LogChunk { next_offset: offset + bytes.len() as u64, bytes, end })
    }

    fn record(&self, key: Key) -> Option<AttemptRecord> {
        let (entry, phase) = self.table.with(key, |row| (Arc::clone(&row.entry), row.phase().clone()))?;
        match phase {
            Phase::Starting => {
                let mut record = self.spool.state(&entry.work()?.mapped.user, key).unwrap_or_default();
                // Why it waits is what is asked of a task that waits.
                record.system_logs.extend(self.job_of(key).map(|job| outcome::line(&job)));
                Some(record)
            }
            Phase::Running { .. } => self.spool.state(&entry.work()?.mapped.user, key),
            Phase::Done { .. } => Some(self.journal.done(key).map_or_else(unreadable, |done| done.record)),
        }
    }

    fn forget(&self, key: Key) -> Result<(), DriverError> {
        let (job, attempt) = key;
        let failed = io("remove the attempt");
        let _spooling = self.spooling();
        let Some((entry, is_done)) = self.table.with(key, |row| (Arc::clone(&row.entry), row.is_done())) else {
            return Ok(());
        };
        if !is_done {
            return Err(DriverError::NotDone { job, attempt });
        }
        if let Some(work) = entry.work() {
            self.spool.forget(&work.mapped.user, key).map_err(&failed)?;
        }
        let _claim = self.claim();
        self.journal.remove(key).map_err(&failed)?;
        self.table.remove(key);
        Ok(())
    }

    /// Changes an entry, in the journal first. The caller holds the claims.
    fn change(&self, key: Key, change: impl FnOnce(&mut Entry)) -> io::Result<()> {
        let Some(entry) = self.table.entry(key) else {
            return Ok(());
        };
        let mut changed = (*entry).clone();
        change(&mut changed);
        if changed != *entry {
            self.journal.write(key, &changed)?;
            self.table.with(key, |row| row.entry = Arc::new(changed));
        }
        Ok(())
    }

    /// [`Cluster::change`] for those who may not block.
    async fn note(self: &Arc<Self>, key: Key, change: impl FnOnce(&mut Entry) + Send + 'static) -> io::Result<()> {
        let cluster = Arc::clone(self);
        let noting = move || {
            let _claim = cluster.claim();
            cluster.change(key, change)
        };
        tokio::task::spawn_blocking(noting).await.map_err(io::Error::other)?
    }

    async fn caller(&self, user: &LocalName) -> Result<Caller, NoToken> {
        Ok(Caller { user: user.clone(), token: self.tokens.of(user).await? })
    }

    fn pool(&self, id: &PoolId) -> Option<&SlurmPool> {
        self.settings.pools.iter().find(|it| it.id == *id)
    }

    fn reports(&self) -> BTreeMap<PoolId, Option<CapacityReport>> {
        let (seen, now) = (self.seen(), Timestamp(now_ms()));
        self.settings.pools.iter().map(|pool| (pool.id, seen.report(pool.id, now))).collect()
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().expect("invariant: nothing panics while it holds what was seen")
    }

    fn spooling(&self) -> MutexGuard<'_, ()> {
        self.spooling.lock().expect("invariant: nothing panics while it writes to the spool")
    }

    fn claim(&self) -> MutexGuard<'_, ()> {
        self.claims.lock().expect("invariant: nothing panics while it makes a claim")
    }
}

fn unreadable(cause: io::Error) -> AttemptRecord {
    let lines = [Fault::Unreadable.to_string(), one_line(&cause.to_string())];
    AttemptRecord { system_logs: lines.into(), ..AttemptRecord::default() }
}

/// A path that a batch script and a configuration can name. Slurm itself expands `%` in names of files.
fn refuse_odd(path: &Path) -> Result<(), NoSlurm> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._+-".contains(c);
    let sound = path.is_absolute() && path.to_str().is_some_and(|it| it.chars().all(plain));
    if sound { Ok(()) } else { Err(NoSlurm::Path(path.to_owned())) }
}

/// Runs to its end on a thread that may block, also when the caller goes away.
fn on_a_thread<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T, DriverError> + Send + 'static,
) -> BoxFuture<'static, Result<T, DriverError>> {
    let working = tokio::task::spawn_blocking(work);
    async move {
        let failed = |cause| io(what)(io::Error::other(cause));
        working.await.map_err(failed)?
    }
    .boxed()
}

fn io(what: &'static str) -> impl Fn(io::Error) -> DriverError {
    move |cause| DriverError::Io { what, cause }
}
