//! Assembly: a snapshot that arrives in pieces, in order.
//!
//! Invariant: there is one at a time, of the leader that this member follows; nobody else takes memory here. Another
//! leader's replaces it, and one that does not go on is let go.

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use super::wire::{WireMeta, WireSnapshot, WireVote};
use crate::limits::SNAPSHOT_BYTES_MAX;

/// A piece of 4 MiB over a link of 1 MiB/s takes 4 s.
pub const IDLE_MAX: Duration = Duration::from_secs(30);

/// Pieces that have come.
#[derive(Default)]
pub struct Assembly {
    begun: Mutex<Option<Begun>>,
}

struct Begun {
    vote: WireVote,
    meta: WireMeta,
    bytes: Vec<u8>,
    last_piece_at: Instant,
}

/// What a piece made of it.
#[derive(Debug, PartialEq)]
pub enum Progress {
    More,
    Whole(Vec<u8>),
    /// Not the piece that was expected, or too large.
    Bad,
}

impl Assembly {
    /// Adds a piece of the leader that this member follows. One at offset 0 begins anew.
    pub fn add(&self, piece: &WireSnapshot, now: Instant) -> Progress {
        let mut begun = self.lock();
        let mut so_far = match begun.take() {
            Some(so_far) if piece.offset > 0 => so_far,
            _ => Begun { vote: piece.vote, meta: piece.meta.clone(), bytes: Vec::new(), last_piece_at: now },
        };
        let continues = so_far.vote == piece.vote && so_far.meta == piece.meta;
        let in_place = piece.offset == so_far.bytes.len() as u64 && piece.total_bytes <= SNAPSHOT_BYTES_MAX;
        if !continues || !in_place || piece.data.len() as u64 > piece.total_bytes - piece.offset {
            return Progress::Bad;
        }
        so_far.bytes.extend_from_slice(&piece.data);
        if so_far.bytes.len() as u64 == piece.total_bytes {
            return Progress::Whole(so_far.bytes);
        }
        if piece.data.is_empty() {
            return Progress::Bad;
        }
        so_far.last_piece_at = now;
        *begun = Some(so_far);
        Progress::More
    }

    /// Lets go what has not grown for too long.
    pub fn expire(&self, now: Instant) {
        let mut begun = self.lock();
        if begun.as_ref().is_some_and(|begun| begun.last_piece_at + IDLE_MAX <= now) {
            *begun = None;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Begun>> {
        self.begun.lock().expect("invariant: nothing panics while it holds the pieces")
    }
}
