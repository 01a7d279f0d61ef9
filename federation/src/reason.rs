//! Reasons: why something was refused or failed, for people.
//! Invariant: a [`Reason`] is one line of at most [`REASON_BYTES_MAX`] bytes, wherever it came from.

use std::{fmt, ops::Deref};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::limits::REASON_BYTES_MAX;

/// A reason as the registry keeps it. Text of our own is shortened to one; what others send must already be one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Reason(String);

/// Why a text that somebody sent is not a reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a reason is one line of at most {REASON_BYTES_MAX} bytes")]
pub struct BadReason;

impl Reason {
    /// As much of the text as the registry keeps, on one line.
    pub fn new(text: &str) -> Reason {
        let kept = &text[..text.floor_char_boundary(REASON_BYTES_MAX)];
        Reason(kept.replace(char::is_control, " "))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Reason {
    type Error = BadReason;
    fn try_from(text: String) -> Result<Reason, BadReason> {
        let sound = text.len() <= REASON_BYTES_MAX && !text.chars().any(char::is_control);
        if sound { Ok(Reason(text)) } else { Err(BadReason) }
    }
}

impl From<&str> for Reason {
    fn from(text: &str) -> Reason {
        Reason::new(text)
    }
}

impl Deref for Reason {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(&self.0)
    }
}
