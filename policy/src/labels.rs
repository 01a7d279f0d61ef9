//! Labels: what a submitter says about a job. They travel with it, and packs decide on them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How sensitive a job's data is; the order is that of sensitivity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DataClass {
    /// Anyone may see it.
    Public,
    /// Not published, and about nobody.
    Internal,
    /// About people: GDPR, article 4(1).
    Personal,
    /// About people's health: GDPR, article 4(15).
    Health,
}

impl DataClass {
    /// Every class, in order.
    pub const ALL: [DataClass; 4] = [DataClass::Public, DataClass::Internal, DataClass::Personal, DataClass::Health];

    /// As in tags and in packs: `health`.
    pub fn as_str(self) -> &'static str {
        match self {
            DataClass::Public => "public",
            DataClass::Internal => "internal",
            DataClass::Personal => "personal",
            DataClass::Health => "health",
        }
    }

    /// Parses what [`DataClass::as_str`] writes.
    pub fn parse(text: &str) -> Option<DataClass> {
        DataClass::ALL.into_iter().find(|class| class.as_str() == text)
    }

    /// Is it about people?
    pub fn is_personal(self) -> bool {
        self >= DataClass::Personal
    }
}

/// What a job is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Purpose {
    /// Science whose results are published.
    Research,
    /// Teaching.
    Education,
    /// A company's own gain.
    Industry,
    /// Armed forces.
    Defence,
}

impl Purpose {
    /// Every purpose, in order.
    pub const ALL: [Purpose; 4] = [Purpose::Research, Purpose::Education, Purpose::Industry, Purpose::Defence];

    /// As in tags and in packs: `research`.
    pub fn as_str(self) -> &'static str {
        match self {
            Purpose::Research => "research",
            Purpose::Education => "education",
            Purpose::Industry => "industry",
            Purpose::Defence => "defence",
        }
    }

    /// Parses what [`Purpose::as_str`] writes.
    pub fn parse(text: &str) -> Option<Purpose> {
        Purpose::ALL.into_iter().find(|purpose| purpose.as_str() == text)
    }
}

/// A job's labels.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Labels {
    /// How sensitive its data is.
    pub data_class: DataClass,
    /// What it is for.
    pub purpose: Purpose,
    /// Could its results also serve arms? Regulation (EU) 2021/821, article 2(1).
    pub dual_use: bool,
    /// The project it counts for: 1 to 40 of `a-z`, `0-9` and `-`.
    pub project: Option<String>,
}

impl fmt::Display for DataClass {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(self.as_str())
    }
}

impl fmt::Display for Purpose {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_packs_and_json_spell_labels_alike() {
        for class in DataClass::ALL {
            assert_eq!(DataClass::parse(class.as_str()), Some(class));
            assert_eq!(serde_json::to_value(class).unwrap(), class.as_str());
        }
        for purpose in Purpose::ALL {
            assert_eq!(Purpose::parse(purpose.as_str()), Some(purpose));
            assert_eq!(serde_json::to_value(purpose).unwrap(), purpose.as_str());
        }
        assert_eq!(DataClass::parse("Health"), None);
        assert_eq!(Purpose::parse(""), None);
    }
}
