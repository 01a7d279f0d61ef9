//! Packs: one state's rules, as published and as compiled.
//!
//! A pack's text is foreign: any member's key may sign one. It is scanned first, then parsed and
//! checked against the schema on a thread with a stack of its own.
//!
//! Invariant: the policies of a [`Pack`] are static, well-typed without a warning, and each has the
//! id and the annotations of the rule at its place in [`Pack::rules`].

use std::collections::BTreeSet;
use std::thread;

use cedar_policy::{ActionConstraint, Effect as CedarEffect, EntityUid, Policy, PolicyId, PolicySet, ValidationMode};
use certs::MemberState;
use serde::{Deserialize, Serialize};

use crate::request::Action;
use crate::rule::{Effect, Rule};
use crate::text::{self, BadText};
use crate::vocabulary::vocabulary;

/// More rules than anyone reads; a state of the union with one for each other member and topic
/// would have 27 x 7 = 189.
const RULES_MAX: usize = 200;
/// Bytes of a rule's id, as in `fr-health-stays`.
const ID_BYTES_MAX: usize = 64;
/// Bytes of a title, a legal basis or a contact: one line each.
const LINE_BYTES_MAX: usize = 200;
/// Virtual memory, of which a text that passed the scan touches a few MiB.
const PARSER_STACK_BYTES: usize = 256 * 1_024 * 1_024;
/// As much of a parser's message as an error shows.
const MESSAGE_CHARS_MAX: usize = 300;

/// A pack as its state writes and signs it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PackSource {
    /// The state that it speaks for.
    pub state: MemberState,
    /// What it is, in one line.
    pub title: String,
    /// Whom to ask about rules that name nobody else.
    pub contact: String,
    /// Cedar policies over the schema of `packs/entente.cedarschema`.
    pub cedar: String,
}

/// Why a pack cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPack {
    /// The text is too long, too deep, or has characters that deceive.
    #[error(transparent)]
    Text(#[from] BadText),
    /// Not Cedar.
    #[error("the pack cannot be read: {0}")]
    Syntax(String),
    /// More rules than a pack may have.
    #[error("the pack has {0} rules; it may have {RULES_MAX}")]
    TooManyRules(usize),
    /// A policy with slots (`?principal`) would be a rule that nobody can read.
    #[error("the pack has a template ({0}); only whole rules are taken")]
    Template(String),
    /// A rule without an annotation that every rule needs.
    #[error("{rule}: the annotation @{annotation} is missing")]
    MissingAnnotation {
        /// Its id, or its place in the pack.
        rule: String,
        /// `id`, `title` or `law`.
        annotation: &'static str,
    },
    /// An annotation that means nothing here.
    #[error("{rule}: @{annotation} is not an annotation of rules (@id @title @law @since @contact are)")]
    UnknownAnnotation {
        /// Its id, or its place in the pack.
        rule: String,
        /// Its name.
        annotation: String,
    },
    /// A text that is empty, too long, more than a line, or not of its form.
    #[error("{of}: the {what} is not well-formed: {expected}")]
    BadLine {
        /// The rule's id or place, or `the pack`.
        of: String,
        /// Which text.
        what: &'static str,
        /// What it should be.
        expected: &'static str,
    },
    /// Two rules of one id.
    #[error("two rules have the id {0}")]
    DuplicateId(String),
    /// Ill-typed, or something that the schema does not know.
    #[error("the pack does not fit the schema: {0}")]
    Invalid(String),
    /// Well-typed, but not what its author meant: a rule that can never apply, for instance.
    #[error("the pack has a warning, which counts as an error: {0}")]
    Warning(String),
    /// The system gave no thread to parse on; the only one that says nothing about the pack.
    #[error("no thread to parse the pack on: {0}")]
    NoThread(String),
    /// The parser panicked.
    #[error("the parser failed on the pack")]
    ParserFailed,
}

impl BadPack {
    /// Whether the same pack may compile another time: the fault was the machine's and not the pack's. Whoever remembers
    /// that a pack cannot be used does not remember this.
    pub fn is_transient(&self) -> bool {
        match self {
            BadPack::NoThread(_) => true,
            BadPack::Text(_)
            | BadPack::Syntax(_)
            | BadPack::TooManyRules(_)
            | BadPack::Template(_)
            | BadPack::MissingAnnotation { .. }
            | BadPack::UnknownAnnotation { .. }
            | BadPack::BadLine { .. }
            | BadPack::DuplicateId(_)
            | BadPack::Invalid(_)
            | BadPack::Warning(_)
            | BadPack::ParserFailed => false,
        }
    }
}

/// One state's rules, ready to be asked.
#[derive(Clone, Debug)]
pub struct Pack {
    state: MemberState,
    rules: Vec<Rule>,
    /// By action, those that can apply to it: a policy that cannot is never evaluated.
    policies: [PolicySet; Action::ALL.len()],
}

impl Pack {
    /// Compiles a pack. Takes some milliseconds and a thread; done once per version of a pack.
    pub fn compile(source: &PackSource) -> Result<Pack, BadPack> {
        text::scan(&source.cedar)?;
        line("the pack", "title", &source.title)?;
        line("the pack", "contact", &source.contact)?;
        thread::scope(|scope| {
            thread::Builder::new()
                .name("pack-parser".into())
                .stack_size(PARSER_STACK_BYTES)
                .spawn_scoped(scope, || parse(source))
                .map_err(|cause| BadPack::NoThread(cause.to_string()))?
                .join()
                .map_err(|_panic| BadPack::ParserFailed)?
        })
    }

    /// The state that it speaks for.
    pub fn state(&self) -> MemberState {
        self.state
    }

    /// Its rules, in the order of the text.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The policies that can apply to an action.
    pub(crate) fn policies(&self, action: Action) -> &PolicySet {
        &self.policies[action as usize]
    }
}

fn parse(source: &PackSource) -> Result<Pack, BadPack> {
    let parsed: PolicySet = source.cedar.parse().map_err(|errors| BadPack::Syntax(message(&errors)))?;
    if let Some(template) = parsed.templates().next() {
        return Err(BadPack::Template(message(template.id())));
    }
    let count = parsed.num_of_policies();
    if count > RULES_MAX {
        return Err(BadPack::TooManyRules(count));
    }
    // The parser calls them policy0, policy1, .. in the order of the text.
    let mut in_order: Vec<&Policy> = parsed.policies().collect();
    in_order.sort_by_key(|policy| {
        let id: &str = policy.id().as_ref();
        (id.len(), id.to_owned())
    });

    let mut rules = Vec::with_capacity(count);
    let mut ids = BTreeSet::new();
    let mut named = Vec::with_capacity(count);
    for (index, policy) in in_order.into_iter().enumerate() {
        let rule = rule(policy, index + 1, &source.contact)?;
        if !ids.insert(rule.id.clone()) {
            return Err(BadPack::DuplicateId(rule.id));
        }
        named.push(policy.new_id(PolicyId::new(&rule.id)));
        rules.push(rule);
    }
    check_types(&set(&named)?)?;
    let applying = |action: Action| {
        let can_apply = |policy: &&Policy| applies(policy, action);
        set(&named.iter().filter(can_apply).cloned().collect::<Vec<_>>())
    };
    let policies = [applying(Action::Export)?, applying(Action::Host)?, applying(Action::View)?];
    Ok(Pack { state: source.state, rules, policies })
}

fn set(policies: &[Policy]) -> Result<PolicySet, BadPack> {
    PolicySet::from_policies(policies.iter().cloned()).map_err(|error| BadPack::Syntax(message(&error)))
}

/// Does the policy's scope name the action? The schema has no groups of actions.
fn applies(policy: &Policy, action: Action) -> bool {
    let names = |uid: &EntityUid| {
        let id: &str = uid.id().as_ref();
        id == action.as_str()
    };
    match policy.action_constraint() {
        ActionConstraint::Any => true,
        ActionConstraint::Eq(uid) => names(&uid),
        ActionConstraint::In(uids) => uids.iter().any(names),
    }
}

/// Reads a policy's annotations. `place` counts from 1.
fn rule(policy: &Policy, place: usize, contact: &str) -> Result<Rule, BadPack> {
    let name = match policy.annotation("id") {
        Some(id) if is_id(id) => id.to_owned(),
        _ => format!("rule {place}"),
    };
    let known = ["id", "title", "law", "since", "contact"];
    if let Some((unknown, _)) = policy.annotations().find(|(key, _)| !known.contains(key)) {
        return Err(BadPack::UnknownAnnotation { rule: name, annotation: message(&unknown) });
    }
    let required = |annotation: &'static str| {
        let missing = || BadPack::MissingAnnotation { rule: name.clone(), annotation };
        policy.annotation(annotation).ok_or_else(missing)
    };
    let malformed = |what, expected| BadPack::BadLine { of: name.clone(), what, expected };
    let id = required("id")?;
    if !is_id(id) {
        return Err(malformed("id", "1 to 64 of a-z, 0-9 and -"));
    }
    let since = policy.annotation("since").unwrap_or_default();
    if !since.is_empty() && !is_date(since) {
        return Err(malformed("since", "a day such as 2025-01-31"));
    }
    Ok(Rule {
        id: id.into(),
        title: line(&name, "title", required("title")?)?,
        law: line(&name, "law", required("law")?)?,
        since: since.into(),
        contact: line(&name, "contact", policy.annotation("contact").unwrap_or(contact))?,
        effect: match policy.effect() {
            CedarEffect::Permit => Effect::Permit,
            CedarEffect::Forbid => Effect::Forbid,
        },
    })
}

fn check_types(policies: &PolicySet) -> Result<(), BadPack> {
    let result = vocabulary().validator.validate(policies, ValidationMode::Strict);
    if let Some(error) = result.validation_errors().next() {
        return Err(BadPack::Invalid(message(error)));
    }
    match result.validation_warnings().next() {
        Some(warning) => Err(BadPack::Warning(message(warning))),
        None => Ok(()),
    }
}

fn is_id(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=ID_BYTES_MAX).contains(&text.len()) && text.bytes().all(inner)
}

fn is_date(text: &str) -> bool {
    let form = text.bytes().enumerate().all(|(index, byte)| match index {
        4 | 7 => byte == b'-',
        _ => byte.is_ascii_digit(),
    });
    text.len() == 10
        && form
        && (1..=12).any(|month| text[5..7] == format!("{month:02}"))
        && (1..=31).any(|day| text[8..] == format!("{day:02}"))
}

/// One line for people; escapes in a literal could have brought in what the scan refuses.
fn line(of: &str, what: &'static str, text: &str) -> Result<String, BadPack> {
    let good = (1..=LINE_BYTES_MAX).contains(&text.len()) && !text.chars().any(text::is_deceptive);
    if good {
        Ok(text.into())
    } else {
        Err(BadPack::BadLine { of: of.into(), what, expected: "one line of 1 to 200 bytes" })
    }
}

fn message(error: &impl ToString) -> String {
    error.to_string().chars().take(MESSAGE_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_lack_of_a_thread_passes() {
        assert!(BadPack::NoThread("Resource temporarily unavailable".into()).is_transient());
        let state = MemberState::parse("FR").unwrap();
        let compile = |cedar: &str| {
            let (title, contact) = ("A pack".into(), "law@example.eu".into());
            Pack::compile(&PackSource { state, title, contact, cedar: cedar.into() })
        };
        for cedar in [
            "(",
            "allow;",
            "permit (principal, action, resource);",
            "permit (principal == ?principal, action, resource);",
        ] {
            assert!(!compile(cedar).unwrap_err().is_transient(), "{cedar}");
        }
        assert!(!BadPack::ParserFailed.is_transient());
    }
}
