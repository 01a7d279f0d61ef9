//! Hindsight: what a member holds against a snapshot, because it knows it already.
//!
//! A snapshot has no signatures but those of the bundles in it. What it says of the time since this member's revision is
//! the leader's word. What it says of the time before can be compared, and every record says since when it stands.
//!
//! Invariants, of a snapshot that passes: nothing in it is dated after it; whatever it dates at or before this member's
//! revision is what this member has; sequences, serials and usage never fall; no list is longer than `limits` allows.

use certs::{KeyId, MemberState};
use thiserror::Error;

use crate::attempt::Attempt;
use crate::id::{JobId, PoolId};
use crate::job::Job;
use crate::limits;
use crate::member::Member;
use crate::offer::OfferState;
use crate::pack::{self, PackRecord};
use crate::registry::Registry;
use crate::time::Revision;

/// The first record of a snapshot that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Contradiction {
    #[error("the snapshot is of another federation")]
    Federation,
    #[error("the snapshot says of {0} what {0} has not signed, or has replaced since")]
    Member(MemberState),
    #[error("the snapshot has another pack of {0} than is known here")]
    Pack(MemberState),
    #[error("the snapshot has another offer of {0} than is known here")]
    Offer(PoolId),
    #[error("the snapshot has another job {0} than is known here")]
    Job(JobId),
    #[error("the snapshot has forgotten who has not heard {0}")]
    Silence(String),
    #[error("the snapshot has forgotten envelopes of {0}")]
    Serials(MemberState),
    #[error("the snapshot has forgotten what {home} used of {host}")]
    Usage { home: MemberState, host: MemberState },
    #[error("the snapshot has more of something than a registry may have")]
    Limit,
}

/// Whether `theirs` can be what became of `mine`.
pub fn check(mine: &Registry, theirs: &Registry) -> Result<(), Contradiction> {
    if theirs.federation != mine.federation || theirs.epoch != mine.epoch {
        return Err(Contradiction::Federation);
    }
    let span = Span { mine, theirs };
    span.limits()?;
    span.members()?;
    span.packs()?;
    span.offers()?;
    span.jobs()?;
    span.silences()?;
    span.serials()?;
    span.usage()
}

/// What happened between two revisions of a registry, if the later one is genuine.
struct Span<'a> {
    mine: &'a Registry,
    theirs: &'a Registry,
}

impl Span<'_> {
    /// Whether a record of theirs that stands since then must be one of mine.
    fn was_seen(&self, since: Revision) -> bool {
        since <= self.mine.revision
    }

    fn is_dated_after(&self, since: Revision) -> bool {
        since > self.theirs.revision
    }

    fn limits(&self) -> Result<(), Contradiction> {
        let open = |state| {
            let open = self.theirs.jobs.values().filter(|job| job.home == state && !job.state.is_final());
            open.count() <= limits::OPEN_JOBS_PER_STATE_MAX
        };
        let keys = |state| {
            let of_state = self.theirs.serials.values().filter(|window| window.owner == state);
            of_state.count() <= limits::SIGNING_KEYS_PER_STATE_MAX
        };
        let sound = self.theirs.members.keys().all(|state| {
            let offers = self.theirs.offers_of(*state).count();
            offers <= limits::OFFERS_PER_STATE_MAX && open(*state) && keys(*state)
        });
        if sound { Ok(()) } else { Err(Contradiction::Limit) }
    }

    fn members(&self) -> Result<(), Contradiction> {
        self.theirs.members.iter().try_for_each(|(state, theirs)| {
            let known = self.mine.members.get(state).filter(|mine| self.continues(mine, theirs));
            known.map(drop).ok_or(Contradiction::Member(*state))
        })
    }

    fn continues(&self, mine: &Member, theirs: &Member) -> bool {
        let genuine = theirs.signed.verify_no_older_than(&mine.bundle).is_ok_and(|bundle| bundle == theirs.bundle);
        let dated = !self.was_seen(theirs.bundle_at) || theirs.bundle.sequence == mine.bundle.sequence;
        genuine && dated && !self.is_dated_after(theirs.bundle_at) && theirs.gateways == mine.gateways
    }

    fn packs(&self) -> Result<(), Contradiction> {
        let stands = |state: &MemberState, theirs: &PackRecord| {
            let mine = self.mine.packs.get(state);
            let genuine = theirs.source.state == *state
                && theirs.digest == pack::digest(&theirs.source)
                && theirs.source.cedar.len() <= limits::PACK_BYTES_MAX;
            let follows = if self.was_seen(theirs.at_revision) {
                mine == Some(theirs)
            } else {
                mine.is_none_or(|mine| theirs.sequence > mine.sequence)
            };
            genuine && follows && !self.is_dated_after(theirs.at_revision)
        };
        // A pack is replaced and never taken away.
        for state in self.mine.packs.keys().chain(self.theirs.packs.keys()) {
            if !self.theirs.packs.get(state).is_some_and(|theirs| stands(state, theirs)) {
                return Err(Contradiction::Pack(*state));
            }
        }
        Ok(())
    }

    fn offers(&self) -> Result<(), Contradiction> {
        let bad = self.theirs.offers.iter().find(|(pool, theirs)| {
            let known = self.mine.offers.get(pool).is_some_and(|mine| is_same_offer(mine, theirs));
            self.is_dated_after(theirs.published_at) || (self.was_seen(theirs.published_at) && !known)
        });
        bad.map_or(Ok(()), |(pool, _)| Err(Contradiction::Offer(*pool)))
    }

    fn jobs(&self) -> Result<(), Contradiction> {
        let bad = self.theirs.jobs.values().find(|theirs| {
            let known = self.mine.jobs.get(&theirs.id).is_some_and(|mine| self.is_same_job(mine, theirs));
            let dated = !self.is_dated_after(theirs.submitted_at) && !self.is_dated_after(theirs.changed_at);
            !is_within_limits(theirs) || !dated || (self.was_seen(theirs.submitted_at) && !known)
        });
        bad.map_or(Ok(()), |job| Err(Contradiction::Job(job.id)))
    }

    fn is_same_job(&self, mine: &Job, theirs: &Job) -> bool {
        let submitted = |job: &Job| (job.submitted_at, job.home, job.priority, job.restartable, job.exclusive);
        let content = |job: &Job| (job.pseudonym, job.payload, job.shape.clone(), job.labels.clone());
        let reached =
            |job: &Job| (job.changed_at, job.state, job.cancel_requested, job.attempts.len(), job.end.clone());
        let granted = |it: &Attempt| (it.number, it.pool, it.served_by.clone(), it.granted_at, it.leased);
        let attempts = theirs.attempts.iter().zip(&mine.attempts);
        submitted(mine) == submitted(theirs)
            && content(mine) == content(theirs)
            && attempts.clone().count() == mine.attempts.len()
            && attempts.into_iter().all(|(theirs, mine)| granted(theirs) == granted(mine))
            && theirs.changed_at >= mine.changed_at
            && (!(self.was_seen(theirs.changed_at) || mine.state.is_final()) || reached(mine) == reached(theirs))
    }

    /// Of a gateway that has not been heard since, what was attested stands.
    fn silences(&self) -> Result<(), Contradiction> {
        let forgotten = self.mine.silences().find(|(gateway, mine)| {
            let heard_since = self.theirs.heard_at(gateway) != self.mine.heard_at(gateway);
            let kept = self
                .theirs
                .silences
                .get(gateway)
                .is_some_and(|theirs| mine.quiet.is_subset(&theirs.quiet) && mine.gone.is_subset(&theirs.gone));
            !heard_since && !kept
        });
        forgotten.map_or(Ok(()), |(gateway, _)| Err(Contradiction::Silence(gateway.to_string())))
    }

    /// Otherwise old envelopes would count once more.
    fn serials(&self) -> Result<(), Contradiction> {
        let kept = |key: &KeyId, owner: MemberState, highest: u64| {
            let theirs = self.theirs.serials.get(key);
            theirs.is_some_and(|theirs| theirs.owner == owner && theirs.highest >= highest)
        };
        let bad = self.mine.serials.iter().find(|(key, mine)| !kept(key, mine.owner, mine.highest));
        bad.map_or(Ok(()), |(_, mine)| Err(Contradiction::Serials(mine.owner)))
    }

    fn usage(&self) -> Result<(), Contradiction> {
        let fell = self.mine.usage().find(|(home, host, mine)| {
            let theirs = self.theirs.usage.get(&(*home, *host)).copied().unwrap_or_default();
            theirs.gpu_seconds < mine.gpu_seconds || theirs.jobs < mine.jobs
        });
        fell.map_or(Ok(()), |(home, host, _)| Err(Contradiction::Usage { home, host }))
    }
}

fn is_within_limits(job: &Job) -> bool {
    job.candidates.len() <= limits::CANDIDATES_MAX
        && job.attempts.len() <= limits::ATTEMPTS_MAX
        && job.decided_on.len() <= limits::MEMBERS_MAX
        && job.priority <= limits::PRIORITY_MAX
        && job.shape.check().is_ok()
}

/// Whether two offers are the same publication. It may have been withdrawn since, with another sequence.
fn is_same_offer(mine: &OfferState, theirs: &OfferState) -> bool {
    let withdrawn_since = theirs.withdrawn && theirs.offer.sequence > mine.offer.sequence;
    let as_it_was = theirs.withdrawn == mine.withdrawn && theirs.offer.sequence == mine.offer.sequence;
    let mut terms = theirs.offer.clone();
    terms.sequence = mine.offer.sequence;
    theirs.published_at == mine.published_at && (withdrawn_since || as_it_was) && terms == mine.offer
}
