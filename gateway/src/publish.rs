//! Publishing: what the configuration says about this state goes into the registry.
//!
//! The pack, the offers and the trust bundle are compared with what the registry has and published when they differ, at
//! start and whenever a file or the registry changes. A pool that is no longer configured is withdrawn.
//!
//! Invariant: a file whose disk does not answer holds up what comes from that file, and nothing else; but a bundle that takes
//! back the shown certificate waits for the one that replaces it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use certs::{GatewayName, SignedBundle, TrustStore};
use federation::raft::Consensus;
use federation::{Command, Offer, Outcome, PublishPack};
use policy::{Pack, PackSource};
use tokio_util::sync::CancellationToken;

use crate::authority::now_s;
use crate::config::Config;
use crate::leaves::Leaves;
use crate::proposer::Proposer;
use crate::reader::Reader;

/// How soon a lost publication is tried again.
const RETRY: Duration = Duration::from_millis(300);
/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A file that cannot be used is complained about this often, and what the registry rejected is tried again.
const PATIENCE: Duration = Duration::from_secs(60);

/// Keeps the registry as the configuration says, until `stop`.
pub async fn run(
    config: Config,
    consensus: Consensus,
    proposer: Proposer,
    leaves: Arc<Leaves>,
    stop: CancellationToken,
) {
    let publisher = Publisher { config: Arc::new(config), consensus, proposer, leaves };
    // Each for itself: a file whose disk does not answer holds up nothing else.
    let all = async {
        tokio::join!(
            publisher.keep("the trust bundle", bundle_due),
            publisher.keep("the pack", pack_due),
            publisher.keep("the offers", all_offers_due),
        )
    };
    // Without a quorum a commit would hold up a stop until its time is over; the next start publishes what is missing.
    stop.run_until_cancelled(all).await;
}

struct Publisher {
    config: Arc<Config>,
    consensus: Consensus,
    proposer: Proposer,
    leaves: Arc<Leaves>,
}

/// What has to be published so that the registry says what the configuration says; or why a file cannot be used.
type Due = Result<Vec<Command>, String>;

impl Publisher {
    /// Publishes what is due, again and again. `due` reads files.
    async fn keep(&self, what: &'static str, due: fn(&Config, &Consensus) -> Due) {
        let reader = Reader::new(what);
        let mut rejected: Vec<(Command, Instant)> = vec![];
        let mut complained: Option<Instant> = None;
        loop {
            let (config, consensus) = (Arc::clone(&self.config), self.consensus.clone());
            let read = reader.read(move || due(&config, &consensus)).await;
            let mut due = read.unwrap_or(Ok(vec![])).unwrap_or_else(|reason| {
                if complained.is_none_or(|at| at.elapsed() >= PATIENCE) {
                    complained = Some(Instant::now());
                    tracing::error!(reason, "not published");
                }
                vec![]
            });
            rejected.retain(|(_, at)| at.elapsed() < PATIENCE);
            due.retain(|command| rejected.iter().all(|(known, _)| known != command));
            let rest = if due.is_empty() { LOOK_EVERY } else { RETRY };
            for command in due {
                rejected.extend(self.publish(command).await.map(|command| (command, Instant::now())));
            }
            tokio::time::sleep(rest).await;
        }
    }

    /// Commits, unless it has to wait; gives the command back if the registry rejects it.
    async fn publish(&self, command: Command) -> Option<Command> {
        // A bundle may take back the certificate that this gateway shows. The one that replaces it was there before the
        // bundle, and has to be shown before others know of it: they close every connection and take only that one.
        if let Command::PublishBundle(bundle) = &command {
            let is_read = self.leaves.peer.renew_in_time().await;
            match why_it_shuts_out(bundle, &self.leaves) {
                Some(reason) if !is_read => {
                    tracing::warn!(
                        reason,
                        "the bundle takes back the peer certificate, and waits until its files can be read"
                    );
                    return None;
                }
                // After that bundle nobody may be left to tell this gateway why.
                Some(reason) => tracing::error!(
                    reason,
                    "once the bundle counts no other gateway lets this one in with the certificate that it shows; renew it"
                ),
                None => {}
            }
        }
        match self.proposer.commit(command.clone()).await {
            Ok((revision, Outcome::Rejected(reason))) => {
                tracing::error!(%reason, revision = revision.0, "the registry rejects what is configured");
                return Some(command);
            }
            Ok((revision, _)) => {
                let _seen_later_if_late = self.consensus.wait_for(revision, RETRY).await;
            }
            Err(reason) => tracing::info!(%reason, "publication not committed yet"),
        }
        None
    }
}

fn bundle_due(config: &Config, consensus: &Consensus) -> Due {
    Ok(new_bundle(config, consensus)?.map(Command::PublishBundle).into_iter().collect())
}

fn pack_due(config: &Config, consensus: &Consensus) -> Due {
    let Some(source) = new_pack(config, consensus)? else {
        return Ok(vec![]);
    };
    let pack = consensus.read(|registry| {
        let published = registry.pack(config.gateway.state);
        PublishPack {
            sequence: published.map_or(1, |record| record.sequence + 1),
            previous: published.map(|record| record.digest),
            source,
        }
    });
    Ok(vec![Command::PublishPack(pack)])
}

fn all_offers_due(config: &Config, consensus: &Consensus) -> Due {
    Ok(consensus.read(|registry| {
        let published: Vec<_> = registry
            .offers_of(config.gateway.state)
            .map(|known| Published { offer: &known.offer, withdrawn: known.withdrawn })
            .collect();
        offers_due(&config.gateway.name, &config.offers(), &published)
    }))
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

/// Why no other gateway would let this one in with what it shows once the bundle counts, if that is so.
fn why_it_shuts_out(bundle: &SignedBundle, leaves: &Leaves) -> Option<String> {
    let bundle = bundle.open_unchecked().ok()?;
    let trust = TrustStore::new(bundle.federation.clone(), [bundle]).ok()?;
    trust.refuses(&leaves.peer.shown.load(), now_s())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use certs::{IssuedLeaf, LeafIdentity, StateCa, TrustBundle};

    use super::*;
    use crate::authority::replace;
    use crate::config::Keys;
    use crate::listener::tests::tls::id;
    use crate::proposer::Serials;
    use crate::proposer::tests::{Alone, bundle, root};
    use crate::reader::hanging::Hanging;
    use crate::samples;

    fn name(text: &str) -> GatewayName {
        GatewayName::parse(text).expect("a name")
    }

    fn offer(pool: &str, sequence: u64, nodes: u32) -> Offer {
        Offer { sequence, nodes, ..samples::offer(&format!("FR/jean-zay/{pool}")) }
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

    /// A publisher whose gateway shows a certificate that the next bundle takes back; both files have another already.
    struct Renewed {
        publisher: Publisher,
        alone: Alone,
        files: Keys,
        bundle: Command,
        next: IssuedLeaf,
        _folder: tempfile::TempDir,
    }

    impl Renewed {
        async fn new() -> Renewed {
            let folder = tempfile::tempdir().expect("a folder");
            let first = bundle(1);
            let (me, federation) = (id("FR/fr-1"), first.federation.clone());
            let [old, new] =
                [(); 2].map(|()| StateCa::create(me.state, &federation, now_s(), 1).expect("an authority"));
            let [shown, next] = [&old, &new].map(|ca| ca.issue_gateway(&me, now_s(), 1).expect("a certificate"));
            let ca_certs_der = vec![new.cert_der().expect("a certificate")];
            let bundle = TrustBundle { sequence: 2, previous: Some(first.digest()), ca_certs_der, ..first };
            let path = folder.path().join("gateway.toml");
            std::fs::write(&path, samples::CONFIG).expect("a file");
            let config = Config::read(&path).expect("a configuration");
            let files = config.keys.clone();
            put(&files.peer_cert, &files.peer_key, &shown);
            put(&files.public_cert, &files.public_key, &shown);
            let leaves = Arc::new(Leaves::read(&files).expect("leaves"));
            let serials = Serials::open(folder.path(), 1).expect("serials");
            let alone = Alone::start(folder.path(), 1, serials).await;
            let (consensus, proposer) = (alone.consensus.clone(), alone.proposer.clone());
            let publisher = Publisher { config: Arc::new(config), consensus, proposer, leaves };
            let bundle = Command::PublishBundle(bundle.sign(&root()));
            Renewed { publisher, alone, files, bundle, next, _folder: folder }
        }

        fn renew_peer(&self) {
            put(&self.files.peer_cert, &self.files.peer_key, &self.next);
        }

        /// Whether the bundle is published, and the certificate that it takes back not shown any more.
        async fn publish(&self) -> (bool, bool) {
            assert_eq!(self.publisher.publish(self.bundle.clone()).await, None, "not rejected");
            let published = self.alone.consensus.read(|it| it.members().all(|member| member.bundle.sequence == 2));
            let next = LeafIdentity::from_pem(&self.next.cert_pem, &self.next.key_pem).expect("a leaf");
            (published, *self.publisher.leaves.peer.shown.load() == next)
        }
    }

    fn put(cert: &Path, key: &Path, leaf: &IssuedLeaf) {
        replace(key, leaf.key_pem.as_bytes(), 0o600).expect("a file");
        replace(cert, leaf.cert_pem.as_bytes(), 0o644).expect("a file");
    }

    #[tokio::test]
    async fn a_bundle_waits_for_the_certificate_that_replaces_what_it_takes_back() {
        let renewed = Renewed::new().await;
        let leaf = Arc::clone(&renewed.publisher.leaves.peer);
        tokio::spawn(async move { leaf.renew().await });
        let hanging = Hanging::at(renewed.files.peer_cert.clone()).await;
        assert_eq!(renewed.publish().await, (false, false), "every peer would refuse this gateway");
        drop(hanging);
        renewed.renew_peer();
        assert_eq!(renewed.publish().await, (true, true));
        renewed.alone.stop().await;
    }

    #[tokio::test]
    async fn a_public_certificate_that_hangs_keeps_no_peer_certificate_from_being_shown() {
        let renewed = Renewed::new().await;
        let leaf = Arc::clone(&renewed.publisher.leaves.public);
        tokio::spawn(async move { leaf.renew().await });
        let hanging = Hanging::at(renewed.files.public_cert.clone()).await;
        renewed.renew_peer();
        assert_eq!(renewed.publish().await, (true, true));
        drop(hanging);
        renewed.alone.stop().await;
    }
}
