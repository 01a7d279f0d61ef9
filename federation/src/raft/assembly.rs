//! Assembly: a snapshot that arrives in pieces. One per sender, in order, bounded.

use std::collections::HashMap;
use std::sync::Mutex;

use super::transport::NodeId;
use super::wire::{WireMeta, WireSnapshot};

/// 27 states with 4,000 open jobs each are about 76 MiB.
pub const SNAPSHOT_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Pieces that have come, by sender.
#[derive(Default)]
pub struct Assembly {
    unfinished: Mutex<HashMap<NodeId, (WireMeta, Vec<u8>)>>,
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
    /// Adds a piece. One at offset 0 begins anew.
    pub fn add(&self, from: NodeId, piece: &WireSnapshot) -> Progress {
        let mut unfinished = self.unfinished.lock().expect("invariant: nothing panics while it holds the pieces");
        if piece.total_bytes > SNAPSHOT_BYTES_MAX {
            return Progress::Bad;
        }
        let (meta, mut bytes) = match unfinished.remove(&from) {
            Some(begun) if piece.offset > 0 => begun,
            _ => (piece.meta.clone(), Vec::new()),
        };
        let continues = meta == piece.meta && piece.offset == bytes.len() as u64;
        if !continues || piece.offset + piece.data.len() as u64 > piece.total_bytes {
            return Progress::Bad;
        }
        bytes.extend_from_slice(&piece.data);
        if bytes.len() as u64 == piece.total_bytes {
            return Progress::Whole(bytes);
        }
        if piece.data.is_empty() {
            return Progress::Bad;
        }
        unfinished.insert(from, (meta, bytes));
        Progress::More
    }
}
