//! The runtime: threads that do nothing but Raft.
//!
//! A gateway that checks three thousand handshakes a second, or reads a large body, keeps its threads busy. Heartbeats
//! that waited behind that would bring elections. So Raft's timers, its replication and every call that it makes run on
//! threads of their own; what peers send comes in on the gateway's and is only handed over.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::{JoinError, JoinHandle};

use super::probe;
use super::transport::{NodeId, Rpc, Transport, TransportError};

/// One for Raft's core, one for the appends and answers of its peers.
const THREADS: usize = 2;
/// Snapshots are written, read and checked there; one of each kind at a time.
const BLOCKING_THREADS: usize = 4;

/// Threads of Raft's own. They end when this is dropped.
pub struct RaftRuntime {
    /// None in a simulation, which is one thread.
    runtime: Option<Runtime>,
}

impl RaftRuntime {
    pub fn start() -> io::Result<RaftRuntime> {
        if probe::is_simulated() {
            return Ok(RaftRuntime { runtime: None });
        }
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(THREADS).max_blocking_threads(BLOCKING_THREADS).thread_name("raft").enable_all();
        Ok(RaftRuntime { runtime: Some(builder.build()?) })
    }

    /// Begins something there that nobody waits for.
    pub fn spawn<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        match &self.runtime {
            Some(runtime) => runtime.spawn(work),
            None => probe::spawn_simulated(work),
        }
    }

    /// Does something there that takes long and waits for nothing.
    pub async fn compute<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
        match &self.runtime {
            Some(runtime) => runtime.spawn_blocking(work).await,
            None => Ok(work()),
        }
    }

    /// The transport, whose calls run there whoever makes them: the connections that they open belong to the threads that
    /// opened them.
    pub fn carry(&self, transport: Arc<dyn Transport>) -> Arc<dyn Transport> {
        match &self.runtime {
            Some(runtime) => Arc::new(Carried { transport, threads: runtime.handle().clone() }),
            None => transport,
        }
    }
}

impl Drop for RaftRuntime {
    fn drop(&mut self) {
        // Waiting for the threads is not allowed where this may be dropped.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

struct Carried {
    transport: Arc<dyn Transport>,
    threads: Handle,
}

impl Transport for Carried {
    fn call(
        &self,
        to: NodeId,
        rpc: Rpc,
        body: Bytes,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>> {
        let call = self.threads.spawn(self.transport.call(to, rpc, body, timeout));
        // If the threads have ended, it may have arrived before.
        Box::pin(async { call.await.unwrap_or(Err(TransportError::Timeout)) })
    }
}
