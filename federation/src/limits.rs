//! Every limit of the replicated state, with its unit and its arithmetic.
//! Invariant: what these allow 27 states in all makes a snapshot that is not larger than a snapshot may be.

use crate::command::Rejection;

/// The 27 states of the union, the EEA, associated states, and room to grow.
pub const MEMBERS_MAX: usize = 64;
/// Gateways of one state; with 64 states at most 512 nodes know each other.
pub const GATEWAYS_PER_STATE_MAX: usize = 8;

/// One signature for all the commands that waited together: 1,024 x ~400 B = 0.4 MiB, well under an envelope.
pub const COMMANDS_PER_BATCH_MAX: usize = 1_024;
/// How far behind the newest serial of a key an envelope may arrive, in serials. 1,024 bits = 128 B per key.
pub const SERIAL_WINDOW: u64 = 1_024;
/// Signing keys of one state whose serials are remembered, also after rotation, so that a key that comes back
/// replays nothing: 64 states x 512 keys x ~150 B = 5 MiB.
pub const SIGNING_KEYS_PER_STATE_MAX: usize = 512;

/// 27 states x 4,000 open jobs = 108,000 x ~0.8 KiB (three candidates, two attempts) = ~84 MiB in practice; the worst
/// case is at [`SNAPSHOT_BYTES_MAX`].
pub const OPEN_JOBS_PER_STATE_MAX: usize = 4_000;
/// Finished jobs that the registry still shows; older ones are in the archives of home and host.
/// 27 states x 2,000 x ~0.8 KiB = ~42 MiB in practice.
pub const FINISHED_JOBS_PER_STATE_MAX: usize = 2_000;
/// Pools that one job may wait for, three or four in practice; 16 x 67 B = 1.0 KiB. Twice as many as may decline it.
pub const CANDIDATES_MAX: usize = 16;
/// A job that was declined this often has something that no host likes; 8 x ~0.35 KiB = 2.8 KiB.
pub const ATTEMPTS_MAX: usize = 8;
/// How often the host of one pool may say of one job that it would take it below a share: once when a pack has moved, and once
/// when grants and decisions have crossed. The home says it beforehand.
pub const DECLINES_BELOW_MAX: usize = 2;
/// Grants to jobs behind the first in line before that one is kept a place free: with grants every few
/// seconds on a busy pool, minutes; on a quiet one the gang fits anyway.
pub const PASSED_OVER_MAX: u32 = 32;
/// Highest priority; 0 is the lowest.
pub const PRIORITY_MAX: u8 = 9;

/// 64 pools x 27 states = 1,728 offers x ~1 KiB = 2 MiB.
pub const OFFERS_PER_STATE_MAX: usize = 64;
/// The largest European systems have 6,000 nodes.
pub const NODES_PER_POOL_MAX: u32 = 10_000;
/// Nodes of all pools of one state: 27 x 40,000 x ~16 B of ledger = 17 MiB.
pub const NODES_PER_STATE_MAX: u32 = 40_000;
/// GPUs of all pools of one state, 40,000 nodes of 8. A grant takes 4 B for each GPU at worst, when none of its nodes
/// are side by side: 27 x 320,000 x 4 B = 33 MiB.
pub const GPUS_PER_STATE_MAX: u32 = 320_000;
/// 8 boards cut into 7 slices make 56; the largest chassis sold hold 16 boards.
pub const GPUS_PER_NODE_MAX: u32 = 128;
/// 10,000 nodes x 128: nothing larger can fit anywhere.
pub const GPUS_PER_JOB_MAX: u32 = NODES_PER_POOL_MAX * GPUS_PER_NODE_MAX;
/// Tasks without GPUs that one pool runs side by side.
pub const TASK_SLOTS_MAX: u32 = 100_000;

/// 31 days. A longer job checkpoints.
pub const WALLTIME_S_MAX: u32 = 31 * 24 * 3_600;
/// Memory of one device, four generations ahead.
pub const MEMORY_GIB_MAX: u32 = 4_096;
/// 10,000 nodes of 512 cores.
pub const CPU_CORES_MAX: u32 = 5_120_000;
/// 10,000 nodes of 32 TiB.
pub const RAM_GIB_MAX: u32 = 327_680_000;
/// 4 EiB.
pub const DISK_GIB_MAX: u32 = u32::MAX;
/// Worse than any grid: coal is about 1,000.
pub const CARBON_G_PER_KWH_MAX: u32 = 10_000;
/// 1,000 euro per GPU-hour.
pub const PRICE_MILLI_EUR_MAX: u32 = 1_000_000;

/// Bytes of a factory's or pool's name.
pub const NAME_BYTES_MAX: usize = 31;
/// Bytes of a device model's name, vendor or partition.
pub const MODEL_BYTES_MAX: usize = 64;
/// Bytes of a city's name.
pub const CITY_BYTES_MAX: usize = 64;
/// Certifications of one pool, e.g. `SecNumCloud`, and bytes of each.
pub const CERTIFICATIONS_MAX: usize = 16;
pub const CERTIFICATION_BYTES_MAX: usize = 32;
/// Bytes of a reason, shown to people in one line.
pub const REASON_BYTES_MAX: usize = 200;
/// Bytes of a project label, as `policy` allows it.
pub const PROJECT_BYTES_MAX: usize = 40;
/// Bytes of one pack: 64 states x 64 KiB = 4 MiB.
pub const PACK_BYTES_MAX: usize = 64 * 1_024;
/// Bytes of one trust bundle, CRLs included, kept signed and parsed: 64 states x 2 x 256 KiB = 32 MiB.
pub const BUNDLE_BYTES_MAX: usize = 256 * 1_024;
/// Bytes of an address or URL of a gateway.
pub const ADDRESS_BYTES_MAX: usize = 256;

/// Bytes of a snapshot, which is the whole registry: below what a gateway can hold twice, in memory and on its way.
pub const SNAPSHOT_BYTES_MAX: u64 = 1_024 * 1_024 * 1_024;
/// Bytes of one job in a snapshot, the nodes that it holds left out. Fixed fields 0.5 KiB + 16 candidates 1.0 KiB +
/// packs decided on 0.8 KiB + 8 attempts with reasons 2.8 KiB + how it ended 0.2 KiB; a test builds it.
pub const JOB_BYTES_MAX: usize = 5_632;
/// Bytes of everything else in a snapshot, for 27 states: bundles 27 x 2 x 256 KiB = 14 MiB, held nodes 33 MiB, packs
/// 2 MiB, offers 27 x 64 x ~3 KiB = 5 MiB, their ledgers 27 x 40,000 x 2 B = 2 MiB, serials 27 x 512 x ~0.2 KiB = 3 MiB,
/// silences 216 gateways x 27 states x 2 x 3 B, less than 1 MiB.
const OTHER_BYTES_MAX: u64 = 64 * 1_024 * 1_024;
/// The states that may all be full at once. A larger federation stays below the limit while some of its states are not.
const STATES_FULL: u64 = 27;

// 27 x 6,000 x 5.5 KiB = 870 MiB of jobs.
const _: () = {
    let jobs = STATES_FULL * (OPEN_JOBS_PER_STATE_MAX + FINISHED_JOBS_PER_STATE_MAX) as u64;
    assert!(jobs * JOB_BYTES_MAX as u64 + OTHER_BYTES_MAX <= SNAPSHOT_BYTES_MAX);
};

/// Oldest report a gateway lets stand before it reports again, in milliseconds; half of what a view may be old.
pub const REPORT_EVERY_MS: u64 = 1_000;
/// A GPU that a state holds now weighs as much as this many seconds of past use when turns are decided.
pub const HELD_WEIGHT_S: u64 = 3_600;
/// Recent use loses 1/32 every six hours: half of it counts after 22 steps, 5.5 days.
pub const USE_DECAY_STEP_MS: u64 = 6 * 3_600 * 1_000;
pub const USE_DECAY_DIVISOR: u64 = 32;
/// After 1,600 steps even 2^64 has decayed to nothing: ln(2^64) x 32 = 1,420.
pub const USE_DECAY_STEPS_MAX: u64 = 1_600;

/// Refuses a number above its limit.
pub(crate) fn at_most(what: &str, number: u32, limit: u32) -> Result<(), Rejection> {
    if number <= limit { Ok(()) } else { Err(Rejection::OutOfRange { what: what.into(), limit: limit.into() }) }
}

/// Refuses a list that is too long.
pub(crate) fn count(length: usize, limit: usize) -> Result<(), Rejection> {
    if length <= limit { Ok(()) } else { Err(Rejection::TooMany { limit: limit as u64 }) }
}

/// Refuses a text that is too long, or that could disturb a terminal or a log.
pub(crate) fn text(what: &str, text: &str, limit: usize) -> Result<(), Rejection> {
    if text.len() > limit {
        Err(Rejection::TooLong { what: what.into(), limit: limit as u64 })
    } else if text.chars().any(char::is_control) {
        Err(Rejection::ControlCharacter { what: what.into() })
    } else {
        Ok(())
    }
}
