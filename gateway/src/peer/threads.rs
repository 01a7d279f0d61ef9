//! The peer threads: where this gateway listens to the others.
//!
//! A storm of handshakes or submissions fills the threads of the main runtime. A heartbeat that had to wait there would be
//! missed, and the others would elect a new leader. These threads are the operating system's to schedule: however busy the
//! others are, they get their share. In return nothing runs on them that computes or reads files without need; see
//! [`super::server`]. What Raft itself says and does has threads of its own, in `federation`.

use std::io;

use tokio::runtime::{Builder, Handle, Runtime};

/// Two, so that one that checks the signatures of a full append does not hold up a heartbeat.
const THREADS: usize = 2;

/// A runtime of its own. Dropping it ends what runs there.
pub struct PeerThreads(Option<Runtime>);

impl PeerThreads {
    /// Starts them.
    pub fn start() -> io::Result<PeerThreads> {
        let mut builder = Builder::new_multi_thread();
        let runtime = builder.worker_threads(THREADS).thread_name("entente-peers").enable_all().build()?;
        Ok(PeerThreads(Some(runtime)))
    }

    /// Where to spawn.
    pub fn handle(&self) -> &Handle {
        self.0.as_ref().expect("invariant: it is taken only when it is dropped").handle()
    }
}

impl Drop for PeerThreads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // Waiting for it is not allowed where it is dropped, and nothing is left there to wait for.
            runtime.shutdown_background();
        }
    }
}
