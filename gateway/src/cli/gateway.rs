//! `entente gateway`: runs one member state's gateway until it is told to stop.

use std::path::Path;
use std::pin::pin;
use std::process::ExitCode;

use tracing_subscriber::EnvFilter;

use super::up::StopSignals;
use crate::config::Config;
use crate::gateway::Gateway;

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
    let config = Config::read(config)?;
    let mut asked = pin!(async {
        tokio::select! {
            () = stop.asked() => {}
            () = stdin_ends(), if while_stdin_is_open => {}
        }
    });
    let gateway = tokio::select! {
        started = Gateway::start(config) => started?,
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
