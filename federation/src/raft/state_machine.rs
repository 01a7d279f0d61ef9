//! The state machine: the registry behind the log, its readers, and its snapshot on the disk.
//!
//! Invariants: the registry's revision is the index of the last applied entry; a snapshot file is whole or absent; a
//! restart begins with the snapshot and applies what the log has behind it.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use futures_util::{Stream, StreamExt};
use openraft::OptionalSend;
use openraft::entry::RaftEntry;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use tokio::sync::watch;

use super::segment::sync_folder;
use super::types::{Applied, Entry, LogId, Payload, Snapshot, SnapshotData, SnapshotMeta, StoredMembership, Types};
use super::wire::{self, WireMeta};
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
    folder: PathBuf,
}

/// Makes a snapshot beside the work that goes on.
pub struct Builder {
    meta: SnapshotMeta,
    registry: Registry,
    folder: PathBuf,
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
    pub fn open(folder: &Path, genesis: &Genesis) -> io::Result<StateMachine> {
        let state = match load(folder)? {
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
        Ok(StateMachine { shared, folder: folder.to_owned() })
    }

    /// For readers.
    pub fn shared(&self) -> Shared {
        self.shared.clone()
    }

    fn apply_one(&self, entry: Entry) -> Applied {
        let id = entry.log_id();
        let revision = Revision(id.index);
        let mut state = self.shared.change();
        let outcomes = match entry.payload {
            Payload::Normal(proposal) => state.registry.apply(revision, &proposal.envelope, proposal.verdict),
            Payload::Blank => {
                state.registry.advance(revision);
                vec![]
            }
            Payload::Membership(membership) => {
                state.registry.advance(revision);
                state.membership = StoredMembership::new(Some(id), membership);
                vec![]
            }
        };
        state.applied = Some(id);
        Applied { revision, outcomes }
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
        Builder { meta: state.meta(), registry: state.registry.clone(), folder: self.folder.clone() }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotData) -> io::Result<()> {
        let registry = Registry::from_bytes(&snapshot).map_err(|cause| invalid(&cause.to_string()))?;
        save(&self.folder, meta, &snapshot)?;
        let revision = registry.revision();
        *self.shared.change() = State { registry, applied: meta.last_log_id, membership: meta.last_membership.clone() };
        self.shared.revisions.send_replace(revision);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        let read = read_file(&self.folder)?;
        Ok(read.map(|(meta, snapshot)| Snapshot { meta, snapshot }))
    }
}

impl State {
    fn meta(&self) -> SnapshotMeta {
        SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone() }
    }
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let (meta, registry, folder) = (self.meta.clone(), self.registry.clone(), self.folder.clone());
        // Tens of MiB to write and sync: not on a thread that answers heartbeats.
        let building = tokio::task::spawn_blocking(move || {
            let snapshot = SnapshotData::from(registry.to_bytes());
            save(&folder, &meta, &snapshot)?;
            Ok(Snapshot { meta, snapshot })
        });
        building.await.map_err(io::Error::other)?
    }
}

/// Replaces the snapshot on the disk; what stands there is the old one or the new one.
fn save(folder: &Path, meta: &SnapshotMeta, snapshot: &[u8]) -> io::Result<()> {
    let head = wire::encode(&WireMeta::from(meta));
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&head);
    hasher.update(snapshot);
    let temporary = folder.join("snapshot.new");
    let mut file = fs::File::create(&temporary)?;
    file.write_all(&hasher.finalize().to_le_bytes())?;
    file.write_all(&(head.len() as u32).to_le_bytes())?;
    file.write_all(&head)?;
    file.write_all(snapshot)?;
    file.sync_all()?;
    fs::rename(&temporary, folder.join(SNAPSHOT_FILE))?;
    sync_folder(folder)
}

fn load(folder: &Path) -> io::Result<Option<(SnapshotMeta, Registry)>> {
    let Some((meta, bytes)) = read_file(folder)? else {
        return Ok(None);
    };
    let registry = Registry::from_bytes(&bytes).map_err(|cause| invalid(&cause.to_string()))?;
    Ok(Some((meta, registry)))
}

fn read_file(folder: &Path) -> io::Result<Option<(SnapshotMeta, SnapshotData)>> {
    let bytes = match fs::read(folder.join(SNAPSHOT_FILE)) {
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
