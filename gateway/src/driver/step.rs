//! A step while it runs: started, listened to, and ended, so that nothing of it is left.
//! Invariant: when [`run`] returns, every process that the step started is gone.

use std::fs::File;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::process::Child;
use tokio::time::{Instant, interval, sleep, timeout};

use super::capture::{Capture, Captured};
use super::limits::Expendable;
use super::processes::{descendants, kill_descendants, reap_orphans, terminate_descendants};
use super::sandbox::{Sandbox, Wrapped};
use super::stop::{Stop, Stopped};

/// Between SIGTERM and SIGKILL: time to write a checkpoint's last page, not to go on.
const GRACE: Duration = Duration::from_secs(5);
/// Between two looks at processes that were asked to end.
const GONE_POLL: Duration = Duration::from_millis(20);
/// Dead processes that a step left to its supervisor are collected this often while it runs.
const REAP_EVERY: Duration = Duration::from_secs(1);
/// The exit code of a program that could not be started, as shells have it.
const NOT_FOUND: i32 = 127;

/// Where a step reads and writes.
pub(super) struct Streams {
    pub stdin: Option<File>,
    pub stdout: Capture,
    pub stderr: Capture,
}

/// A step that has ended.
pub(super) struct Ended {
    pub exit_code: i32,
    pub stdout: Captured,
    pub stderr: Captured,
    /// It did not end by itself.
    pub stopped: Option<Stopped>,
}

/// Runs a command to its end or to its stop. A program that is not there ends with 127, as in a shell;
/// `Err` is a fault of the machine.
pub(super) async fn run(wrapped: Wrapped, sandbox: Sandbox, streams: Streams, stop: &mut Stop) -> io::Result<Ended> {
    let mut child = match start(wrapped, streams.stdin) {
        Ok(child) => child,
        Err(cause) if sandbox == Sandbox::Process && is_the_tasks(&cause) => {
            let message = format!("entente: cannot start the program: {cause}\n");
            return Ok(Ended {
                exit_code: NOT_FOUND,
                stdout: streams.stdout.run(&b""[..]).await,
                stderr: streams.stderr.run(message.as_bytes()).await,
                stopped: None,
            });
        }
        Err(cause) => return Err(cause),
    };
    let pipes = child.stdout.take().zip(child.stderr.take());
    let (stdout, stderr) = pipes.expect("invariant: both streams were asked for as pipes");
    let stdout = tokio::spawn(streams.stdout.run(stdout));
    let stderr = tokio::spawn(streams.stderr.run(stderr));

    let waited = wait(&mut child, sandbox, stop).await;
    kill_descendants().await;
    let (status, stopped) = waited?;
    let captured = "invariant: a capture neither panics nor is aborted";
    Ok(Ended {
        exit_code: exit_code(status),
        stdout: stdout.await.expect(captured),
        stderr: stderr.await.expect(captured),
        stopped,
    })
}

/// A wrong name of a program, and not a machine without memory or processes.
fn is_the_tasks(cause: &io::Error) -> bool {
    use io::ErrorKind::{ArgumentListTooLong, NotFound, PermissionDenied};
    let wrong_format = cause.raw_os_error() == Some(nix::libc::ENOEXEC);
    wrong_format || matches!(cause.kind(), ArgumentListTooLong | NotFound | PermissionDenied)
}

fn start(mut wrapped: Wrapped, stdin: Option<File>) -> io::Result<Child> {
    let _while_it_starts = Expendable::begin();
    wrapped
        .command
        .stdin(stdin.map_or_else(Stdio::null, Stdio::from))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
}

async fn wait(child: &mut Child, sandbox: Sandbox, stop: &mut Stop) -> io::Result<(ExitStatus, Option<Stopped>)> {
    let pid = child.id().map(|pid| pid as i32);
    let mut reaping = interval(REAP_EVERY);
    let mut wanted = pin!(stop.wanted());
    let stopped = loop {
        tokio::select! {
            status = child.wait() => return Ok((status?, None)),
            stopped = &mut wanted => break stopped,
            _ = reaping.tick() => reap_orphans(pid),
        }
    };
    let deadline = Instant::now() + GRACE;
    let in_time = timeout(GRACE, ask_to_end(child, pid, sandbox)).await;
    if in_time.is_ok() && sandbox != Sandbox::Bubblewrap {
        // The command may have ended before those that it started.
        while Instant::now() < deadline && !descendants().is_empty() {
            reap_orphans(None);
            sleep(GONE_POLL).await;
        }
    }
    let status = match in_time {
        Ok(status) => status?,
        Err(_) => {
            child.start_kill()?;
            child.wait().await?
        }
    };
    Ok((status, Some(stopped)))
}

/// Asks a step's processes to end, and waits for it. Once they could hear it they are not asked again: what they start to
/// end well is left alone.
async fn ask_to_end(child: &mut Child, pid: Option<i32>, sandbox: Sandbox) -> io::Result<ExitStatus> {
    if sandbox != Sandbox::Bubblewrap {
        terminate_descendants(None);
        return child.wait().await;
    }
    // Bubblewrap itself would end at once, and take everything with it before it could end by itself. Its own first process
    // hears nothing: there is nobody to ask until that has started the command.
    while terminate_descendants(pid) < 2 {
        if let Ok(status) = timeout(GONE_POLL, child.wait()).await {
            return status;
        }
    }
    child.wait().await
}

fn exit_code(status: ExitStatus) -> i32 {
    match (status.code(), status.signal()) {
        (Some(code), _) => code,
        (None, signal) => 128 + signal.unwrap_or_default(),
    }
}
