//! One member state's gateway: everything between the public API and a factory's scheduler.

// What the outside world sees.
pub mod api;
pub mod entry;
pub mod error;
pub mod explain;
pub mod listener;
pub mod tes;

// What happens to a task: home decides, the host runs.
pub mod home;
pub mod host;
pub mod orders;
pub mod verdicts;

// How it is committed, and how gateways meet.
pub mod peer;
pub mod proposer;
pub mod publish;
pub mod witness;

// What this gateway is told, and what it alone remembers.
pub mod archive;
pub mod authority;
pub mod config;
pub mod expiry;
pub mod leaves;
mod reader;
pub mod stages;
pub mod store;

// What runs the tasks.
pub mod driver;
pub mod drivers;

// All of it together, and how people start and use it.
pub mod cli;
pub mod gateway;
pub mod laptop;

#[cfg(test)]
mod samples;
