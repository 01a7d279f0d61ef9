//! The witness: attests whom this gateway has heard neither in the registry nor directly.
//!
//! As `gateway/src/witness.rs` has it; what follows from whom it has heard is the product's own `Watch`.
//! Invariant: a gateway that is down, or cut off from this one, does not answer.

use federation::{Attest, Command, Outcome, Watch};

use crate::{gateway::Gateway, size::CLOCKS};

const LOOK_EVERY_MS: u64 = CLOCKS.quiet_ms / 6;

impl Gateway {
    pub async fn witness(self) {
        let mut watch = Watch::new(self.founder.id.clone(), CLOCKS, self.steady_ms());
        loop {
            self.world.clock.sleep(LOOK_EVERY_MS).await;
            let unheard = self.read(|registry| watch.look(registry, self.steady_ms()));
            if !unheard.is_empty() {
                // Asked and answered.
                let there_and_back_ms = self.world.delay_ms() + self.world.delay_ms();
                self.world.clock.sleep(there_and_back_ms.min(LOOK_EVERY_MS)).await;
                for asked in self.world.gateways().filter(|it| unheard.contains(&it.founder.id)) {
                    let reached = asked.up.get() && !asked.is_cut_off() && !self.is_cut_off();
                    if there_and_back_ms < LOOK_EVERY_MS && reached {
                        watch.has_answered(&asked.founder.id, self.steady_ms());
                    }
                }
            }
            for attestation in watch.attestations(self.steady_ms()) {
                if self.attest(&attestation).await {
                    watch.has_attested(&attestation);
                }
            }
        }
    }

    async fn attest(&self, it: &Attest) -> bool {
        let deadline_ms = self.world.clock.now_ms() + LOOK_EVERY_MS;
        let committed = self.commit(Command::Attest(it.clone()), deadline_ms).await;
        matches!(committed, Ok((_, outcome)) if !matches!(outcome, Outcome::Rejected(_)))
    }
}
