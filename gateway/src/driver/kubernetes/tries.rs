//! Tries: what is remembered of asking for an attempt's Job, when it is asked for again, and when that is hopeless.
//!
//! Invariant: a try that brought no answer, or an answer that does not say that nothing was done, is remembered until
//! nothing can come of it any more, whatever later tries bring.

use super::api::Trouble;

/// How long after a try that brought no answer the API server may still carry it out: its own limit is 60 s, of which
/// our client waits for the first 10.
pub(super) const LOST_MS: u64 = 65_000;
/// Between two tries: doubled from the first to the last.
const RETRY_MS: u64 = 1_000;
const RETRY_MAX_MS: u64 = 30_000;
/// What was refused for so long, for whatever reason, is given up. Silence is no refusal.
const REFUSED_MAX_MS: u64 = 10 * 60_000;

/// Tries of one attempt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tries {
    /// Since the last that was taken.
    failed: u32,
    retry_at_ms: u64,
    refused_since_ms: Option<u64>,
    /// The newest of which something may come although nobody said so.
    unsure_ms: Option<u64>,
}

/// Whether it is worth while to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Prospect {
    Again,
    Hopeless,
}

impl Tries {
    /// After a restart: nobody knows what came of the last one.
    pub fn after(posted_ms: Option<u64>) -> Tries {
        Tries { unsure_ms: posted_ms, ..Tries::default() }
    }

    pub fn is_due(&self, now_ms: u64) -> bool {
        now_ms >= self.retry_at_ms
    }

    /// Whether a look that began then has seen all that can come of them.
    pub fn are_over(&self, look_begun_ms: u64) -> bool {
        self.unsure_ms.is_none_or(|at| look_begun_ms >= at + LOST_MS)
    }

    pub fn taken(&mut self) {
        (self.failed, self.retry_at_ms, self.refused_since_ms) = (0, 0, None);
    }

    /// Nothing was asked, or there is one of that name, which the next look tells more of.
    pub fn later(&mut self, now_ms: u64) {
        self.refused_since_ms = None;
        self.retry_at_ms = now_ms + (RETRY_MS << self.failed.min(10)).min(RETRY_MAX_MS);
        self.failed = self.failed.saturating_add(1);
    }

    pub fn failed(&mut self, sent_ms: u64, trouble: &Trouble, now_ms: u64) -> Prospect {
        let refused_since_ms = self.refused_since_ms;
        self.later(now_ms);
        // From 500 on it may have been carried out.
        if trouble.code().is_none_or(|code| code >= 500) && trouble.was_sent() {
            self.unsure_ms = Some(sent_ms);
        }
        if trouble.code().is_none() {
            return Prospect::Again;
        }
        let since = refused_since_ms.unwrap_or(now_ms);
        self.refused_since_ms = Some(since);
        let is_final = matches!(trouble.code(), Some(400 | 413 | 422));
        if is_final || now_ms > since + REFUSED_MAX_MS { Prospect::Hopeless } else { Prospect::Again }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(code: u16) -> Trouble {
        Trouble::Answer { code, reason: String::new(), text: String::new() }
    }

    #[test]
    fn a_lost_try_is_remembered_whatever_the_next_ones_bring() {
        let mut tries = Tries::default();
        assert!(tries.are_over(0));
        tries.failed(1_000, &Trouble::Silence, 11_000);
        tries.failed(12_000, &answer(403), 12_100);
        assert!(!tries.are_over(1_000 + LOST_MS - 1) && tries.are_over(1_000 + LOST_MS));
        tries.failed(20_000, &answer(500), 20_100);
        assert!(!tries.are_over(1_000 + LOST_MS) && tries.are_over(20_000 + LOST_MS));
        assert!(!Tries::after(Some(5)).are_over(LOST_MS));
        let mut unsent = Tries::default();
        unsent.failed(5, &Trouble::Credentials(String::new()), 6);
        assert!(unsent.are_over(7), "nothing was sent");
    }

    #[test]
    fn it_is_tried_again_ever_more_rarely() {
        let mut tries = Tries::default();
        let mut pause = |now_ms| {
            tries.failed(now_ms, &answer(403), now_ms);
            (0..).step_by(500).find(|after| tries.is_due(now_ms + after)).expect("a time")
        };
        assert_eq!([pause(0), pause(0), pause(0)], [1_000, 2_000, 4_000]);
        assert_eq!((0..9).map(|_| pause(0)).last(), Some(30_000));
        tries.taken();
        assert!(tries.is_due(0));
    }

    #[test]
    fn what_is_refused_for_long_is_hopeless_and_silence_is_no_refusal() {
        let mut tries = Tries::default();
        assert_eq!(tries.failed(0, &answer(422), 0), Prospect::Hopeless);
        let mut tries = Tries::default();
        assert_eq!(tries.failed(0, &answer(403), 0), Prospect::Again);
        assert_eq!(tries.clone().failed(0, &answer(403), REFUSED_MAX_MS + 1), Prospect::Hopeless);
        tries.failed(0, &Trouble::Silence, 5);
        assert_eq!(tries.failed(0, &answer(403), REFUSED_MAX_MS + 1), Prospect::Again, "it counts from here");
    }
}
