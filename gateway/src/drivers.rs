//! Drivers: all of a gateway's, as one. A pool says who runs a job; who has an attempt answers for it.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use federation::{CapacityReport, JobId, PoolId, Reason};
use futures_util::future::{BoxFuture, FutureExt};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::config::Config;
use crate::driver::{
    AttemptRecord, AttemptStatus, Driver, DriverError, KubernetesSettings, Local, LocalSettings, LogChunk, LogStream,
    NoDriver, NoKubernetes, NoSlurm, SlurmSettings, WorkOrder, start_kubernetes, start_slurm,
};

const NO_POOL: &str = "the pool is not one of this gateway";

/// Every driver of a gateway.
pub struct Drivers {
    each: Vec<Arc<dyn Driver>>,
    changes: watch::Sender<u64>,
    /// Ends with the drivers, and not with those who listen: nobody does at first.
    _forwarding: JoinSet<()>,
}

/// Why a driver does not start. Always the operator's to mend.
#[derive(Debug, thiserror::Error)]
pub enum NoDrivers {
    /// The built-in one.
    #[error(transparent)]
    Local(#[from] NoDriver),
    /// A cluster's.
    #[error("[factory.slurm] of {factory}: {cause}")]
    Slurm {
        /// The factory's name.
        factory: String,
        /// What is wrong with it.
        cause: NoSlurm,
    },
    /// Another cluster's.
    #[error("[factory.kubernetes] of {factory}: {cause}")]
    Kubernetes {
        /// The factory's name.
        factory: String,
        /// What is wrong with it.
        cause: NoKubernetes,
    },
}

impl Drivers {
    /// Starts the drivers of a configuration. Needs a tokio runtime around it.
    pub fn open(config: &Config) -> Result<Drivers, NoDrivers> {
        let mut each: Vec<Arc<dyn Driver>> = Vec::new();
        for factory in &config.factories {
            let wrong = |cause| NoDrivers::Slurm { factory: factory.name.to_string(), cause };
            if let Some(settings) = SlurmSettings::of(config, factory).map_err(wrong)? {
                each.push(start_slurm(settings).map_err(wrong)?);
            }
            let wrong = |cause| NoDrivers::Kubernetes { factory: factory.name.to_string(), cause };
            if let Some(settings) = KubernetesSettings::of(config, factory).map_err(wrong)? {
                each.push(start_kubernetes(settings).map_err(wrong)?);
            }
        }
        let local = LocalSettings::of(config);
        // What an earlier configuration started here is followed to its end.
        if !local.pools.is_empty() || each.is_empty() || has_entries(&local.attempts) {
            each.push(Arc::new(Local::start(local)?));
        }
        Ok(Drivers::new(each))
    }

    /// These, in the order in which they are asked.
    pub fn new(each: Vec<Arc<dyn Driver>>) -> Drivers {
        let (changes, mut forwarding) = (watch::Sender::new(0), JoinSet::new());
        for driver in &each {
            let (mut theirs, ours) = (driver.changes(), changes.clone());
            forwarding.spawn(async move {
                while theirs.changed().await.is_ok() {
                    ours.send_modify(|count| *count += 1);
                }
            });
        }
        Drivers { each, changes, _forwarding: forwarding }
    }

    fn of_pool(&self, pool: &PoolId) -> Option<&Arc<dyn Driver>> {
        self.each.iter().find(|it| it.pools().contains(pool))
    }

    fn holder(&self, job: &JobId, attempt: u32) -> Option<&Arc<dyn Driver>> {
        self.each.iter().find(|it| it.poll(job, attempt) != AttemptStatus::Unknown)
    }
}

impl Driver for Drivers {
    fn pools(&self) -> Vec<PoolId> {
        self.each.iter().flat_map(|it| it.pools()).collect()
    }

    fn capacity(&self, pool: &PoolId) -> Option<CapacityReport> {
        self.of_pool(pool)?.capacity(pool)
    }

    fn check(&self, order: &WorkOrder) -> Result<(), String> {
        self.of_pool(&order.pool).ok_or(NO_POOL)?.check(order)
    }

    fn submit(&self, order: WorkOrder) -> BoxFuture<'_, Result<(), DriverError>> {
        // Whoever has it, whatever the configuration says by now.
        let holder = self.holder(&order.job, order.attempt).or_else(|| self.of_pool(&order.pool));
        match holder {
            Some(driver) => driver.submit(order),
            None => async { Err(DriverError::Refused(Reason::new(NO_POOL))) }.boxed(),
        }
    }

    fn poll(&self, job: &JobId, attempt: u32) -> AttemptStatus {
        self.holder(job, attempt).map_or(AttemptStatus::Unknown, |it| it.poll(job, attempt))
    }

    /// What nobody has may still come to any of them.
    fn cancel(&self, job: &JobId, attempt: u32) -> BoxFuture<'_, Result<(), DriverError>> {
        if let Some(driver) = self.holder(job, attempt) {
            return driver.cancel(job, attempt);
        }
        let job = *job;
        async move {
            for driver in &self.each {
                driver.cancel(&job, attempt).await?;
            }
            Ok(())
        }
        .boxed()
    }

    fn renew(&self, job: &JobId, attempt: u32, until_ms: u64) -> BoxFuture<'_, Result<(), DriverError>> {
        match self.holder(job, attempt) {
            Some(driver) => driver.renew(job, attempt, until_ms),
            None => async { Ok(()) }.boxed(),
        }
    }

    fn logs(
        &self,
        job: &JobId,
        attempt: u32,
        stream: LogStream,
        offset: u64,
        max: usize,
    ) -> BoxFuture<'_, Result<LogChunk, DriverError>> {
        match self.holder(job, attempt) {
            Some(driver) => driver.logs(job, attempt, stream, offset, max),
            None => {
                let job = *job;
                async move { Err(DriverError::Unknown { job, attempt }) }.boxed()
            }
        }
    }

    fn record(&self, job: &JobId, attempt: u32) -> BoxFuture<'_, Option<AttemptRecord>> {
        match self.holder(job, attempt) {
            Some(driver) => driver.record(job, attempt),
            None => async { None }.boxed(),
        }
    }

    fn forget(&self, job: &JobId, attempt: u32) -> BoxFuture<'_, Result<(), DriverError>> {
        let job = *job;
        async move {
            // One that cannot now keeps no other from it.
            let mut forgotten = Ok(());
            for driver in &self.each {
                forgotten = forgotten.and(driver.forget(&job, attempt).await);
            }
            forgotten
        }
        .boxed()
    }

    fn held(&self) -> Vec<(JobId, u32)> {
        let all: BTreeSet<(JobId, u32)> = self.each.iter().flat_map(|it| it.held()).collect();
        all.into_iter().collect()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

fn has_entries(folder: &Path) -> bool {
    std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use federation::{End, Timestamp};
    use tokio::time::timeout;

    use super::*;

    /// Turns an event that does not come into a failure.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// A driver that notes what it is told.
    struct Noted {
        pool: PoolId,
        has: Mutex<Vec<(JobId, u32)>>,
        changes: watch::Sender<u64>,
    }

    fn noted(pool: &str) -> Arc<Noted> {
        let pool = PoolId::parse(pool).expect("a pool");
        Arc::new(Noted { pool, has: Mutex::default(), changes: watch::Sender::new(0) })
    }

    impl Noted {
        fn has(&self) -> Vec<(JobId, u32)> {
            self.has.lock().expect("a lock").clone()
        }

        fn take(&self, job: JobId, attempt: u32) -> BoxFuture<'_, Result<(), DriverError>> {
            self.has.lock().expect("a lock").push((job, attempt));
            self.changes.send_modify(|count| *count += 1);
            async { Ok(()) }.boxed()
        }
    }

    impl Driver for Noted {
        fn pools(&self) -> Vec<PoolId> {
            vec![self.pool]
        }
        fn capacity(&self, pool: &PoolId) -> Option<CapacityReport> {
            Some(CapacityReport { pool: *pool, lendable: vec![], at: Timestamp(1), problem: None })
        }
        fn check(&self, _: &WorkOrder) -> Result<(), String> {
            Ok(())
        }
        fn submit(&self, order: WorkOrder) -> BoxFuture<'_, Result<(), DriverError>> {
            self.take(order.job, order.attempt)
        }
        fn poll(&self, job: &JobId, attempt: u32) -> AttemptStatus {
            match self.has().contains(&(*job, attempt)) {
                true => AttemptStatus::Done { end: End::Canceled, started_ms: None },
                false => AttemptStatus::Unknown,
            }
        }
        fn cancel(&self, job: &JobId, attempt: u32) -> BoxFuture<'_, Result<(), DriverError>> {
            self.take(*job, attempt)
        }
        fn renew(&self, _: &JobId, _: u32, _: u64) -> BoxFuture<'_, Result<(), DriverError>> {
            async { Ok(()) }.boxed()
        }
        fn logs(
            &self,
            job: &JobId,
            attempt: u32,
            _: LogStream,
            _: u64,
            _: usize,
        ) -> BoxFuture<'_, Result<LogChunk, DriverError>> {
            let job = *job;
            async move { Err(DriverError::NotDone { job, attempt }) }.boxed()
        }
        fn record(&self, _: &JobId, _: u32) -> BoxFuture<'_, Option<AttemptRecord>> {
            async { Some(AttemptRecord::default()) }.boxed()
        }
        fn forget(&self, job: &JobId, attempt: u32) -> BoxFuture<'_, Result<(), DriverError>> {
            self.has.lock().expect("a lock").retain(|it| *it != (*job, attempt));
            async { Ok(()) }.boxed()
        }
        fn held(&self) -> Vec<(JobId, u32)> {
            self.has()
        }
        fn changes(&self) -> watch::Receiver<u64> {
            self.changes.subscribe()
        }
    }

    #[tokio::test]
    async fn a_pool_says_who_runs_it_and_who_has_it_answers() {
        let [first, second] = [noted("FR/a/h100"), noted("FR/b/a100")];
        let drivers = Drivers::new(vec![Arc::clone(&first) as Arc<dyn Driver>, Arc::clone(&second) as Arc<dyn Driver>]);
        let mut changes = drivers.changes();
        assert_eq!(drivers.pools(), [first.pool, second.pool]);
        assert_eq!(drivers.capacity(&second.pool).map(|it| it.pool), Some(second.pool));
        assert_eq!(drivers.capacity(&PoolId::parse("FR/c/x").expect("a pool")), None);

        let [kept, buried] = [1, 2].map(|number| JobId::new(number, [0; 10]));
        second.take(kept, 1).await.expect("taken");
        changes.changed().await.expect("a change");
        assert_ne!(drivers.poll(&kept, 1), AttemptStatus::Unknown);
        assert_eq!(drivers.poll(&kept, 2), AttemptStatus::Unknown);
        assert!(drivers.record(&kept, 1).await.is_some());
        drivers.cancel(&kept, 1).await.expect("heard");
        assert!(first.has().is_empty(), "it is none of the first's");

        drivers.cancel(&buried, 1).await.expect("heard");
        assert_eq!((first.has().len(), second.has().contains(&(buried, 1))), (1, true), "it may come to either");
        assert_eq!(drivers.held(), [(kept, 1), (buried, 1)]);
        drivers.forget(&buried, 1).await.expect("forgotten");
        assert_eq!(drivers.held(), [(kept, 1)]);
    }

    #[tokio::test]
    async fn whoever_listens_later_hears_of_a_change_all_the_same() {
        let driver = noted("FR/a/h100");
        let drivers = Drivers::new(vec![Arc::clone(&driver) as Arc<dyn Driver>]);
        // A gateway has much to do between the start of its drivers and that of its host.
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        let mut changes = drivers.changes();
        driver.take(JobId::new(1, [0; 10]), 1).await.expect("taken");
        timeout(PATIENCE, changes.changed()).await.expect("it is heard").expect("a change");

        drop(drivers);
        timeout(PATIENCE, driver.changes.closed()).await.expect("nobody listens any more");
    }
}
