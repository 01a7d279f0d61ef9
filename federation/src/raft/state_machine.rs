//! The state machine: the registry behind the log, its readers, and its snapshot on the disk.
//!
//! Invariants: the registry's revision is the index of the last applied entry; a snapshot file is whole or absent, and
//! only a newer one replaces it; a restart begins with the snapshot and applies what the log has behind it.

use std::io;
use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

use futures_util::{Stream, StreamExt};
use openraft::OptionalSend;
use openraft::entry::RaftEntry;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};

use super::folder::Folder;
use super::probe::{self, watch};
use super::types::{Applied, Entry, LogId, Payload, Snapshot, SnapshotData, SnapshotMeta, StoredMembership, Types};
use super::wire::{self, WireLogId, WireMeta};
use crate::genesis::Genesis;
use crate::registry::Registry;
use crate::time::Revision;

const SNAPSHOT_FILE: &str = "snapshot";

/// The registry as everybody in this process reads it.
#[derive(Clone)]
pub struct Shared {
    state: Arc<RwLock<State>>,
    revisions: Arc<watch::Sender<Revision>>,
}

struct State {
    registry: Registry,
    applied: Option<LogId>,
    membership: StoredMembership,
}

/// What Raft drives. There is one; [`Shared`] is for readers.
pub struct StateMachine {
    shared: Shared,
    file: Arc<SnapshotFile>,
}

/// Makes a snapshot beside the work that goes on.
pub struct Builder {
    meta: SnapshotMeta,
    registry: Registry,
    file: Arc<SnapshotFile>,
}

/// The snapshot on the disk. One is built here while another arrives; they come to this file one after the other.
struct SnapshotFile {
    folder: Arc<dyn Folder>,
    /// What the file stands for, if there is one.
    saved: Mutex<Option<SnapshotMeta>>,
}

impl Shared {
    /// Reads the registry. The closure runs under a lock: it is short and calls nothing that waits.
    pub fn read<T>(&self, read: impl FnOnce(&Registry) -> T) -> T {
        read(&self.lock().registry)
    }

    /// Every revision from now on; slow readers skip some.
    pub fn revisions(&self) -> watch::Receiver<Revision> {
        self.revisions.subscribe()
    }

    fn lock(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().expect("invariant: a replica whose apply failed has ended")
    }

    fn change(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().expect("invariant: a replica whose apply failed has ended")
    }
}

impl StateMachine {
    /// The registry of the snapshot in this folder, or of the genesis.
    pub fn open(folder: Arc<dyn Folder>, genesis: &Genesis) -> io::Result<StateMachine> {
        let loaded = load(&*folder)?;
        let saved = Mutex::new(loaded.as_ref().map(|(meta, _)| meta.clone()));
        let state = match loaded {
            Some((meta, registry)) => {
                let same = registry.federation() == genesis.federation() && registry.epoch() == genesis.epoch();
                if !same {
                    return Err(invalid("the snapshot is of another federation"));
                }
                State { registry, applied: meta.last_log_id, membership: meta.last_membership }
            }
            None => State {
                registry: Registry::from_genesis(genesis),
                applied: None,
                membership: StoredMembership::default(),
            },
        };
        let revisions = watch::Sender::new(state.registry.revision());
        let shared = Shared { state: Arc::new(RwLock::new(state)), revisions: Arc::new(revisions) };
        Ok(StateMachine { shared, file: Arc::new(SnapshotFile { folder, saved }) })
    }

    /// For readers.
    pub fn shared(&self) -> Shared {
        self.shared.clone()
    }

    fn apply_one(&self, mut entry: Entry) -> Applied {
        if entry.index().is_multiple_of(10) && probe::is_planted("every tenth entry is the first leader's") {
            entry.log_id = WireLogId { term: 1, ..WireLogId::from(&entry.log_id) }.into();
        }
        let id = entry.log_id();
        let revision = Revision(id.index);
        let mut state = self.shared.change();
        let outcomes = match &entry.payload {
            Payload::Normal(_) if probe::is_planted("an entry is skipped") => {
                state.registry.advance(revision);
                vec![]
            }
            Payload::Normal(proposal) => {
                if probe::is_planted("serials are forgotten") {
                    state.registry.serials.clear();
                }
                state.registry.apply(revision, &proposal.envelope, proposal.verdict)
            }
            Payload::Blank => {
                state.registry.advance(revision);
                vec![]
            }
            Payload::Membership(membership) => {
                state.registry.advance(revision);
                state.membership = StoredMembership::new(Some(id), membership.clone());
                vec![]
            }
        };
        state.applied = Some(id);
        let applied = Applied { revision, outcomes };
        probe::is_applied(&entry, &applied);
        applied
    }
}

impl RaftStateMachine<Types> for StateMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let state = self.shared.lock();
        Ok((state.applied, state.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + OptionalSend,
    {
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            let applied = self.apply_one(entry);
            self.shared.revisions.send_replace(applied.revision);
            if let Some(responder) = responder {
                responder.send(applied);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let state = self.shared.lock();
        Builder { meta: state.meta(), registry: state.registry.clone(), file: Arc::clone(&self.file) }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotData) -> io::Result<()> {
        let (shared, file, meta) = (self.shared.clone(), Arc::clone(&self.file), meta.clone());
        let is_stale = probe::is_planted("the snapshot of before is installed");
        let installing = move || {
            let before = if is_stale { read_file(&*file.folder)?.map(|(_, bytes)| bytes) } else { None };
            let snapshot = before.unwrap_or(snapshot);
            let registry = Registry::from_bytes(&snapshot).map_err(|cause| invalid(&cause.to_string()))?;
            file.save(&meta, &snapshot)?;
            let revision = registry.revision();
            let next = State { registry, applied: meta.last_log_id, membership: meta.last_membership };
            let before = std::mem::replace(&mut *shared.change(), next);
            shared.revisions.send_replace(revision);
            // Freeing a hundred thousand jobs takes a while; readers need not wait for it.
            drop(before);
            Ok(())
        };
        slowly(installing).await
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        let folder = Arc::clone(&self.file.folder);
        let read = slowly(move || read_file(&*folder)).await?;
        Ok(read.map(|(meta, snapshot)| Snapshot { meta, snapshot }))
    }
}

/// Does what takes long, tens of MiB to read, write and sync, where no heartbeat waits for it.
async fn slowly<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    if probe::is_simulated() {
        probe::disk_takes_time().await;
        return work();
    }
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

impl State {
    fn meta(&self) -> SnapshotMeta {
        SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone() }
    }
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let (meta, registry, file) = (self.meta.clone(), self.registry.clone(), Arc::clone(&self.file));
        let building = move || {
            let snapshot = SnapshotData::from(registry.to_bytes());
            file.save(&meta, &snapshot)?;
            Ok(Snapshot { meta, snapshot })
        };
        slowly(building).await
    }
}

impl SnapshotFile {
    /// Replaces the snapshot on the disk, unless a newer one has arrived meanwhile.
    fn save(&self, meta: &SnapshotMeta, snapshot: &[u8]) -> io::Result<()> {
        let mut saved = self.saved.lock().map_err(|_| io::Error::other("a snapshot could not be written before"))?;
        if saved.as_ref().is_some_and(|saved| meta.last_log_id <= saved.last_log_id) {
            return Ok(());
        }
        write_file(&*self.folder, meta, snapshot)?;
        *saved = Some(meta.clone());
        Ok(())
    }
}

/// Replaces the file; what stands there is the old one or the new one.
fn write_file(folder: &dyn Folder, meta: &SnapshotMeta, snapshot: &[u8]) -> io::Result<()> {
    let head = wire::encode(&WireMeta::from(meta));
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&head);
    hasher.update(snapshot);
    let before = [&hasher.finalize().to_le_bytes(), &(head.len() as u32).to_le_bytes(), &head[..]].concat();
    let file = folder.create("snapshot.new")?;
    file.write_at(&before, 0)?;
    file.write_at(snapshot, before.len() as u64)?;
    file.sync()?;
    folder.rename("snapshot.new", SNAPSHOT_FILE)?;
    folder.sync()
}

fn load(folder: &dyn Folder) -> io::Result<Option<(SnapshotMeta, Registry)>> {
    let Some((meta, bytes)) = read_file(folder)? else {
        return Ok(None);
    };
    let registry = Registry::from_bytes(&bytes).map_err(|cause| invalid(&cause.to_string()))?;
    Ok(Some((meta, registry)))
}

fn read_file(folder: &dyn Folder) -> io::Result<Option<(SnapshotMeta, SnapshotData)>> {
    let bytes = match folder.read(SNAPSHOT_FILE) {
        Ok(bytes) => SnapshotData::from(bytes),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(cause) => return Err(cause),
    };
    let number = |at: usize| {
        let four: Option<[u8; 4]> = bytes.get(at..at + 4).and_then(|it| it.try_into().ok());
        four.map(u32::from_le_bytes).ok_or_else(|| invalid("the snapshot file is cut short"))
    };
    let (checksum, head_bytes) = (number(0)?, number(4)? as usize);
    if crc32fast::hash(&bytes[8..]) != checksum || bytes.len() < 8 + head_bytes {
        return Err(invalid("the snapshot file is damaged; keep it for inspection and let this gateway join anew"));
    }
    let meta: WireMeta = wire::decode(&bytes[8..8 + head_bytes]).map_err(|cause| invalid(&cause.to_string()))?;
    let meta = meta.open().map_err(|cause| invalid(&cause.to_string()))?;
    Ok(Some((meta, bytes.slice(8 + head_bytes..))))
}

fn invalid(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.to_owned())
}
