//! Orders: what passes between the home and the host of one attempt.
//!
//! Home gives the host a mandate and the payload; the host gives home the attempt's record and its
//! logs. Each side checks in its own replica that the other is who the registry says; when home and
//! host are the same gateway nothing travels.

use std::sync::Arc;
use std::time::Duration;

use certs::{GatewayId, SigningKey};
use federation::raft::Consensus;
use federation::{Ceiling, Job, JobId, Mandate, Revision};
use http::{HeaderName, Method, Request, StatusCode};
use http_body_util::Full;
use serde::{Deserialize, Serialize};

use crate::driver::{AttemptRecord, Driver, DriverError, LogChunk, LogStream};
use crate::home::now;
use crate::peer::{Lane, PeerError, Peers};
use crate::store::Store;
use crate::verdicts::{Binding, Judge, Question};

/// An order is one task: 4 MiB at most, and the other side may be busy.
pub const ORDER_TIMEOUT: Duration = Duration::from_secs(20);

/// The revision that the asker has seen. No `entente-…`: those are what clients may not send, and every face drops them.
pub const REVISION: HeaderName = HeaderName::from_static("seen-revision");
/// How long the asked side waits until its replica has what the asker has already seen.
const BEHIND_TIMEOUT: Duration = Duration::from_secs(5);

/// What home gives the host of one attempt.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    /// The sealed mandate, an envelope of home's gateway.
    pub mandate: Vec<u8>,
    /// The payload; its digest is in the registry.
    pub payload: Vec<u8>,
}

/// What home says to the host of an attempt.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum HomesAnswer {
    /// Its order.
    Order(Order),
    /// Its pack lets the job leave while home holds less of the pool than this.
    Below(Ceiling),
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
    /// This replica does not have yet what the asker has seen.
    #[error("this gateway's replica is behind; ask again")]
    Behind,
    /// Home's own pack does not let the job leave for that pool any more.
    #[error("{home} does not let attempt {attempt} of {job} leave any more")]
    Denied {
        /// The home state.
        home: certs::MemberState,
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
    /// Decisions: what leaves home is asked about once more when it leaves.
    pub judge: Arc<Judge>,
    /// Seals mandates.
    pub signing: SigningKey,
}

impl Orders {
    /// Waits until this replica has what an asker has seen, so that a "no" is a no.
    pub async fn catch_up(&self, seen: Revision) -> Result<(), NoOrder> {
        self.consensus.wait_for(seen, BEHIND_TIMEOUT).await.map_err(|_late| NoOrder::Behind)
    }

    /// Fetches the order of an attempt from the job's home.
    pub async fn fetch(&self, job: &Job, attempt: u32) -> Result<HomesAnswer, NoOrder> {
        let home = GatewayId { state: job.home, name: job.home_gateway.clone() };
        if home == self.me {
            return self.give(&self.me, job.id, attempt);
        }
        let path = format!("/orders/{}/{attempt}", job.id);
        self.ask(&home, &path).await
    }

    /// The order of an attempt for the gateway that hosts it; nobody else gets it.
    pub fn give(&self, to: &GatewayId, job: JobId, attempt: u32) -> Result<HomesAnswer, NoOrder> {
        let not_yours = NoOrder::NotYours { job, attempt };
        let (record, pool, federation, epoch) = self
            .consensus
            .read(|registry| {
                let record = registry.job(&job)?;
                let current = record.holding().filter(|it| it.number == attempt && !record.cancel_requested)?;
                let pool = current.pool;
                (current.host() == *to).then(|| (record.clone(), pool, registry.federation().clone(), registry.epoch()))
            })
            .ok_or(not_yours)?;
        let task = self
            .store
            .task(&job)
            .map_err(|failed| NoOrder::Here(failed.to_string()))?
            .ok_or(NoOrder::NotYours { job, attempt })?;
        let question = Question::new(task.researcher.clone(), &record.shape, &record.labels);
        let decided = self.judge.decide_as_home(&self.consensus, &record, &question);
        match decided.map_err(|unread| NoOrder::Here(unread.to_string()))? {
            Some(Binding { decision, .. }) if decision.is_permit() => {}
            Some(Binding { below: Some(below), .. }) => return Ok(HomesAnswer::Below(below)),
            _ => return Err(NoOrder::Denied { home: record.home, job, attempt }),
        }
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
        Ok(HomesAnswer::Order(Order { mandate: sealed.as_bytes().to_vec(), payload: task.payload }))
    }

    /// What the host knows of the job's decisive attempt; `None` if it never got to a driver.
    pub async fn record(&self, job: &Job) -> Result<Option<AttemptRecord>, NoOrder> {
        let Some(attempt) = job.decisive_attempt() else {
            return Ok(None);
        };
        let host = attempt.host();
        if host == self.me {
            return Ok(self.own_record(&job.id, attempt.number).await);
        }
        let path = format!("/attempts/{}/{}/record", job.id, attempt.number);
        self.ask(&host, &path).await
    }

    /// The record of the job's decisive attempt, if it is here; nobody is asked.
    pub async fn record_here(&self, job: &Job) -> Option<AttemptRecord> {
        let attempt = job.decisive_attempt()?;
        if attempt.host() == self.me { self.own_record(&job.id, attempt.number).await } else { None }
    }

    /// The record of an attempt here, for the job's home.
    pub async fn record_for(
        &self,
        asker: &GatewayId,
        job: JobId,
        attempt: u32,
    ) -> Result<Option<AttemptRecord>, NoOrder> {
        self.only_home(asker, job, attempt)?;
        Ok(self.own_record(&job, attempt).await)
    }

    /// A piece of a stream of the job's decisive attempt.
    pub async fn logs(&self, job: &Job, wanted: &LogRequest) -> Result<LogChunk, NoOrder> {
        let nothing_yet = LogChunk { bytes: vec![], next_offset: wanted.offset, end: job.state.is_final() };
        let Some(attempt) = job.decisive_attempt() else {
            return Ok(nothing_yet);
        };
        let host = attempt.host();
        if host == self.me {
            return self.own_logs(&job.id, attempt.number, wanted).await;
        }
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

    /// A piece of a stream of an attempt here, for the job's home.
    pub async fn logs_for(
        &self,
        asker: &GatewayId,
        job: JobId,
        attempt: u32,
        wanted: &LogRequest,
    ) -> Result<LogChunk, NoOrder> {
        self.only_home(asker, job, attempt)?;
        self.own_logs(&job, attempt, wanted).await
    }

    async fn own_logs(&self, job: &JobId, attempt: u32, wanted: &LogRequest) -> Result<LogChunk, NoOrder> {
        match self.driver.logs(job, attempt, wanted.stream, wanted.offset, wanted.max).await {
            Ok(chunk) => Ok(chunk),
            // Granted, and not with the driver yet.
            Err(DriverError::Unknown { .. }) if self.is_current(job, attempt) => {
                Ok(LogChunk { bytes: vec![], next_offset: wanted.offset, end: false })
            }
            Err(DriverError::Unknown { .. }) => Err(NoOrder::NotYours { job: *job, attempt }),
            Err(failed) => Err(NoOrder::Here(failed.to_string())),
        }
    }

    fn is_current(&self, job: &JobId, attempt: u32) -> bool {
        self.consensus.read(|registry| {
            let holding = registry.job(job).and_then(Job::holding);
            holding.is_some_and(|it| it.number == attempt)
        })
    }

    async fn own_record(&self, job: &JobId, attempt: u32) -> Option<AttemptRecord> {
        self.driver.record(job, attempt).await
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
        let seen = self.consensus.read(|registry| registry.revision());
        let request = Request::builder()
            .method(Method::GET)
            .uri(path)
            .header(REVISION, seen.0)
            .body(Full::default())
            .expect("invariant: ids and numbers are path segments");
        let call = async || self.peers.call(peer, Lane::Tasks, request.clone(), ORDER_TIMEOUT).await;
        let (_, bytes) = match call().await {
            // Connections end whenever a state's trust changes; what is only read is asked again on the next one.
            Err(PeerError::Broken { .. }) => call().await?,
            called => called?,
        };
        postcard::from_bytes(&bytes).map_err(|cause| NoOrder::Garbled(cause.to_string()))
    }
}

impl NoOrder {
    /// The other side has understood and said no; asking again changes nothing.
    pub fn is_final(&self) -> bool {
        match self {
            NoOrder::NotYours { .. } | NoOrder::Denied { .. } => true,
            NoOrder::Peer(PeerError::Refused { status, .. }) => *status == StatusCode::FORBIDDEN,
            NoOrder::Behind | NoOrder::Peer(_) | NoOrder::Garbled(_) | NoOrder::Here(_) => false,
        }
    }

    /// The status with which the peer face answers it.
    pub fn status(&self) -> StatusCode {
        match self {
            NoOrder::NotYours { .. } | NoOrder::Denied { .. } => StatusCode::FORBIDDEN,
            NoOrder::Behind => StatusCode::SERVICE_UNAVAILABLE,
            NoOrder::Peer(_) | NoOrder::Garbled(_) => StatusCode::BAD_GATEWAY,
            NoOrder::Here(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}
