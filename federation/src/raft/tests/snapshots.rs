//! Snapshots: built here, arriving from others, and both at once.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use openraft::EmptyNode;
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::storage::{RaftSnapshotBuilder, RaftStateMachine};
use tokio::time::Instant;

use super::at;
use super::founding::{gateway, genesis, node};
use super::script::{self, Script, everybody, follow_de, id, leading};
use super::wires::SOON;
use crate::raft::assembly::{Assembly, IDLE_MAX, Progress};
use crate::raft::guard::{Guard, Refused};
use crate::raft::network::Network;
use crate::raft::state_machine::StateMachine;
use crate::raft::types::{Snapshot, SnapshotMeta};
use crate::raft::wire::{self, WireInstalled, WireMeta, WireSnapshot, WireVote};
use crate::raft::{Consensus, NodeId, Rpc, Transport, TransportError};
use crate::registry::Registry;
use crate::time::Revision;

/// The registry when nothing has happened up to a revision, in DE's term 1.
fn idle(last: u64) -> (WireMeta, Vec<u8>) {
    let mut registry = Registry::from_genesis(&genesis());
    registry.advance(Revision(last));
    let meta = WireMeta { last: Some(id(1, last)), membership_at: Some(id(0, 0)), membership: everybody() };
    (meta, registry.to_bytes())
}

async fn install(machine: &mut StateMachine, last: u64) {
    let (meta, bytes) = idle(last);
    machine.install_snapshot(&meta.open().unwrap(), bytes.into()).await.unwrap();
}

fn index(meta: &SnapshotMeta) -> u64 {
    meta.last_log_id.unwrap().index
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_snapshot_does_not_replace_a_newer_one() {
    let folder = tempfile::tempdir().unwrap();
    let mut machine = StateMachine::open(at(folder.path()), &genesis()).unwrap();
    install(&mut machine, 3).await;
    let mut slow = machine.get_snapshot_builder().await;
    install(&mut machine, 9).await;
    assert_eq!(index(&slow.build_snapshot().await.unwrap().meta), 3);
    assert_eq!(index(&machine.get_current_snapshot().await.unwrap().unwrap().meta), 9);

    // Both at once: what stands in the folder afterwards is whole.
    for last in 10..30 {
        let mut builder = machine.get_snapshot_builder().await;
        let building = tokio::spawn(async move { builder.build_snapshot().await });
        install(&mut machine, last).await;
        building.await.unwrap().unwrap();
        let again = StateMachine::open(at(folder.path()), &genesis()).unwrap();
        assert_eq!(again.shared().read(Registry::revision), Revision(last));
    }
}

/// A piece of a snapshot of nothing up to a revision.
fn piece(vote: WireVote, last: u64, offset: usize, end: usize) -> WireSnapshot {
    let (meta, bytes) = idle(last);
    let end = end.min(bytes.len());
    WireSnapshot {
        vote,
        meta,
        total_bytes: bytes.len() as u64,
        offset: offset as u64,
        data: bytes[offset..end].to_vec(),
    }
}

#[test]
fn there_is_one_snapshot_at_a_time_and_not_for_ever() {
    let (assembly, start) = (Assembly::default(), Instant::now());
    let (old, new) = (leading("DE", 1), leading("FR", 2));
    assert_eq!(assembly.add(&piece(old, 9, 0, 10), start), Progress::More);
    assert_eq!(assembly.add(&piece(new, 9, 0, 10), start), Progress::More);
    assert_eq!(assembly.add(&piece(old, 9, 10, 20), start), Progress::Bad, "another took its place");
    let whole = idle(9).1;
    assert_eq!(assembly.add(&piece(new, 9, 0, 10), start), Progress::More, "it begins anew");
    let later = start + IDLE_MAX / 2;
    assert_eq!(assembly.add(&piece(new, 9, 10, 20), later), Progress::More);
    assembly.expire(start + IDLE_MAX);
    assert_eq!(assembly.add(&piece(new, 9, 20, 30), later), Progress::More, "it grows");
    assembly.expire(later + IDLE_MAX);
    assert_eq!(assembly.add(&piece(new, 9, 30, usize::MAX), later), Progress::Bad, "it was let go");
    assert_eq!(assembly.add(&piece(new, 9, 0, usize::MAX), later), Progress::Whole(whole));
    let huge = WireSnapshot { total_bytes: crate::limits::SNAPSHOT_BYTES_MAX + 1, ..piece(new, 9, 0, 10) };
    assert_eq!(assembly.add(&huge, start), Progress::Bad);
    let beyond = WireSnapshot { total_bytes: 5, ..piece(new, 9, 0, 10) };
    assert_eq!(assembly.add(&beyond, start), Progress::Bad);
}

async fn send(member: &Consensus, from: &str, piece: &WireSnapshot) -> Result<WireInstalled, Refused> {
    let answer: Bytes = member.handle(gateway(from), Rpc::Snapshot, wire::encode(piece)).await?;
    Ok(wire::decode(&answer)?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_comes_from_the_leader_that_is_followed() {
    let folder = tempfile::tempdir().unwrap();
    let member = script::start(folder.path(), Script::absent()).await;
    follow_de(&member, 3).await;
    let (de, all) = (leading("DE", 1), usize::MAX);

    // Somebody who only says that he leads takes no memory.
    let usurper = piece(leading("FR", 2), 9, 0, 10);
    assert_eq!(send(&member, "FR", &usurper).await, Err(Refused::NotElected));
    let former = WireVote { term: 0, ..leading("FR", 0) };
    let of_a_former = WireSnapshot { vote: former, ..piece(de, 9, 0, 10) };
    assert!(send(&member, "FR", &of_a_former).await.is_err(), "its log is younger than its leader");
    let asking = WireSnapshot { vote: WireVote { committed: false, ..de }, ..piece(de, 9, 0, 10) };
    assert_eq!(send(&member, "DE", &asking).await, Err(Refused::NotElected));

    // What is here already is not installed again, whatever term it is said to be of. Stock Raft would abort.
    for last in [2, 3] {
        assert_eq!(send(&member, "DE", &piece(de, last, 0, all)).await, Ok(WireInstalled::Done(de)));
    }
    assert_eq!(member.read(Registry::revision), Revision(3));

    assert_eq!(send(&member, "DE", &piece(de, 9, 0, 10)).await, Ok(WireInstalled::More));
    assert_eq!(send(&member, "DE", &piece(de, 9, 10, all)).await, Ok(WireInstalled::Done(de)));
    member.wait_for(Revision(9), SOON).await.unwrap();
}

/// Threat 3. The first would pass for committed entries of a later term, and stock Raft aborts at that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_cannot_replace_what_is_committed() {
    let folder = tempfile::tempdir().unwrap();
    let member = script::start(folder.path(), Script::absent()).await;
    follow_de(&member, 5).await;
    let later = leading("DE", 7);
    let heartbeat = wire::WireAppend { vote: later, previous: None, entries: vec![], committed: None, follows: false };
    script::append(&member, heartbeat).await.unwrap();
    let mut rewritten = piece(later, 4, 0, usize::MAX);
    rewritten.meta.last = Some(id(7, 4));
    // The vote in the answer is the one that is known to be held, and that is a moment after the heartbeat is answered.
    let mut answer = send(&member, "DE", &rewritten).await;
    while answer == Ok(WireInstalled::Done(leading("DE", 1))) {
        answer = send(&member, "DE", &rewritten).await;
    }
    assert_eq!(answer, Ok(WireInstalled::Done(later)));
    assert_eq!(member.read(Registry::revision), Revision(5));
    let mut forged = piece(later, 9, 0, usize::MAX);
    forged.data[1] ^= 1;
    assert!(matches!(send(&member, "DE", &forged).await, Err(Refused::Snapshot(_) | Refused::Contradiction(_))));
}

/// Takes so many pieces, and writes down how long each answer might have taken.
struct Patience {
    pieces: usize,
    given: Mutex<Vec<Duration>>,
}

impl Transport for Patience {
    fn call(
        &self,
        _: NodeId,
        _: Rpc,
        _: Bytes,
        at_most: Duration,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>> {
        let mut given = self.given.lock().unwrap();
        given.push(at_most);
        let is_last = given.len() == self.pieces;
        let answer = if is_last { WireInstalled::Done(leading("DE", 1)) } else { WireInstalled::More };
        Box::pin(async move { Ok(wire::encode(&answer)) })
    }
}

/// Seconds that the answer to each piece of a snapshot may take.
async fn patience(bytes: usize, pieces: usize) -> Vec<f64> {
    let folder = tempfile::tempdir().unwrap();
    let machine = StateMachine::open(at(folder.path()), &genesis()).unwrap();
    let guard = Arc::new(Guard::new(machine.shared(), Arc::new(genesis())));
    let transport = Arc::new(Patience { pieces, given: Mutex::default() });
    let mut network = Network { me: node("DE"), guard, transport: transport.clone() };
    let mut client = network.new_client(node("FI"), &EmptyNode {}).await;
    let snapshot = Snapshot { meta: idle(7).0.open().unwrap(), snapshot: vec![0; bytes].into() };
    let sent =
        client.full_snapshot(leading("DE", 1).into(), snapshot, std::future::pending(), RPCOption::new(Duration::ZERO));
    sent.await.unwrap();
    let given = transport.given.lock().unwrap();
    given.iter().map(Duration::as_secs_f64).collect()
}

/// While Raft waits for the answer it sends the member nothing else.
#[tokio::test]
async fn the_answer_to_a_piece_may_take_as_long_as_its_bytes_do() {
    const MIB: usize = 1024 * 1024;
    let small = patience(10_000, 1).await;
    assert!(small.len() == 1 && small[0] < 4.0, "{small:?}");
    let large = patience(10 * MIB, 3).await;
    assert_eq!(large, [13.0, 13.0, 8.5], "4 MiB, 4 MiB, and 2 MiB that are answered when all 10 are installed");
}
