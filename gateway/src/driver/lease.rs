//! Leases: until when an attempt that must not run twice may go on without a word from its gateway.
//!
//! Invariant: they are counted on the machine's own clock, which nobody sets and which goes on while the machine sleeps.

use nix::time::{ClockId, clock_gettime};

/// Milliseconds since this machine was started.
pub fn now_ms() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("invariant: Linux has this clock");
    now.tv_sec() as u64 * 1_000 + now.tv_nsec() as u64 / 1_000_000
}
