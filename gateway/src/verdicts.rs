//! Verdicts: what every concerned state says about one kind of job, pool by pool.
//!
//! A job needs two permits for a pool: its home's, to leave, and the host's, to come. Most jobs of
//! a campaign look alike, so verdicts are kept by what they were asked about and hold until a pack,
//! an offer or a share changes.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use certs::{Digest, MemberState};
use federation::{Offer, PoolId, Registry, Shape};
use policy::{
    Action, ContextFacts, Decision, DecisionCache, FactoryFacts, JobFacts, Labels, Pack, Permit, Request,
    ResearcherFacts,
};

/// Kinds of jobs remembered: 1,000 x (40 pools x ~0.2 KiB + keys) = ~10 MiB.
const KINDS_MAX: usize = 1_000;
/// Shares are told to packs in steps, so that every grant does not make every verdict stale.
const SHARE_STEP_PERCENT: u32 = 5;

/// One pool's two answers.
#[derive(Clone, Debug)]
pub struct PoolVerdict {
    /// The pool.
    pub pool: PoolId,
    /// May the job leave its home for this pool?
    pub export: Arc<Decision>,
    /// Does the host take it?
    pub host: Arc<Decision>,
}

impl PoolVerdict {
    /// The host's permit, if home permits too.
    pub fn permit(&self) -> Option<Permit> {
        match (&*self.export, &*self.host) {
            (Decision::Permit(_), Decision::Permit(permit)) => Some(permit.clone()),
            _ => None,
        }
    }
}

/// The answers of all concerned states about one kind of job.
#[derive(Debug)]
pub struct Verdicts {
    /// Pool by pool, in the order of their ids.
    pub pools: Vec<PoolVerdict>,
    /// The pack revisions that were asked.
    pub decided_on: Vec<(MemberState, u64)>,
    /// The verdicts as JSON, for the store.
    pub explanation: Arc<[u8]>,
    /// Digest of the explanation.
    pub digest: Digest,
}

impl Verdicts {
    /// The pools that both states permit.
    pub fn permits(&self) -> Vec<(PoolId, Permit)> {
        let permitted = |verdict: &PoolVerdict| Some((verdict.pool.clone(), verdict.permit()?));
        self.pools.iter().filter_map(permitted).collect()
    }
}

/// Who and what a decision is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Question {
    /// What home attests about the researcher.
    pub researcher: ResearcherFacts,
    /// The job as packs see it.
    pub job: JobFacts,
}

impl Question {
    /// The question that a job of this shape and these labels poses.
    pub fn new(researcher: ResearcherFacts, shape: &Shape, labels: &Labels) -> Question {
        let job = JobFacts {
            gpus: shape.gpus,
            nodes: shape.nodes,
            walltime_s: shape.walltime_s,
            labels: labels.clone(),
            input_states: vec![],
        };
        Question { researcher, job }
    }
}

/// What the verdicts of one home depend on, besides the question.
#[derive(Clone, PartialEq, Eq)]
struct Basis {
    packs: Vec<(MemberState, u64)>,
    offers: Vec<(PoolId, u64, u32)>,
}

/// Asks the packs of the registry, and remembers.
#[derive(Default)]
pub struct Judge {
    packs: Mutex<BTreeMap<MemberState, (Digest, Option<Arc<Pack>>)>>,
    decisions: DecisionCache,
    kinds: Mutex<HashMap<Question, (Basis, Arc<Verdicts>)>>,
}

impl Judge {
    /// The verdicts of all states on all pools, as the registry stands.
    pub fn verdicts(&self, registry: &Registry, question: &Question) -> Arc<Verdicts> {
        let basis = basis(registry, question.researcher.home);
        if let Some((known, verdicts)) = self.lock_kinds().get(question)
            && *known == basis
        {
            return Arc::clone(verdicts);
        }
        let verdicts = Arc::new(self.ask_all(registry, question, &basis));
        let mut kinds = self.lock_kinds();
        if kinds.len() >= KINDS_MAX {
            kinds.clear();
        }
        kinds.insert(question.clone(), (basis, Arc::clone(&verdicts)));
        verdicts
    }

    /// The host's binding answer: its own live pack and the share as it is at this moment.
    pub fn decide_as_host(&self, registry: &Registry, offer: &Offer, question: &Question) -> Arc<Decision> {
        let share = share_percent(registry, &offer.pool, question.researcher.home);
        let request = request(Action::Host, question, offer, share);
        self.decide(registry, offer.pool.factory.state, &request)
    }

    fn ask_all(&self, registry: &Registry, question: &Question, basis: &Basis) -> Verdicts {
        let home = question.researcher.home;
        let mut pools = Vec::with_capacity(basis.offers.len());
        for (pool, _, share) in &basis.offers {
            let Some(state) = registry.offer(pool) else {
                continue;
            };
            let export = request(Action::Export, question, &state.offer, *share);
            let host = request(Action::Host, question, &state.offer, *share);
            pools.push(PoolVerdict {
                pool: pool.clone(),
                export: self.decide(registry, home, &export),
                host: self.decide(registry, pool.factory.state, &host),
            });
        }
        let mut verdicts =
            Verdicts { pools, decided_on: basis.packs.clone(), explanation: Arc::new([]), digest: Digest::of(b"") };
        let answers = crate::explain::answers(&verdicts);
        verdicts.explanation = serde_json::to_vec(&answers).expect("invariant: answers are plain data").into();
        verdicts.digest = Digest::of(&verdicts.explanation);
        verdicts
    }

    fn decide(&self, registry: &Registry, state: MemberState, request: &Request) -> Arc<Decision> {
        match self.pack(registry, state) {
            Some((pack, digest)) => self.decisions.decide_cached(&pack, digest.0, request),
            None => Arc::new(policy::no_pack(state, request.action)),
        }
    }

    /// A pack is compiled once per revision. One that does not compile denies everything.
    fn pack(&self, registry: &Registry, state: MemberState) -> Option<(Arc<Pack>, Digest)> {
        let record = registry.pack(state)?;
        let mut packs = self.packs.lock().expect("invariant: compiling a pack does not panic");
        if let Some((digest, pack)) = packs.get(&state)
            && *digest == record.digest
        {
            return pack.clone().map(|pack| (pack, record.digest));
        }
        let compiled = Pack::compile(&record.source).ok().map(Arc::new);
        if compiled.is_none() {
            tracing::warn!(%state, sequence = record.sequence, "a state's pack does not compile");
        }
        packs.insert(state, (record.digest, compiled.clone()));
        compiled.map(|pack| (pack, record.digest))
    }

    fn lock_kinds(&self) -> std::sync::MutexGuard<'_, HashMap<Question, (Basis, Arc<Verdicts>)>> {
        self.kinds.lock().expect("invariant: nothing panics while it holds the kinds")
    }
}

fn basis(registry: &Registry, home: MemberState) -> Basis {
    let packs = registry.packs().map(|(state, pack)| (state, pack.sequence)).collect();
    let offers = registry
        .offers()
        .map(|state| {
            let share = share_percent(registry, &state.offer.pool, home);
            let share = share / SHARE_STEP_PERCENT * SHARE_STEP_PERCENT;
            (state.offer.pool.clone(), state.offer.sequence, share)
        })
        .collect();
    Basis { packs, offers }
}

/// The part of a pool's GPUs that the home state's jobs hold now.
fn share_percent(registry: &Registry, pool: &PoolId, home: MemberState) -> u32 {
    registry.offer(pool).map_or(0, |offer| offer.share_percent(home))
}

fn request(action: Action, question: &Question, offer: &Offer, share: u32) -> Request {
    Request {
        action,
        researcher: question.researcher.clone(),
        job: question.job.clone(),
        factory: FactoryFacts {
            state: offer.pool.factory.state,
            name: offer.pool.factory.name.to_string(),
            certifications: offer.certifications.clone(),
            carbon_g_per_kwh: offer.carbon_g_per_kwh,
            price_milli_eur_per_gpu_hour: offer.price_milli_eur_per_gpu_hour,
            model: offer.model.name.clone(),
        },
        context: ContextFacts { home_share_percent: share },
    }
}
