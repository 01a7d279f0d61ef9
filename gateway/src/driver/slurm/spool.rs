//! The spool: attempts' folders on the file system that the gateway shares with the nodes.
//!
//! ```text
//! <spool>/                      the operator's; everybody may pass through
//! <spool>/<user>/               made by the operator: the gateway's, of the user's own group, mode 2770
//! <spool>/<user>/<job>.<n>/     made by the gateway, of the same group, mode 0770
//! ```
//! The gateway writes the order there, the supervisor runs as the user and writes the rest; what it writes is readable,
//! and only the gateway and the user get as far as to read it. So nobody needs root, and nobody an ACL.
//!
//! Invariant: the user can do as he likes below his own folder. So every name is resolved by the kernel from that
//! folder's descriptor, no link is ever followed, and what is read is a regular file of bounded size with one name.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag, openat2, renameat};
use nix::sys::stat::{Mode, fchmod, mkdirat};
use nix::unistd::{AccessFlags, UnlinkatFlags, faccessat, unlinkat};
use serde::de::DeserializeOwned;

use super::accounts::LocalName;
use crate::driver::folder::{Done, Key, draft_name};
use crate::driver::order::Order;
use crate::driver::record::{OUTPUT_BYTES_MAX, STEPS_MAX};
use crate::driver::{AttemptRecord, LOG_CHUNK_BYTES_MAX, LogStream, TAIL_BYTES_MAX};

/// A record as JSON: six bytes for each of its 8 MiB at worst, and some.
const JSON_BYTES_MAX: u64 = 64 * 1024 * 1024;
const COMPLAINT_BYTES_MAX: u64 = 4 * 1024;
/// Names that are looked at in a folder where a task's account can make as many as it likes. An attempt has ten, and its
/// logs two for each of 64 steps.
const NAMES_MAX: usize = 1_024;
/// What the supervisor of the user's next attempt sweeps.
const GONE_PREFIX: &str = ".gone-";

/// The spool of one cluster.
#[derive(Clone, Debug)]
pub(super) struct Spool {
    root: PathBuf,
}

/// Which files an attempt has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Look {
    pub has_started: bool,
    pub is_done: bool,
}

impl Spool {
    pub fn new(root: PathBuf) -> Spool {
        Spool { root }
    }

    pub fn path(&self, user: &LocalName, key: Key) -> PathBuf {
        self.root.join(user.as_str()).join(name(key))
    }

    /// Those of the users whose folders the operator has made as they have to be.
    pub fn prepared(&self, users: BTreeSet<LocalName>) -> io::Result<BTreeSet<LocalName>> {
        fs::metadata(&self.root)?;
        Ok(users.into_iter().filter(|user| self.is_prepared(user)).collect())
    }

    fn is_prepared(&self, user: &LocalName) -> bool {
        let path = self.root.join(user.as_str());
        let Ok(about) = fs::symlink_metadata(&path) else {
            return false;
        };
        let may = AccessFlags::R_OK | AccessFlags::W_OK | AccessFlags::X_OK;
        let is_open_to_us = || faccessat(AT_FDCWD, &path, may, AtFlags::AT_EACCESS).is_ok();
        about.is_dir() && about.mode() & 0o7777 == 0o2770 && is_open_to_us()
    }

    /// Makes an attempt's folder with its order in one step. Nobody has claimed the attempt before, so what has its name
    /// is what a crash left of an earlier try.
    pub fn claim(&self, user: &LocalName, order: &Order) -> io::Result<()> {
        let above = self.user(user)?;
        let draft = draft_name();
        let folder = above.make(draft.as_ref(), 0o770)?;
        let filled = folder
            .make("logs".as_ref(), 0o777)
            .and_then(|_| folder.write("order.json".as_ref(), &serde_json::to_vec(order)?))
            .and_then(|()| folder.0.sync_all());
        let name = name(order.key());
        let moved = filled.and_then(|()| match above.rename(&draft, &name) {
            Err(cause) if matches!(cause.raw_os_error(), Some(code) if code == Errno::ENOTEMPTY as i32 || code == Errno::EEXIST as i32) => {
                above.put_away(&name)?;
                above.rename(&draft, &name)
            }
            moved => moved,
        });
        if let Err(cause) = moved {
            let _swept_later = above.clear(draft.as_ref());
            return Err(cause);
        }
        above.0.sync_all()
    }

    /// What is there. A folder that is gone is like one in which nothing has happened.
    pub fn look(&self, user: &LocalName, key: Key) -> io::Result<Look> {
        let folder = match self.user(user)?.open_folder(name(key).as_ref()) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Look::default()),
            folder => folder?,
        };
        // Listed, not asked for by name: a network file system may believe for a while that a name is not there.
        let names = folder.names(NAMES_MAX)?;
        let has = |name: &str| names.iter().any(|it| it == name);
        Ok(Look { has_started: has("started"), is_done: has("done.json") })
    }

    /// The record so far; `None` also while it is being written, and if it is not one.
    pub fn state(&self, user: &LocalName, key: Key) -> Option<AttemptRecord> {
        self.read_json(user, key, "state.json").ok().filter(is_sound)
    }

    /// How the supervisor says that it ended. `Err` is a fault of the file system; a record that is none is `None`.
    pub fn done(&self, user: &LocalName, key: Key) -> io::Result<Option<Done>> {
        match self.read_json::<Done>(user, key, "done.json") {
            Ok(done) => Ok(Some(done).filter(|it| is_sound(&it.record))),
            Err(cause) if cause.kind() == io::ErrorKind::InvalidData => Ok(None),
            Err(cause) => Err(cause),
        }
    }

    /// The first lines of what the supervisor and the batch script complained about.
    pub fn complaint(&self, user: &LocalName, key: Key) -> Option<String> {
        let file = self.user(user).ok()?.open_file(&Path::new(&name(key)).join("supervisor.log")).ok()?;
        let mut bytes = Vec::new();
        file.take(COMPLAINT_BYTES_MAX).read_to_end(&mut bytes).ok()?;
        let text = String::from_utf8_lossy(&bytes).trim().to_owned();
        (!text.is_empty()).then_some(text)
    }

    /// A piece of a log; empty where there is none yet.
    pub fn log(&self, user: &LocalName, key: Key, stream: LogStream, offset: u64, max: usize) -> io::Result<Vec<u8>> {
        let path = format!("{}/logs/{}.{}", name(key), stream.executor, stream.pipe.as_str());
        let mut file = match self.user(user)?.open_file(Path::new(&path)) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            file => file?,
        };
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(offset))?;
        file.take(max.min(LOG_CHUNK_BYTES_MAX) as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Tells a supervisor that runs, and one that is still to come.
    pub fn request_cancel(&self, user: &LocalName, key: Key) -> io::Result<()> {
        self.mark(user, key, "cancel").map(drop)
    }

    /// Takes the right to start the attempt, so that no supervisor has it; `false` if one had it before.
    pub fn bury(&self, user: &LocalName, key: Key) -> io::Result<bool> {
        self.mark(user, key, "started")
    }

    /// Takes an attempt away. What the task itself wrote is its user's: it is left for his next supervisor to sweep,
    /// if his last one could not.
    pub fn forget(&self, user: &LocalName, key: Key) -> io::Result<()> {
        let above = match self.user(user) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(()),
            above => above?,
        };
        match above.put_away(&name(key)) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(()),
            gone => gone,
        }
    }

    /// Removes what crashes have left in a user's folder, as far as it is the gateway's own.
    pub fn sweep(&self, user: &LocalName) -> io::Result<()> {
        let above = self.user(user)?;
        for name in above.names(NAMES_MAX)? {
            if is_rubbish(&name) {
                let _not_all_ours = above.clear(&name);
            }
        }
        Ok(())
    }

    fn mark(&self, user: &LocalName, key: Key, mark: &str) -> io::Result<bool> {
        let folder = self.user(user)?.open_folder(name(key).as_ref())?;
        let made = match folder.create(mark.as_ref()) {
            Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
            made => made?,
        };
        made.sync_all()?;
        folder.0.sync_all()?;
        Ok(true)
    }

    fn read_json<T: DeserializeOwned>(&self, user: &LocalName, key: Key, file: &str) -> io::Result<T> {
        let file = self.user(user)?.open_file(&Path::new(&name(key)).join(file))?;
        let mut bytes = Vec::new();
        file.take(JSON_BYTES_MAX).read_to_end(&mut bytes)?;
        serde_json::from_slice(&bytes).map_err(|cause| io::Error::new(io::ErrorKind::InvalidData, cause))
    }

    /// The operator made it, in a folder of his own.
    fn user(&self, user: &LocalName) -> io::Result<Dir> {
        let flags = (OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW).bits();
        fs::OpenOptions::new().read(true).custom_flags(flags).open(self.root.join(user.as_str())).map(Dir)
    }
}

/// Removes what the gateway could not: a supervisor does it, as the user, at the end of its own attempt.
pub(crate) fn sweep_beside(attempt: &Path) {
    let Some(above) = attempt.parent() else {
        return;
    };
    for entry in fs::read_dir(above).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(GONE_PREFIX) {
            let _of_a_later_sweep = crate::driver::remover::remove(&entry.path());
        }
    }
}

/// A folder that was opened. Nothing below it leads outside.
struct Dir(File);

impl Dir {
    fn open(&self, path: &Path, flags: OFlag, mode: Mode) -> io::Result<File> {
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .mode(mode)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        Ok(File::from(openat2(&self.0, path, how)?))
    }

    fn open_folder(&self, path: &Path) -> io::Result<Dir> {
        self.open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty()).map(Dir)
    }

    /// A second name would be somebody else's file, brought here by a hard link.
    fn open_file(&self, path: &Path) -> io::Result<File> {
        let file = self.open(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK, Mode::empty())?;
        let about = file.metadata()?;
        if about.is_file() && about.nlink() == 1 { Ok(file) } else { Err(io::Error::other("not a file of its own")) }
    }

    fn create(&self, name: &Path) -> io::Result<File> {
        self.open(name, OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL, Mode::from_bits_truncate(0o644))
    }

    fn write(&self, name: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut file = self.create(name)?;
        file.write_all(bytes)?;
        file.sync_all()
    }

    /// A new folder of exactly this mode, whatever the process's mask is.
    fn make(&self, name: &Path, mode: u32) -> io::Result<Dir> {
        mkdirat(&self.0, name, Mode::from_bits_truncate(mode))?;
        let made = self.open_folder(name)?;
        fchmod(&made.0, Mode::from_bits_truncate(mode))?;
        Ok(made)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(renameat(&self.0, from, &self.0, to)?)
    }

    /// Takes a name away, and what is under it as far as it is ours.
    fn put_away(&self, name: &str) -> io::Result<()> {
        let gone = format!("{GONE_PREFIX}{}", draft_name().trim_start_matches('.'));
        self.rename(name, &gone)?;
        self.0.sync_all()?;
        let _swept_later = self.clear(gone.as_ref());
        Ok(())
    }

    /// Removes an attempt's folder: its files, its logs, and nothing deeper.
    fn clear(&self, name: &OsStr) -> io::Result<()> {
        let folder = self.open_folder(Path::new(name))?;
        if let Ok(logs) = folder.open_folder(Path::new("logs")) {
            logs.remove_files()?;
            unlinkat(&folder.0, "logs", UnlinkatFlags::RemoveDir)?;
        }
        folder.remove_files()?;
        Ok(unlinkat(&self.0, name, UnlinkatFlags::RemoveDir)?)
    }

    fn remove_files(&self) -> io::Result<()> {
        for name in self.names(NAMES_MAX)? {
            match unlinkat(&self.0, name.as_os_str(), UnlinkatFlags::NoRemoveDir) {
                Err(Errno::EISDIR | Errno::ENOENT) => {}
                removed => removed?,
            }
        }
        Ok(())
    }

    fn names(&self, max: usize) -> io::Result<Vec<OsString>> {
        // The descriptor's own entry in /proc names the folder that was opened, not a path to it.
        let listed = fs::read_dir(format!("/proc/self/fd/{}", self.0.as_raw_fd()))?;
        listed.take(max).map(|entry| Ok(entry?.file_name())).collect()
    }
}

fn name((job, attempt): Key) -> String {
    format!("{job}.{attempt}")
}

fn is_rubbish(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    name.starts_with(GONE_PREFIX) || name.starts_with(".draft-")
}

/// Whether a record is as a supervisor of ours writes it. The file lies where the task's own account can write.
fn is_sound(record: &AttemptRecord) -> bool {
    let outputs: usize = record.outputs.iter().map(|it| it.url.len() + it.path.len()).sum();
    let lines: usize = record.system_logs.iter().map(String::len).sum();
    let metadata: usize = record.metadata.iter().map(|(name, value)| name.len() + value.len()).sum();
    record.executors.len() <= STEPS_MAX
        && record.executors.iter().all(|it| it.stdout.len() <= TAIL_BYTES_MAX && it.stderr.len() <= TAIL_BYTES_MAX)
        && outputs <= OUTPUT_BYTES_MAX
        && lines + metadata <= 1024 * 1024
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::Pipe;
    use federation::JobId;
    use std::os::unix::fs::{PermissionsExt, symlink};

    struct Bench {
        folder: tempfile::TempDir,
        spool: Spool,
        user: LocalName,
        key: Key,
    }

    fn bench() -> Bench {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let user = LocalName::parse("alice").expect("a name");
        for name in ["alice", "bob"] {
            let made = folder.path().join(name);
            fs::create_dir(&made).expect("a folder");
            fs::set_permissions(&made, fs::Permissions::from_mode(0o2770)).expect("a mode");
        }
        let spool = Spool::new(folder.path().to_owned());
        Bench { folder, spool, user, key: (JobId::new(1, [0; 10]), 1) }
    }

    impl Bench {
        /// An attempt's folder without an order.
        fn attempt(&self) -> PathBuf {
            let path = self.spool.path(&self.user, self.key);
            fs::create_dir_all(path.join("logs")).expect("a folder");
            path
        }
    }

    const STREAM: LogStream = LogStream { executor: 0, pipe: Pipe::Stdout };

    #[test]
    fn only_folders_that_are_as_they_should_be_are_users() {
        let bench = bench();
        fs::create_dir(bench.folder.path().join("carol")).expect("a folder");
        fs::write(bench.folder.path().join("file"), "").expect("a file");
        let all = ["alice", "bob", "carol", "file", "nobody"].map(|it| LocalName::parse(it).expect("a name"));
        let users = bench.spool.prepared(all.into()).expect("users");
        let users: Vec<_> = users.iter().map(ToString::to_string).collect();
        assert_eq!(users, ["alice", "bob"]);
        let nowhere = Spool::new("/nowhere".into());
        assert!(nowhere.prepared(BTreeSet::new()).is_err());
    }

    #[test]
    fn logs_are_read_by_offset() {
        let bench = bench();
        fs::write(bench.attempt().join("logs/0.stdout"), "0123456789").expect("a log");
        let read = |offset, max| bench.spool.log(&bench.user, bench.key, STREAM, offset, max).expect("a log");
        assert_eq!((read(0, 4), read(8, 100), read(99, 4)), (b"0123".to_vec(), b"89".to_vec(), vec![]));
        let other = LogStream { executor: 7, ..STREAM };
        assert_eq!(bench.spool.log(&bench.user, bench.key, other, 0, 9).expect("nothing yet"), b"");
    }

    #[test]
    fn no_link_of_a_users_leads_to_somebody_elses_file() {
        let bench = bench();
        let secret = bench.folder.path().join("bob/secret");
        fs::create_dir_all(bench.folder.path().join("bob/attempt/logs")).expect("a folder");
        fs::write(&secret, r#"{"begin_ms":7}"#).expect("a file");
        fs::copy(&secret, bench.folder.path().join("bob/attempt/logs/0.stdout")).expect("a file");
        let read = || bench.spool.log(&bench.user, bench.key, STREAM, 0, 99);
        let attempt = bench.attempt();

        symlink(&secret, attempt.join("logs/0.stdout")).expect("a link");
        symlink(&secret, attempt.join("state.json")).expect("a link");
        assert!(read().is_err(), "a link in place of a log");
        assert_eq!(bench.spool.state(&bench.user, bench.key), None);
        fs::remove_file(attempt.join("logs/0.stdout")).expect("removed");
        fs::hard_link(&secret, attempt.join("logs/0.stdout")).expect("a link");
        assert!(read().is_err(), "a second name of another file");
        fs::remove_dir_all(attempt.join("logs")).expect("removed");
        symlink(bench.folder.path().join("bob/attempt/logs"), attempt.join("logs")).expect("a link");
        assert!(read().is_err(), "a link in place of the folder of logs");
        fs::remove_dir_all(&attempt).expect("removed");
        symlink(bench.folder.path().join("bob/attempt"), &attempt).expect("a link");
        assert!(read().is_err(), "a link in place of the attempt");
        assert!(bench.spool.request_cancel(&bench.user, bench.key).is_err());
        assert!(!bench.folder.path().join("bob/attempt/cancel").exists());
        bench.spool.forget(&bench.user, bench.key).expect("forgotten");
        assert!(bench.folder.path().join("bob/attempt/logs/0.stdout").exists(), "nothing of it was removed");
    }

    #[test]
    fn the_right_to_start_is_taken_once() {
        let bench = bench();
        bench.attempt();
        assert_eq!(bench.spool.look(&bench.user, bench.key).expect("a look"), Look::default());
        assert!(bench.spool.bury(&bench.user, bench.key).expect("taken"));
        assert!(!bench.spool.bury(&bench.user, bench.key).expect("taken before"));
        assert!(bench.spool.look(&bench.user, bench.key).expect("a look").has_started);
    }

    #[test]
    fn a_record_that_is_none_is_no_fault_of_the_disk() {
        let bench = bench();
        let attempt = bench.attempt();
        assert!(bench.spool.done(&bench.user, bench.key).is_err(), "not there");
        let long = "x".repeat(TAIL_BYTES_MAX + 1);
        let forged = format!(
            r#"{{"end":"Complete","record":{{"begin_ms":1,"running_ms":null,"end_ms":null,"outputs":[],"system_logs":[],
            "metadata":{{}},"executors":[{{"exit_code":0,"start_ms":0,"end_ms":0,"stdout":"{long}","stderr":""}}]}}}}"#
        );
        for text in ["", "{}", "{", forged.as_str()] {
            fs::write(attempt.join("done.json"), text).expect("a file");
            assert_eq!(bench.spool.done(&bench.user, bench.key).expect("read"), None);
        }
        fs::write(attempt.join("done.json"), forged.replace(&long, "x")).expect("a file");
        assert!(bench.spool.done(&bench.user, bench.key).expect("read").is_some());
    }

    #[test]
    fn forgetting_removes_what_is_ours_and_leaves_the_rest_to_the_user() {
        let bench = bench();
        let attempt = bench.attempt();
        fs::write(attempt.join("logs/0.stdout"), "x").expect("a file");
        fs::write(attempt.join("done.json"), "x").expect("a file");
        bench.spool.forget(&bench.user, bench.key).expect("forgotten");
        let left = || fs::read_dir(bench.folder.path().join("alice")).expect("a folder").count();
        assert_eq!(left(), 0);
        bench.spool.forget(&bench.user, bench.key).expect("nothing to do");
        fs::create_dir_all(bench.attempt().join("work/root")).expect("a folder");
        bench.spool.forget(&bench.user, bench.key).expect("forgotten");
        assert_eq!(left(), 1);
        bench.spool.sweep(&bench.user).expect("swept");
        assert_eq!(left(), 1, "the task's own files are not ours");
        sweep_beside(&attempt);
        assert_eq!(left(), 0);
    }
}
