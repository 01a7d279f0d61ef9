//! Trace: what happened in a run, as a number that two equal runs share and as text for people.
//! Invariant: whether the text is kept changes nothing about the run.

use std::cell::{Cell, RefCell};

#[derive(Default)]
pub struct Trace {
    digest: Cell<u64>,
    lines: Option<RefCell<Vec<String>>>,
}

impl Trace {
    pub fn with_text(keep: bool) -> Trace {
        Trace { digest: Cell::new(0xCBF2_9CE4_8422_2325), lines: keep.then(RefCell::default) }
    }

    pub fn mix(&self, number: u64) {
        self.digest.set((self.digest.get() ^ number).wrapping_mul(0x0000_0100_0000_01B3).rotate_left(23));
    }

    pub fn mix_bytes(&self, bytes: &[u8]) {
        self.mix(u64::from(crc32fast::hash(bytes)));
    }

    pub fn say(&self, at_ms: u64, line: impl FnOnce() -> String) {
        if let Some(lines) = &self.lines {
            lines.borrow_mut().push(format!("{at_ms:>7} ms  {}", line()));
        }
    }

    pub fn digest(&self) -> u64 {
        self.digest.get()
    }

    pub fn into_lines(self) -> Vec<String> {
        self.lines.map(RefCell::into_inner).unwrap_or_default()
    }
}
