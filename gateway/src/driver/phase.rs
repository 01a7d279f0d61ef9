//! Phases: how far an attempt is, as a driver's memory has it.
//!
//! Invariant: an attempt moves on and never back; what is done stays as it is.

use std::io;

use federation::End;

use super::AttemptStatus;
use super::fault::Fault;
use super::folder::Done;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Starting,
    Running { started_ms: u64 },
    Done { end: End, started_ms: Option<u64> },
}

impl Phase {
    /// What memory keeps of how an attempt ended. One whose file is damaged ran, so it must not run again.
    pub fn of(done: &io::Result<Done>) -> Phase {
        match done {
            Ok(done) => Phase::Done { end: done.end.clone(), started_ms: done.record.running_ms },
            Err(_) => Phase::Done { end: Fault::Unreadable.end(), started_ms: None },
        }
    }

    pub fn is_done(&self) -> bool {
        matches!(self, Phase::Done { .. })
    }

    /// Moves on to `next` if that is further; whether it did.
    pub fn advance(&mut self, next: Phase) -> bool {
        let moves = !self.is_done() && next != Phase::Starting && *self != next;
        if moves {
            *self = next;
        }
        moves
    }
}

impl From<Phase> for AttemptStatus {
    fn from(phase: Phase) -> AttemptStatus {
        match phase {
            Phase::Starting => AttemptStatus::Starting,
            Phase::Running { started_ms } => AttemptStatus::Running { started_ms },
            Phase::Done { end, started_ms } => AttemptStatus::Done { end, started_ms },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_moves_on_and_never_back() {
        let done = Phase::Done { end: End::Complete, started_ms: Some(5) };
        let mut phase = Phase::Starting;
        assert!(!phase.advance(Phase::Starting));
        assert!(phase.advance(Phase::Running { started_ms: 5 }) && !phase.advance(Phase::Running { started_ms: 5 }));
        assert!(!phase.advance(Phase::Starting));
        assert!(phase.advance(done.clone()));
        for next in [Phase::Running { started_ms: 6 }, Phase::Done { end: End::Canceled, started_ms: None }] {
            assert!(!phase.advance(next));
        }
        assert_eq!(phase, done);
    }
}
