//! Writing to Slurm: one request at a time, and what is noted before and after it.
//!
//! Invariant: before a job is asked for, the journal says so; so after a crash at any instruction, an attempt that may
//! be at Slurm is known to be.

use std::sync::Arc;

use super::Cluster;
use super::LocalName;
use super::dialect::{BadAnswer, Dialect, SlurmError, Submitted};
use super::entry::{Deed, Known};
use super::next::Memory;
use super::refusal::{GivenUp, is_certain, is_final, never_runs};
use super::rest::NoAnswer;
use super::seen::Trouble;
use crate::driver::folder::Key;
use crate::driver::now_ms;

/// Between two tries of one attempt: doubled from the first to the last.
const RETRY_MS: u64 = 1_000;
const RETRY_MAX_MS: u64 = 30_000;
/// A job that Slurm has refused for so long, for whatever reason, is given up. Silence is no refusal.
const REFUSED_MAX_MS: u64 = 10 * 60_000;

impl Cluster {
    pub(super) async fn write_to_slurm(self: Arc<Self>) {
        loop {
            let wanted = self.ledger.take_wanted();
            let Some((key, deed)) = wanted else {
                self.write.notified().await;
                continue;
            };
            match deed {
                Deed::Post => self.post(key).await,
                Deed::Kill => self.kill(key).await,
            }
            self.ledger.put_down(key);
            self.look.notify_one();
        }
    }

    async fn post(self: &Arc<Self>, key: Key) {
        let is_wanted = || self.ledger.entry(key).filter(|entry| !entry.is_over());
        let Some(entry) = is_wanted() else {
            return;
        };
        let Some(work) = &entry.work else {
            return;
        };
        // Nothing is sent to a Slurm that does not answer: what is not sent need not be looked for.
        let Some(dialect) = self.ready() else {
            return self.later(key, RETRY_MS, |_| ());
        };
        let caller = match self.caller(&work.mapped.user).await {
            Ok(caller) => caller,
            // Nothing was sent: what is known of an earlier try stays so.
            Err(none) => {
                let was_certain = self.ledger.with(key, |row| row.memory.is_certain).unwrap_or_default();
                let error = SlurmError { number: -1, text: none.to_string() };
                return self.refused(key, &error, was_certain).await;
            }
        };
        let Ok(body) = serde_json::to_vec(&dialect.submission(&work.request)) else {
            return;
        };
        // It may have been cancelled while a token was waited for.
        if is_wanted().is_none() {
            return;
        }
        let posted_ms = now_ms();
        if !self.ledger.note(key, move |entry| (entry.posted_ms, entry.known) = (Some(posted_ms), None)).await {
            return self.later(key, RETRY_MS, |_| ());
        }
        self.ledger.with(key, |row| {
            row.memory = Memory {
                refusals: row.memory.refusals,
                refused_since_ms: row.memory.refused_since_ms,
                ..Memory::default()
            }
        });
        match self.rest.post(&caller, &dialect.path("job/submit"), body).await {
            Ok(answer) => match dialect.submitted(&answer.body) {
                Ok(submitted) => self.submitted(key, &work.mapped.user, submitted).await,
                Err(BadAnswer::Slurm(error)) => self.refused(key, &error, is_certain(&error)).await,
                Err(BadAnswer::Unauthenticated) => {
                    self.tokens.forget(&work.mapped.user);
                    let text = "slurmrestd does not accept the token of the job's account".to_owned();
                    self.refused(key, &SlurmError { number: -1, text }, false).await;
                }
                Err(BadAnswer::Malformed(text)) => {
                    self.refused(key, &SlurmError { number: -1, text }, false).await;
                }
            },
            Err(NoAnswer::Unsent(reason)) => {
                tracing::warn!(job = %key.0, reason, "not sent");
                self.later(key, RETRY_MS, |memory| memory.is_certain = true);
            }
            // It may have been carried out, or may be yet: the looks will tell.
            Err(NoAnswer::Lost(reason)) => tracing::warn!(job = %key.0, reason, "Slurm's answer is lost"),
        }
    }

    async fn submitted(self: &Arc<Self>, key: Key, user: &LocalName, submitted: Submitted) {
        let (id, known_at_ms) = (submitted.id, now_ms());
        tracing::info!(job = %key.0, attempt = key.1, id, %user, "Slurm has the job");
        let never = submitted.but.as_ref().filter(|it| never_runs(it)).map(GivenUp::refused);
        let is_never = never.is_some();
        let noting = self.ledger.note(key, move |entry| {
            entry.known = Some(Known { id, submit_time: None });
            entry.given_up = never;
        });
        let _found_again_by_its_name = noting.await;
        self.ledger.with(key, |row| row.memory.known_at_ms = known_at_ms);
        if is_never {
            let _asked_again_at_the_next_look = self.delete(user, id).await;
        }
    }

    /// Slurm does not take it: for good, or for now. `is_certain`: there is no job of the last try.
    async fn refused(self: &Arc<Self>, key: Key, error: &SlurmError, is_certain: bool) {
        let now = now_ms();
        let since = self.ledger.with(key, |row| {
            row.memory.refusals += 1;
            *row.memory.refused_since_ms.get_or_insert(now)
        });
        let is_hopeless = is_final(error) || since.is_some_and(|since| now > since + REFUSED_MAX_MS);
        if is_hopeless && self.give_up(key, GivenUp::refused(error)).await {
            self.ledger.with(key, |row| row.memory.is_certain = is_certain);
            return;
        }
        tracing::warn!(job = %key.0, %error, "Slurm does not take the job yet");
        let refusals = self.ledger.with(key, |row| row.memory.refusals).unwrap_or(1);
        let pause = (RETRY_MS << refusals.min(10)).min(RETRY_MAX_MS);
        self.later(key, pause, move |memory| memory.is_certain = is_certain);
    }

    fn later(&self, key: Key, pause_ms: u64, change: impl FnOnce(&mut Memory)) {
        self.ledger.with(key, |row| {
            row.memory.retry_at_ms = now_ms() + pause_ms;
            change(&mut row.memory);
        });
    }

    async fn kill(self: &Arc<Self>, key: Key) {
        let Some(entry) = self.ledger.entry(key) else {
            return;
        };
        let (Some(work), Some(known)) = (&entry.work, entry.known) else {
            return;
        };
        if let Err(trouble) = self.delete(&work.mapped.user, known.id).await {
            tracing::warn!(job = %key.0, id = known.id, %trouble, "the job could not be cancelled yet");
        }
        self.ledger.with(key, |row| row.memory.killed_ms = Some(now_ms()));
    }

    pub(super) async fn delete(&self, user: &LocalName, id: u32) -> Result<(), Trouble> {
        let Some(dialect) = self.ready() else {
            return Ok(());
        };
        let caller = self.caller(user).await?;
        let answer = self.rest.delete(&caller, &dialect.path(&format!("job/{id}"))).await?;
        Ok(dialect.deleted(&answer.body)?)
    }

    /// The dialect of a Slurm that answered when it was last looked at.
    pub(super) fn ready(&self) -> Option<Dialect> {
        let seen = self.seen();
        seen.dialect.filter(|_| seen.is_well())
    }
}
