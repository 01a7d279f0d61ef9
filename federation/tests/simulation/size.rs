//! Sizes: federations of 3, 5 and 27 states, how much is asked of them, and how long things go wrong.
//! Invariant: made once for each size, and the same for every run.

use std::sync::OnceLock;

use certs::{
    Envelope, FederationId, GatewayId, GatewayKey, GatewayName, Header, KeyId, Kind, MemberState, SigningKey,
    TrustBundle, gateway_key_proof,
};
use federation::{
    Batch, Clocks, Command, DeviceModel, GatewayRecord, Genesis, GenesisMember, Offer, Outcome, PoolId, PublishPack,
    Registry, Revision, Verdict,
};

use crate::packs::Rule;

const CODES: [&str; 27] = [
    "DE", "FI", "FR", "AT", "BE", "BG", "CY", "CZ", "DK", "EE", "ES", "GR", "HR", "HU", "IE", "IT", "LT", "LU", "LV",
    "MT", "NL", "PL", "PT", "RO", "SE", "SI", "SK",
];
pub const NODES: u32 = 2;
pub const GPUS_PER_NODE: u32 = 4;
pub const TASK_SLOTS: u32 = 1;

pub struct Size {
    pub states: usize,
    pub jobs: usize,
    /// How long things go wrong.
    pub faults_ms: u64,
    /// Between two of the larger faults.
    pub fault_every_ms: u64,
    /// How late the latest messages are: later than whoever sent them waits for an answer.
    pub late_ms: u64,
    /// How rare these are.
    pub late_once_in: u64,
    /// The longest that a gateway is down or cut off.
    pub outage_ms: u64,
    /// The longest that a task runs.
    pub run_ms: u64,
    /// How rare the tasks are that run for longer than a second.
    pub long_once_in: u64,
}

/// Reports come every second. A host has 2 s to stop what must not run twice.
pub const CLOCKS: Clocks = Clocks { quiet_ms: 2_000, lease_ms: 2_500, gone_ms: 5_000 };

pub static SMALL: Size = Size {
    states: 3,
    jobs: 4,
    faults_ms: 1_600,
    fault_every_ms: 150,
    late_ms: 1_500,
    late_once_in: 40,
    outage_ms: 1_500,
    run_ms: 1_800,
    long_once_in: 4,
};
pub static MIDDLE: Size = Size {
    states: 5,
    jobs: 16,
    faults_ms: 6_000,
    fault_every_ms: 250,
    late_ms: 4_000,
    late_once_in: 8,
    outage_ms: 1_500,
    run_ms: 1_800,
    long_once_in: 4,
};
pub static UNION: Size = Size {
    states: 27,
    jobs: 40,
    faults_ms: 4_000,
    fault_every_ms: 60,
    late_ms: 4_000,
    late_once_in: 8,
    outage_ms: 1_500,
    run_ms: 1_800,
    long_once_in: 4,
};
/// Few faults, but long ones: hosts are silent until what may be run again is run elsewhere, and come back.
pub static OUTAGES: Size = Size {
    states: 3,
    jobs: 5,
    faults_ms: 18_000,
    fault_every_ms: 1_800,
    late_ms: 1_500,
    late_once_in: 200,
    outage_ms: 20_000,
    run_ms: 12_000,
    long_once_in: 1,
};

/// A federation that has just published its packs and offers.
pub struct Founded {
    pub registry: Registry,
    pub members: Vec<Founder>,
}

pub struct Founder {
    pub id: GatewayId,
    pub signing: SigningKey,
    pub key: KeyId,
    pub pool: PoolId,
}

impl Size {
    pub fn founded(&self) -> &'static Founded {
        static THREE: OnceLock<Founded> = OnceLock::new();
        static FIVE: OnceLock<Founded> = OnceLock::new();
        static ALL: OnceLock<Founded> = OnceLock::new();
        let kept = match self.states {
            3 => &THREE,
            5 => &FIVE,
            _ => &ALL,
        };
        kept.get_or_init(|| found(self.states))
    }
}

pub fn federation() -> FederationId {
    static PARSED: OnceLock<FederationId> = OnceLock::new();
    PARSED.get_or_init(|| FederationId::parse("simulated.entente.example").unwrap()).clone()
}

/// What an envelope of the simulation says about itself.
pub fn header(by: &Founder, serial: u64) -> Header {
    Header { federation: federation(), epoch: 1, owner: by.id.state, key: by.key, serial, kind: Kind::Command }
}

/// The offer of a state's only pool.
pub fn offer(pool: PoolId, sequence: u64) -> Offer {
    let model = DeviceModel {
        name: "H100 SXM5 80GB".into(),
        vendor: "NVIDIA".into(),
        memory_gib: 80,
        scheduler_units: 1,
        partition: None,
    };
    Offer {
        pool,
        served_by: gateway_name(),
        sequence,
        model,
        nodes: NODES,
        gpus_per_node: GPUS_PER_NODE,
        task_slots: TASK_SLOTS,
        walltime_max_s: 3_600,
        certifications: vec![],
        carbon_g_per_kwh: 50,
        price_milli_eur_per_gpu_hour: 1_000,
        city: "Kajaani".into(),
        until: None,
        keeps_leases: true,
    }
}

pub fn gateway_name() -> GatewayName {
    GatewayName::parse("gw-1").unwrap()
}

fn found(states: usize) -> Founded {
    let members: Vec<Founder> = CODES[..states].iter().zip(1..).map(|(code, seed)| founder(code, seed)).collect();
    let genesis = agree(&members);
    let mut registry = Registry::from_genesis(&genesis);
    for (by, revision) in members.iter().zip(1..) {
        let source = Rule::Everything.source(by.id.state);
        let pack = Command::PublishPack(PublishPack { sequence: 1, previous: None, source });
        let body = Batch(vec![pack, Command::PublishOffer(offer(by.pool, 1))]).to_bytes();
        let envelope = Envelope::seal(header(by, 1), &body, &by.signing).unwrap();
        let outcomes = registry.apply(Revision(revision), &envelope, Verdict::Unknown);
        assert_eq!(outcomes, [Outcome::Done, Outcome::Done]);
    }
    Founded { registry, members }
}

fn founder(code: &str, seed: u8) -> Founder {
    let signing = SigningKey::from_seed([seed; 32]);
    let id = GatewayId { state: MemberState::parse(code).unwrap(), name: gateway_name() };
    let pool = PoolId::parse(&format!("{code}/factory/main")).unwrap();
    Founder { id, key: signing.public().id(), signing, pool }
}

fn agree(members: &[Founder]) -> Genesis {
    let root = |nth: usize| SigningKey::from_seed([100 + nth as u8; 32]);
    let entering = members.iter().enumerate().map(|(nth, by)| {
        let proof = gateway_key_proof(&federation(), by.id.state, &by.id.name, &by.signing);
        let bundle = TrustBundle {
            federation: federation(),
            state: by.id.state,
            sequence: 1,
            previous: None,
            root_key: root(nth).public(),
            ca_certs_der: vec![],
            gateways: vec![GatewayKey { name: by.id.name.clone(), key: by.signing.public(), proof }],
            issuers: vec![],
            crls_der: vec![],
        };
        let record = GatewayRecord {
            id: by.id.clone(),
            node_id: nth as u64 + 1,
            peer_address: "127.0.0.1:1".into(),
            api_url: "https://127.0.0.1:2".into(),
        };
        GenesisMember { bundle: bundle.sign(&root(nth)), gateways: vec![record] }
    });
    let draft = Genesis::draft(federation(), 1, entering.collect()).unwrap();
    let signed =
        members.iter().enumerate().fold(draft, |draft, (nth, by)| draft.sign(by.id.state, &root(nth)).unwrap());
    signed.complete().unwrap()
}
