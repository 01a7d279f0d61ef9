//! Acquaintance: whether a gateway with an empty log is new, or has lost its log.
//!
//! With its log a gateway loses its votes. If it came back as if nothing had been, it could vote a second time in an old
//! term, two leaders could be elected, and what was acknowledged could be lost. It cannot know; the others can.
//!
//! The holes that remain: a gateway that reaches nobody who remembers it; and a member that says it remembers one that is
//! new keeps it from starting, until the others are asked by hand.

use std::sync::Arc;
use std::time::Duration;

use certs::GatewayId;
use futures_util::future::join_all;

use super::transport::{NodeId, Rpc, Transport};
use super::wire::{self, WireAcquainted, WireQuestion};
use crate::registry::Registry;

/// Whoever is there answers within a round trip. At the founding nobody is, and each gateway waits as long as this once.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(1);

/// The revision of a member that has met this gateway before; the highest if there are several.
pub async fn whoever_has_met_us(
    transport: &Arc<dyn Transport>,
    others: impl Iterator<Item = &NodeId>,
) -> WireAcquainted {
    let question = wire::encode(&WireQuestion::Acquainted);
    let asked = others.map(|node| transport.call(*node, Rpc::ReadIndex, question.clone(), QUESTION_TIMEOUT));
    let answers = join_all(asked).await.into_iter().flatten();
    answers.filter_map(|answer| wire::decode::<WireAcquainted>(&answer).ok()?).max()
}

/// Whether the registry has carried out an envelope that this gateway signed.
pub fn has_signed(registry: &Registry, gateway: &GatewayId) -> bool {
    let Some(member) = registry.member(gateway.state) else {
        return false;
    };
    let keys = member.bundle.gateways.iter().filter(|key| key.name == gateway.name).map(|key| key.key.id());
    // A key that was replaced is nobody's by name, but if the state has one gateway it was that one's.
    let alone = member.gateways.len() == 1;
    keys.into_iter().any(|key| registry.last_serial(&key).is_some())
        || (alone && registry.serials.values().any(|window| window.owner == gateway.state))
}
