//! The Raft library's own conformance suite, over the real log and the real registry.

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use tempfile::TempDir;

use super::at;
use super::founding::genesis;
use crate::raft::log_store::LogStore;
use crate::raft::segment::SEGMENT_BYTES;
use crate::raft::state_machine::StateMachine;
use crate::raft::types::Types;
use crate::raft::wal::Owner;

struct Folders;

impl StoreBuilder<Types, LogStore, StateMachine, TempDir> for Folders {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError<Types>> {
        let folder = tempfile::tempdir().unwrap();
        let genesis = genesis();
        let owner = Owner { node: 1, genesis: genesis.digest().0 };
        let log = LogStore::open(at(folder.path()), &owner, SEGMENT_BYTES).unwrap();
        let machine = StateMachine::open(at(folder.path()), &genesis).unwrap();
        Ok((folder, log, machine))
    }
}

#[tokio::test]
async fn the_storage_conforms() {
    Suite::test_all(Folders).await.unwrap();
}
