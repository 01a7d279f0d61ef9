//! The queue of each pool: whose turn it is when GPUs become free.
//!
//! Higher priority first; then the state with the least recent use of the pool (every state has the same
//! share); then age. A job that fits may go before one that doesn't, but a job that was first in line and passed
//! over too often has the pool kept free until it fits. A job has no turn while its home holds as much of the pool as
//! its ceiling there.
//! Invariants: after every command, no job waits for a pool that has room for it and a turn, unless the pool is kept free
//! for another; a queued job stands in the queue of each of its candidates, and no other job in any.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use certs::MemberState;

use crate::{
    attempt,
    candidate::{Candidate, Ceiling},
    id::{JobId, PoolId},
    job::Job,
    limits::PASSED_OVER_MAX,
    offer::OfferState,
    registry::Registry,
    shape::Need,
    time::Revision,
};

/// Age: when the job was submitted, and its id among those of the same batch.
type Ticket = (Revision, JobId);

/// Jobs of one priority, one home and one ceiling, those that need the same together.
type Line = BTreeMap<Need, BTreeSet<Ticket>>;

/// Jobs of one priority and one home, by the percentage that its home's share has to be below.
type Lines = BTreeMap<u32, Line>;

/// The ceiling of jobs that have none.
const ANY_SHARE: u32 = u32::MAX;

/// Who waits for one pool. Follows from the jobs and the offer, and is not stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Queue {
    lines: BTreeMap<(Reverse<u8>, MemberState), Lines>,
    /// Jobs that name the pool and do not suit its offer as it is now.
    aside: BTreeSet<JobId>,
    /// Jobs that the pool is kept free for, one after the other.
    reserved: BTreeMap<Ticket, Reservation>,
}

/// What a pool is kept free for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reservation {
    need: Need,
    home: MemberState,
    ceiling: u32,
}

/// The jobs of one priority and one home that have a turn.
struct InLine<'a> {
    lines: &'a Lines,
    share: u32,
}

/// The next job to be granted, and the one that was first in line and must wait.
struct Turn {
    job: JobId,
    passed_over: Option<JobId>,
}

impl Queue {
    /// Jobs that wait here, those that don't suit the offer included.
    pub(crate) fn jobs(&self) -> impl Iterator<Item = JobId> + '_ {
        let in_line = self.lines.values().flat_map(BTreeMap::values).flat_map(BTreeMap::values);
        let in_line = in_line.flatten().map(|(_, job)| *job);
        in_line.chain(self.aside.iter().copied())
    }

    /// GPUs that the jobs in line ask for, and how many jobs they are.
    pub(crate) fn demand(&self) -> (u64, usize) {
        let needs = self.lines.values().flat_map(BTreeMap::values).flatten();
        needs.fold((0, 0), |(gpus, jobs), (need, tickets)| {
            (gpus + u64::from(need.gpus) * tickets.len() as u64, jobs + tickets.len())
        })
    }

    /// What the pool is kept free for: the oldest reservation that local users leave room for at all.
    pub(crate) fn kept_for(&self, offer: &OfferState) -> Option<(JobId, Need)> {
        self.reserved.iter().find(|(_, it)| it.is_in_effect(offer)).map(|((_, job), it)| (*job, it.need))
    }

    fn join(&mut self, job: &Job, pool: PoolId, offer: Option<&OfferState>) {
        if offer.is_none_or(|offer| offer.misfit(&job.shape).is_some()) {
            self.aside.insert(job.id);
            return;
        }
        let (ticket, need) = (ticket(job), job.shape.need());
        let lines = self.lines.entry(place(job)).or_default();
        lines.entry(ceiling(job, pool)).or_default().entry(need).or_default().insert(ticket);
        if job.reserved == Some(pool) {
            self.reserved.insert(ticket, Reservation::of(job, pool));
        }
    }

    fn leave(&mut self, job: &Job, pool: PoolId) {
        let (ticket, need, ceiling) = (ticket(job), job.shape.need(), ceiling(job, pool));
        self.aside.remove(&job.id);
        self.reserved.remove(&ticket);
        let Some(lines) = self.lines.get_mut(&place(job)) else {
            return;
        };
        let Some(line) = lines.get_mut(&ceiling) else {
            return;
        };
        let Some(tickets) = line.get_mut(&need) else {
            return;
        };
        tickets.remove(&ticket);
        if tickets.is_empty() {
            line.remove(&need);
        }
        if line.is_empty() {
            lines.remove(&ceiling);
        }
        if lines.is_empty() {
            self.lines.remove(&place(job));
        }
    }

    fn is_empty(&self) -> bool {
        self.lines.is_empty() && self.aside.is_empty()
    }

    /// Those in line in the order of their turns.
    fn turns(&self, offer: &OfferState) -> Vec<InLine<'_>> {
        let mut turns: Vec<_> =
            self.lines.iter().map(|(place, lines)| (place.0, offer.weight(place.1), place.1, lines)).collect();
        turns.sort_unstable_by_key(|(priority, weight, home, _)| (*priority, *weight, *home));
        turns.into_iter().map(|(.., home, lines)| InLine { lines, share: offer.share_percent(home) }).collect()
    }

    /// The GPU job whose turn it is, whether it fits now or not.
    fn first(&self, offer: &OfferState) -> Option<JobId> {
        self.turns(offer).into_iter().find_map(|it| it.first(offer)).map(|(_, job)| job)
    }

    fn next(&self, offer: &OfferState) -> Option<Turn> {
        let full = offer.ledger.free_gpus() == 0 && offer.ledger.used_slots() >= offer.offer.task_slots;
        if self.lines.is_empty() || full {
            return None;
        }
        let kept_for = self.kept_for(offer);
        if let Some((job, _)) = kept_for.filter(|(_, need)| offer.has_room(*need)) {
            return Some(Turn { job, passed_over: None });
        }
        let may_go = |need: &Need| offer.has_room(*need) && (need.gpus == 0 || kept_for.is_none());
        let mut first = None;
        for in_line in self.turns(offer) {
            first = first.or_else(|| in_line.first(offer));
            if let Some((ticket, takes_gpus)) = in_line.oldest(may_go) {
                let passed_over = first.filter(|first| *first != ticket && takes_gpus).map(|(_, job)| job);
                return Some(Turn { job: ticket.1, passed_over });
            }
        }
        None
    }
}

impl InLine<'_> {
    /// The first GPU job that local users leave room for: who could not have had the GPUs is not passed over.
    fn first(&self, offer: &OfferState) -> Option<Ticket> {
        self.oldest(|need| need.gpus > 0 && offer.could_have_room(*need)).map(|(ticket, _)| ticket)
    }

    /// The first of those that may go, and whether it takes GPUs.
    fn oldest(&self, may: impl Fn(&Need) -> bool) -> Option<(Ticket, bool)> {
        let with_a_turn = self.lines.range(self.share.saturating_add(1)..).flat_map(|(_, line)| line);
        let first_of_each = with_a_turn.filter(|(need, _)| may(need));
        first_of_each.filter_map(|(need, tickets)| Some((*tickets.first()?, need.gpus > 0))).min()
    }
}

impl Reservation {
    fn of(job: &Job, pool: PoolId) -> Reservation {
        Reservation { need: job.shape.need(), home: job.home, ceiling: ceiling(job, pool) }
    }

    /// Whether local users leave room for the job, and its home's share a turn.
    fn is_in_effect(&self, offer: &OfferState) -> bool {
        offer.could_have_room(self.need) && offer.share_percent(self.home) < self.ceiling
    }
}

/// Whether a job that waits nowhere may be granted GPUs of this pool at once.
pub(crate) fn admits(registry: &Registry, pool: PoolId, id: JobId) -> bool {
    let (job, Some(offer)) = (&registry.jobs[&id], registry.offers.get(&pool)) else {
        return false;
    };
    let need = job.shape.need();
    job.candidate(&pool).is_none_or(|it| it.has_turn(offer, job.home))
        && offer.has_room(need)
        && offer.misfit(&job.shape).is_none()
        && (need.gpus == 0 || !is_kept_free(registry, pool))
}

/// Whether somebody was passed over so often that the pool is kept free for it.
pub(crate) fn is_kept_free(registry: &Registry, pool: PoolId) -> bool {
    let queue_and_offer = registry.derived.queues.get(&pool).zip(registry.offers.get(&pool));
    queue_and_offer.is_some_and(|(queue, offer)| queue.kept_for(offer).is_some())
}

/// Counts it when a job that waits nowhere is about to be granted GPUs before the first in line.
pub(crate) fn pass_over(registry: &mut Registry, pool: PoolId, id: JobId) {
    let (Some(queue), Some(offer)) = (registry.derived.queues.get(&pool), registry.offers.get(&pool)) else {
        return;
    };
    let newcomer = &registry.jobs[&id];
    let Some(first) = queue.first(offer).filter(|_| newcomer.shape.gpus > 0) else {
        return;
    };
    let turn = |job: &Job| (Reverse(job.priority), offer.weight(job.home), job.home);
    if turn(&registry.jobs[&first]) <= turn(newcomer) {
        was_passed_over(registry, pool, first);
    }
}

/// Lets a queued job wait for all its candidates.
pub(crate) fn join(registry: &mut Registry, id: JobId) {
    let job = &registry.jobs[&id];
    for Candidate { pool, .. } in &job.candidates {
        registry.derived.queues.entry(*pool).or_default().join(job, *pool, registry.offers.get(pool));
    }
    registry.derived.waiting.entry(job.home).or_default().insert((job.decided_at, id));
}

/// Takes a job out of all its queues; names the pool that was kept free for it, which may now serve others.
pub(crate) fn leave(registry: &mut Registry, id: JobId) -> Option<PoolId> {
    let job = &registry.jobs[&id];
    for Candidate { pool, .. } in &job.candidates {
        let queue = registry.derived.queues.get_mut(pool).expect("invariant: a queued job stands in every queue");
        queue.leave(job, *pool);
        if queue.is_empty() {
            registry.derived.queues.remove(pool);
        }
    }
    let waiting = registry.derived.waiting.get_mut(&job.home).expect("invariant: a queued job waits at home");
    waiting.remove(&(job.decided_at, id));
    if waiting.is_empty() {
        registry.derived.waiting.remove(&job.home);
    }
    job.reserved
}

/// Grants the pool's free GPUs to those who wait, in turn, until nobody fits who may go.
pub(crate) fn serve(registry: &mut Registry, pool: PoolId) {
    let mut pools = vec![pool];
    while let Some(pool) = pools.pop() {
        while let Some(turn) = next_turn(registry, pool) {
            if let Some(first) = turn.passed_over {
                was_passed_over(registry, pool, first);
            }
            pools.extend(leave(registry, turn.job).filter(|kept| *kept != pool));
            attempt::grant(registry, turn.job, pool);
        }
    }
}

/// Sorts a pool's queue again after the offer's terms changed.
pub(crate) fn regroup(registry: &mut Registry, pool: PoolId) {
    let Some(before) = registry.derived.queues.remove(&pool) else {
        return;
    };
    let mut queue = Queue::default();
    for job in before.jobs() {
        queue.join(&registry.jobs[&job], pool, registry.offers.get(&pool));
    }
    registry.derived.queues.insert(pool, queue);
}

fn next_turn(registry: &Registry, pool: PoolId) -> Option<Turn> {
    registry.derived.queues.get(&pool)?.next(registry.offers.get(&pool)?)
}

fn was_passed_over(registry: &mut Registry, pool: PoolId, id: JobId) {
    let job = registry.job_mut(id);
    job.passed_over = job.passed_over.saturating_add(1);
    let (passed_over, before) = (job.passed_over, job.reserved);
    // One pool is kept free for it, not all that it waits for; another one if that pool lost the room for it.
    if passed_over < PASSED_OVER_MAX || before.is_some_and(|before| is_kept_free_for(registry, before, id)) {
        return;
    }
    let job = registry.job_mut(id);
    job.reserved = Some(pool);
    let (ticket, reservation) = (ticket(job), Reservation::of(job, pool));
    if let Some(queue) = before.and_then(|before| registry.derived.queues.get_mut(&before)) {
        queue.reserved.remove(&ticket);
    }
    let queue = registry.derived.queues.get_mut(&pool).expect("invariant: who is first in line stands in the queue");
    queue.reserved.insert(ticket, reservation);
}

/// Whether a reservation is in effect: the job suits the pool, local users leave room for it, and its home's share a turn.
fn is_kept_free_for(registry: &Registry, pool: PoolId, id: JobId) -> bool {
    let reservation = |queue: &Queue| queue.reserved.get(&ticket(&registry.jobs[&id])).copied();
    let reserved = registry.derived.queues.get(&pool).and_then(reservation);
    reserved.zip(registry.offers.get(&pool)).is_some_and(|(it, offer)| it.is_in_effect(offer))
}

fn place(job: &Job) -> (Reverse<u8>, MemberState) {
    (Reverse(job.priority), job.home)
}

/// What the share of the job's home has to be below.
fn ceiling(job: &Job, pool: PoolId) -> u32 {
    job.candidate(&pool).and_then(|it| it.below).map_or(ANY_SHARE, Ceiling::percent)
}

fn ticket(job: &Job) -> Ticket {
    (job.submitted_at, job.id)
}
