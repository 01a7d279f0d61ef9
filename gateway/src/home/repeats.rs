//! Repeats: which submission is the same as an earlier one, although a client sends it again.
//!
//! A client says so itself with a key, or sends the same body: by another path, as py-tes does, or because it cannot have
//! heard of the first. Invariants: one submission at a time under one key, and one at work on a task: none gives up a task
//! that another is about to have accepted. What a client may not have heard of is remembered until it has, as far as there
//! is room.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard};

use certs::Digest;
use federation::{JobId, Pseudonym, Timestamp};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::error::{Code, Problem};
use crate::store::{RememberedKey, Store};

/// A client that got no answer repeats itself within this (py-tes under its next path prefix).
const REPEAT_WINDOW_MS: u64 = 60_000;
/// How long an idempotency key is honoured.
const KEY_LIFE_MS: u64 = 24 * 3600 * 1000;
/// Keys of submissions that ended without an answer: 10,000 x ~100 bytes = 1 MiB.
const UNANSWERED_MAX: usize = 10_000;

/// A submission as it arrived: what makes it the same as an earlier one.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// `Idempotency-Key`, if the client sent one.
    pub key: Option<String>,
    /// Digest of the request body.
    pub body: Digest,
    /// The path prefix that it came by: `/ga4gh/tes/v1`, `/v1`, …
    pub face: String,
}

/// Under what a submission is found again: `owner || 'k' || key` for a client's own key, `owner || 'b' || digest`
/// for a body that may be repeated.
pub(super) struct ScopedKey {
    pub bytes: Vec<u8>,
    pub life_ms: u64,
    is_own: bool,
}

impl ScopedKey {
    pub fn of(owner: &Pseudonym, arrival: &Arrival) -> ScopedKey {
        match &arrival.key {
            Some(key) => {
                let bytes = [&owner.0[..], b"k", key.as_bytes()].concat();
                ScopedKey { bytes, life_ms: KEY_LIFE_MS, is_own: true }
            }
            None => {
                let bytes = [&owner.0[..], b"b", &arrival.body.0].concat();
                ScopedKey { bytes, life_ms: REPEAT_WINDOW_MS, is_own: false }
            }
        }
    }
}

/// What memory has of submissions; what a store has of them outlives it.
pub(super) struct Repeats {
    started_at: Timestamp,
    in_progress: Mutex<HashSet<Vec<u8>>>,
    /// Tasks that a submission is at work on.
    at_work: Mutex<HashSet<JobId>>,
    /// One of them is put down.
    put_down: Notify,
    /// Repeatable keys whose submission ended without its client hearing of a success.
    unanswered: Mutex<HashSet<Vec<u8>>>,
}

impl Repeats {
    /// What was answered before is not known.
    pub fn since(started_at: Timestamp) -> Repeats {
        Repeats {
            started_at,
            in_progress: Mutex::default(),
            at_work: Mutex::default(),
            put_down: Notify::new(),
            unanswered: Mutex::default(),
        }
    }

    /// At most one submission at a time under one key of a client.
    pub fn claim(&self, key: &ScopedKey) -> Result<Claim<'_>, Problem> {
        // Only a client's own key is claimed; repeating a body is no conflict.
        let claimed = key.is_own.then(|| key.bytes.clone());
        if let Some(claimed) = &claimed
            && !lock(&self.in_progress).insert(claimed.clone())
        {
            return Err(Problem::new(
                Code::IdempotencyInProgress,
                "a request with this Idempotency-Key is still being worked on; ask again shortly",
            ));
        }
        Ok(Claim { repeats: self, claimed })
    }

    /// Begins to work on a task; `None` while another submission does.
    pub fn work_on(&self, job: JobId) -> Option<AtWork<'_>> {
        lock(&self.at_work).insert(job).then(|| AtWork { repeats: self, job })
    }

    /// The submission that this one repeats, if it is remembered, to go on with. Waits until nobody else is at work on its
    /// task, which may end with the task accepted, given up, or neither.
    pub async fn adopt(
        &self,
        store: &Store,
        key: &ScopedKey,
        arrival: &Arrival,
        now: Timestamp,
        deadline: Instant,
    ) -> Result<Option<(RememberedKey, AtWork<'_>)>, Problem> {
        loop {
            // Made before the look, so that nothing that is put down after it is missed.
            let put_down = self.put_down.notified();
            let Some(known) = self.earlier(store, key, arrival, now)? else {
                return Ok(None);
            };
            if let Some(at_work) = self.work_on(known.job) {
                // Whoever was at work may have given it up between the two.
                match self.earlier(store, key, arrival, now)? {
                    Some(still) if still.job == known.job => return Ok(Some((still, at_work))),
                    _ => continue,
                }
            }
            let late = |_| {
                Problem::new(
                    Code::OutcomeUnknown,
                    "an earlier request for the same task is still being worked on; repeat this one to hear of its end",
                )
            };
            timeout_at(deadline, put_down).await.map_err(late)?;
        }
    }

    /// The submission that this one repeats, if it is remembered.
    fn earlier(
        &self,
        store: &Store,
        key: &ScopedKey,
        arrival: &Arrival,
        now: Timestamp,
    ) -> Result<Option<RememberedKey>, Problem> {
        let Some(known) = store.key(&key.bytes)?.filter(|known| now <= known.until) else {
            return Ok(None);
        };
        if key.is_own && known.body != arrival.body {
            return Err(Problem::new(
                Code::IdempotencyMismatch,
                "this Idempotency-Key was used for another body; choose a new key",
            ));
        }
        // The same body by the same path is a second task; by another path it is a repeat, and so it is when its
        // client cannot have heard of the first.
        let unheard = || known.at < self.started_at || lock(&self.unanswered).contains(&key.bytes);
        let same_task = key.is_own || known.face != arrival.face || unheard();
        Ok(same_task.then_some(known))
    }

    /// A submission ended, and its client may not have heard how.
    pub fn unheard(&self, key: Vec<u8>) {
        let mut unanswered = lock(&self.unanswered);
        if unanswered.len() >= UNANSWERED_MAX {
            unanswered.clear();
        }
        unanswered.insert(key);
    }

    /// For a submission whose answer may never be delivered: unless it is told so, a repeat of it is the same task.
    pub fn delivery(&self, key: ScopedKey) -> Delivery<'_> {
        Delivery { repeats: self, key: key.bytes, is_done: false }
    }
}

/// Notes a submission whose client went away before its answer.
pub struct Delivery<'a> {
    repeats: &'a Repeats,
    key: Vec<u8>,
    is_done: bool,
}

impl Delivery<'_> {
    /// The answer is on its way; a success counts as heard.
    pub fn done(mut self, success: bool) {
        self.is_done = true;
        if success {
            lock(&self.repeats.unanswered).remove(&self.key);
        }
    }
}

impl Drop for Delivery<'_> {
    fn drop(&mut self) {
        if !self.is_done {
            self.repeats.unheard(std::mem::take(&mut self.key));
        }
    }
}

/// Puts a task down when a submission is done with it, however it ends.
pub(super) struct AtWork<'a> {
    repeats: &'a Repeats,
    job: JobId,
}

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        lock(&self.repeats.at_work).remove(&self.job);
        self.repeats.put_down.notify_waiters();
    }
}

/// Releases a key when a submission is done, however it ends.
pub(super) struct Claim<'a> {
    repeats: &'a Repeats,
    claimed: Option<Vec<u8>>,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if let Some(key) = &self.claimed {
            lock(&self.repeats.in_progress).remove(key);
        }
    }
}

fn lock<T>(keys: &Mutex<HashSet<T>>) -> MutexGuard<'_, HashSet<T>> {
    keys.lock().expect("invariant: nothing panics while it holds a set of keys")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use futures_util::FutureExt;

    use super::*;
    use crate::store::Change;
    use crate::store::tests::{summary, task};

    const OWNER: Pseudonym = Pseudonym([7; 16]);

    fn arrival(key: Option<&str>, face: &str) -> Arrival {
        Arrival { key: key.map(str::to_owned), body: Digest::of(b"{}"), face: face.to_owned() }
    }

    #[test]
    fn one_key_is_worked_on_once_at_a_time_and_a_body_as_often_as_it_is_sent() {
        let repeats = Repeats::since(Timestamp(0));
        let own = || ScopedKey::of(&OWNER, &arrival(Some("a"), "/v1"));
        let claim = repeats.claim(&own()).expect("the first");
        assert_eq!(repeats.claim(&own()).err().expect("a second").code(), Code::IdempotencyInProgress);
        drop(claim);
        assert!(repeats.claim(&own()).is_ok(), "it is free again");
        let body = ScopedKey::of(&OWNER, &arrival(None, "/v1"));
        let _first = repeats.claim(&body).expect("the first");
        assert!(repeats.claim(&body).is_ok());
    }

    #[test]
    fn an_answer_that_was_not_delivered_is_remembered_until_one_is() {
        let repeats = Repeats::since(Timestamp(0));
        let key = || ScopedKey::of(&OWNER, &arrival(None, "/v1"));
        let is_unheard = || lock(&repeats.unanswered).contains(&key().bytes);
        repeats.delivery(key()).done(true);
        assert!(!is_unheard());
        drop(repeats.delivery(key()));
        assert!(is_unheard(), "its client went away");
        repeats.delivery(key()).done(false);
        assert!(is_unheard(), "it heard of no success");
        repeats.delivery(key()).done(true);
        assert!(!is_unheard());
    }

    /// A store with a task that came by `/v1`, under the key of its body.
    async fn store() -> (tempfile::TempDir, Store, JobId) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let store = Store::open(folder.path()).await.expect("a store");
        let (arrival, task) = (arrival(None, "/v1"), task(1));
        let (key, job) = (ScopedKey::of(&OWNER, &arrival).bytes, task.job);
        let remembered =
            RememberedKey { body: arrival.body, job, face: arrival.face, at: Timestamp(1), until: Timestamp(100) };
        let accept = Change::Accept {
            task: Box::new(task),
            summary: summary(1),
            again: false,
            keys: vec![(key, remembered)],
            explanation: Arc::from(&b"verdicts"[..]),
        };
        store.write(accept).await.expect("written");
        (folder, store, job)
    }

    #[tokio::test]
    async fn a_repeat_waits_for_whoever_is_at_work_on_its_task() {
        let repeats = Repeats::since(Timestamp(0));
        let (_folder, store, job) = store().await;
        let other = arrival(None, "/ga4gh/tes/v1");
        let key = ScopedKey::of(&OWNER, &other);
        let never = Instant::now() + Duration::from_secs(3_600);
        let adopt = || Box::pin(repeats.adopt(&store, &key, &other, Timestamp(2), never));

        let at_work = repeats.work_on(job).expect("nobody is at work");
        let mut accepted = adopt();
        assert!((&mut accepted).now_or_never().is_none(), "the first is still at work");
        drop(at_work);
        let (known, at_work) = accepted.await.expect("read").expect("it goes on with the task");
        assert_eq!(known.job, job);

        let mut given_up = adopt();
        assert!((&mut given_up).now_or_never().is_none(), "the second is at work");
        store.write(Change::Forget { job, owner: OWNER, keys: vec![key.bytes.clone()] }).await.expect("written");
        drop(at_work);
        assert!(given_up.await.expect("read").is_none(), "there is nothing to go on with");
        assert!(repeats.work_on(job).is_some());
    }

    #[tokio::test]
    async fn a_repeat_that_has_waited_too_long_says_that_the_outcome_is_unknown() {
        let repeats = Repeats::since(Timestamp(0));
        let (_folder, store, job) = store().await;
        let _at_work = repeats.work_on(job).expect("nobody is at work");
        let other = arrival(None, "/ga4gh/tes/v1");
        let key = ScopedKey::of(&OWNER, &other);
        let late = repeats.adopt(&store, &key, &other, Timestamp(2), Instant::now()).await;
        assert_eq!(late.err().map(|problem| problem.code()), Some(Code::OutcomeUnknown));
    }
}
