//! Hostile answers. Stock Raft takes over whatever vote it is told of, and panics at a conflict where there can be none.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::pending;
use openraft::EmptyNode;
use openraft::errors::{RPCError, StreamingError};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};

use super::at;
use super::founding::{genesis, node};
use super::script::{Script, everybody, id, leading};
use crate::raft::guard::{Guard, Refused};
use crate::raft::network::{Client, Network};
use crate::raft::state_machine::StateMachine;
use crate::raft::types::{AppendRequest, AppendResponse, Snapshot, SnapshotData, VoteRequest, VoteResponse};
use crate::raft::wire::{
    self, WireAppended, WireInstalled, WireLogId, WireMeta, WireVote, WireVoteRequest, WireVoted, log_id,
};

const TTL: Duration = Duration::from_secs(1);

fn guard() -> Arc<Guard> {
    let folder = tempfile::tempdir().unwrap();
    let machine = StateMachine::open(at(folder.path()), &genesis()).unwrap();
    Arc::new(Guard::new(machine.shared(), Arc::new(genesis())))
}

/// DE's way to FI, who answers this.
async fn to_fi<T: serde::Serialize>(answer: &T) -> Network {
    let transport = Script::new([Ok(wire::encode(answer))]);
    Network { me: node("DE"), guard: guard(), transport }
}

async fn client<T: serde::Serialize>(answer: &T) -> Client {
    to_fi(answer).await.new_client(node("FI"), &EmptyNode {}).await
}

/// What DE, leading or standing in term 5, may be told.
fn votes() -> Vec<(WireVote, Result<(), Refused>)> {
    let asking = |vote| WireVote { committed: false, ..vote };
    vec![
        (leading("FI", 6), Ok(())),
        (asking(leading("FR", 100_005)), Ok(())),
        (leading("FI", u64::MAX), Err(Refused::TermJump { found: u64::MAX, current: 5 })),
        (asking(leading("FI", 100_006)), Err(Refused::TermJump { found: 100_006, current: 5 })),
        (WireVote { term: 6, node: 9, committed: true }, Err(Refused::NotAVoter(9))),
        (leading("DE", 6), Err(Refused::OwnVote)),
        (asking(leading("DE", 6)), Err(Refused::OwnVote)),
    ]
}

fn append_behind(previous: Option<WireLogId>) -> AppendRequest {
    let vote = leading("DE", 5).into();
    AppendRequest { vote, prev_log_id: log_id(previous), entries: vec![], leader_commit: None }
}

fn is_absent<T>(answer: &Result<T, RPCError<crate::raft::types::Types>>) -> bool {
    matches!(answer, Err(RPCError::Unreachable(_)))
}

#[tokio::test]
async fn an_append_is_not_answered_with_any_vote() {
    for (vote, expected) in votes() {
        let answer = WireAppended::HigherVote(vote);
        assert_eq!(guard().appended(leading("DE", 5), None, None, &answer), expected);
        for mut client in
            [client(&answer).await, to_fi(&answer).await.new_heartbeat_client(node("FI"), &EmptyNode {}).await]
        {
            let answered = client.append_entries(append_behind(None), RPCOption::new(TTL)).await;
            assert_eq!(is_absent(&answered), expected.is_err(), "{vote:?}: {answered:?}");
        }
    }
    let lower = WireAppended::HigherVote(leading("FI", 4));
    assert!(guard().appended(leading("DE", 5), None, None, &lower).is_err(), "that is no reason");
}

#[tokio::test]
async fn nobody_takes_back_what_he_acknowledged() {
    let there = Some(id(5, 7));
    let mut fresh = client(&WireAppended::Conflict).await;
    let answered = fresh.append_entries(append_behind(there), RPCOption::new(TTL)).await.unwrap();
    assert_eq!(answered, AppendResponse::Conflict);
    assert!(is_absent(&fresh.append_entries(append_behind(None), RPCOption::new(TTL)).await), "nothing is before it");

    let transport = Script::new([Ok(wire::encode(&WireAppended::Success)), Ok(wire::encode(&WireAppended::Conflict))]);
    let mut network = Network { me: node("DE"), guard: guard(), transport };
    let mut client = network.new_client(node("FI"), &EmptyNode {}).await;
    client.append_entries(append_behind(there), RPCOption::new(TTL)).await.unwrap();
    assert!(is_absent(&client.append_entries(append_behind(there), RPCOption::new(TTL)).await));
    // A heartbeat stands behind what was acknowledged to the other client.
    let mut heart = network.new_heartbeat_client(node("FI"), &EmptyNode {}).await;
    assert!(is_absent(&heart.append_entries(append_behind(there), RPCOption::new(TTL)).await));
}

#[tokio::test]
async fn a_vote_is_not_answered_with_any_vote() {
    let asked =
        WireVoteRequest { vote: WireVote { committed: false, ..leading("DE", 5) }, last: None, transfer: false };
    for (vote, expected) in votes() {
        let answer = WireVoted { vote, granted: false, last: None };
        assert_eq!(guard().voted(asked.vote, &answer), expected);
        let mut client = client(&answer).await;
        let option = || RPCOption::new(TTL);
        let voted = client.vote(VoteRequest::from(asked.clone()), option()).await;
        let would_vote = client.pre_vote(VoteRequest::from(asked.clone()), option()).await;
        assert_eq!((is_absent(&voted), is_absent(&would_vote)), (expected.is_err(), expected.is_err()), "{vote:?}");
    }
    // Whoever restarts after it led is told of its own vote, and needs to hear it.
    let before = WireVoted { vote: leading("DE", 4), granted: true, last: Some(id(4, 9)) };
    let would_vote = client(&before).await.pre_vote(VoteRequest::from(asked.clone()), RPCOption::new(TTL)).await;
    assert_eq!(would_vote.unwrap(), VoteResponse::from(before));
    for last in [id(5, 9), id(4, u64::MAX)] {
        let answer = WireVoted { vote: leading("FI", 4), granted: false, last: Some(last) };
        assert!(guard().voted(asked.vote, &answer).is_err(), "a log that nobody can have: {last:?}");
    }
}

#[tokio::test]
async fn a_snapshot_is_not_answered_with_any_vote() {
    let meta = WireMeta { last: Some(id(4, 9)), membership_at: Some(id(0, 0)), membership: everybody() };
    for (vote, expected) in votes() {
        let mut client = client(&WireInstalled::Done(vote)).await;
        let snapshot =
            Snapshot { meta: meta.clone().open().unwrap(), snapshot: SnapshotData::from_static(b"all of it") };
        let sent = client.full_snapshot(leading("DE", 5).into(), snapshot, pending(), RPCOption::new(TTL)).await;
        let absent = matches!(sent, Err(StreamingError::Unreachable(_)));
        assert_eq!(absent, expected.is_err(), "{vote:?}: {sent:?}");
    }
}
