//! Names that an operator gives, as Kubernetes takes them: a wrong one would be refused with every job.
//!
//! Source: Kubernetes' apimachinery, `util/validation`.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why a text is none. Always the operator's to mend.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {what}")]
pub struct BadKubernetesName {
    text: String,
    what: &'static str,
}

/// Of a class or a queue: `nvidia`. As short as the value of a label, since a queue is one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ObjectName(String);

/// Key of a label or a taint, or a resource: `nvidia.com/gpu`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct QualifiedName(String);

/// Value of a label: `NVIDIA-H100-80GB-HBM3`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LabelValue(String);

impl ObjectName {
    pub fn parse(text: &str) -> Result<Self, BadKubernetesName> {
        let is_one = is_subdomain(text) && text.len() <= 63;
        check(is_one, text, "the name of an object: up to 63 of a-z 0-9 - .").map(Self)
    }
}

impl QualifiedName {
    pub fn parse(text: &str) -> Result<Self, BadKubernetesName> {
        let is_one = match text.split_once('/') {
            Some((domain, word)) => is_subdomain(domain) && is_word(word),
            None => is_word(text),
        };
        check(is_one, text, "a name such as nvidia.com/gpu: up to 63 of A-Z a-z 0-9 - _ . after a domain").map(Self)
    }

    /// Whether it has a domain, as extended resources have.
    pub fn has_domain(&self) -> bool {
        self.0.contains('/')
    }
}

impl LabelValue {
    pub fn parse(text: &str) -> Result<Self, BadKubernetesName> {
        check(text.is_empty() || is_word(text), text, "the value of a label: up to 63 of A-Z a-z 0-9 - _ .").map(Self)
    }
}

fn check(is_one: bool, text: &str, what: &'static str) -> Result<String, BadKubernetesName> {
    if is_one { Ok(text.to_owned()) } else { Err(BadKubernetesName { text: text.to_owned(), what }) }
}

fn is_word(text: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let is_bounded = |byte: Option<u8>| byte.is_some_and(|it| it.is_ascii_alphanumeric());
    let bytes = || text.bytes();
    text.len() <= 63 && bytes().all(known) && is_bounded(bytes().next()) && is_bounded(bytes().last())
}

fn is_subdomain(text: &str) -> bool {
    let is_lower = !text.bytes().any(|it| it.is_ascii_uppercase() || it == b'_');
    text.len() <= 253 && is_lower && text.split('.').all(is_word)
}

/// What all of them have in common.
macro_rules! as_text {
    ($($name:ident)*) => {$(
        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = BadKubernetesName;

            fn try_from(text: String) -> Result<Self, BadKubernetesName> {
                $name::parse(&text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str(&self.0)
            }
        }
    )*};
}

as_text!(ObjectName QualifiedName LabelValue);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_kubernetes_takes_them() {
        let long = "a".repeat(64);
        let checked = |it: fn(&str) -> bool, good: &[&str], bad: &[&str]| {
            good.iter().for_each(|text| assert!(it(text), "{text:?}"));
            bad.iter()
                .chain(&[long.as_str(), "a b", "-a", "a-", "a,b"])
                .for_each(|text| assert!(!it(text), "{text:?}"));
        };
        checked(|it| ObjectName::parse(it).is_ok(), &["nvidia", "a-1.b"], &["", "Not", "a..b", "a/b", "a_b"]);
        checked(|it| QualifiedName::parse(it).is_ok(), &["gpu", "nvidia.com/gpu.A_1"], &["", "/a", "A.com/b", "a/b/c"]);
        checked(|it| LabelValue::parse(it).is_ok(), &["", "NVIDIA-H100-80GB-HBM3", "a_b"], &["a/b"]);
    }
}
