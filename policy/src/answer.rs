//! Answers: decisions as they are written down. An answer explains; it permits nothing.
//!
//! Invariant: reading one back never makes a permit.

use certs::MemberState;
use serde::{Deserialize, Serialize, Serializer};

use crate::decide::{Decision, DenialReason};
use crate::request::Action;
use crate::rule::Rule;

/// A decision without its force, for stores and faces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Who decided.
    pub state: MemberState,
    /// About what.
    pub action: Action,
    /// What came of it.
    pub permitted: bool,
    /// Why not; `None` for a permit.
    pub reason: Option<DenialReason>,
    /// The rules that determined it.
    pub rules: Vec<Rule>,
}

impl From<&Decision> for Answer {
    fn from(decision: &Decision) -> Answer {
        match decision {
            Decision::Permit(permit) => Answer {
                state: permit.state,
                action: permit.action,
                permitted: true,
                reason: None,
                rules: permit.rules.clone(),
            },
            Decision::Denial(denial) => Answer {
                state: denial.state,
                action: denial.action,
                permitted: false,
                reason: Some(denial.reason.clone()),
                rules: denial.rules.clone(),
            },
        }
    }
}

impl Serialize for Decision {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Answer::from(self).serialize(serializer)
    }
}
