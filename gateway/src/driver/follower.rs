//! The follower of one attempt: starts its supervisor, follows it, and concludes what it leaves undone.
//! Invariant: it ends only when the attempt is done; that it is dropped changes nothing for the attempt.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tokio::process::{Child, Command};

use super::fault::Fault;
use super::folder::{Done, Folder, Key, Seen};
use super::local::Shared;
use super::now_ms;
use super::phase::Phase;
use super::processes::kill_leftovers;

/// Between two looks at an attempt that starts: it soon runs.
const STARTING_POLL: Duration = Duration::from_millis(50);
/// Between two looks at one that runs: three file names each, 500 attempts = 7,500 looks a second.
const RUNNING_POLL: Duration = Duration::from_millis(200);
/// Between two tries when the machine fails.
const RETRY: Duration = Duration::from_secs(1);

/// Follows an attempt until it is done.
pub(super) async fn follow(key: Key, shared: Arc<Shared>) {
    let folder = Folder::of(&shared.settings.attempts, key);
    Follower { key, folder, shared, supervisor: None }.run().await;
}

struct Follower {
    key: Key,
    folder: Folder,
    shared: Arc<Shared>,
    /// The supervisor, if this process started one.
    supervisor: Option<Child>,
}

/// What a look at the files has brought.
enum Step {
    Done(Phase),
    Running(u64),
    Started(Child),
    Nothing,
}

impl Follower {
    async fn run(mut self) {
        loop {
            match self.step().await {
                Ok(Step::Done(done)) => return self.shared.attempts.set(self.key, done),
                Ok(Step::Running(started_ms)) => self.shared.attempts.set(self.key, Phase::Running { started_ms }),
                Ok(Step::Started(child)) => self.supervisor = Some(child),
                Ok(Step::Nothing) => {}
                Err(cause) => {
                    let (job, attempt) = self.key;
                    tracing::error!(%job, attempt, %cause, "an attempt cannot be followed");
                    tokio::time::sleep(RETRY).await;
                }
            }
            self.wait().await;
        }
    }

    /// Does what the files ask for, on a thread that may block: it may have to read all of `/proc`, or to remove
    /// all that a task has left.
    async fn step(&mut self) -> io::Result<Step> {
        let exited = match &mut self.supervisor {
            Some(child) => child.try_wait()?,
            None => None,
        };
        let is_started = self.supervisor.is_some();
        let waiting = self.shared.attempts.phase(self.key) == Some(Phase::Starting);
        let (key, folder, shared) = (self.key, self.folder.clone(), Arc::clone(&self.shared));
        let stepping = move || match folder.look()? {
            Seen::Done => Ok(Step::Done(Phase::of(&folder.done()))),
            Seen::Alive => {
                let state = waiting.then(|| folder.state()).flatten();
                Ok(state.and_then(|it| it.running_ms).map_or(Step::Nothing, Step::Running))
            }
            Seen::Unstarted if !is_started => start(&folder, &shared.settings.supervisor).map(Step::Started),
            Seen::Unstarted => match exited {
                Some(status) => conclude(key, &folder, Fault::NotStarted, &format!("{}: {status}", Fault::NotStarted)),
                None => Ok(Step::Nothing),
            },
            Seen::Abandoned => conclude(key, &folder, Fault::Killed, &Fault::Killed.to_string()),
        };
        tokio::task::spawn_blocking(stepping).await.map_err(io::Error::other)?
    }

    async fn wait(&mut self) {
        let running = matches!(self.shared.attempts.phase(self.key), Some(Phase::Running { .. }));
        let pause = tokio::time::sleep(if running { RUNNING_POLL } else { STARTING_POLL });
        match &mut self.supervisor {
            // One that has ended would be ready for ever, and there may still be something to wait for.
            Some(child) if child.id().is_some() => tokio::select! {
                _ = child.wait() => {}
                () = pause => {}
            },
            _ => pause.await,
        }
    }
}

fn start(folder: &Folder, words: &[OsString]) -> io::Result<Child> {
    let log = File::options().append(true).create(true).open(folder.path().join("supervisor.log"))?;
    Command::new(&words[0])
        .arg0("entente")
        .args(&words[1..])
        .arg(folder.path())
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
}

/// Ends an attempt whose supervisor cannot: first what it left running, then the record. Tried again until it is done.
fn conclude(key: Key, folder: &Folder, fault: Fault, reason: &str) -> io::Result<Step> {
    let Some(held) = folder.lock()? else {
        return Ok(Step::Nothing);
    };
    if folder.is_done() {
        return Ok(Step::Nothing);
    }
    // From here on no supervisor that is still on its way can start it.
    folder.mark_started(&held, None)?;
    if let Some(supervisor) = folder.started_by()
        && !kill_leftovers(key, &folder.work(), &supervisor)
    {
        return Ok(Step::Nothing);
    }
    let mut record = folder.state().unwrap_or_default();
    record.system_logs.push(reason.to_owned());
    record.end_ms = Some(now_ms());
    folder.conclude(&held, &Done { end: fault.end(), record })?;
    folder.clear()?;
    Ok(Step::Nothing)
}
