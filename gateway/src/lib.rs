//! One member state's gateway.

// What the outside world sees.
pub mod error;
pub mod listener;
pub mod tes;

// What this gateway is told, and what it alone remembers.
pub mod authority;
pub mod config;
pub mod stages;
pub mod store;

// What runs the tasks.
pub mod driver;
