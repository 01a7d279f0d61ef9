//! Consensus, from its files up to three members that lose one.

mod answers;
mod cluster;
mod damage;
mod founding;
mod frozen;
mod guard;
mod hindsight;
mod outcomes;
mod pipeline;
mod script;
pub mod simulation;
mod snapshots;
mod storage;
mod suite;
mod wiped;
mod wires;

use std::path::Path;
use std::sync::Arc;

use super::folder::{Directory, Folder};

fn at(path: &Path) -> Arc<dyn Folder> {
    Directory::at(path).unwrap()
}
