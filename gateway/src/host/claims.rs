//! Claims: which duties are being worked on.
//!
//! Invariants: at most one duty per attempt, queued job and pool is in hand; a home that is slow to give its orders
//! takes a few places for them and none of what the host owes to everybody else.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use certs::MemberState;
use federation::{JobId, PoolId};

/// Orders fetched from one home at once: 27 homes x 8 orders x 4 MiB = 864 MiB at the very worst.
const ORDERS_PER_HOME_MAX: usize = 8;
/// A home that gives no order within this loses the GPUs: they are for those who come.
const ORDER_PATIENCE: Duration = Duration::from_secs(120);

/// What a duty is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// One attempt on a pool of this gateway.
    Attempt(JobId, u32),
    /// A job of this home that waits.
    Waiting(JobId),
    /// A pool of this gateway.
    Pool(PoolId),
}

/// The claims of one gateway. Cheap to clone.
#[derive(Clone, Default)]
pub struct Claims {
    held: Arc<Mutex<Held>>,
}

#[derive(Default)]
struct Held {
    subjects: BTreeSet<Subject>,
    orders: BTreeMap<MemberState, usize>,
    /// Since when an attempt's order is asked for without success.
    unanswered: HashMap<(JobId, u32), Instant>,
}

/// A duty's place. Given back when it is dropped.
pub struct Claim {
    claims: Claims,
    subject: Subject,
    home: Option<MemberState>,
}

impl Claims {
    /// A place for a duty, unless its subject is in hand. `order_of`: the home whose order has to be fetched for it.
    pub fn take(&self, subject: Subject, order_of: Option<MemberState>) -> Option<Claim> {
        let mut held = self.lock();
        if let Some(home) = order_of {
            let orders = held.orders.entry(home).or_default();
            if *orders >= ORDERS_PER_HOME_MAX {
                // Who waits for a place waits for home's order, too.
                if let Subject::Attempt(job, attempt) = subject {
                    held.unanswered.entry((job, attempt)).or_insert_with(Instant::now);
                }
                return None;
            }
        }
        if !held.subjects.insert(subject) {
            return None;
        }
        if let Some(home) = order_of {
            *held.orders.entry(home).or_default() += 1;
        }
        Some(Claim { claims: self.clone(), subject, home: order_of })
    }

    /// Notes that home gave no order at `now`; true if it has had its time.
    pub fn is_patience_over(&self, job: JobId, attempt: u32, now: Instant) -> bool {
        let since = *self.lock().unanswered.entry((job, attempt)).or_insert(now);
        now.duration_since(since) >= ORDER_PATIENCE
    }

    /// Notes that nobody waits for this attempt's order any more.
    pub fn answered(&self, job: JobId, attempt: u32) {
        self.lock().unanswered.remove(&(job, attempt));
    }

    /// Forgets since when orders are waited for, but those that `is_current` says are still wanted.
    pub fn forget_but(&self, is_current: impl Fn(JobId, u32) -> bool) {
        let waited_for: Vec<_> = self.lock().unanswered.keys().copied().collect();
        let over: Vec<_> = waited_for.into_iter().filter(|(job, attempt)| !is_current(*job, *attempt)).collect();
        let mut held = self.lock();
        for attempt in over {
            held.unanswered.remove(&attempt);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().expect("invariant: nothing panics while it holds the claims")
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut held = self.claims.lock();
        held.subjects.remove(&self.subject);
        if let Some(orders) = self.home.and_then(|home| held.orders.get_mut(&home)) {
            *orders -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(number: u8) -> JobId {
        JobId::new(1, [number; 10])
    }

    fn state(code: &str) -> MemberState {
        MemberState::parse(code).expect("a state")
    }

    #[test]
    fn one_duty_per_attempt() {
        let claims = Claims::default();
        let claim = claims.take(Subject::Attempt(job(1), 1), Some(state("FI")));
        assert!(claim.is_some());
        assert!(claims.take(Subject::Attempt(job(1), 1), None).is_none(), "a stop waits for the dispatch");
        assert!(claims.take(Subject::Attempt(job(1), 2), None).is_some());
        drop(claim);
        assert!(claims.take(Subject::Attempt(job(1), 1), None).is_some());
    }

    #[test]
    fn a_slow_home_takes_no_place_of_others() {
        let claims = Claims::default();
        let order = |number: u8, home| claims.take(Subject::Attempt(job(number), 1), Some(state(home)));
        let slow: Vec<_> = (0..20).filter_map(|number| order(number, "FI")).collect();
        assert_eq!(slow.len(), ORDERS_PER_HOME_MAX);
        assert!(order(100, "DE").is_some());
        assert!(claims.take(Subject::Attempt(job(101), 1), None).is_some(), "polls and stops go on");
        drop(slow);
        assert!(order(30, "FI").is_some());
    }

    #[test]
    fn patience_ends_and_begins_anew() {
        let claims = Claims::default();
        let begun = Instant::now();
        assert!(!claims.is_patience_over(job(1), 1, begun));
        assert!(claims.is_patience_over(job(1), 1, begun + ORDER_PATIENCE));
        claims.answered(job(1), 1);
        assert!(!claims.is_patience_over(job(1), 1, begun + ORDER_PATIENCE));
    }
}
