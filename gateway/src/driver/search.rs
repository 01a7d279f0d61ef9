//! Searches: the files of a folder, and what a pattern fits, in a tree that a task may still have made to hurt.
//!
//! Invariants: every name that is looked at is paid for from one budget; a search ends when the attempt does.
//! It blocks: it belongs on a thread of its own.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::glob::{fits, has_wildcard};
use super::order::TaskPath;
use super::record::Notes;
use super::tree::{Entry, Tree};

/// Files of one attempt, in or out. A task with more packs them.
pub(super) const FILES_MAX: usize = 50_000;
/// Names looked at to find them: some folders and others' files around each. A second or two.
const LOOKS_MAX: usize = 4 * FILES_MAX;
const DEPTH_MAX: usize = 64;

/// Why a search found nothing that could be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoSearch {
    #[error("more than {FILES_MAX} files or {DEPTH_MAX} levels of folders")]
    TooMany,
    #[error("more than {LOOKS_MAX} names to look at")]
    TooLong,
    #[error("{path}: {cause}")]
    File { path: String, cause: io::Error },
}

/// What is left to look at, over all searches of one attempt in one direction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    files: usize,
    looks: usize,
}

impl Default for Budget {
    fn default() -> Budget {
        Budget { files: FILES_MAX, looks: LOOKS_MAX }
    }
}

/// A tree while it is searched.
pub(super) struct Search {
    pub tree: Arc<Tree>,
    pub budget: Budget,
    /// Set when the attempt is stopped.
    pub halt: Arc<AtomicBool>,
}

impl Search {
    /// Every file below a folder, relative to it, in order. Links to folders, and links that lead nowhere, are noted
    /// and left out.
    pub fn walk(&mut self, top: &Path, notes: &mut Notes) -> Result<Vec<PathBuf>, NoSearch> {
        let mut files = Vec::new();
        let mut waiting = vec![(PathBuf::new(), 0)];
        while let Some((folder, depth)) = waiting.pop() {
            let path = joined(top, &folder);
            let names = self.names(&path);
            for name in names.map_err(|cause| file(&path, cause))? {
                self.look()?;
                let below = folder.join(&name);
                let path = joined(top, &below);
                match self.tree.kind(&path).map_err(|cause| file(&path, cause))? {
                    Entry::Folder if depth == DEPTH_MAX => return Err(NoSearch::TooMany),
                    Entry::Folder => waiting.push((below, depth + 1)),
                    Entry::File => {
                        self.take_file()?;
                        files.push(below);
                    }
                    Entry::Other => notes.add(&format!("{} is not a file and was left out", path.display())),
                }
            }
        }
        files.sort();
        Ok(files)
    }

    /// What a pattern fits, in order, component by component.
    pub fn matches(&mut self, pattern: &TaskPath) -> Result<Vec<PathBuf>, NoSearch> {
        let mut found = vec![PathBuf::new()];
        for component in pattern.as_str().split('/').skip(1) {
            let mut next = Vec::new();
            for folder in found {
                if !has_wildcard(component) {
                    self.look()?;
                    next.push(folder.join(component));
                    continue;
                }
                let names = self.names(&folder);
                for name in there(names).map_err(|cause| file(&folder, cause))?.unwrap_or_default() {
                    self.look()?;
                    if fits(component, &name.to_string_lossy()) {
                        next.push(folder.join(name));
                    }
                }
            }
            found = next;
        }
        let mut kept = Vec::new();
        for path in found {
            self.look()?;
            if there(self.tree.look(&path)).map_err(|cause| file(&path, cause))?.is_some() {
                self.take_file()?;
                kept.push(path);
            }
        }
        Ok(kept)
    }

    /// One more than may be looked at, so that the look at it fails.
    fn names(&self, folder: &Path) -> io::Result<Vec<OsString>> {
        self.tree.names(folder, self.budget.looks + 1)
    }

    fn look(&mut self) -> Result<(), NoSearch> {
        if self.halt.load(Ordering::Relaxed) {
            let cause = io::ErrorKind::Interrupted.into();
            return Err(NoSearch::File { path: "the search".into(), cause });
        }
        self.budget.looks = self.budget.looks.checked_sub(1).ok_or(NoSearch::TooLong)?;
        Ok(())
    }

    fn take_file(&mut self) -> Result<(), NoSearch> {
        self.budget.files = self.budget.files.checked_sub(1).ok_or(NoSearch::TooMany)?;
        Ok(())
    }
}

/// `None` for what is not there, or has a file where a folder is needed. Anything else that goes wrong is a fault.
pub(super) fn there<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(cause) if matches!(cause.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(cause) => Err(cause),
    }
}

/// `Path::join` adds a slash for an empty second part.
pub(super) fn joined(above: &Path, below: &Path) -> PathBuf {
    if below.as_os_str().is_empty() { above.to_owned() } else { above.join(below) }
}

fn file(path: &Path, cause: io::Error) -> NoSearch {
    NoSearch::File { path: path.display().to_string(), cause }
}

#[cfg(test)]
mod tests {
    use super::super::tree::Links;
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    /// `a` folders with `b` files each.
    fn search(a: usize, b: usize) -> (tempfile::TempDir, Search) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for a in 0..a {
            let inner = folder.path().join(format!("w/a{a}"));
            fs::create_dir_all(&inner).expect("a folder");
            (0..b).for_each(|b| fs::write(inner.join(format!("b{b}")), "").expect("a file"));
        }
        let tree = Arc::new(Tree::open(folder.path(), Links::InRoot).expect("a tree"));
        let search = Search { tree, budget: Budget::default(), halt: Arc::default() };
        (folder, search)
    }

    fn pattern(text: &str) -> TaskPath {
        TaskPath::parse(text).expect("a path")
    }

    #[test]
    fn every_name_is_paid_for_whether_it_fits_or_not() {
        let (_folder, mut search) = search(10, 10);
        search.budget = Budget { files: 1_000, looks: 50 };
        assert!(matches!(search.matches(&pattern("/w/a*/b*")), Err(NoSearch::TooLong)));
        search.budget.looks = 50;
        assert!(search.matches(&pattern("/w/a*/none*")).is_err(), "what fits nothing costs as much");
        search.budget.looks = 20;
        assert!(search.matches(&pattern("/w/a*/x/y/z")).is_err(), "so does what has no wildcard");
        search.budget.looks = 300;
        assert_eq!(search.matches(&pattern("/w/a*/b*")).expect("a search").len(), 100);
        assert!(search.budget.looks < 90);
        search.budget = Budget { files: 99, looks: 1_000 };
        assert!(matches!(search.walk(Path::new("w"), &mut Notes::default()), Err(NoSearch::TooMany)));
    }

    #[test]
    fn a_search_ends_when_the_attempt_does() {
        let (_folder, mut search) = search(2, 2);
        search.halt.store(true, Ordering::Relaxed);
        assert!(search.matches(&pattern("/w/*/*")).is_err());
        assert!(search.walk(Path::new("w"), &mut Notes::default()).is_err());
    }

    #[test]
    fn what_is_not_there_fits_nothing_and_a_fault_is_not_that() {
        let (folder, mut search) = search(1, 1);
        for absent in ["/none/*", "/w/a0/b0/*", "/w/a*/b*/c"] {
            assert_eq!(search.matches(&pattern(absent)).expect("a search"), Vec::<PathBuf>::new(), "{absent}");
        }
        symlink("loop", folder.path().join("w/loop")).expect("a link");
        assert!(search.matches(&pattern("/w/loop/*")).is_err());
    }

    #[test]
    fn what_is_no_file_is_noted() {
        let (folder, mut search) = search(1, 2);
        symlink("nowhere", folder.path().join("w/a0/lost")).expect("a link");
        symlink("..", folder.path().join("w/a0/up")).expect("a link");
        symlink("b0", folder.path().join("w/a0/same")).expect("a link");
        let mut notes = Notes::default();
        let found = search.walk(Path::new("w/a0"), &mut notes).expect("a walk");
        assert_eq!(found, ["b0", "b1", "same"].map(PathBuf::from));
        assert_eq!(notes.lines(None).len(), 2);
    }
}
