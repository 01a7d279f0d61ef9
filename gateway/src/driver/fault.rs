//! Faults: why an attempt ended without its own doing, in words that every state may read.
//!
//! The end of an attempt is copied to all members; its record is for its researcher alone.
//! Invariant: a fault names no URL, path, command, variable or file, since there is nowhere to put one.

use federation::End;

use super::staging::STAGING_TIMEOUT_S;

/// What all states read. Numbers count from 0, as the task lists things.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    #[error("walltime of {0} s is over")]
    Walltime(u32),
    #[error("the machine that ran the task was stopped")]
    Machine,
    #[error("its gateway could not renew its lease, so it stopped by itself")]
    Lease,
    #[error("the machine that ran the task was nearly out of disk")]
    Disk,
    #[error("the task's folders could not be made")]
    Folders,
    #[error("input {0} could not be brought")]
    Input(usize),
    #[error("executor {0} could not be run")]
    Step(usize),
    #[error("output {0} was not written")]
    NoOutput(usize),
    #[error("output {0} could not be delivered")]
    Output(usize),
    #[error("staging took longer than {STAGING_TIMEOUT_S} s")]
    StagingLate,
    #[error("the factory's transfers are not set up")]
    Transfers,
    #[error("the supervisor of the attempt did not start")]
    NotStarted,
    #[error("the supervisor of the attempt was killed")]
    Killed,
    #[error("the record of the attempt is unreadable")]
    Unreadable,
}

impl Fault {
    pub fn end(self) -> End {
        match self {
            Fault::Machine | Fault::Lease | Fault::Killed | Fault::NotStarted => End::lost(&self.to_string()),
            _ => End::system_error(&self.to_string()),
        }
    }

    /// The fault with what only the task's researcher reads.
    pub fn because(self, detail: impl ToString) -> Broken {
        Broken { fault: self, detail: Some(detail.to_string()) }
    }
}

/// A fault, and what is to be said of it to the task's researcher.
#[derive(Debug)]
pub(super) struct Broken {
    pub fault: Fault,
    pub detail: Option<String>,
}

impl From<Fault> for Broken {
    fn from(fault: Fault) -> Broken {
        Broken { fault, detail: None }
    }
}
