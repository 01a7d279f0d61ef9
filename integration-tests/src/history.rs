//! Histories: what concurrent clients did to one task and saw of it, and whether one order explains it all.
//!
//! The order has to keep to real time: what returned before another call was made comes before it. A call whose
//! outcome nobody knows stays open for ever, so that it may have had its effect at any time since, or not yet. The
//! search is Wing, Gong and Lowe's, by `todc-utils`.

use todc_utils::linearizability::WGLChecker;
use todc_utils::linearizability::history::{Action, History as Actions};
use todc_utils::specifications::Specification;

/// A call about one task, with its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Submits it; repeats are the same.
    Submit,
    /// Asks for its end.
    Cancel,
    /// Whether it holds its GPUs.
    Holds(bool),
}

/// What is true of a task at one moment. It only goes forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Not submitted.
    Absent,
    /// It holds its GPUs, and does so until somebody cancels it.
    Holding,
    /// It may let go at any moment.
    Cancelled,
    /// It has let go.
    Over,
}

struct Task;

impl Specification for Task {
    type State = Stage;
    type Operation = Call;

    fn init() -> Stage {
        Stage::Absent
    }

    fn apply(call: &Call, stage: &Stage) -> (bool, Stage) {
        match (call, stage) {
            (Call::Submit, Stage::Absent) => (true, Stage::Holding),
            (Call::Cancel, Stage::Holding) => (true, Stage::Cancelled),
            (Call::Submit | Call::Cancel, stage) => (true, *stage),
            (Call::Holds(true), Stage::Holding | Stage::Cancelled) => (true, *stage),
            (Call::Holds(true), Stage::Absent | Stage::Over) => (false, *stage),
            (Call::Holds(false), Stage::Absent | Stage::Over) => (true, *stage),
            // The host has let go between the cancellation and this look.
            (Call::Holds(false), Stage::Cancelled) => (true, Stage::Over),
            (Call::Holds(false), Stage::Holding) => (false, *stage),
        }
    }
}

/// A call with its times, in any unit that all calls share.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    /// What was called.
    pub call: Call,
    /// When it was made.
    pub from: u64,
    /// When it was answered; `None`: nobody knows whether it was carried out.
    pub until: Option<u64>,
}

/// Whether one order explains these calls about one task.
pub fn is_linearizable(calls: &[Done]) -> bool {
    // A look without an answer says nothing and does nothing.
    let said = calls.iter().filter(|it| it.until.is_some() || !matches!(it.call, Call::Holds(_)));
    let mut events = vec![];
    for (number, done) in said.enumerate() {
        events.push((done.from, false, number, done.call));
        events.push((done.until.unwrap_or(u64::MAX), true, number, done.call));
    }
    // At the same time calls come before answers: then they overlap, which forbids least.
    events.sort_by_key(|(at, is_answer, number, _)| (*at, *is_answer, *number));
    let actions = events.into_iter().map(|(_, is_answer, number, call)| {
        (number, if is_answer { Action::Response(call) } else { Action::Call(call) })
    });
    let actions: Vec<_> = actions.collect();
    actions.is_empty() || WGLChecker::<Task>::is_linearizable(Actions::from_actions(actions))
}
