//! Staging: a task's inputs brought into its root before the first step, and its outputs delivered after the last.
//!
//! Both ends are trees ([`super::tree`]), so neither a link that a task made nor one in a shared folder leads
//! out. Outputs appear under their names only when they are whole.

use std::fs::{File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::glob::{fits, has_wildcard};
use super::order::{Input, Order, Origin, Output, TaskPath};
use super::place::{Place, redacted};
use super::remote::{BadTransfer, Remote};
use super::tree::{Links, Tree};
use super::{OutputRecord, StageKind};

/// Files of one attempt, in or out. A task with more packs them.
const FILES_MAX: usize = 50_000;
const DEPTH_MAX: usize = 64;
/// Outputs that a record names: 1,000 x 8 KiB of path and URL at worst = 8 MiB, half of a peer message.
const RECORDED_MAX: usize = 1_000;
/// Disk of an attempt that does not state it, in GiB.
pub(super) const DISK_DEFAULT_GIB: u32 = 64;
const CHUNK_BYTES: usize = 1024 * 1024;

/// Why an input did not come or an output was not delivered.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotStaged {
    #[error("{what}: {cause}")]
    File { what: String, cause: io::Error },
    #[error("{url}: {cause}")]
    Transfer { url: String, cause: BadTransfer },
    #[error("{path} was not written")]
    NoOutput { path: String },
    #[error("{path} is a folder, and was announced as a file")]
    NotAFile { path: String },
    #[error("{path} is not below the path_prefix")]
    Prefix { path: String },
    #[error("more than {FILES_MAX} files or {DEPTH_MAX} levels of folders")]
    TooMany,
    #[error("https is not set up: {0}")]
    Tls(String),
}

/// One attempt's transfers.
pub(super) struct Staging<'a> {
    order: &'a Order,
    root: Arc<Tree>,
    remote: Remote,
    /// Set when the attempt is stopped: copies end at their next piece.
    halt: Arc<AtomicBool>,
    bytes_left: u64,
    files_left: usize,
}

/// What was delivered, and what people should know about it.
#[derive(Default)]
pub(super) struct Delivered {
    pub records: Vec<OutputRecord>,
    pub notes: Vec<String>,
}

impl<'a> Staging<'a> {
    pub fn new(order: &'a Order, root: &Path, halt: Arc<AtomicBool>) -> Result<Self, NotStaged> {
        let tree = Tree::open(root, Links::InRoot).map_err(|cause| file("work", cause))?;
        let gib = if order.disk_gib == 0 { DISK_DEFAULT_GIB } else { order.disk_gib };
        let ca_pem = match &order.rules.https_ca_file {
            Some(path) => {
                let read = std::fs::read_to_string(path);
                Some(read.map_err(|cause| file(path.display(), cause))?)
            }
            None => None,
        };
        Ok(Staging {
            order,
            root: Arc::new(tree),
            remote: Remote::new(ca_pem.as_deref()).map_err(NotStaged::Tls)?,
            halt,
            bytes_left: u64::from(gib) << 30,
            files_left: FILES_MAX,
        })
    }

    pub fn root(&self) -> &Tree {
        &self.root
    }

    /// Makes the task's folders and brings its inputs.
    pub async fn bring(&mut self) -> Result<(), NotStaged> {
        for top in self.order.tops() {
            let made = self.root.make_folder(Path::new(&top));
            made.map_err(|cause| file(format!("/{top}"), cause))?;
        }
        for folder in self.order.folders() {
            let made = self.root.make_folder(&folder);
            made.map_err(|cause| file(folder.display(), cause))?;
        }
        for input in &self.order.inputs {
            self.bring_one(input).await?;
        }
        Ok(())
    }

    async fn bring_one(&mut self, input: &Input) -> Result<(), NotStaged> {
        let wrong = |cause| file(input.path.as_str(), cause);
        match &input.from {
            Origin::Content(bytes) => {
                let written = self.root.create(input.path.below());
                written.and_then(|mut it| it.write_all(bytes)).map_err(wrong)
            }
            Origin::Place(Place::Http { url }) => {
                let mut into = self.root.create(input.path.below()).map_err(wrong)?;
                let fetched = self.remote.fetch(url, &mut into, self.bytes_left).await;
                let transfer = |cause| transfer(url, cause);
                self.bytes_left -= fetched.map_err(transfer)?;
                Ok(())
            }
            Origin::Place(Place::File { root, below }) => {
                let shown = |cause| file(root.join(below).display(), cause);
                let shared = Arc::new(Tree::open(root, Links::Beneath).map_err(shown)?);
                let files = match input.kind {
                    StageKind::File => vec![PathBuf::new()],
                    StageKind::Directory => self.walk(&shared, below, &mut Vec::new())?,
                };
                for path in files {
                    let (from, to) = (joined(below, &path), joined(input.path.below(), &path));
                    let into = Arc::clone(&self.root);
                    let copied = self.copy(&shared, from, move || into.create(&to)).await;
                    copied.map_err(shown)?;
                }
                Ok(())
            }
        }
    }

    /// Delivers every output. What was delivered before a fault stays, and is recorded.
    pub async fn deliver(&mut self, delivered: &mut Delivered) -> Result<(), NotStaged> {
        for output in &self.order.outputs {
            match &output.prefix {
                None => self.deliver_plain(output, delivered).await?,
                Some(prefix) => self.deliver_matches(output, prefix, delivered).await?,
            }
        }
        if delivered.records.len() > RECORDED_MAX {
            let note = format!("{} files were delivered; the first {RECORDED_MAX} are listed", delivered.records.len());
            delivered.notes.push(note);
            delivered.records.truncate(RECORDED_MAX);
        }
        Ok(())
    }

    async fn deliver_plain(&mut self, output: &Output, delivered: &mut Delivered) -> Result<(), NotStaged> {
        let path = output.path.below();
        let found = self.root.look(path).map_err(|_| NotStaged::NoOutput { path: output.path.as_str().to_owned() })?;
        if !found.0.is_dir() {
            return self.deliver_file(path, &output.to, &output.url, delivered).await;
        }
        if output.kind == StageKind::File {
            let path = output.path.as_str().to_owned();
            return Err(NotStaged::NotAFile { path });
        }
        self.deliver_below(path, Path::new(""), output, delivered).await
    }

    /// Everything in the folder `top/below`, to the same places below the output's.
    async fn deliver_below(
        &mut self,
        top: &Path,
        below: &Path,
        output: &Output,
        delivered: &mut Delivered,
    ) -> Result<(), NotStaged> {
        let root = Arc::clone(&self.root);
        for path in self.walk(&root, &joined(top, below), &mut delivered.notes)? {
            let path = joined(below, &path);
            let (to, url) = (output.to.join(&path), appended(&output.url, &path));
            self.deliver_file(&joined(top, &path), &to, &url, delivered).await?;
        }
        Ok(())
    }

    async fn deliver_matches(
        &mut self,
        output: &Output,
        prefix: &TaskPath,
        delivered: &mut Delivered,
    ) -> Result<(), NotStaged> {
        let matches = self.matches(&output.path)?;
        if matches.is_empty() {
            let note = format!("nothing fits the output {}", output.path.as_str());
            delivered.notes.push(note);
        }
        for path in matches {
            let shown = || format!("/{}", path.display());
            let below = path.strip_prefix(prefix.below()).map_err(|_| NotStaged::Prefix { path: shown() })?;
            let (kind, _) = self.root.look(&path).map_err(|cause| file(shown(), cause))?;
            if kind.is_dir() {
                self.deliver_below(prefix.below(), below, output, delivered).await?;
            } else {
                let (to, url) = (output.to.join(below), appended(&output.url, below));
                self.deliver_file(&path, &to, &url, delivered).await?;
            }
        }
        Ok(())
    }

    async fn deliver_file(
        &mut self,
        path: &Path,
        to: &Place,
        url: &str,
        delivered: &mut Delivered,
    ) -> Result<(), NotStaged> {
        let shown = format!("/{}", path.display());
        let size_bytes = match to {
            Place::Http { url } => {
                let from = self.root.read(path).map_err(|cause| file(&shown, cause))?;
                let size = from.metadata().map_err(|cause| file(&shown, cause))?.len();
                let sent = self.remote.put(url, from, size).await;
                sent.map_err(|cause| transfer(url, cause))?;
                size
            }
            Place::File { root, below } => {
                let target = root.join(below);
                let wrong = |cause| file(format!("{shown} to {}", target.display()), cause);
                let shared = Tree::open(root, Links::Beneath).map_err(wrong)?;
                let mut draft = shared.replace(below).map_err(wrong)?;
                let into = draft.file.try_clone().map_err(wrong)?;
                let tree = Arc::clone(&self.root);
                let copied = self.copy(&tree, path.to_owned(), move || Ok(into)).await;
                let size = copied.map_err(wrong)?;
                draft.file.flush().and_then(|()| draft.commit()).map_err(wrong)?;
                size
            }
        };
        delivered.records.push(OutputRecord { url: redacted(url), path: shown, size_bytes });
        Ok(())
    }

    /// Copies one file, on a thread that may block.
    async fn copy(
        &mut self,
        tree: &Arc<Tree>,
        from: PathBuf,
        open: impl FnOnce() -> io::Result<File> + Send + 'static,
    ) -> io::Result<u64> {
        let (tree, halt, limit) = (Arc::clone(tree), Arc::clone(&self.halt), self.bytes_left);
        let copying = move || -> io::Result<u64> {
            let mut from = tree.read(&from)?;
            let mode = from.metadata()?.permissions().mode() & 0o777;
            let mut into = open()?;
            let copied = copy_pieces(&mut from, &mut into, limit, &halt)?;
            into.set_permissions(Permissions::from_mode(mode | 0o600))?;
            Ok(copied)
        };
        let copied = tokio::task::spawn_blocking(copying).await;
        let copied = copied.map_err(io::Error::other)??;
        self.bytes_left -= copied;
        Ok(copied)
    }

    /// Every file below a folder, relative to it. Links to folders, and links that lead nowhere, are noted and left out.
    fn walk(&mut self, tree: &Tree, top: &Path, notes: &mut Vec<String>) -> Result<Vec<PathBuf>, NotStaged> {
        let mut files = Vec::new();
        let mut waiting = vec![(PathBuf::new(), 0)];
        while let Some((folder, depth)) = waiting.pop() {
            let path = joined(top, &folder);
            let names = tree.names(&path, FILES_MAX);
            for name in names.map_err(|cause| file(path.display(), cause))? {
                if self.files_left == 0 || depth == DEPTH_MAX {
                    return Err(NotStaged::TooMany);
                }
                self.files_left -= 1;
                let below = folder.join(&name);
                match tree.kind(&joined(top, &below)) {
                    Ok(kind) if kind.is_dir() => waiting.push((below, depth + 1)),
                    Ok(kind) if kind.is_file() => files.push(below),
                    _ => notes.push(format!("{} is not a file and was left out", joined(top, &below).display())),
                }
            }
        }
        files.sort();
        Ok(files)
    }

    /// What a pattern fits, in order, component by component.
    fn matches(&self, pattern: &TaskPath) -> Result<Vec<PathBuf>, NotStaged> {
        let mut found = vec![PathBuf::new()];
        for component in pattern.as_str().split('/').skip(1) {
            let mut next = Vec::new();
            for folder in found {
                if !has_wildcard(component) {
                    next.push(folder.join(component));
                    continue;
                }
                // Not a folder, or not there: nothing fits.
                let names = self.root.names(&folder, FILES_MAX).unwrap_or_default();
                let fitting = names.iter().filter(|name| fits(component, &name.to_string_lossy()));
                next.extend(fitting.map(|name| folder.join(name)));
                if next.len() > FILES_MAX {
                    return Err(NotStaged::TooMany);
                }
            }
            found = next;
        }
        found.retain(|path| self.root.look(path).is_ok());
        Ok(found)
    }
}

fn copy_pieces(from: &mut File, into: &mut File, limit: u64, halt: &AtomicBool) -> io::Result<u64> {
    let mut piece = vec![0; CHUNK_BYTES];
    let mut copied = 0;
    loop {
        if halt.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let length = match from.read(&mut piece) {
            Ok(0) => return Ok(copied),
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        copied += length as u64;
        if copied > limit {
            return Err(io::Error::other("the attempt's disk_gib is used up"));
        }
        into.write_all(&piece[..length])?;
    }
}

/// `Path::join` adds a slash for an empty second part.
fn joined(above: &Path, below: &Path) -> PathBuf {
    if below.as_os_str().is_empty() { above.to_owned() } else { above.join(below) }
}

fn appended(url: &str, below: &Path) -> String {
    format!("{}/{}", redacted(url).trim_end_matches('/'), below.display())
}

fn file(what: impl ToString, cause: io::Error) -> NotStaged {
    NotStaged::File { what: what.to_string(), cause }
}

fn transfer(url: &str, cause: BadTransfer) -> NotStaged {
    NotStaged::Transfer { url: redacted(url), cause }
}
