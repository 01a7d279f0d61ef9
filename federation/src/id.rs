//! Names of jobs, factories and pools, and the pseudonyms that stand for people.
//! Invariant: an id exists only if its text was parsed, and it has exactly one text form.

use std::{cmp::Ordering, fmt, str::FromStr};

use certs::MemberState;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use thiserror::Error;

use crate::limits::NAME_BYTES_MAX;

/// Why a text is not an id.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BadId {
    #[error("a job id is `job_` and 26 characters of lower-case Crockford base32")]
    Job,
    #[error("a name is 1 to {NAME_BYTES_MAX} of a-z, 0-9 and `-`, and does not begin or end with `-`")]
    Name,
    #[error("a factory id is STATE/factory")]
    Factory,
    #[error("a pool id is STATE/factory/pool")]
    Pool,
    #[error("a pseudonym is 32 lower-case hexadecimal digits")]
    Pseudonym,
}

/// Gives a type whose text is its only form the conversions to and from that text.
macro_rules! by_text {
    ($($id:ty),*) => {$(
        impl FromStr for $id {
            type Err = BadId;
            fn from_str(text: &str) -> Result<Self, BadId> {
                Self::parse(text)
            }
        }
        impl fmt::Debug for $id {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, out)
            }
        }
    )*};
}
macro_rules! serde_by_text {
    ($($id:ty),*) => {$(
        impl Serialize for $id {
            fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
                out.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $id {
            fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
                Self::parse(&String::deserialize(input)?).map_err(D::Error::custom)
            }
        }
    )*};
}
/// Ids of 16 bytes: text for people, bytes in the log.
macro_rules! serde_by_16_bytes {
    ($($id:ident),*) => {$(
        impl Serialize for $id {
            fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
                if out.is_human_readable() { out.collect_str(self) } else { self.0.serialize(out) }
            }
        }
        impl<'de> Deserialize<'de> for $id {
            fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
                if input.is_human_readable() {
                    Self::parse(&String::deserialize(input)?).map_err(D::Error::custom)
                } else {
                    Ok(Self(<[u8; 16]>::deserialize(input)?))
                }
            }
        }
    )*};
}
by_text!(JobId, FactoryName, PoolName, FactoryId, PoolId, Pseudonym);
serde_by_text!(FactoryName, PoolName, FactoryId, PoolId);
serde_by_16_bytes!(JobId, Pseudonym);

/// A ULID: 48 bits of Unix milliseconds, 80 random bits. Text: `job_01j8zk…`, sorted by time of creation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId([u8; 16]);

const CROCKFORD: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const ULID_CHARS: usize = 26;

impl JobId {
    /// The id of a job made at `now_ms` (only the low 48 bits count) with these random bits.
    pub fn new(now_ms: u64, random: [u8; 10]) -> JobId {
        let mut bytes = [0; 16];
        bytes[..6].copy_from_slice(&now_ms.to_be_bytes()[2..]);
        bytes[6..].copy_from_slice(&random);
        JobId(bytes)
    }

    pub fn parse(text: &str) -> Result<JobId, BadId> {
        let digits = text.strip_prefix("job_").ok_or(BadId::Job)?.as_bytes();
        // 26 x 5 = 130 bits: the first digit may carry only three.
        if digits.len() != ULID_CHARS || digits[0] > b'7' {
            return Err(BadId::Job);
        }
        let mut number = 0u128;
        for digit in digits {
            let value = CROCKFORD.iter().position(|known| known == digit).ok_or(BadId::Job)?;
            number = number << 5 | value as u128;
        }
        Ok(JobId(number.to_be_bytes()))
    }

    /// When the id was made, in Unix milliseconds, as its maker says.
    pub fn made_at_ms(&self) -> u64 {
        self.0[..6].iter().fold(0, |ms, byte| ms << 8 | u64::from(*byte))
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = u128::from_be_bytes(self.0);
        let mut text = *b"job_00000000000000000000000000";
        for (place, digit) in text[4..].iter_mut().rev().enumerate() {
            *digit = CROCKFORD[(number >> (5 * place) & 31) as usize];
        }
        out.pad(std::str::from_utf8(&text).expect("invariant: Crockford digits are ASCII"))
    }
}

/// A name held in place, so that ids are `Copy` and the registry allocates nothing for them.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Name {
    length: u8,
    bytes: [u8; NAME_BYTES_MAX],
}

impl Name {
    /// Sorts before every parsed name.
    const FIRST: Name = Name { length: 0, bytes: [0; NAME_BYTES_MAX] };

    fn parse(text: &str) -> Result<Name, BadId> {
        let known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let dashed = text.starts_with('-') || text.ends_with('-');
        if text.is_empty() || text.len() > NAME_BYTES_MAX || dashed || !text.bytes().all(known) {
            return Err(BadId::Name);
        }
        let mut bytes = [0; NAME_BYTES_MAX];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        Ok(Name { length: text.len() as u8, bytes })
    }

    fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.length)]).expect("invariant: a parsed name is ASCII")
    }
}

/// Zero padding sorts like the shorter text: no name contains a zero byte.
impl Ord for Name {
    fn cmp(&self, other: &Name) -> Ordering {
        self.bytes.cmp(&other.bytes)
    }
}

impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Name) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Name of a factory within its state: `[a-z0-9-]`, at most 31 bytes, e.g. `jean-zay`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FactoryName(Name);

/// Name of a pool within its factory: `[a-z0-9-]`, at most 31 bytes, e.g. `h100-80`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolName(Name);

impl FactoryName {
    pub fn parse(text: &str) -> Result<FactoryName, BadId> {
        Name::parse(text).map(FactoryName)
    }

    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl PoolName {
    pub fn parse(text: &str) -> Result<PoolName, BadId> {
        Name::parse(text).map(PoolName)
    }

    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl fmt::Display for FactoryName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(self.as_str())
    }
}

impl fmt::Display for PoolName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(self.as_str())
    }
}

/// A place with GPUs that a state runs: `FR/jean-zay`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FactoryId {
    pub state: MemberState,
    pub name: FactoryName,
}

impl FactoryId {
    pub fn parse(text: &str) -> Result<FactoryId, BadId> {
        let (state, name) = text.split_once('/').ok_or(BadId::Factory)?;
        let state = MemberState::parse(state).map_err(|_| BadId::Factory)?;
        Ok(FactoryId { state, name: FactoryName::parse(name)? })
    }
}

impl fmt::Display for FactoryId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.state, self.name)
    }
}

/// Identical GPUs of one factory: `FR/jean-zay/h100-80`. Sorted by state, factory, pool.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolId {
    pub factory: FactoryId,
    pub name: PoolName,
}

impl PoolId {
    pub fn parse(text: &str) -> Result<PoolId, BadId> {
        let (factory, name) = text.rsplit_once('/').ok_or(BadId::Pool)?;
        Ok(PoolId { factory: FactoryId::parse(factory).map_err(|_| BadId::Pool)?, name: PoolName::parse(name)? })
    }

    /// The state whose factory this is: it alone may change the pool's record.
    pub fn state(&self) -> MemberState {
        self.factory.state
    }

    /// The lower bound of a state's pools in a sorted map; no parsed id equals it.
    pub(crate) fn before_all_of(state: MemberState) -> PoolId {
        PoolId { factory: FactoryId { state, name: FactoryName(Name::FIRST) }, name: PoolName(Name::FIRST) }
    }
}

impl fmt::Display for PoolId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.factory, self.name)
    }
}

/// A researcher as the other states know them: made by the home state, which alone can say who it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pseudonym(pub [u8; 16]);

impl Pseudonym {
    pub fn parse(text: &str) -> Result<Pseudonym, BadId> {
        let digits = text.as_bytes();
        if digits.len() != 32 || !digits.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(BadId::Pseudonym);
        }
        u128::from_str_radix(text, 16).map(|number| Pseudonym(number.to_be_bytes())).map_err(|_| BadId::Pseudonym)
    }
}

impl fmt::Display for Pseudonym {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:032x}", u128::from_be_bytes(self.0))
    }
}
