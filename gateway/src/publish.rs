//! Publishing: what the configuration says about this state goes into the registry.
//!
//! The pack and the offers are compared with what the registry has and published when they differ,
//! at start and whenever the registry is not as configured. A pool that is no longer configured is
//! withdrawn.

use std::time::Duration;

use federation::raft::Consensus;
use federation::{Command, Offer, Outcome, PublishPack};
use policy::{Pack, PackSource};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::proposer::Proposer;

/// How soon a refused or lost publication is tried again.
const RETRY: Duration = Duration::from_millis(300);

/// Publishes until the registry agrees with the configuration, then ends.
pub async fn run(config: Config, consensus: Consensus, proposer: Proposer, stop: CancellationToken) {
    let pack = match read_pack(&config) {
        Ok(pack) => pack,
        Err(reason) => {
            tracing::error!(reason, "this state's pack is not published");
            None
        }
    };
    loop {
        let due = due(&config, pack.as_ref(), &consensus);
        if due.is_empty() {
            return;
        }
        for command in due {
            match proposer.commit(command).await {
                Ok((revision, Outcome::Rejected(reason))) => {
                    tracing::warn!(%reason, revision = revision.0, "publication rejected");
                }
                Ok((revision, _)) => {
                    let _seen_later_if_late = consensus.wait_for(revision, RETRY).await;
                }
                Err(reason) => tracing::info!(%reason, "publication not committed yet"),
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

/// What has to be published so that the registry says what the configuration says.
fn due(config: &Config, pack: Option<&PackSource>, consensus: &Consensus) -> Vec<Command> {
    let state = config.gateway.state;
    consensus.read(|registry| {
        let mut due = Vec::new();
        let published = registry.pack(state);
        if let Some(source) = pack
            && published.is_none_or(|record| record.source != *source)
        {
            due.push(Command::PublishPack(PublishPack {
                sequence: published.map_or(1, |record| record.sequence + 1),
                previous: published.map(|record| record.digest),
                source: source.clone(),
            }));
        }
        let configured = config.offers();
        for offer in &configured {
            let published = registry.offer(&offer.pool).map(|state| &state.offer);
            let sequence = published.map_or(0, |known| known.sequence);
            let same = published.is_some_and(|known| Offer { sequence, ..offer.clone() } == *known);
            if !same {
                due.push(Command::PublishOffer(Offer { sequence: sequence + 1, ..offer.clone() }));
            }
        }
        for known in registry.offers().map(|state| &state.offer) {
            let ours = known.pool.factory.state == state && known.served_by == config.gateway.name;
            if ours && !configured.iter().any(|offer| offer.pool == known.pool) {
                due.push(Command::WithdrawOffer { pool: known.pool.clone(), sequence: known.sequence + 1 });
            }
        }
        due
    })
}

/// The configured pack, if there is one; one that does not compile is never published.
fn read_pack(config: &Config) -> Result<Option<PackSource>, String> {
    let Some(file) = &config.policy else {
        return Ok(None);
    };
    let cedar = std::fs::read_to_string(&file.cedar)
        .map_err(|cause| format!("cannot read {}: {cause}", file.cedar.display()))?;
    let source =
        PackSource { state: config.gateway.state, title: file.title.clone(), contact: file.contact.clone(), cedar };
    Pack::compile(&source).map_err(|bad| format!("{}: {bad}", file.cedar.display()))?;
    Ok(Some(source))
}
