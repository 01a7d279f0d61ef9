//! Frames: notices an HTTP/2 client that sends frames without asking for anything.
//!
//! Pings, settings, resets, priorities, windows and empty data cost a client nothing, and each of them is looked at and some
//! are answered here. An honest client sends a few, and more of them where it takes long answers. Nothing else is
//! decided here: what a frame means, and whether it is one at all, the protocol's library says.
//!
//! Invariant: one pass over the head of each frame; nothing of what it carries is looked at or kept.

use std::time::Duration;

use tokio::time::Instant;

/// What a client says before its first frame.
const PREFACE_BYTES: u64 = 24;
const HEAD_BYTES: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const END_STREAM: u8 = 1;

/// Frames that ask for nothing, at once: settings, and the windows of a hundred answers.
const ALLOWANCE_MAX: u32 = 1_000;
/// One more for each of these; a client that pings, cancels and widens windows does it ten times less often.
pub const REFILL: Duration = Duration::from_millis(10);
/// The same of a gateway, which speaks for as many researchers as there are requests on one connection.
const OF_GATEWAYS: u32 = 64;
/// For each piece of an answer that is taken: the windows of its stream and of its connection, twice.
pub const PER_PIECE: u32 = 4;

/// Where the scan is in a connection's bytes.
#[derive(Debug)]
pub struct Frames {
    /// Bytes until the next frame begins.
    skip: u64,
    head: [u8; HEAD_BYTES],
    head_has: usize,
    allowance: u32,
    allowance_max: u32,
    /// For each [`REFILL`].
    refill: u32,
    refilled: Instant,
    pieces: u64,
}

/// More frames that ask for nothing than anybody needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a flood of frames that ask for nothing")]
pub struct Flood;

impl Frames {
    /// From the first byte of somebody's connection.
    pub fn new(now: Instant) -> Frames {
        Frames::within(ALLOWANCE_MAX, 1, now)
    }

    /// From the first byte of a gateway's connection.
    pub fn of_gateway(now: Instant) -> Frames {
        Frames::within(OF_GATEWAYS * ALLOWANCE_MAX, OF_GATEWAYS, now)
    }

    /// With so many at once, and so many more for each [`REFILL`].
    pub fn within(allowance_max: u32, refill: u32, now: Instant) -> Frames {
        Frames {
            skip: PREFACE_BYTES,
            head: [0; HEAD_BYTES],
            head_has: 0,
            allowance: allowance_max,
            allowance_max,
            refill,
            refilled: now,
            pieces: 0,
        }
    }

    /// Looks at the next bytes of the connection, on which so many pieces of answers were ever taken.
    pub fn scan(&mut self, mut bytes: &[u8], now: Instant, pieces: u64) -> Result<(), Flood> {
        self.refill(now, pieces);
        while !bytes.is_empty() {
            let here = self.skip.min(bytes.len() as u64);
            self.skip -= here;
            // `here` is at most the number of bytes.
            bytes = &bytes[here as usize..];
            let here = (HEAD_BYTES - self.head_has).min(bytes.len());
            self.head[self.head_has..self.head_has + here].copy_from_slice(&bytes[..here]);
            self.head_has += here;
            bytes = &bytes[here..];
            if self.head_has == HEAD_BYTES {
                self.head_has = 0;
                self.begin()?;
            }
        }
        Ok(())
    }

    fn begin(&mut self) -> Result<(), Flood> {
        let [a, b, c, kind, flags, ..] = self.head;
        let length = u32::from_be_bytes([0, a, b, c]);
        self.skip = length.into();
        let asks = match kind {
            DATA => length > 0 || flags & END_STREAM != 0,
            HEADERS => true,
            _ => false,
        };
        if !asks {
            self.allowance = self.allowance.checked_sub(1).ok_or(Flood)?;
        }
        Ok(())
    }

    fn refill(&mut self, now: Instant, pieces: u64) {
        let times = now.duration_since(self.refilled).as_millis() / REFILL.as_millis();
        let times = u32::try_from(times).unwrap_or(u32::MAX);
        self.refilled += REFILL.saturating_mul(times);
        let taken = u32::try_from(pieces - self.pieces).unwrap_or(u32::MAX);
        self.pieces = pieces;
        let for_time = times.saturating_mul(self.refill);
        let more = for_time.saturating_add(taken.saturating_mul(PER_PIECE));
        self.allowance = self.allowance.saturating_add(more).min(self.allowance_max);
    }
}

/// What clients say, as bytes.
#[cfg(test)]
pub mod samples {
    pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

    pub fn frame(kind: u8, flags: u8, stream: u32, content: &[u8]) -> Vec<u8> {
        let length = u32::try_from(content.len()).expect("a small frame").to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), content].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::samples::{PREFACE, frame};
    use super::*;

    /// How many of these frames pass, cut into pieces of any size.
    fn pass(frame: &[u8], piece: usize) -> usize {
        let now = Instant::now();
        let mut frames = Frames::new(now);
        frames.scan(PREFACE, now, 0).expect("no frame yet");
        let passes = |frames: &mut Frames| frame.chunks(piece).try_for_each(|it| frames.scan(it, now, 0)).is_ok();
        (0..3_000).take_while(|_| passes(&mut frames)).count()
    }

    #[test]
    fn frames_that_ask_for_nothing_are_counted_and_others_are_not() {
        const PING: u8 = 6;
        let allowed = ALLOWANCE_MAX as usize;
        for (kind, flags, content, expected) in [
            (HEADERS, 4, 30, 3_000),
            (DATA, 0, 1, 3_000),
            (DATA, END_STREAM, 0, 3_000),
            (DATA, 0, 0, allowed),
            (2, 0, 5, allowed),
            (3, 0, 4, allowed),
            (4, 0, 6, allowed),
            (PING, 0, 8, allowed),
            (PING, 1, 8, allowed),
            (8, 0, 4, allowed),
            // Continued headers; the headers themselves are counted as one.
            (9, 0, 40, allowed),
            (200, 0, 0, allowed),
        ] {
            for piece in [1, 5, 9, 10_000] {
                assert_eq!(
                    pass(&frame(kind, flags, 1, &vec![0; content]), piece),
                    expected,
                    "{kind} of {content} by {piece}"
                );
            }
        }
    }

    #[test]
    fn a_gateway_may_cancel_for_many_researchers() {
        let begun = Instant::now();
        let resets = |count: usize| frame(3, 0, 1, &[0; 4]).repeat(count);
        let mut frames = Frames::of_gateway(begun);
        frames.scan(PREFACE, begun, 0).expect("no frame yet");
        frames.scan(&resets(64_000), begun, 0).expect("what a gateway may send");
        frames.scan(&resets(6_400), begun + Duration::from_secs(1), 0).expect("what a second allows it");
        assert_eq!(frames.scan(&resets(1), begun + Duration::from_secs(1), 0), Err(Flood));
    }

    #[test]
    fn time_and_taken_answers_allow_more() {
        let begun = Instant::now();
        let windows = |count: usize| frame(8, 0, 1, &[0; 4]).repeat(count);
        let mut frames = Frames::new(begun);
        frames.scan(PREFACE, begun, 0).expect("no frame yet");
        frames.scan(&windows(1_000), begun, 0).expect("what anybody may send");
        frames.scan(&windows(40), begun, 10).expect("what ten pieces allow");
        frames.scan(&windows(100), begun + Duration::from_secs(1), 10).expect("what a second allows");
        frames.scan(&windows(1_000), begun + Duration::from_secs(1_000), 10_000).expect("no more than at first");
        assert_eq!(frames.scan(&windows(1), begun + Duration::from_secs(1_000), 10_000), Err(Flood));
    }
}
