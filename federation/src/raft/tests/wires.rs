//! Members in one process, and the wires between them.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::watch;

use super::at;
use super::founding::{STATES, gateway, genesis, node};
use crate::raft::consensus::Sizes;
use crate::raft::weight::LOG_BYTES_MAX;
use crate::raft::{Consensus, NodeId, RaftConfig, Rpc, StartError, Timers, Transport, TransportError};

pub const SOON: Duration = Duration::from_secs(60);

/// Delivers at once, except to and from those that are cut off.
pub struct Wires {
    members: Mutex<HashMap<NodeId, Consensus>>,
    cut: Mutex<HashSet<NodeId>>,
    /// To whom what is sent and never answered.
    swallowed: Mutex<HashSet<(NodeId, Rpc)>>,
    /// What was sent, and how often.
    sent: watch::Sender<HashMap<Rpc, usize>>,
    folder: tempfile::TempDir,
    timers: Timers,
    log_bytes_max: usize,
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
            wires.sent.send_modify(|sent| *sent.entry(rpc).or_default() += 1);
            if wires.swallowed.lock().unwrap().contains(&(to, rpc)) {
                tokio::time::sleep(timeout).await;
                return Err(TransportError::Timeout);
            }
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

impl Wires {
    pub fn new() -> Arc<Wires> {
        Wires::with(Timers::local(), LOG_BYTES_MAX)
    }

    /// For what must be over before anybody elects, on a busy machine too.
    pub fn patient() -> Arc<Wires> {
        Wires::with(Timers::wan(), LOG_BYTES_MAX)
    }

    pub fn with_logs_of(log_bytes_max: usize) -> Arc<Wires> {
        Wires::with(Timers::local(), log_bytes_max)
    }

    fn with(timers: Timers, log_bytes_max: usize) -> Arc<Wires> {
        let folder = tempfile::tempdir().unwrap();
        let (members, cut, swallowed, sent) = Default::default();
        Arc::new(Wires { members, cut, swallowed, sent, folder, timers, log_bytes_max })
    }

    /// Starts a member from its folder.
    pub async fn start(self: &Arc<Wires>, state: &'static str) -> Result<Consensus, StartError> {
        let config = RaftConfig { node: node(state), data_dir: self.folder_of(state), timers: self.timers };
        let sizes = Sizes { log_bytes_max: self.log_bytes_max, ..Sizes::REAL };
        let wire = Arc::new(Wire { from: state, wires: Arc::clone(self) });
        let member = Consensus::start_in(at(&config.data_dir), sizes, config, genesis(), wire).await?;
        self.members.lock().unwrap().insert(node(state), member.clone());
        member.initialize_if_first().await?;
        Ok(member)
    }

    /// Starts all three, and waits for a leader.
    pub async fn start_all(self: &Arc<Wires>) -> Vec<Consensus> {
        let mut members = Vec::new();
        for state in STATES.into_iter().rev() {
            members.insert(0, self.start(state).await.unwrap());
        }
        for member in &members {
            member.linearize(SOON).await.unwrap();
        }
        members
    }

    pub async fn stop(&self, member: Consensus) {
        member.shutdown().await;
        self.members.lock().unwrap().remove(&member.node());
    }

    pub fn cut(&self, node: NodeId) {
        self.cut.lock().unwrap().insert(node);
    }

    pub fn swallow(&self, to: NodeId, what: Rpc) {
        self.swallowed.lock().unwrap().insert((to, what));
    }

    pub fn heal(&self) {
        self.cut.lock().unwrap().clear();
    }

    pub fn sent(&self, rpc: Rpc) -> usize {
        self.sent.borrow().get(&rpc).copied().unwrap_or(0)
    }

    /// Waits until anybody has sent one of these.
    pub async fn is_sent(&self, rpc: Rpc) {
        let mut sent = self.sent.subscribe();
        sent.wait_for(|sent| sent.contains_key(&rpc)).await.expect("the wires are there");
    }

    pub fn folder_of(&self, state: &str) -> std::path::PathBuf {
        Path::join(self.folder.path(), state)
    }
}
