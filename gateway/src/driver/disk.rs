//! Disk: what is left of it where attempts live, and who has to go when it is little.
//!
//! Below the reserve, an attempt that holds more than it asked for is ended; below half of it, every attempt is.
//! What the gateway and the supervisors themselves write fits into the other half.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;

/// Entries that are looked at to measure an attempt: about a second. More count as too much.
const ENTRIES_MAX: usize = 200_000;
/// Source: stat(2), `st_blocks`.
const BLOCK_BYTES: u64 = 512;

/// What an attempt may not use up, on which file system.
#[derive(Clone, Debug)]
pub(super) struct Reserve {
    pub folder: PathBuf,
    pub bytes: u64,
    /// What the attempt asked for.
    pub share_bytes: u64,
}

/// How much of a reserve is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    All,
    /// Who holds more than it asked for has to go.
    Some,
    /// Everybody has to go.
    Little,
}

impl Reserve {
    /// Takes microseconds. What cannot be told is no reason to end anything.
    pub fn left(&self) -> Left {
        match free_bytes(&self.folder) {
            Ok(free) if free < self.bytes / 2 => Left::Little,
            Ok(free) if free < self.bytes => Left::Some,
            Ok(_) | Err(_) => Left::All,
        }
    }

    /// Whether the attempt holds more than it asked for. Takes up to a second.
    pub fn is_greedy(&self) -> bool {
        holds_more(&self.folder, self.share_bytes)
    }
}

/// What this process may still write.
pub(super) fn free_bytes(folder: &Path) -> io::Result<u64> {
    let system = statvfs(folder)?;
    Ok(system.blocks_available() * system.fragment_size())
}

/// Whether a folder holds more. One that cannot be measured does: it was made that way.
fn holds_more(folder: &Path, limit: u64) -> bool {
    let mut waiting = vec![folder.to_owned()];
    let (mut entries, mut bytes) = (0, 0);
    while let Some(folder) = waiting.pop() {
        let listed = match fs::read_dir(&folder) {
            Ok(listed) => listed,
            // It was removed meanwhile: the task runs.
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => continue,
            Err(_) => return true,
        };
        for entry in listed {
            let Ok((path, found)) = entry.and_then(|it| Ok((it.path(), it.metadata()?))) else {
                continue;
            };
            entries += 1;
            bytes += found.blocks() * BLOCK_BYTES;
            if bytes > limit || entries > ENTRIES_MAX {
                return true;
            }
            if found.is_dir() {
                waiting.push(path);
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greedy_go_first() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::create_dir(folder.path().join("deep")).expect("a folder");
        fs::write(folder.path().join("deep/file"), vec![1; 1 << 20]).expect("a file");
        let free = free_bytes(folder.path()).expect("free bytes");
        let reserve = |bytes, share_bytes| Reserve { folder: folder.path().to_owned(), bytes, share_bytes };
        // Other processes of this machine write and remove files meanwhile: far away from the edges.
        for (bytes, left) in [(free / 2, Left::All), (free + free / 2, Left::Some), (3 * free, Left::Little)] {
            assert_eq!(reserve(bytes, 0).left(), left);
        }
        assert!(reserve(0, 1 << 19).is_greedy());
        assert!(!reserve(0, 1 << 22).is_greedy());
    }
}
