//! `entente gateway`: runs one member state's gateway until it is told to stop.

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use tokio::time::timeout;
use tracing_subscriber::EnvFilter;

use super::up::StopSignals;
use crate::config::Config;
use crate::gateway::Gateway;

/// Between two complaints of a gateway that does not get on with its start.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// Runs the gateway. SIGINT, SIGTERM, SIGHUP or SIGQUIT stop it in order, and so does the end of its standard input if it
/// is to live no longer than that; a failing disk stops it at once.
pub async fn gateway(config: &Path, while_stdin_is_open: bool, mut stop: StopSignals) -> anyhow::Result<ExitCode> {
    let filter = EnvFilter::try_from_env("ENTENTE_LOG")
        .unwrap_or_else(|_| EnvFilter::new(format!("info,{},hyper=warn,h2=warn", federation::raft::LOG_FILTER)));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .log_internal_errors(false)
        .init();
    let mut asked = pin!(async {
        tokio::select! {
            () = stop.asked() => {}
            () = stdin_ends(), if while_stdin_is_open => {}
        }
    });
    let gateway = tokio::select! {
        started = start(config.to_owned()) => started?,
        // What it has begun is as if it had been killed: it finds its way from there whenever it starts again.
        () = &mut asked => return Ok(ExitCode::SUCCESS),
    };
    let failed = tokio::select! {
        () = &mut asked => None,
        reason = gateway.failed() => Some(reason),
    };
    if let Some(reason) = failed {
        tracing::error!(reason, "stopping before anything untrue is said");
        return Ok(ExitCode::FAILURE);
    }
    tracing::info!("stopping");
    gateway.stop().await;
    Ok(ExitCode::SUCCESS)
}

/// Starts it on another thread than the one that waits for signals: what it reads may lie on a disk that does not answer.
async fn start(config: PathBuf) -> anyhow::Result<Gateway> {
    let mut starting = tokio::spawn(async move { Gateway::start(Config::read(&config)?).await });
    loop {
        match timeout(COMPLAIN_EVERY, &mut starting).await {
            Ok(started) => return started.context("it broke while it started")?,
            Err(_) => tracing::warn!("not started yet: do the disks of the files answer that its configuration names?"),
        }
    }
}

/// Resolves when nobody holds the other end of standard input any more. A thread of its own reads: one of the runtime's
/// would keep it from ending.
async fn stdin_ends() {
    let (ended, end) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _an_error_is_an_end = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        let _the_gateway_may_be_gone = ended.send(());
    });
    let _sent_or_gone = end.await;
}
