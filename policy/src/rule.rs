//! Rules: what people read of a policy. Its id, its title, the law behind it, and whom to ask.

use serde::{Deserialize, Serialize};

/// What a rule does where it applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// Allows, unless another rule forbids.
    Permit,
    /// Forbids, whatever permits.
    Forbid,
}

/// A policy of a pack, or a rule of the floor, as an answer shows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rule {
    /// Unique in its pack, such as `fr-health-stays`.
    pub id: String,
    /// One sentence in plain words.
    pub title: String,
    /// Its legal basis.
    pub law: String,
    /// The day from which it applies, `2025-01-31`; empty if the pack says none.
    pub since: String,
    /// Whom to ask.
    pub contact: String,
    /// What it does.
    pub effect: Effect,
}

impl Rule {
    /// Bytes of its texts.
    pub(crate) fn bytes(&self) -> usize {
        [&self.id, &self.title, &self.law, &self.since, &self.contact].map(String::len).iter().sum()
    }
}
