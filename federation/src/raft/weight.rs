//! Weight: how much of the log a gateway keeps in memory.
//!
//! Raft counts entries, and takes a snapshot after so many. An entry can be a hundred bytes or a MiB, so bytes are
//! counted here, and the log is cut as soon as they are too many.

use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use tokio::time::sleep;

use super::log_store::LogStore;
use super::types::RaftHandle;

/// Bytes of envelopes in memory. In practice 2,500 entries of ~20 KiB are 50 MiB; at worst they would be 2.5 GiB.
pub const LOG_BYTES_MAX: usize = 256 * 1024 * 1024;
/// A snapshot takes about a second, and a log that a follower is being fed from is not cut at once.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Keeps the log below a weight, as long as Raft runs.
pub async fn keep_below(limit: usize, log: LogStore, raft: RaftHandle) {
    let mut weight = log.weight();
    while weight.wait_for(|bytes| *bytes > limit).await.is_ok() {
        if cut(&raft).await.is_none() {
            return;
        }
        sleep(LOOK_AGAIN).await;
    }
}

/// Cuts the log where the snapshot ends, or has another one taken if it is cut there already; `None` if Raft has ended.
async fn cut(raft: &RaftHandle) -> Option<()> {
    let (snapshot, purged) = {
        let metrics = raft.metrics();
        let metrics = metrics.borrow_watched();
        (metrics.snapshot, metrics.purged)
    };
    match snapshot.filter(|_| snapshot > purged) {
        Some(last) => raft.trigger().purge_log(last.index).await.ok(),
        None => raft.trigger().snapshot().await.ok(),
    }
}
