//! Verdicts: what every concerned state says about one kind of job, pool by pool.
//!
//! A job needs two permits for a pool: its home's, to leave, and the host's, to come. Most jobs of
//! a campaign look alike, so verdicts are kept by what they were asked about and hold until a pack,
//! an offer or a share changes.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use certs::{Digest, MemberState};
use federation::raft::Consensus;
use federation::{Job, Offer, PoolId, Registry, Shape};
use policy::{
    Action, ContextFacts, Decision, DecisionCache, FactoryFacts, JobFacts, Labels, Pack, Permit, Request,
    ResearcherFacts,
};

/// Kinds of jobs remembered: 1,000 x (40 pools x ~0.2 KiB + keys) = ~10 MiB.
const KINDS_MAX: usize = 1_000;
/// Shares are told to packs in steps, so that every grant does not make every verdict stale.
const SHARE_STEP_PERCENT: u32 = 5;

/// A machine without a free thread has one soon, or is past helping.
const COMPILE_RETRIES: u32 = 5;
const COMPILE_REST: Duration = Duration::from_millis(20);

/// What packs are told of a home's share of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shares {
    /// What its jobs hold now.
    Now,
    /// Nothing: the job waits, and by the time when it is granted the others may have ended. The host asks again then.
    AtRest,
}

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
        let permitted = |verdict: &PoolVerdict| Some((verdict.pool, verdict.permit()?));
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

/// Everything that a decision reads from the registry, so that packs run without holding it up.
struct Facts {
    basis: Basis,
    offers: Vec<Offer>,
}

/// A pack as it was last compiled; `None` if it cannot be.
struct Compiled {
    digest: Digest,
    pack: Option<Arc<Pack>>,
}

/// Asks the packs of the registry, and remembers.
#[derive(Default)]
pub struct Judge {
    packs: Mutex<BTreeMap<MemberState, Compiled>>,
    decisions: DecisionCache,
    kinds: Mutex<HashMap<Question, (Basis, Arc<Verdicts>)>>,
}

impl Judge {
    /// The verdicts of all states on all pools, as the registry stands.
    pub fn verdicts(&self, consensus: &Consensus, question: &Question, shares: Shares) -> Arc<Verdicts> {
        let home = question.researcher.home;
        let known_or_facts = consensus.read(|registry| {
            let basis = basis(registry, home, shares);
            if let Some((known, verdicts)) = self.lock_kinds().get(question)
                && *known == basis
            {
                return Ok(Arc::clone(verdicts));
            }
            let offers = registry.offers().map(|state| state.offer.clone()).collect();
            Err(Facts { basis, offers })
        });
        let facts = match known_or_facts {
            Ok(verdicts) => return verdicts,
            Err(facts) => facts,
        };
        let verdicts = Arc::new(self.ask_all(consensus, question, &facts));
        let mut kinds = self.lock_kinds();
        if kinds.len() >= KINDS_MAX {
            kinds.clear();
        }
        kinds.insert(question.clone(), (facts.basis, Arc::clone(&verdicts)));
        verdicts
    }

    /// The host's binding answer about an attempt: its own live pack, and the share that home held before it.
    /// `None` if the pool is not offered any more.
    pub fn decide_as_host(&self, consensus: &Consensus, job: &Job, question: &Question) -> Option<Arc<Decision>> {
        let pool = job.attempt()?.pool;
        let (offer, share) = consensus.read(|registry| {
            let state = registry.offer(&pool)?;
            Some((state.offer.clone(), registry.share_percent_before(&pool, &job.id)))
        })?;
        Some(self.decide(consensus, pool.state(), &request(Action::Host, question, &offer, share)))
    }

    /// Home's own answer about an attempt, at the moment when it hands the task over.
    /// `None` if the pool is not offered any more.
    pub fn decide_as_home(&self, consensus: &Consensus, job: &Job, question: &Question) -> Option<Arc<Decision>> {
        let pool = job.attempt()?.pool;
        let (offer, share) = consensus.read(|registry| {
            let state = registry.offer(&pool)?;
            Some((state.offer.clone(), registry.share_percent_before(&pool, &job.id)))
        })?;
        Some(self.decide(consensus, job.home, &request(Action::Export, question, &offer, share)))
    }

    fn ask_all(&self, consensus: &Consensus, question: &Question, facts: &Facts) -> Verdicts {
        let home = question.researcher.home;
        let mut pools = Vec::with_capacity(facts.offers.len());
        for (offer, (pool, _, share)) in facts.offers.iter().zip(&facts.basis.offers) {
            let export = request(Action::Export, question, offer, *share);
            let host = request(Action::Host, question, offer, *share);
            pools.push(PoolVerdict {
                pool: *pool,
                export: self.decide(consensus, home, &export),
                host: self.decide(consensus, pool.state(), &host),
            });
        }
        let packs = facts.basis.packs.clone();
        let mut verdicts = Verdicts { pools, decided_on: packs, explanation: Arc::new([]), digest: Digest::of(b"") };
        let answers = crate::explain::answers(&verdicts);
        verdicts.explanation = serde_json::to_vec(&answers).expect("invariant: answers are plain data").into();
        verdicts.digest = Digest::of(&verdicts.explanation);
        verdicts
    }

    fn decide(&self, consensus: &Consensus, state: MemberState, request: &Request) -> Arc<Decision> {
        match self.pack(consensus, state) {
            Some((pack, digest)) => self.decisions.decide_cached(&pack, digest.0, request),
            None => Arc::new(policy::no_pack(state, request.action)),
        }
    }

    /// A pack is compiled once per revision. One that does not compile denies everything.
    fn pack(&self, consensus: &Consensus, state: MemberState) -> Option<(Arc<Pack>, Digest)> {
        let digest = consensus.read(|registry| registry.pack(state).map(|record| record.digest))?;
        let mut packs = self.packs.lock().expect("invariant: compiling a pack does not panic");
        if let Some(known) = packs.get(&state).filter(|known| known.digest == digest) {
            return known.pack.clone().map(|pack| (pack, digest));
        }
        let record = consensus.read(|registry| registry.pack(state).cloned())?;
        let pack = match compile(&record.source) {
            Ok(pack) => Some(Arc::new(pack)),
            // The machine's fault, not the pack's: denied this time, tried again the next.
            Err(bad) if bad.is_transient() => return None,
            Err(bad) => {
                tracing::warn!(%state, sequence = record.sequence, %bad, "a state's pack does not compile");
                None
            }
        };
        packs.insert(state, Compiled { digest: record.digest, pack: pack.clone() });
        pack.map(|pack| (pack, record.digest))
    }

    fn lock_kinds(&self) -> std::sync::MutexGuard<'_, HashMap<Question, (Basis, Arc<Verdicts>)>> {
        self.kinds.lock().expect("invariant: nothing panics while it holds the kinds")
    }
}

/// Compiles, and tries again a few times when the machine had no thread for it.
fn compile(source: &policy::PackSource) -> Result<Pack, policy::BadPack> {
    for _ in 0..COMPILE_RETRIES {
        match Pack::compile(source) {
            Err(bad) if bad.is_transient() => std::thread::sleep(COMPILE_REST),
            compiled => return compiled,
        }
    }
    Pack::compile(source)
}

fn basis(registry: &Registry, home: MemberState, shares: Shares) -> Basis {
    let packs = registry.packs().map(|(state, pack)| (state, pack.sequence)).collect();
    let offers = registry
        .offers()
        .map(|state| {
            let share = match shares {
                Shares::Now => state.share_percent(home) / SHARE_STEP_PERCENT * SHARE_STEP_PERCENT,
                Shares::AtRest => 0,
            };
            (state.offer.pool, state.offer.sequence, share)
        })
        .collect();
    Basis { packs, offers }
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
