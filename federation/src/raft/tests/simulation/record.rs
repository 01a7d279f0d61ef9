//! The record: what every member and every client of a run has seen, and the first thing that cannot be.
//!
//! The invariants that are checked here, with every entry that is applied, every vote that is saved and every answer that a
//! client gets:
//!
//! - an index is the same entry, with the same outcomes, on every member and after every restart
//! - entries are of leaders that follow each other
//! - an envelope is carried out once, and what was acknowledged stands where it was said to stand
//! - a vote that was saved is not forgotten; term, commit and applied never fall in a life
//! - a linearizable read sees all that was acknowledged, or read, before it began, and nothing that nobody proposed

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use tokio::time::Instant;

use crate::command::Outcome;
use crate::raft::types::{Applied, Entry, Payload};
use crate::raft::wire::{WireLogId, WireVote};

/// State and serial of an envelope.
pub type Name = (String, u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Invariant {
    EntriesAreEqual,
    LeadersFollow,
    CarriedOutOnce,
    AcknowledgedStays,
    VotesAreKept,
    NothingFalls,
    ReadsAreNotStale,
    ReplicasAreEqual,
    ItGoesOn,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub acknowledged: u64,
    pub unanswered: u64,
    pub reads: u64,
    pub faults: u64,
    pub crashes: u64,
    pub failed_disks: u64,
    pub leaders: u64,
    pub snapshots: u64,
    pub messages: u64,
}

impl Counts {
    pub fn and(&self, more: &Counts) -> Counts {
        Counts {
            acknowledged: self.acknowledged + more.acknowledged,
            unanswered: self.unanswered + more.unanswered,
            reads: self.reads + more.reads,
            faults: self.faults + more.faults,
            crashes: self.crashes + more.crashes,
            failed_disks: self.failed_disks + more.failed_disks,
            leaders: self.leaders + more.leaders,
            snapshots: self.snapshots + more.snapshots,
            messages: self.messages + more.messages,
        }
    }
}

#[derive(PartialEq)]
struct Fact {
    id: WireLogId,
    name: Option<Name>,
    outcomes: Vec<Outcome>,
}

/// What a reader knows before he asks.
#[derive(Clone, Copy)]
pub struct Floor(u64);

#[derive(Default)]
struct Seen {
    facts: BTreeMap<u64, Fact>,
    carried_out: BTreeMap<Name, u64>,
    /// Serials given out, by state.
    proposed: BTreeMap<String, u64>,
    acknowledged: BTreeMap<Name, u64>,
    /// The highest revision that anybody was told of.
    known: u64,
    votes: BTreeMap<u64, WireVote>,
    sights: BTreeMap<u64, (u64, Option<u64>, Option<u64>)>,
    leaders: std::collections::BTreeSet<(u64, u64)>,
    counts: Counts,
    digest: u64,
    lines: Option<Vec<String>>,
    violation: Option<(Invariant, String)>,
}

pub struct Record {
    seen: Mutex<Seen>,
    begun: Instant,
    watched: Option<Invariant>,
}

impl Record {
    pub fn new(text: bool, watched: Option<Invariant>) -> Record {
        let seen = Seen { digest: 0xCBF2_9CE4_8422_2325, lines: text.then(Vec::new), ..Seen::default() };
        Record { seen: Mutex::new(seen), begun: Instant::now(), watched }
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap()
    }

    /// Goes into the trace.
    pub fn say(&self, line: impl FnOnce() -> String) {
        let (line, at_us) = (line(), self.begun.elapsed().as_micros());
        let mut seen = self.lock();
        let hash = u64::from(crc32fast::hash(line.as_bytes())) ^ ((at_us as u64) << 20);
        seen.digest = (seen.digest ^ hash).wrapping_mul(0x0000_0100_0000_01B3).rotate_left(23);
        if let Some(lines) = &mut seen.lines {
            lines.push(format!("{:>9} ms  {line}", at_us as f64 / 1_000.0));
        }
    }

    pub fn break_(&self, invariant: Invariant, what: impl FnOnce() -> String) {
        if self.watched.is_some_and(|watched| watched != invariant) {
            return;
        }
        let what = what();
        self.say(|| format!("VIOLATION {invariant:?}: {what}"));
        self.lock().violation.get_or_insert((invariant, what));
    }

    pub fn violation(&self) -> Option<(Invariant, String)> {
        self.lock().violation.clone()
    }

    pub fn count(&self, count: impl FnOnce(&mut Counts)) {
        count(&mut self.lock().counts);
    }

    pub fn end(&self) -> (Counts, u64, Vec<String>) {
        let mut seen = self.lock();
        (seen.counts.clone(), seen.digest, seen.lines.take().unwrap_or_default())
    }

    pub fn is_applied(&self, node: u64, entry: &Entry, applied: &Applied) {
        let id = WireLogId::from(&entry.log_id);
        let name = match &entry.payload {
            Payload::Normal(proposal) => {
                let header = proposal.envelope.header();
                Some((header.owner.to_string(), header.serial))
            }
            _ => None,
        };
        let fact = Fact { id, name, outcomes: applied.outcomes.clone() };
        let mut broken = Vec::new();
        {
            let seen = &mut *self.lock();
            match seen.facts.get(&id.index) {
                Some(known) if *known == fact => {}
                Some(known) => broken.push((
                    Invariant::EntriesAreEqual,
                    format!(
                        "index {} is {:?} of {:?}, and on node {node} {:?} of {:?}",
                        id.index, known.name, known.id, fact.name, id
                    ),
                )),
                None => {
                    let before = seen.facts.range(..id.index).next_back().map(|(_, fact)| fact.id);
                    if before.is_some_and(|before| before.by() > id.by()) {
                        broken.push((Invariant::LeadersFollow, format!("{id:?} follows {before:?}")));
                    }
                    if let Some(name) = fact.name.clone().filter(|_| fact.outcomes != [Outcome::Replayed])
                        && let Some(first) = seen.carried_out.insert(name.clone(), id.index)
                    {
                        broken.push((Invariant::CarriedOutOnce, format!("{name:?} at {first} and {}", id.index)));
                    }
                    seen.facts.insert(id.index, fact);
                }
            }
        }
        broken.into_iter().for_each(|(invariant, what)| self.break_(invariant, || what));
        self.say(|| format!("node {node} applies {} of {:?}", id.index, id.by()));
    }

    pub fn vote_is_saved(&self, node: u64, vote: WireVote) {
        let before = self.lock().votes.insert(node, vote);
        if before.is_some_and(|before| before > vote) {
            self.break_(Invariant::VotesAreKept, || format!("node {node} votes {vote:?} after {before:?}"));
        }
        self.say(|| format!("node {node} votes {vote:?}"));
    }

    pub fn vote_is_recovered(&self, node: u64, vote: Option<WireVote>) {
        let before = self.lock().votes.get(&node).copied();
        if before > vote {
            self.break_(Invariant::VotesAreKept, || format!("node {node} recovers {vote:?} and had saved {before:?}"));
        }
    }

    /// Term, commit and applied of a member; they start again with each life, which has a number.
    pub fn sees(&self, life: u64, node: u64, sight: (bool, u64, Option<u64>, Option<u64>)) {
        let (leads, term, committed, applied) = sight;
        let before = {
            let mut seen = self.lock();
            if leads && seen.leaders.insert((term, node)) {
                seen.counts.leaders += 1;
            }
            seen.sights.insert(life, (term, committed, applied))
        };
        if before.is_some_and(|(a, b, c)| a > term || b > committed || c > applied) {
            self.break_(Invariant::NothingFalls, || format!("node {node} had {before:?} and has {sight:?}"));
        }
    }

    /// The next envelope of a state.
    pub fn proposes(&self, state: &str) -> u64 {
        let mut seen = self.lock();
        let serial = seen.proposed.entry(state.to_owned()).or_default();
        *serial += 1;
        *serial
    }

    pub fn is_acknowledged(&self, state: &str, serial: u64, applied: &Applied) {
        let (index, name) = (applied.revision.0, (state.to_owned(), serial));
        let stands = {
            let mut seen = self.lock();
            seen.known = seen.known.max(index);
            seen.counts.acknowledged += 1;
            seen.acknowledged.insert(name.clone(), index);
            seen.facts.get(&index).is_some_and(|fact| fact.name.as_ref() == Some(&name))
                && seen.carried_out.contains_key(&name)
        };
        if !stands {
            self.break_(Invariant::AcknowledgedStays, || format!("{name:?} is not what stands at {index}"));
        }
        self.say(|| format!("{name:?} is acknowledged at {index}"));
    }

    pub fn floor(&self) -> Floor {
        Floor(self.lock().known)
    }

    /// A read that began at that floor has seen this revision, and for a state this serial.
    pub fn has_read(&self, node: u64, floor: Floor, revision: u64, state: &str, serial: u64) {
        let (must, may) = {
            let mut seen = self.lock();
            seen.counts.reads += 1;
            seen.known = seen.known.max(revision);
            let of_state = seen.acknowledged.range((state.to_owned(), 0)..(state.to_owned(), u64::MAX));
            let must = of_state.filter(|(_, at)| **at <= floor.0).map(|((_, serial), _)| *serial).max().unwrap_or(0);
            (must, seen.proposed.get(state).copied().unwrap_or(0))
        };
        if revision < floor.0 || serial < must || serial > may {
            self.break_(Invariant::ReadsAreNotStale, || {
                let floor = floor.0;
                format!("node {node} reads {state} {serial} at {revision}; {floor} was known, {must}..={may} possible")
            });
        }
        self.say(|| format!("node {node} reads {revision}"));
    }

    pub fn floor_is_above(&self, revision: u64) -> bool {
        self.lock().known > revision
    }

    /// What was acknowledged, of whom.
    pub fn acknowledged(&self) -> Vec<Name> {
        self.lock().acknowledged.keys().cloned().collect()
    }
}
