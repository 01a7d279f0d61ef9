//! Bytes from outside, thrown at every parser that meets them: what each must never do with any of them.
//!
//! A target is a function of bytes that panics when an invariant is broken. `fuzz/run` searches for such bytes;
//! `tests/replay.rs` shows the ones that were found, and good ones, to the same functions in every test run.

#![warn(missing_docs)]

pub mod cast;
#[cfg(feature = "gateway")]
mod clients;
mod identities;
mod packs;
mod records;
#[cfg(feature = "gateway")]
mod tasks;

/// A name, as of the folder in `fuzz/corpus`, and what is done with the bytes.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[
    // What anybody sends.
    #[cfg(feature = "gateway")]
    ("framing", clients::framing),
    #[cfg(feature = "gateway")]
    ("frames", clients::frames),
    // What researchers send.
    #[cfg(feature = "gateway")]
    ("task", tasks::task),
    #[cfg(feature = "gateway")]
    ("query", tasks::query),
    ("token", identities::token),
    ("claims", identities::claims),
    // What gateways show and send each other.
    ("peer", identities::peer),
    ("envelope", records::envelope),
    ("batch", records::batch),
    ("message", records::message),
    ("snapshot", records::snapshot),
    ("log", records::log),
    // What states publish.
    ("bundle", identities::bundle),
    ("authority", identities::authority),
    ("revocation", identities::revocation),
    ("genesis", records::genesis),
    ("pack", packs::pack),
];

/// Runs the target of this name; panics if there is none.
pub fn run(name: &str, bytes: &[u8]) {
    let (_, target) = TARGETS.iter().find(|(known, _)| *known == name).expect("a target of that name");
    target(bytes);
}
