//! Consensus, from its files up to three members that lose one.

mod answers;
mod cluster;
mod founding;
mod guard;
mod hindsight;
mod outcomes;
mod pipeline;
mod script;
mod snapshots;
mod storage;
mod suite;
mod wiped;
mod wires;
