//! What becomes of tasks whose home is FR/fr-1 and whose host is FR/fr-2.

use std::sync::atomic::AtomicUsize;

use axum::Router;
use axum::routing::get;
use federation::{CapacityReport, Revision};
use http::StatusCode;
use tokio::net::TcpListener;

use super::*;
use crate::drivers::Drivers;
use crate::listener::tests::tls::{Peering, id};
use crate::listener::{Connections, Face, Limits, serve};
use crate::peer::Peers;
use crate::peer::client::PeerAddress;
use crate::proposer::Serials;
use crate::proposer::tests::{Alone, signer};
use crate::samples::offer;
use crate::store::tests::{accept, accept_again, lost, spoil_end, task};

/// The home, with the consensus and the store of a real one.
struct HomeOf {
    alone: Alone,
    store: Store,
    orders: Arc<Orders>,
    _folder: tempfile::TempDir,
}

impl HomeOf {
    /// The task with number 1, and the peer face of its host.
    async fn one_task(host: Router) -> HomeOf {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let peering = Peering::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let face = Face::Peer(Connections::default());
        tokio::spawn(serve(listener, peering.server("FR/fr-2"), face, host, Limits::peer(), CancellationToken::new()));

        let serials = Serials::open(folder.path(), 1).expect("serials");
        let alone = Alone::start(folder.path(), 1, serials).await;
        let store = Store::open(folder.path()).await.expect("a store");
        store.write(accept(1)).await.expect("written");
        let host = PeerAddress { id: id("FR/fr-2"), node: 2, address };
        let orders = Orders {
            me: id("FR/fr-1"),
            consensus: alone.consensus.clone(),
            store: store.clone(),
            driver: Arc::new(Drivers::new(vec![])),
            peers: Arc::new(Peers::new(peering.trust(), peering.leaf("FR/fr-1"), [host])),
            judge: Arc::default(),
            signing: signer().key,
        };
        HomeOf { alone, store, orders: Arc::new(orders), _folder: folder }
    }

    async fn write(&self, change: Change) {
        self.store.write(change).await.expect("written");
    }

    /// What a gateway does when it starts.
    fn archive(&self) -> Arc<Archive> {
        Arc::new(
            Archive::open(self.alone.consensus.clone(), self.store.clone(), Arc::clone(&self.orders)).expect("read"),
        )
    }

    fn record(&self) -> Option<Option<AttemptRecord>> {
        let bytes = self.store.record(&task(1).job).expect("read")?;
        Some(host_record(&bytes).expect("a record"))
    }
}

fn record() -> AttemptRecord {
    AttemptRecord { begin_ms: 7, ..AttemptRecord::default() }
}

/// A host that gives the record once and has no part in the task from then on; and how often it was asked.
fn forgetful() -> (Router, Arc<AtomicUsize>) {
    let asked = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&asked);
    let answer = async move || match count.fetch_add(1, Ordering::SeqCst) {
        0 => Ok(postcard::to_stdvec(&Some(record())).expect("plain data")),
        _ => Err(StatusCode::FORBIDDEN),
    };
    (Router::new().route("/attempts/{job}/{attempt}/record", get(answer)), asked)
}

fn ended() -> Change {
    Change::End(Box::new(lost(1)))
}

#[tokio::test]
async fn a_record_that_is_here_is_not_asked_for_again() {
    let (host, asked) = forgetful();
    let home = HomeOf::one_task(host).await;
    home.write(ended()).await;
    let archive = home.archive();
    archive.keep_record(task(1).job).await.expect("a record");
    assert_eq!(home.record(), Some(Some(record())));
    archive.keep_record(task(1).job).await.expect("nothing to do");
    assert_eq!(home.record(), Some(Some(record())));
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_task_that_waits_to_be_asked_for_waits_once_and_counts_no_try() {
    let (host, asked) = forgetful();
    let home = HomeOf::one_task(host).await;
    home.write(ended()).await;
    let archive = home.archive();
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let every_place = archive.asking.acquire_many(ASKED_AT_ONCE as u32).await.expect("places");
    for looks in 1..=3 {
        archive.ask_for_records(&tasks, &stop, Instant::now() + looks * 2 * REST_MAX);
        assert_eq!(tasks.len(), 1);
    }
    assert_eq!(archive.lock().ended.get(&task(1).job).map(|asked| asked.times), Some(0));
    drop(every_place);
    tasks.close();
    tasks.wait().await;
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    assert_eq!(home.record(), Some(Some(record())));
    assert_eq!(home.store.unfinished().expect("read"), vec![]);
}

/// A pool whose newest report says this time.
fn pool(id: &str, reported_at: Option<u64>) -> OfferState {
    let offer = offer(id);
    let report = |at| CapacityReport { pool: offer.pool, lendable: vec![], at: Timestamp(at), problem: None };
    OfferState {
        published_at: Revision(1),
        withdrawn: false,
        report: reported_at.map(report),
        reported_at: Revision(1),
        clock: Timestamp(reported_at.unwrap_or_default()),
        recent: Default::default(),
        quiet: false,
        ledger: Default::default(),
        offer,
    }
}

#[test]
fn a_clock_that_runs_ahead_forgets_nothing_early() {
    let (day, ahead) = (24 * 3_600 * 1_000, 40 * 24 * 3_600 * 1_000);
    let own = pool("FR/paris/main", Some(ahead));
    let france = own.offer.pool.factory.state;
    let (spoken, older) = (pool("DE/bonn/main", Some(day)), pool("FI/oulu/main", Some(day - 5_000)));
    let unheard = pool("IT/rome/main", None);
    let agreed = |now, offers: &[&OfferState]| agreed(Timestamp(now), offers.iter().copied(), france).0;
    assert_eq!(agreed(ahead, &[&own, &spoken, &older, &unheard]), day, "others know better");
    assert_eq!(agreed(day + 3, &[&own, &spoken]), day, "a report is as old as it is");
    assert_eq!(agreed(day - 9, &[&own, &spoken]), day - 9, "a clock that is behind forgets late");
    assert_eq!(agreed(ahead, &[&own, &unheard]), ahead, "nobody else has said anything");
    let quiet = OfferState { quiet: true, ..spoken.clone() };
    let withdrawn = OfferState { withdrawn: true, ..spoken };
    assert_eq!(agreed(ahead, &[&own, &quiet, &withdrawn]), ahead, "who says nothing any more holds nothing up");
}

#[tokio::test]
async fn a_try_counts_when_it_has_ended_without_a_record() {
    let busy = Router::new().fallback(async || StatusCode::SERVICE_UNAVAILABLE);
    let home = HomeOf::one_task(busy).await;
    home.write(ended()).await;
    let archive = home.archive();
    let begun = Instant::now();
    for times in 1..=3 {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        archive.ask_for_records(&tasks, &stop, begun + times * REST_MAX);
        tasks.close();
        tasks.wait().await;
        let asked = archive.lock().ended.get(&task(1).job).copied().expect("still on the list");
        assert_eq!(asked.times, times);
        assert!(asked.again >= begun + Duration::from_secs(1 << times), "it rests");
    }
    archive.lock().ended.get_mut(&task(1).job).expect("on the list").times = TRIES_MAX - 1;
    archive.keep_record(task(1).job).await.expect("the last try");
    assert_eq!(home.record(), Some(None));
}

#[tokio::test]
async fn what_the_registry_has_forgotten_is_given_up_for_good() {
    let home = HomeOf::one_task(Router::new()).await;
    let (job, owner) = (task(1).job, task(1).owner);
    let archive = home.archive();
    archive.keep_ends().await.expect("kept");
    assert_eq!(home.store.ended(&job).expect("read"), None, "its commit may be under way");
    assert_eq!(archive.open_of(&owner).tasks, 1);

    home.write(Change::Taken(vec![job])).await;
    let archive = home.archive();
    archive.keep_ends().await.expect("kept");
    assert_eq!(home.store.ended(&job).expect("read"), Some(Ended::Forgotten));
    assert_eq!(home.record(), Some(None));
    assert_eq!(archive.open_of(&owner), Open::default());
    assert_eq!(home.store.unfinished().expect("read"), vec![]);
}

#[tokio::test]
async fn what_is_submitted_again_meanwhile_is_not_given_up() {
    let home = HomeOf::one_task(Router::new()).await;
    let (job, owner) = (task(1).job, task(1).owner);
    home.write(Change::Taken(vec![job])).await;
    let archive = home.archive();
    let first = archive.lock().open[&job];
    let given_up = archive.surely_gone(vec![(job, first)]).await;
    assert_eq!(given_up.len(), 1);

    archive.expect(job, owner, 1);
    home.write(accept_again(1)).await;
    assert!(archive.surely_gone(vec![(job, first)]).await.is_empty(), "looked at too early");
    for (_, _, change) in given_up {
        home.write(change).await;
    }
    assert_eq!(home.store.ended(&job).expect("read"), None, "written too late");
    archive.keep_ends().await.expect("kept");
    assert_eq!(archive.open_of(&owner).tasks, 1);
}

#[tokio::test]
async fn an_end_that_cannot_be_read_keeps_no_other_on_the_list() {
    let home = HomeOf::one_task(Router::new()).await;
    home.write(accept(2)).await;
    home.write(Change::Taken(vec![task(1).job, task(2).job])).await;
    let archive = home.archive();
    spoil_end(&home.store, &task(1).job);
    archive.keep_ends().await.expect("kept, but for one");
    assert_eq!(home.store.ended(&task(2).job).expect("read"), Some(Ended::Forgotten));
    let open: Vec<_> = archive.lock().open.keys().copied().collect();
    assert_eq!(open, [task(1).job]);
}
