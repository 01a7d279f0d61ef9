//! Consensus: this gateway's part in the replicated registry. Read here, propose here, answer peers here.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use certs::{Envelope, GatewayId};
use futures_util::future::join_all;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::{EmptyNode, ReadPolicy};
use thiserror::Error;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use super::acquaintance::{has_signed, whoever_has_met_us};
use super::assembly::{Assembly, IDLE_MAX, Progress};
use super::folder::{Directory, Folder};
use super::guard::{Guard, Refused};
use super::log_store::LogStore;
use super::network::Network;
use super::probe::watch;
use super::runtime::RaftRuntime;
use super::segment::SEGMENT_BYTES;
use super::state_machine::{Shared, StateMachine};
use super::timers::{SNAPSHOT_ENTRIES, Timers};
use super::transport::{NodeId, Rpc, Transport, TransportError};
use super::types::{Applied, Proposal, RaftHandle, Snapshot, SnapshotData};
use super::wal::{BadLog, Owner};
use super::weight::{self, LOG_BYTES_MAX};
use super::wire::{
    self, WireAcquainted, WireAppend, WireAppended, WireInstalled, WireMeta, WireProposed, WireQuestion, WireReadIndex,
    WireSnapshot, WireTransfer, WireVote, WireVoteRequest, WireVoted,
};
use crate::apply::Verdict;
use crate::genesis::Genesis;
use crate::registry::Registry;
use crate::time::Revision;

/// Clients give up after 10 s; an answer that is surely a "no" must come before.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// One try at one leader.
const TRY_TIMEOUT: Duration = Duration::from_secs(4);
/// How much longer a leader is waited for when another one leads: it may never answer, and the new one knows what became of
/// what it was sent. Several round trips of Europe.
const DEPOSED_TIMEOUT: Duration = Duration::from_millis(500);
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// How long a stopping leader waits for its successor.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(2);
/// For a question before the founding; a leader that is there answers within two round trips.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long an append waits for the one that it stands behind. They are a few milliseconds apart.
const FOLLOW_TIMEOUT: Duration = Duration::from_secs(1);
/// Envelopes of one member that wait here for their commit: a gateway sends four at once, and each may be repeated once
/// while the first try is still here. 27 gateways x 8 x 1 MiB = 216 MiB.
const PROPOSALS_PER_MEMBER_MAX: usize = 8;

/// What a member needs to take part.
#[derive(Clone, Debug)]
pub struct RaftConfig {
    /// This gateway's number in the genesis.
    pub node: NodeId,
    /// Its own folder for the log and the snapshot.
    pub data_dir: PathBuf,
    pub timers: Timers,
}

/// How large things become before they are cut; a test need not wait for the real sizes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub log_bytes_max: usize,
    pub segment_bytes: u64,
    /// Entries from one snapshot to the next.
    pub snapshot_entries: u64,
}

impl Sizes {
    pub const REAL: Sizes =
        Sizes { log_bytes_max: LOG_BYTES_MAX, segment_bytes: SEGMENT_BYTES, snapshot_entries: SNAPSHOT_ENTRIES };
}

/// Why a member does not start.
#[derive(Debug, Error)]
pub enum StartError {
    #[error(transparent)]
    Log(#[from] BadLog),
    #[error("the registry's snapshot cannot be used: {0}")]
    Snapshot(std::io::Error),
    #[error("the timers cannot be used: {0}")]
    Timers(String),
    #[error("the registry's log does not start: {0}")]
    Fatal(String),
    #[error(
        "this gateway's log is empty, but its federation is at revision {0} already: it has lost its votes. \
         Restore the folder; do not start it empty"
    )]
    Wiped(u64),
}

/// Why an envelope is not committed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ProposeError {
    /// Nothing was done.
    #[error("the federation has no leader right now")]
    NoLeader { retry_after_ms: u64 },
    /// It may have been committed; the same envelope may be proposed again.
    #[error("the answer was lost")]
    Unknown,
    /// The leader will not have it.
    #[error("the leader refused the envelope: {0}")]
    Refused(String),
    /// This member's log has failed, or it is stopping.
    #[error("this gateway's log has stopped")]
    Stopped,
}

/// No linearizable read in time: no leader, or this member is behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the registry did not get that far in time")]
pub struct NotLinearizable;

/// This gateway's part. Cheap to clone.
#[derive(Clone)]
pub struct Consensus {
    member: Arc<Member>,
}

struct Member {
    node: NodeId,
    raft: RaftHandle,
    log: LogStore,
    shared: Shared,
    guard: Arc<Guard>,
    assembly: Arc<Assembly>,
    /// Envelopes of each member that wait here.
    in_hand: BTreeMap<NodeId, Semaphore>,
    transport: Arc<dyn Transport>,
    timers: Timers,
    /// When the leader last sent something that was taken.
    heard_leader: Mutex<Instant>,
    runtime: RaftRuntime,
}

/// Why a leader has not committed an envelope.
enum NotCommitted {
    /// Surely: it does not lead. Who does, if that is known.
    Forward(Option<NodeId>),
    /// It may be committed by another leader: the entry was discarded here, or the log failed under it.
    Unknown,
}

/// What one try to commit came to.
enum Tried {
    Applied(Applied),
    /// Surely nothing happened.
    NoLeader,
    /// It may have happened.
    Lost,
    Failed(ProposeError),
}

impl Consensus {
    /// Opens the log and takes part. Peers must reach [`Consensus::handle`] from now on. If the log is empty, the others
    /// are asked first whether they know this gateway.
    pub async fn start(
        config: RaftConfig,
        genesis: Genesis,
        transport: Arc<dyn Transport>,
    ) -> Result<Consensus, StartError> {
        let opened = Directory::at(&config.data_dir);
        let folder = opened.map_err(|cause| BadLog::Io { folder: config.data_dir.clone(), cause })?;
        Consensus::start_in(folder, Sizes::REAL, config, genesis, transport).await
    }

    /// The same in a folder that is open, with other sizes.
    pub(super) async fn start_in(
        folder: Arc<dyn Folder>,
        sizes: Sizes,
        config: RaftConfig,
        genesis: Genesis,
        transport: Arc<dyn Transport>,
    ) -> Result<Consensus, StartError> {
        let fatal = |cause: &dyn std::fmt::Display| StartError::Fatal(cause.to_string());
        let settings = config.timers.config(genesis.federation().as_str(), sizes.snapshot_entries);
        let settings = settings.validate().map_err(|cause| StartError::Timers(cause.to_string()))?;
        let genesis = Arc::new(genesis);
        let owner = Owner { node: config.node, genesis: genesis.digest().0 };
        let log = LogStore::open(Arc::clone(&folder), &owner, sizes.segment_bytes)?;
        let machine = StateMachine::open(folder, &genesis).map_err(StartError::Snapshot)?;
        let shared = machine.shared();
        let guard = Arc::new(Guard::new(shared.clone(), genesis));
        let runtime = RaftRuntime::start().map_err(|cause| fatal(&cause))?;
        let network = Network { me: config.node, guard: Arc::clone(&guard), transport: Arc::clone(&transport) };
        let transport = runtime.carry(transport);
        if log.is_empty() {
            // A snapshot without a log: the vote is gone, whoever remembers it.
            let here = Some(shared.read(Registry::revision).0).filter(|revision| *revision > 0);
            let others = guard.voters().iter().filter(|node| **node != config.node);
            let known = here.or(whoever_has_met_us(&transport, others).await);
            known.map_or(Ok(()), |revision| Err(StartError::Wiped(revision)))?;
        }
        let raft = RaftHandle::new(config.node, Arc::new(settings), network, log.clone(), machine);
        let raft = runtime.spawn(raft).await.map_err(|cause| fatal(&cause))?.map_err(|cause| fatal(&cause))?;
        runtime.spawn(weight::keep_below(sizes.log_bytes_max, log.clone(), raft.clone()));
        let assembly = Arc::<Assembly>::default();
        runtime.spawn(let_go(Arc::clone(&assembly)));
        let in_hand = guard.voters().iter().map(|node| (*node, Semaphore::new(PROPOSALS_PER_MEMBER_MAX)));
        let member = Member {
            node: config.node,
            in_hand: in_hand.collect(),
            raft,
            log,
            shared,
            guard,
            assembly,
            transport,
            timers: config.timers,
            heard_leader: Mutex::new(Instant::now()),
            runtime,
        };
        Ok(Consensus { member: Arc::new(member) })
    }

    /// Begins the federation's log if nobody has: the founding member with the lowest number does it, once.
    pub async fn initialize_if_first(&self) -> Result<(), StartError> {
        let member = &self.member;
        let fatal = |cause: &dyn std::fmt::Display| StartError::Fatal(cause.to_string());
        let begun = member.raft.is_initialized().await.map_err(|cause| fatal(&cause))?;
        if begun || member.guard.voters().first() != Some(&member.node) {
            return Ok(());
        }
        if let Some(index) = member.anybody_leads().await {
            return Err(StartError::Wiped(index));
        }
        let voters: BTreeMap<_, _> = member.guard.voters().iter().map(|node| (*node, EmptyNode {})).collect();
        match member.raft.initialize(voters).await {
            Ok(()) => Ok(()),
            // A leader was faster than this check.
            Err(RaftError::APIError(_)) => Ok(()),
            Err(cause) => Err(fatal(&cause)),
        }
    }

    /// Reads the local replica. The closure runs under a lock: it is short and calls nothing that waits.
    pub fn read<T>(&self, read: impl FnOnce(&Registry) -> T) -> T {
        self.member.shared.read(read)
    }

    /// Every revision from now on; slow readers skip some.
    pub fn changes(&self) -> watch::Receiver<Revision> {
        self.member.shared.revisions()
    }

    /// Waits until the local replica has a revision, so that a caller reads what he wrote.
    pub async fn wait_for(&self, revision: Revision, at_most: Duration) -> Result<(), NotLinearizable> {
        let mut revisions = self.changes();
        match timeout(at_most, revisions.wait_for(|reached| *reached >= revision)).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(NotLinearizable),
        }
    }

    /// Waits until the local replica has everything that was committed when this was called.
    pub async fn linearize(&self, at_most: Duration) -> Result<Revision, NotLinearizable> {
        let deadline = Instant::now() + at_most;
        let index = timeout_at(deadline, self.member.read_index()).await.ok().flatten().ok_or(NotLinearizable)?;
        self.wait_for(Revision(index), deadline.saturating_duration_since(Instant::now())).await?;
        Ok(Revision(index))
    }

    /// The node that leads, as far as is known here.
    pub fn leader(&self) -> Option<NodeId> {
        self.member.present_leader()
    }

    /// This gateway's node.
    pub fn node(&self) -> NodeId {
        self.member.node
    }

    /// Commits an envelope of this gateway, wherever the leader is. A lost answer is asked for again with the same bytes,
    /// which the registry recognises. Once one try is lost, no later "no" says anything about it.
    pub async fn propose(&self, envelope: Envelope) -> Result<Applied, ProposeError> {
        let deadline = Instant::now() + PROPOSE_TIMEOUT;
        let mut may_be_done = false;
        loop {
            let deposed = self.member.is_deposed(self.member.leader());
            let tried = tokio::select! {
                biased;
                tried = self.member.try_propose(&envelope) => tried,
                () = deposed => Tried::Lost,
                () = sleep_until(deadline.min(Instant::now() + TRY_TIMEOUT)) => Tried::Lost,
            };
            match tried {
                Tried::Applied(applied) => return Ok(applied),
                Tried::Failed(_) if may_be_done => return Err(ProposeError::Unknown),
                Tried::Failed(error) => return Err(error),
                Tried::NoLeader => {}
                Tried::Lost => may_be_done = true,
            }
            if Instant::now() + RETRY_PAUSE >= deadline {
                let retry_after_ms = self.member.timers.fail_over_ms();
                return Err(if may_be_done {
                    ProposeError::Unknown
                } else {
                    ProposeError::NoLeader { retry_after_ms }
                });
            }
            sleep(RETRY_PAUSE).await;
        }
    }

    /// Answers a peer, who is known by TLS.
    pub async fn handle(&self, peer: GatewayId, rpc: Rpc, body: Bytes) -> Result<Bytes, Refused> {
        let member = &self.member;
        let sender = member.guard.sender(&peer)?;
        match rpc {
            Rpc::Append | Rpc::Heartbeat => {
                let message: WireAppend = wire::decode(&body)?;
                let stands_behind = message.previous.filter(|_| message.follows);
                let request = member.guard.append(sender, message, member.term())?;
                // Requests overtake each other on their way here. Raft would take this one for a log with a gap.
                if let Some(previous) = stands_behind {
                    member.log.reaches(previous.into(), FOLLOW_TIMEOUT).await;
                }
                let answer = member.raft.append_entries(request).await.map_err(|_| Refused::Stopped)?;
                if member.leader() == Some(sender) {
                    *member.heard_leader.lock().expect("invariant: nothing panics while it holds a time") =
                        Instant::now();
                }
                Ok(wire::encode(&WireAppended::from(&answer)))
            }
            Rpc::Vote | Rpc::PreVote => {
                let message: WireVoteRequest = wire::decode(&body)?;
                member.guard.vote(sender, message.vote, member.term())?;
                let answered = match rpc {
                    Rpc::Vote => member.raft.vote(message.into()).await,
                    _ => member.raft.pre_vote(message.into()).await,
                };
                let answer = answered.map_err(|_| Refused::Stopped)?;
                Ok(wire::encode(&WireVoted::from(&answer)))
            }
            Rpc::Snapshot => member.install(sender, wire::decode(&body)?).await,
            Rpc::TransferLeader => {
                let message: WireTransfer = wire::decode(&body)?;
                member.guard.vote(sender, message.from, member.term())?;
                let handled = member.raft.handle_transfer_leader(message.into()).await;
                handled.map_err(|_| Refused::Stopped)?.map_err(|_| Refused::NotElected)?;
                Ok(wire::encode(&()))
            }
            Rpc::Propose => {
                let in_hand = member.in_hand.get(&sender).ok_or(Refused::NotAVoter(sender))?;
                let Ok(_one_of_its_few) = in_hand.try_acquire() else {
                    return Ok(wire::encode(&WireProposed::NotLeader));
                };
                let (envelope, verdict) = member.guard.proposal(&peer, &body)?;
                let answer = match member.commit_here(Proposal { envelope, verdict }).await {
                    Ok(applied) => WireProposed::Applied(applied),
                    Err(NotCommitted::Forward(_)) => WireProposed::NotLeader,
                    Err(NotCommitted::Unknown) => WireProposed::Unknown,
                };
                Ok(wire::encode(&answer))
            }
            Rpc::ReadIndex => Ok(match wire::decode(&body)? {
                WireQuestion::ReadIndex => wire::encode(&member.read_index_here().await),
                WireQuestion::Acquainted => wire::encode(&member.has_met(&peer, sender)),
            }),
        }
    }

    /// Resolves when the log has failed; this gateway must then stop.
    pub async fn failed(&self) -> String {
        let mut metrics = self.member.raft.metrics();
        loop {
            let state = metrics.borrow_watched().running_state.clone();
            if let Err(cause) = state {
                return cause.to_string();
            }
            if metrics.changed().await.is_err() {
                return "its task has ended".to_owned();
            }
        }
    }

    /// Gives the leadership to another voter, if this member has it, and waits for that.
    pub async fn hand_over(&self) {
        let member = &self.member;
        if member.leader() != Some(member.node) {
            return;
        }
        let Some(successor) = member.most_up_to_date() else {
            return;
        };
        if member.raft.trigger().transfer_leader(successor).await.is_err() {
            return;
        }
        let mut metrics = member.raft.metrics();
        let moved = async {
            while metrics.borrow_watched().current_leader == Some(member.node) {
                if metrics.changed().await.is_err() {
                    return;
                }
            }
        };
        let _the_others_elect_anyway = timeout(HAND_OVER_TIMEOUT, moved).await;
    }

    /// Ends the part; the log is synced and closed.
    pub async fn shutdown(&self) {
        if let Err(cause) = self.member.raft.shutdown().await {
            tracing::warn!(%cause, "the registry's log did not end in order");
        }
    }
}

#[cfg(test)]
impl Consensus {
    pub(super) fn log(&self) -> LogStore {
        self.member.log.clone()
    }

    /// Whether it leads, its term, up to which index it has committed, and the revision of its registry.
    pub(super) fn sight(&self) -> (bool, u64, Option<u64>, Option<u64>) {
        let metrics = self.member.raft.metrics();
        let metrics = metrics.borrow_watched();
        let index = |id: Option<super::types::LogId>| id.map(|id| id.index);
        let leads = metrics.current_leader == Some(self.member.node) && metrics.running_state.is_ok();
        let revision = self.read(Registry::revision).0;
        (leads, metrics.current_term, index(metrics.local_committed), Some(revision))
    }
}

impl Member {
    /// Who led when this member last heard of it.
    fn leader(&self) -> Option<NodeId> {
        self.raft.metrics().borrow_watched().current_leader
    }

    /// Who leads and was heard of lately: a member that is cut off remembers its leader for ever.
    fn present_leader(&self) -> Option<NodeId> {
        let lately = Duration::from_millis(self.timers.fail_over_ms());
        let leader = self.leader()?;
        let present = if leader == self.node {
            let acknowledged = self.raft.metrics().borrow_watched().last_quorum_acked;
            self.guard.voters().len() == 1 || acknowledged.is_some_and(|at| openraft::Instant::elapsed(&*at) < lately)
        } else {
            self.heard_leader.lock().expect("invariant: nothing panics while it holds a time").elapsed() < lately
        };
        present.then_some(leader)
    }

    fn term(&self) -> u64 {
        self.raft.metrics().borrow_watched().current_term
    }

    /// The vote that this member holds.
    fn vote(&self) -> WireVote {
        (&self.raft.metrics().borrow_watched().vote).into()
    }

    async fn try_propose(&self, envelope: &Envelope) -> Tried {
        if self.has_failed() {
            return Tried::Failed(ProposeError::Stopped);
        }
        // This gateway has just signed it.
        let proposal = Proposal { envelope: envelope.clone(), verdict: Verdict::Verified };
        let leader = match self.leader() {
            Some(leader) if leader == self.node => match self.commit_here(proposal).await {
                Ok(applied) => return Tried::Applied(applied),
                Err(NotCommitted::Forward(Some(leader))) if leader != self.node => leader,
                Err(NotCommitted::Forward(_)) => return Tried::NoLeader,
                Err(NotCommitted::Unknown) => return Tried::Lost,
            },
            Some(leader) => leader,
            None => return Tried::NoLeader,
        };
        let bytes = Bytes::copy_from_slice(envelope.as_bytes());
        match self.transport.call(leader, Rpc::Propose, bytes, TRY_TIMEOUT).await {
            Ok(answer) => match wire::decode(&answer) {
                Ok(WireProposed::Applied(applied)) => Tried::Applied(applied),
                Ok(WireProposed::NotLeader) => Tried::NoLeader,
                // An answer that cannot be read may say that it is done.
                Ok(WireProposed::Unknown) | Err(_) => Tried::Lost,
            },
            Err(TransportError::Refused(reason)) => Tried::Failed(ProposeError::Refused(reason)),
            // The connection may have broken after the leader read it.
            Err(TransportError::Unreachable(_) | TransportError::Timeout) => Tried::Lost,
        }
    }

    /// Resolves a while after another one than `leader` leads.
    async fn is_deposed(&self, leader: Option<NodeId>) {
        let mut metrics = self.raft.metrics();
        loop {
            let leads = metrics.borrow_watched().current_leader;
            if leads.is_some() && leads != leader {
                return sleep(DEPOSED_TIMEOUT).await;
            }
            if metrics.changed().await.is_err() {
                std::future::pending().await
            }
        }
    }

    /// Commits as leader.
    async fn commit_here(&self, proposal: Proposal) -> Result<Applied, NotCommitted> {
        match self.raft.client_write(proposal).await {
            Ok(written) => Ok(written.data),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
                Err(NotCommitted::Forward(forward.leader_id))
            }
            Err(_) => Err(NotCommitted::Unknown),
        }
    }

    fn has_failed(&self) -> bool {
        self.raft.metrics().borrow_watched().running_state.is_err()
    }

    async fn read_index(&self) -> Option<u64> {
        loop {
            let index = match self.leader() {
                Some(leader) if leader == self.node => self.read_index_here().await,
                Some(leader) => self.read_index_of(leader, TRY_TIMEOUT).await,
                None => None,
            };
            if index.is_some() {
                return index;
            }
            sleep(RETRY_PAUSE).await;
        }
    }

    async fn read_index_here(&self) -> WireReadIndex {
        // Not by lease: a leader counts that with its own timers and a follower its patience with its own. If two members
        // are configured apart, or one machine was suspended, a lease outlives the leadership.
        let (read, _) = self.raft.get_read_log_id(ReadPolicy::ReadIndex).await.ok()?;
        Some(read.index())
    }

    async fn read_index_of(&self, leader: NodeId, at_most: Duration) -> WireReadIndex {
        let question = wire::encode(&WireQuestion::ReadIndex);
        let answer = self.transport.call(leader, Rpc::ReadIndex, question, at_most).await.ok()?;
        wire::decode(&answer).ok()?
    }

    /// The revision of another member that leads, if there is one.
    async fn anybody_leads(&self) -> Option<u64> {
        let others = self.guard.voters().iter().filter(|node| **node != self.node);
        let asked = others.map(|node| self.read_index_of(*node, PROBE_TIMEOUT));
        join_all(asked).await.into_iter().flatten().max()
    }

    /// Our revision, if that gateway has taken part before: it has signed something, or has acknowledged entries to us.
    fn has_met(&self, peer: &GatewayId, node: NodeId) -> WireAcquainted {
        let metrics = self.raft.metrics();
        let replication = metrics.borrow_watched().replication.clone().unwrap_or_default();
        let acknowledged = replication.get(&node).is_some_and(Option::is_some);
        self.shared.read(|registry| (acknowledged || has_signed(registry, peer)).then_some(registry.revision().0))
    }

    async fn install(&self, sender: NodeId, piece: WireSnapshot) -> Result<Bytes, Refused> {
        self.guard.vote(sender, piece.vote, self.term())?;
        self.guard.snapshot_meta(piece.vote, &piece.meta)?;
        // Only the leader that this member follows takes memory here: by heartbeats it is known before its snapshot is.
        let (mine, done) = (self.vote(), |vote: WireVote| Ok(wire::encode(&WireInstalled::Done(vote))));
        if piece.vote < mine || self.has_all_of(&piece.meta) {
            return done(mine);
        }
        if piece.vote != mine {
            return Err(Refused::NotElected);
        }
        let bytes = match self.assembly.add(&piece, Instant::now()) {
            Progress::More => return Ok(wire::encode(&WireInstalled::More)),
            Progress::Bad => return Err(Refused::Snapshot("its pieces do not fit together".into())),
            Progress::Whole(bytes) => SnapshotData::from(bytes),
        };
        let (guard, meta, snapshot) = (Arc::clone(&self.guard), piece.meta.clone(), bytes.clone());
        let checking = self.runtime.compute(move || guard.snapshot(piece.vote, &meta, &snapshot));
        checking.await.map_err(|_| Refused::Stopped)??;
        // That took a while.
        if self.has_all_of(&piece.meta) {
            return done(self.vote());
        }
        let snapshot = Snapshot { meta: piece.meta.open()?, snapshot: bytes };
        let installed = self.raft.install_full_snapshot(piece.vote.into(), snapshot).await;
        done((&installed.map_err(|_| Refused::Stopped)?.vote).into())
    }

    /// Whether everything that a snapshot stands for is committed here already; stock Raft aborts if it then names another
    /// term for it.
    fn has_all_of(&self, meta: &WireMeta) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let committed = metrics.local_committed.max(metrics.last_applied).map(|id| id.index);
        meta.last.map(|last| last.index) <= committed
    }

    /// The other voter that has most of the log.
    fn most_up_to_date(&self) -> Option<NodeId> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let replication = metrics.replication.as_ref()?;
        let others = replication.iter().filter(|(node, _)| **node != self.node);
        others.max_by_key(|(_, matched)| matched.map(|id| id.index)).map(|(node, _)| *node)
    }
}

/// Lets the memory of a snapshot go when its sender does not go on.
async fn let_go(assembly: Arc<Assembly>) {
    loop {
        sleep(IDLE_MAX).await;
        assembly.expire(Instant::now());
    }
}
