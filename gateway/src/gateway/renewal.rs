//! Renewal: new trust takes effect with the revision that brings it, renewed certificate files without a restart.
//!
//! Invariant: no connection outlives a change of what its state says about its gateways. Who still may, connects again;
//! so an eviction, a revocation list and a CA that is gone act at once, and on both ends of a connection.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use certs::{MemberState, SharedTrust};
use federation::Revision;
use federation::raft::Consensus;
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::authority::now_s;
use crate::expiry::{Warnings, what_ends};
use crate::leaves::{Leaf, Leaves};
use crate::listener::Connections;
use crate::peer::Peers;

/// How often the certificate files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How often it is asked what ends soon.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// When each state's bundle came into force.
type InForce = BTreeMap<MemberState, Revision>;

/// Keeps the trust and the leaves those that count now.
pub struct Renewal {
    /// This gateway's state.
    pub state: MemberState,
    /// This gateway's certificates.
    pub leaves: Arc<Leaves>,
    /// What its operator has to know of them.
    pub warnings: Warnings,
    /// The replica.
    pub consensus: Consensus,
    /// What the faces and the peers look at.
    pub trust: SharedTrust,
    /// Connections that others have made.
    pub connections: Connections,
    /// Connections to others.
    pub peers: Arc<Peers>,
    /// Bundles that came with the trust; none at first, when it is the genesis's.
    pub in_force: InForce,
}

impl Renewal {
    /// Takes over what the registry says now.
    pub async fn follow(&mut self) {
        let (trust, in_force) = self.consensus.read(|registry| {
            let in_force: InForce = registry.members().map(|member| (member.state, member.bundle_at)).collect();
            (Arc::clone(registry.trust()), in_force)
        });
        let moved = moved(&self.in_force, &in_force);
        // A bundle that takes this gateway's certificate back comes after the one that replaces it, and so does this.
        if moved.contains(&self.state) {
            self.leaves.peer.renew_in_time().await;
        }
        // The trust first: what is dialled or accepted from now on is verified with the new one.
        self.trust.store(trust);
        self.in_force = in_force;
        for state in moved {
            let closed = self.connections.close_all_of(state);
            self.peers.hang_up_all_of(state);
            tracing::info!(%state, closed, "a state's trust bundle has changed; its gateways connect again");
        }
        self.warn();
    }

    /// Says what others refuse, or soon will.
    fn warn(&self) {
        let bundle = self.consensus.read(|registry| registry.member(self.state).map(|it| it.bundle.clone()));
        let trust = self.trust.load();
        self.warnings.set(bundle.map_or(vec![], |bundle| what_ends(&self.leaves, &trust, &bundle, now_s())));
    }

    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let (leaves, renewed) = (Arc::clone(&self.leaves), Notify::new());
        // Each for itself: files that cannot be read hold up neither the other face's nor the trust, which waits for the
        // certificate for peers alone, and not for long.
        let all = async {
            tokio::join!(
                self.follow_all(&renewed),
                keep_renewed(&leaves.peer, &renewed),
                keep_renewed(&leaves.public, &renewed)
            )
        };
        stop.run_until_cancelled(all).await;
    }

    async fn follow_all(mut self, renewed: &Notify) {
        let mut revisions = self.consensus.changes();
        let mut warn = interval(WARN_EVERY);
        loop {
            revisions.borrow_and_update();
            let newest = self.consensus.read(|registry| Arc::clone(registry.trust()));
            if !Arc::ptr_eq(&newest, &self.trust.load()) {
                self.follow().await;
            }
            tokio::select! {
                _ = revisions.changed() => {}
                () = renewed.notified() => self.warn(),
                _ = warn.tick() => self.warn(),
            }
        }
    }
}

async fn keep_renewed(leaf: &Arc<Leaf>, renewed: &Notify) {
    let mut look = interval(LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        if leaf.renew().await {
            renewed.notify_one();
        }
    }
}

/// The states whose bundle is not the one of before; a state that was not there before had that of the genesis.
fn moved(before: &InForce, now: &InForce) -> Vec<MemberState> {
    let at = |all: &InForce, state| all.get(&state).copied().unwrap_or_default();
    let gone = before.keys().filter(|state| !now.contains_key(state));
    let moved = now.keys().filter(|state| at(now, **state) != at(before, **state));
    gone.chain(moved).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_force(text: &str) -> InForce {
        let one = |it: &str| {
            let (state, revision) = it.split_once('@').expect("STATE@REVISION");
            let revision = Revision(revision.parse().expect("a number"));
            (MemberState::parse(state).expect("a state"), revision)
        };
        text.split_whitespace().map(one).collect()
    }

    #[test]
    fn states_move_when_their_bundle_does() {
        for (before, now, expected) in [
            ("FR@0 DE@0", "FR@0 DE@0", ""),
            ("FR@0 DE@0", "FR@7 DE@0", "FR"),
            ("FR@7 DE@0", "FR@7 DE@9", "DE"),
            ("FR@7 DE@0", "FR@8 DE@9", "DE FR"),
            // At the start: the trust is the genesis's, and the registry may be further.
            ("", "FR@0 DE@0", ""),
            ("", "FR@7 DE@0", "FR"),
            ("FR@7 DE@0", "FR@7", "DE"),
        ] {
            let moved: Vec<_> = moved(&in_force(before), &in_force(now)).iter().map(ToString::to_string).collect();
            assert_eq!(moved.join(" "), expected, "{before} -> {now}");
        }
    }
}
