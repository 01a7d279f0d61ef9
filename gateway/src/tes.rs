//! TES 1.1: the tasks of the outside world and how they become jobs.
//!
//! A foreign body becomes a [`Submission`] that cannot be wrong, or a [`BadTask`] that points at the
//! member to change. From a submission follow [`Requirements`]: a shape, labels and zones. What
//! clients see of a task is made by [`view`], which of them they see by [`filter`].
//!
//! Source: GA4GH Task Execution Service 1.1.0, OpenAPI.

// What the specification says, as types.
pub mod model;

// From bytes to a submission.
mod executor;
mod files;
mod json;
pub mod mistake;
mod path;
pub mod requirements;
mod resources;
pub mod task;
mod work;

// From a task to what a client asked for.
pub mod filter;
mod log;
pub mod view;

#[cfg(test)]
mod tests;

pub use filter::{BadQuery, ListQuery, PageToken};
pub use log::{given_up, logs};
pub use mistake::{BadTask, Mistake};
pub(crate) use path::climbs;
pub use requirements::{BACKEND_PARAMETERS, Requirements};
pub use task::{BODY_BYTES_MAX, Submission};
pub use view::View;
