//! Candidates: the pools that may run a job, and the share of each that its home has to hold less of than that.

use std::fmt;

use certs::MemberState;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{id::PoolId, offer::OfferState};

/// A pool that may run a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    pub pool: PoolId,
    /// Nothing, if the states permit it whatever the job's home holds there.
    pub below: Option<Ceiling>,
}

/// A share of a pool that a job's home has to hold less of than that, for the job to run there: 1 to 100 percent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct Ceiling(u8);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a ceiling is a share of 1 to 100 percent")]
pub struct NotACeiling;

impl Candidate {
    /// Whether a job of this home may have GPUs there now, as far as its home's share goes.
    pub fn has_turn(&self, offer: &OfferState, home: MemberState) -> bool {
        self.below.is_none_or(|ceiling| offer.share_percent(home) < ceiling.percent())
    }
}

impl From<PoolId> for Candidate {
    fn from(pool: PoolId) -> Candidate {
        Candidate { pool, below: None }
    }
}

impl Ceiling {
    pub fn parse(percent: u32) -> Result<Ceiling, NotACeiling> {
        u8::try_from(percent).ok().filter(|it| (1..=100).contains(it)).map(Ceiling).ok_or(NotACeiling)
    }

    pub fn percent(self) -> u32 {
        self.0.into()
    }
}

impl TryFrom<u8> for Ceiling {
    type Error = NotACeiling;
    fn try_from(percent: u8) -> Result<Ceiling, NotACeiling> {
        Ceiling::parse(percent.into())
    }
}

impl From<Ceiling> for u8 {
    fn from(ceiling: Ceiling) -> u8 {
        ceiling.0
    }
}

impl fmt::Display for Ceiling {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} %", self.0)
    }
}
