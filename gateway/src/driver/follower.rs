//! The follower of one attempt: starts its supervisor, follows it, and concludes what it leaves undone.
//! Invariant: it ends only when the attempt is done; that it is dropped changes nothing for the attempt.

use std::fs::File;
use std::io;
use std::process::Stdio;
use std::time::Duration;

use federation::End;
use tokio::process::{Child, Command};

use super::folder::{Done, Folder, Key, Seen};
use super::local::{Phase, Shared};
use super::now_ms;
use super::processes::kill_leftovers;

/// Between two looks at a running attempt: two file names each, 500 attempts = 10,000 looks a second.
const WATCH_EVERY: Duration = Duration::from_millis(50);
/// Between two tries when the machine fails.
const RETRY: Duration = Duration::from_secs(1);

/// Follows an attempt until it is done.
pub(super) async fn follow(key: Key, shared: &Shared) {
    Follower { key, shared, supervisor: None }.run().await;
}

struct Follower<'a> {
    key: Key,
    shared: &'a Shared,
    /// The supervisor, if this process started one.
    supervisor: Option<Child>,
}

impl Follower<'_> {
    async fn run(mut self) {
        loop {
            match self.step() {
                Ok(true) => return,
                Ok(false) => self.wait().await,
                Err(cause) => {
                    let (job, attempt) = self.key;
                    tracing::error!(%job, attempt, %cause, "an attempt cannot be followed");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Does what the files ask for; `true` when the attempt is done.
    fn step(&mut self) -> io::Result<bool> {
        let folder = Folder::of(&self.shared.settings.attempts, self.key);
        match folder.look()? {
            Seen::Done => {
                self.shared.set(self.key, Phase::Done);
                return Ok(true);
            }
            Seen::Alive => {
                let waiting = self.shared.phase(self.key) == Some(Phase::Starting);
                let state = waiting.then(|| folder.state()).flatten();
                if let Some(started_ms) = state.and_then(|it| it.running_ms) {
                    self.shared.set(self.key, Phase::Running { started_ms });
                }
            }
            Seen::Unstarted => match &mut self.supervisor {
                None => self.supervisor = Some(self.start(&folder)?),
                Some(child) => {
                    if let Some(status) = child.try_wait()? {
                        let reason = format!("the supervisor did not start: {status}");
                        conclude(self.key, &folder, &reason)?;
                    }
                }
            },
            Seen::Abandoned => {
                conclude(self.key, &folder, "the supervisor of the attempt was killed")?;
            }
        }
        Ok(false)
    }

    fn start(&self, folder: &Folder) -> io::Result<Child> {
        let words = &self.shared.settings.supervisor;
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

    async fn wait(&mut self) {
        let pause = tokio::time::sleep(WATCH_EVERY);
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

/// Ends an attempt whose supervisor cannot: first what it left running, then the record. Tried again until it is done.
fn conclude(key: Key, folder: &Folder, reason: &str) -> io::Result<()> {
    let Some(held) = folder.lock()? else {
        return Ok(());
    };
    if folder.is_done() {
        return Ok(());
    }
    // From here on no supervisor that is still on its way can start it.
    folder.mark_started(&held, None)?;
    if let Some(supervisor) = folder.started_by()
        && !kill_leftovers(key, &folder.work(), &supervisor)
    {
        return Ok(());
    }
    let mut record = folder.state().unwrap_or_default();
    record.system_logs.push(reason.to_owned());
    record.end_ms = Some(now_ms());
    let end = End::system_error(reason);
    folder.conclude(&held, &Done { end, record })?;
    folder.clear()
}
