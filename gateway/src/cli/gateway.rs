//! `entente gateway`: runs one member state's gateway until it is told to stop.

use std::path::Path;
use std::process::ExitCode;

use tracing_subscriber::EnvFilter;

use super::up::stop_asked;
use crate::config::Config;
use crate::gateway::Gateway;

/// Runs the gateway. SIGINT or SIGTERM stop it in order; a failing disk stops it at once.
pub async fn gateway(config: &Path) -> anyhow::Result<ExitCode> {
    let filter = EnvFilter::try_from_env("ENTENTE_LOG")
        .unwrap_or_else(|_| EnvFilter::new("info,openraft=warn,hyper=warn,h2=warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    let config = Config::read(config)?;
    let gateway = Gateway::start(config).await?;
    let failed = tokio::select! {
        asked = stop_asked() => { asked?; None }
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
