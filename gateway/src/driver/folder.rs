//! An attempt's folder: everything about it that survives whatever process is killed.
//!
//! ```text
//! order.json    what to run; the folder appears together with it, and that is the claim; gone when done
//! lock          held by the supervisor as long as it lives
//! started       made once by whoever may run or conclude the attempt, under the lock
//! state.json    the record so far
//! cancel        somebody wants it stopped
//! lease         until when of which boot it may go on unless its gateway renews this; only for what must not run twice
//! done.json     how it ended; nothing changes after it
//! logs/         one file per step and stream
//! work/         the task's files; gone when the attempt is done
//! ```
//! Invariants: `started` is made at most once, so at most one process ever runs the steps; a file is
//! either whole or absent, and durable before anybody is told.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use federation::{End, JobId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::order::Order;
use super::processes::{Birth, boot};
use super::remover::remove;
use super::{AttemptRecord, Pipe};

/// Drafts carry this prefix; what has it after a crash is rubbish.
const DRAFT_PREFIX: &str = ".draft-";

/// An attempt, as drivers name it.
pub(super) type Key = (JobId, u32);

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Done {
    pub end: End,
    pub record: AttemptRecord,
}

/// What the files of an attempt say at one moment.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Seen {
    Done,
    /// A supervisor has it.
    Alive,
    /// Claimed, and no supervisor has taken it yet.
    Unstarted,
    /// Its supervisor is gone and has not concluded it.
    Abandoned,
}

/// A folder of one attempt. Holding this value means nothing: the lock does.
#[derive(Clone, Debug)]
pub(super) struct Folder(PathBuf);

/// The attempt's lock; freed when it is dropped or its process dies.
pub(super) struct Held {
    _file: File,
}

impl Folder {
    pub fn at(path: &Path) -> Folder {
        Folder(path.to_owned())
    }

    /// Where an attempt's folder is or would be.
    pub fn of(attempts: &Path, (job, attempt): Key) -> Folder {
        Folder(attempts.join(format!("{job}.{attempt}")))
    }

    /// Makes the folder with its order in one step. The caller knows that there is none yet.
    pub fn claim(attempts: &Path, order: &Order) -> io::Result<Folder> {
        Folder::appear(attempts, order.key(), |draft| {
            if order.rules.run_as.is_some() {
                // The account of the steps has to reach `work`, and nothing else.
                fs::set_permissions(&draft.0, Permissions::from_mode(0o711))?;
            }
            if let Some(until_ms) = order.lease_until_ms {
                draft.write_lease(until_ms)?;
            }
            draft.write("order.json", order)
        })
    }

    /// Makes the folder of an attempt that never ran and never will.
    pub fn bury(attempts: &Path, key: Key, done: &Done) -> io::Result<Folder> {
        Folder::appear(attempts, key, |draft| {
            File::create_new(draft.0.join("started"))?;
            draft.write("done.json", done)
        })
    }

    fn appear(attempts: &Path, key: Key, fill: impl FnOnce(&Folder) -> io::Result<()>) -> io::Result<Folder> {
        let draft = Folder(attempts.join(draft_name()));
        DirBuilder::new().mode(0o700).create(&draft.0)?;
        let folder = Folder::of(attempts, key);
        let filled = fill(&draft)
            .and_then(|()| DirBuilder::new().mode(0o700).create(draft.0.join("logs")))
            .and_then(|()| fs::rename(&draft.0, &folder.0));
        if let Err(cause) = filled {
            let _rubbish_is_swept_at_start = remove(&draft.0);
            return Err(cause);
        }
        File::open(attempts)?.sync_all()?;
        Ok(folder)
    }

    /// Every attempt of a driver. Sweeps what a crash left half made.
    pub fn list(attempts: &Path) -> io::Result<Vec<(Key, Folder)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(attempts)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(DRAFT_PREFIX) {
                remove(&entry.path())?;
            } else if let Some(key) = parse_name(&name) {
                found.push((key, Folder(entry.path())));
            }
        }
        Ok(found)
    }

    /// Looks; never waits.
    pub fn look(&self) -> io::Result<Seen> {
        if self.is_done() {
            return Ok(Seen::Done);
        }
        match self.lock_file()?.try_lock_shared() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(Seen::Alive),
            Err(TryLockError::Error(cause)) => return Err(cause),
        }
        // It may have been concluded between the two looks.
        Ok(if self.is_done() {
            Seen::Done
        } else if self.0.join("started").exists() {
            Seen::Abandoned
        } else {
            Seen::Unstarted
        })
    }

    /// Takes the attempt's lock; `None` if somebody else has it.
    pub fn lock(&self) -> io::Result<Option<Held>> {
        let file = self.lock_file()?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Held { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(cause)) => Err(cause),
        }
    }

    fn lock_file(&self) -> io::Result<File> {
        OpenOptions::new().write(true).create(true).truncate(false).open(self.0.join("lock"))
    }

    /// Takes the right to run or conclude an attempt that nobody has started; `false` if somebody has.
    /// Whoever is going to start processes says who it is.
    pub fn mark_started(&self, _held: &Held, birth: Option<&Birth>) -> io::Result<bool> {
        let mut file = match File::create_new(self.0.join("started")) {
            Ok(file) => file,
            Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
            Err(cause) => return Err(cause),
        };
        file.write_all(&serde_json::to_vec(&birth)?)?;
        file.sync_all()?;
        File::open(&self.0)?.sync_all()?;
        Ok(true)
    }

    /// Which process may have started others; `None` also for one that died before it could.
    pub fn started_by(&self) -> Option<Birth> {
        self.read("started").ok().flatten()
    }

    pub fn order(&self) -> io::Result<Order> {
        self.read("order.json")
    }

    /// The record so far.
    pub fn state(&self) -> Option<AttemptRecord> {
        self.read("state.json").ok()
    }

    pub fn write_state(&self, record: &AttemptRecord) -> io::Result<()> {
        self.write("state.json", record)
    }

    pub fn is_done(&self) -> bool {
        self.0.join("done.json").exists()
    }

    pub fn done(&self) -> io::Result<Done> {
        self.read("done.json")
    }

    /// Concludes the attempt. Only for whoever marked it started, or found it abandoned.
    ///
    /// How it ended must be noted also where the task has left no room for it: then its files go first.
    pub fn conclude(&self, _held: &Held, done: &Done) -> io::Result<()> {
        if self.write("done.json", done).is_ok() {
            return Ok(());
        }
        remove(&self.work())?;
        self.write("done.json", done)
    }

    pub fn request_cancel(&self) -> io::Result<()> {
        File::create(self.0.join("cancel"))?;
        File::open(&self.0)?.sync_all()
    }

    pub fn is_cancel_requested(&self) -> bool {
        self.0.join("cancel").exists()
    }

    /// Until when the attempt may go on, in the milliseconds of [`super::lease::now_ms`]. One of an earlier boot is over:
    /// its clock has begun again, and an attempt may be started only now that was claimed before.
    pub fn lease(&self) -> Option<u64> {
        let text = fs::read_to_string(self.0.join("lease")).ok()?;
        let (until_ms, of) = text.split_once(' ')?;
        until_ms.parse().ok().filter(|_| of == boot())
    }

    /// Not made durable: nothing that it lets go on survives what a disk forgets it for. Reports of several pools renew it
    /// side by side, so each has a draft of its own.
    pub fn write_lease(&self, until_ms: u64) -> io::Result<()> {
        let draft = self.0.join(draft_name());
        fs::write(&draft, format!("{until_ms} {}", boot()))?;
        fs::rename(&draft, self.0.join("lease"))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn work(&self) -> PathBuf {
        self.0.join("work")
    }

    /// What the task sees as `/`.
    pub fn root(&self) -> PathBuf {
        self.work().join("root")
    }

    pub fn log(&self, step: u32, pipe: Pipe) -> PathBuf {
        self.0.join(format!("logs/{step}.{}", pipe.as_str()))
    }

    /// Removes the task's files and its order, whose variables may be secret. Only for what is done.
    pub fn clear(&self) -> io::Result<()> {
        match fs::remove_file(self.0.join("order.json")) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(cause),
            _ => remove(&self.work()),
        }
    }

    /// Takes the attempt out of the list of attempts, in one step. What is left of it is [`Folder::remove`]d.
    pub fn forget(&self, attempts: &Path) -> io::Result<Folder> {
        let gone = Folder(attempts.join(draft_name()));
        fs::rename(&self.0, &gone.0)?;
        File::open(attempts)?.sync_all()?;
        Ok(gone)
    }

    /// Removes everything.
    pub fn remove(&self) -> io::Result<()> {
        remove(&self.0)
    }

    /// Whether two accounts work in it: one that made it, and another of its group.
    fn is_shared(&self) -> io::Result<bool> {
        Ok(fs::metadata(&self.0)?.permissions().mode() & 0o020 != 0)
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> io::Result<T> {
        Ok(serde_json::from_slice(&fs::read(self.0.join(name))?)?)
    }

    fn write<T: Serialize>(&self, name: &str, value: &T) -> io::Result<()> {
        let draft = self.0.join(format!("{name}.draft"));
        let mode = if self.is_shared()? { 0o644 } else { 0o600 };
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&draft)?;
        file.write_all(&serde_json::to_vec(value)?)?;
        file.sync_all()?;
        fs::rename(&draft, self.0.join(name))?;
        File::open(&self.0)?.sync_all()
    }
}

/// A name that nobody else has or can guess.
pub(super) fn draft_name() -> String {
    let random = u64::from_le_bytes(certs::entropy::bytes());
    format!("{DRAFT_PREFIX}{random:016x}")
}

pub(super) fn parse_name(name: &str) -> Option<Key> {
    let (job, attempt) = name.split_once('.')?;
    Some((JobId::parse(job).ok()?, attempt.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    fn folder() -> (tempfile::TempDir, Folder) {
        let place = tempfile::tempdir().expect("a folder");
        let folder = Folder::at(place.path());
        (place, folder)
    }

    #[test]
    fn a_lease_ends_with_the_boot_that_it_is_of() {
        let (_place, folder) = folder();
        assert_eq!(folder.lease(), None);
        folder.write_lease(7).expect("a lease");
        assert_eq!(folder.lease(), Some(7));
        for other in ["7 00000000-0000-0000-0000-000000000000", "7", ""] {
            fs::write(folder.path().join("lease"), other).expect("a lease");
            assert_eq!(folder.lease(), None, "{other}");
        }
    }

    #[test]
    fn a_lease_is_whole_whoever_renews_it_meanwhile() {
        let (_place, folder) = folder();
        folder.write_lease(1).expect("a lease");
        let renew = || (0..2_000).try_for_each(|_| folder.write_lease(1));
        thread::scope(|scope| {
            let renewers = [scope.spawn(renew), scope.spawn(renew)];
            while renewers.iter().any(|it| !it.is_finished()) {
                assert_eq!(folder.lease(), Some(1));
            }
            renewers.into_iter().for_each(|it| it.join().expect("no panic").expect("every renewal is written"));
        });
    }
}
