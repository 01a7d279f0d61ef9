//! A host whose duties are carried out one by one, over a real registry of its own state; only its driver is not real.

use std::sync::Mutex;

use certs::{Assurance, Caller};
use federation::{CapacityReport, PublishPack};
use futures_util::future::{BoxFuture, FutureExt};
use policy::PackSource;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};

use super::*;
use crate::archive::Archive;
use crate::driver::{AttemptRecord, LogChunk, LogStream};
use crate::home::Arrival;
use crate::listener::tests::tls::{Peering, id};
use crate::peer::Peers;
use crate::proposer::Serials;
use crate::proposer::tests::{Alone, signer};
use crate::samples::offer;
use crate::stages::Stages;
use crate::store::Store;

const POOL: &str = "FR/jean-zay/h100";
const PACK: &str = r#"@id("all") @title("All") @law("none") @since("2025-01-01") @contact("law@example.fr")
permit (principal, action, resource);
"#;

/// A driver that runs what it is given for ever, and never comes to an end with removing what an attempt has left.
#[derive(Default)]
struct Endless {
    has: Mutex<Vec<(JobId, u32)>>,
    stopped: Mutex<Vec<(JobId, u32)>>,
    /// Attempts that are done.
    left: Mutex<Vec<(JobId, u32)>>,
    /// It is asked to forget one of them.
    forgetting: Notify,
    refuses: Mutex<bool>,
    /// What happens while it is asked.
    meanwhile: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Driver for Endless {
    fn pools(&self) -> Vec<PoolId> {
        vec![PoolId::parse(POOL).expect("a pool")]
    }
    fn capacity(&self, _: &PoolId) -> Option<CapacityReport> {
        None
    }
    fn check(&self, _: &WorkOrder) -> Result<(), String> {
        if let Some(meanwhile) = self.meanwhile.lock().expect("a lock").take() {
            meanwhile();
        }
        if *self.refuses.lock().expect("a lock") { Err("not this one".into()) } else { Ok(()) }
    }
    fn submit(&self, order: WorkOrder) -> BoxFuture<'_, Result<(), DriverError>> {
        self.has.lock().expect("a lock").push((order.job, order.attempt));
        async { Ok(()) }.boxed()
    }
    fn poll(&self, job: &JobId, attempt: u32) -> AttemptStatus {
        if self.left.lock().expect("a lock").contains(&(*job, attempt)) {
            return AttemptStatus::Done { end: End::Complete, started_ms: Some(1) };
        }
        let has = self.has.lock().expect("a lock").contains(&(*job, attempt));
        if has { AttemptStatus::Running { started_ms: 1 } } else { AttemptStatus::Unknown }
    }
    fn cancel(&self, job: &JobId, attempt: u32) -> BoxFuture<'_, Result<(), DriverError>> {
        self.stopped.lock().expect("a lock").push((*job, attempt));
        async { Ok(()) }.boxed()
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
        async move { Err(DriverError::Unknown { job, attempt }) }.boxed()
    }
    fn record(&self, _: &JobId, _: u32) -> BoxFuture<'_, Option<AttemptRecord>> {
        async { None }.boxed()
    }
    fn forget(&self, _: &JobId, _: u32) -> BoxFuture<'_, Result<(), DriverError>> {
        self.forgetting.notify_one();
        std::future::pending().boxed()
    }
    fn held(&self) -> Vec<(JobId, u32)> {
        [&self.left, &self.has].iter().flat_map(|it| it.lock().expect("a lock").clone()).collect()
    }
    fn changes(&self) -> watch::Receiver<u64> {
        watch::channel(0).1
    }
}

/// FR/fr-1, whose host nobody drives but the test, and a job that was granted to it.
struct Granted {
    host: Host,
    driver: Arc<Endless>,
    alone: Alone,
    job: JobId,
    _folder: tempfile::TempDir,
}

impl Granted {
    async fn new() -> Granted {
        let folder = tempfile::tempdir().expect("a folder");
        let serials = Serials::open(folder.path(), 1).expect("serials");
        let alone = Alone::start(folder.path(), 1, serials).await;
        let (me, peering, driver) = (id("FR/fr-1"), Peering::new(), Arc::new(Endless::default()));
        let (consensus, proposer) = (alone.consensus.clone(), alone.proposer.clone());
        let store = Store::open(folder.path()).await.expect("a store");
        let (judge, stages) = (Arc::new(Judge::default()), Arc::new(Stages::default()));
        let orders = Arc::new(Orders {
            me: me.clone(),
            consensus: consensus.clone(),
            store: store.clone(),
            driver: Arc::clone(&driver) as Arc<dyn Driver>,
            peers: Arc::new(Peers::new(peering.trust(), peering.leaf("FR/fr-1"), [])),
            judge: Arc::clone(&judge),
            signing: signer().key,
        });
        let archive = Archive::open(consensus.clone(), store.clone(), Arc::clone(&orders)).expect("an archive");
        let home = Home::new(
            me.clone(),
            consensus.clone(),
            proposer.clone(),
            store,
            Arc::clone(&judge),
            [3; 32],
            stages,
            Arc::new(archive),
        );
        let host = Host {
            me,
            consensus,
            proposer,
            driver: Arc::clone(&driver) as Arc<dyn Driver>,
            judge,
            home: Arc::new(home),
            orders,
            lease_ms: 1_000,
            leased_until_ms: AtomicU64::new(0),
        };
        for command in [pack(), Command::PublishOffer(offer(POOL))] {
            host.commit(command).await.expect("published");
        }
        let job = submit(&host.home).await;
        let granted = Granted { host, driver, alone, job, _folder: folder };
        granted.is(JobState::Granted);
        granted
    }

    #[track_caller]
    fn is(&self, state: JobState) {
        let now = self.host.consensus.read(|it| it.job(&self.job).map(|job| (job.state, job.attempts.len())));
        assert_eq!(now, Some((state, 1)));
    }

    async fn act(&self, action: Action) {
        self.host.act(&action, &Claims::default()).await.expect("done");
    }

    fn told(&self) -> (usize, usize) {
        let count = |list: &Mutex<Vec<_>>| list.lock().expect("a lock").len();
        (count(&self.driver.has), count(&self.driver.stopped))
    }

    async fn stop(self) {
        let Granted { host, alone, _folder, .. } = self;
        drop(host);
        alone.stop().await;
    }
}

fn pack() -> Command {
    let source = PackSource {
        state: id("FR/fr-1").state,
        title: "Everything".into(),
        contact: "law@example.fr".into(),
        cedar: PACK.into(),
    };
    Command::PublishPack(PublishPack { sequence: 1, previous: None, source })
}

async fn submit(home: &Home) -> JobId {
    let caller = Caller {
        state: id("FR/fr-1").state,
        issuer: "https://idp.example.fr".into(),
        subject: "marie".into(),
        roles: vec![],
        entitlements: vec![],
        assurance: Assurance::High,
        clearances: vec![],
        residency: None,
        token_id: "1".into(),
        expires_s: u64::MAX,
    };
    let body = br#"{"executors": [{"image": "any", "command": ["true"]}], "tags": {"entente.gpu_count": "1"}}"#;
    let submission = Submission::parse(body).expect("a task");
    let requirements = submission.requirements().expect("requirements");
    let arrival = Arrival { key: None, body: Digest::of(body), face: "/v1".into() };
    home.submit(&caller, &submission, &requirements, &arrival).await.expect("accepted").job
}

#[tokio::test]
async fn a_grant_that_was_started_meanwhile_is_not_declined() {
    let granted = Granted::new().await;
    let dispatch = Action::Dispatch { job: granted.job, attempt: 1 };
    granted.act(dispatch).await;
    granted.is(JobState::Starting);
    // The same duty, computed before the start was to be seen; and by now it would not be taken.
    *granted.driver.refuses.lock().expect("a lock") = true;
    granted.act(dispatch).await;
    granted.is(JobState::Starting);
    assert_eq!(granted.told(), (1, 0), "it runs, and nobody stops it");
    granted.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_cancelled_while_its_order_comes_is_not_handed_over() {
    let granted = Granted::new().await;
    let (job, attempt) = (granted.job, 1);
    // As it was left by a gateway that was killed before it handed the attempt over.
    granted.host.commit(Command::Start { job, attempt, at: now() }).await.expect("started");
    let (home, runtime) = (Arc::clone(&granted.host.home), Handle::current());
    let cancel = move || tokio::task::block_in_place(|| runtime.block_on(home.cancel(job))).expect("cancelled");
    *granted.driver.meanwhile.lock().expect("a lock") = Some(Box::new(cancel));
    granted.act(Action::Poll { job, attempt }).await;
    granted.is(JobState::Starting);
    assert_eq!(granted.told(), (0, 0), "it never comes to the driver");
    granted.stop().await;
}

#[tokio::test]
async fn what_must_not_run_is_stopped_before_anything_is_forgotten() {
    let granted = Granted::new().await;
    let [left, superseded] = [1, 2].map(|number| (JobId::new(number, [0; 10]), 1));
    granted.driver.left.lock().expect("a lock").push(left);
    granted.driver.has.lock().expect("a lock").push(superseded);
    let claims = Claims::default();
    tokio::select! {
        () = granted.host.reconcile(&claims) => {}
        () = granted.driver.forgetting.notified() => {}
    }
    assert_eq!(*granted.driver.stopped.lock().expect("a lock"), [superseded]);
    granted.stop().await;
}
