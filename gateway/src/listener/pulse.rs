//! The pulse of a connection: what it waits for, and since when.
//!
//! Whoever touches the connection notes it here; its task looks at it from time to time. A deadline
//! inside a future would not do: what a client does not take is not polled any more.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use super::limits::Limits;

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
pub struct Pulse(Mutex<Beats>);

#[derive(Debug)]
struct Beats {
    last_read: Instant,
    /// The socket takes no more bytes.
    write_blocked: Option<Instant>,
    /// Answers of which the client has not taken the latest piece.
    untaken: HashMap<u64, Instant>,
    requests: usize,
    requests_ever: u64,
    /// When `requests` last became 0.
    unused_since: Instant,
    ambiguous: bool,
    cut: bool,
}

impl Pulse {
    /// The pulse of a new connection.
    pub fn new(now: Instant) -> Pulse {
        Pulse(Mutex::new(Beats {
            last_read: now,
            write_blocked: None,
            untaken: HashMap::new(),
            requests: 0,
            requests_ever: 0,
            unused_since: now,
            ambiguous: false,
            cut: false,
        }))
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
        beats.requests += 1;
        beats.requests_ever += 1;
        beats.requests_ever
    }

    /// A request is over, with its answer.
    pub fn end_request(&self, request: u64, now: Instant) {
        let mut beats = self.lock();
        beats.untaken.remove(&request);
        beats.requests -= 1;
        if beats.requests == 0 {
            beats.unused_since = now;
        }
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
        } else if beats.requests == 0 && over(beats.unused_since, limits.idle) {
            Verdict::Idle
        } else {
            Verdict::Alive
        }
    }

    fn lock(&self) -> MutexGuard<'_, Beats> {
        self.0.lock().expect("invariant: nothing panics while it holds the pulse")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_secs(1);

    fn check(story: impl FnOnce(&Pulse, Instant), after: Duration, http2: bool, expected: Verdict) {
        let now = Instant::now();
        let pulse = Pulse::new(now);
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
}
