//! The mapping: which namespace and which user id a researcher's jobs have.
//!
//! The operator keeps it in a file; the first rule that fits counts, and nobody else runs here:
//! ```toml
//! [[rule]]
//! pseudonym = "0123456789abcdef0123456789abcdef"
//! namespace = "climate"
//! uid = 20001
//! gid = 20001
//!
//! [[rule]]
//! home = "FI"
//! namespace = "guests-fi"
//! queue = "guests"
//! ```
//! Invariant: a namespace is a DNS label and none of Kubernetes' own, and nobody is user or group 0.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use certs::MemberState;
use federation::Pseudonym;
use serde::{Deserialize, Deserializer, Serialize, de::Error};

use super::names::ObjectName;
use crate::driver::WorkOwner;

/// 50,000 rules of 160 bytes.
const FILE_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// What a researcher's jobs run as.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mapped {
    pub namespace: String,
    /// `None`: the image's own user, whoever that is.
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub queue: Option<ObjectName>,
}

/// All rules of a file, in its order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Mapping {
    rules: Vec<Rule>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    #[serde(default, deserialize_with = "home")]
    home: Option<MemberState>,
    #[serde(default, deserialize_with = "pseudonym")]
    pseudonym: Option<Pseudonym>,
    #[serde(default)]
    project: Option<String>,
    #[serde(deserialize_with = "namespace")]
    namespace: String,
    #[serde(default, deserialize_with = "not_root")]
    uid: Option<u32>,
    #[serde(default, deserialize_with = "not_root")]
    gid: Option<u32>,
    #[serde(default)]
    queue: Option<ObjectName>,
}

/// Why a file is not a mapping. Always the operator's to mend.
#[derive(Debug, thiserror::Error)]
pub enum BadMapping {
    #[error("cannot read {path}: {cause}")]
    Unreadable { path: PathBuf, cause: io::Error },
    #[error("{path} does not map researchers to namespaces: {cause}")]
    Malformed { path: PathBuf, cause: Box<toml::de::Error> },
    #[error("rule {number} of {path} fits everybody: it needs a home, a pseudonym or a project")]
    FitsEverybody { path: PathBuf, number: usize },
    #[error("rule {number} of {path} has a gid and no uid")]
    OnlyGroup { path: PathBuf, number: usize },
}

impl Mapping {
    /// Reads a mapping, and when its file was last changed.
    pub fn read(path: &Path) -> Result<(Mapping, SystemTime), BadMapping> {
        let unreadable = |cause| BadMapping::Unreadable { path: path.to_owned(), cause };
        let about = fs::metadata(path).map_err(unreadable)?;
        if about.len() > FILE_BYTES_MAX {
            return Err(unreadable(io::Error::other("larger than 8 MiB")));
        }
        let changed = about.modified().map_err(unreadable)?;
        let text = fs::read_to_string(path).map_err(unreadable)?;
        Ok((Mapping::parse(path, &text)?, changed))
    }

    fn parse(path: &Path, text: &str) -> Result<Mapping, BadMapping> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct File {
            #[serde(default, rename = "rule")]
            rules: Vec<Rule>,
        }
        let file: File = toml::from_str(text)
            .map_err(|cause| BadMapping::Malformed { path: path.to_owned(), cause: Box::new(cause) })?;
        let number_of = |bad: fn(&Rule) -> bool| file.rules.iter().position(bad).map(|index| index + 1);
        let path = path.to_owned();
        if let Some(number) = number_of(|it| it.home.is_none() && it.pseudonym.is_none() && it.project.is_none()) {
            return Err(BadMapping::FitsEverybody { path, number });
        }
        if let Some(number) = number_of(|it| it.gid.is_some() && it.uid.is_none()) {
            return Err(BadMapping::OnlyGroup { path, number });
        }
        Ok(Mapping { rules: file.rules })
    }

    /// Every namespace that a rule names.
    pub fn namespaces(&self) -> BTreeSet<String> {
        self.rules.iter().map(|it| it.namespace.clone()).collect()
    }

    pub fn map(&self, owner: &WorkOwner) -> Option<Mapped> {
        let fits = |it: &&Rule| {
            it.home.is_none_or(|home| home == owner.home)
                && it.pseudonym.is_none_or(|pseudonym| pseudonym == owner.pseudonym)
                && it.project.as_ref().is_none_or(|project| Some(project) == owner.project.as_ref())
        };
        self.rules.iter().find(fits).map(|it| Mapped {
            namespace: it.namespace.clone(),
            uid: it.uid,
            gid: it.gid,
            queue: it.queue.clone(),
        })
    }
}

fn home<'de, D: Deserializer<'de>>(input: D) -> Result<Option<MemberState>, D::Error> {
    MemberState::parse(&String::deserialize(input)?).map(Some).map_err(D::Error::custom)
}

fn pseudonym<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Pseudonym>, D::Error> {
    Pseudonym::parse(&String::deserialize(input)?).map(Some).map_err(D::Error::custom)
}

fn namespace<'de, D: Deserializer<'de>>(input: D) -> Result<String, D::Error> {
    let text = String::deserialize(input)?;
    let known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let dashed = text.starts_with('-') || text.ends_with('-');
    if text.is_empty() || text.len() > 63 || dashed || !text.bytes().all(known) {
        return Err(D::Error::custom(format!("{text:?} is not a namespace: up to 63 of a-z 0-9 -")));
    }
    if text.starts_with("kube-") {
        return Err(D::Error::custom(format!("{text:?} is a namespace of Kubernetes itself")));
    }
    Ok(text)
}

fn not_root<'de, D: Deserializer<'de>>(input: D) -> Result<Option<u32>, D::Error> {
    match u32::deserialize(input)? {
        0 => Err(D::Error::custom("0 is root, and a task is never root")),
        // Source: Kubernetes' own validation of a security context.
        id if id > i32::MAX as u32 => Err(D::Error::custom(format!("{id} is larger than 2147483647"))),
        id => Ok(Some(id)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
[[rule]]
pseudonym = "00000000000000000000000000000001"
namespace = "climate"
uid = 20001
gid = 20002

[[rule]]
home = "FI"
project = "genomics"
namespace = "genomics"
queue = "night"

[[rule]]
home = "FI"
namespace = "guests-fi"
uid = 30000
"#;

    fn parse(text: &str) -> Result<Mapping, String> {
        Mapping::parse(Path::new("namespaces.toml"), text).map_err(|bad| bad.to_string())
    }

    fn check(home: &str, number: u8, project: Option<&str>) -> Option<String> {
        let mut pseudonym = [0; 16];
        pseudonym[15] = number;
        let home = MemberState::parse(home).expect("a state");
        let owner = WorkOwner { home, pseudonym: Pseudonym(pseudonym), project: project.map(str::to_owned) };
        let it = parse(FILE).expect("a mapping").map(&owner)?;
        let number = |it: Option<u32>| it.map_or("-".into(), |it| it.to_string());
        Some(format!(
            "{} {} {} {}",
            it.namespace,
            number(it.uid),
            number(it.gid),
            it.queue.map_or("-".into(), String::from)
        ))
    }

    #[test]
    fn the_first_rule_that_fits_counts_and_nobody_else_is_let_in() {
        assert_eq!(check("FI", 1, Some("genomics")).as_deref(), Some("climate 20001 20002 -"));
        assert_eq!(check("FI", 2, Some("genomics")).as_deref(), Some("genomics - - night"));
        assert_eq!(check("FI", 2, None).as_deref(), Some("guests-fi 30000 - -"));
        assert_eq!(check("DE", 2, Some("genomics")), None);
        let namespaces = parse(FILE).expect("a mapping").namespaces();
        assert_eq!(namespaces.into_iter().collect::<Vec<_>>(), ["climate", "genomics", "guests-fi"]);
    }

    #[test]
    fn a_mapping_that_is_not_one_is_refused() {
        for (text, part) in [
            ("[[rule]]\nnamespace = \"a\"\n", "rule 1"),
            ("[[rule]]\nhome = \"FI\"\nnamespace = \"kube-system\"\n", "Kubernetes itself"),
            ("[[rule]]\nhome = \"FI\"\nnamespace = \"../x\"\n", "../x"),
            ("[[rule]]\nhome = \"FI\"\nnamespace = \"A\"\n", "\"A\""),
            ("[[rule]]\nhome = \"FI\"\nnamespace = \"a\"\nuid = 0\n", "never root"),
            ("[[rule]]\nhome = \"FI\"\nnamespace = \"a\"\nuid = 3000000000\n", "2147483647"),
            ("[[rule]]\nhome = \"FI\"\nnamespace = \"a\"\ngid = 5\n", "no uid"),
            ("[[rule]]\nhome = \"FI\"\nnamespace = \"a\"\nqueue = \"A b\"\n", "\"A b\""),
            ("[[rule]]\nhome = \"FI\"\n", "namespace"),
            ("[[rule]]\nhom = \"FI\"\nnamespace = \"a\"\n", "hom"),
        ] {
            let reason = parse(text).expect_err(text);
            assert!(reason.contains(part), "{reason}");
        }
    }
}
