//! Grants: GPUs of an offer given to one attempt of one job, node by node.
//! Invariant: on every node, at every revision, granted <= offered; and when a grant is made, granted <= lendable.

use std::collections::{BTreeMap, BTreeSet};

use certs::MemberState;
use serde::{Deserialize, Serialize};

use crate::{id::JobId, shape::Need};

/// GPUs on `count` nodes in a row, the same number on each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSpan {
    /// Index of the first node within the pool's ledger.
    pub first: u32,
    pub count: u32,
    /// On each node.
    pub gpus: u32,
}

/// What one attempt holds of its pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// In all. 0: the grant is one task slot.
    pub gpus: u32,
    /// Where, as long as it is held.
    pub nodes: Vec<NodeSpan>,
}

/// A grant that does not fit the ledger it was made in: only a doctored snapshot can hold one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a grant exceeds its pool")]
pub struct Oversold;

/// The nodes of one pool: what local users leave to the federation, and what grants hold of it.
///
/// Only `lendable` is stored; the rest follows from the grants of open attempts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// GPUs of each node that the federation may use, its own jobs' included.
    lendable: Vec<u16>,
    #[serde(skip)]
    used: Vec<u16>,
    /// Nodes by free GPUs, so that a fit is found without a scan.
    #[serde(skip)]
    by_free: Vec<BTreeSet<u32>>,
    #[serde(skip)]
    by_lendable: Vec<u32>,
    #[serde(skip)]
    free_gpus: u32,
    #[serde(skip)]
    used_gpus: u32,
    #[serde(skip)]
    used_slots: u32,
    #[serde(skip)]
    held_by: BTreeMap<MemberState, u32>,
    #[serde(skip)]
    pub(crate) holders: BTreeSet<JobId>,
}

impl Ledger {
    /// A pool that lends everything.
    pub(crate) fn new(nodes: u32, per_node: u32) -> Ledger {
        let mut ledger = Ledger { lendable: vec![per_node as u16; nodes as usize], ..Ledger::default() };
        ledger.index(per_node);
        ledger
    }

    /// Builds what is not stored, without any grant; `false` when the stored part is not such a pool's.
    pub(crate) fn restore(&mut self, nodes: u32, per_node: u32) -> bool {
        let possible = self.nodes() == nodes && self.lendable.iter().all(|gpus| u32::from(*gpus) <= per_node);
        if possible {
            self.index(per_node);
        }
        possible
    }

    fn index(&mut self, per_node: u32) {
        self.used.resize(self.lendable.len(), 0);
        self.by_free = vec![BTreeSet::new(); per_node as usize + 1];
        self.by_lendable = vec![0; per_node as usize + 1];
        self.free_gpus = 0;
        for node in 0..self.lendable.len() as u32 {
            let free = self.free_on(node);
            self.by_free[free as usize].insert(node);
            self.by_lendable[usize::from(self.lendable[node as usize])] += 1;
            self.free_gpus += free;
        }
    }

    pub fn nodes(&self) -> u32 {
        self.lendable.len() as u32
    }

    /// GPUs that grants could still be made of.
    pub fn free_gpus(&self) -> u32 {
        self.free_gpus
    }

    /// GPUs that grants hold.
    pub fn used_gpus(&self) -> u32 {
        self.used_gpus
    }

    /// Task slots that grants hold.
    pub fn used_slots(&self) -> u32 {
        self.used_slots
    }

    /// GPUs that local users leave to the federation, granted or not.
    pub fn lendable_gpus(&self) -> u32 {
        self.lendable.iter().map(|gpus| u32::from(*gpus)).sum()
    }

    /// GPUs that jobs of `home` hold.
    pub fn held_by(&self, home: MemberState) -> u32 {
        self.held_by.get(&home).copied().unwrap_or(0)
    }

    /// Every state that holds GPUs here, with how many.
    pub fn holdings(&self) -> impl Iterator<Item = (MemberState, u32)> + '_ {
        self.held_by.iter().map(|(home, gpus)| (*home, *gpus))
    }

    /// Nodes by free GPUs: entry `g` counts the nodes with exactly `g` free.
    pub fn nodes_by_free(&self) -> impl ExactSizeIterator<Item = u32> + '_ {
        self.by_free.iter().map(|nodes| nodes.len() as u32)
    }

    /// (lendable, used) GPUs of each node.
    pub fn per_node(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.lendable.iter().zip(&self.used).map(|(lendable, used)| (u32::from(*lendable), u32::from(*used)))
    }

    /// Whether a grant for `need` could be made now. Costs one step per GPU of a node, whatever the number of nodes.
    pub fn fits(&self, need: Need, slots: u32) -> bool {
        if need.gpus == 0 {
            return self.used_slots < slots;
        }
        need.gpus <= self.free_gpus && holds(need, self.nodes_by_free())
    }

    /// Whether `need` would fit if every grant ended and the local users stayed as they are.
    pub fn could_fit(&self, need: Need, slots: u32) -> bool {
        if need.gpus == 0 {
            return slots > 0;
        }
        holds(need, self.by_lendable.iter().copied())
    }

    /// Makes a grant where the least is left over: on the fullest nodes that suffice, lowest index first.
    pub(crate) fn take(&mut self, job: JobId, home: MemberState, need: Need) -> Grant {
        let mut grant = Grant { gpus: need.gpus, nodes: Vec::new() };
        if need.gpus > 0 {
            let (count, gpus, rest) = need.split(self.per_node_max());
            self.choose(count, gpus, &mut grant);
            self.occupy_spans(&grant.nodes).expect("invariant: whole nodes were counted before they are taken");
            if rest > 0 {
                let whole = grant.nodes.len();
                self.choose(1, rest, &mut grant);
                self.occupy_spans(&grant.nodes[whole..])
                    .expect("invariant: the last node was counted before it is taken");
            }
        }
        self.enter(job, home, &grant);
        grant
    }

    /// Enters a grant that was made earlier, when a snapshot is read.
    pub(crate) fn retake(&mut self, job: JobId, home: MemberState, grant: &Grant) -> Result<(), Oversold> {
        let spanned: u64 = grant.nodes.iter().map(|span| u64::from(span.count) * u64::from(span.gpus)).sum();
        if spanned != u64::from(grant.gpus) {
            return Err(Oversold);
        }
        self.occupy_spans(&grant.nodes)?;
        self.enter(job, home, grant);
        Ok(())
    }

    /// Frees what the job's current attempt holds.
    pub(crate) fn release(&mut self, job: JobId, home: MemberState, gpus: u32, nodes: &[NodeSpan]) {
        for span in nodes {
            for node in span.first..span.first + span.count {
                self.refile(node, |ledger| ledger.used[node as usize] -= span.gpus as u16);
            }
        }
        self.used_gpus -= gpus;
        self.used_slots -= u32::from(gpus == 0);
        self.holders.remove(&job);
        let held = self.held_by.entry(home).or_default();
        *held -= gpus;
        if *held == 0 {
            self.held_by.remove(&home);
        }
    }

    /// Takes over what local users leave, as numbers of GPUs sorted from most to least.
    ///
    /// A report does not name nodes. The federation's jobs run where GPUs are lent, so the busiest nodes are
    /// taken to be the ones that lend most: if any reading of the report leaves room for every grant, this one does.
    pub(crate) fn lend(&mut self, lendable: &[u16]) {
        let mut nodes: Vec<usize> = (0..self.lendable.len()).collect();
        nodes.sort_by_key(|node| std::cmp::Reverse(self.used[*node]));
        for (rank, node) in nodes.into_iter().enumerate() {
            let (lends, lent) = (lendable.get(rank).copied().unwrap_or(0), self.lendable[node]);
            if lends != lent {
                self.by_lendable[usize::from(lent)] -= 1;
                self.by_lendable[usize::from(lends)] += 1;
                self.refile(node as u32, |ledger| ledger.lendable[node] = lends);
            }
        }
    }

    /// What the nodes lend, sorted from most to least: the form of a report.
    pub(crate) fn lent(&self) -> Vec<u16> {
        let mut lent = self.lendable.clone();
        lent.sort_unstable_by(|a, b| b.cmp(a));
        lent
    }

    /// Grows or shrinks the pool; `false`, and nothing changed, when grants stand in the way.
    pub(crate) fn resize(&mut self, nodes: u32, per_node: u32) -> bool {
        let kept = (nodes as usize).min(self.used.len());
        if self.used[kept..].iter().any(|used| *used > 0) || self.used.iter().any(|used| u32::from(*used) > per_node) {
            return false;
        }
        if per_node == self.per_node_max() {
            self.lendable.resize(nodes as usize, per_node as u16);
        } else {
            self.lendable = vec![per_node as u16; nodes as usize];
        }
        self.used.resize(nodes as usize, 0);
        self.index(per_node);
        true
    }

    fn per_node_max(&self) -> u32 {
        (self.by_free.len() as u32).saturating_sub(1)
    }

    fn free_on(&self, node: u32) -> u32 {
        u32::from(self.lendable[node as usize].saturating_sub(self.used[node as usize]))
    }

    /// Appends `count` nodes with at least `gpus` free to the grant, in spans.
    fn choose(&self, count: u32, gpus: u32, grant: &mut Grant) {
        let from = grant.nodes.len();
        let nodes = self.by_free[gpus as usize..].iter().flatten().take(count as usize);
        for node in nodes {
            match grant.nodes[from..].last_mut() {
                Some(span) if span.first + span.count == *node => span.count += 1,
                _ => grant.nodes.push(NodeSpan { first: *node, count: 1, gpus }),
            }
        }
    }

    fn occupy_spans(&mut self, spans: &[NodeSpan]) -> Result<(), Oversold> {
        let per_node = self.per_node_max();
        for span in spans {
            let end = span.first.checked_add(span.count).filter(|end| *end <= self.nodes()).ok_or(Oversold)?;
            for node in span.first..end {
                let used = u32::from(self.used[node as usize]).saturating_add(span.gpus);
                if used > per_node {
                    return Err(Oversold);
                }
                self.refile(node, |ledger| ledger.used[node as usize] = used as u16);
            }
        }
        Ok(())
    }

    fn enter(&mut self, job: JobId, home: MemberState, grant: &Grant) {
        self.used_gpus += grant.gpus;
        self.used_slots += u32::from(grant.gpus == 0);
        self.holders.insert(job);
        if grant.gpus > 0 {
            *self.held_by.entry(home).or_default() += grant.gpus;
        }
    }

    /// Changes what a node lends or has in use, and puts it where its free GPUs belong.
    fn refile(&mut self, node: u32, change: impl FnOnce(&mut Ledger)) {
        let before = self.free_on(node);
        change(self);
        let after = self.free_on(node);
        self.by_free[before as usize].remove(&node);
        self.by_free[after as usize].insert(node);
        self.free_gpus = self.free_gpus - before + after;
    }
}

/// Whether `need` can be met by nodes counted by the GPUs they have: entry `g` counts those with exactly `g`.
fn holds(need: Need, nodes_by_gpus: impl ExactSizeIterator<Item = u32>) -> bool {
    let (count, gpus, rest) = need.split(nodes_by_gpus.len() as u32 - 1);
    let (mut enough_for_each, mut enough_for_rest) = (0, 0);
    for (has, nodes) in nodes_by_gpus.enumerate() {
        let has = has as u32;
        enough_for_each += if has >= gpus { nodes } else { 0 };
        enough_for_rest += if has >= rest { nodes } else { 0 };
    }
    enough_for_each >= count && (rest == 0 || enough_for_rest > count)
}
