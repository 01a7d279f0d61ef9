//! Placement: which of the permitted pools a job should go to, best first. A value without effect.
//!
//! Rank: fits now before later; less device memory above what was asked, so that large devices stay free for those
//! who need them; less carbon; lower price; more free GPUs; pool id.
//! Invariant: every candidate comes with its own state's permit to host.

use std::{cmp::Reverse, fmt, str::FromStr};

use certs::MemberState;
use policy::Permit;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    candidate::Candidate,
    id::{BadId, FactoryId, PoolId},
    limits::CANDIDATES_MAX,
    offer::{Fit, OfferState},
    registry::Registry,
    shape::Shape,
};

/// Where a researcher wants a job to run: `FR`, or `FR/jean-zay`. Source: TES 1.1, `tesResources.zones`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Zone {
    State(MemberState),
    Factory(FactoryId),
}

impl Zone {
    pub fn parse(text: &str) -> Result<Zone, BadId> {
        match MemberState::parse(text) {
            Ok(state) => Ok(Zone::State(state)),
            Err(_) => FactoryId::parse(text).map(Zone::Factory),
        }
    }

    pub fn contains(&self, pool: &PoolId) -> bool {
        match self {
            Zone::State(state) => pool.state() == *state,
            Zone::Factory(factory) => pool.factory == *factory,
        }
    }
}

impl FromStr for Zone {
    type Err = BadId;
    fn from_str(text: &str) -> Result<Zone, BadId> {
        Zone::parse(text)
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Zone::State(state) => state.fmt(out),
            Zone::Factory(factory) => factory.fmt(out),
        }
    }
}

/// Ranked pools, at least one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// Best first; goes into [`crate::Submit`] as it is.
    pub candidates: Vec<Candidate>,
    /// How many of them, from the front, have room now, and a turn.
    pub fit_now: usize,
}

/// Why no pool is left: the last obstacle that at least one pool came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Error)]
pub enum NoPlacement {
    #[error("the federation has no member or factory {0}")]
    ZoneUnknown(String),
    #[error("nothing is offered there")]
    NothingOffered,
    #[error("no such device is offered there")]
    NoSuchDevice,
    #[error("the devices there have at most {max_gib} GiB of memory")]
    TooLittleMemory { max_gib: u32 },
    #[error("no pool there takes tasks without GPUs")]
    NoTaskSlots,
    #[error("the largest gang there has {largest_gang} GPUs")]
    TooLarge { largest_gang: u32 },
    #[error("jobs there run for at most {max_s} s")]
    WalltimeTooLong { max_s: u32 },
    #[error("every offer there ends before the job would")]
    EndsTooSoon,
    #[error("no pool that fits the job is permitted")]
    NothingPermitted,
}

/// Ranks the permitted pools that can run a shape, now or later.
///
/// `permits` holds for each permitted pool the permit of its own state; a permit of another state, or for
/// anything but hosting, does not count. No zones: anywhere. At most [`CANDIDATES_MAX`] are kept.
pub fn place(
    registry: &Registry,
    home: MemberState,
    shape: &Shape,
    permits: &[(Candidate, Permit)],
    zones: &[Zone],
) -> Result<Placement, NoPlacement> {
    let fits = fitting(registry, shape, zones)?;
    let hosts = |permit: &Permit, pool: &PoolId| permit.state == pool.state() && permit.action == policy::Action::Host;
    let permitted = |(offer, fit): (&OfferState, Fit)| {
        let pool = offer.offer.pool;
        let (candidate, _) = permits.iter().find(|(it, permit)| it.pool == pool && hosts(permit, &pool))?;
        let when = match fit {
            Fit::FitsNow if candidate.has_turn(offer, home) => When::Now,
            Fit::Silent => When::Unknown,
            _ => When::Later,
        };
        Some((rank(offer, when, shape), when, *candidate))
    };
    let mut ranked: Vec<_> = fits.into_iter().filter_map(permitted).collect();
    if ranked.is_empty() {
        return Err(NoPlacement::NothingPermitted);
    }
    ranked.sort_unstable_by_key(|(rank, ..)| *rank);
    ranked.truncate(CANDIDATES_MAX);
    Ok(Placement {
        fit_now: ranked.iter().filter(|(_, when, _)| *when == When::Now).count(),
        candidates: ranked.into_iter().map(|(.., candidate)| candidate).collect(),
    })
}

/// How a shape stands to every pool of the zones, for those who ask why.
pub fn verdicts(registry: &Registry, shape: &Shape, zones: &[Zone]) -> Vec<(PoolId, Fit)> {
    in_zones(registry, zones)
        .filter_map(|offer| Some((offer.offer.pool, registry.fit(&offer.offer.pool, shape)?)))
        .collect()
}

fn fitting<'a>(
    registry: &'a Registry,
    shape: &Shape,
    zones: &[Zone],
) -> Result<Vec<(&'a OfferState, Fit)>, NoPlacement> {
    if let Some(unknown) = zones.iter().find(|zone| !is_known(registry, zone)) {
        return Err(NoPlacement::ZoneUnknown(unknown.to_string()));
    }
    let (mut fits, mut nearest) = (Vec::new(), NoPlacement::NothingOffered);
    for offer in in_zones(registry, zones) {
        let Some(fit) = registry.fit(&offer.offer.pool, shape) else {
            continue;
        };
        if fit.fits() {
            fits.push((offer, fit));
        } else {
            nearest = nearer(nearest, obstacle(&fit));
        }
    }
    if fits.is_empty() { Err(nearest) } else { Ok(fits) }
}

fn in_zones<'a>(registry: &'a Registry, zones: &[Zone]) -> impl Iterator<Item = &'a OfferState> {
    let wanted = move |pool: &PoolId| zones.is_empty() || zones.iter().any(|zone| zone.contains(pool));
    registry.offers().filter(move |offer| wanted(&offer.offer.pool))
}

fn is_known(registry: &Registry, zone: &Zone) -> bool {
    match zone {
        Zone::State(state) => registry.member(*state).is_some(),
        Zone::Factory(factory) => registry.offers_of(factory.state).any(|offer| offer.offer.pool.factory == *factory),
    }
}

/// When a permitted pool could run a job.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum When {
    Now,
    /// When others have ended, of any state or of the job's own.
    Later,
    /// When its gateway is heard again.
    Unknown,
}

type Rank = (When, u32, u32, u32, Reverse<u32>, PoolId);

fn rank(offer: &OfferState, when: When, shape: &Shape) -> Rank {
    let terms = &offer.offer;
    let spare_memory_gib =
        if shape.gpus == 0 { 0 } else { terms.model.memory_gib.saturating_sub(shape.memory_gib_min) };
    let free = Reverse(offer.ledger.free_gpus());
    (when, spare_memory_gib, terms.carbon_g_per_kwh, terms.price_milli_eur_per_gpu_hour, free, terms.pool)
}

fn obstacle(fit: &Fit) -> NoPlacement {
    match *fit {
        Fit::FitsNow | Fit::FitsLater { .. } | Fit::Silent => NoPlacement::NothingPermitted,
        Fit::TooLarge { largest_gang } => NoPlacement::TooLarge { largest_gang },
        Fit::NoTaskSlots => NoPlacement::NoTaskSlots,
        Fit::WalltimeTooLong { max_s } => NoPlacement::WalltimeTooLong { max_s },
        Fit::EndsTooSoon { .. } => NoPlacement::EndsTooSoon,
        Fit::TooLittleMemory { memory_gib } => NoPlacement::TooLittleMemory { max_gib: memory_gib },
        Fit::WrongModel => NoPlacement::NoSuchDevice,
        Fit::Withdrawn => NoPlacement::NothingOffered,
    }
}

/// Of two obstacles the one that comes later in the order of checks; of two alike, the one that leaves more room.
fn nearer(a: NoPlacement, b: NoPlacement) -> NoPlacement {
    let step = |it: &NoPlacement| match *it {
        NoPlacement::ZoneUnknown(_) => (0, 0),
        NoPlacement::NothingOffered => (1, 0),
        NoPlacement::NoTaskSlots => (2, 0),
        NoPlacement::NoSuchDevice => (3, 0),
        NoPlacement::TooLittleMemory { max_gib } => (4, max_gib),
        NoPlacement::TooLarge { largest_gang } => (5, largest_gang),
        NoPlacement::WalltimeTooLong { max_s } => (6, max_s),
        NoPlacement::EndsTooSoon => (7, 0),
        NoPlacement::NothingPermitted => (8, 0),
    };
    if step(&b) > step(&a) { b } else { a }
}
