//! The system's randomness, for those who make keys and names; everything else takes bytes as arguments.

use ring::rand::{SecureRandom, SystemRandom};

/// Unpredictable bytes. Aborts if the system has none to give: no key is better than a guessable one.
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).expect("invariant: the system gives randomness");
    bytes
}
