//! The pulse of a connection: what it waits for, and since when.
//!
//! Whoever touches the connection notes it here; its task looks at it from time to time. A deadline
//! inside a future would not do: what a client does not take is not polled any more.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::limits::Limits;
use super::unused::Turn;

/// What is to be done with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Alive,
    /// Nobody uses it: it may end in order.
    Idle,
    /// Cut it; the reason is for the log.
    Dead(&'static str),
}

/// Shared by a connection's IO, its requests and its task.
#[derive(Debug)]
pub struct Pulse {
    beats: Mutex<Beats>,
    /// Pieces of answers that were taken, ever.
    pieces: AtomicU64,
}

#[derive(Debug)]
struct Beats {
    last_read: Instant,
    /// The socket takes no more bytes.
    write_blocked: Option<Instant>,
    /// Answers of which the client has not taken the latest piece.
    untaken: HashMap<u64, Instant>,
    requests: usize,
    requests_ever: u64,
    /// Bodies that are still read although their requests are answered. What is closed on them is reset, and with it goes the
    /// answer.
    rests: usize,
    /// When `requests` and `rests` last became 0.
    unused_since: Instant,
    /// Whose turn it is to give way, among those on which nothing is asked.
    turn: Turn,
    ambiguous: bool,
    cut: bool,
}

impl Beats {
    fn is_unused(&self) -> bool {
        self.requests == 0 && self.rests == 0
    }

    /// A request has ended, or a rest.
    fn line_up_if_unused(&mut self, now: Instant) {
        if self.requests == 0 {
            self.unused_since = now;
        }
        if self.is_unused() {
            self.turn.line_up(true);
        }
    }
}

/// The rest of one body is read. It takes no request's place.
#[derive(Debug)]
pub struct ReadingRest(Arc<Pulse>);

impl Drop for ReadingRest {
    fn drop(&mut self) {
        let mut beats = self.0.lock();
        beats.rests -= 1;
        beats.line_up_if_unused(Instant::now());
    }
}

impl Pulse {
    /// The pulse of a new connection.
    pub fn new(now: Instant, turn: Turn) -> Pulse {
        let beats = Mutex::new(Beats {
            last_read: now,
            write_blocked: None,
            untaken: HashMap::new(),
            requests: 0,
            requests_ever: 0,
            rests: 0,
            unused_since: now,
            turn,
            ambiguous: false,
            cut: false,
        });
        Pulse { beats, pieces: AtomicU64::new(0) }
    }

    /// The handshake is done; what is returned is cancelled when the connection has to give way to a newer one.
    pub fn begin_waiting(&self, now: Instant) -> CancellationToken {
        let mut beats = self.lock();
        beats.unused_since = now;
        beats.turn.line_up(false);
        beats.turn.gives_way()
    }

    /// Bytes came in.
    pub fn read(&self, now: Instant) {
        self.lock().last_read = now;
    }

    /// Bytes went out.
    pub fn wrote(&self) {
        self.lock().write_blocked = None;
    }

    /// Bytes do not go out.
    pub fn write_blocked(&self, now: Instant) {
        self.lock().write_blocked.get_or_insert(now);
    }

    /// A request begins; the number names it until [`Pulse::end_request`].
    pub fn begin_request(&self) -> u64 {
        let mut beats = self.lock();
        beats.turn.step_out();
        beats.requests += 1;
        beats.requests_ever += 1;
        beats.requests_ever
    }

    /// A request is over, with its answer.
    pub fn end_request(&self, request: u64, now: Instant) {
        let mut beats = self.lock();
        beats.untaken.remove(&request);
        beats.requests -= 1;
        beats.line_up_if_unused(now);
    }

    /// The rest of a body that nobody wants is read; as long as what is returned is held.
    pub fn begin_rest(self: &Arc<Self>) -> ReadingRest {
        let mut beats = self.lock();
        beats.turn.step_out();
        beats.rests += 1;
        ReadingRest(Arc::clone(self))
    }

    /// It has to give way; whether it can at once, because nothing is asked and nothing of that is still read.
    pub fn gives_way(&self) -> bool {
        let mut beats = self.lock();
        if !beats.is_unused() {
            beats.turn.stay();
        }
        beats.is_unused()
    }

    /// A piece of an answer goes out.
    pub fn piece(&self) {
        self.pieces.fetch_add(1, Ordering::Relaxed);
    }

    /// How many did.
    pub fn pieces(&self) -> u64 {
        self.pieces.load(Ordering::Relaxed)
    }

    /// A piece of an answer waits for the client.
    pub fn offered(&self, request: u64, now: Instant) {
        self.lock().untaken.insert(request, now);
    }

    /// The client has taken what was offered and may have the next piece.
    pub fn taken(&self, request: u64) {
        self.lock().untaken.remove(&request);
    }

    /// A head says two things about where its body ends; see [`super::framing`].
    pub fn found_ambiguous(&self) {
        self.lock().ambiguous = true;
    }

    /// Whether any head of this connection was ambiguous.
    pub fn is_ambiguous(&self) -> bool {
        self.lock().ambiguous
    }

    /// Notes that the connection is cut: what the socket still holds is thrown away.
    pub fn cut(&self) {
        self.lock().cut = true;
    }

    /// Whether the connection was cut.
    pub fn was_cut(&self) -> bool {
        self.lock().cut
    }

    /// Whether nothing is asked, and nothing has come in for so long. Who stops amid a body that nobody wants is not waited
    /// for either.
    pub fn is_still(&self, now: Instant, for_: Duration) -> bool {
        let beats = self.lock();
        let still = |since: Instant| now.duration_since(since) > for_;
        beats.requests == 0 && still(beats.unused_since) && still(beats.last_read)
    }

    /// What is to be done now. Only an HTTP/2 connection answers pings and is never silent for long.
    pub fn verdict(&self, now: Instant, limits: &Limits, http2: bool) -> Verdict {
        let beats = self.lock();
        let over = |since: Instant, limit: Duration| now.duration_since(since) > limit;
        let blocked = beats.write_blocked.is_some_and(|since| over(since, limits.untaken));
        let untaken = beats.untaken.values().any(|since| over(*since, limits.untaken));
        if blocked || untaken {
            Verdict::Dead("the client does not take its answer")
        } else if http2 && over(beats.last_read, limits.silent) {
            Verdict::Dead("the client is silent")
        } else if beats.is_unused() && over(beats.unused_since, limits.idle) {
            Verdict::Idle
        } else {
            Verdict::Alive
        }
    }

    fn lock(&self) -> MutexGuard<'_, Beats> {
        self.beats.lock().expect("invariant: nothing panics while it holds the pulse")
    }
}

#[cfg(test)]
mod tests {
    use super::super::unused::Unused;
    use super::*;

    const TICK: Duration = Duration::from_secs(1);

    fn check(story: impl FnOnce(&Pulse, Instant), after: Duration, http2: bool, expected: Verdict) {
        let now = Instant::now();
        let pulse = Pulse::new(now, Unused::default().turn());
        story(&pulse, now);
        assert_eq!(pulse.verdict(now + after, &Limits::public(), http2), expected);
    }

    #[test]
    fn a_verdict_follows_from_what_is_waited_for() {
        let limits = Limits::public();
        let dead = Verdict::Dead("the client does not take its answer");
        let silent = Verdict::Dead("the client is silent");
        check(|_, _| {}, TICK, true, Verdict::Alive);
        check(|_, _| {}, limits.silent + TICK, true, silent);
        check(|_, _| {}, limits.silent + TICK, false, Verdict::Alive);
        check(|_, _| {}, limits.idle + TICK, false, Verdict::Idle);
        check(|pulse, now| pulse.write_blocked(now), limits.untaken + TICK, false, dead);
        check(
            |pulse, now| {
                pulse.write_blocked(now);
                pulse.wrote();
            },
            limits.untaken + TICK,
            false,
            Verdict::Alive,
        );
        check(
            |pulse, now| {
                let request = pulse.begin_request();
                pulse.offered(request, now);
            },
            limits.untaken + TICK,
            false,
            dead,
        );
        // A handler or a log that has nothing to say yet is no fault of the client.
        check(
            |pulse, now| {
                let request = pulse.begin_request();
                pulse.offered(request, now);
                pulse.taken(request);
            },
            limits.idle + TICK,
            false,
            Verdict::Alive,
        );
        check(
            |pulse, now| {
                let request = pulse.begin_request();
                pulse.offered(request, now);
                pulse.end_request(request, now);
            },
            limits.idle + TICK,
            false,
            Verdict::Idle,
        );
    }

    #[test]
    fn still_is_who_asks_nothing_and_says_nothing() {
        let now = Instant::now();
        let later = now + 2 * TICK;
        let pulse = Pulse::new(now, Unused::default().turn());
        assert!(pulse.is_still(later, TICK) && !pulse.is_still(later, 3 * TICK));
        let request = pulse.begin_request();
        assert!(!pulse.is_still(later, TICK), "an answer is under way");
        pulse.end_request(request, later);
        assert!(!pulse.is_still(later, TICK), "it has just ended");
        pulse.read(later + TICK);
        assert!(!pulse.is_still(later + 2 * TICK, TICK), "a request may be on its way");
        assert!(pulse.is_still(later + 3 * TICK, TICK));
    }
}
