//! Silence: what becomes of a host that nobody hears any more.
//!
//! A gateway is heard in the registry by its capacity reports, and directly when it answers. Each state attests whom
//! it has heard neither way: first for the short clock, then for the long one. A report of that gateway takes it all back.
//! Invariants: only a majority of states, the silent one's own not counted, makes a gateway silent, so one that is itself
//! cut off silences nobody; an attestation counts only if nothing was heard since what its author heard last; a silent
//! gateway is granted nothing; of what it has started only what may be run again is run again.

use std::collections::{BTreeMap, BTreeSet};

use certs::{GatewayId, MemberState};
use serde::{Deserialize, Serialize};

use crate::{
    attempt,
    command::{Outcome, Rejection},
    id::{JobId, PoolId},
    job::JobState,
    queue,
    registry::Registry,
    time::Revision,
};

/// One state has not heard of a gateway for one of the clocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attest {
    pub about: GatewayId,
    /// The newest report of that gateway that the author has seen; 0 if none.
    pub heard_at: Revision,
    /// For the long clock, not only the short one.
    pub gone: bool,
}

/// Who has attested what of one gateway since it was heard last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Silence {
    /// For the short clock.
    pub quiet: BTreeSet<MemberState>,
    /// For the long clock; each of them is in `quiet` too.
    pub gone: BTreeSet<MemberState>,
}

impl Registry {
    /// Revision of the newest capacity report of a gateway; 0 if it reports of nothing.
    pub fn heard_at(&self, gateway: &GatewayId) -> Revision {
        let served = self.offers_of(gateway.state).filter(|offer| offer.offer.served_by == gateway.name);
        served.map(|offer| offer.reported_at).max().unwrap_or_default()
    }

    /// Whether a majority has not heard of the gateway for the short clock: it is granted nothing.
    pub fn is_quiet(&self, gateway: &GatewayId) -> bool {
        self.silences.get(gateway).is_some_and(|silence| self.is_majority(&silence.quiet))
    }

    /// Whether a majority has not heard of the gateway for the long clock: what may be run again is run elsewhere.
    pub fn is_gone(&self, gateway: &GatewayId) -> bool {
        self.silences.get(gateway).is_some_and(|silence| self.is_majority(&silence.gone))
    }

    /// What was attested of gateways that have not been heard since.
    pub fn silences(&self) -> impl ExactSizeIterator<Item = (&GatewayId, &Silence)> {
        self.silences.iter()
    }

    /// Whether members of the federation, and not its own state, can have attested this of the gateway.
    pub(crate) fn could_be(&self, gateway: &GatewayId, silence: &Silence) -> bool {
        let may = |state: &MemberState| self.members.contains_key(state) && *state != gateway.state;
        self.gateway(gateway).is_some() && silence.gone.is_subset(&silence.quiet) && silence.quiet.iter().all(may)
    }

    fn is_majority(&self, states: &BTreeSet<MemberState>) -> bool {
        states.len() > self.members.len() / 2
    }
}

pub(crate) fn attest(registry: &mut Registry, author: MemberState, it: Attest) -> Result<Outcome, Rejection> {
    registry.gateway(&it.about).ok_or(Rejection::UnknownGateway)?;
    if it.about.state == author {
        return Err(Rejection::NotOwner);
    }
    let heard_at = registry.heard_at(&it.about);
    if heard_at != it.heard_at {
        return Err(Rejection::HeardSince { at: heard_at });
    }
    let silence = registry.silences.entry(it.about.clone()).or_default();
    let news = silence.quiet.insert(author) | (it.gone && silence.gone.insert(author));
    if !news {
        return Ok(Outcome::Duplicate);
    }
    if registry.is_quiet(&it.about) {
        hush(registry, &it.about);
    }
    if registry.is_gone(&it.about) {
        supersede(registry, &it.about);
    }
    Ok(Outcome::Done)
}

/// A report has come: its gateway is as good as any again.
pub(crate) fn was_heard(registry: &mut Registry, pool: PoolId) {
    let Some(offer) = registry.offers.get(&pool) else {
        return;
    };
    let gateway = GatewayId { state: pool.state(), name: offer.offer.served_by.clone() };
    if registry.silences.remove(&gateway).is_none() {
        return;
    }
    for pool in pools_of(registry, &gateway) {
        registry.offers.get_mut(&pool).expect("invariant: it was found above").quiet = false;
        queue::serve(registry, pool);
    }
}

/// Nothing more is granted to the gateway, and what it has been granted and not started goes elsewhere: without a
/// `Start` of its own it runs nothing, and the attempt that it would start is not the current one any more.
fn hush(registry: &mut Registry, gateway: &GatewayId) {
    for pool in pools_of(registry, gateway) {
        registry.offers.get_mut(&pool).expect("invariant: it was found above").quiet = true;
    }
    for id in held_by(registry, gateway) {
        let job = &registry.jobs[&id];
        if job.state == JobState::Granted && !job.cancel_requested {
            attempt::lose(registry, id, "its host fell silent before it began");
        }
    }
}

/// What the gateway has started, and may be run again, is run again. It kills its own attempts when it comes back; those
/// that must not run twice have stopped themselves by now, because their lease was shorter.
fn supersede(registry: &mut Registry, gateway: &GatewayId) {
    for id in held_by(registry, gateway) {
        let job = &registry.jobs[&id];
        let alone = !job.exclusive || job.holding().is_some_and(|attempt| attempt.leased);
        if job.restartable && alone && !job.cancel_requested {
            attempt::lose(registry, id, "its host fell silent");
        }
    }
}

fn held_by(registry: &Registry, gateway: &GatewayId) -> Vec<JobId> {
    registry.held_by_gateway(gateway).map(|job| job.id).collect()
}

fn pools_of(registry: &Registry, gateway: &GatewayId) -> Vec<PoolId> {
    let served = registry.offers_of(gateway.state).filter(|offer| offer.offer.served_by == gateway.name);
    served.map(|offer| offer.offer.pool).collect()
}

/// How long a host may be silent before what follows. Agreed in the genesis, because a job that must not run twice relies
/// on the others to wait longer than its own host does. Milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Clocks {
    /// After this a silent host is granted nothing.
    pub quiet_ms: u64,
    /// After this without a report of its own that was committed, a host has stopped what must not run twice.
    pub lease_ms: u64,
    /// After this what may be run again is run elsewhere.
    pub gone_ms: u64,
}

impl Clocks {
    /// Between states: a lost link of some seconds moves nothing, a lost gateway costs minutes.
    pub fn wan() -> Clocks {
        Clocks { quiet_ms: 10_000, lease_ms: 60_000, gone_ms: 180_000 }
    }

    /// On one machine, where who is silent for seconds is gone.
    pub fn local() -> Clocks {
        Clocks { quiet_ms: 3_000, lease_ms: 6_000, gone_ms: 15_000 }
    }

    /// Whether a host is heard between two reports, and has as long again as its lease to stop what must not run twice:
    /// clocks that differ by a tenth and a slow stop are far within that.
    pub fn are_sound(&self) -> bool {
        let heard = self.quiet_ms >= 2 * crate::limits::REPORT_EVERY_MS;
        let doubled = self.lease_ms.checked_mul(2);
        heard && self.quiet_ms <= self.lease_ms && doubled.is_some_and(|doubled| doubled <= self.gone_ms)
    }
}

impl Default for Clocks {
    fn default() -> Clocks {
        Clocks::wan()
    }
}

/// Whom one gateway has heard, and when, on its own clock, which only ever goes on.
#[derive(Clone, Debug)]
pub struct Watch {
    me: GatewayId,
    clocks: Clocks,
    heard: BTreeMap<GatewayId, Heard>,
    looked_ms: u64,
}

#[derive(Clone, Copy, Debug)]
struct Heard {
    revision: Revision,
    at_ms: u64,
    /// Nothing more has to be attested than this: 0 nothing, 1 quiet, 2 gone.
    attested: u8,
}

impl Watch {
    /// A watch that begins now: whatever was before, it has heard nothing of.
    pub fn new(me: GatewayId, clocks: Clocks, now_ms: u64) -> Watch {
        Watch { me, clocks, heard: BTreeMap::new(), looked_ms: now_ms }
    }

    /// Takes in what the registry says. Returns who has to be asked directly, because it has not been heard for half of the
    /// short clock. To be called several times within the short clock.
    pub fn look(&mut self, registry: &Registry, now_ms: u64) -> Vec<GatewayId> {
        // Who did not look does not know who was silent meanwhile.
        let slept = now_ms.saturating_sub(self.looked_ms) > self.clocks.quiet_ms / 2;
        self.looked_ms = now_ms;
        let others: Vec<GatewayId> =
            registry.gateways().map(|it| &it.id).filter(|it| **it != self.me).cloned().collect();
        self.heard.retain(|gateway, _| others.contains(gateway));
        for gateway in others {
            let revision = registry.heard_at(&gateway);
            let known = self.heard.entry(gateway).or_insert(Heard { revision, at_ms: now_ms, attested: 0 });
            if slept || known.revision != revision {
                *known = Heard { revision, at_ms: now_ms, attested: 0 };
            }
        }
        let is_due = |heard: &Heard| now_ms.saturating_sub(heard.at_ms) >= self.clocks.quiet_ms / 2;
        self.heard.iter().filter(|(_, heard)| is_due(heard)).map(|(gateway, _)| gateway.clone()).collect()
    }

    /// A gateway has answered.
    pub fn has_answered(&mut self, gateway: &GatewayId, now_ms: u64) {
        if let Some(heard) = self.heard.get_mut(gateway) {
            heard.at_ms = now_ms;
        }
    }

    /// What this gateway's state has to attest, of other states.
    pub fn attestations(&self, now_ms: u64) -> Vec<Attest> {
        let silent_ms = |heard: &Heard| now_ms.saturating_sub(heard.at_ms);
        let others = || self.heard.iter().filter(|(gateway, _)| gateway.state != self.me.state);
        let is_silent = |heard: &Heard| silent_ms(heard) >= self.clocks.quiet_ms;
        // If most states are silent, it is this gateway that nobody hears. Not most gateways: one state may have them.
        let states: BTreeSet<MemberState> = others().map(|(gateway, _)| gateway.state).collect();
        let heard: BTreeSet<MemberState> =
            others().filter(|(_, heard)| !is_silent(heard)).map(|(gateway, _)| gateway.state).collect();
        if 2 * heard.len() < states.len() {
            return vec![];
        }
        let level = |heard: &Heard| if silent_ms(heard) >= self.clocks.gone_ms { 2 } else { 1 };
        others()
            .filter(|(_, heard)| is_silent(heard) && level(heard) > heard.attested)
            .map(|(gateway, heard)| Attest {
                about: gateway.clone(),
                heard_at: heard.revision,
                gone: level(heard) == 2,
            })
            .collect()
    }

    /// An attestation was committed, and need not be made again.
    pub fn has_attested(&mut self, it: &Attest) {
        if let Some(heard) = self.heard.get_mut(&it.about).filter(|heard| heard.revision == it.heard_at) {
            heard.attested = if it.gone { 2 } else { 1 };
        }
    }
}
