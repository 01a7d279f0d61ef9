//! Appends that are on their way together.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use openraft::EmptyNode;
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use tokio::sync::watch;
use tokio::time::timeout;

use super::at;
use super::founding::{genesis, node};
use super::script::{self, Script, follow_de, id, leading};
use crate::raft::guard::Guard;
use crate::raft::network::{Client, Network};
use crate::raft::state_machine::StateMachine;
use crate::raft::types::{AppendRequest, Payload};
use crate::raft::wire::{self, WireAppend, WireAppended, WireEntry, WirePayload, log_id};
use crate::raft::{NodeId, Rpc, Transport, TransportError};

const SOON: Duration = Duration::from_secs(60);

/// Answers the first call at once, and call `n` when call `n + ahead` has come, or the last one.
struct Backwards {
    ahead: usize,
    last: usize,
    come: watch::Sender<usize>,
    waiting: Arc<AtomicUsize>,
    most_waiting: Arc<AtomicUsize>,
}

impl Backwards {
    fn new(ahead: usize, last: usize) -> Arc<Backwards> {
        let (waiting, most_waiting) = (Arc::default(), Arc::default());
        Arc::new(Backwards { ahead, last, come: watch::Sender::new(0), waiting, most_waiting })
    }
}

impl Transport for Backwards {
    fn call(&self, _: NodeId, _: Rpc, _: Bytes, _: Duration) -> BoxFuture<'static, Result<Bytes, TransportError>> {
        self.come.send_modify(|come| *come += 1);
        let mut come = self.come.subscribe();
        let number = *come.borrow();
        let awaited = if number == 1 { 1 } else { (number + self.ahead).min(self.last) };
        let (waiting, most) = (Arc::clone(&self.waiting), Arc::clone(&self.most_waiting));
        most.fetch_max(waiting.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        Box::pin(async move {
            come.wait_for(|come| *come >= awaited).await.unwrap();
            // An answer takes a while, so that too many at once would be seen.
            tokio::time::sleep(Duration::from_millis(2)).await;
            waiting.fetch_sub(1, Ordering::SeqCst);
            Ok(wire::encode(&WireAppended::Success))
        })
    }
}

async fn client(transport: Arc<dyn Transport>) -> Client {
    let folder = tempfile::tempdir().unwrap();
    let machine = StateMachine::open(at(folder.path()), &genesis()).unwrap();
    let guard = Arc::new(Guard::new(machine.shared(), Arc::new(genesis())));
    Network { me: node("DE"), guard, transport }.new_client(node("FI"), &EmptyNode {}).await
}

/// DE's append of the entry at an index.
fn append(index: u64, payload: WirePayload) -> AppendRequest {
    let entry = WireEntry { id: id(1, index), payload };
    AppendRequest {
        vote: leading("DE", 1).into(),
        prev_log_id: log_id(Some(id(1, index - 1))),
        entries: vec![entry.open().unwrap()],
        leader_commit: None,
    }
}

#[tokio::test]
async fn appends_do_not_wait_for_each_other_and_their_answers_keep_their_order() {
    let transport = Backwards::new(4, 40);
    let mut client = client(Arc::clone(&transport) as _).await;
    let requests = stream::iter((1..=40).map(|index| append(index, WirePayload::Blank)));
    let answers = client.stream_append(requests, RPCOption::new(SOON)).await.unwrap();
    let matched: Vec<_> = timeout(SOON, answers.map(|it| it.unwrap().unwrap().unwrap().index).collect()).await.unwrap();
    assert_eq!(matched, Vec::from_iter(1..=40));
    assert!(transport.most_waiting.load(Ordering::SeqCst) <= 16);
}

#[tokio::test]
async fn large_appends_are_few_at_once() {
    let mut large = append(1, WirePayload::Envelope(super::founding::large_envelope("FR", 1).as_bytes().to_vec()));
    let entry = large.entries[0].clone();
    large.entries = vec![entry; 5];
    assert!(matches!(large.entries[0].payload, Payload::Normal(_)));
    let transport = Backwards::new(0, 1);
    let mut client = client(Arc::clone(&transport) as _).await;
    let requests = stream::iter(vec![large; 12]);
    let answers = client.stream_append(requests, RPCOption::new(SOON)).await.unwrap();
    assert_eq!(timeout(SOON, answers.count()).await.unwrap(), 12);
    assert_eq!(transport.most_waiting.load(Ordering::SeqCst), 1, "5 MiB are enough at once");
}

#[tokio::test]
async fn nobody_is_called_twice_before_he_has_answered_once() {
    let transport = Backwards::new(0, 1);
    let mut client = client(Arc::clone(&transport) as _).await;
    let requests = stream::iter((1..9).map(|index| append(index, WirePayload::Blank)));
    let mut answers = client.stream_append(requests, RPCOption::new(SOON)).await.unwrap();
    timeout(SOON, answers.next()).await.unwrap();
    assert_eq!(*transport.come.borrow(), 1);
}

/// Raft pauses inside the stream of requests before it tries an absent member again.
#[tokio::test]
async fn nobody_is_called_before_there_is_something_to_say() {
    let transport = Script::absent();
    let mut client = client(Arc::clone(&transport) as _).await;
    let pausing = Box::pin(stream::pending());
    let mut answers = client.stream_append(pausing, RPCOption::new(SOON)).await.unwrap();
    assert!(timeout(Duration::from_millis(50), answers.next()).await.is_err());
    assert!(transport.calls.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_bad_answer_is_the_last() {
    let another_leads = WireAppended::HigherVote(leading("FR", 2));
    let transport = Script::new([Ok(wire::encode(&WireAppended::Success)), Ok(wire::encode(&another_leads))]);
    let mut client = client(transport).await;
    let requests = stream::iter((1..9).map(|index| append(index, WirePayload::Blank)));
    let answers = client.stream_append(requests, RPCOption::new(SOON)).await.unwrap();
    let answers: Vec<_> = timeout(SOON, answers.collect()).await.unwrap();
    let good: Vec<_> = answers.iter().map(|answer| answer.as_ref().unwrap().is_ok()).collect();
    assert_eq!(good, [true, false]);
}

/// Requests of one connection are answered by as many tasks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_that_overtook_another_waits_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let member = script::start(folder.path(), Script::absent()).await;
    follow_de(&member, 3).await;
    let message = |index: u64, follows| WireAppend {
        vote: leading("DE", 1),
        previous: Some(id(1, index - 1)),
        entries: vec![WireEntry { id: id(1, index), payload: WirePayload::Blank }],
        committed: None,
        follows,
    };
    // It is there first, and has no answer yet.
    let mut overtaking = Box::pin(script::append(&member, message(5, true)));
    assert!((&mut overtaking).now_or_never().is_none());
    assert_eq!(script::append(&member, message(4, false)).await, Ok(WireAppended::Success));
    assert_eq!(overtaking.await, Ok(WireAppended::Success));
    // One that stands alone is told of the gap at once.
    assert_eq!(script::append(&member, message(9, false)).await, Ok(WireAppended::Conflict));
}
