//! Three members in one process: they agree, they lose one, it comes back.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::founding::{STATES, envelope, gateway, genesis, node};
use crate::raft::{Consensus, NodeId, RaftConfig, Rpc, Timers, Transport, TransportError};
use crate::time::Revision;

const SOON: Duration = Duration::from_secs(20);

/// Delivers at once, except to and from those that are cut off.
#[derive(Default)]
struct Wires {
    members: Mutex<HashMap<NodeId, Consensus>>,
    cut: Mutex<HashSet<NodeId>>,
}

struct Wire {
    from: &'static str,
    wires: Arc<Wires>,
}

impl Transport for Wire {
    fn call(
        &self,
        to: NodeId,
        rpc: Rpc,
        body: Bytes,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>> {
        let (wires, from) = (Arc::clone(&self.wires), self.from);
        Box::pin(async move {
            let is_cut = |at: NodeId| wires.cut.lock().unwrap().contains(&at);
            let member = wires.members.lock().unwrap().get(&to).cloned();
            let Some(member) = member.filter(|_| !is_cut(to) && !is_cut(node(from))) else {
                return Err(TransportError::Unreachable("cut".into()));
            };
            match tokio::time::timeout(timeout, member.handle(gateway(from), rpc, body)).await {
                Ok(answer) => answer.map_err(|refused| TransportError::Refused(refused.to_string())),
                Err(_) => Err(TransportError::Timeout),
            }
        })
    }
}

async fn start(wires: &Arc<Wires>, state: &'static str, folder: &Path) -> Consensus {
    let config = RaftConfig { node: node(state), data_dir: folder.join(state), timers: Timers::local() };
    let wire = Arc::new(Wire { from: state, wires: Arc::clone(wires) });
    let member = Consensus::start(config, genesis(), wire).await.unwrap();
    wires.members.lock().unwrap().insert(node(state), member.clone());
    member
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_agree_and_go_on_without_one() {
    let folder = tempfile::tempdir().unwrap();
    let wires = Arc::new(Wires::default());
    let mut members = Vec::new();
    for state in STATES {
        members.push(start(&wires, state, folder.path()).await);
    }
    for member in &members {
        member.initialize_if_first().await.unwrap();
    }

    // Everybody proposes his own; everybody sees all of it.
    let mut last = Revision(0);
    for (member, state) in members.iter().zip(STATES) {
        let applied = member.propose(envelope(state, 1)).await.unwrap();
        assert_eq!(applied.outcomes.len(), 1);
        last = last.max(applied.revision);
    }
    for member in &members {
        member.wait_for(last, SOON).await.unwrap();
        assert!(member.linearize(SOON).await.unwrap() >= last);
    }
    let roots: HashSet<_> = members.iter().map(|it| it.read(|registry| registry.to_bytes())).collect();
    assert_eq!(roots.len(), 1, "replicas at one revision are equal");

    // The leader is cut off; the others elect another and go on, and it accepts nothing.
    let leader = members[0].leader().unwrap();
    wires.cut.lock().unwrap().insert(leader);
    let others: Vec<_> = (0..3).filter(|place| members[*place].node() != leader).collect();
    let mut committed = last;
    for serial in 2..6 {
        for place in &others {
            let applied = members[*place].propose(envelope(STATES[*place], serial)).await.unwrap();
            committed = committed.max(applied.revision);
        }
    }
    let alone = (leader - 1) as usize;
    let proposed = members[alone].propose(envelope(STATES[alone], 2)).await;
    assert!(proposed.is_err(), "a leader without a quorum acknowledges nothing");

    // It is back and has everything; a replay of what it proposed changes nothing.
    wires.cut.lock().unwrap().clear();
    members[alone].wait_for(committed, SOON).await.unwrap();

    // One stops and starts again from its folder.
    let place = others[0];
    members[place].shutdown().await;
    wires.members.lock().unwrap().remove(&members[place].node());
    members.remove(place);
    let again = start(&wires, STATES[place], folder.path()).await;
    again.initialize_if_first().await.unwrap();
    let applied = again.propose(envelope(STATES[place], 9)).await.unwrap();
    for member in members.iter().chain([&again]) {
        member.wait_for(applied.revision, SOON).await.unwrap();
    }
    let roots: HashSet<_> = members.iter().chain([&again]).map(|it| it.read(|registry| registry.root())).collect();
    assert_eq!(roots.len(), 1);
}
