//! The registry: everything that the members agree on, and how it is read and stored.
//! Invariant: a registry is what its genesis and its log make of it, byte for byte, on every replica.

use std::{collections::BTreeMap, sync::Arc};

use certs::{Digest, FederationId, GatewayId, KeyId, MemberState, TrustStore};
use thiserror::Error;

use crate::{
    attempt::Attempt,
    derived::Derived,
    genesis::Genesis,
    id::{JobId, PoolId},
    job::{Job, JobState},
    limits,
    member::{self, GatewayRecord, Member},
    offer::{Fit, OfferState},
    pack::PackRecord,
    queue,
    serial::SerialWindow,
    shape::Shape,
    silence::Silence,
    time::Revision,
    usage::Flow,
};

/// First byte of a snapshot.
const FORMAT: u8 = 1;

/// The replicated state. Changed by [`Registry::apply`] only; cheap enough to clone for a snapshot.
#[derive(Clone, Debug)]
pub struct Registry {
    pub(crate) federation: FederationId,
    pub(crate) epoch: u64,
    pub(crate) revision: Revision,
    pub(crate) members: BTreeMap<MemberState, Member>,
    pub(crate) packs: BTreeMap<MemberState, PackRecord>,
    pub(crate) offers: BTreeMap<PoolId, OfferState>,
    pub(crate) jobs: BTreeMap<JobId, Arc<Job>>,
    pub(crate) serials: BTreeMap<KeyId, SerialWindow>,
    /// By home and host.
    pub(crate) usage: BTreeMap<(MemberState, MemberState), Flow>,
    /// Gateways that some state has not heard for a while.
    pub(crate) silences: BTreeMap<GatewayId, Silence>,
    /// When a pack or the terms of an offer last changed: jobs decided since are surely not stale.
    pub(crate) terms_moved_at: Revision,
    pub(crate) derived: Derived,
    pub(crate) trust: Arc<TrustStore>,
}

/// The stored form, after the format byte.
type Stored = (
    (FederationId, u64, Revision, Revision),
    BTreeMap<MemberState, Member>,
    BTreeMap<MemberState, PackRecord>,
    BTreeMap<PoolId, OfferState>,
    BTreeMap<JobId, Arc<Job>>,
    BTreeMap<KeyId, SerialWindow>,
    BTreeMap<(MemberState, MemberState), Flow>,
    BTreeMap<GatewayId, Silence>,
);

/// Why bytes are not a snapshot of a registry.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BadSnapshot {
    #[error("the snapshot has format {found}; this gateway reads {FORMAT}")]
    Format { found: u8 },
    #[error("the snapshot is cut short or corrupted")]
    Corrupt,
    #[error("the members' bundles do not make one trust: {0}")]
    Trust(String),
    #[error("the pool {0} has impossible nodes")]
    Pool(PoolId),
    #[error("the job {0} contradicts the other records")]
    Job(JobId),
    #[error("nobody can have attested what is attested of {0}")]
    Silence(String),
}

impl Registry {
    /// The registry before the first command. A [`Genesis`] exists only verified.
    pub fn from_genesis(genesis: &Genesis) -> Registry {
        let members = genesis.members().map(|member| (member.state, member)).collect();
        Registry {
            federation: genesis.federation().clone(),
            epoch: genesis.epoch(),
            revision: Revision(0),
            members,
            packs: BTreeMap::new(),
            offers: BTreeMap::new(),
            jobs: BTreeMap::new(),
            serials: BTreeMap::new(),
            usage: BTreeMap::new(),
            silences: BTreeMap::new(),
            terms_moved_at: Revision(0),
            derived: Derived::default(),
            trust: genesis.trust().clone(),
        }
    }

    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Notes a log entry that carries no command.
    pub fn advance(&mut self, revision: Revision) {
        let first = self.revision == Revision(0);
        assert!(first || revision > self.revision, "invariant: the log is applied in order, each entry once");
        self.revision = revision;
    }

    pub fn federation(&self) -> &FederationId {
        &self.federation
    }

    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// What the members' current bundles say together; another `Arc` exactly when one of them changed.
    pub fn trust(&self) -> &Arc<TrustStore> {
        &self.trust
    }

    pub fn members(&self) -> impl ExactSizeIterator<Item = &Member> {
        self.members.values()
    }

    pub fn member(&self, state: MemberState) -> Option<&Member> {
        self.members.get(&state)
    }

    /// Every gateway, by state.
    pub fn gateways(&self) -> impl Iterator<Item = &GatewayRecord> {
        self.members.values().flat_map(|member| &member.gateways)
    }

    pub fn gateway(&self, id: &GatewayId) -> Option<&GatewayRecord> {
        self.members.get(&id.state)?.gateways.iter().find(|gateway| gateway.id == *id)
    }

    pub fn gateway_by_node(&self, node_id: u64) -> Option<&GatewayRecord> {
        self.gateways().find(|gateway| gateway.node_id == node_id)
    }

    pub fn packs(&self) -> impl ExactSizeIterator<Item = (MemberState, &PackRecord)> {
        self.packs.iter().map(|(state, pack)| (*state, pack))
    }

    pub fn pack(&self, state: MemberState) -> Option<&PackRecord> {
        self.packs.get(&state)
    }

    /// Every offer, by state, factory and pool.
    pub fn offers(&self) -> impl ExactSizeIterator<Item = &OfferState> {
        self.offers.values()
    }

    pub fn offer(&self, pool: &PoolId) -> Option<&OfferState> {
        self.offers.get(pool)
    }

    /// The offers of one state.
    pub fn offers_of(&self, state: MemberState) -> impl Iterator<Item = &OfferState> {
        let mine = self.offers.range(PoolId::before_all_of(state)..);
        mine.take_while(move |(pool, _)| pool.state() == state).map(|(_, offer)| offer)
    }

    /// GPUs of a pool that jobs of `home` hold and were granted before `job` was; all that they hold if `job` has none
    /// there. Grants of one revision count in the order of their jobs' ids.
    ///
    /// Of any two grants one is first, whoever asks and whenever: a share rule that is asked about many grants at once
    /// answers as if they had come one by one. Costs a step for each job that holds GPUs of the pool.
    pub fn held_before(&self, pool: &PoolId, home: MemberState, job: &JobId) -> u32 {
        let Some(offer) = self.offers.get(pool) else {
            return 0;
        };
        let held = |id: &JobId| {
            let job = self.jobs.get(id)?;
            let attempt = job.holding().filter(|attempt| attempt.pool == *pool)?;
            Some((attempt.granted_at, job.id, job.home, attempt.grant.gpus))
        };
        let Some((revision, ..)) = held(job) else {
            return offer.ledger.held_by(home);
        };
        let before = |(granted_at, id, of, _): &(Revision, JobId, MemberState, u32)| {
            *of == home && (*granted_at, *id) < (revision, *job)
        };
        offer.ledger.holders.iter().filter_map(held).filter(before).map(|(.., gpus)| gpus).sum()
    }

    /// The share of a pool, in percent and rounded up, that a job's home held before the job was granted: what share
    /// rules are asked with. 100 if the pool or the job is unknown, so that nobody is permitted by mistake.
    pub fn share_percent_before(&self, pool: &PoolId, job: &JobId) -> u32 {
        let known = self.offers.get(pool).zip(self.jobs.get(job));
        known.map_or(100, |(offer, it)| offer.percent(self.held_before(pool, it.home, job)))
    }

    /// How a shape stands to a pool, those who wait before it included.
    pub fn fit(&self, pool: &PoolId, shape: &Shape) -> Option<Fit> {
        let offer = self.offers.get(pool)?;
        let fit = offer.fits(shape);
        let others_first = fit == Fit::FitsNow && shape.gpus > 0 && queue::is_kept_free(self, *pool);
        Some(if others_first { Fit::FitsLater { free: offer.ledger.free_gpus() } } else { fit })
    }

    /// GPUs that jobs waiting for the pool ask for, and how many jobs they are. A job that waits for two pools counts in both.
    pub fn demand(&self, pool: &PoolId) -> (u64, usize) {
        self.derived.queues.get(pool).map_or((0, 0), |queue| queue.demand())
    }

    /// The job that the pool is kept free for, if any was passed over too often.
    pub fn kept_free_for(&self, pool: &PoolId) -> Option<JobId> {
        let offer = self.offers.get(pool)?;
        self.derived.queues.get(pool)?.kept_for(offer).map(|(job, _)| job)
    }

    pub fn job(&self, id: &JobId) -> Option<&Job> {
        self.jobs.get(id).map(Arc::as_ref)
    }

    /// A job to keep after the read, without copying it.
    pub fn job_arc(&self, id: &JobId) -> Option<Arc<Job>> {
        self.jobs.get(id).cloned()
    }

    /// Every job, by id, which is by time of creation.
    pub fn jobs(&self) -> impl ExactSizeIterator<Item = &Job> {
        self.jobs.values().map(Arc::as_ref)
    }

    /// Jobs whose current attempt was given to a gateway, also where the pool has been handed on since.
    pub fn held_by_gateway<'a>(&'a self, gateway: &'a GatewayId) -> impl Iterator<Item = &'a Job> {
        let holders = self.offers_of(gateway.state).flat_map(|offer| &offer.ledger.holders);
        let jobs = holders.map(|id| self.jobs[id].as_ref());
        jobs.filter(|job| job.holding().is_some_and(|attempt| attempt.served_by == gateway.name))
    }

    /// What jobs of a home state used of a host state: (home, host, flow).
    pub fn usage(&self) -> impl ExactSizeIterator<Item = (MemberState, MemberState, &Flow)> {
        self.usage.iter().map(|((home, host), flow)| (*home, *host, flow))
    }

    /// Jobs of a home state that are not finished.
    pub fn open_jobs(&self, home: MemberState) -> usize {
        self.derived.open_jobs(home)
    }

    /// The highest serial of a key that was carried out; the next envelope should be above it.
    pub fn last_serial(&self, key: &KeyId) -> Option<u64> {
        self.serials.get(key).map(|window| window.highest)
    }

    /// The snapshot: equal bytes exactly for equal registries.
    pub fn to_bytes(&self) -> Vec<u8> {
        let head = (&self.federation, self.epoch, self.revision, self.terms_moved_at);
        let stored =
            (head, &self.members, &self.packs, &self.offers, &self.jobs, &self.serials, &self.usage, &self.silences);
        postcard::to_extend(&stored, vec![FORMAT]).expect("invariant: a registry in memory always serialises")
    }

    /// Reads a snapshot and checks that its records agree. Whether it is the federation's is for the caller to
    /// decide, by [`Registry::root`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Registry, BadSnapshot> {
        let (format, body) = bytes.split_first().ok_or(BadSnapshot::Corrupt)?;
        if *format != FORMAT {
            return Err(BadSnapshot::Format { found: *format });
        }
        let (stored, rest) = postcard::take_from_bytes::<Stored>(body).map_err(|_| BadSnapshot::Corrupt)?;
        let ((federation, epoch, revision, terms_moved_at), members, packs, offers, jobs, serials, usage, silences) =
            stored;
        if !rest.is_empty() {
            return Err(BadSnapshot::Corrupt);
        }
        let bundles = members.values().map(|member| &member.bundle);
        let trust = member::trust_in(&federation, bundles).map_err(|error| BadSnapshot::Trust(error.to_string()))?;
        let derived = Derived::default();
        let mut registry = Registry {
            federation,
            epoch,
            revision,
            members,
            packs,
            offers,
            jobs,
            serials,
            usage,
            silences,
            terms_moved_at,
            derived,
            trust,
        };
        registry.derive()?;
        Ok(registry)
    }

    /// Whether two registries agree on their records and on everything that follows from them.
    pub fn agrees_with(&self, other: &Registry) -> bool {
        let rooms =
            |it: &Registry| it.offers.values().map(|offer| (offer.quiet, offer.ledger.clone())).collect::<Vec<_>>();
        self.to_bytes() == other.to_bytes() && self.derived == other.derived && rooms(self) == rooms(other)
    }

    /// Names this state of the registry: the digest of its snapshot.
    pub fn root(&self) -> Digest {
        Digest::of(&self.to_bytes())
    }

    /// Whether what another registry says of each member was signed by that member's root, as this registry knows the
    /// root. Otherwise the first member of which that is not so.
    pub fn vouches_for(&self, other: &Registry) -> Result<(), MemberState> {
        for member in other.members.values() {
            let known = self.members.get(&member.state).ok_or(member.state)?;
            let signed = member.signed.verify_signed_by(&known.bundle.root_key);
            let same = signed.is_ok_and(|bundle| bundle == member.bundle);
            if !same || member.gateways != known.gateways {
                return Err(member.state);
            }
        }
        Ok(())
    }

    /// Rebuilds what follows from the records.
    fn derive(&mut self) -> Result<(), BadSnapshot> {
        if let Some((gateway, _)) = self.silences.iter().find(|(gateway, silence)| !self.could_be(gateway, silence)) {
            return Err(BadSnapshot::Silence(gateway.to_string()));
        }
        let quiet: Vec<GatewayId> = self.silences.keys().filter(|gateway| self.is_quiet(gateway)).cloned().collect();
        for (pool, offer) in &mut self.offers {
            let (nodes, per_node) = (offer.offer.nodes, offer.offer.gpus_per_node);
            let sized = nodes <= limits::NODES_PER_POOL_MAX && per_node <= limits::GPUS_PER_NODE_MAX;
            if offer.offer.pool != *pool || !sized || !offer.ledger.restore(nodes, per_node) {
                return Err(BadSnapshot::Pool(*pool));
            }
            offer.quiet = quiet.iter().any(|it| it.state == pool.state() && it.name == offer.offer.served_by);
        }
        let ids: Vec<JobId> = self.jobs.keys().copied().collect();
        for id in ids {
            self.derive_job(id).ok_or(BadSnapshot::Job(id))?;
        }
        Ok(())
    }

    /// Enters one job where it belongs; `None` when it belongs nowhere.
    fn derive_job(&mut self, id: JobId) -> Option<()> {
        let job = self.jobs[&id].clone();
        if job.id != id {
            return None;
        }
        if job.state.is_final() {
            let too_many = self.derived.keep(job.home, job.changed_at, id);
            return too_many.is_none().then_some(());
        }
        self.derived.open(job.home);
        if job.state == JobState::Queued {
            queue::join(self, id);
            return Some(());
        }
        let attempt = job.holding()?;
        self.offers.get_mut(&attempt.pool)?.ledger.retake(id, job.home, &attempt.grant).ok()
    }

    pub(crate) fn job_mut(&mut self, id: JobId) -> &mut Job {
        Arc::make_mut(self.jobs.get_mut(&id).expect("invariant: the job was found before it is changed"))
    }

    pub(crate) fn attempt_mut(&mut self, id: JobId) -> &mut Attempt {
        self.job_mut(id).attempts.last_mut().expect("invariant: a job that holds GPUs has an attempt")
    }
}
