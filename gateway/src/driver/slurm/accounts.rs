//! Accounts: which local user and which Slurm account a researcher's jobs run as.
//!
//! The operator keeps the mapping in a file; the first rule that fits counts, and nobody else runs here:
//! ```toml
//! [[rule]]
//! pseudonym = "0123456789abcdef0123456789abcdef"
//! user = "adupont"
//! account = "climate"
//!
//! [[rule]]
//! home = "FI"
//! project = "genomics"
//! user = "fi-genomics"
//! ```
//! Invariant: names have letters, digits and `_-.` only, so they are safe in paths, headers and scripts.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use certs::MemberState;
use federation::Pseudonym;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use crate::driver::WorkOwner;

/// Source: useradd(8), LOGIN_NAME_MAX is larger.
const NAME_BYTES_MAX: usize = 32;
/// 50,000 rules of 160 bytes.
const FILE_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// A user of the cluster, or an account of its accounting.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LocalName(String);

/// Why a text is no local name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a local name: up to {NAME_BYTES_MAX} of a-z A-Z 0-9 _ - . and not root")]
pub struct BadName(String);

/// What a researcher's jobs run as.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mapped {
    pub user: LocalName,
    pub account: Option<LocalName>,
}

/// All rules of a file, in its order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Accounts {
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
    user: LocalName,
    #[serde(default)]
    account: Option<LocalName>,
}

/// Why a file is not a mapping. Always the operator's to mend.
#[derive(Debug, thiserror::Error)]
pub enum BadAccounts {
    #[error("cannot read {path}: {cause}")]
    Unreadable { path: PathBuf, cause: io::Error },
    #[error("{path} does not map researchers to accounts: {cause}")]
    Malformed { path: PathBuf, cause: Box<toml::de::Error> },
    #[error("rule {number} of {path} fits everybody: it needs a home, a pseudonym or a project")]
    FitsEverybody { path: PathBuf, number: usize },
}

impl LocalName {
    pub fn parse(text: &str) -> Result<LocalName, BadName> {
        let known = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        let starts = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if text.len() > NAME_BYTES_MAX || !text.starts_with(starts) || !text.chars().all(known) || text == "root" {
            return Err(BadName(text.to_owned()));
        }
        Ok(LocalName(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Accounts {
    /// Reads a mapping, and when its file was last changed.
    pub fn read(path: &Path) -> Result<(Accounts, SystemTime), BadAccounts> {
        let unreadable = |cause| BadAccounts::Unreadable { path: path.to_owned(), cause };
        let about = fs::metadata(path).map_err(unreadable)?;
        if about.len() > FILE_BYTES_MAX {
            return Err(unreadable(io::Error::other("larger than 8 MiB")));
        }
        let changed = about.modified().map_err(unreadable)?;
        let text = fs::read_to_string(path).map_err(unreadable)?;
        Ok((Accounts::parse(path, &text)?, changed))
    }

    fn parse(path: &Path, text: &str) -> Result<Accounts, BadAccounts> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct File {
            #[serde(default, rename = "rule")]
            rules: Vec<Rule>,
        }
        let file: File = toml::from_str(text)
            .map_err(|cause| BadAccounts::Malformed { path: path.to_owned(), cause: Box::new(cause) })?;
        let fits_everybody = |it: &Rule| it.home.is_none() && it.pseudonym.is_none() && it.project.is_none();
        match file.rules.iter().position(fits_everybody) {
            Some(index) => Err(BadAccounts::FitsEverybody { path: path.to_owned(), number: index + 1 }),
            None => Ok(Accounts { rules: file.rules }),
        }
    }

    /// Everybody whom a rule names.
    pub fn users(&self) -> BTreeSet<LocalName> {
        self.rules.iter().map(|it| it.user.clone()).collect()
    }

    pub fn map(&self, owner: &WorkOwner) -> Option<Mapped> {
        let fits = |it: &&Rule| {
            it.home.is_none_or(|home| home == owner.home)
                && it.pseudonym.is_none_or(|pseudonym| pseudonym == owner.pseudonym)
                && it.project.as_ref().is_none_or(|project| Some(project) == owner.project.as_ref())
        };
        self.rules.iter().find(fits).map(|it| Mapped { user: it.user.clone(), account: it.account.clone() })
    }
}

fn home<'de, D: Deserializer<'de>>(input: D) -> Result<Option<MemberState>, D::Error> {
    MemberState::parse(&String::deserialize(input)?).map(Some).map_err(D::Error::custom)
}

fn pseudonym<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Pseudonym>, D::Error> {
    Pseudonym::parse(&String::deserialize(input)?).map(Some).map_err(D::Error::custom)
}

impl fmt::Display for LocalName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl fmt::Debug for LocalName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

impl Serialize for LocalName {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for LocalName {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<LocalName, D::Error> {
        LocalName::parse(&String::deserialize(input)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
[[rule]]
pseudonym = "00000000000000000000000000000001"
user = "adupont"
account = "climate"

[[rule]]
home = "FI"
project = "genomics"
user = "fi-genomics"

[[rule]]
home = "FI"
user = "fi.guests"
"#;

    fn parse(text: &str) -> Result<Accounts, String> {
        Accounts::parse(Path::new("accounts.toml"), text).map_err(|bad| bad.to_string())
    }

    fn check(home: &str, number: u8, project: Option<&str>) -> Option<String> {
        let mut pseudonym = [0; 16];
        pseudonym[15] = number;
        let home = MemberState::parse(home).expect("a state");
        let owner = WorkOwner { home, pseudonym: Pseudonym(pseudonym), project: project.map(str::to_owned) };
        let mapped = parse(FILE).expect("a mapping").map(&owner)?;
        Some(format!("{}/{}", mapped.user, mapped.account.map_or("-".into(), |it| it.to_string())))
    }

    #[test]
    fn the_first_rule_that_fits_counts_and_nobody_else_is_let_in() {
        assert_eq!(check("FI", 1, Some("genomics")).as_deref(), Some("adupont/climate"));
        assert_eq!(check("FI", 2, Some("genomics")).as_deref(), Some("fi-genomics/-"));
        assert_eq!(check("FI", 2, Some("other")).as_deref(), Some("fi.guests/-"));
        assert_eq!(check("FI", 2, None).as_deref(), Some("fi.guests/-"));
        assert_eq!(check("DE", 2, Some("genomics")), None);
        assert_eq!(parse("").map(|it| it.rules.len()), Ok(0), "nobody");
    }

    #[test]
    fn names_are_safe_wherever_they_are_written() {
        for name in ["root", "", ".", "..", "-x", "a/b", "a b", "a;b", "ü", "a$b", &"a".repeat(33)] {
            assert!(LocalName::parse(name).is_err(), "{name:?}");
        }
        for name in ["a", "x_adupont", "fi.guests", "Anna-1", "_svc"] {
            assert!(LocalName::parse(name).is_ok(), "{name:?}");
        }
    }

    #[test]
    fn a_mapping_that_is_not_one_is_refused() {
        for (text, part) in [
            ("[[rule]]\nuser = \"a\"\n", "rule 1"),
            ("[[rule]]\nhome = \"FI\"\nuser = \"root\"\n", "root"),
            ("[[rule]]\nhome = \"FI\"\nuser = \"../x\"\n", "../x"),
            ("[[rule]]\nhome = \"FI\"\n", "user"),
            ("[[rule]]\nhome = \"Finland\"\nuser = \"a\"\n", "home"),
            ("[[rule]]\nhom = \"FI\"\nuser = \"a\"\n", "hom"),
            ("[[rules]]\n", "rules"),
        ] {
            let reason = parse(text).expect_err(text);
            assert!(reason.contains(part), "{reason}");
        }
    }
}
