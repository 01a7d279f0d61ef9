//! The supervisor: the process that runs one attempt, detached from the gateway, and outlives it.
//!
//! It takes the attempt's lock for as long as it lives, marks it started, carries it out, and writes how it ended.
//! It is started as `entente run-attempt <folder>`.
//! Invariants: steps run only after this process made `started`; `done.json` is written only when every
//! process of the attempt is gone.

use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::prctl::set_child_subreaper;
use nix::sys::stat::{Mode, umask};
use nix::unistd::setsid;

use super::attempt::carry_out;
use super::folder::{Done, Folder, Held};
use super::limits;
use super::processes::Birth;
use super::slurm::sweep_beside;

/// A driver looks at the lock for microseconds; another supervisor holds it for as long as the attempt runs.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
const LOCK_POLL: Duration = Duration::from_millis(10);
/// Time for an operator to make room on a full disk. The GPUs are held meanwhile.
const CONCLUDE_PATIENCE: Duration = Duration::from_secs(3_600);
const CONCLUDE_RETRY: Duration = Duration::from_secs(1);

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
    limits::set(&order)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(carry_out(&order, folder))?;
    // A copy that was halted may still be in its last write.
    runtime.shutdown_background();
    conclude(folder, &held, &done)?;
    folder.clear()?;
    if order.rules.launcher.is_some() {
        // The gateway cannot remove what tasks of this account have left.
        sweep_beside(folder.path());
    }
    Ok(())
}

/// Notes how the attempt ended. Nobody else knows it, so this is tried for a while on a machine that fails.
fn conclude(folder: &Folder, held: &Held, done: &Done) -> io::Result<()> {
    let end = Instant::now() + CONCLUDE_PATIENCE;
    loop {
        match folder.conclude(held, done) {
            // Whoever took the folder away wants to know nothing of it.
            Err(_) if Instant::now() < end && folder.path().exists() => thread::sleep(CONCLUDE_RETRY),
            concluded => return concluded,
        }
    }
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
