//! Offers: what a factory lends the federation, and what its gateway reports of it.
//! Invariant: an offer never shrinks below what is granted from it.

use certs::{GatewayId, GatewayName, MemberState};
use serde::{Deserialize, Serialize};

use crate::{
    command::{Outcome, Rejection},
    grant::Ledger,
    id::PoolId,
    limits::{self, at_most, count, text},
    queue,
    reason::Reason,
    registry::Registry,
    shape::{Need, Shape},
    silence,
    time::{Revision, Timestamp},
    usage::RecentUse,
};

/// A device as it is sold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceModel {
    /// E.g. `H100 SXM5 80GB`.
    pub name: String,
    pub vendor: String,
    /// Memory of one GPU, in GiB.
    pub memory_gib: u32,
    /// "GPUs" that the local scheduler counts per device: an MI250X counts two.
    pub scheduler_units: u32,
    /// Profile when a GPU of this pool is a slice of a device, e.g. `1g.10gb`.
    pub partition: Option<String>,
}

impl DeviceModel {
    /// Whether this is the device that somebody means by `asked`: its words, in any case and with any
    /// punctuation, stand side by side in vendor and name. `h100` and `nvidia-h100` mean an NVIDIA `H100 SXM5`; `h10` doesn't.
    pub fn answers_to(&self, asked: &str) -> bool {
        let words =
            |text| str::split(text, |c: char| !c.is_ascii_alphanumeric()).filter(|word: &&str| !word.is_empty());
        let known = || words(&self.vendor).chain(words(&self.name));
        let length = words(asked).count();
        (0..(known().count() + 1).saturating_sub(length))
            .any(|start| known().skip(start).zip(words(asked)).all(|(known, asked)| known.eq_ignore_ascii_case(asked)))
    }
}

/// What a factory lends. Published again, with a higher sequence, when its terms change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    pub pool: PoolId,
    /// The gateway that talks to the pool's scheduler.
    pub served_by: GatewayName,
    pub sequence: u64,
    pub model: DeviceModel,
    pub nodes: u32,
    /// GPUs per node, as the device is sold (not as Slurm counts it). Source: the factory's configuration.
    pub gpus_per_node: u32,
    /// Tasks without GPUs that may run side by side.
    pub task_slots: u32,
    pub walltime_max_s: u32,
    pub certifications: Vec<String>,
    pub carbon_g_per_kwh: u32,
    pub price_milli_eur_per_gpu_hour: u32,
    pub city: String,
    /// Jobs must be able to end before this.
    pub until: Option<Timestamp>,
    /// A job here that must not run twice stops by itself when its gateway has not been heard for the lease.
    pub keeps_leases: bool,
}

impl Offer {
    /// GPUs of the whole pool, as the device is sold.
    pub fn gpus(&self) -> u32 {
        self.nodes * self.gpus_per_node
    }

    fn check(&self) -> Result<(), Rejection> {
        at_most("nodes", self.nodes, limits::NODES_PER_POOL_MAX)?;
        at_most("gpus_per_node", self.gpus_per_node, limits::GPUS_PER_NODE_MAX)?;
        at_most("task_slots", self.task_slots, limits::TASK_SLOTS_MAX)?;
        at_most("walltime_max_s", self.walltime_max_s, limits::WALLTIME_S_MAX)?;
        at_most("memory_gib", self.model.memory_gib, limits::MEMORY_GIB_MAX)?;
        at_most("scheduler_units", self.model.scheduler_units, limits::GPUS_PER_NODE_MAX)?;
        at_most("carbon_g_per_kwh", self.carbon_g_per_kwh, limits::CARBON_G_PER_KWH_MAX)?;
        at_most("price_milli_eur_per_gpu_hour", self.price_milli_eur_per_gpu_hour, limits::PRICE_MILLI_EUR_MAX)?;
        text("model.name", &self.model.name, limits::MODEL_BYTES_MAX)?;
        text("model.vendor", &self.model.vendor, limits::MODEL_BYTES_MAX)?;
        text("model.partition", self.model.partition.as_deref().unwrap_or_default(), limits::MODEL_BYTES_MAX)?;
        text("city", &self.city, limits::CITY_BYTES_MAX)?;
        count(self.certifications.len(), limits::CERTIFICATIONS_MAX)?;
        self.certifications.iter().try_for_each(|it| text("certification", it, limits::CERTIFICATION_BYTES_MAX))
    }

    /// Whether jobs that suited `self` may not suit `other`, or the other way round.
    fn terms_differ(&self, other: &Offer) -> bool {
        let terms = |it: &Offer| (it.nodes, it.gpus_per_node, it.task_slots.min(1), it.walltime_max_s, it.until);
        terms(self) != terms(other) || self.model != other.model
    }
}

/// Nodes that lend the same number of GPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeCount {
    pub gpus: u32,
    pub nodes: u32,
}

/// What local users leave to the federation at one moment. The federation's own jobs are not subtracted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapacityReport {
    pub pool: PoolId,
    /// Nodes by lendable GPUs; nodes that are not mentioned lend nothing.
    pub lendable: Vec<NodeCount>,
    pub at: Timestamp,
    /// Why the pool lends less than it should, in one line.
    pub problem: Option<Reason>,
}

/// An offer with everything that the registry knows of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfferState {
    pub offer: Offer,
    pub published_at: Revision,
    /// Takes no more jobs, and is forgotten when the last one ends.
    pub withdrawn: bool,
    /// The newest report; `None` until the first, while everything is taken to be lendable.
    pub report: Option<CapacityReport>,
    pub reported_at: Revision,
    /// The pool's own time, as its newest report states it. Only the host can move it; a wrong time lasts until the
    /// next report.
    pub clock: Timestamp,
    pub recent: RecentUse,
    /// A majority of states has not heard of its gateway: nothing is granted. Follows from what was attested.
    #[serde(skip)]
    pub quiet: bool,
    pub ledger: Ledger,
}

/// How a shape stands to a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "fit")]
pub enum Fit {
    FitsNow,
    /// `free` GPUs are free now, too few or too scattered; or others are before.
    FitsLater {
        free: u32,
    },
    /// Its host is not heard: nothing is granted until it is.
    Silent,
    /// The pool's largest gang has `largest_gang` GPUs.
    TooLarge {
        largest_gang: u32,
    },
    NoTaskSlots,
    WalltimeTooLong {
        max_s: u32,
    },
    EndsTooSoon {
        until: Timestamp,
    },
    TooLittleMemory {
        memory_gib: u32,
    },
    WrongModel,
    Withdrawn,
}

impl Fit {
    /// Now or later.
    pub fn fits(&self) -> bool {
        matches!(self, Fit::FitsNow | Fit::FitsLater { .. } | Fit::Silent)
    }
}

impl OfferState {
    /// Compares a shape with the pool, its grants and its local users; says nothing of who else waits.
    pub fn fits(&self, shape: &Shape) -> Fit {
        let ends = self.clock.plus_s(shape.walltime_s.into());
        if let Some(never) = self.misfit(shape) {
            never
        } else if let Some(until) = self.offer.until.filter(|until| ends > *until) {
            Fit::EndsTooSoon { until }
        } else if self.quiet {
            Fit::Silent
        } else if self.has_room(shape.need()) {
            Fit::FitsNow
        } else {
            Fit::FitsLater { free: self.ledger.free_gpus() }
        }
    }

    /// Why the shape never fits the offer as it stands. No clock in it: it decides where `apply` lets a job wait,
    /// and a job that would outlast the offer is declined by the host.
    pub(crate) fn misfit(&self, shape: &Shape) -> Option<Fit> {
        let offer = &self.offer;
        Some(if self.withdrawn {
            Fit::Withdrawn
        } else if shape.gpus == 0 && offer.task_slots == 0 {
            Fit::NoTaskSlots
        } else if shape.gpus > 0 && shape.model.as_deref().is_some_and(|asked| !offer.model.answers_to(asked)) {
            Fit::WrongModel
        } else if shape.gpus > 0 && shape.memory_gib_min > offer.model.memory_gib {
            Fit::TooLittleMemory { memory_gib: offer.model.memory_gib }
        } else if !self.is_large_enough(shape.need()) {
            Fit::TooLarge { largest_gang: offer.gpus() }
        } else if shape.walltime_s > offer.walltime_max_s {
            Fit::WalltimeTooLong { max_s: offer.walltime_max_s }
        } else {
            return None;
        })
    }

    /// GPUs that jobs of `home` hold here, in percent of the pool.
    pub fn share_percent(&self, home: MemberState) -> u32 {
        self.percent(self.ledger.held_by(home))
    }

    /// GPUs in percent of the pool; rounded up, so that a share rule is never undercut.
    pub(crate) fn percent(&self, gpus: u32) -> u32 {
        let (gpus, all) = (u64::from(gpus), u64::from(self.offer.gpus()));
        if all == 0 { 0 } else { (gpus * 100).div_ceil(all) as u32 }
    }

    /// Most GPUs on one node that a job could have now.
    pub fn largest_free_on_a_node(&self) -> u32 {
        self.ledger
            .nodes_by_free()
            .enumerate()
            .filter(|(_, nodes)| *nodes > 0)
            .map(|(gpus, _)| gpus as u32)
            .max()
            .unwrap_or(0)
    }

    pub(crate) fn has_room(&self, need: Need) -> bool {
        !self.withdrawn && !self.quiet && self.ledger.fits(need, self.offer.task_slots)
    }

    /// Whether there would be room if every grant ended, and the local users and the host's silence stayed as they are.
    pub(crate) fn could_have_room(&self, need: Need) -> bool {
        !self.quiet && self.ledger.could_fit(need, self.offer.task_slots)
    }

    /// GPU-seconds of recent use that count against `home` when turns are decided.
    pub(crate) fn weight(&self, home: MemberState) -> u64 {
        let held = u64::from(self.ledger.held_by(home)) * limits::HELD_WEIGHT_S;
        self.recent.of(home).saturating_add(held)
    }

    fn is_large_enough(&self, need: Need) -> bool {
        let (count, gpus, rest) = need.split(self.offer.gpus_per_node);
        need.gpus == 0 || (gpus <= self.offer.gpus_per_node && count + u32::from(rest > 0) <= self.offer.nodes)
    }
}

pub(crate) fn publish(registry: &mut Registry, it: Offer) -> Result<Outcome, Rejection> {
    it.check()?;
    let pool = it.pool;
    let member = registry.members.get(&pool.state()).ok_or(Rejection::NotOwner)?;
    if !member.gateways.iter().any(|gateway| gateway.id.name == it.served_by) {
        return Err(Rejection::UnknownGateway);
    }
    let others = || registry.offers_of(pool.state()).filter(|other| other.offer.pool != pool);
    count(others().count() + 1, limits::OFFERS_PER_STATE_MAX)?;
    let nodes = others().map(|other| other.offer.nodes).sum::<u32>() + it.nodes;
    at_most("nodes of all offers", nodes, limits::NODES_PER_STATE_MAX)?;
    let gpus = others().map(|other| other.offer.gpus()).sum::<u32>() + it.gpus();
    at_most("GPUs of all offers", gpus, limits::GPUS_PER_STATE_MAX)?;

    let revision = registry.revision;
    match registry.offers.get_mut(&pool) {
        Some(known) if known.offer == it && !known.withdrawn => return Ok(Outcome::Duplicate),
        Some(known) if it.sequence <= known.offer.sequence => {
            return Err(Rejection::StaleSequence { current: known.offer.sequence });
        }
        Some(known) => {
            let geometry = |offer: &Offer| (offer.nodes, offer.gpus_per_node);
            if geometry(&known.offer) != geometry(&it) {
                if !known.ledger.resize(it.nodes, it.gpus_per_node) {
                    return Err(Rejection::GrantsOutstanding { gpus: known.ledger.used_gpus() });
                }
                known.report = None;
            }
            let moved = known.withdrawn || known.offer.terms_differ(&it);
            (known.offer, known.withdrawn, known.published_at) = (it, false, revision);
            if moved {
                registry.terms_moved_at = revision;
            }
        }
        None => {
            registry.terms_moved_at = revision;
            registry.offers.insert(pool, OfferState::new(it, revision));
        }
    }
    let served_by = GatewayId { state: pool.state(), name: registry.offers[&pool].offer.served_by.clone() };
    let quiet = registry.is_quiet(&served_by);
    registry.offers.get_mut(&pool).expect("invariant: it was published above").quiet = quiet;
    queue::regroup(registry, pool);
    queue::serve(registry, pool);
    Ok(Outcome::Done)
}

impl OfferState {
    fn new(offer: Offer, revision: Revision) -> OfferState {
        OfferState {
            ledger: Ledger::new(offer.nodes, offer.gpus_per_node),
            offer,
            published_at: revision,
            withdrawn: false,
            report: None,
            reported_at: revision,
            clock: Timestamp::default(),
            recent: RecentUse::default(),
            quiet: false,
        }
    }
}

pub(crate) fn withdraw(registry: &mut Registry, pool: PoolId, sequence: u64) -> Result<Outcome, Rejection> {
    let known = registry.offers.get_mut(&pool).ok_or(Rejection::UnknownPool { pool })?;
    if known.withdrawn && known.offer.sequence == sequence {
        return Ok(Outcome::Duplicate);
    }
    if sequence <= known.offer.sequence {
        return Err(Rejection::StaleSequence { current: known.offer.sequence });
    }
    (known.withdrawn, known.offer.sequence) = (true, sequence);
    registry.terms_moved_at = registry.revision;
    queue::regroup(registry, pool);
    forget_if_drained(registry, pool);
    Ok(Outcome::Done)
}

/// Forgets a withdrawn offer when nothing runs on it any more.
pub(crate) fn forget_if_drained(registry: &mut Registry, pool: PoolId) {
    if registry.offers.get(&pool).is_some_and(|offer| offer.withdrawn && offer.ledger.holders.is_empty()) {
        registry.offers.remove(&pool);
    }
}

/// Takes over a report. The newest is the one that the log has last, not the one that says the latest time: a clock
/// that was once wrong must not outlast its correction.
/// Only the gateway that serves a pool may: whoever reports is heard by the others, and jobs that must not run twice go on
/// for that long.
pub(crate) fn report(registry: &mut Registry, author: &GatewayId, it: CapacityReport) -> Result<Outcome, Rejection> {
    let pool = it.pool;
    let known = registry.offers.get_mut(&pool).ok_or(Rejection::UnknownPool { pool })?;
    if known.offer.served_by != author.name {
        return Err(Rejection::NotServing);
    }
    count(it.lendable.len(), limits::GPUS_PER_NODE_MAX as usize + 1)?;
    let nodes: u64 = it.lendable.iter().map(|count| u64::from(count.nodes)).sum();
    if nodes > u64::from(known.offer.nodes) {
        return Err(Rejection::OutOfRange { what: "nodes".into(), limit: known.offer.nodes.into() });
    }
    for count in &it.lendable {
        at_most("lendable GPUs of a node", count.gpus, known.offer.gpus_per_node)?;
    }

    known.recent.decay(known.clock, it.at);
    (known.clock, known.reported_at) = (it.at, registry.revision);
    let as_before = known.report.as_ref().is_some_and(|before| before.lendable == it.lendable);
    if !as_before {
        let mut lendable: Vec<u16> =
            it.lendable.iter().flat_map(|count| std::iter::repeat_n(count.gpus as u16, count.nodes as usize)).collect();
        lendable.resize(known.offer.nodes as usize, 0);
        lendable.sort_unstable_by(|a, b| b.cmp(a));
        if known.ledger.lent() != lendable {
            known.ledger.lend(&lendable);
        }
    }
    known.report = Some(it);
    silence::was_heard(registry, pool);
    queue::serve(registry, pool);
    Ok(Outcome::Done)
}
