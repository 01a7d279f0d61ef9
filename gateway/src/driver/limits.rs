//! Limits that a supervisor sets on itself, so that everything that it starts inherits them and cannot raise them,
//! and the mark that makes the kernel end a step before it ends a gateway.
//!
//! There is no limit here on cores, since none that a process inherits divides them.

use std::fs;
use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};

use super::order::Order;

const OPEN_FILES_MAX: u64 = 65_536;
/// Processes and threads of the account that steps run as, over all of its attempts: 64 attempts x 256 threads.
/// Without such an account they would be counted together with the gateway's own.
const THREADS_MAX: u64 = 16_384;
/// Disk of an attempt that does not state it, in GiB.
const DISK_DEFAULT_GIB: u32 = 64;
const OOM_SCORE: &str = "/proc/self/oom_score_adj";
/// Out of memory, the kernel ends steps before anything else of the machine.
const STEP_OOM_SCORE: &str = "1000";

/// What an attempt may write in one file, and bring or deliver in all.
pub(super) fn disk_bytes(order: &Order) -> u64 {
    u64::from(if order.disk_gib == 0 { DISK_DEFAULT_GIB } else { order.disk_gib }) << 30
}

/// Sets this process's own limits.
///
/// Memory is bounded per process as private writable memory (`RLIMIT_DATA`); `RLIMIT_AS` would count
/// the address space that CUDA, Go and Java reserve and never use.
pub(super) fn set(order: &Order) -> io::Result<()> {
    let mut limits = vec![
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_NOFILE, OPEN_FILES_MAX),
        (Resource::RLIMIT_FSIZE, disk_bytes(order)),
    ];
    if order.ram_gib > 0 {
        limits.push((Resource::RLIMIT_DATA, u64::from(order.ram_gib) << 30));
    }
    if order.rules.run_as.is_some() {
        limits.push((Resource::RLIMIT_NPROC, THREADS_MAX));
    }
    for (resource, wanted) in limits {
        let (_, allowed) = getrlimit(resource)?;
        let value = wanted.min(allowed);
        setrlimit(resource, value, value)?;
    }
    // Our own write past the file limit shall be an error, not an end. Steps start with an empty mask.
    SigSet::from_iter([Signal::SIGXFSZ]).thread_block()?;
    Ok(())
}

/// As long as it lives, what this process starts is what the kernel ends first when memory runs out.
pub(super) struct Expendable {
    own: Option<String>,
}

impl Expendable {
    /// A machine that does not allow it runs steps all the same.
    pub fn begin() -> Expendable {
        let own = fs::read_to_string(OOM_SCORE).ok();
        Expendable { own: own.filter(|_| fs::write(OOM_SCORE, STEP_OOM_SCORE).is_ok()) }
    }
}

impl Drop for Expendable {
    fn drop(&mut self) {
        if let Some(own) = &self.own {
            // Anybody may go back to what was inherited.
            let _supervisor_is_expendable_too = fs::write(OOM_SCORE, own.trim());
        }
    }
}
