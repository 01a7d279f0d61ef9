//! Mistakes in a task document: what is wrong, and where.
//! Invariant: each says in one sentence what to change, and quotes a bounded piece of the document.

use std::fmt;

use crate::error::Code;

/// A pointer is cut at this many bytes; member names are the client's and have no limit.
const POINTER_BYTES_MAX: usize = 256;
/// As much of a client's own text as a sentence quotes, in characters.
const QUOTE_CHARS_MAX: usize = 64;

/// A place in a JSON document. Source: RFC 6901.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pointer(String);

impl Pointer {
    /// A member of the object here.
    pub fn member(&self, name: &str) -> Pointer {
        self.step(&name.replace('~', "~0").replace('/', "~1"))
    }

    /// An entry of the list here, counted from 0.
    pub fn entry(&self, index: usize) -> Pointer {
        self.step(&index.to_string())
    }

    /// The pointer as text; empty for the whole document.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What is wrong here.
    pub fn is(&self, mistake: Mistake) -> BadTask {
        BadTask { pointer: self.0.clone(), mistake }
    }

    fn step(&self, token: &str) -> Pointer {
        let mut text = format!("{}/{token}", self.0);
        text.truncate(text.floor_char_boundary(POINTER_BYTES_MAX));
        Pointer(text)
    }
}

/// Why a document is not a task.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct BadTask {
    /// Where: an RFC 6901 pointer, empty for the whole document.
    pub pointer: String,
    /// What.
    pub mistake: Mistake,
}

impl fmt::Display for BadTask {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = if self.pointer.is_empty() { "the task" } else { &self.pointer };
        write!(out, "{place}: {}", self.mistake)
    }
}

/// What is wrong with a part of a document.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mistake {
    /// The body is longer than any task.
    #[error("the body is larger than {limit} bytes; stage large files through `inputs[].url`")]
    BodyTooLarge {
        /// Bytes.
        limit: usize,
    },
    /// Not JSON at all.
    #[error("this is not JSON: {reason}")]
    NotJson {
        /// As the parser says it.
        reason: String,
    },
    /// Deeper than any task.
    #[error("a task nests at most {limit} levels; nest less")]
    TooDeep {
        /// Levels.
        limit: usize,
    },
    /// More values than any task.
    #[error("a task has at most {limit} values in all; send fewer")]
    TooManyValues {
        /// Values.
        limit: usize,
    },
    /// The same name twice in one object.
    #[error("this member occurs twice; send it once")]
    Duplicate,
    /// The specification does not have it.
    #[error("TES 1.1 has no such member here; remove it")]
    Unknown,
    /// The specification asks for it.
    #[error("this member is missing; add it")]
    Missing,
    /// Another JSON type.
    #[error("expected {expected}; send that")]
    WrongType {
        /// `a text`, `a list`, …
        expected: &'static str,
    },
    /// A list or text without anything in it.
    #[error("this is empty; {fix}")]
    Empty {
        /// What to put in.
        fix: &'static str,
    },
    /// A text that is too long.
    #[error("at most {limit} bytes are allowed; shorten it")]
    TooLong {
        /// Bytes.
        limit: usize,
    },
    /// A list or map with too many entries.
    #[error("at most {limit} entries are allowed; send fewer")]
    TooMany {
        /// Entries.
        limit: usize,
    },
    /// A text outside its alphabet.
    #[error("{value:?} is not allowed; {rule}")]
    BadText {
        /// As much of it as fits a sentence.
        value: String,
        /// What is allowed.
        rule: &'static str,
    },
    /// A number outside its range, or not a number.
    #[error("{value:?} is not allowed; give a whole number from {min} to {max}, in digits only")]
    BadNumber {
        /// As much of it as fits a sentence.
        value: String,
        /// Least.
        min: u32,
        /// Most.
        max: u32,
    },
    /// An amount outside its range.
    #[error("{value} is not allowed; give a number from 0 to {max}")]
    BadAmount {
        /// As it was given.
        value: String,
        /// Most.
        max: u32,
    },
    /// Two parts that cannot both hold.
    #[error("{fix}")]
    Contradiction {
        /// What to change.
        fix: &'static str,
    },
    /// A key that this federation does not know, where the client wants to be told.
    #[error(
        "this federation does not support the backend parameter; remove it, or set \
         backend_parameters_strict to false and it is ignored"
    )]
    UnsupportedBackendParameter,
}

impl Mistake {
    /// A text outside its alphabet.
    pub fn text(value: &str, rule: &'static str) -> Mistake {
        Mistake::BadText { value: quote(value), rule }
    }

    /// A number outside its range.
    pub fn number(value: &str, min: u32, max: u32) -> Mistake {
        Mistake::BadNumber { value: quote(value), min, max }
    }

    /// The stable code that clients see.
    pub fn code(&self) -> Code {
        match self {
            Mistake::BodyTooLarge { .. } => Code::BodyTooLarge,
            Mistake::NotJson { .. } => Code::NotJson,
            Mistake::TooDeep { .. } | Mistake::TooManyValues { .. } => Code::TooDeep,
            Mistake::Duplicate => Code::DuplicateMember,
            Mistake::Unknown => Code::UnknownMember,
            Mistake::Missing => Code::MissingMember,
            Mistake::WrongType { .. } => Code::WrongType,
            Mistake::TooLong { .. } => Code::TooLong,
            Mistake::TooMany { .. } => Code::TooMany,
            Mistake::Empty { .. } | Mistake::BadText { .. } => Code::BadValue,
            Mistake::BadNumber { .. } | Mistake::BadAmount { .. } => Code::OutOfRange,
            Mistake::Contradiction { .. } => Code::Contradiction,
            Mistake::UnsupportedBackendParameter => Code::UnsupportedBackendParameter,
        }
    }
}

/// A piece of a client's text that fits a sentence.
pub fn quote(text: &str) -> String {
    text.chars().take(QUOTE_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointers_escape_and_stay_short() {
        let root = Pointer::default();
        assert_eq!(root.as_str(), "");
        assert_eq!(root.member("a/b~c").entry(3).as_str(), "/a~1b~0c/3");
        assert!(root.member(&"ä".repeat(1_000)).as_str().len() <= POINTER_BYTES_MAX);
    }

    #[test]
    fn a_sentence_names_the_place_and_quotes_little() {
        let long = "x".repeat(1_000_000);
        let bad = Pointer::default().member("name").is(Mistake::text(&long, "shorten it"));
        let sentence = bad.to_string();
        assert!(sentence.starts_with("/name: "), "{sentence}");
        assert!(sentence.len() < 200, "{}", sentence.len());
    }
}
