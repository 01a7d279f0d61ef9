//! A folder whose content somebody else controls, opened so that nothing below it leads outside.
//!
//! Invariant: every path is resolved by the kernel from the folder's own descriptor (`openat2`), so there
//! is no moment between a check and a use in which a link could be put in the way.

use std::ffi::OsString;
use std::fs::{self, File, FileType};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2, renameat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::folder::draft_name;

/// What symbolic links below the folder mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Links {
    /// The folder is the root of everything: `/x` and `..` stay below it. For what a task sees.
    InRoot,
    /// A link that leaves the folder, by `..` or by an absolute path, is an error. For folders that we share.
    Beneath,
}

/// What a name in a folder stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    File,
    Folder,
    /// A pipe, a device, or a link that does not lead to a file in the tree.
    Other,
}

/// An opened folder.
pub(super) struct Tree {
    folder: File,
    resolve: ResolveFlag,
}

impl Tree {
    pub fn open(folder: &Path, links: Links) -> io::Result<Tree> {
        let opened = fs::OpenOptions::new().read(true).custom_flags(OFlag::O_DIRECTORY.bits()).open(folder)?;
        let within = match links {
            Links::InRoot => ResolveFlag::RESOLVE_IN_ROOT,
            Links::Beneath => ResolveFlag::RESOLVE_BENEATH,
        };
        Ok(Tree { folder: opened, resolve: within | ResolveFlag::RESOLVE_NO_MAGICLINKS })
    }

    /// A regular file for reading. A pipe or a device is refused, not waited for.
    pub fn read(&self, path: &Path) -> io::Result<File> {
        let file = self.resolve(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK, Mode::empty())?;
        regular(file)
    }

    /// An empty regular file for writing, with the folders above it.
    pub fn create(&self, path: &Path) -> io::Result<File> {
        self.make_folder(parent(path))?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_NONBLOCK;
        let file = regular(self.resolve(path, flags, Mode::from_bits_truncate(0o644))?)?;
        file.set_len(0)?;
        Ok(file)
    }

    /// A folder, made with those above it if need be.
    pub fn make_folder(&self, path: &Path) -> io::Result<File> {
        let mut folder = self.folder.try_clone()?;
        let mut so_far = PathBuf::new();
        for component in path.components() {
            let Component::Normal(name) = component else {
                continue;
            };
            so_far.push(name);
            folder = match self.folder(&so_far) {
                Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
                    match mkdirat(&folder, name, Mode::from_bits_truncate(0o755)) {
                        Ok(()) | Err(nix::Error::EEXIST) => {}
                        Err(cause) => return Err(cause.into()),
                    }
                    self.folder(&so_far)?
                }
                found => found?,
            };
        }
        Ok(folder)
    }

    pub fn folder(&self, path: &Path) -> io::Result<File> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        self.resolve(path, flags, Mode::empty())
    }

    /// What a path leads to, and its size.
    pub fn look(&self, path: &Path) -> io::Result<(FileType, u64)> {
        let found = self.resolve(path, OFlag::O_PATH, Mode::empty())?;
        let found = found.metadata()?;
        Ok((found.file_type(), found.size()))
    }

    /// What a name stands for: a link to a regular file counts as that file, any other link as something else.
    pub fn kind(&self, path: &Path) -> io::Result<Entry> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW;
        let kind = self.resolve(path, flags, Mode::empty())?.metadata()?.file_type();
        if !kind.is_symlink() {
            return Ok(if kind.is_dir() {
                Entry::Folder
            } else if kind.is_file() {
                Entry::File
            } else {
                Entry::Other
            });
        }
        match self.look(path) {
            Ok((target, _)) if target.is_file() => Ok(Entry::File),
            Ok(_) => Ok(Entry::Other),
            Err(cause) if leads_nowhere(&cause) => Ok(Entry::Other),
            Err(cause) => Err(cause),
        }
    }

    /// Names in a folder, sorted; of a larger folder any `max` of them.
    pub fn names(&self, path: &Path, max: usize) -> io::Result<Vec<OsString>> {
        let folder = self.folder(path)?;
        // The descriptor's own entry in /proc names the folder that was opened, not a path to it.
        let listed = fs::read_dir(format!("/proc/self/fd/{}", folder.as_raw_fd()))?;
        let mut names = listed.take(max).map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    }

    /// Begins a file that appears under its name only when it is whole.
    pub fn replace(&self, path: &Path) -> io::Result<Replacement> {
        let name = path.file_name().ok_or(io::ErrorKind::IsADirectory)?;
        let folder = self.make_folder(parent(path))?;
        let draft = OsString::from(draft_name());
        let how = OpenHow::new()
            .flags(OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC)
            .mode(Mode::from_bits_truncate(0o644))
            .resolve(ResolveFlag::RESOLVE_BENEATH);
        let file = File::from(openat2(&folder, draft.as_os_str(), how)?);
        Ok(Replacement { file, folder, draft: Some(draft), name: name.to_owned() })
    }

    fn resolve(&self, path: &Path, flags: OFlag, mode: Mode) -> io::Result<File> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).mode(mode).resolve(self.resolve);
        Ok(File::from(openat2(&self.folder, path, how)?))
    }
}

/// A file that is being written beside the one that it will replace. Dropped unfinished, it is gone.
pub(super) struct Replacement {
    pub file: File,
    folder: File,
    draft: Option<OsString>,
    name: OsString,
}

impl Replacement {
    /// Makes what was written durable and gives it its name, in place of what had it before.
    pub fn commit(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        let draft = self.draft.take().expect("invariant: a draft is taken once, here");
        renameat(&self.folder, draft.as_os_str(), &self.folder, self.name.as_os_str())?;
        self.folder.sync_all()
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        if let Some(draft) = self.draft.take() {
            let _already_gone = unlinkat(&self.folder, draft.as_os_str(), UnlinkatFlags::NoRemoveDir);
        }
    }
}

/// Whether it was the link itself that failed: its target is not there, goes round, or is outside of the tree.
fn leads_nowhere(cause: &io::Error) -> bool {
    let kinds = [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory];
    let codes = [Errno::ELOOP, Errno::EXDEV].map(|it| Some(it as i32));
    kinds.contains(&cause.kind()) || codes.contains(&cause.raw_os_error())
}

fn regular(file: File) -> io::Result<File> {
    let kind = file.metadata()?.file_type();
    if kind.is_file() {
        Ok(file)
    } else if kind.is_dir() {
        Err(io::ErrorKind::IsADirectory.into())
    } else {
        Err(io::Error::other("not a regular file"))
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A folder `t` with a file `t/in`, beside a secret, and with the link under test at `t/link`.
    fn check(links: Links, link: &str, read: &str) -> Result<String, io::ErrorKind> {
        let outer = tempfile::tempdir().expect("a temporary folder");
        let folder = outer.path().join("t");
        fs::create_dir_all(folder.join("etc")).expect("a folder");
        fs::write(outer.path().join("secret"), "secret").expect("a file");
        fs::write(folder.join("in"), "inside").expect("a file");
        fs::write(folder.join("etc/passwd"), "inside").expect("a file");
        symlink(link, folder.join("link")).expect("a link");
        let tree = Tree::open(&folder, links).expect("an open tree");
        let mut text = String::new();
        let mut file = tree.read(Path::new(read)).map_err(|cause| cause.kind())?;
        io::Read::read_to_string(&mut file, &mut text).expect("readable");
        Ok(text)
    }

    #[test]
    fn a_link_never_leads_outside() {
        for links in [Links::InRoot, Links::Beneath] {
            for link in ["../secret", "../../../../../secret", "/proc/self/environ"] {
                assert!(check(links, link, "link").is_err(), "{links:?} {link}");
            }
            assert!(check(links, "..", "link/secret").is_err());
            assert!(check(links, "in", "../secret").is_err());
            assert_eq!(check(links, "in", "link").as_deref(), Ok("inside"));
        }
        assert!(check(Links::Beneath, "/etc/passwd", "link").is_err());
        let own = check(Links::InRoot, "/etc/passwd", "link");
        assert_eq!(own.as_deref(), Ok("inside"), "the task's own /etc/passwd");
    }

    #[test]
    fn a_pipe_is_refused_and_not_waited_for() {
        let outer = tempfile::tempdir().expect("a temporary folder");
        nix::unistd::mkfifo(&outer.path().join("pipe"), Mode::S_IRWXU).expect("a pipe");
        let tree = Tree::open(outer.path(), Links::Beneath).expect("an open tree");
        assert!(tree.read(Path::new("pipe")).is_err());
    }

    #[test]
    fn a_replacement_appears_whole_or_not_at_all() {
        let outer = tempfile::tempdir().expect("a temporary folder");
        let tree = Tree::open(outer.path(), Links::Beneath).expect("an open tree");
        let listed = || tree.names(Path::new(""), 10).expect("a list");
        let dropped = tree.replace(Path::new("a/b")).expect("a draft");
        drop(dropped);
        assert_eq!(tree.names(Path::new("a"), 10).expect("a list").len(), 0);
        let mut kept = tree.replace(Path::new("c")).expect("a draft");
        io::Write::write_all(&mut kept.file, b"whole").expect("written");
        kept.commit().expect("committed");
        assert_eq!(listed(), ["a", "c"]);
    }
}
