//! Publishing: what the configuration says about this state goes into the registry.
//!
//! The pack, the offers and the trust bundle are compared with what the registry has and published when they differ, at
//! start and whenever a file or the registry changes. A pool that is no longer configured is withdrawn.

use std::time::{Duration, Instant};

use certs::{GatewayName, SignedBundle};
use federation::raft::Consensus;
use federation::{Command, Offer, Outcome, PublishPack};
use policy::{Pack, PackSource};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::proposer::Proposer;

/// How soon a lost publication is tried again.
const RETRY: Duration = Duration::from_millis(300);
/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A file that cannot be used is complained about this often, and what the registry rejected is tried again.
const PATIENCE: Duration = Duration::from_secs(60);

/// Keeps the registry as the configuration says, until `stop`.
pub async fn run(config: Config, consensus: Consensus, proposer: Proposer, stop: CancellationToken) {
    let mut rejected: Vec<(Command, Instant)> = vec![];
    let mut complained: Option<Instant> = None;
    loop {
        let (mut due, unusable) = due(&config, &consensus);
        if !unusable.is_empty() && complained.is_none_or(|at| at.elapsed() >= PATIENCE) {
            complained = Some(Instant::now());
            for reason in unusable {
                tracing::error!(reason, "not published");
            }
        }
        rejected.retain(|(_, at)| at.elapsed() < PATIENCE);
        due.retain(|command| rejected.iter().all(|(known, _)| known != command));
        let rest = if due.is_empty() { LOOK_EVERY } else { RETRY };
        for command in due {
            match proposer.commit(command.clone()).await {
                Ok((revision, Outcome::Rejected(reason))) => {
                    tracing::error!(%reason, revision = revision.0, "the registry rejects what is configured");
                    rejected.push((command, Instant::now()));
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

/// What has to be published so that the registry says what the configuration says, and which files cannot be used.
fn due(config: &Config, consensus: &Consensus) -> (Vec<Command>, Vec<String>) {
    let state = config.gateway.state;
    let (mut due, mut unusable) = (vec![], vec![]);
    match new_bundle(config, consensus) {
        Ok(bundle) => due.extend(bundle.map(Command::PublishBundle)),
        Err(reason) => unusable.push(reason),
    }
    let pack = new_pack(config, consensus).unwrap_or_else(|reason| {
        unusable.push(reason);
        None
    });
    consensus.read(|registry| {
        let published = registry.pack(state);
        due.extend(pack.map(|source| {
            Command::PublishPack(PublishPack {
                sequence: published.map_or(1, |record| record.sequence + 1),
                previous: published.map(|record| record.digest),
                source,
            })
        }));
        let published: Vec<_> = registry
            .offers_of(state)
            .map(|known| Published { offer: &known.offer, withdrawn: known.withdrawn })
            .collect();
        due.extend(offers_due(&config.gateway.name, &config.offers(), &published));
    });
    (due, unusable)
}

/// An offer as the registry has it.
struct Published<'a> {
    offer: &'a Offer,
    /// Takes no more jobs, and is listed until the last one ends.
    withdrawn: bool,
}

/// What makes the offers of this gateway those that are configured.
fn offers_due(me: &GatewayName, configured: &[Offer], published: &[Published<'_>]) -> Vec<Command> {
    let mut due = vec![];
    for offer in configured {
        let known = published.iter().find(|known| known.offer.pool == offer.pool);
        let sequence = known.map_or(0, |known| known.offer.sequence);
        let same = |known: &Published<'_>| !known.withdrawn && Offer { sequence, ..offer.clone() } == *known.offer;
        if !known.is_some_and(same) {
            due.push(Command::PublishOffer(Offer { sequence: sequence + 1, ..offer.clone() }));
        }
    }
    for Published { offer, withdrawn } in published {
        let configured = configured.iter().any(|it| it.pool == offer.pool);
        // One that is withdrawn stays listed until it is drained.
        if offer.served_by == *me && !configured && !withdrawn {
            due.push(Command::WithdrawOffer { pool: offer.pool, sequence: offer.sequence + 1 });
        }
    }
    due
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

#[cfg(test)]
mod tests {
    use federation::{DeviceModel, FactoryId, FactoryName, PoolId, PoolName};

    use super::*;

    fn name(text: &str) -> GatewayName {
        GatewayName::parse(text).expect("a name")
    }

    fn offer(pool: &str, sequence: u64, nodes: u32) -> Offer {
        let state = certs::MemberState::parse("FR").expect("a state");
        let factory = FactoryId { state, name: FactoryName::parse("jean-zay").expect("a name") };
        Offer {
            pool: PoolId { factory, name: PoolName::parse(pool).expect("a name") },
            served_by: name("fr-1"),
            sequence,
            model: DeviceModel {
                name: "H100-80".into(),
                vendor: "NVIDIA".into(),
                memory_gib: 80,
                scheduler_units: 1,
                partition: None,
            },
            nodes,
            gpus_per_node: 4,
            task_slots: 8,
            walltime_max_s: 3_600,
            certifications: vec![],
            carbon_g_per_kwh: 0,
            price_milli_eur_per_gpu_hour: 0,
            city: "Orsay".into(),
            until: None,
            keeps_leases: false,
        }
    }

    /// `publish POOL SEQUENCE` and `withdraw POOL SEQUENCE`, in order.
    fn check(configured: &[Offer], published: &[(Offer, bool)], expected: &[&str]) {
        let published: Vec<_> =
            published.iter().map(|(offer, withdrawn)| Published { offer, withdrawn: *withdrawn }).collect();
        let due = offers_due(&name("fr-1"), configured, &published).into_iter().map(|command| match command {
            Command::PublishOffer(it) => format!("publish {} {}", it.pool.name, it.sequence),
            Command::WithdrawOffer { pool, sequence } => format!("withdraw {} {sequence}", pool.name),
            other => panic!("{other:?}"),
        });
        assert_eq!(due.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn what_is_configured_is_published_once() {
        let configured = [offer("h100", 0, 2)];
        check(&configured, &[], &["publish h100 1"]);
        check(&configured, &[(offer("h100", 1, 2), false)], &[]);
        check(&configured, &[(offer("h100", 1, 3), false)], &["publish h100 2"]);
    }

    #[test]
    fn a_pool_is_withdrawn_once_and_comes_back() {
        check(&[], &[(offer("h100", 1, 2), false)], &["withdraw h100 2"]);
        check(&[], &[(offer("h100", 2, 2), true)], &[]);
        check(&[offer("h100", 0, 2)], &[(offer("h100", 2, 2), true)], &["publish h100 3"]);
    }

    #[test]
    fn a_pool_moves_between_the_gateways_of_a_state() {
        let of_another = Offer { served_by: name("fr-2"), ..offer("h100", 4, 2) };
        check(&[], &[(of_another.clone(), false)], &[]);
        check(&[offer("h100", 0, 2)], &[(of_another, false)], &["publish h100 5"]);
    }
}
