//! The registry from outside: scenarios, forgeries, random histories, placement, and what is stored.

#![allow(clippy::unwrap_used)]

mod asks;
mod audit;
mod bounds;
mod forgeries;
mod histories;
mod ids;
mod mandates;
mod placements;
mod reasons;
mod scenarios;
mod sentences;
mod shares;
mod silences;
mod snapshots;
mod world;
