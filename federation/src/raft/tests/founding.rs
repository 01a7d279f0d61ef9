//! Three founding states for the tests of this module.

use std::collections::BTreeMap;
use std::sync::Mutex;

use certs::{
    Envelope, FederationId, GatewayId, GatewayKey, Header, Kind, SignedBundle, SigningKey, TrustBundle,
    gateway_key_proof,
};

use crate::command::{Batch, Command};
use crate::genesis::{Genesis, GenesisMember};
use crate::id::JobId;
use crate::member::GatewayRecord;
use crate::time::Timestamp;

pub const STATES: [&str; 3] = ["DE", "FI", "FR"];

/// The Union; the first three are [`STATES`].
pub const ALL: [&str; 27] = [
    "DE", "FI", "FR", "AT", "BE", "BG", "CY", "CZ", "DK", "EE", "ES", "GR", "HR", "HU", "IE", "IT", "LT", "LU", "LV",
    "MT", "NL", "PL", "PT", "RO", "SE", "SI", "SK",
];

pub fn federation() -> FederationId {
    FederationId::parse("test.entente.example").unwrap()
}

pub fn gateway(state: &str) -> GatewayId {
    GatewayId::parse(&format!("{state}/gw-1")).unwrap()
}

/// 1 for DE, 2 for FI, 3 for FR, and so on.
pub fn node(state: &str) -> u64 {
    1 + ALL.iter().position(|it| *it == state).unwrap() as u64
}

pub fn key(state: &str) -> SigningKey {
    SigningKey::from_seed([node(state) as u8; 32])
}

fn root(state: &str) -> SigningKey {
    SigningKey::from_seed([node(state) as u8 + 100; 32])
}

pub fn genesis() -> Genesis {
    genesis_of(3)
}

/// The first so many states.
pub fn genesis_of(states: usize) -> Genesis {
    static FOUNDED: Mutex<BTreeMap<usize, Genesis>> = Mutex::new(BTreeMap::new());
    FOUNDED.lock().unwrap().entry(states).or_insert_with(|| found(&ALL[..states])).clone()
}

fn found(states: &[&str]) -> Genesis {
    let members = states.iter().map(|state| member(state)).collect();
    let draft = Genesis::draft(federation(), 1, members).unwrap();
    let sign =
        |draft: crate::genesis::GenesisDraft, state: &&str| draft.sign(gateway(state).state, &root(state)).unwrap();
    states.iter().fold(draft, sign).complete().unwrap()
}

fn member(state: &str) -> GenesisMember {
    let id = gateway(state);
    let proof = gateway_key_proof(&federation(), id.state, &id.name, &key(state));
    let bundle = TrustBundle {
        federation: federation(),
        state: id.state,
        sequence: 1,
        previous: None,
        root_key: root(state).public(),
        ca_certs_der: vec![],
        gateways: vec![GatewayKey { name: id.name.clone(), key: key(state).public(), proof }],
        issuers: vec![],
        crls_der: vec![],
    };
    let record = GatewayRecord {
        id,
        node_id: node(state),
        peer_address: "127.0.0.1:1".into(),
        api_url: "https://127.0.0.1:2".into(),
    };
    GenesisMember { bundle: bundle.sign(&root(state)), gateways: vec![record] }
}

/// The bundle after this one; nothing in it changes.
pub fn bundle_after(before: &TrustBundle) -> SignedBundle {
    let next = TrustBundle { sequence: before.sequence + 1, previous: Some(before.digest()), ..before.clone() };
    next.sign(&root(before.state.as_str()))
}

/// An envelope of a state; its command is for a job that nobody knows.
pub fn envelope(state: &str, serial: u64) -> Envelope {
    signed_by(state, serial, &key(state))
}

/// The same, of nearly a MiB.
pub fn large_envelope(state: &str, serial: u64) -> Envelope {
    let command = Command::Cancel { job: JobId::new(serial, [1; 10]), at: Timestamp(1) };
    sealed(state, serial, vec![command; 1024 * 1024 / 20], &key(state))
}

pub fn signed_by(state: &str, serial: u64, key: &SigningKey) -> Envelope {
    let command = Command::Cancel { job: JobId::new(serial, [1; 10]), at: Timestamp(1) };
    sealed(state, serial, vec![command], key)
}

/// An envelope with these commands.
pub fn sealed(state: &str, serial: u64, commands: Vec<Command>, key: &SigningKey) -> Envelope {
    let header = Header {
        federation: federation(),
        epoch: 1,
        owner: gateway(state).state,
        key: key.public().id(),
        serial,
        kind: Kind::Command,
    };
    Envelope::seal(header, &Batch(commands).to_bytes(), key).unwrap()
}
