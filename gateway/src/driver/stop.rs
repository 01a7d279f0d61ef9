//! Stops: everything that ends an attempt before its time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::signal::unix::{self, SignalKind};
use tokio::time::{Instant, sleep, timeout};

use super::disk::{Left, Reserve};
use super::fault::{Broken, Fault};
use super::folder::Folder;
use super::lease;
use super::limits::disk_bytes;
use super::order::Order;
use super::staging::STAGING_TIMEOUT_S;

/// Between two looks for a request to stop.
const CANCEL_POLL: Duration = Duration::from_millis(50);
/// Between two looks at the disk: 250 ms x 2 GiB/s = half of a reserve of 1 GiB.
const DISK_POLL: Duration = Duration::from_millis(250);

/// What ends an attempt that does not end by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stopped {
    Canceled,
    Broken(Fault),
}

/// Watches for what may end an attempt.
pub(super) struct Stop {
    folder: Folder,
    told: unix::Signal,
    walltime: Option<(Instant, u32)>,
    reserve: Reserve,
    disk_seen: Instant,
    /// Whether it may go on only as long as its gateway renews its lease.
    leased: bool,
}

impl Stop {
    pub fn new(order: &Order, folder: &Folder) -> std::io::Result<Stop> {
        Ok(Stop {
            folder: folder.clone(),
            told: unix::signal(SignalKind::terminate())?,
            walltime: None,
            reserve: Reserve {
                folder: folder.path().to_owned(),
                bytes: order.rules.disk_reserve,
                share_bytes: disk_bytes(order),
            },
            disk_seen: Instant::now(),
            leased: order.lease_until_ms.is_some(),
        })
    }

    pub fn start_walltime(&mut self, walltime_s: u32) {
        let length = Duration::from_secs(walltime_s.into());
        self.walltime = Some((Instant::now() + length, walltime_s));
    }

    /// The walltime is the task's, not that of whoever takes its outputs.
    pub fn end_walltime(&mut self) {
        self.walltime = None;
    }

    /// Resolves when the attempt has to stop.
    pub async fn wanted(&mut self) -> Stopped {
        loop {
            if self.folder.is_cancel_requested() {
                return Stopped::Canceled;
            }
            if let Some((_, walltime_s)) = self.walltime.filter(|(end, _)| *end <= Instant::now()) {
                return Stopped::Broken(Fault::Walltime(walltime_s));
            }
            if self.leased && self.folder.lease().is_none_or(|until_ms| until_ms <= lease::now_ms()) {
                return Stopped::Broken(Fault::Lease);
            }
            if self.is_disk_short().await {
                return Stopped::Broken(Fault::Disk);
            }
            let to_the_end = self.walltime.map(|(end, _)| end.saturating_duration_since(Instant::now()));
            tokio::select! {
                _ = self.told.recv() => return Stopped::Broken(Fault::Machine),
                () = sleep(to_the_end.unwrap_or(CANCEL_POLL).min(CANCEL_POLL)) => {}
            }
        }
    }

    async fn is_disk_short(&mut self) -> bool {
        if self.disk_seen.elapsed() < DISK_POLL {
            return false;
        }
        let short = match self.reserve.left() {
            Left::All => false,
            Left::Some => {
                let reserve = self.reserve.clone();
                tokio::task::spawn_blocking(move || reserve.is_greedy()).await.unwrap_or(true)
            }
            Left::Little => true,
        };
        self.disk_seen = Instant::now();
        short
    }

    /// Waits for some staging, but not longer than the attempt may go on.
    pub async fn unless<T>(&mut self, staging: impl Future<Output = T>) -> Result<Result<T, Broken>, Stopped> {
        tokio::select! {
            biased;
            stopped = self.wanted() => Err(stopped),
            staged = timeout(Duration::from_secs(STAGING_TIMEOUT_S), staging) => {
                Ok(staged.map_err(|_| Fault::StagingLate.into()))
            }
        }
    }
}

/// Tells copies in flight to end when the attempt stops waiting for them.
#[derive(Default)]
pub(super) struct Halt(pub Arc<AtomicBool>);

impl Drop for Halt {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
