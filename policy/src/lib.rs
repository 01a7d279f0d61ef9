//! What is allowed: labels and facts, packs of Cedar rules, decisions and their reasons. Pure.
//!
//! A state publishes a [`PackSource`]; [`Pack::compile`] turns it into rules or says why not;
//! [`decide`] asks one state's pack about one request. Only `decide` makes a [`Permit`].

#![warn(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod answer;
mod cache;
mod decide;
mod floor;
pub mod founding;
mod labels;
mod pack;
mod request;
mod rule;
pub mod states;
mod text;
mod vocabulary;

pub use answer::Answer;
pub use cache::DecisionCache;
pub use decide::{Decision, Denial, DenialReason, Permit, Ruling, decide, no_pack};
pub use floor::FloorRule;
pub use labels::{DataClass, Labels, Purpose};
pub use pack::{BadPack, Pack, PackSource};
pub use request::{Action, ContextFacts, FactoryFacts, JobFacts, Request, ResearcherFacts};
pub use rule::{Effect, Rule};
pub use text::BadText;
