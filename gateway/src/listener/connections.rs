//! Connections of gateways, so that all of one state's can be closed at once.
//!
//! Invariant: a connection whose handshake began before [`Connections::close_all_of`] does not outlive it, also
//! when it is registered only afterwards: its certificate was checked against the trust of before.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use certs::{GatewayId, MemberState};
use tokio_util::sync::CancellationToken;

/// Cheap to clone; all clones know the same connections.
#[derive(Clone, Debug, Default)]
pub struct Connections(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    /// Counts connections and closings; a connection is younger than a closing of a lower number.
    clock: u64,
    open: HashMap<GatewayId, HashMap<u64, CancellationToken>>,
    /// When each state's were last closed.
    closed: HashMap<MemberState, u64>,
}

/// The moment at which a connection began.
#[derive(Clone, Copy, Debug)]
pub struct Began(u64);

/// One connection's entry; dropping it removes the entry.
#[derive(Debug)]
pub struct Registered {
    connections: Connections,
    peer: GatewayId,
    began: u64,
    closed: CancellationToken,
}

impl Connections {
    /// Closes every connection of a state's gateways, at once and without ceremony. Returns how many.
    pub fn close_all_of(&self, state: MemberState) -> usize {
        let mut known = self.lock();
        known.clock += 1;
        let now = known.clock;
        known.closed.insert(state, now);
        let mut count = 0;
        for (_, open) in known.open.extract_if(|peer, _| peer.state == state) {
            count += open.len();
            open.values().for_each(CancellationToken::cancel);
        }
        count
    }

    /// How many connections a gateway has.
    pub fn count(&self, peer: &GatewayId) -> usize {
        self.lock().open.get(peer).map_or(0, HashMap::len)
    }

    /// To be taken before the handshake.
    pub fn begin(&self) -> Began {
        let mut known = self.lock();
        known.clock += 1;
        Began(known.clock)
    }

    /// To be called after the handshake; `None`: its state's were closed meanwhile.
    pub fn register(&self, peer: GatewayId, began: Began) -> Option<Registered> {
        let mut known = self.lock();
        if known.closed.get(&peer.state).is_some_and(|closed| *closed > began.0) {
            return None;
        }
        let closed = CancellationToken::new();
        let of_peer = known.open.entry(peer.clone()).or_default();
        of_peer.insert(began.0, closed.clone());
        Some(Registered { connections: self.clone(), peer, began: began.0, closed })
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().expect("invariant: nothing panics while it holds the connections")
    }
}

impl Registered {
    /// Resolves when the connection has to end.
    pub async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// The gateway at the other end.
    pub fn peer(&self) -> &GatewayId {
        &self.peer
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut known = self.connections.lock();
        if let Some(open) = known.open.get_mut(&self.peer) {
            open.remove(&self.began);
            if open.is_empty() {
                known.open.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> GatewayId {
        GatewayId::parse(text).expect("an id")
    }

    fn state(text: &str) -> MemberState {
        MemberState::parse(text).expect("a state")
    }

    #[test]
    fn closing_one_state_closes_all_of_it_and_nothing_else() {
        let connections = Connections::default();
        let open = |peer: &str| {
            let began = connections.begin();
            connections.register(id(peer), began).expect("nobody is closed")
        };
        let (first, second, other) = (open("FR/fr-1"), open("FR/fr-1"), open("DE/de-1"));
        let of_another_gateway = open("FR/fr-2");
        assert_eq!(connections.close_all_of(state("FR")), 3);
        assert!(first.closed.is_cancelled() && second.closed.is_cancelled());
        assert!(of_another_gateway.closed.is_cancelled());
        assert!(!other.closed.is_cancelled());
        drop(first);
        assert_eq!(connections.count(&id("FR/fr-1")), 0);
        assert_eq!(connections.count(&id("DE/de-1")), 1);
        drop(other);
        assert_eq!(connections.count(&id("DE/de-1")), 0);
    }

    #[test]
    fn a_handshake_that_began_before_the_closing_is_too_late() {
        let connections = Connections::default();
        let before = connections.begin();
        assert_eq!(connections.close_all_of(state("FR")), 0);
        assert!(connections.register(id("FR/fr-1"), before).is_none());
        assert!(connections.register(id("DE/de-1"), before).is_some());
        let after = connections.begin();
        assert!(connections.register(id("FR/fr-1"), after).is_some());
    }
}
