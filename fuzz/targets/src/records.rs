//! What gateways send each other and keep: envelopes, the peer protocol, the registry.

use certs::Envelope;
use federation::raft::fuzzing;
use federation::{Batch, Genesis, GenesisDraft, Registry};

use crate::cast;

/// An envelope, and the commands in it. It has one spelling; nobody else's is this gateway's.
pub fn envelope(bytes: &[u8]) {
    let Ok(envelope) = Envelope::parse(bytes) else {
        return;
    };
    assert_eq!(envelope.as_bytes(), bytes, "an envelope is the bytes that were signed");
    let header = envelope.header().clone();
    if header.key == cast::key().public().id() {
        let sealed = Envelope::seal(header, envelope.body(), &cast::key()).expect("its own key");
        // Ed25519 signs the same bytes the same way.
        assert_eq!(envelope.verify(&cast::key().public()).is_ok(), sealed == envelope);
    }
    batch(envelope.body());
}

/// The commands in an envelope.
pub fn batch(bytes: &[u8]) {
    if let Some(batch) = Batch::from_bytes(bytes) {
        assert_eq!(Batch::from_bytes(&batch.to_bytes()).as_ref(), Some(&batch));
    }
}

/// A message of the peer protocol.
pub fn message(bytes: &[u8]) {
    fuzzing::messages(bytes);
}

/// A file of the log.
pub fn log(bytes: &[u8]) {
    fuzzing::frames(bytes);
}

/// A registry from another member. What is believed agrees with itself, and is the same on every replica.
pub fn snapshot(bytes: &[u8]) {
    let Ok(registry) = Registry::from_bytes(bytes) else {
        return;
    };
    let written = registry.to_bytes();
    let again = Registry::from_bytes(&written).expect("what was believed is believed again");
    assert_eq!(again.to_bytes(), written, "equal bytes exactly for equal registries");
    assert!(again.agrees_with(&registry), "what follows from the records is the same");
    for offer in registry.offers() {
        let pool = offer.offer.pool;
        let holding = registry.jobs().filter_map(|job| job.holding().filter(|attempt| attempt.pool == pool));
        let granted: u64 = holding.map(|attempt| u64::from(attempt.grant.gpus)).sum();
        assert_eq!(granted, u64::from(offer.ledger.used_gpus()), "what jobs hold is what the pool has given");
        assert!(granted <= u64::from(offer.offer.gpus()), "no pool is oversold");
    }
}

/// A founding agreement, as states pass it around.
pub fn genesis(bytes: &[u8]) {
    if let Ok(draft) = serde_json::from_slice::<GenesisDraft>(bytes) {
        let written = serde_json::to_vec(&draft).expect("a draft can be written");
        assert!(serde_json::from_slice::<GenesisDraft>(&written).is_ok());
        let gateways = draft.gateways().count();
        if let Ok(genesis) = draft.complete() {
            assert_eq!(genesis.gateways().count(), gateways);
            let registry = Registry::from_genesis(&genesis);
            assert!(Registry::from_bytes(&registry.to_bytes()).is_ok_and(|it| it.agrees_with(&registry)));
        }
    }
    let _refused = serde_json::from_slice::<Genesis>(bytes);
}
