//! Gateways with an empty log: some are new, some have lost it, and those must not vote again.

use super::at;
use super::founding::{STATES, envelope, genesis, node};
use super::script::{self, Script, follow_de};
use super::wires::{SOON, Wires};
use crate::raft::state_machine::StateMachine;
use crate::raft::{Consensus, RaftConfig, StartError, Timers};
use openraft::storage::{RaftSnapshotBuilder, RaftStateMachine};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_member_starts_and_a_wiped_one_does_not() {
    let wires = Wires::new();
    let early = [wires.start("FR").await.unwrap(), wires.start("DE").await.unwrap()];
    let applied = early[1].propose(envelope("DE", 1)).await.unwrap();

    // The others are at a revision, and nothing in it is of FI.
    let late = wires.start("FI").await.unwrap();
    late.wait_for(applied.revision, SOON).await.unwrap();

    // It has only acknowledged entries so far; the leader knows.
    wires.stop(late).await;
    std::fs::remove_dir_all(wires.folder_of("FI")).unwrap();
    assert!(matches!(wires.start("FI").await, Err(StartError::Wiped(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_has_signed_something_is_known_to_all() {
    for state in STATES {
        let wires = Wires::new();
        let mut members = wires.start_all().await;
        let place = (node(state) - 1) as usize;
        let applied = members[place].propose(envelope(state, 1)).await.unwrap();
        for member in &members {
            member.wait_for(applied.revision, SOON).await.unwrap();
        }
        wires.stop(members.remove(place)).await;
        std::fs::remove_dir_all(wires.folder_of(state)).unwrap();
        // One that follows is enough.
        let leader = members[0].linearize(SOON).await.map(|_| members[0].leader().unwrap()).unwrap();
        wires.cut(leader);
        let refused = wires.start(state).await;
        assert!(matches!(refused, Err(StartError::Wiped(known)) if known >= applied.revision.0), "{state}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_without_a_log_is_half_of_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let member = script::start(folder.path(), Script::absent()).await;
    follow_de(&member, 3).await;
    let mut machine = StateMachine::open(at(&folder.path().join("other")), &genesis()).unwrap();
    let meta = crate::raft::wire::WireMeta {
        last: Some(script::id(1, 3)),
        membership_at: Some(script::id(0, 0)),
        membership: script::everybody(),
    };
    std::fs::create_dir_all(folder.path().join("other")).unwrap();
    let bytes = member.read(|registry| registry.to_bytes());
    machine.install_snapshot(&meta.open().unwrap(), bytes.into()).await.unwrap();
    machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    let config = RaftConfig { node: node("FI"), data_dir: folder.path().join("other"), timers: Timers::local() };
    let started = Consensus::start(config, genesis(), Script::absent()).await;
    assert!(matches!(started, Err(StartError::Wiped(3))));
}
