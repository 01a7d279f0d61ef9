//! Decisions: one state's answer to one request, with the rules that determined it.
//!
//! Invariants: only [`decide`] makes a [`Permit`]; whatever goes wrong on the way to one is a denial.

use std::ops::Deref;

use cedar_policy::{AuthorizationError, Decision as CedarDecision, PolicyId};
use certs::MemberState;
use serde::{Deserialize, Serialize};

use crate::floor::{self, FloorRule};
use crate::pack::Pack;
use crate::request::{Action, Request};
use crate::rule::Rule;
use crate::vocabulary::vocabulary;

/// Rules that one answer names, the first of the pack's; nobody reads more. 16 x 0.7 KiB = 11 KiB.
const RULES_NAMED_MAX: usize = 16;

/// One state's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It allows.
    Permit(Permit),
    /// It does not.
    Denial(Denial),
}

impl Decision {
    /// Does it allow?
    pub fn is_permit(&self) -> bool {
        matches!(self, Decision::Permit(_))
    }

    /// The rules that determined it, in the order of the pack.
    pub fn rules(&self) -> &[Rule] {
        match self {
            Decision::Permit(permit) => &permit.rules,
            Decision::Denial(denial) => &denial.rules,
        }
    }
}

/// What a permit says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruling {
    /// Who permits.
    pub state: MemberState,
    /// What.
    pub action: Action,
    /// The rules that permit it.
    pub rules: Vec<Rule>,
}

/// Proof that a state allows something. It can be read, not written:
///
/// ```compile_fail,E0423
/// fn forge(ruling: policy::Ruling) -> policy::Permit {
///     policy::Permit(ruling)
/// }
/// ```
/// ```compile_fail,E0594
/// fn turn(permit: &mut policy::Permit, state: certs::MemberState) {
///     permit.state = state;
/// }
/// ```
/// ```compile_fail,E0277
/// fn read(json: &str) -> policy::Permit {
///     serde_json::from_str(json).expect("no permit comes from a text")
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permit(Ruling);

impl Deref for Permit {
    type Target = Ruling;

    fn deref(&self) -> &Ruling {
        &self.0
    }
}

/// A state does not allow something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// Who denies.
    pub state: MemberState,
    /// What.
    pub action: Action,
    /// Why.
    pub reason: DenialReason,
    /// The rules that forbid it; the rule that failed; nothing if no rule permits it.
    pub rules: Vec<Rule>,
}

/// Why something is denied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DenialReason {
    /// Rules of the pack forbid it.
    Rule,
    /// No rule of the pack permits it.
    NoPermit,
    /// The rule of this id could not be evaluated, so what it might have forbidden is forbidden.
    Error(String),
    /// A rule that holds for every state forbids it.
    Floor(FloorRule),
    /// The state has no pack that can be used.
    PolicyMissing,
}

/// Asks one state's pack. First the floor, then the rules; an error of any rule is a denial.
pub fn decide(pack: &Pack, request: &Request) -> Decision {
    let denial =
        |reason, rules| Decision::Denial(Denial { state: pack.state(), action: request.action, reason, rules });
    if let Some(broken) = floor::broken(pack.state(), request) {
        return denial(DenialReason::Floor(broken), vec![broken.rule()]);
    }
    let (question, entities) = match vocabulary().question(request) {
        Ok(question) => question,
        Err(bad) => return denial(DenialReason::Error(bad.to_string()), vec![]),
    };
    let policies = pack.policies(request.action);
    let response = vocabulary().authorizer.is_authorized(&question, policies, &entities);
    let diagnostics = response.diagnostics();

    // Cedar skips a policy that fails and decides by the others; a skipped `forbid` would be a permit.
    if diagnostics.errors().next().is_some() {
        let failed = named(pack, diagnostics.errors().map(policy_of));
        let first = failed.first().map_or_else(|| "unknown".into(), |rule| rule.id.clone());
        return denial(DenialReason::Error(first), failed);
    }
    let rules = named(pack, diagnostics.reason());
    match response.decision() {
        CedarDecision::Allow => Decision::Permit(Permit(Ruling { state: pack.state(), action: request.action, rules })),
        CedarDecision::Deny if rules.is_empty() => denial(DenialReason::NoPermit, rules),
        CedarDecision::Deny => denial(DenialReason::Rule, rules),
    }
}

/// The answer of a state that has no pack that can be used.
pub fn no_pack(state: MemberState, action: Action) -> Decision {
    Decision::Denial(Denial { state, action, reason: DenialReason::PolicyMissing, rules: vec![] })
}

fn policy_of(error: &AuthorizationError) -> &PolicyId {
    match error {
        AuthorizationError::PolicyEvaluationError(error) => error.policy_id(),
    }
}

/// The rules of these ids, in the order of the pack: Cedar's own order differs from run to run.
fn named<'a>(pack: &Pack, ids: impl Iterator<Item = &'a PolicyId>) -> Vec<Rule> {
    let ids: Vec<&str> = ids.map(AsRef::as_ref).collect();
    let determining = pack.rules().iter().filter(|rule| ids.contains(&rule.id.as_str()));
    determining.take(RULES_NAMED_MAX).cloned().collect()
}
