//! Under way: how many requests each caller has under way here, so that none of them takes every place.
//!
//! A gateway that is asked for more than it can do answers no later for that: it refuses what it would answer too late, and
//! first what those ask who have most under way.
//!
//! Invariants: what is counted is counted until it is answered or its client is gone; whoever has nothing under way is
//! not remembered, and is let in as long as there are fewer than [`ROOM`] others.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use certs::Caller;

use crate::error::{Code, Problem};

/// Requests of one caller at once: a quarter of those of a face. With fewer nobody submits faster, because commands that
/// wait together are committed together.
pub const PER_CALLER_MAX: usize = 256;
/// Requests at once up to which nobody is asked for his share: half of those of a face, so that there is a place for whoever
/// has none. Fewer would cost goodput, because commands that wait together are committed together.
const ROOM: usize = 512;
/// The same while the gateway is behind: half an envelope full of commands. What waits for an election is rarely more, and
/// what makes a gateway slow is.
const ROOM_BEHIND: usize = 128;
/// A gateway is behind when a change waits for longer. Half of the time in which all is to be well again after a rush, and
/// twice what an election between neighbours takes at best.
const BEHIND: Duration = Duration::from_secs(1);

/// Counts of all callers. Cheap to clone; all clones count together.
#[derive(Clone, Debug, Default)]
pub struct UnderWay(Arc<Mutex<Counts>>);

#[derive(Debug, Default)]
struct Counts {
    by_caller: HashMap<Who, usize>,
    all: usize,
    /// When what changes something came, in this order.
    changes: BTreeMap<u64, Instant>,
    changes_so_far: u64,
}

/// A caller as his issuer names him.
type Who = (String, String);

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Does {
    /// It only looks.
    Read,
    /// It waits for a commit.
    Change,
}

/// How much is under way, in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// Whoever asks is answered.
    Normal,
    /// Callers are held to their shares.
    Full,
    /// Changes wait for too long already.
    Behind,
}

/// One request that is counted, until this is dropped.
#[derive(Debug)]
pub struct Counted {
    under_way: UnderWay,
    who: Who,
    change: Option<u64>,
}

impl UnderWay {
    /// Counts one more request of a caller, unless he has enough of them.
    pub fn one_more(&self, caller: &Caller, does: Does, now: Instant) -> Result<Counted, Problem> {
        let who = (caller.issuer.clone(), caller.subject.clone());
        let mut counts = self.lock();
        let his = counts.by_caller.get(&who).copied().unwrap_or_default();
        let load = counts.load(now);
        if his >= PER_CALLER_MAX {
            let detail = format!("you have {PER_CALLER_MAX} requests under way at this gateway; wait for one of them");
            return Err(Problem::new(Code::Overloaded, detail));
        }
        if his >= counts.share(load) {
            let detail =
                "this gateway has more requests than it works on, and you have your share of them under way; try again";
            return Err(Problem::new(Code::Overloaded, detail));
        }
        let change = (does == Does::Change).then(|| {
            counts.changes_so_far += 1;
            counts.changes_so_far
        });
        counts.changes.extend(change.map(|it| (it, now)));
        *counts.by_caller.entry(who.clone()).or_default() += 1;
        counts.all += 1;
        Ok(Counted { under_way: self.clone(), who, change })
    }

    /// How much is under way now.
    pub fn load(&self, now: Instant) -> Load {
        self.lock().load(now)
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().expect("invariant: nothing panics while it counts")
    }
}

impl Counts {
    fn load(&self, now: Instant) -> Load {
        let oldest = self.changes.values().next();
        let is_behind = oldest.is_some_and(|came| now.saturating_duration_since(*came) > BEHIND);
        match is_behind {
            true if self.all >= ROOM_BEHIND => Load::Behind,
            false if self.all >= ROOM => Load::Full,
            // Whatever waits, waits for something else than for those before it.
            _ => Load::Normal,
        }
    }

    /// What one caller may have under way. There is room for one of each, unless there are more callers than that.
    fn share(&self, load: Load) -> usize {
        let room = match load {
            Load::Normal => return PER_CALLER_MAX,
            Load::Full => ROOM,
            Load::Behind => ROOM_BEHIND,
        };
        let callers = self.by_caller.len();
        if load == Load::Behind && callers >= ROOM { 0 } else { (room / callers.max(1)).max(1) }
    }
}

impl Load {
    /// As health says it.
    pub fn as_str(self) -> &'static str {
        match self {
            Load::Normal => "normal",
            Load::Full => "full",
            Load::Behind => "behind",
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = self.under_way.lock();
        counts.all -= 1;
        if let Some(change) = self.change {
            counts.changes.remove(&change);
        }
        if let Some(count) = counts.by_caller.get_mut(&self.who) {
            *count -= 1;
            if *count == 0 {
                counts.by_caller.remove(&self.who);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use certs::{Assurance, MemberState};

    use super::*;

    fn caller(subject: &str) -> Caller {
        Caller {
            state: MemberState::parse("FR").expect("a state"),
            issuer: "https://login.example.fr".into(),
            subject: subject.into(),
            roles: vec![],
            entitlements: vec![],
            assurance: Assurance::Low,
            clearances: vec![],
            residency: None,
            token_id: "it".into(),
            expires_s: 0,
        }
    }

    fn fill(under_way: &UnderWay, subject: &str, times: usize, now: Instant) -> Vec<Counted> {
        (0..times).map(|_| under_way.one_more(&caller(subject), Does::Change, now).expect("room")).collect()
    }

    fn is_refused(under_way: &UnderWay, subject: &str, now: Instant) -> bool {
        let asked = under_way.one_more(&caller(subject), Does::Change, now);
        asked.is_err_and(|it| it.code() == Code::Overloaded && it.document()["retry"]["may"] == true)
    }

    #[test]
    fn nobody_has_more_than_his_share_under_way() {
        let (under_way, now) = (UnderWay::default(), Instant::now());
        let mut greedy = fill(&under_way, "a", PER_CALLER_MAX, now);
        assert!(is_refused(&under_way, "a", now));
        drop(fill(&under_way, "b", 1, now));
        drop(greedy.pop());
        greedy.extend(fill(&under_way, "a", 1, now));
        drop(greedy);
        let counts = under_way.lock();
        assert!(counts.by_caller.is_empty() && counts.changes.is_empty() && counts.all == 0, "nothing is remembered");
    }

    #[test]
    fn in_a_full_gateway_those_are_refused_who_have_most_under_way() {
        let (under_way, now) = (UnderWay::default(), Instant::now());
        let greedy = [fill(&under_way, "a", 240, now), fill(&under_way, "b", 240, now)];
        let modest = fill(&under_way, "c", 31, now);
        assert_eq!(under_way.load(now), Load::Normal);
        let last = fill(&under_way, "c", 1, now);
        assert_eq!(under_way.load(now), Load::Full);
        assert!(is_refused(&under_way, "a", now) && is_refused(&under_way, "b", now));
        drop(fill(&under_way, "c", ROOM / 3 - 32, now));
        drop(fill(&under_way, "d", ROOM / 4, now));
        drop((greedy, modest, last));
        assert_eq!(under_way.load(now), Load::Normal);
    }

    #[test]
    fn a_gateway_that_is_behind_takes_less_and_from_each_something() {
        let (under_way, now) = (UnderWay::default(), Instant::now());
        let oldest = fill(&under_way, "a", 1, now);
        let greedy = [fill(&under_way, "a", 199, now), fill(&under_way, "b", 200, now)];
        let later = now + BEHIND + Duration::from_millis(1);
        assert_eq!((under_way.load(now), under_way.load(later)), (Load::Normal, Load::Behind));
        assert!(is_refused(&under_way, "a", later) && !is_refused(&under_way, "a", now));
        drop(fill(&under_way, "c", ROOM_BEHIND / 3, later));
        let crowd: Vec<_> = (2..ROOM).flat_map(|it| fill(&under_way, &format!("crowd {it}"), 1, later)).collect();
        assert!(is_refused(&under_way, "one too many", later));
        drop(crowd);
        drop((oldest, greedy));
        assert_eq!(under_way.load(later), Load::Normal);
    }

    #[test]
    fn a_few_that_wait_for_something_else_make_nobody_wait() {
        let (under_way, now) = (UnderWay::default(), Instant::now());
        let waiting = fill(&under_way, "a", ROOM_BEHIND - 1, now);
        assert_eq!(under_way.load(now + 9 * BEHIND), Load::Normal);
        drop(fill(&under_way, "a", 1, now + 9 * BEHIND));
        drop(waiting);
    }

    #[test]
    fn who_only_looks_keeps_nobody_behind() {
        let (under_way, now) = (UnderWay::default(), Instant::now());
        let ask = |it: usize| under_way.one_more(&caller(["a", "b"][it % 2]), Does::Read, now).expect("room");
        let readers: Vec<_> = (0..ROOM_BEHIND).map(ask).collect();
        assert_eq!(under_way.load(now + 9 * BEHIND), Load::Normal);
        drop(readers);
    }
}
