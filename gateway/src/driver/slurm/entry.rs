//! Entries: what the journal has of an attempt, as far as it must survive the gateway.
//!
//! Invariants: an entry is durable before Slurm is asked for anything, and says so before each try. None of it is where a
//! task's account could write.

use federation::PoolId;
use serde::{Deserialize, Serialize};

use super::accounts::Mapped;
use super::dialect::Request;
use super::next::Memory;
use super::refusal::GivenUp;
use crate::driver::ledger;

/// One attempt, as far as it must survive the gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// `None`: cancelled before it came, so there is nothing to run.
    pub work: Option<Work>,
    /// When Slurm was last asked to take it. Whatever came of it, a job may exist since then.
    pub posted_ms: Option<u64>,
    /// The job that Slurm has made of it.
    pub known: Option<Known>,
    /// Somebody asked for the stop.
    pub cancel: bool,
    /// The driver itself ended it.
    pub given_up: Option<GivenUp>,
}

/// What Slurm is asked for, and as whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Work {
    pub pool: PoolId,
    pub mapped: Mapped,
    pub request: Request,
}

/// A job's number is given away again when slurmctld loses its state, so a number alone says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Known {
    pub id: u32,
    /// Unix seconds, by slurmctld's clock; not in its first answer.
    pub submit_time: Option<u64>,
}

/// A request to Slurm about one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deed {
    Post,
    Kill,
}

impl Entry {
    pub fn new(work: Work) -> Entry {
        Entry { work: Some(work), posted_ms: None, known: None, cancel: false, given_up: None }
    }

    /// Nobody wants it to run any more.
    pub fn is_over(&self) -> bool {
        self.cancel || self.given_up.is_some() || self.work.is_none()
    }
}

impl ledger::Entry for Entry {
    type Memory = Memory;
    type Deed = Deed;

    fn buried() -> Entry {
        Entry { work: None, posted_ms: None, known: None, cancel: true, given_up: None }
    }

    fn memory(&self) -> Memory {
        Memory::default()
    }

    fn cancel(&mut self) {
        self.cancel = true;
    }

    fn goes_first(deed: &Deed) -> bool {
        *deed == Deed::Kill
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::accounts::LocalName;
    use super::super::dialect::tests::request;
    use super::*;

    pub fn work() -> Work {
        let user = LocalName::parse("alice").expect("a name");
        let pool = PoolId::parse("FR/jean-zay/h100-80").expect("a pool");
        Work { pool, mapped: Mapped { user, account: None }, request: request() }
    }

    #[test]
    fn an_entry_is_read_as_it_was_written() {
        let known = Some(Known { id: 7, submit_time: Some(9) });
        let entry = Entry { posted_ms: Some(5), known, ..Entry::new(work()) };
        let text = serde_json::to_string(&entry).expect("JSON");
        assert_eq!(serde_json::from_str::<Entry>(&text).expect("an entry"), entry);
    }
}
