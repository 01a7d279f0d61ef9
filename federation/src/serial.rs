//! The serials of one signing key: which of its envelopes the registry has seen.
//! Invariant: an envelope is carried out at most once.

use certs::MemberState;
use serde::{Deserialize, Serialize};

use crate::limits::SERIAL_WINDOW;

const WORDS: usize = (SERIAL_WINDOW / 64) as usize;

/// The highest serial seen, and which of the 1,024 up to it were.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SerialWindow {
    /// Whose key it is; kept after the key is retired.
    pub(crate) owner: MemberState,
    pub(crate) highest: u64,
    /// Bit `n` stands for `highest - n`.
    seen: [u64; WORDS],
}

/// What a serial is to a key's window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Serial {
    New,
    Seen,
    /// Too far behind to tell; nothing below `oldest` is accepted.
    TooOld {
        oldest: u64,
    },
}

impl SerialWindow {
    pub(crate) fn new(owner: MemberState) -> SerialWindow {
        SerialWindow { owner, highest: 0, seen: [0; WORDS] }
    }

    pub(crate) fn look(&self, serial: u64) -> Serial {
        let Some(behind) = self.highest.checked_sub(serial) else {
            return Serial::New;
        };
        if behind >= SERIAL_WINDOW {
            Serial::TooOld { oldest: self.highest - (SERIAL_WINDOW - 1) }
        } else if self.seen[(behind / 64) as usize] >> (behind % 64) & 1 == 1 {
            Serial::Seen
        } else {
            Serial::New
        }
    }

    /// Marks a serial that [`SerialWindow::look`] called new.
    pub(crate) fn mark(&mut self, serial: u64) {
        if serial > self.highest {
            self.shift(serial - self.highest);
            self.highest = serial;
        }
        let behind = self.highest - serial;
        self.seen[(behind / 64) as usize] |= 1 << (behind % 64);
    }

    fn shift(&mut self, by: u64) {
        let (words, bits) = ((by / 64) as usize, (by % 64) as u32);
        for word in (0..WORDS).rev() {
            let from = |back: usize| word.checked_sub(words + back).map_or(0, |at| self.seen[at]);
            let carried = if bits == 0 { 0 } else { from(1) >> (64 - bits) };
            self.seen[word] = from(0) << bits | carried;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_serial_is_new_at_most_once(steps in prop::collection::vec(0u64..3_000, 1..400)) {
            let mut window = SerialWindow::new(MemberState::parse("FR").expect("a state"));
            let mut seen = std::collections::BTreeSet::new();
            for serial in steps {
                let highest = seen.last().copied().unwrap_or(0);
                let expected = if serial + SERIAL_WINDOW <= highest {
                    Serial::TooOld { oldest: highest - (SERIAL_WINDOW - 1) }
                } else if seen.contains(&serial) {
                    Serial::Seen
                } else {
                    Serial::New
                };
                prop_assert_eq!(window.look(serial), expected);
                if expected == Serial::New {
                    window.mark(serial);
                    seen.insert(serial);
                }
            }
        }
    }
}
