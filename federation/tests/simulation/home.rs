//! The home side: it keeps its researchers' tasks and decides where they may go.
//!
//! As `gateway/src/home.rs` and `archive.rs` have it, with clients' own keys only: remember, decide, place, store,
//! commit.
//! Invariant: the mistakes in here are the planted ones.

use std::collections::BTreeSet;

use certs::Digest;
use federation::{
    Candidate, Ceiling, Command, Job, JobId, Outcome, Placement, Pseudonym, PublishPack, Reason, Registry, Rejection,
    Rerank, Revision, Shape, Submit,
};
use policy::{Action, DataClass, Permit};

use crate::{
    bugs::Bug,
    gateway::Gateway,
    machine::{Change, NotCommitted, Task},
    packs::{self, Question},
    proposer::COMMIT_TIMEOUT_MS,
    size::{gateway_name, offer},
};

const STALE_RETRIES: usize = 3;
const SUBMIT_TIMEOUT_MS: u64 = 1_400;
const READ_YOUR_WRITE_MS: u64 = 200;
const LOOK_EVERY_MS: u64 = 200;
const TICK_MS: u64 = 2_000;
/// The gateway waits ten minutes; here every envelope has come after [`SUBMIT_TIMEOUT_MS`] and the longest delay.
const NEVER_COMMITTED_AFTER_MS: u64 = 8_000;
const SURE_TIMEOUT_MS: u64 = 1_000;
const PUBLISH_LOOK_EVERY_MS: u64 = 1_000;
const PUBLISH_RETRY_MS: u64 = 300;

/// A submission as it arrives.
#[derive(Clone, Debug)]
pub struct Submission {
    pub key: String,
    pub payload: Vec<u8>,
    pub gpus: u32,
    /// Nodes to spread them over; 0: as it comes.
    pub nodes: u32,
    pub walltime_s: u32,
    pub class: DataClass,
    pub priority: u8,
    pub exclusive: bool,
    pub restartable: bool,
}

/// Why a submission is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No pool may run it, or can.
    Nowhere,
    /// Ask again.
    NotNow,
}

enum Failed {
    /// The registry did not and will not take this call's command.
    Refused(Refusal),
    /// It may have taken it, or may take it yet.
    Unknown,
}

impl Submission {
    fn shape(&self) -> Shape {
        Shape {
            gpus: self.gpus,
            nodes: self.nodes,
            model: None,
            memory_gib_min: 0,
            walltime_s: self.walltime_s,
            cpu_cores: 0,
            ram_gib: 0,
            disk_gib: 0,
        }
    }
}

impl Gateway {
    pub async fn submit(&self, submission: &Submission) -> Result<JobId, Refusal> {
        if !self.memory.borrow_mut().in_progress.insert(submission.key.clone()) {
            return Err(Refusal::NotNow);
        }
        let answer = self.accept(submission).await;
        self.memory.borrow_mut().in_progress.remove(&submission.key);
        if let Ok(job) = answer {
            self.world.say(|| format!("{} acknowledges {job}", self.state()));
            let now_ms = self.world.clock.now_ms();
            self.world.history.borrow_mut().note().acknowledged.entry(job).or_insert(now_ms);
        }
        answer
    }

    /// What makes a job's id its own.
    fn entropy(&self) -> [u8; 10] {
        let chance = &self.world.chance;
        let (head, tail) = (chance.next().to_be_bytes(), chance.next().to_be_bytes());
        std::array::from_fn(|place| if place < 8 { head[place] } else { tail[place - 8] })
    }

    async fn accept(&self, submission: &Submission) -> Result<JobId, Refusal> {
        let deadline_ms = self.world.clock.now_ms() + SUBMIT_TIMEOUT_MS;
        let known = self.known(&submission.key);
        if let Some(known) = known.filter(|known| self.still_there(*known)) {
            return Ok(known);
        }
        let placement = self.decide_and_place(submission).ok_or(Refusal::Nowhere)?;
        let is_new = known.is_none();
        let job = known.unwrap_or_else(|| JobId::new(self.now().0, self.entropy()));
        self.memory.borrow_mut().open.insert(job, self.world.clock.now_ms());
        self.remember(job, submission).await;
        let committed = self.commit_submission(self.command(job, submission, placement), submission, deadline_ms).await;
        match committed {
            Ok(_) => Ok(job),
            Err(Failed::Unknown) if self.has(Bug::HomeAcknowledgesUnknown) => Ok(job),
            // An earlier try of the same task may still be on its way: only a task of this call is forgotten.
            Err(Failed::Refused(refusal)) if is_new => {
                self.memory.borrow_mut().open.remove(&job);
                self.write(Change::Forget { job, key: submission.key.clone() }).await;
                Err(refusal)
            }
            Err(Failed::Refused(refusal)) => Err(refusal),
            Err(Failed::Unknown) => Err(Refusal::NotNow),
        }
    }

    fn known(&self, key: &str) -> Option<JobId> {
        if self.has(Bug::HomeKeepsKeysInMemory) {
            return self.memory.borrow().keys.get(key).copied();
        }
        self.disk.borrow().store.keys.get(key).copied()
    }

    /// A remembered task counts only if the registry took it.
    fn still_there(&self, job: JobId) -> bool {
        self.read(|registry| registry.job(&job).is_some()) || self.disk.borrow().store.ended.get(&job) == Some(&true)
    }

    async fn remember(&self, job: JobId, submission: &Submission) {
        let task = Task { payload: submission.payload.clone(), class: submission.class };
        self.memory.borrow_mut().keys.insert(submission.key.clone(), job);
        self.write(Change::Accept { job, task, key: submission.key.clone() }).await;
    }

    fn command(&self, job: JobId, submission: &Submission, placement: Placement) -> Submit {
        Submit {
            job,
            home_gateway: gateway_name(),
            pseudonym: Pseudonym([7; 16]),
            shape: submission.shape(),
            labels: packs::labels(submission.class),
            payload: Digest::of(&submission.payload),
            priority: submission.priority,
            restartable: submission.restartable,
            exclusive: submission.exclusive,
            candidates: placement.candidates,
            decided_on: self.decided_on(),
            at: self.now(),
        }
    }

    fn decided_on(&self) -> Vec<(certs::MemberState, u64)> {
        self.read(|registry| registry.packs().map(|(state, pack)| (state, pack.sequence)).collect())
    }

    /// Commits; when a pack moved meanwhile, decides again.
    async fn commit_submission(
        &self,
        mut submit: Submit,
        submission: &Submission,
        deadline_ms: u64,
    ) -> Result<Revision, Failed> {
        for _ in 0..STALE_RETRIES {
            let proposed = self.commit(Command::Submit(submit.clone()), deadline_ms).await;
            let (revision, outcome) = proposed.map_err(|reason| match reason {
                NotCommitted::Unknown => Failed::Unknown,
                NotCommitted::NoLeader | NotCommitted::Refused => Failed::Refused(Refusal::NotNow),
            })?;
            let seen = self.wait_for(revision, deadline_ms).await;
            match outcome {
                Outcome::Done | Outcome::Granted { .. } | Outcome::Queued | Outcome::Duplicate => return Ok(revision),
                Outcome::Replayed if seen.is_err() => return Err(Failed::Unknown),
                Outcome::Replayed if self.read(|registry| registry.job(&submit.job).is_some()) => return Ok(revision),
                Outcome::Replayed => {}
                Outcome::Rejected(Rejection::StalePolicy { .. }) => {
                    let placement = self.decide_and_place(submission).ok_or(Failed::Refused(Refusal::Nowhere))?;
                    (submit.candidates, submit.decided_on) = (placement.candidates, self.decided_on());
                }
                Outcome::Rejected(_) => return Err(Failed::Refused(Refusal::NotNow)),
            }
        }
        Err(Failed::Refused(Refusal::NotNow))
    }

    fn decide_and_place(&self, submission: &Submission) -> Option<Placement> {
        let permits = self.permitted_pools(submission.class);
        self.read(|registry| federation::place(registry, self.state(), &submission.shape(), &permits, &[])).ok()
    }

    /// The pools that home lets it leave for and that take it, below which share of home's.
    fn permitted_pools(&self, class: DataClass) -> Vec<(Candidate, Permit)> {
        let home = self.state();
        self.read(|registry| {
            let both = registry.offers().filter_map(|it| {
                let (pool, host) = (it.offer.pool, it.offer.pool.state());
                let question = Question { home, class };
                let at = |share| {
                    packs::permit(registry, home, Action::Export, question, host, share)?;
                    packs::permit(registry, host, Action::Host, question, host, share)
                };
                let permit = at(0)?;
                let below = (1..=100).find(|share| at(*share).is_none());
                let below = below.map(|it| Ceiling::parse(it).expect("a percentage"));
                Some((Candidate { pool, below }, permit))
            });
            both.collect()
        })
    }

    /// Decides again for a queued job whose packs or pools have moved.
    pub async fn rerank(&self, job: JobId) -> Result<(), NotCommitted> {
        let known = self.disk.borrow().store.tasks.contains_key(&job);
        let Some(queued) = self.read(|registry| registry.job_arc(&job)).filter(|_| known) else {
            return Ok(());
        };
        let permits = self.permitted_pools(queued.labels.data_class);
        let placed = self.read(|registry| federation::place(registry, queued.home, &queued.shape, &permits, &[]));
        let (candidates, reason) = match placed {
            Ok(placement) => (placement.candidates, None),
            Err(none) => (vec![], Some(Reason::new(&format!("no pool may run it any more: {none}")))),
        };
        let rerank = Rerank { job, candidates, decided_on: self.decided_on(), reason };
        self.commit(Command::Rerank(rerank), self.commit_deadline_ms()).await.map(|_| ())
    }

    pub fn commit_deadline_ms(&self) -> u64 {
        self.world.clock.now_ms() + COMMIT_TIMEOUT_MS
    }

    pub async fn cancel(&self, job: JobId) {
        let command = Command::Cancel { job, at: self.now() };
        if let Ok((revision, _)) = self.commit(command, self.commit_deadline_ms()).await {
            let deadline_ms = self.world.clock.now_ms() + READ_YOUR_WRITE_MS;
            let _a_late_replica_only_shows_it_later = self.wait_for(revision, deadline_ms).await;
        }
    }

    /// Keeps the end of every task as soon as the registry shows it, and ends those that it never took.
    pub async fn keep_ends(self) {
        loop {
            let seen = self.read(Registry::revision);
            let open: Vec<(JobId, u64)> = self.memory.borrow().open.iter().map(|(job, at)| (*job, *at)).collect();
            let mut missing = vec![];
            for (job, since_ms) in open {
                let taken = self.disk.borrow().store.taken.contains(&job);
                match self.read(|registry| registry.job(&job).map(|job| job.state.is_final())) {
                    Some(true) => self.keep_end(job, since_ms, true).await,
                    Some(false) if !taken => self.write(Change::Taken(job)).await,
                    Some(false) => {}
                    None => missing.push((job, since_ms)),
                }
            }
            self.end_what_never_came(missing).await;
            let looks_at_ms = self.world.clock.now_ms() + LOOK_EVERY_MS;
            let _tick = self.wait_for(Revision(seen.0 + 1), self.world.clock.now_ms() + TICK_MS).await;
            self.world.clock.sleep(looks_at_ms.saturating_sub(self.world.clock.now_ms())).await;
        }
    }

    async fn keep_end(&self, job: JobId, since_ms: u64, as_job: bool) {
        self.write(Change::End { job, as_job }).await;
        // One that is being submitted again meanwhile is open again.
        let mut memory = self.memory.borrow_mut();
        if memory.open.get(&job) == Some(&since_ms) {
            memory.open.remove(&job);
        }
    }

    async fn end_what_never_came(&self, missing: Vec<(JobId, u64)>) {
        let now_ms = self.world.clock.now_ms();
        let late: Vec<_> =
            missing.into_iter().filter(|(_, since_ms)| now_ms - since_ms >= NEVER_COMMITTED_AFTER_MS).collect();
        if late.is_empty() || self.linearize(SURE_TIMEOUT_MS).await.is_err() {
            return;
        }
        let known: BTreeSet<JobId> = self.read(|registry| registry.jobs().map(|job| job.id).collect());
        for (job, since_ms) in late.into_iter().filter(|(job, _)| !known.contains(job)) {
            self.keep_end(job, since_ms, false).await;
        }
    }

    /// Keeps the registry as the operator's files say.
    pub async fn publish(self) {
        loop {
            let due = self.publications();
            let rest_ms = if due.is_empty() { PUBLISH_LOOK_EVERY_MS } else { PUBLISH_RETRY_MS };
            for command in due {
                if let Ok((revision, _)) = self.commit(command, self.commit_deadline_ms()).await {
                    let deadline_ms = self.world.clock.now_ms() + PUBLISH_RETRY_MS;
                    let _seen_later_if_late = self.wait_for(revision, deadline_ms).await;
                }
            }
            self.world.clock.sleep(rest_ms).await;
        }
    }

    fn publications(&self) -> Vec<Command> {
        let (wanted, pool) = (self.configured.get(), self.founder.pool);
        self.read(|registry| {
            let pack = registry.pack(self.state()).filter(|known| known.source.title != wanted.rule.title());
            let pack = pack.map(|known| PublishPack {
                sequence: known.sequence + 1,
                previous: Some(known.digest),
                source: wanted.rule.source(self.state()),
            });
            let sequence = registry.offer(&pool).map_or(0, |known| known.offer.sequence) + 1;
            let published = registry.offer(&pool).is_some_and(|known| !known.withdrawn);
            let offered = match (wanted.offered, published) {
                (true, false) => Some(Command::PublishOffer(offer(pool, sequence))),
                (false, true) => Some(Command::WithdrawOffer { pool, sequence }),
                _ => None,
            };
            pack.map(Command::PublishPack).into_iter().chain(offered).collect()
        })
    }

    /// Whether home's own pack lets the current attempt of a job leave, and for whom it is.
    pub fn may_leave(&self, job: &Job) -> bool {
        let Some(attempt) = job.holding() else {
            return false;
        };
        let question = Question { home: job.home, class: job.labels.data_class };
        let host = attempt.pool.state();
        self.read(|registry| {
            let share = registry.share_percent_before(&attempt.pool, &job.id);
            let offered = registry.offer(&attempt.pool).is_some();
            offered && packs::permit(registry, job.home, Action::Export, question, host, share).is_some()
        })
    }
}
