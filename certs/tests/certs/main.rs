//! Identities from outside: real handshakes, forged leaves, revocation, renewal and hostile tokens.

#![allow(clippy::unwrap_used)]

mod handshakes;
mod leaves;
mod renewal;
mod revocation;
mod states;
mod tokens;
mod wire;
