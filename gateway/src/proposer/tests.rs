//! A registry of one state, and commands that wait.

use std::path::Path;

use bytes::Bytes;
use certs::{FederationId, GatewayId, GatewayKey, TrustBundle, gateway_key_proof};
use federation::raft::{NodeId, RaftConfig, Rpc, Timers, Transport, TransportError};
use federation::{GatewayRecord, Genesis, GenesisMember, JobId, PublishPack, Timestamp};
use futures_util::future::{BoxFuture, join_all};
use policy::PackSource;

use super::*;

/// Turns an event that does not come into a failure.
const PATIENCE: Duration = Duration::from_secs(60);

fn id(number: u64) -> GatewayId {
    GatewayId::parse(&format!("FR/fr-{number}")).expect("an id")
}

pub(crate) fn signer() -> Signer {
    Signer { owner: id(1).state, key: SigningKey::from_seed([9; 32]) }
}

/// What signs the state's bundles.
pub(crate) fn root() -> SigningKey {
    SigningKey::from_seed([1; 32])
}

/// The first bundle of a state with so many gateways, of which the first one is this.
pub(crate) fn bundle(gateways: u64) -> TrustBundle {
    let federation = FederationId::parse("entente.example").expect("a name");
    let named = |number: u64| {
        let GatewayId { state, name } = id(number);
        let key = if number == 1 { signer().key } else { SigningKey::from_seed([10 + number as u8; 32]) };
        GatewayKey { proof: gateway_key_proof(&federation, state, &name, &key), key: key.public(), name }
    };
    TrustBundle {
        state: id(1).state,
        sequence: 1,
        previous: None,
        root_key: root().public(),
        ca_certs_der: vec![],
        gateways: (1..=gateways).map(named).collect(),
        issuers: vec![],
        crls_der: vec![],
        federation,
    }
}

fn genesis(gateways: u64) -> Genesis {
    let record = |number| GatewayRecord {
        id: id(number),
        node_id: number,
        peer_address: "127.0.0.1:1".into(),
        api_url: "https://127.0.0.1:1".into(),
    };
    let gateways: Vec<_> = (1..=gateways).map(record).collect();
    let bundle = bundle(gateways.len() as u64);
    let federation = bundle.federation.clone();
    let member = GenesisMember { bundle: bundle.sign(&root()), gateways };
    let draft = Genesis::draft(federation, 1, vec![member]).expect("a draft");
    draft.sign(id(1).state, &root()).expect("signed").complete().expect("a genesis")
}

/// Nobody answers.
struct Silence;

impl Transport for Silence {
    fn call(&self, _: NodeId, _: Rpc, _: Bytes, _: Duration) -> BoxFuture<'static, Result<Bytes, TransportError>> {
        Box::pin(std::future::ready(Err(TransportError::Unreachable("there is nobody".into()))))
    }
}

pub(crate) struct Alone {
    pub consensus: Consensus,
    pub proposer: Proposer,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Alone {
    pub async fn start(folder: &Path, gateways: u64, serials: Serials) -> Alone {
        let config = RaftConfig { node: 1, data_dir: folder.join("raft"), timers: Timers::local() };
        let consensus = Consensus::start(config, genesis(gateways), Arc::new(Silence)).await.expect("a start");
        consensus.initialize_if_first().await.expect("a beginning");
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let proposer = Proposer::start(consensus.clone(), signer(), serials, &tasks, stop.clone());
        Alone { consensus, proposer, tasks, stop }
    }

    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        timeout_at(Instant::now() + PATIENCE, self.tasks.wait()).await.expect("the queue's end");
        self.consensus.shutdown().await;
    }
}

fn cancel(number: u8) -> Command {
    Command::Cancel { job: JobId::new(1, [number; 10]), at: Timestamp(1) }
}

fn pack(sequence: u64, bytes: usize) -> Command {
    let cedar = "x".repeat(bytes);
    let source = PackSource { state: id(1).state, title: String::new(), contact: String::new(), cedar };
    Command::PublishPack(PublishPack { sequence, previous: None, source })
}

type Waiter = oneshot::Receiver<Answer>;

fn waiting(command: Command, deadline: Instant) -> (Waiting, Waiter) {
    let bytes = encoded_bytes(&command).expect("small enough");
    let (answer, waiter) = oneshot::channel();
    (Waiting { command, bytes, deadline, decided: Arc::default(), answer }, waiter)
}

#[tokio::test]
async fn an_envelope_is_filled_and_never_too_full() {
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    let mut queue = Queue { waiting: receiver, next: None };
    let sizes = [&[64 * 1_024; 40][..], &[BATCH_BYTES_MAX - 100, 1], &[0; 300]].concat();
    for (sequence, bytes) in sizes.iter().enumerate() {
        let (waiting, _) = waiting(pack(sequence as u64, *bytes), Instant::now() + PATIENCE);
        sender.try_send(waiting).map_err(|_| "full").expect("room");
    }
    drop(sender);
    let (mut batches, mut next) = (0, 0);
    loop {
        let batch = queue.batch().await;
        if batch.is_empty() {
            break;
        }
        batches += 1;
        let commands: Vec<_> = batch.into_iter().map(|it| it.command).collect();
        for command in &commands {
            assert!(matches!(command, Command::PublishPack(it) if it.sequence == next), "in order, and each once");
            next += 1;
        }
        let bytes = Batch(commands).to_bytes();
        let header = Header {
            federation: FederationId::parse("entente.example").expect("a name"),
            epoch: u64::MAX,
            owner: id(1).state,
            key: signer().key.public().id(),
            serial: u64::MAX,
            kind: Kind::Command,
        };
        Envelope::seal(header, &bytes, &signer().key).expect("it fits");
    }
    assert_eq!(next as usize, sizes.len());
    // 15 packs of 64 KiB each in the first two, 10 in the third, the large one, and 300 small ones in two.
    assert_eq!(batches, 6);
}

#[tokio::test]
async fn a_command_that_fits_into_no_envelope_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let alone = Alone::start(folder.path(), 1, Serials::open(folder.path(), 1).expect("serials")).await;
    let refused = alone.proposer.commit(pack(1, BATCH_BYTES_MAX)).await;
    assert!(matches!(refused, Err(NotCommitted::Refused(_))), "{refused:?}");
    alone.stop().await;
}

#[test]
fn what_is_too_late_or_was_taken_back_is_not_sent() {
    let soon = Instant::now() + PATIENCE;
    let (good, _) = waiting(cancel(1), soon);
    let (late, mut told) = waiting(cancel(2), Instant::now());
    let (taken_back, _) = waiting(cancel(3), soon);
    taken_back.decided.store(true, Ordering::Release);
    let (commands, answers) = to_be_sent(vec![late, taken_back, good]);
    assert_eq!(commands, [cancel(1)]);
    assert_eq!(answers.len(), 1);
    assert!(matches!(told.try_recv(), Ok(Err(NotCommitted::NoLeader { .. }))));
}

#[tokio::test]
async fn without_a_leader_a_command_waits_until_its_deadline_and_is_never_sent() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let alone = Alone::start(folder.path(), 2, Serials::open(folder.path(), 1).expect("serials")).await;
    let deadline = Instant::now() + Duration::from_millis(50);
    let answered = timeout_at(Instant::now() + PATIENCE, alone.proposer.commit_by(cancel(1), deadline)).await;
    let answered = answered.expect("an answer at the deadline");
    assert!(matches!(answered, Err(NotCommitted::NoLeader { .. })), "{answered:?}");
    alone.stop().await;
    // A serial is taken for what is sent, and this one still comes first.
    assert_eq!(Serials::open(folder.path(), 1).and_then(|mut it| it.take()).expect("a serial"), 1);
}

#[tokio::test]
async fn serials_go_on_where_the_clock_and_the_replica_do_not() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut highest = 0;
    for clock in [5_000_000, 7] {
        // The replica is empty each time, as if it were behind.
        let replica = tempfile::tempdir().expect("a temporary folder");
        let serials = Serials::open(folder.path(), clock).expect("serials");
        let alone = Alone::start(replica.path(), 1, serials).await;
        let soon = Instant::now() + PATIENCE;
        let commits = (0..20).map(|number| alone.proposer.commit_by(cancel(number), soon));
        for committed in join_all(commits).await {
            let (_, outcome) = committed.expect("committed");
            assert!(matches!(outcome, Outcome::Rejected(_)), "carried out, not taken for a repetition: {outcome:?}");
        }
        let key = signer().key.public().id();
        let last = alone.consensus.read(|registry| registry.last_serial(&key)).expect("an envelope");
        assert!(last > highest, "{last} after {highest}");
        highest = last;
        alone.stop().await;
    }
}
