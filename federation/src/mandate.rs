//! Mandates: the home state's signed statement about one job, for the host that was granted it.
//! Invariant: a [`Mandate`] that was opened speaks for the state whose key signed it, and for no other.

use certs::{BadEnvelope, Digest, Envelope, FederationId, Header, Kind, MemberState, SigningKey, TrustStore};
use policy::{Labels, ResearcherFacts};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    id::{JobId, PoolId, Pseudonym},
    job::Job,
    shape::Shape,
    time::Timestamp,
};

/// Who stands behind a job (by pseudonym and attested attributes), and what its host may run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mandate {
    pub job: JobId,
    pub home: MemberState,
    pub pool: PoolId,
    pub attempt: u32,
    pub pseudonym: Pseudonym,
    /// What the home state attests of the researcher; no names.
    pub researcher: ResearcherFacts,
    pub payload: Digest,
    pub shape: Shape,
    pub labels: Labels,
    /// Where the job's inputs come from.
    pub input_states: Vec<MemberState>,
    pub issued_at: Timestamp,
}

/// Why an envelope is not a mandate that may be acted on.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BadMandate {
    #[error("the envelope is not a mandate of this federation and epoch")]
    WrongEnvelope,
    #[error("the signing key is not one of the home state's gateways")]
    UnknownKey,
    #[error("the signature does not match")]
    BadSignature,
    #[error("the envelope's body is not a mandate")]
    Undecodable,
    #[error("the mandate is signed by another state than it names as home")]
    NotHome,
    #[error("the mandate and the registry's job differ in {0}")]
    Mismatch(&'static str),
}

impl Mandate {
    /// Seals the mandate with a gateway key of its home. `serial` need not be new: a mandate changes no record.
    pub fn seal(
        &self,
        federation: FederationId,
        epoch: u64,
        serial: u64,
        key: &SigningKey,
    ) -> Result<Envelope, BadEnvelope> {
        let body = postcard::to_stdvec(self).expect("invariant: a mandate in memory always serialises");
        let header =
            Header { federation, epoch, owner: self.home, key: key.public().id(), serial, kind: Kind::Mandate };
        Envelope::seal(header, &body, key)
    }

    /// Opens an envelope from anywhere: checks kind, federation, epoch, key, signature and home.
    pub fn open(envelope: &Envelope, trust: &TrustStore, epoch: u64) -> Result<Mandate, BadMandate> {
        let header = envelope.header();
        if header.kind != Kind::Mandate || header.federation != *trust.federation() || header.epoch != epoch {
            return Err(BadMandate::WrongEnvelope);
        }
        let (_, key) = trust.gateway_key(header.owner, &header.key).ok_or(BadMandate::UnknownKey)?;
        envelope.verify(key).map_err(|_| BadMandate::BadSignature)?;
        let (mandate, rest) =
            postcard::take_from_bytes::<Mandate>(envelope.body()).map_err(|_| BadMandate::Undecodable)?;
        if !rest.is_empty() {
            return Err(BadMandate::Undecodable);
        }
        let attested_home = mandate.researcher.home;
        if mandate.home != header.owner || attested_home != header.owner {
            Err(BadMandate::NotHome)
        } else {
            Ok(mandate)
        }
    }

    /// Checks that the mandate is for what the registry granted: the job's current attempt, content and shape.
    pub fn matches(&self, job: &Job) -> Result<(), BadMandate> {
        let granted = job.holding().map(|attempt| (attempt.number, attempt.pool));
        let checks = [
            ("job", self.job == job.id),
            ("home", self.home == job.home),
            ("attempt", granted == Some((self.attempt, self.pool))),
            ("pseudonym", self.pseudonym == job.pseudonym),
            ("payload", self.payload == job.payload),
            ("shape", self.shape == job.shape),
            ("labels", self.labels == job.labels),
        ];
        checks.iter().find(|(_, same)| !same).map_or(Ok(()), |(what, _)| Err(BadMandate::Mismatch(what)))
    }
}
