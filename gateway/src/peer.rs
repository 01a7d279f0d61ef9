//! The peer face: how gateways speak with each other, by HTTP/2 over mutual TLS.
//!
//! [`client`] keeps a few connections to every other gateway; [`server`] answers, on [`threads`] of its own. Who is
//! speaking is known from the TLS session and from nothing else.
//!
//! | path | asked by | answered with |
//! |---|---|---|
//! | `POST /raft/{rpc}` | any voter or learner | the consensus's answer, behind its guard |
//! | `GET /alive` | whoever has not heard of this gateway for a while | nothing, which is enough |
//! | `* /relay/{path}` | an entry gateway | what the public face of this (home) gateway answers |
//! | `GET /orders/{job}/{attempt}` | the host of that attempt | mandate and payload |
//! | `GET /attempts/{job}/{attempt}/record` | the job's home | what the host knows of the attempt |
//! | `GET /attempts/{job}/{attempt}/logs` | the job's home | a piece of a stream |

pub mod client;
pub mod server;
pub mod threads;

#[cfg(test)]
mod tests;

pub use client::{Lane, PeerError, Peers};
pub use server::ALIVE;
pub use threads::PeerThreads;

/// Where the public face's paths begin on the peer face.
pub const RELAYED: &str = "/relay/";
