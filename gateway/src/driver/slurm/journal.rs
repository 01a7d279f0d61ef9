//! The journal: what the driver must remember of its attempts, on a disk of the gateway's own.
//!
//! ```text
//! <job>.<n>.json    the entry: the claim
//! <job>.<n>.done    how it ended, once it has; nothing changes after it
//! ```
//! Invariants: an entry is durable before Slurm is asked for anything, and says so before each try; a file is whole or
//! absent. Nothing here is where a task's account could write.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use federation::PoolId;
use serde::{Deserialize, Serialize};

use super::accounts::Mapped;
use super::dialect::Request;
use super::refusal::GivenUp;
use crate::driver::folder::{Done, Key, draft_name, parse_name};

/// Entries of one cluster.
#[derive(Clone, Debug)]
pub(super) struct Journal {
    folder: PathBuf,
}

/// One attempt, as far as it must survive the gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// `None`: cancelled before it came, so there is nothing to run.
    pub work: Option<Work>,
    /// When Slurm was last asked to take it. Whatever came of it, a job may exist since then.
    pub posted_ms: Option<u64>,
    /// The job that Slurm has made of it.
    pub known: Option<Known>,
    /// Somebody asked for the stop.
    pub cancel: bool,
    /// The driver itself ended it.
    pub given_up: Option<GivenUp>,
}

/// What Slurm is asked for, and as whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Work {
    pub pool: PoolId,
    pub mapped: Mapped,
    pub request: Request,
}

/// A job's number is given away again when slurmctld loses its state, so a number alone says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Known {
    pub id: u32,
    /// Unix seconds, by slurmctld's clock; not in its first answer.
    pub submit_time: Option<u64>,
}

/// What a start finds.
pub(super) struct Found {
    pub key: Key,
    pub entry: io::Result<Entry>,
    pub done: Option<io::Result<Done>>,
}

impl Entry {
    pub fn new(work: Work) -> Entry {
        Entry { work: Some(work), posted_ms: None, known: None, cancel: false, given_up: None }
    }

    /// Of an attempt that never came.
    pub fn buried() -> Entry {
        Entry { work: None, posted_ms: None, known: None, cancel: true, given_up: None }
    }
}

impl Journal {
    pub fn open(folder: &Path) -> io::Result<Journal> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        Ok(Journal { folder: fs::canonicalize(folder)? })
    }

    /// Everything that is there. Sweeps what a crash left half made.
    pub fn load(&self) -> io::Result<Vec<Found>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let name = path.file_name().map(|it| it.to_string_lossy().into_owned()).unwrap_or_default();
            if name.starts_with(".draft-") {
                fs::remove_file(&path)?;
            } else if let Some(key) = name.strip_suffix(".json").and_then(parse_name) {
                let done = self.path(key, "done");
                let done = done.exists().then(|| read(&done));
                found.push(Found { key, entry: read(&path), done });
            } else if name
                .strip_suffix(".done")
                .and_then(parse_name)
                .is_some_and(|key| !self.path(key, "json").exists())
            {
                // Forgotten, but for this.
                fs::remove_file(&path)?;
            }
        }
        Ok(found)
    }

    pub fn write(&self, key: Key, entry: &Entry) -> io::Result<()> {
        self.put(self.path(key, "json"), &serde_json::to_vec(entry)?)
    }

    pub fn conclude(&self, key: Key, done: &Done) -> io::Result<()> {
        self.put(self.path(key, "done"), &serde_json::to_vec(done)?)
    }

    pub fn done(&self, key: Key) -> io::Result<Done> {
        read(&self.path(key, "done"))
    }

    /// The entry last: as long as it is there, the attempt is known.
    pub fn remove(&self, key: Key) -> io::Result<()> {
        // Without the entry, the end means nothing; without the end, the entry would mean that it still runs.
        for kind in ["json", "done"] {
            match fs::remove_file(self.path(key, kind)) {
                Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(cause),
                _ => self.sync()?,
            }
        }
        Ok(())
    }

    fn path(&self, (job, attempt): Key, kind: &str) -> PathBuf {
        self.folder.join(format!("{job}.{attempt}.{kind}"))
    }

    fn put(&self, path: PathBuf, bytes: &[u8]) -> io::Result<()> {
        let draft = self.folder.join(draft_name());
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
        let written = file.write_all(bytes).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&draft, path));
        if let Err(cause) = written {
            let _rubbish_is_swept_at_start = fs::remove_file(&draft);
            return Err(cause);
        }
        self.sync()
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.folder)?.sync_all()
    }
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> io::Result<T> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::accounts::LocalName;
    use super::super::dialect::tests::request;
    use super::*;
    use crate::driver::AttemptRecord;
    use federation::{End, JobId};

    pub fn work() -> Work {
        let user = LocalName::parse("alice").expect("a name");
        let pool = PoolId::parse("FR/jean-zay/h100-80").expect("a pool");
        Work { pool, mapped: Mapped { user, account: None }, request: request() }
    }

    #[test]
    fn what_was_written_is_found_again_and_what_was_removed_is_not() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let journal = Journal::open(&folder.path().join("deep/journal")).expect("a journal");
        let [open, done] = [1, 2].map(|number| (JobId::new(number, [0; 10]), 1));
        let known = Some(Known { id: 7, submit_time: Some(9) });
        let entry = Entry { posted_ms: Some(5), known, ..Entry::new(work()) };
        journal.write(open, &Entry::new(work())).expect("written");
        journal.write(open, &entry).expect("written over");
        journal.write(done, &Entry::buried()).expect("written");
        let end = Done { end: End::Canceled, record: AttemptRecord::default() };
        journal.conclude(done, &end).expect("written");
        fs::write(folder.path().join("deep/journal/.draft-1"), "{").expect("a file");
        let mut found = journal.load().expect("loaded");
        found.sort_by_key(|it| it.key);
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].entry.as_ref().ok(), found[0].done.is_none()), (Some(&entry), true));
        assert_eq!(found[1].done.as_ref().and_then(|it| it.as_ref().ok()), Some(&end));
        assert!(!folder.path().join("deep/journal/.draft-1").exists());
        journal.remove(done).expect("removed");
        journal.remove(done).expect("nothing to do");
        assert_eq!(journal.load().expect("loaded").len(), 1);
    }
}
