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

use super::fault::{Broken, Fault};
use super::limits::disk_bytes;
use super::order::{Input, Order, Origin, Output, TaskPath};
use super::place::{Place, redacted};
use super::record::{Notes, OUTPUT_BYTES_MAX};
use super::remote::{BadTransfer, Remote};
use super::search::{Budget, NoSearch, Search, joined, there};
use super::tree::{Links, Tree};
use super::{OutputRecord, StageKind};

/// Bringing all inputs, or delivering all outputs: 64 GiB at 3 MiB/s. GPUs are held meanwhile.
pub(super) const STAGING_TIMEOUT_S: u64 = 6 * 3_600;
const CHUNK_BYTES: usize = 1024 * 1024;

/// Why an input did not come or an output was not delivered, for the task's researcher.
#[derive(Debug, thiserror::Error)]
enum NotStaged {
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
    #[error(transparent)]
    NoSearch(#[from] NoSearch),
}

/// One attempt's transfers.
pub(super) struct Staging<'a> {
    order: &'a Order,
    root: Arc<Tree>,
    remote: Remote,
    /// Set when the attempt is stopped: copies end at their next piece.
    halt: Arc<AtomicBool>,
    bytes_left: u64,
    budget: Budget,
}

/// What was delivered, and what people should know about it.
#[derive(Default)]
pub(super) struct Delivered {
    pub records: Vec<OutputRecord>,
    pub notes: Notes,
    record_bytes: usize,
    unrecorded: usize,
}

impl<'a> Staging<'a> {
    pub fn new(order: &'a Order, root: &Path, halt: Arc<AtomicBool>) -> Result<Self, Broken> {
        let tree = Tree::open(root, Links::InRoot).map_err(|cause| Fault::Folders.because(cause))?;
        let ca_pem = match &order.rules.https_ca_file {
            Some(path) => Some(std::fs::read_to_string(path).map_err(|cause| Fault::Transfers.because(cause))?),
            None => None,
        };
        Ok(Staging {
            order,
            root: Arc::new(tree),
            remote: Remote::new(ca_pem.as_deref()).map_err(|bad| Fault::Transfers.because(bad))?,
            halt,
            bytes_left: disk_bytes(order),
            budget: Budget::default(),
        })
    }

    pub fn root(&self) -> &Tree {
        &self.root
    }

    /// Makes the task's folders and brings its inputs.
    pub async fn bring(&mut self) -> Result<(), Broken> {
        let tops = self.order.tops().into_iter().map(PathBuf::from);
        for folder in tops.chain(self.order.folders()) {
            let wrong = |cause| Fault::Folders.because(file(folder.display(), cause));
            self.root.make_folder(&folder).map_err(wrong)?;
        }
        for (index, input) in self.order.inputs.iter().enumerate() {
            self.bring_one(input).await.map_err(|cause| Fault::Input(index).because(cause))?;
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
                self.bytes_left -= fetched.map_err(|cause| transfer(url, cause))?;
                Ok(())
            }
            Origin::Place(Place::File { root, below }) => {
                let shown = |cause| file(root.join(below).display(), cause);
                let shared = Arc::new(Tree::open(root, Links::Beneath).map_err(shown)?);
                let files = match input.kind {
                    StageKind::File => vec![PathBuf::new()],
                    StageKind::Directory => {
                        let top = below.clone();
                        self.search(&shared, move |search| search.walk(&top, &mut Notes::default())).await?
                    }
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
    pub async fn deliver(&mut self, delivered: &mut Delivered) -> Result<(), Broken> {
        // What the inputs have used is not the outputs' loss.
        self.bytes_left = disk_bytes(self.order);
        self.budget = Budget::default();
        for (index, output) in self.order.outputs.iter().enumerate() {
            let done = match &output.prefix {
                None => self.deliver_plain(output, delivered).await,
                Some(prefix) => self.deliver_matches(output, prefix, delivered).await,
            };
            done.map_err(|cause| match cause {
                NotStaged::NoOutput { .. } => Fault::NoOutput(index).because(cause),
                cause => Fault::Output(index).because(cause),
            })?;
        }
        Ok(())
    }

    async fn deliver_plain(&mut self, output: &Output, delivered: &mut Delivered) -> Result<(), NotStaged> {
        let (path, shown) = (output.path.below(), output.path.as_str());
        let found = there(self.root.look(path)).map_err(|cause| file(shown, cause))?;
        let (kind, _) = found.ok_or_else(|| NotStaged::NoOutput { path: shown.to_owned() })?;
        if !kind.is_dir() {
            return self.deliver_file(path, &output.to, &output.url, delivered).await;
        }
        if output.kind == StageKind::File {
            return Err(NotStaged::NotAFile { path: shown.to_owned() });
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
        let (root, folder) = (Arc::clone(&self.root), joined(top, below));
        let walk = move |search: &mut Search| {
            let mut notes = Notes::default();
            search.walk(&folder, &mut notes).map(|files| (files, notes))
        };
        let (files, notes) = self.search(&root, walk).await?;
        delivered.notes.append(notes);
        for path in files {
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
        let (root, pattern) = (Arc::clone(&self.root), output.path.clone());
        let matches = self.search(&root, move |search| search.matches(&pattern)).await?;
        if matches.is_empty() {
            delivered.notes.add(&format!("nothing fits the output {}", output.path.as_str()));
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
                let wrong = |cause| file(&shown, cause);
                let from = self.root.read(path).map_err(wrong)?;
                let size = from.metadata().map_err(wrong)?.len();
                self.bytes_left = self.bytes_left.checked_sub(size).ok_or_else(no_disk).map_err(wrong)?;
                let sent = self.remote.put(url, &from, size).await;
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
        delivered.add(OutputRecord { url: redacted(url), path: shown, size_bytes });
        Ok(())
    }

    /// Searches on a thread that may block.
    async fn search<T: Send + 'static>(
        &mut self,
        tree: &Arc<Tree>,
        work: impl FnOnce(&mut Search) -> Result<T, NoSearch> + Send + 'static,
    ) -> Result<T, NotStaged> {
        let (tree, halt) = (Arc::clone(tree), Arc::clone(&self.halt));
        let mut search = Search { tree, budget: self.budget, halt };
        let searching = move || {
            let found = work(&mut search);
            (found, search.budget)
        };
        let done = tokio::task::spawn_blocking(searching).await;
        let (found, budget) = done.map_err(|cause| file("the search", io::Error::other(cause)))?;
        self.budget = budget;
        Ok(found?)
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
}

impl Delivered {
    fn add(&mut self, record: OutputRecord) {
        let bytes = record.url.len() + record.path.len();
        if self.unrecorded > 0 || self.record_bytes + bytes > OUTPUT_BYTES_MAX {
            self.unrecorded += 1;
        } else {
            self.record_bytes += bytes;
            self.records.push(record);
        }
    }

    /// What is listed, and what is to be noted.
    pub fn into_parts(mut self) -> (Vec<OutputRecord>, Notes) {
        if self.unrecorded > 0 {
            let (listed, all) = (self.records.len(), self.records.len() + self.unrecorded);
            self.notes.add(&format!("{all} files were delivered; the first {listed} are listed"));
        }
        (self.records, self.notes)
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
            return Err(no_disk());
        }
        into.write_all(&piece[..length])?;
    }
}

fn no_disk() -> io::Error {
    io::Error::other("the attempt's disk_gib is used up")
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

#[cfg(test)]
mod tests {
    use federation::{JobId, PoolId};

    use super::super::order::Rules;
    use super::super::sandbox::Sandbox;
    use super::*;

    /// An order that delivers `/work/<name>` to `<shared>/<name>`.
    fn delivering(name: &str, shared: &Path) -> Order {
        let path = TaskPath::parse(&format!("/work/{name}")).expect("a path");
        let to = Place::File { root: shared.to_owned(), below: name.into() };
        let output = Output { url: format!("file:///{name}"), to, path, prefix: None, kind: StageKind::File };
        let rules = Rules {
            sandbox: Sandbox::Process,
            network: false,
            run_as: None,
            file_roots: vec![],
            http_hosts: vec![],
            https_ca_file: None,
            disk_reserve: 0,
            launcher: None,
        };
        Order {
            job: JobId::new(0, [0; 10]),
            attempt: 1,
            pool: PoolId::parse("FR/jean-zay/h100-80").expect("a pool"),
            devices: vec![],
            gpus: 0,
            ram_gib: 0,
            disk_gib: 1,
            walltime_s: 1,
            steps: vec![],
            inputs: vec![],
            outputs: vec![output],
            volumes: vec![],
            lease_until_ms: None,
            rules,
        }
    }

    #[tokio::test]
    async fn what_the_inputs_used_is_not_the_outputs_loss() {
        let (root, shared) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        std::fs::create_dir(root.path().join("work")).expect("a folder");
        std::fs::write(root.path().join("work/a"), "result").expect("a file");
        let order = delivering("a", shared.path());
        let mut staging = Staging::new(&order, root.path(), Arc::default()).expect("a staging");
        staging.bytes_left = 0;
        let mut delivered = Delivered::default();
        staging.deliver(&mut delivered).await.expect("delivered");
        assert_eq!(std::fs::read_to_string(shared.path().join("a")).expect("a file"), "result");
        assert_eq!(staging.bytes_left, (1 << 30) - 6);
    }

    #[test]
    fn a_record_lists_the_outputs_that_it_has_room_for() {
        let mut delivered = Delivered::default();
        let output = OutputRecord { url: "u".repeat(512), path: "p".repeat(512), size_bytes: 1 };
        (0..3_000).for_each(|_| delivered.add(output.clone()));
        let (listed, notes) = delivered.into_parts();
        assert_eq!(listed.len(), OUTPUT_BYTES_MAX / 1_024);
        assert_eq!(notes.lines(None), ["3000 files were delivered; the first 2048 are listed"]);
    }
}
