//! The decision cache: most jobs of a campaign look alike, and a pack answers alike each time.
//!
//! Two generations: answers go into the young one; when that is full it becomes the old one, and
//! the old one is forgotten. What is still asked for moves back to the young one.
//!
//! Invariant: an answer is found only under the digest of the pack that gave it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use crate::decide::{Decision, decide};
use crate::floor;
use crate::pack::Pack;
use crate::request::Request;

/// Memory of all answers together. 32 MiB / ~1.6 KiB = 20,000 answers: a hundred kinds of jobs x
/// (27 exports and 27 hosts, a few pools each).
const CACHE_BYTES_MAX: usize = 32 * 1_024 * 1_024;
const GENERATION_BYTES_MAX: usize = CACHE_BYTES_MAX / 2;
/// An entry without its texts: a request of 250 bytes in a table at most half empty, a decision and
/// its first rules.
const ENTRY_BYTES: usize = 1_024;

/// Remembers what packs have answered. Shared between threads.
#[derive(Debug)]
pub struct DecisionCache {
    generations: Mutex<Generations>,
}

#[derive(Debug)]
struct Generations {
    young: Generation,
    old: Generation,
    bytes_max: usize,
}

#[derive(Debug, Default)]
struct Generation {
    /// By pack, so that looking a request up needs no copy of it.
    answers: HashMap<[u8; 32], HashMap<Request, Arc<Decision>>>,
    bytes: usize,
}

impl Default for DecisionCache {
    fn default() -> DecisionCache {
        DecisionCache::new()
    }
}

impl DecisionCache {
    /// An empty cache.
    pub fn new() -> DecisionCache {
        DecisionCache::with_limit(GENERATION_BYTES_MAX)
    }

    fn with_limit(bytes_max: usize) -> DecisionCache {
        let generations = Generations { young: Generation::default(), old: Generation::default(), bytes_max };
        DecisionCache { generations: Mutex::new(generations) }
    }

    /// What `pack` answers, remembered or asked now. `pack_digest` names this version of the pack.
    pub fn decide_cached(&self, pack: &Pack, pack_digest: [u8; 32], request: &Request) -> Arc<Decision> {
        if let Some(known) = self.lock().find(&pack_digest, request) {
            return known;
        }
        let decision = Arc::new(decide(pack, request));
        // A request out of range is denied at once, and could be as large as its sender likes.
        if request.bytes() <= floor::REQUEST_BYTES_MAX {
            self.lock().insert(pack_digest, request.clone(), Arc::clone(&decision));
        }
        decision
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Generations> {
        self.generations.lock().expect("invariant: nothing panics while it holds the answers")
    }
}

impl Generations {
    fn find(&mut self, pack: &[u8; 32], request: &Request) -> Option<Arc<Decision>> {
        if let Some(known) = self.young.find(pack, request) {
            return Some(Arc::clone(known));
        }
        let known = Arc::clone(self.old.find(pack, request)?);
        self.insert(*pack, request.clone(), Arc::clone(&known));
        Some(known)
    }

    fn insert(&mut self, pack: [u8; 32], request: Request, decision: Arc<Decision>) {
        if self.young.bytes >= self.bytes_max {
            self.old = std::mem::take(&mut self.young);
        }
        let bytes = weight(&request, &decision);
        if self.young.answers.entry(pack).or_default().insert(request, decision).is_none() {
            self.young.bytes += bytes;
        }
    }
}

impl Generation {
    fn find(&self, pack: &[u8; 32], request: &Request) -> Option<&Arc<Decision>> {
        self.answers.get(pack)?.get(request)
    }
}

/// About as many bytes as one entry takes.
fn weight(request: &Request, decision: &Decision) -> usize {
    let rules: usize = decision.rules().iter().map(|rule| rule.bytes()).sum();
    ENTRY_BYTES + request.bytes() + rules
}

#[cfg(test)]
mod tests {
    use certs::MemberState;

    use super::*;
    use crate::founding;
    use crate::labels::{DataClass, Labels, Purpose};
    use crate::request::{Action, ContextFacts, FactoryFacts, JobFacts, ResearcherFacts};

    const LIMIT: usize = 64 * 1_024;

    fn france() -> MemberState {
        MemberState::parse("FR").unwrap()
    }

    fn request(gpus: u32) -> Request {
        let labels =
            Labels { data_class: DataClass::Public, purpose: Purpose::Research, dual_use: false, project: None };
        Request {
            action: Action::Host,
            researcher: ResearcherFacts {
                home: france(),
                assurance: 1,
                entitlements: vec![],
                clearances: vec![],
                residency: None,
            },
            job: JobFacts { gpus, nodes: 0, walltime_s: 60, labels, input_states: vec![] },
            factory: FactoryFacts {
                state: france(),
                name: "jean-zay".into(),
                certifications: vec![],
                carbon_g_per_kwh: 45,
                price_milli_eur_per_gpu_hour: 0,
                model: "H100-80".into(),
            },
            context: ContextFacts { home_share_percent: 0 },
        }
    }

    fn pack() -> Pack {
        Pack::compile(&founding::pack(france()).unwrap()).unwrap()
    }

    #[test]
    fn what_is_asked_for_stays_and_the_rest_goes() {
        let (cache, pack) = (DecisionCache::with_limit(LIMIT), pack());
        let popular = cache.decide_cached(&pack, [0; 32], &request(1));
        let first = cache.decide_cached(&pack, [0; 32], &request(2));
        for gpus in 3..300 {
            cache.decide_cached(&pack, [0; 32], &request(gpus));
            let still = cache.decide_cached(&pack, [0; 32], &request(1));
            assert!(Arc::ptr_eq(&popular, &still), "forgotten after {gpus}");
            let held = cache.lock();
            let entry = weight(&request(1), &popular);
            assert!(held.young.bytes < LIMIT + entry && held.old.bytes < LIMIT + entry);
        }
        let again = cache.decide_cached(&pack, [0; 32], &request(2));
        assert!(!Arc::ptr_eq(&first, &again), "never forgotten");
    }

    #[test]
    fn a_request_out_of_range_is_not_remembered() {
        let (cache, pack) = (DecisionCache::with_limit(LIMIT), pack());
        let mut large = request(1);
        large.job.labels.project = Some("x".repeat(1 << 20));
        assert!(!cache.decide_cached(&pack, [0; 32], &large).is_permit());
        assert!(cache.lock().young.answers.is_empty());
    }
}
