//! Chance: where every random choice of a run comes from, in the simulation of members and in that of the core.
//! Invariant: equal seeds make equal choices, on every machine and in every build.

use std::sync::atomic::{AtomicU64, Ordering};

/// Splitmix64: small, fast, and every seed is as good as any other.
pub struct Chance(AtomicU64);

impl Chance {
    pub fn seeded(seed: u64) -> Chance {
        Chance(AtomicU64::new(seed.wrapping_mul(0xA24B_AED4_963E_E407) ^ 0x9FB2_1C65_1E98_DF25))
    }

    pub fn next(&self) -> u64 {
        let step = 0x9E37_79B9_7F4A_7C15;
        let mut it = self.0.fetch_add(step, Ordering::Relaxed).wrapping_add(step);
        it = (it ^ (it >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        it = (it ^ (it >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        it ^ (it >> 31)
    }

    /// One of `0..limit`.
    pub fn below(&self, limit: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(limit)) >> 64) as u64
    }

    /// Both ends included.
    pub fn between(&self, least: u64, most: u64) -> u64 {
        least + self.below(most - least + 1)
    }

    pub fn pick<T: Copy>(&self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    pub fn one_in(&self, times: u64) -> bool {
        self.below(times) == 0
    }
}
