//! Consensus, from its files up to three members that lose one.

mod cluster;
mod founding;
mod guard;
mod storage;
mod suite;
