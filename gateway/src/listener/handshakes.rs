//! Handshakes that are not finished: so many at most, and the oldest gives way.
//!
//! Who speaks TLS is done within a few round trips, so what waits longest is most likely silent. Refusing the newest
//! instead would let a few hundred silent sockets keep everybody out.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio_util::sync::CancellationToken;

use super::addresses::{Addresses, Place};
use super::limits::Limits;

/// All of a face.
#[derive(Clone, Debug)]
pub struct Handshakes {
    limit: usize,
    per_address: usize,
    addresses: Addresses,
    waiting: Arc<Mutex<Waiting>>,
}

#[derive(Debug, Default)]
struct Waiting {
    begun: u64,
    /// In order of their beginning.
    unfinished: BTreeMap<u64, CancellationToken>,
    /// Have to give way, and have not yet.
    leaving: usize,
}

/// One that is not finished; dropping it ends it.
#[derive(Debug)]
pub struct Handshake {
    handshakes: Handshakes,
    number: u64,
    superseded: CancellationToken,
    _place: Place,
}

impl Handshakes {
    /// None has begun yet.
    pub fn new(limits: &Limits) -> Handshakes {
        Handshakes {
            limit: limits.handshakes,
            per_address: limits.handshakes_per_address(),
            addresses: Addresses::default(),
            waiting: Arc::default(),
        }
    }

    /// Begins one more, if this address has not too many. Over the limit the oldest one, of whoever it is, ends for it.
    pub fn begin(&self, address: IpAddr) -> Option<Handshake> {
        let place = self.addresses.place(address, self.per_address)?;
        let superseded = CancellationToken::new();
        let mut waiting = self.lock();
        if waiting.unfinished.len() >= self.limit
            && let Some((_, oldest)) = waiting.unfinished.pop_first()
        {
            waiting.leaving += 1;
            oldest.cancel();
        }
        waiting.begun += 1;
        let number = waiting.begun;
        waiting.unfinished.insert(number, superseded.clone());
        Some(Handshake { handshakes: self.clone(), number, superseded, _place: place })
    }

    /// How many have to give way and have not yet.
    pub fn leaving(&self) -> usize {
        self.lock().leaving
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().expect("invariant: nothing panics while it holds the handshakes")
    }
}

impl Handshake {
    /// Resolves when it has to give way.
    pub async fn superseded(&self) {
        self.superseded.cancelled().await;
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        let mut waiting = self.handshakes.lock();
        waiting.unfinished.remove(&self.number);
        if self.superseded.is_cancelled() {
            waiting.leaving -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_gives_way_and_no_address_has_all() {
        let limits = Limits { handshakes: 4, ..Limits::public() };
        let handshakes = Handshakes::new(&limits);
        let begin = |host: u8| handshakes.begin([192, 0, 2, host].into());
        let first = begin(1).expect("room");
        assert!(begin(1).is_none(), "a quarter of four is one");
        let rest = [2, 3, 4].map(|host| begin(host).expect("room"));
        let fifth = begin(5).expect("the first one's place");
        assert!(first.superseded.is_cancelled());
        assert_eq!(handshakes.leaving(), 1);
        drop(rest);
        let sixth = begin(6).expect("room");
        assert!(!fifth.superseded.is_cancelled() && !sixth.superseded.is_cancelled());
        drop(first);
        assert_eq!(handshakes.leaving(), 0);
        let _again = begin(1).expect("its address has its place back");
    }
}
