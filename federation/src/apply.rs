//! The one way the registry changes: an envelope in, an outcome for each of its commands out.
//! Invariants: no clock, no chance, no float, no policy engine; a rejected command leaves no trace; a rejected
//! envelope leaves none but the revision.

use certs::{Envelope, GatewayId, Kind, MemberState};

use crate::{
    attempt,
    command::{Batch, Command, Outcome, Rejection},
    id::{JobId, PoolId},
    job, limits, member, offer, pack,
    registry::Registry,
    serial::{Serial, SerialWindow},
    silence,
    time::Revision,
};

/// What is known of an envelope's signature before it is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// This gateway checked it when it came in.
    Verified,
    Unknown,
}

/// An envelope that its owner's key signed, for this federation.
struct Admitted {
    /// Whose key it is.
    author: GatewayId,
    batch: Batch,
    replayed: bool,
}

impl Registry {
    /// Carries out an envelope's commands, each completely or not at all, in order.
    ///
    /// A bad envelope gives one rejection and changes nothing but the revision; a replayed one says so for each
    /// command. `revision` is the log index, and must be above all before.
    pub fn apply(&mut self, revision: Revision, envelope: &Envelope, verdict: Verdict) -> Vec<Outcome> {
        self.advance(revision);
        let Admitted { author, batch, replayed } = match self.admit(envelope, verdict) {
            Ok(admitted) => admitted,
            Err(rejection) => return vec![Outcome::Rejected(rejection)],
        };
        if replayed {
            return vec![Outcome::Replayed; batch.0.len()];
        }
        let header = envelope.header();
        self.serials.entry(header.key).or_insert_with(|| SerialWindow::new(header.owner)).mark(header.serial);
        let carried_out = batch.0.into_iter().map(|command| self.carry_out(&author, command));
        carried_out.map(|outcome| outcome.unwrap_or_else(Outcome::Rejected)).collect()
    }

    fn admit(&self, envelope: &Envelope, verdict: Verdict) -> Result<Admitted, Rejection> {
        let header = envelope.header();
        if header.federation != self.federation {
            return Err(Rejection::UnknownFederation);
        }
        if header.epoch != self.epoch {
            return Err(Rejection::WrongEpoch { current: self.epoch });
        }
        if header.kind != Kind::Command {
            return Err(Rejection::WrongKind);
        }
        let (name, key) = self.trust.gateway_key(header.owner, &header.key).ok_or(Rejection::UnknownKey)?;
        if verdict == Verdict::Unknown && envelope.verify(key).is_err() {
            return Err(Rejection::BadSignature);
        }
        let batch = Batch::from_bytes(envelope.body()).ok_or(Rejection::Undecodable)?;
        limits::count(batch.0.len(), limits::COMMANDS_PER_BATCH_MAX)?;
        let author = GatewayId { state: header.owner, name: name.clone() };
        let serial = self.serials.get(&header.key).map_or(Serial::New, |window| window.look(header.serial));
        match serial {
            Serial::TooOld { oldest } => Err(Rejection::SerialTooOld { oldest }),
            Serial::New | Serial::Seen => Ok(Admitted { author, batch, replayed: serial == Serial::Seen }),
        }
    }

    /// The table. Each function checks everything, then changes everything.
    fn carry_out(&mut self, gateway: &GatewayId, command: Command) -> Result<Outcome, Rejection> {
        let author = gateway.state;
        if self.owner(author, &command)? != author {
            return Err(Rejection::NotOwner);
        }
        match command {
            Command::PublishPack(it) => pack::publish(self, it),
            Command::PublishOffer(it) => offer::publish(self, it),
            Command::WithdrawOffer { pool, sequence } => offer::withdraw(self, pool, sequence),
            Command::ReportCapacity(it) => offer::report(self, gateway, it),
            Command::Submit(it) => job::submit(self, author, it),
            Command::Rerank(it) => job::rerank(self, it),
            Command::Cancel { job, .. } => job::cancel(self, job),
            Command::Start { job, attempt, at } => attempt::start(self, job, attempt, at),
            Command::Run { job, attempt, at } => attempt::run(self, job, attempt, at),
            Command::Finish { job, attempt, end, at } => attempt::finish(self, job, attempt, end, at),
            Command::Decline { job, attempt, reason, below, at } => {
                attempt::decline(self, job, attempt, reason, below, at)
            }
            Command::PublishBundle(signed) => member::publish_bundle(self, author, signed),
            Command::Attest(it) => silence::attest(self, author, it),
        }
    }

    /// The state that alone may give this command.
    fn owner(&self, author: MemberState, command: &Command) -> Result<MemberState, Rejection> {
        match command {
            Command::PublishPack(it) => Ok(it.source.state),
            Command::PublishOffer(it) => Ok(it.pool.state()),
            Command::WithdrawOffer { pool, .. }
            | Command::ReportCapacity(crate::offer::CapacityReport { pool, .. }) => Ok(PoolId::state(pool)),
            // Whoever signs is the home, or the witness; a bundle says inside whose it is, and its root has signed that.
            Command::Submit(_) | Command::PublishBundle(_) | Command::Attest(_) => Ok(author),
            Command::Rerank(it) => self.home(it.job),
            Command::Cancel { job, .. } => self.home(*job),
            Command::Start { job, attempt, .. }
            | Command::Run { job, attempt, .. }
            | Command::Finish { job, attempt, .. }
            | Command::Decline { job, attempt, .. } => self.host(*job, *attempt),
        }
    }

    fn home(&self, job: JobId) -> Result<MemberState, Rejection> {
        self.jobs.get(&job).map(|job| job.home).ok_or(Rejection::UnknownJob)
    }

    /// The host of that attempt, current or not: a former host learns that it was superseded, not that it is a stranger.
    fn host(&self, job: JobId, attempt: u32) -> Result<MemberState, Rejection> {
        let job = self.jobs.get(&job).ok_or(Rejection::UnknownJob)?;
        let named = job.attempts.iter().find(|known| known.number == attempt);
        let current = job.attempt().map_or(0, |latest| latest.number);
        named.map(|known| known.pool.state()).ok_or(Rejection::WrongAttempt { current })
    }
}
