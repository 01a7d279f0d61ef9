//! Removal of a folder whose content somebody else made.
//!
//! Invariants: what is removed is never followed, whatever links are in it; neither the stack nor the number of open
//! files grows with how deep a task has nested its folders.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::folder::draft_name;

/// Removes a file, or a folder with everything in it. Fine if it is not there. Nothing may be writing in it.
///
/// Folders within folders are moved up to the top before they are emptied, so that nothing is ever deep.
pub(super) fn remove(top: &Path) -> io::Result<()> {
    match fs::symlink_metadata(top) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(cause) => return Err(cause),
        Ok(found) if !found.is_dir() => return gone(fs::remove_file(top)),
        Ok(_) => {}
    }
    let mut moved = Moved { top, prefix: draft_name(), count: 0 };
    open_up(top)?;
    loop {
        let mut seen = 0;
        for entry in fs::read_dir(top)? {
            let entry = entry?;
            seen += 1;
            if entry.file_type()?.is_dir() {
                empty(&entry.path(), &mut moved)?;
            } else {
                gone(fs::remove_file(entry.path()))?;
            }
        }
        match gone(fs::remove_dir(top)) {
            // What was moved up while the names were read. Every pass that saw something has removed something.
            Err(cause) if cause.kind() == io::ErrorKind::DirectoryNotEmpty && seen > 0 => {}
            removed => return removed,
        }
    }
}

/// Names for folders that are moved to the top.
struct Moved<'a> {
    top: &'a Path,
    prefix: String,
    count: u64,
}

impl Moved<'_> {
    fn next(&mut self) -> PathBuf {
        self.count += 1;
        self.top.join(format!("{}-{}", self.prefix, self.count))
    }
}

/// Removes a folder directly below the top; the folders in it go up.
fn empty(folder: &Path, moved: &mut Moved) -> io::Result<()> {
    gone(open_up(folder))?;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            // A folder that changes its parent is written to.
            gone(open_up(&entry.path()))?;
            gone(fs::rename(entry.path(), moved.next()))?;
        } else {
            gone(fs::remove_file(entry.path()))?;
        }
    }
    match gone(fs::remove_dir(folder)) {
        // Its names were not all seen while it was changed; the next pass sees the rest.
        Err(cause) if cause.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        removed => removed,
    }
}

/// Somebody else may be removing the same folder.
fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Opens a folder that a task closed.
fn open_up(folder: &Path) -> io::Result<()> {
    let mode = fs::symlink_metadata(folder)?.permissions().mode();
    if mode & 0o700 == 0o700 { Ok(()) } else { fs::set_permissions(folder, Permissions::from_mode(0o700)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    use nix::fcntl::{OFlag, open, openat};
    use nix::sys::stat::{Mode, mkdirat};

    /// Deeper than any path may be long, so each folder is made from the one above it.
    fn nest(top: &Path, depth: usize) {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let mut folder = open(top, flags, Mode::empty()).expect("a folder");
        for _ in 0..depth {
            mkdirat(&folder, "d", Mode::S_IRWXU).expect("a folder");
            folder = openat(&folder, "d", flags, Mode::empty()).expect("a folder");
        }
    }

    #[test]
    fn depth_costs_neither_stack_nor_files() {
        let outer = tempfile::tempdir().expect("a temporary folder");
        let top = outer.path().join("top");
        fs::create_dir(&top).expect("a folder");
        nest(&top, 19_000);
        // The usual way overflows a test's stack of 2 MiB, or runs out of files.
        remove(&top).expect("removed");
        assert!(!top.exists());
    }

    #[test]
    fn what_a_task_closes_or_points_at_is_no_obstacle_and_no_way_out() {
        let outer = tempfile::tempdir().expect("a temporary folder");
        let (top, kept) = (outer.path().join("top"), outer.path().join("kept"));
        fs::create_dir_all(top.join("a/b/c")).expect("folders");
        fs::create_dir(&kept).expect("a folder");
        fs::write(kept.join("file"), "x").expect("a file");
        symlink(&kept, top.join("link")).expect("a link");
        symlink(&kept, top.join("a/b/link")).expect("a link");
        for name in ["a/b/c", "a/b", "a", ""] {
            fs::set_permissions(top.join(name), Permissions::from_mode(0o0)).expect("closed");
        }
        remove(&top).expect("removed");
        assert!(!top.exists());
        assert!(kept.join("file").exists());
        remove(&top).expect("nothing to do");
    }

    #[test]
    fn many_folders_beside_each_other_are_removed() {
        let outer = tempfile::tempdir().expect("a temporary folder");
        let top = outer.path().join("top");
        for number in 0..3_000 {
            fs::create_dir_all(top.join(format!("{}/{number}/deep", number % 3))).expect("folders");
        }
        remove(&top).expect("removed");
        assert!(!top.exists());
    }
}
