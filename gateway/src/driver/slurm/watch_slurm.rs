//! Watching Slurm: looks at nodes, partitions and jobs, again and again, and moves every attempt on by what is seen.
//!
//! Nodes are looked at before jobs, so that a job of ours that starts meanwhile is in the later look.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use federation::{End, Timestamp};
use tokio::time::timeout;

use super::capacity::{Own, lent};
use super::dialect::{BadAnswerOrDialect, Dialect, JobState, Jobs, SlurmJob};
use super::namesakes::{own, strays};
use super::next::{Listed, Next, next};
use super::outcome::{Facts, conclude};
use super::refusal::GivenUp;
use super::request::{is_ours, name};
use super::rest::{Caller, NoAnswer};
use super::seen::Trouble;
use super::{Cluster, LocalName};
use crate::driver::folder::{Done, Key};
use crate::driver::phase::Phase;
use crate::driver::{AttemptRecord, now_ms};

/// Between two looks.
const EVERY: Duration = Duration::from_secs(1);
/// Not more than a tenth of the time goes into lists of jobs, which may be megabytes.
const JOBS_SHARE: u32 = 9;
const JOBS_EVERY_MAX: Duration = Duration::from_secs(10);
/// All jobs are read at least this often, whatever clocks say about what has changed.
const FULL_EVERY: Duration = Duration::from_secs(10);
/// A shared file system that hangs must not stop everything else.
const FILES_TIMEOUT: Duration = Duration::from_secs(10);
/// And the next after one that did.
const FILES_TIMEOUT_AGAIN: Duration = Duration::from_millis(200);
/// The record of a job that ended well may be seen later than its end; that of one that was killed may not exist.
const RECORD_MS: u64 = 60_000;
const RECORD_KILLED_MS: u64 = 3_000;

/// Where the looks are.
#[derive(Default)]
struct Watch {
    jobs: Option<LastJobs>,
}

struct LastJobs {
    full_at: Instant,
    at: Instant,
    took: Duration,
    /// What is asked for next: changes since.
    cursor: u64,
}

impl Cluster {
    pub(super) async fn watch_slurm(self: Arc<Self>) {
        let mut watch = Watch::default();
        loop {
            match self.look_at_slurm(&mut watch).await {
                Ok(()) => self.seen().well(),
                Err(trouble) => {
                    watch = Watch::default();
                    if let Trouble::Answer(_) | Trouble::Token(_) = trouble {
                        self.tokens.forget(&self.settings.reader);
                    }
                    self.seen().unwell(&self.settings.name, trouble);
                }
            }
            self.move_all().await;
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
                () = self.look.notified() => {}
            }
        }
    }

    async fn look_at_slurm(&self, watch: &mut Watch) -> Result<(), Trouble> {
        let caller = self.caller(&self.settings.reader).await?;
        let dialect = self.dialect(&caller).await?;
        let at = Timestamp(now_ms());
        let nodes = self.rest.get(&caller, &dialect.path("nodes")).await?;
        let nodes = dialect.nodes(&nodes.body)?;
        let partitions = self.rest.get(&caller, &dialect.path("partitions")).await?;
        let partitions = dialect.partitions(&partitions.body)?;
        if self.ledger.open_keys().is_empty() {
            // A site's whole list of jobs says nothing to whom has none there.
            watch.jobs = None;
            self.seen().own = Default::default();
        } else if self.needs_jobs(watch) {
            self.look_at_jobs(watch, &caller, dialect).await?;
        }
        let mut seen = self.seen();
        for pool in &self.settings.pools {
            let lent = lent(pool, &nodes, &partitions, [&seen.own[0], &seen.own[1]]);
            seen.lent.insert(pool.id, (lent, at));
        }
        seen.partitions = partitions;
        Ok(())
    }

    async fn dialect(&self, caller: &Caller) -> Result<Dialect, Trouble> {
        if let Some(dialect) = self.seen().dialect {
            return Ok(dialect);
        }
        let document = self.rest.get(caller, "/openapi/v3").await?;
        let dialect = Dialect::choose(&document.body).map_err(|bad| match bad {
            BadAnswerOrDialect::Answer(answer) => Trouble::Answer(answer),
            BadAnswerOrDialect::Dialect(none) => Trouble::Dialect(none),
        })?;
        tracing::info!(cluster = self.settings.name, %dialect, "Slurm answers");
        self.seen().dialect = Some(dialect);
        Ok(dialect)
    }

    /// Lists of jobs may be large: they are asked for as often as they are cheap.
    fn needs_jobs(&self, watch: &Watch) -> bool {
        watch.jobs.as_ref().is_none_or(|last| last.at.elapsed() >= (last.took * JOBS_SHARE).min(JOBS_EVERY_MAX))
    }

    async fn look_at_jobs(&self, watch: &mut Watch, caller: &Caller, dialect: Dialect) -> Result<(), Trouble> {
        let (begun_ms, at) = (now_ms(), Instant::now());
        let since = watch.jobs.as_ref().filter(|last| last.full_at.elapsed() < FULL_EVERY).map(|last| last.cursor);
        let path = match since {
            Some(since) => format!("jobs?update_time={since}"),
            None => "jobs".to_owned(),
        };
        let answer = self.rest.get(caller, &dialect.path(&path)).await?;
        let jobs = match answer.is_unchanged {
            true => Jobs { is_unchanged: true, ..Jobs::default() },
            // Some megabytes are a moment's work, and others wait on this thread.
            false => tokio::task::spawn_blocking(move || dialect.jobs(&answer.body))
                .await
                .map_err(|cause| super::dialect::BadAnswer::Malformed(cause.to_string()))??,
        };
        let took = at.elapsed();
        let mut seen = self.seen();
        seen.listed = Some(Listed { begun_ms });
        if let (true, Some(last)) = (jobs.is_unchanged, &mut watch.jobs) {
            (last.at, last.took) = (at, took);
            seen.own[1] = seen.own[0].clone();
            return Ok(());
        }
        // slurmctld's own time where it tells it. Where it does not, ours: a change in the same second is seen again,
        // and one that clocks hide is seen with the next full list.
        let cursor = jobs.last_update.unwrap_or_else(|| (begun_ms / 1_000).saturating_sub(1));
        watch.jobs = Some(LastJobs { full_at: at, at, took, cursor });
        seen.jobs.clear();
        for job in jobs.jobs.into_iter().filter(|it| is_ours(&it.name)) {
            seen.jobs.entry(job.name.clone()).or_default().push(job);
        }
        let own = Own::of(seen.jobs.values().flatten().filter(|job| self.holds(job)));
        seen.own = [own, std::mem::take(&mut seen.own[0])];
        Ok(())
    }

    /// Whether a job of our name is ours: anybody can call a job as he likes.
    fn holds(&self, job: &SlurmJob) -> bool {
        let key = job.name.strip_prefix("ent-").and_then(crate::driver::folder::parse_name);
        let entry = key.and_then(|key| self.ledger.entry(key));
        entry.is_some_and(|it| it.work.as_ref().is_some_and(|work| work.mapped.user.as_str() == job.user))
    }

    /// Moves every attempt on that is not done.
    async fn move_all(self: &Arc<Self>) {
        for key in self.ledger.open_keys() {
            let job = self.job_of(key);
            if self.is_file_needed(key, job.as_ref()) && !self.look_at_folder(key).await {
                continue;
            }
            match self.next(key, job.as_ref()) {
                Some(Next::Ask) => self.ask(key).await,
                Some(next) => self.carry_out(key, next, job).await,
                None => {}
            }
            self.end_strays(key).await;
        }
    }

    /// Decides, and has the writer told of what is for it.
    fn next(&self, key: Key, job: Option<&SlurmJob>) -> Option<Next> {
        let (listed, now) = (self.seen().listed, now_ms());
        let decided = self.ledger.decide(key, |entry, memory| {
            let next = next(entry, memory, job, listed, now);
            let deed = next.deed();
            (next, deed)
        });
        if decided.as_ref().is_some_and(|next| next.deed().is_some()) {
            self.write.notify_one();
        }
        decided
    }

    /// Asks, as the job's own account, whether Slurm has it although the list does not.
    async fn ask(self: &Arc<Self>, key: Key) {
        let Some(entry) = self.ledger.entry(key) else {
            return;
        };
        let Some(work) = &entry.work else {
            return;
        };
        let asked_ms = now_ms();
        let found = match self.find(key, &work.mapped.user, entry.known.map(|it| it.id)).await {
            Ok(found) => found,
            Err(trouble) => return tracing::warn!(job = %key.0, %trouble, "Slurm does not say whether it has the job"),
        };
        match found {
            None => {
                self.ledger.with(key, |row| row.memory.absent_ms = Some(asked_ms));
                // What follows from that follows at once.
                if let Some(next) = self.next(key, None).filter(|next| *next != Next::Ask) {
                    self.carry_out(key, next, None).await;
                }
            }
            Some(job) => {
                self.seen().jobs_are_hidden(&self.settings.name, &self.settings.reader);
                if let Some(next) = self.next(key, Some(&job)) {
                    self.carry_out(key, next, Some(job)).await;
                }
            }
        }
    }

    async fn find(&self, key: Key, user: &LocalName, id: Option<u32>) -> Result<Option<SlurmJob>, Trouble> {
        let Some(dialect) = self.ready() else {
            return Err(Trouble::NoAnswer(NoAnswer::Unsent("it did not answer when it was last looked at".to_owned())));
        };
        let caller = self.caller(user).await?;
        let is_its = |it: &SlurmJob| it.name == name(key);
        if let Some(id) = id {
            let answer = self.rest.get(&caller, &dialect.path(&format!("job/{id}"))).await?;
            return Ok(dialect.job(&answer.body)?.filter(is_its));
        }
        let answer = self.rest.get(&caller, &dialect.path("jobs")).await?;
        let jobs = dialect.jobs(&answer.body)?;
        Ok(jobs.jobs.into_iter().find(|it| is_its(it) && it.user == user.as_str()))
    }

    /// An attempt's job, as it was last seen.
    pub(super) fn job_of(&self, key: Key) -> Option<SlurmJob> {
        let entry = self.ledger.entry(key)?;
        let user = &entry.work.as_ref()?.mapped.user;
        let seen = self.seen();
        own(seen.jobs.get(&name(key))?, user.as_str(), entry.known).cloned()
    }

    /// Whether the next step depends on what the supervisor has written.
    fn is_file_needed(&self, key: Key, job: Option<&SlurmJob>) -> bool {
        let known = self.ledger.entry(key).is_some_and(|it| it.known.is_some());
        known
            && job.is_none_or(|job| {
                job.state == JobState::Waiting && job.restarts > 0 || matches!(job.state, JobState::Ended(_))
            })
    }

    /// Looks at an attempt's files; `false` if that is not possible now.
    async fn look_at_folder(self: &Arc<Self>, key: Key) -> bool {
        let looked = self.on_files(key, |cluster, key, user| cluster.spool.look(user, key)).await;
        let Some(look) = looked else {
            return false;
        };
        self.ledger.with(key, |row| {
            (row.memory.has_started, row.memory.is_done) = (look.has_started, look.is_done);
        });
        true
    }

    async fn carry_out(self: &Arc<Self>, key: Key, next: Next, job: Option<SlurmJob>) {
        match next {
            Next::Wait | Next::Ask | Next::Post | Next::Kill => {}
            Next::Adopt(known) => drop(self.ledger.note(key, move |entry| entry.known = Some(known)).await),
            Next::Look => self.look_at_supervisor(key).await,
            Next::GiveUp(why) => {
                if self.give_up(key, why).await {
                    self.look.notify_one();
                }
            }
            Next::Conclude => self.conclude(key, job).await,
        }
    }

    pub(super) async fn give_up(self: &Arc<Self>, key: Key, why: GivenUp) -> bool {
        tracing::warn!(job = %key.0, attempt = key.1, why = why.line(), "given up");
        self.ledger.note(key, move |entry| entry.given_up = Some(why)).await
    }

    /// Steps that run make it run; staging does not yet.
    async fn look_at_supervisor(self: &Arc<Self>, key: Key) {
        if self.ledger.with(key, |row| *row.phase() != Phase::Starting) == Some(true) {
            return;
        }
        let state = self.on_files(key, |cluster, key, user| Ok(cluster.spool.state(user, key))).await.flatten();
        if let Some(started_ms) = state.and_then(|it| it.running_ms) {
            self.ledger.advance(key, Phase::Running { started_ms: started_ms.min(now_ms()) });
        }
    }

    /// Ends an attempt, if all that is to be known of its end is known.
    async fn conclude(self: &Arc<Self>, key: Key, job: Option<SlurmJob>) {
        let now = now_ms();
        let row = self.ledger.with(key, |row| {
            let over_since = *row.memory.over_since_ms.get_or_insert(now);
            (Arc::clone(&row.entry), row.memory.clone(), over_since)
        });
        let Some((entry, memory, over_since)) = row else {
            return;
        };
        if entry.work.is_none() {
            // Cancelled before its order was noted, and its end was not.
            return self.note_end(key, Done { end: End::Canceled, record: AttemptRecord::default() }).await;
        }
        let has_ended_well =
            job.as_ref().is_some_and(|it| it.state == JobState::Ended(super::dialect::Ending::Completed));
        let patience = if has_ended_well { RECORD_MS } else { RECORD_KILLED_MS };
        if memory.has_started && !memory.is_done && now < over_since + patience {
            return;
        }
        let looking = move |cluster: &Cluster, key: Key, user: &LocalName| {
            // From here on no supervisor that is still on its way can start it.
            let is_fenced = cluster.spool.bury(user, key);
            let facts = Facts {
                job: job.as_ref(),
                done: if memory.is_done { cluster.spool.done(user, key)? } else { None },
                state: cluster.spool.state(user, key),
                complaint: cluster.spool.complaint(user, key),
                has_started: memory.has_started,
                cancel: entry.cancel,
                given_up: entry.given_up.as_ref(),
                now_ms: now,
            };
            match is_fenced {
                // It had not started when it was looked at, and now it has: it is looked at once more.
                Ok(false) if !memory.has_started && entry.posted_ms.is_some() => Ok(None),
                Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => Err(cause),
                _ => Ok(Some(conclude(facts))),
            }
        };
        // Noted only if the files answered in time: later it may be another end.
        match self.on_files(key, looking).await {
            Some(Some(done)) => self.note_end(key, done).await,
            Some(None) => drop(self.look_at_folder(key).await),
            None => {}
        }
    }

    async fn note_end(self: &Arc<Self>, key: Key, done: Done) {
        let cluster = Arc::clone(self);
        let noting = tokio::task::spawn_blocking(move || cluster.ledger.conclude(key, done));
        if let Ok(Err(cause)) = noting.await {
            tracing::error!(job = %key.0, attempt = key.1, %cause, "the end cannot be noted yet");
        }
    }

    /// A try whose answer was lost may have been carried out late.
    async fn end_strays(self: &Arc<Self>, key: Key) {
        let Some(entry) = self.ledger.entry(key) else {
            return;
        };
        let (Some(work), Some(known)) = (&entry.work, entry.known) else {
            return;
        };
        let user = &work.mapped.user;
        let strays = self.seen().jobs.get(&name(key)).map_or(vec![], |named| strays(named, user.as_str(), known));
        for stray in strays {
            // The list may be old, and this one be the one that runs the task by now.
            let still = self.find(key, user, Some(stray)).await;
            if let Ok(Some(job)) = still
                && job.state == JobState::Waiting
            {
                tracing::warn!(job = %key.0, stray, "Slurm has the attempt twice: the second is cancelled");
                let _asked_again_at_the_next_look = self.delete(user, stray).await;
            }
        }
    }

    /// Something with an attempt's files, on a thread that may block; `None` if it failed or takes too long.
    async fn on_files<T: Send + 'static>(
        self: &Arc<Self>,
        key: Key,
        work: impl FnOnce(&Cluster, Key, &LocalName) -> std::io::Result<T> + Send + 'static,
    ) -> Option<T> {
        let entry = self.ledger.entry(key)?;
        let cluster = Arc::clone(self);
        let failed = |reason: String| {
            tracing::warn!(job = %key.0, reason, "the attempt's files cannot be used");
            None
        };
        let working = self.files.try_run(key, move || {
            let user = entry.work.as_ref().map(|it| &it.mapped.user).ok_or(std::io::ErrorKind::NotFound)?;
            work(&cluster, key, user)
        });
        let Some(working) = working else {
            return failed("an earlier look at them, or too many at others', has not come back".to_owned());
        };
        // Who waits in full for each of many that hang looks at nothing else meanwhile.
        let patience = if self.hangs.load(Ordering::Relaxed) { FILES_TIMEOUT_AGAIN } else { FILES_TIMEOUT };
        let worked = timeout(patience, working).await;
        self.hangs.store(worked.is_err(), Ordering::Relaxed);
        match worked {
            Ok(Ok(Ok(done))) => Some(done),
            Ok(Ok(Err(cause))) => failed(cause.to_string()),
            Ok(Err(cause)) => failed(cause.to_string()),
            Err(_) => failed(format!("nothing within {patience:?}")),
        }
    }
}
