//! The supervisor: the process that runs one attempt, detached from the gateway, and outlives it.
//!
//! It takes the attempt's lock for as long as it lives, marks it started, brings the inputs, runs the steps,
//! delivers the outputs, and writes how it ended. It is started as `entente run-attempt <folder>`.
//! Invariants: steps run only after this process made `started`; `done.json` is written only when every
//! process of the attempt is gone.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::lchown;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use federation::End;
use nix::sys::prctl::set_child_subreaper;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::{Mode, umask};
use nix::unistd::setsid;
use tokio::signal::unix::{self, SignalKind};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::capture::Capture;
use super::folder::{Done, Folder, Held};
use super::order::{Order, OrderStep, TaskPath};
use super::processes::Birth;
use super::sandbox::RunAs;
use super::staging::{DISK_DEFAULT_GIB, Delivered, NotStaged, Staging};
use super::step::{self, Ended, Streams};
use super::{AttemptRecord, ExecutorRecord, Pipe, now_ms};

/// A driver looks at the lock for microseconds; another supervisor holds it for as long as the attempt runs.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
const LOCK_POLL: Duration = Duration::from_millis(10);
/// Between two looks for a request to stop.
const CANCEL_POLL: Duration = Duration::from_millis(50);
/// Bringing all inputs, or delivering all outputs: 64 GiB at 3 MiB/s. GPUs are held meanwhile.
const STAGING_TIMEOUT: Duration = Duration::from_secs(6 * 3_600);
const OPEN_FILES_MAX: u64 = 65_536;
/// Bytes of one line of the system log.
const LINE_BYTES_MAX: usize = 4_096;

/// What ends an attempt that does not end by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Stopped {
    #[error("the task was canceled")]
    Canceled,
    #[error("walltime of {0} s is over")]
    Walltime(u32),
    #[error("the machine that ran the task was stopped")]
    Machine,
}

/// Why an attempt ended without the task's own doing.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Stopped(#[from] Stopped),
    #[error(transparent)]
    NotStaged(#[from] NotStaged),
    #[error("staging took longer than {} s", STAGING_TIMEOUT.as_secs())]
    StagingLate,
    #[error("executor {step}: {what}: {cause}")]
    Step { step: usize, what: String, cause: io::Error },
    #[error("cannot prepare the attempt's folder: {0}")]
    Folder(io::Error),
}

/// Runs the attempt of a folder that a driver claimed. Does nothing if it was started before.
pub fn run_attempt(folder: &Path) -> ExitCode {
    match supervise(&Folder::at(folder)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            eprintln!("entente run-attempt: {cause}");
            ExitCode::FAILURE
        }
    }
}

fn supervise(folder: &Folder) -> io::Result<()> {
    // Fails only for a process that leads its group already, which is as good.
    let _leads_already = setsid();
    set_child_subreaper(true)?;
    umask(Mode::from_bits_truncate(0o022));
    let Some(held) = take(folder)? else {
        return Ok(());
    };
    if !folder.mark_started(&held, Some(&Birth::own()))? {
        return Ok(());
    }
    let order = folder.order()?;
    limit(&order)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(run(&order, folder))?;
    // A copy that was halted may still be in its last write.
    runtime.shutdown_background();
    folder.conclude(&held, &done)?;
    folder.clear()
}

fn take(folder: &Folder) -> io::Result<Option<Held>> {
    let attempts = LOCK_PATIENCE.as_millis() / LOCK_POLL.as_millis();
    for _ in 0..attempts {
        match folder.lock()? {
            Some(held) => return Ok(Some(held)),
            None => thread::sleep(LOCK_POLL),
        }
    }
    Ok(None)
}

/// Sets this process's own limits, which everything that it starts inherits and cannot raise.
///
/// Memory is bounded per process as private writable memory (`RLIMIT_DATA`); `RLIMIT_AS` would count
/// the address space that CUDA, Go and Java reserve and never use.
fn limit(order: &Order) -> io::Result<()> {
    let gib = |gib: u32| u64::from(gib) << 30;
    let disk_gib = if order.disk_gib == 0 { DISK_DEFAULT_GIB } else { order.disk_gib };
    let mut limits = vec![
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_NOFILE, OPEN_FILES_MAX),
        (Resource::RLIMIT_FSIZE, gib(disk_gib)),
    ];
    if order.ram_gib > 0 {
        limits.push((Resource::RLIMIT_DATA, gib(order.ram_gib)));
    }
    for (resource, wanted) in limits {
        let (_, allowed) = getrlimit(resource)?;
        let value = wanted.min(allowed);
        setrlimit(resource, value, value)?;
    }
    // Our own write past the file limit shall be an error, not an end. Steps start with an empty mask.
    SigSet::from_iter([Signal::SIGXFSZ]).thread_block()?;
    Ok(())
}

async fn run(order: &Order, folder: &Folder) -> io::Result<Done> {
    let mut attempt = Attempt {
        order,
        folder,
        record: first_record(order),
        stop: Stop { folder: folder.clone(), told: unix::signal(SignalKind::terminate())?, walltime: None },
    };
    attempt.note_state();
    let end = match attempt.carry_out().await {
        Ok(end) => end,
        Err(Broken::Stopped(Stopped::Canceled)) => End::Canceled,
        Err(broken) => {
            attempt.note(&broken.to_string());
            End::system_error(&broken.to_string())
        }
    };
    attempt.record.end_ms = Some(now_ms());
    Ok(Done { end, record: attempt.record })
}

struct Attempt<'a> {
    order: &'a Order,
    folder: &'a Folder,
    record: AttemptRecord,
    stop: Stop,
}

impl Attempt<'_> {
    async fn carry_out(&mut self) -> Result<End, Broken> {
        let root = self.folder.root();
        fs::create_dir_all(&root).map_err(Broken::Folder)?;
        let halt = Halt::default();
        let mut staging = Staging::new(self.order, &root, Arc::clone(&halt.0))?;
        self.stop.unless(staging.bring()).await??;
        if let Some(account) = self.order.rules.run_as {
            give(&self.folder.work(), account).map_err(Broken::Folder)?;
        }
        let end = self.run_steps(&staging).await?;
        // The walltime is the task's, not that of whoever takes its outputs.
        self.stop.walltime = None;
        let mut delivered = Delivered::default();
        let outcome = self.stop.unless(staging.deliver(&mut delivered)).await;
        self.record.outputs = delivered.records;
        delivered.notes.iter().for_each(|note| self.note(note));
        match (end, outcome?) {
            // What a failed task leaves is delivered as far as it goes; the failure is the answer.
            (end @ End::ExecutorError { .. }, Err(cause)) => {
                self.note(&cause.to_string());
                Ok(end)
            }
            (end, outcome) => outcome.map(|()| end).map_err(Broken::from),
        }
    }

    async fn run_steps(&mut self, staging: &Staging<'_>) -> Result<End, Broken> {
        let order = self.order;
        self.record.running_ms = Some(now_ms());
        self.stop.start_walltime(order.walltime_s);
        self.note_state();
        for (index, step) in order.steps.iter().enumerate() {
            let start_ms = now_ms();
            let ended = self.run_step(index, step, staging).await?;
            let streams = [(Pipe::Stdout, &ended.stdout), (Pipe::Stderr, &ended.stderr)];
            for (pipe, captured) in streams {
                if let Some(fault) = &captured.fault {
                    self.note(&format!("executor {index}: {} was cut: {fault}", pipe.as_str()));
                }
            }
            self.record.executors.push(ExecutorRecord {
                exit_code: ended.exit_code,
                start_ms,
                end_ms: now_ms(),
                stdout: ended.stdout.tail,
                stderr: ended.stderr.tail,
            });
            self.note_state();
            if let Some(stopped) = ended.stopped {
                return Err(stopped.into());
            }
            let exit_code = ended.exit_code;
            if exit_code != 0 && !step.ignore_error {
                return Ok(End::ExecutorError { exit_code });
            }
        }
        Ok(End::Complete)
    }

    async fn run_step(&mut self, index: usize, step: &OrderStep, staging: &Staging<'_>) -> Result<Ended, Broken> {
        let wrong = |what: &str, cause| Broken::Step { step: index, what: what.to_owned(), cause };
        let streams = self.streams(index, step, staging);
        let streams = streams.map_err(|(what, cause)| wrong(&what, cause))?;
        let sandbox = self.order.rules.sandbox;
        let wrapped = sandbox.wrap(self.order, step, self.folder);
        let wrapped = wrapped.map_err(|cause| wrong("cannot be wrapped", cause))?;
        let ended = step::run(wrapped, sandbox, streams, &mut self.stop).await;
        ended.map_err(|cause| wrong("cannot be run", cause))
    }

    fn streams(&self, index: usize, step: &OrderStep, staging: &Staging<'_>) -> Result<Streams, (String, io::Error)> {
        let root = staging.root();
        let log = |pipe| {
            let log = File::create(self.folder.log(index as u32, pipe));
            log.map_err(|cause| ("its log".to_owned(), cause))
        };
        let shown = |path: &TaskPath, cause| (path.as_str().to_owned(), cause);
        let stdin = step.stdin.as_ref().map(|path| {
            let file = root.read(path.below());
            file.map_err(|cause| shown(path, cause))
        });
        let create = |path: &TaskPath| {
            let file = root.create(path.below());
            file.map_err(|cause| shown(path, cause))
        };
        let stdout = step.stdout.as_ref().map(create).transpose()?;
        let stderr = match (&step.stderr, &step.stdout, &stdout) {
            // One file for both: one position in it, or they would overwrite each other.
            (Some(path), Some(same), Some(file)) if path == same => {
                Some(file.try_clone().map_err(|cause| shown(path, cause))?)
            }
            (path, _, _) => path.as_ref().map(create).transpose()?,
        };
        Ok(Streams {
            stdin: stdin.transpose()?,
            stdout: Capture::new(log(Pipe::Stdout)?, stdout),
            stderr: Capture::new(log(Pipe::Stderr)?, stderr),
        })
    }

    fn note(&mut self, line: &str) {
        let mut line: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        line.truncate(line.floor_char_boundary(LINE_BYTES_MAX));
        self.record.system_logs.push(line);
    }

    /// The state is for readers; an attempt does not fail because they see it late.
    fn note_state(&mut self) {
        if let Err(cause) = self.folder.write_state(&self.record) {
            self.note(&format!("the state could not be written: {cause}"));
        }
    }
}

/// Tells copies in flight to end when the attempt stops waiting for them.
#[derive(Default)]
struct Halt(Arc<AtomicBool>);

impl Drop for Halt {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Everything that may end an attempt before its time.
pub(super) struct Stop {
    folder: Folder,
    told: unix::Signal,
    walltime: Option<(Instant, u32)>,
}

impl Stop {
    fn start_walltime(&mut self, walltime_s: u32) {
        let length = Duration::from_secs(walltime_s.into());
        self.walltime = Some((Instant::now() + length, walltime_s));
    }

    /// Resolves when the attempt has to stop.
    pub async fn wanted(&mut self) -> Stopped {
        loop {
            if self.folder.is_cancel_requested() {
                return Stopped::Canceled;
            }
            let wake = Instant::now() + CANCEL_POLL;
            match self.walltime {
                Some((end, walltime_s)) if end <= Instant::now() => {
                    return Stopped::Walltime(walltime_s);
                }
                Some((end, _)) if end < wake => sleep_until(end).await,
                _ => tokio::select! {
                    _ = self.told.recv() => return Stopped::Machine,
                    () = sleep(CANCEL_POLL) => {}
                },
            }
        }
    }

    /// Waits for some staging, but not longer than the attempt may go on.
    async fn unless<T>(&mut self, staging: impl Future<Output = T>) -> Result<T, Broken> {
        tokio::select! {
            stopped = self.wanted() => Err(stopped.into()),
            staged = timeout(STAGING_TIMEOUT, staging) => staged.map_err(|_| Broken::StagingLate),
        }
    }
}

fn first_record(order: &Order) -> AttemptRecord {
    let devices: Vec<String> = order.devices.iter().map(u32::to_string).collect();
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let network = order.rules.network || order.rules.sandbox.shares_network();
    let metadata = [
        ("isolation", order.rules.sandbox.as_str().to_owned()),
        ("network", if network { "host" } else { "none" }.to_owned()),
        ("devices", devices.join(",")),
        ("host", host.trim().to_owned()),
        ("image", "not unpacked: programs of the host".to_owned()),
    ];
    AttemptRecord {
        begin_ms: now_ms(),
        metadata: metadata.map(|(name, value)| (name.to_owned(), value)).into(),
        ..AttemptRecord::default()
    }
}

/// Hands a folder to another account. Nobody else has written in it yet, so nothing moves meanwhile.
fn give(path: &Path, account: RunAs) -> io::Result<()> {
    lchown(path, Some(account.uid), Some(account.gid))?;
    if fs::symlink_metadata(path)?.is_dir() {
        for entry in fs::read_dir(path)? {
            give(&entry?.path(), account)?;
        }
    }
    Ok(())
}
