//! One attempt while it is carried out: inputs, steps, outputs, and the record of it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::lchown;
use std::path::Path;
use std::sync::Arc;

use federation::End;

use super::capture::Capture;
use super::fault::{Broken, Fault};
use super::folder::{Done, Folder};
use super::launcher::{self, Launcher};
use super::order::{Order, OrderStep, TaskPath};
use super::record::Notes;
use super::sandbox::RunAs;
use super::staging::{Delivered, Staging};
use super::step::{self, Ended, Streams};
use super::stop::{Halt, Stop, Stopped};
use super::{AttemptRecord, ExecutorRecord, Pipe, now_ms};

/// Carries out an attempt. `Err` is a fault of the machine before anything has happened.
pub(super) async fn carry_out(order: &Order, folder: &Folder) -> io::Result<Done> {
    let stop = Stop::new(order, folder)?;
    let mut attempt = Attempt { order, folder, record: first_record(order), notes: Notes::default(), stop };
    attempt.note_state();
    let (end, last) = match attempt.carry_out().await {
        Ok(end) => (end, None),
        Err(Ending::Stopped(Stopped::Canceled)) => (End::Canceled, None),
        Err(Ending::Stopped(Stopped::Broken(fault))) => (fault.end(), Some(fault.to_string())),
        // Every state reads the fault; what it was about is for the researcher.
        Err(Ending::Broken(Broken { fault, detail })) => (fault.end(), Some(detail.unwrap_or(fault.to_string()))),
    };
    attempt.record.end_ms = Some(now_ms());
    attempt.record.system_logs = attempt.notes.lines(last.as_deref());
    Ok(Done { end, record: attempt.record })
}

/// Why an attempt ended without the task's own doing.
enum Ending {
    Stopped(Stopped),
    Broken(Broken),
}

impl From<Stopped> for Ending {
    fn from(stopped: Stopped) -> Ending {
        Ending::Stopped(stopped)
    }
}

impl From<Broken> for Ending {
    fn from(broken: Broken) -> Ending {
        Ending::Broken(broken)
    }
}

struct Attempt<'a> {
    order: &'a Order,
    folder: &'a Folder,
    record: AttemptRecord,
    notes: Notes,
    stop: Stop,
}

impl Attempt<'_> {
    async fn carry_out(&mut self) -> Result<End, Ending> {
        let root = self.folder.root();
        let folders = |cause| Fault::Folders.because(cause);
        fs::create_dir_all(&root).map_err(folders)?;
        let halt = Halt::default();
        let mut staging = Staging::new(self.order, &root, Arc::clone(&halt.0))?;
        self.stop.unless(staging.bring()).await???;
        if let Some(account) = self.order.rules.run_as {
            give(&self.folder.work(), account).map_err(folders)?;
        }
        let end = self.run_steps(&staging).await?;
        self.stop.end_walltime();
        let mut delivered = Delivered::default();
        let outcome = self.stop.unless(staging.deliver(&mut delivered)).await;
        let (outputs, notes) = delivered.into_parts();
        self.record.outputs = outputs;
        self.notes.append(notes);
        match (end, outcome??) {
            // What a failed task leaves is delivered as far as it goes; the failure is the answer.
            (end @ End::ExecutorError { .. }, Err(broken)) => {
                self.notes.add(&broken.detail.unwrap_or(broken.fault.to_string()));
                Ok(end)
            }
            (end, outcome) => outcome.map(|()| end).map_err(Ending::from),
        }
    }

    async fn run_steps(&mut self, staging: &Staging<'_>) -> Result<End, Ending> {
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
                    self.notes.add(&format!("executor {index}: {} was cut: {fault}", pipe.as_str()));
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
        let wrong = |what: &str, cause| Fault::Step(index).because(format!("executor {index}: {what}: {cause}"));
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

    /// The state is for readers; an attempt does not fail because they see it late.
    fn note_state(&mut self) {
        self.record.system_logs = self.notes.lines(None);
        if let Err(cause) = self.folder.write_state(&self.record) {
            self.notes.add(&format!("the state could not be written: {cause}"));
        }
    }
}

fn first_record(order: &Order) -> AttemptRecord {
    let devices: Vec<String> = order.devices.iter().map(u32::to_string).collect();
    let devices = if order.rules.launcher.is_some() { launcher::devices() } else { devices.join(",") };
    let has_image = order.rules.launcher.as_ref().is_some_and(Launcher::uses_image);
    let image = if has_image { "as the site's launcher takes it" } else { "not unpacked: programs of the host" };
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let network = order.rules.network || order.rules.sandbox.shares_network();
    let metadata = [
        ("isolation", order.rules.sandbox.as_str().to_owned()),
        ("network", if network { "host" } else { "none" }.to_owned()),
        ("devices", devices),
        ("host", host.trim().to_owned()),
        ("image", image.to_owned()),
    ];
    AttemptRecord {
        begin_ms: now_ms(),
        metadata: metadata.map(|(name, value)| (name.to_owned(), value)).into(),
        ..AttemptRecord::default()
    }
}

/// Hands a folder to another account. Nobody else has written in it yet, so nothing moves meanwhile.
fn give(top: &Path, account: RunAs) -> io::Result<()> {
    let mut waiting = vec![top.to_owned()];
    while let Some(path) = waiting.pop() {
        lchown(&path, Some(account.uid), Some(account.gid))?;
        if fs::symlink_metadata(&path)?.is_dir() {
            for entry in fs::read_dir(&path)? {
                waiting.push(entry?.path());
            }
        }
    }
    Ok(())
}
