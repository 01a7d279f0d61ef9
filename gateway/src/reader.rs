//! Readers: files are read, and what they say is worked out, beside the runtime.
//!
//! Invariants: a disk that does not answer takes one thread for each reader and none of the runtime's; that thread keeps no
//! process from ending; a reader does one thing after the other.

use std::pin::pin;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

#[cfg(test)]
pub(crate) mod hanging;

/// Between two complaints about a disk that does not answer.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// One thread at a time, for one purpose.
pub struct Reader {
    /// What is read, for complaints.
    what: &'static str,
    place: Arc<Semaphore>,
}

impl Reader {
    /// A reader of that.
    pub fn new(what: &'static str) -> Reader {
        Reader { what, place: Arc::new(Semaphore::new(1)) }
    }

    /// What comes of `work`; `None` if it panics or the machine has no thread for it. Begun is begun: `work` goes on, and
    /// keeps the next one waiting, when this is dropped.
    pub async fn read<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let mut reading = pin!(self.read_in_turn(work));
        loop {
            match timeout(COMPLAIN_EVERY, reading.as_mut()).await {
                Ok(read) => return read,
                Err(_) => tracing::error!(what = self.what, "not read yet: does its disk answer?"),
            }
        }
    }

    async fn read_in_turn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let place = Arc::clone(&self.place).acquire_owned().await.expect("invariant: the place is never closed");
        let (say, said) = oneshot::channel();
        let working = move || {
            let done = work();
            drop(place);
            let _nobody_may_wait_any_more = say.send(done);
        };
        if let Err(cause) = thread::Builder::new().name("reader".into()).spawn(working) {
            tracing::warn!(what = self.what, %cause, "no thread to read on");
        }
        said.await.ok()
    }
}
