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

use std::io;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard};

use federation::{CapacityReport, PoolId, Reason, Timestamp};
use futures_util::future::FutureExt;
use tokio::sync::Notify;

mod accounts;
mod capacity;
mod dialect;
mod entry;
mod gres;
mod namesakes;
mod next;
mod outcome;
mod refusal;
mod request;
mod rest;
mod seen;
mod settings;
mod spool;
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
use self::entry::{Deed, Entry, Work};
use self::rest::{Caller, Rest};
use self::seen::Seen;
use self::spool::Spool;
use self::token::{NoToken, Tokens};
use super::cluster::{ClusterDriver, Scheduler};
use super::folder::Key;
use super::launcher::Launcher;
use super::ledger::Ledger;
use super::order::{Order, Rules};
use super::phase::Phase;
use super::sandbox::Sandbox;
use super::threads::Threads;
use super::{AttemptRecord, Driver, DriverError, LogStream, WorkOrder, io_failed, now_ms};

/// Looks at attempts' files that may hang, one for each; while so many do, no other is begun.
const HANGING_MAX: usize = 16;

struct Cluster {
    settings: SlurmSettings,
    rules: Rules,
    rest: Rest,
    tokens: Tokens,
    spool: Spool,
    ledger: Arc<Ledger<Entry>>,
    /// For looks at attempts' files.
    files: Threads,
    /// The last of them did not come back in time.
    hangs: AtomicBool,
    /// For telling supervisors.
    tells: Threads,
    seen: Mutex<Seen>,
    /// There is something to look at, or to write.
    look: Notify,
    write: Notify,
}

/// Starts the driver of a cluster of Slurm's and takes up every attempt that an earlier one left. Slurm need not be there.
/// Needs a tokio runtime around it.
pub fn start_slurm(settings: SlurmSettings) -> Result<Arc<dyn Driver>, NoSlurm> {
    let cluster = Arc::new(Cluster::open(settings)?);
    let work = [
        Arc::clone(&cluster).watch_slurm().boxed(),
        Arc::clone(&cluster).watch_files().boxed(),
        Arc::clone(&cluster).write_to_slurm().boxed(),
    ];
    Ok(Arc::new(ClusterDriver::run(cluster, work)))
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
        let ledger = Ledger::open(&settings.journal);
        let ledger = ledger.map_err(|cause| NoSlurm::Folder { path: settings.journal.clone(), cause })?;
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
            spool: Spool::new(settings.spool.clone()),
            ledger: Arc::new(ledger),
            files: Threads::new(HANGING_MAX),
            hangs: AtomicBool::new(false),
            tells: Threads::new(HANGING_MAX),
            seen: Mutex::new(Seen::new(accounts)),
            look: Notify::new(),
            write: Notify::new(),
            settings,
        })
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

    async fn caller(&self, user: &LocalName) -> Result<Caller, NoToken> {
        Ok(Caller { user: user.clone(), token: self.tokens.of(user).await? })
    }

    fn pool(&self, id: &PoolId) -> Option<&SlurmPool> {
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
        self.seen().report(pool, Timestamp(now_ms()))
    }

    fn check(&self, order: &WorkOrder) -> Result<(), String> {
        self.accept(order.clone()).map(drop)
    }

    fn submit(&self, order: WorkOrder) -> Result<(), DriverError> {
        let key = (order.job, order.attempt);
        if self.ledger.entry(key).is_some() {
            return Ok(());
        }
        let Accepted { order, work } =
            self.accept(order).map_err(|reason| DriverError::Refused(Reason::new(&reason)))?;
        let _gate = self.ledger.gate();
        if self.ledger.entry(key).is_some() {
            return Ok(());
        }
        let user = work.mapped.user.clone();
        self.spool.claim(&user, &order).map_err(io_failed("write the order"))?;
        if !self.ledger.take(key, Entry::new(work), Some(Deed::Post)).map_err(io_failed("note the order"))? {
            // Cancelled while it was written.
            return self.spool.forget(&user, key).map_err(io_failed("remove the order"));
        }
        self.write.notify_one();
        Ok(())
    }

    fn cancel(&self, key: Key) -> io::Result<()> {
        let entry = self.ledger.cancel(key)?;
        if let Some(work) = entry.as_ref().and_then(|it| it.work.as_ref()) {
            // The supervisor ends the task in good order; if it cannot be told, or not in time, Slurm ends it.
            let (spool, user) = (self.spool.clone(), work.mapped.user.clone());
            let telling = self.tells.try_run(key, move || {
                if let Err(cause) = spool.request_cancel(&user, key) {
                    tracing::warn!(job = %key.0, %cause, "the supervisor cannot be told of the cancellation");
                }
            });
            if telling.is_none() {
                tracing::warn!(job = %key.0, "the spool hangs: the supervisor is not told of the cancellation");
            }
        }
        self.look.notify_one();
        Ok(())
    }

    fn read_log(&self, key: Key, entry: &Entry, stream: LogStream, offset: u64, max: usize) -> io::Result<Vec<u8>> {
        match &entry.work {
            Some(work) => self.spool.log(&work.mapped.user, key, stream, offset, max),
            None => Ok(Vec::new()),
        }
    }

    fn progress(&self, key: Key, entry: &Entry) -> Option<AttemptRecord> {
        let state = self.spool.state(&entry.work.as_ref()?.mapped.user, key);
        if self.ledger.with(key, |row| *row.phase() != Phase::Starting)? {
            return state;
        }
        let mut record = state.unwrap_or_default();
        // Why it waits is what is asked of a task that waits.
        record.system_logs.extend(self.job_of(key).map(|job| outcome::line(&job)));
        Some(record)
    }

    fn remove(&self, key: Key, entry: &Entry) -> io::Result<()> {
        match &entry.work {
            Some(work) => self.spool.forget(&work.mapped.user, key),
            None => Ok(()),
        }
    }
}

/// A path that a batch script and a configuration can name. Slurm itself expands `%` in names of files.
fn refuse_odd(path: &Path) -> Result<(), NoSlurm> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._+-".contains(c);
    let sound = path.is_absolute() && path.to_str().is_some_and(|it| it.chars().all(plain));
    if sound { Ok(()) } else { Err(NoSlurm::Path(path.to_owned())) }
}
