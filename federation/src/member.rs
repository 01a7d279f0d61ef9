//! Members: the states of the federation, what each says about itself, and its gateways.
//! Invariant: every bundle was signed by the root of its state, and continues the one before.

use std::sync::Arc;

use certs::{FederationId, GatewayId, MemberState, SignedBundle, TrustBundle, TrustStore};
use serde::{Deserialize, Serialize};

use crate::{
    command::{Outcome, Rejection},
    limits,
    reason::Reason,
    registry::Registry,
    time::Revision,
};

/// A gateway and where it is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayRecord {
    pub id: GatewayId,
    /// Raft's number for it; never reused.
    pub node_id: u64,
    /// `host:port` for other gateways.
    pub peer_address: String,
    /// `https://host:port` for people and their tools.
    pub api_url: String,
}

/// A state of the federation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Member {
    pub state: MemberState,
    /// The bundle in force, as its root signed it.
    pub signed: SignedBundle,
    pub bundle: TrustBundle,
    pub bundle_at: Revision,
    pub gateways: Vec<GatewayRecord>,
}

/// Takes over a state's next bundle: new keys count from the next command on.
pub(crate) fn publish_bundle(
    registry: &mut Registry,
    author: MemberState,
    signed: SignedBundle,
) -> Result<Outcome, Rejection> {
    let refused = |error: &dyn std::fmt::Display| Rejection::BadBundle { reason: Reason::new(&error.to_string()) };
    let member = registry.members.get(&author).ok_or(Rejection::NotOwner)?;
    if member.signed == signed {
        return Ok(Outcome::Duplicate);
    }
    let bytes = postcard::to_stdvec(&signed).expect("invariant: a bundle in memory always serialises").len();
    if bytes > limits::BUNDLE_BYTES_MAX {
        return Err(Rejection::TooLong { what: "bundle".into(), limit: limits::BUNDLE_BYTES_MAX as u64 });
    }
    let bundle = signed.verify_successor(&member.bundle).map_err(|error| refused(&error))?;
    if bundle.state != author || bundle.federation != registry.federation {
        return Err(Rejection::NotOwner);
    }
    let remembered = registry.serials.iter().filter(|(_, window)| window.owner == author).map(|(key, _)| *key);
    let named = bundle.gateways.iter().map(|gateway| gateway.key.id());
    let keys: std::collections::BTreeSet<_> = remembered.chain(named).collect();
    limits::count(keys.len(), limits::SIGNING_KEYS_PER_STATE_MAX)?;
    let others = registry.members.values().filter(|other| other.state != author).map(|other| &other.bundle);
    let trust = trust_in(&registry.federation, others.chain([&bundle])).map_err(|error| refused(&error))?;

    let revision = registry.revision;
    let member = registry.members.get_mut(&author).expect("invariant: the author was found above");
    (member.signed, member.bundle, member.bundle_at) = (signed, bundle, revision);
    registry.trust = trust;
    Ok(Outcome::Done)
}

/// The trust that these bundles make together.
pub(crate) fn trust_in<'a>(
    federation: &FederationId,
    bundles: impl Iterator<Item = &'a TrustBundle>,
) -> Result<Arc<TrustStore>, certs::BadTrust> {
    TrustStore::new(federation.clone(), bundles.cloned()).map(Arc::new)
}
