//! Witness: attests whom this gateway has heard neither in the registry nor directly.
//!
//! Whom it has heard, and what follows from that, is [`federation::Watch`]'s; here are the clock, the questions and the
//! commits. Invariant: a gateway that answers anything at all has been heard.

use std::sync::Arc;
use std::time::{Duration, Instant};

use certs::GatewayId;
use federation::raft::Consensus;
use federation::{Attest, Clocks, Command, Outcome, Watch};
use futures_util::future::join_all;
use http::{Method, Request};
use http_body_util::Full;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::peer::{ALIVE, Lane, PeerError, Peers};
use crate::proposer::Proposer;

/// Looks within the short clock. A look, the questions and the commits take at most two of these steps together; a watch
/// that is not looked at for three has slept.
const LOOKS: u32 = 6;

/// What a witness needs.
pub struct Witness {
    /// This gateway.
    pub me: GatewayId,
    /// The replica.
    pub consensus: Consensus,
    /// Commits.
    pub proposer: Proposer,
    /// Other gateways.
    pub peers: Arc<Peers>,
    /// As the genesis has them.
    pub clocks: Clocks,
}

impl Witness {
    /// Watches until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        stop.run_until_cancelled(self.watch()).await;
    }

    async fn watch(self) {
        let every = Duration::from_millis(self.clocks.quiet_ms) / LOOKS;
        let began = Instant::now();
        let now_ms = || began.elapsed().as_millis() as u64;
        let mut watch = Watch::new(self.me.clone(), self.clocks, now_ms());
        let mut ticks = tokio::time::interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let unheard = self.consensus.read(|registry| watch.look(registry, now_ms()));
            for gateway in self.who_answers(unheard, every).await {
                watch.has_answered(&gateway, now_ms());
            }
            for attested in self.attest_all(watch.attestations(now_ms()), every).await {
                watch.has_attested(&attested);
            }
        }
    }

    async fn who_answers(&self, unheard: Vec<GatewayId>, at_most: Duration) -> Vec<GatewayId> {
        let asked = unheard.into_iter().map(async |gateway| {
            let request = Request::builder().method(Method::GET).uri(ALIVE).body(Full::default());
            let request = request.expect("invariant: a constant path makes a request");
            let answer = self.peers.call(&gateway, Lane::Tasks, request, at_most).await;
            matches!(answer, Ok(_) | Err(PeerError::Busy { .. } | PeerError::Refused { .. })).then_some(gateway)
        });
        join_all(asked).await.into_iter().flatten().collect()
    }

    /// Those that were committed in time. The others are asked for again, which changes nothing if they were committed.
    async fn attest_all(&self, all: Vec<Attest>, at_most: Duration) -> Vec<Attest> {
        let deadline = tokio::time::Instant::now() + at_most;
        let each = all.into_iter().map(async |it| self.attest(&it, deadline).await.then_some(it));
        join_all(each).await.into_iter().flatten().collect()
    }

    /// Whether the registry has it now. Without a quorum it has not, and whoever has none attests nothing.
    async fn attest(&self, it: &Attest, deadline: tokio::time::Instant) -> bool {
        match self.proposer.commit_by(Command::Attest(it.clone()), deadline).await {
            Ok((_, Outcome::Rejected(reason))) => {
                tracing::debug!(about = %it.about, %reason, "not attested");
                false
            }
            Ok(_) => {
                tracing::warn!(about = %it.about, gone = it.gone, "attested: this gateway does not hear it any more");
                true
            }
            Err(reason) => {
                tracing::debug!(about = %it.about, %reason, "not attested");
                false
            }
        }
    }
}
