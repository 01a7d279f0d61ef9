//! Publishing: what the configuration says about this state goes into the registry.
//!
//! The pack, the offers and the trust bundle are compared with what the registry has and published when they differ, at
//! start and whenever a file or the registry changes. A pool that is no longer configured is withdrawn.

use std::time::Duration;

use certs::SignedBundle;
use federation::raft::Consensus;
use federation::{Command, Offer, Outcome, PublishPack};
use policy::{Pack, PackSource};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::proposer::Proposer;

/// How soon a refused or lost publication is tried again.
const RETRY: Duration = Duration::from_millis(300);
/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A file that cannot be used is complained about this often, in looks.
const COMPLAIN_EVERY: u32 = 60;

/// Keeps the registry as the configuration says, until `stop`.
pub async fn run(config: Config, consensus: Consensus, proposer: Proposer, stop: CancellationToken) {
    for look in 0_u32.. {
        let due = match due(&config, &consensus) {
            Ok(due) => due,
            Err(reason) => {
                if look % COMPLAIN_EVERY == 0 {
                    tracing::error!(reason, "what is configured is not published");
                }
                vec![]
            }
        };
        let rest = if due.is_empty() { LOOK_EVERY } else { RETRY };
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
            () = tokio::time::sleep(rest) => {}
        }
    }
}

/// What has to be published so that the registry says what the configuration says.
fn due(config: &Config, consensus: &Consensus) -> Result<Vec<Command>, String> {
    let state = config.gateway.state;
    let bundle = new_bundle(config, consensus)?;
    let pack = new_pack(config, consensus)?;
    Ok(consensus.read(|registry| {
        let mut due: Vec<Command> = bundle.map(Command::PublishBundle).into_iter().collect();
        let published = registry.pack(state);
        due.extend(pack.map(|source| {
            Command::PublishPack(PublishPack {
                sequence: published.map_or(1, |record| record.sequence + 1),
                previous: published.map(|record| record.digest),
                source,
            })
        }));
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
    }))
}

/// The configured pack, if the registry has another; one that does not compile is never published.
fn new_pack(config: &Config, consensus: &Consensus) -> Result<Option<PackSource>, String> {
    let Some(file) = &config.policy else {
        return Ok(None);
    };
    let state = config.gateway.state;
    let cedar = std::fs::read_to_string(&file.cedar)
        .map_err(|cause| format!("cannot read {}: {cause}", file.cedar.display()))?;
    let source = PackSource { state, title: file.title.clone(), contact: file.contact.clone(), cedar };
    if consensus.read(|registry| registry.pack(state).is_some_and(|record| record.source == source)) {
        return Ok(None);
    }
    Pack::compile(&source).map_err(|bad| format!("{}: {bad}", file.cedar.display()))?;
    Ok(Some(source))
}

/// The state's bundle, if it is the successor of the one that the registry has.
fn new_bundle(config: &Config, consensus: &Consensus) -> Result<Option<SignedBundle>, String> {
    let Some(path) = &config.bundle else {
        return Ok(None);
    };
    let unusable = |cause: &dyn std::fmt::Display| format!("{} cannot be used: {cause}", path.display());
    let text = std::fs::read(path).map_err(|cause| unusable(&cause))?;
    let signed: SignedBundle = serde_json::from_slice(&text).map_err(|cause| unusable(&cause))?;
    consensus.read(|registry| {
        let Some(member) = registry.member(config.gateway.state).filter(|member| member.signed != signed) else {
            return Ok(None);
        };
        signed.verify_successor(&member.bundle).map_err(|cause| unusable(&cause))?;
        Ok(Some(signed.clone()))
    })
}
