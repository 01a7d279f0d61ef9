//! A transport that answers what the test says, and one member behind it.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::founding::{gateway, genesis, node};
use super::wires::SOON;
use crate::raft::guard::Refused;
use crate::raft::wire::{self, WireAppend, WireAppended, WireEntry, WireLogId, WireMembership, WirePayload, WireVote};
use crate::raft::{Consensus, NodeId, RaftConfig, Rpc, Timers, Transport, TransportError};

type Answer = Result<Bytes, TransportError>;

/// Gives its answers one after the other, the last one for ever; counts the calls.
pub struct Script {
    answers: Mutex<Vec<Answer>>,
    pub calls: Mutex<Vec<Rpc>>,
}

impl Script {
    pub fn new(answers: impl IntoIterator<Item = Answer>) -> Arc<Script> {
        let mut answers: Vec<_> = answers.into_iter().collect();
        answers.reverse();
        Arc::new(Script { answers: Mutex::new(answers), calls: Mutex::default() })
    }

    pub fn absent() -> Arc<Script> {
        Script::new([Err(TransportError::Unreachable("nobody is there".into()))])
    }
}

impl Transport for Script {
    fn call(&self, _: NodeId, rpc: Rpc, _: Bytes, _: Duration) -> BoxFuture<'static, Answer> {
        self.calls.lock().unwrap().push(rpc);
        let mut answers = self.answers.lock().unwrap();
        let answer = if answers.len() > 1 { answers.pop() } else { answers.last().cloned() };
        Box::pin(async { answer.unwrap() })
    }
}

/// Raft asks for votes when it pleases; the script is for what the test does.
struct Voteless(Arc<dyn Transport>);

impl Transport for Voteless {
    fn call(&self, to: NodeId, rpc: Rpc, body: Bytes, timeout: Duration) -> BoxFuture<'static, Answer> {
        if matches!(rpc, Rpc::Vote | Rpc::PreVote) {
            return Box::pin(async { Err(TransportError::Unreachable("nobody votes".into())) });
        }
        self.0.call(to, rpc, body, timeout)
    }
}

pub fn leading(state: &str, term: u64) -> WireVote {
    WireVote { term, node: node(state), committed: true }
}

pub fn id(term: u64, index: u64) -> WireLogId {
    WireLogId { term, node: 1, index }
}

pub fn everybody() -> WireMembership {
    let all = BTreeSet::from([1, 2, 3]);
    WireMembership { voters: vec![all.clone()], nodes: all }
}

/// Starts FI alone.
pub async fn start(folder: &Path, transport: Arc<dyn Transport>) -> Consensus {
    let config = RaftConfig { node: node("FI"), data_dir: folder.join("FI"), timers: Timers::wan() };
    Consensus::start(config, genesis(), Arc::new(Voteless(transport))).await.unwrap()
}

/// Has a member follow DE in term 1, with everybody's membership committed at index 0 and blank entries up to `last`.
pub async fn follow_de(member: &Consensus, last: u64) {
    let blank = |index| WireEntry { id: id(1, index), payload: WirePayload::Blank };
    let first = WireEntry { id: id(0, 0), payload: WirePayload::Membership(everybody()) };
    let entries = std::iter::once(first).chain((1..=last).map(blank)).collect();
    let message =
        WireAppend { vote: leading("DE", 1), previous: None, entries, committed: Some(id(1, last)), follows: false };
    assert_eq!(append(member, message).await, Ok(WireAppended::Success));
    member.wait_for(crate::time::Revision(last), SOON).await.unwrap();
    // Raft says who leads a moment after it has applied his entries.
    while member.leader() != Some(node("DE")) {
        tokio::task::yield_now().await;
    }
}

/// DE sends an append.
pub async fn append(member: &Consensus, message: WireAppend) -> Result<WireAppended, Refused> {
    let answer = member.handle(gateway("DE"), Rpc::Append, wire::encode(&message)).await?;
    Ok(wire::decode(&answer)?)
}
