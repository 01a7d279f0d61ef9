//! The journal: what a driver must remember of its attempts, on a disk of the gateway's own.
//!
//! ```text
//! <job>.<n>.json    the entry: the claim
//! <job>.<n>.done    how it ended, once it has; nothing changes after it
//! ```
//! Invariants: what was written is durable when that is said; a file is whole or absent.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::marker::PhantomData;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::folder::{Done, Key, draft_name, parse_name};

/// Attempts of one cluster. An entry is whatever its driver must know of one.
#[derive(Clone, Debug)]
pub(super) struct Journal<E> {
    folder: PathBuf,
    _entries: PhantomData<fn() -> E>,
}

/// What a start finds.
pub(super) struct Found<E> {
    pub key: Key,
    pub entry: io::Result<E>,
    pub done: Option<io::Result<Done>>,
}

impl<E: Serialize + DeserializeOwned> Journal<E> {
    pub fn open(folder: &Path) -> io::Result<Journal<E>> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        Ok(Journal { folder: fs::canonicalize(folder)?, _entries: PhantomData })
    }

    /// Everything that is there. Sweeps what a crash left half made.
    pub fn load(&self) -> io::Result<Vec<Found<E>>> {
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

    pub fn write(&self, key: Key, entry: &E) -> io::Result<()> {
        self.put(self.path(key, "json"), &serde_json::to_vec(entry)?)
    }

    pub fn conclude(&self, key: Key, done: &Done) -> io::Result<()> {
        self.put(self.path(key, "done"), &serde_json::to_vec(done)?)
    }

    pub fn done(&self, key: Key) -> io::Result<Done> {
        read(&self.path(key, "done"))
    }

    /// The entry first: without it, the end means nothing.
    pub fn remove(&self, key: Key) -> io::Result<()> {
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

fn read<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

#[cfg(test)]
mod tests {
    use federation::{End, JobId};

    use super::super::AttemptRecord;
    use super::*;

    #[test]
    fn what_was_written_is_found_again_and_what_was_removed_is_not() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let journal = Journal::<String>::open(&folder.path().join("deep/journal")).expect("a journal");
        let [open, done] = [1, 2].map(|number| (JobId::new(number, [0; 10]), 1));
        let entry = "second".to_owned();
        journal.write(open, &"first".to_owned()).expect("written");
        journal.write(open, &entry).expect("written over");
        journal.write(done, &String::new()).expect("written");
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
