//! Verdicts: what every concerned state says about one kind of job, pool by pool.
//!
//! A job needs two permits for a pool: its home's, to leave, and the host's, to come. Where a rule permits it only below a
//! share of the pool, it is found from which share on it is denied; the queue of the pool does the rest. Most jobs of
//! a campaign look alike, so verdicts are kept by what they were asked about and hold until a pack or an offer changes.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use certs::{Digest, MemberState};
use federation::raft::Consensus;
use federation::{Candidate, Ceiling, Job, Offer, PoolId, Registry, Shape};
use policy::{
    Action, ContextFacts, Decision, DecisionCache, FactoryFacts, JobFacts, Labels, Pack, Permit, Request,
    ResearcherFacts,
};

/// Kinds of jobs remembered: 1,000 x (40 pools x ~0.2 KiB + keys) = ~10 MiB.
const KINDS_MAX: usize = 1_000;

/// A machine without a free thread has one soon, or is past helping.
const COMPILE_RETRIES: u32 = 5;
const COMPILE_REST: Duration = Duration::from_millis(20);

/// One pool's two answers, as they are while the job's home holds nothing there.
#[derive(Clone, Debug)]
pub struct PoolVerdict {
    /// The pool.
    pub pool: PoolId,
    /// May the job leave its home for this pool?
    pub export: Arc<Decision>,
    /// Does the host take it?
    pub host: Arc<Decision>,
    /// If both permit it only below a share.
    pub limit: Option<Limit>,
}

/// From which share of home's on a permitted pool is denied, and who denies it then.
#[derive(Clone, Debug)]
pub struct Limit {
    /// What home has to hold less than.
    pub below: Ceiling,
    /// The first denial from there on.
    pub denial: Arc<Decision>,
}

impl PoolVerdict {
    /// The pool and the host's permit, if home permits too.
    pub fn permit(&self) -> Option<(Candidate, Permit)> {
        match (&*self.export, &*self.host) {
            (Decision::Permit(_), Decision::Permit(permit)) => {
                let below = self.limit.as_ref().map(|it| it.below);
                Some((Candidate { pool: self.pool, below }, permit.clone()))
            }
            _ => None,
        }
    }
}

/// A state's binding answer about an attempt.
#[derive(Debug)]
pub struct Binding {
    /// The answer.
    pub decision: Arc<Decision>,
    /// Of a denial: what home's share has to be below for a permit.
    pub below: Option<Ceiling>,
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
    pub fn permits(&self) -> Vec<(Candidate, Permit)> {
        self.pools.iter().filter_map(PoolVerdict::permit).collect()
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
    offers: Vec<(PoolId, u64)>,
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
    /// How often a pack could not be read.
    unread: AtomicU64,
}

/// A pack could not be read for want of a thread. Nothing is known of what it says, and so nothing is denied for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this gateway could not read a state's policy just now; ask again")]
pub struct Unread;

impl Judge {
    /// The verdicts of all states on all pools, as the registry stands.
    pub fn verdicts(&self, consensus: &Consensus, question: &Question) -> Result<Arc<Verdicts>, Unread> {
        let known_or_facts = consensus.read(|registry| {
            let basis = basis(registry);
            if let Some((known, verdicts)) = self.lock_kinds().get(question)
                && *known == basis
            {
                return Ok(Arc::clone(verdicts));
            }
            let offers = registry.offers().map(|state| state.offer.clone()).collect();
            Err(Facts { basis, offers })
        });
        let facts = match known_or_facts {
            Ok(verdicts) => return Ok(verdicts),
            Err(facts) => facts,
        };
        let verdicts = Arc::new(self.if_read(|| self.ask_all(consensus, question, &facts))?);
        let mut kinds = self.lock_kinds();
        if kinds.len() >= KINDS_MAX {
            kinds.clear();
        }
        kinds.insert(question.clone(), (facts.basis, Arc::clone(&verdicts)));
        Ok(verdicts)
    }

    /// What comes of it, unless a pack could not be read meanwhile.
    fn if_read<T>(&self, ask: impl FnOnce() -> T) -> Result<T, Unread> {
        let before = self.unread.load(Ordering::Acquire);
        let answer = ask();
        if self.unread.load(Ordering::Acquire) == before { Ok(answer) } else { Err(Unread) }
    }

    /// The host's answer about an attempt, by its own live pack. `None` if the pool is not offered any more.
    pub fn decide_as_host(
        &self,
        consensus: &Consensus,
        job: &Job,
        question: &Question,
    ) -> Result<Option<Binding>, Unread> {
        let decide = |pool: PoolId| self.decide_binding(consensus, pool.state(), Action::Host, job, question);
        self.if_read(|| decide(job.attempt()?.pool))
    }

    /// Home's own answer about an attempt, at the moment when it hands the task over. `None` as above.
    pub fn decide_as_home(
        &self,
        consensus: &Consensus,
        job: &Job,
        question: &Question,
    ) -> Result<Option<Binding>, Unread> {
        self.if_read(|| self.decide_binding(consensus, job.home, Action::Export, job, question))
    }

    /// With the share that home held before the attempt.
    fn decide_binding(
        &self,
        consensus: &Consensus,
        of: MemberState,
        action: Action,
        job: &Job,
        question: &Question,
    ) -> Option<Binding> {
        let pool = job.attempt()?.pool;
        let (offer, share) = consensus.read(|registry| {
            let state = registry.offer(&pool)?;
            Some((state.offer.clone(), registry.share_percent_before(&pool, &job.id)))
        })?;
        let at = |share| self.decide(consensus, of, &request(action, question, &offer, share));
        let decision = at(share);
        let below = if decision.is_permit() { None } else { ceiling(share, |share| at(share).is_permit()) };
        Some(Binding { decision, below })
    }

    fn ask_all(&self, consensus: &Consensus, question: &Question, facts: &Facts) -> Verdicts {
        let pools = facts.offers.iter().map(|offer| self.ask_both(consensus, question, offer)).collect();
        let packs = facts.basis.packs.clone();
        let mut verdicts = Verdicts { pools, decided_on: packs, explanation: Arc::new([]), digest: Digest::of(b"") };
        let answers = crate::explain::answers(&verdicts);
        verdicts.explanation = serde_json::to_vec(&answers).expect("invariant: answers are plain data").into();
        verdicts.digest = Digest::of(&verdicts.explanation);
        verdicts
    }

    fn ask_both(&self, consensus: &Consensus, question: &Question, offer: &Offer) -> PoolVerdict {
        let (home, pool) = (question.researcher.home, offer.pool);
        let ask = |state, action, share| self.decide(consensus, state, &request(action, question, offer, share));
        let [export, host] = [(home, Action::Export), (pool.state(), Action::Host)];
        // Only who denies the whole has a ceiling; most packs do not.
        let permits = |(state, action), share| ask(state, action, share).is_permit();
        let deniers: Vec<_> = [export, host].into_iter().filter(|it| !permits(*it, 100)).collect();
        let limit = ceiling(100, |share| deniers.iter().all(|it| permits(*it, share))).and_then(|below| {
            let denier = deniers.iter().find(|it| !permits(**it, below.percent()))?;
            Some(Limit { below, denial: ask(denier.0, denier.1, below.percent()) })
        });
        PoolVerdict { pool, export: ask(export.0, export.1, 0), host: ask(host.0, host.1, 0), limit }
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
            // The machine's fault, not the pack's: tried again the next time.
            Err(bad) if bad.is_transient() => {
                self.unread.fetch_add(1, Ordering::AcqRel);
                return None;
            }
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

/// The least share up to `denied` that is denied, if holding nothing is permitted and `denied` is not. Of a rule that denies
/// and permits by turns, one with a permit right below it.
fn ceiling(denied: u32, permits: impl Fn(u32) -> bool) -> Option<Ceiling> {
    let (mut permitted, mut denied) = (0, denied);
    if permits(denied) || !permits(permitted) {
        return None;
    }
    while denied - permitted > 1 {
        let between = permitted.midpoint(denied);
        if permits(between) { permitted = between } else { denied = between }
    }
    // Who may hold a whole pool has no ceiling.
    Ceiling::parse(denied).ok()
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

fn basis(registry: &Registry) -> Basis {
    Basis {
        packs: registry.packs().map(|(state, pack)| (state, pack.sequence)).collect(),
        offers: registry.offers().map(|state| (state.offer.pool, state.offer.sequence)).collect(),
    }
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

#[cfg(test)]
mod tests {
    use super::ceiling;

    #[track_caller]
    fn check(denied: u32, permits: impl Fn(u32) -> bool, expected: Option<u32>) {
        assert_eq!(ceiling(denied, permits).map(|it| it.percent()), expected);
    }

    #[test]
    fn a_ceiling_is_the_least_share_that_is_denied() {
        for limit in 1..=100 {
            for denied in limit..=130 {
                check(denied, |share| share < limit, Some(limit));
            }
        }
    }

    #[test]
    fn whoever_is_denied_at_rest_or_only_above_the_whole_has_none() {
        check(70, |_| false, None);
        check(0, |_| false, None);
        check(100, |_| true, None);
        check(120, |share| share <= 100, None);
    }

    #[test]
    fn below_a_ceiling_there_is_a_permit_whatever_the_rule() {
        let by_turns = |share: u32| share.is_multiple_of(7);
        for denied in (1..=100).filter(|share| !by_turns(*share)) {
            let below = ceiling(denied, by_turns).expect("holding nothing is permitted").percent();
            assert!(!by_turns(below) && by_turns(below - 1), "{below}");
        }
    }
}
