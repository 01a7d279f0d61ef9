//! Claims: what a token says, each of the one type that the profile allows, none twice.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;

use super::{BadToken, LEEWAY_S, TOKEN_LIFE_MAX_S};
use crate::bundle::Assurance;
use crate::state::MemberState;

const SUBJECT_BYTES_MAX: usize = 256;
const TOKEN_ID_BYTES_MAX: usize = 128;
/// AARC-G069 URNs of one person; large collaborations have dozens of groups.
const ENTITLEMENTS_MAX: usize = 128;
const CLEARANCES_MAX: usize = 32;
const ITEM_BYTES_MAX: usize = 256;

/// A JSON object whose names come once.
pub struct Members(BTreeMap<String, Value>);

/// What of a token counts.
pub struct Claims {
    pub issuer: String,
    pub subject: String,
    pub token_id: String,
    pub audience: String,
    pub issued_s: u64,
    pub not_before_s: u64,
    pub expires_s: u64,
    pub entitlements: Vec<String>,
    pub clearances: Vec<String>,
    pub assurance: Assurance,
    pub residency: Option<MemberState>,
}

impl Members {
    pub fn parse(json: &[u8]) -> Result<Members, BadToken> {
        let once: Once = serde_json::from_slice(json).map_err(|_| BadToken::Malformed)?;
        match once.twice {
            Some(name) => Err(BadToken::Twice(name.chars().take(40).collect())),
            None => Ok(Members(once.members)),
        }
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    pub fn text(&self, name: &'static str) -> Result<&str, BadToken> {
        self.0.get(name).and_then(Value::as_str).ok_or(BadToken::Claim(name))
    }

    fn short(&self, name: &'static str, bytes_max: usize) -> Result<String, BadToken> {
        let text = self.text(name)?;
        let fits = !text.is_empty() && text.len() <= bytes_max && !text.chars().any(char::is_control);
        if fits { Ok(text.to_owned()) } else { Err(BadToken::Claim(name)) }
    }

    /// Whole Unix seconds; RFC 7519 would allow fractions, which nobody sends.
    fn seconds(&self, name: &'static str) -> Result<u64, BadToken> {
        self.0.get(name).and_then(Value::as_u64).ok_or(BadToken::Claim(name))
    }

    /// One text; an array of one is another spelling that the profile does not have.
    fn list(&self, name: &'static str, items_max: usize) -> Result<Vec<String>, BadToken> {
        let Some(value) = self.0.get(name) else {
            return Ok(vec![]);
        };
        let items = value.as_array().filter(|items| items.len() <= items_max).ok_or(BadToken::Claim(name))?;
        let text = |item: &Value| {
            let text = item.as_str().filter(|text| !text.is_empty() && text.len() <= ITEM_BYTES_MAX);
            text.map(str::to_owned).ok_or(BadToken::Claim(name))
        };
        items.iter().map(text).collect()
    }
}

impl Claims {
    pub fn read(members: &Members) -> Result<Claims, BadToken> {
        let residency = members.0.get("residency").map(|value| {
            let state = value.as_str().and_then(|code| MemberState::parse(code).ok());
            state.ok_or(BadToken::Claim("residency"))
        });
        Ok(Claims {
            issuer: members.text("iss")?.to_owned(),
            subject: members.short("sub", SUBJECT_BYTES_MAX)?,
            token_id: members.short("jti", TOKEN_ID_BYTES_MAX)?,
            audience: members.text("aud")?.to_owned(),
            issued_s: members.seconds("iat")?,
            not_before_s: members.seconds("nbf")?,
            expires_s: members.seconds("exp")?,
            entitlements: members.list("entitlements", ENTITLEMENTS_MAX)?,
            clearances: members.list("clearances", CLEARANCES_MAX)?,
            assurance: assurance(&members.list("eduperson_assurance", ENTITLEMENTS_MAX)?),
            residency: residency.transpose()?,
        })
    }

    pub fn hold_at(&self, audience: &str, now_s: u64) -> Result<(), BadToken> {
        if self.audience != audience {
            return Err(BadToken::Audience);
        }
        let soonest = now_s.saturating_add(LEEWAY_S);
        if self.issued_s > soonest || self.not_before_s > soonest {
            return Err(BadToken::NotYet);
        }
        if self.expires_s.saturating_add(LEEWAY_S) <= now_s {
            return Err(BadToken::Expired);
        }
        let begins_s = self.issued_s.min(self.not_before_s);
        let life_s = self.expires_s.checked_sub(begins_s).ok_or(BadToken::Claim("exp"))?;
        if life_s > TOKEN_LIFE_MAX_S { Err(BadToken::LifeTooLong) } else { Ok(()) }
    }
}

/// The highest identity assurance that is stated. Source: REFEDS Assurance Framework 2.0, section 3.
fn assurance(stated: &[String]) -> Assurance {
    let level = |text: &String| match text.strip_prefix("https://refeds.org/assurance/IAP/") {
        Some("high") => Assurance::High,
        Some("medium") => Assurance::Substantial,
        _ => Assurance::Low,
    };
    stated.iter().map(level).max().unwrap_or(Assurance::Low)
}

/// An object as it is read: the first name that came twice, if any.
struct Once {
    members: BTreeMap<String, Value>,
    twice: Option<String>,
}

impl<'de> Deserialize<'de> for Once {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Once, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Once;
            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Once, A::Error> {
                let mut once = Once { members: BTreeMap::new(), twice: None };
                while let Some((name, value)) = map.next_entry::<String, Value>()? {
                    if once.members.insert(name.clone(), value).is_some() {
                        once.twice.get_or_insert(name);
                    }
                }
                Ok(once)
            }
        }
        from.deserialize_map(Object)
    }
}
