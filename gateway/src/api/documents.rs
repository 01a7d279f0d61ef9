//! Documents: how much of what clients send is understood at once.
//! Invariant: the documents in hand, with everything that they become until they are stored, fit into a gateway's memory.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{Code, Problem};

/// Bytes of documents in hand. Many small values take about 15 times their bytes: 64 MiB x 15 = ~1 GiB.
const BYTES_MAX: usize = 64 * 1_024 * 1_024;
/// What the smallest document counts as.
const UNIT_BYTES: usize = 1_024;
/// How long a document waits for its turn; a submission has to be answered in time.
const TURN_TIMEOUT: Duration = Duration::from_secs(2);

/// Room for one document, as long as it is held.
pub type Room = OwnedSemaphorePermit;

/// The room for documents. Cheap to clone.
#[derive(Clone)]
pub struct Documents {
    room: Arc<Semaphore>,
}

impl Default for Documents {
    fn default() -> Documents {
        Documents { room: Arc::new(Semaphore::new(BYTES_MAX / UNIT_BYTES)) }
    }
}

impl Documents {
    /// Room for a document of so many bytes, as long as the returned place is held.
    pub async fn room(&self, bytes: usize) -> Result<Room, Problem> {
        let units = bytes.clamp(UNIT_BYTES, BYTES_MAX).div_ceil(UNIT_BYTES);
        let units = u32::try_from(units).expect("invariant: a part of the whole room, which has 65,536 units");
        let turn = tokio::time::timeout(TURN_TIMEOUT, Arc::clone(&self.room).acquire_many_owned(units)).await;
        match turn {
            Ok(Ok(place)) => Ok(place),
            Ok(Err(_)) | Err(_) => {
                Err(Problem::new(Code::Overloaded, "this gateway reads too many large tasks; send it again"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn there_is_room_for_some_large_documents_and_for_whoever_waits_a_moment() {
        let documents = Documents::default();
        let large = 4 * 1_024 * 1_024;
        let mut held = Vec::new();
        for _ in 0..BYTES_MAX / large {
            held.push(documents.room(large).await.expect("room"));
        }
        let refused = documents.room(1).await.expect_err("no room");
        assert_eq!(refused.code(), Code::Overloaded);
        held.pop();
        assert!(documents.room(1).await.is_ok());
    }
}
