//! Orders: what passes between the home and the host of one attempt.
//!
//! Home gives the host a mandate and the payload; the host gives home the attempt's record and its
//! logs. Each side checks in its own replica that the other is who the registry says; when home and
//! host are the same gateway nothing travels.

use std::sync::Arc;
use std::time::Duration;

use certs::{GatewayId, SigningKey};
use federation::raft::Consensus;
use federation::{Attempt, Job, JobId, Mandate};
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use serde::{Deserialize, Serialize};

use crate::driver::{AttemptRecord, AttemptStatus, Driver, LogChunk, LogStream};
use crate::home::{decisive_attempt, now};
use crate::peer::{Lane, PeerError, Peers};
use crate::store::Store;

/// An order is one task: 4 MiB at most, and the other side may be busy.
const ORDER_TIMEOUT: Duration = Duration::from_secs(20);

/// What home gives the host of one attempt.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    /// The sealed mandate, an envelope of home's gateway.
    pub mandate: Vec<u8>,
    /// The payload; its digest is in the registry.
    pub payload: Vec<u8>,
}

/// A piece of one of an attempt's streams, as it travels.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LogRequest {
    /// Which stream.
    pub stream: LogStream,
    /// First byte wanted.
    pub offset: u64,
    /// Most bytes wanted.
    pub max: usize,
}

/// Why there is no order, record or log.
#[derive(Debug, thiserror::Error)]
pub enum NoOrder {
    /// The asker has no part in this attempt, or there is no such attempt.
    #[error("this gateway has no part in attempt {attempt} of {job}")]
    NotYours {
        /// The job.
        job: JobId,
        /// The attempt.
        attempt: u32,
    },
    /// The other side did not give it.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// It came, but does not decode.
    #[error("the peer's answer does not decode: {0}")]
    Garbled(String),
    /// Our own side failed.
    #[error("{0}")]
    Here(String),
}

/// Gives and fetches orders, records and logs.
pub struct Orders {
    /// This gateway.
    pub me: GatewayId,
    /// The replica.
    pub consensus: Consensus,
    /// Tasks of this gateway's researchers.
    pub store: Store,
    /// The pools of this gateway.
    pub driver: Arc<dyn Driver>,
    /// Other gateways.
    pub peers: Arc<Peers>,
    /// Seals mandates.
    pub signing: SigningKey,
}

impl Orders {
    /// Fetches the order of an attempt from the job's home.
    pub async fn fetch(&self, job: &Job, attempt: u32) -> Result<Order, NoOrder> {
        let home = GatewayId { state: job.home, name: job.home_gateway.clone() };
        if home == self.me {
            return self.give(&self.me, job.id, attempt);
        }
        let path = format!("/orders/{}/{attempt}", job.id);
        self.ask(&home, &path).await
    }

    /// The order of an attempt for the gateway that hosts it; nobody else gets it.
    pub fn give(&self, to: &GatewayId, job: JobId, attempt: u32) -> Result<Order, NoOrder> {
        let not_yours = NoOrder::NotYours { job, attempt };
        let (record, pool, federation, epoch) = self
            .consensus
            .read(|registry| {
                let record = registry.job(&job)?;
                let current = record.attempt().filter(|it| it.number == attempt)?;
                let host = host_of(registry, current)?;
                let pool = current.pool;
                (host == *to).then(|| (record.clone(), pool, registry.federation().clone(), registry.epoch()))
            })
            .ok_or(not_yours)?;
        let task = self
            .store
            .task(&job)
            .map_err(|failed| NoOrder::Here(failed.to_string()))?
            .ok_or(NoOrder::NotYours { job, attempt })?;
        let mandate = Mandate {
            job,
            home: record.home,
            pool,
            attempt,
            pseudonym: record.pseudonym,
            researcher: task.researcher,
            payload: record.payload,
            shape: record.shape,
            labels: record.labels,
            input_states: vec![],
            issued_at: now(),
        };
        let sealed = mandate.seal(federation, epoch, 0, &self.signing).map_err(|bad| NoOrder::Here(bad.to_string()))?;
        Ok(Order { mandate: sealed.as_bytes().to_vec(), payload: task.payload })
    }

    /// What the host knows of the job's decisive attempt; `None` if it never got to a driver.
    pub async fn record(&self, job: &Job) -> Result<Option<AttemptRecord>, NoOrder> {
        let Some(attempt) = decisive_attempt(job) else {
            return Ok(None);
        };
        let host = self.consensus.read(|registry| host_of(registry, attempt));
        let Some(host) = host else {
            return Ok(None);
        };
        if host == self.me {
            return Ok(self.own_record(&job.id, attempt.number));
        }
        let path = format!("/attempts/{}/{}/record", job.id, attempt.number);
        self.ask(&host, &path).await
    }

    /// The record of the job's decisive attempt, if it is here; nobody is asked.
    pub fn record_here(&self, job: &Job) -> Option<AttemptRecord> {
        let attempt = decisive_attempt(job)?;
        let host = self.consensus.read(|registry| host_of(registry, attempt))?;
        if host == self.me { self.own_record(&job.id, attempt.number) } else { None }
    }

    /// The record of an attempt here, for the job's home.
    pub fn record_for(&self, asker: &GatewayId, job: JobId, attempt: u32) -> Result<Option<AttemptRecord>, NoOrder> {
        self.only_home(asker, job, attempt)?;
        Ok(self.own_record(&job, attempt))
    }

    /// A piece of a stream of the job's decisive attempt.
    pub async fn logs(&self, job: &Job, wanted: &LogRequest) -> Result<LogChunk, NoOrder> {
        let nothing_yet = LogChunk { bytes: vec![], next_offset: wanted.offset, end: job.state.is_final() };
        let Some(attempt) = decisive_attempt(job) else {
            return Ok(nothing_yet);
        };
        let host = self.consensus.read(|registry| host_of(registry, attempt));
        match host {
            None => Ok(nothing_yet),
            Some(host) if host == self.me => self.own_logs(&job.id, attempt.number, wanted),
            Some(host) => {
                let LogStream { executor, pipe } = wanted.stream;
                let path = format!(
                    "/attempts/{}/{}/logs?executor={executor}&pipe={}&offset={}&max={}",
                    job.id,
                    attempt.number,
                    pipe.as_str(),
                    wanted.offset,
                    wanted.max
                );
                self.ask(&host, &path).await
            }
        }
    }

    /// A piece of a stream of an attempt here, for the job's home.
    pub fn logs_for(
        &self,
        asker: &GatewayId,
        job: JobId,
        attempt: u32,
        wanted: &LogRequest,
    ) -> Result<LogChunk, NoOrder> {
        self.only_home(asker, job, attempt)?;
        self.own_logs(&job, attempt, wanted)
    }

    fn own_logs(&self, job: &JobId, attempt: u32, wanted: &LogRequest) -> Result<LogChunk, NoOrder> {
        self.driver
            .logs(job, attempt, wanted.stream, wanted.offset, wanted.max)
            .map_err(|failed| NoOrder::Here(failed.to_string()))
    }

    fn own_record(&self, job: &JobId, attempt: u32) -> Option<AttemptRecord> {
        match self.driver.poll(job, attempt) {
            AttemptStatus::Done { record, .. } => Some(record),
            AttemptStatus::Running { .. } | AttemptStatus::Starting => self.driver.record(job, attempt),
            AttemptStatus::Unknown => None,
        }
    }

    fn only_home(&self, asker: &GatewayId, job: JobId, attempt: u32) -> Result<(), NoOrder> {
        let home = self.consensus.read(|registry| {
            registry.job(&job).is_some_and(|it| it.home == asker.state && it.home_gateway == asker.name)
        });
        if home {
            return Ok(());
        }
        Err(NoOrder::NotYours { job, attempt })
    }

    async fn ask<T: for<'a> Deserialize<'a>>(&self, peer: &GatewayId, path: &str) -> Result<T, NoOrder> {
        let request = Request::builder()
            .method(Method::GET)
            .uri(path)
            .body(Full::default())
            .expect("invariant: ids and numbers are path segments");
        let (_, bytes) = self.peers.call(peer, Lane::Tasks, request, ORDER_TIMEOUT).await?;
        postcard::from_bytes(&bytes).map_err(|cause| NoOrder::Garbled(cause.to_string()))
    }
}

impl NoOrder {
    /// The status with which the peer face answers it.
    pub fn status(&self) -> StatusCode {
        match self {
            NoOrder::NotYours { .. } => StatusCode::FORBIDDEN,
            NoOrder::Peer(_) | NoOrder::Garbled(_) => StatusCode::BAD_GATEWAY,
            NoOrder::Here(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// The gateway that serves an attempt's pool.
fn host_of(registry: &federation::Registry, attempt: &Attempt) -> Option<GatewayId> {
    let offer = &registry.offer(&attempt.pool)?.offer;
    Some(GatewayId { state: offer.pool.factory.state, name: offer.served_by.clone() })
}
