//! Policy packs: the rules that a state publishes about itself.
//! Invariant: a pack's sequence grows by one, and each names the digest of the one before.

use certs::{Digest, MemberState};
use policy::PackSource;
use serde::{Deserialize, Serialize};

use crate::{
    command::{Outcome, Rejection},
    limits,
    registry::Registry,
    time::Revision,
};

/// A new version of the signer's pack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishPack {
    /// 1 for the first.
    pub sequence: u64,
    /// [`digest`] of the version before; `None` for the first.
    pub previous: Option<Digest>,
    pub source: PackSource,
}

/// A pack as the registry holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackRecord {
    pub sequence: u64,
    pub digest: Digest,
    pub source: PackSource,
    pub at_revision: Revision,
}

/// The digest by which the next version names this one.
pub fn digest(source: &PackSource) -> Digest {
    Digest::of(&postcard::to_stdvec(source).expect("invariant: a pack in memory always serialises"))
}

pub(crate) fn publish(registry: &mut Registry, it: PublishPack) -> Result<Outcome, Rejection> {
    let state = it.source.state;
    let bytes = it.source.title.len() + it.source.contact.len() + it.source.cedar.len();
    if bytes > limits::PACK_BYTES_MAX {
        return Err(Rejection::TooLong { what: "pack".into(), limit: limits::PACK_BYTES_MAX as u64 });
    }
    limits::text("title", &it.source.title, limits::REASON_BYTES_MAX)?;
    limits::text("contact", &it.source.contact, limits::REASON_BYTES_MAX)?;
    let digest = digest(&it.source);
    let current = registry.packs.get(&state);
    let (sequence, previous) = current.map_or((0, None), |pack| (pack.sequence, Some(pack.digest)));
    if current.is_some_and(|pack| pack.sequence == it.sequence && pack.digest == digest) {
        return Ok(Outcome::Duplicate);
    }
    if it.sequence != sequence + 1 {
        return Err(Rejection::StaleSequence { current: sequence });
    }
    if it.previous != previous {
        return Err(Rejection::WrongPrevious);
    }

    let record = PackRecord { sequence: it.sequence, digest, source: it.source, at_revision: registry.revision };
    registry.packs.insert(state, record);
    registry.terms_moved_at = registry.revision;
    Ok(Outcome::Done)
}

/// The sequence that decisions about `state` must have been made on; 0 before its first pack.
pub(crate) fn sequence(registry: &Registry, state: MemberState) -> u64 {
    registry.packs.get(&state).map_or(0, |pack| pack.sequence)
}

/// Refuses decisions that were made on packs other than the current ones.
pub(crate) fn check_current(registry: &Registry, decided_on: &[(MemberState, u64)]) -> Result<(), Rejection> {
    limits::count(decided_on.len(), limits::MEMBERS_MAX)?;
    for (state, decided) in decided_on {
        let current = sequence(registry, *state);
        if *decided != current {
            return Err(Rejection::StalePolicy { state: *state, current });
        }
    }
    Ok(())
}
