//! Folder: the one place where the log and the snapshot meet a disk.
//!
//! Invariants of every implementation: what was written may be lost until its file is synced, and a name until the folder
//! is; names are flat; nothing is retried.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A member's folder.
pub trait Folder: Send + Sync + 'static {
    /// For people.
    fn path(&self) -> &Path;
    /// The files in it, in no order.
    fn names(&self) -> io::Result<Vec<String>>;
    /// All of a file.
    fn read(&self, name: &str) -> io::Result<Vec<u8>>;
    /// An empty file, whatever had that name.
    fn create(&self, name: &str) -> io::Result<Box<dyn File>>;
    fn open(&self, name: &str) -> io::Result<Box<dyn File>>;
    /// Replaces what has the other name.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes the names durable.
    fn sync(&self) -> io::Result<()>;
}

/// A file, open for writing.
pub trait File: Send {
    /// Bytes.
    fn size(&self) -> io::Result<u64>;
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()>;
    /// Makes the content durable, and the size if it grew.
    fn sync(&self) -> io::Result<()>;
}

/// A folder of the operating system.
pub struct Directory(PathBuf);

impl Directory {
    /// Opens or makes it, for this account only: the log holds records of every state.
    pub fn at(path: &Path) -> io::Result<Arc<dyn Folder>> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        Ok(Arc::new(Directory(path.to_owned())))
    }
}

impl Folder for Directory {
    fn path(&self) -> &Path {
        &self.0
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let name = |entry: io::Result<fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
        fs::read_dir(&self.0)?.map(name).collect()
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        fs::read(self.0.join(name))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn File>> {
        Ok(Box::new(fs::File::create(self.0.join(name))?))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn File>> {
        Ok(Box::new(OpenOptions::new().read(true).write(true).open(self.0.join(name))?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.0.join(from), self.0.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.0.join(name))
    }

    fn sync(&self) -> io::Result<()> {
        fs::File::open(&self.0)?.sync_all()
    }
}

impl File for fs::File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.write_all_at(bytes, at)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}
