//! A federation of three states in memory, driven by sentences: `offer 8; submit a 4 by DE; finish a`.

use std::collections::BTreeMap;

use certs::{
    Digest, Envelope, FederationId, GatewayId, GatewayKey, GatewayName, Header, Kind, MemberState, SignedBundle,
    SigningKey, TrustBundle, gateway_key_proof,
};
use federation::{
    Batch, Command, DeviceModel, GatewayRecord, Genesis, GenesisMember, JobId, Offer, Outcome, PoolId, Pseudonym,
    PublishPack, Registry, Revision, Shape, Submit, Timestamp, Verdict, pack,
};
use policy::{DataClass, Labels, PackSource, Purpose};

pub const STATES: [&str; 3] = ["DE", "FI", "FR"];
/// The state whose pools the sentences mean, and the pool when they name none.
pub const HOST: &str = "FI";
pub const POOL: &str = "main";

pub struct World {
    pub registry: Registry,
    pub jobs: BTreeMap<String, JobId>,
    pub last: Outcome,
    /// What the sentences say is now, in milliseconds.
    pub now: Timestamp,
    pub serial: u64,
    /// Of offers.
    pub sequence: u64,
}

pub fn state(text: &str) -> MemberState {
    MemberState::parse(text).unwrap()
}

pub fn federation() -> FederationId {
    FederationId::parse("test.entente.example").unwrap()
}

pub fn gateway_name() -> GatewayName {
    GatewayName::parse("gw-1").unwrap()
}

pub fn root_key(of: &str) -> SigningKey {
    SigningKey::from_seed([of.as_bytes()[0] ^ of.as_bytes()[1].rotate_left(3); 32])
}

pub fn gateway_key(of: &str) -> SigningKey {
    SigningKey::from_seed([of.as_bytes()[0] ^ of.as_bytes()[1].rotate_left(3) ^ 0x80; 32])
}

pub fn bundle(of: &str, sequence: u64, previous: Option<Digest>, key: &SigningKey) -> TrustBundle {
    let (name, state) = (gateway_name(), state(of));
    let proof = gateway_key_proof(&federation(), state, &name, key);
    TrustBundle {
        federation: federation(),
        state,
        sequence,
        previous,
        root_key: root_key(of).public(),
        ca_certs_der: vec![],
        gateways: vec![GatewayKey { name, key: key.public(), proof }],
        issuers: vec![],
        crls_der: vec![],
    }
}

pub fn member(of: &str, node_id: u64) -> GenesisMember {
    let id = GatewayId { state: state(of), name: gateway_name() };
    let record =
        GatewayRecord { id, node_id, peer_address: "127.0.0.1:1".into(), api_url: "https://127.0.0.1:2".into() };
    let bundle: SignedBundle = bundle(of, 1, None, &gateway_key(of)).sign(&root_key(of));
    GenesisMember { bundle, gateways: vec![record] }
}

pub fn genesis() -> Genesis {
    agreed(STATES.iter().zip(1..).map(|(of, node)| member(of, node)).collect())
}

/// The same with a second gateway of the host's.
pub fn genesis_with_a_second_host() -> Genesis {
    let mut members: Vec<_> = STATES.iter().zip(1..).map(|(of, node)| member(of, node)).collect();
    let host = members.iter_mut().find(|it| it.gateways[0].id.state == state(HOST)).unwrap();
    let (name, key) = (GatewayName::parse("gw-2").unwrap(), SigningKey::from_seed([2; 32]));
    let proof = gateway_key_proof(&federation(), state(HOST), &name, &key);
    let mut bundle = bundle(HOST, 1, None, &gateway_key(HOST));
    bundle.gateways.push(GatewayKey { name: name.clone(), key: key.public(), proof });
    host.bundle = bundle.sign(&root_key(HOST));
    let id = GatewayId { state: state(HOST), name };
    host.gateways.push(GatewayRecord { id, node_id: 4, ..host.gateways[0].clone() });
    agreed(members)
}

fn agreed(members: Vec<GenesisMember>) -> Genesis {
    let draft = Genesis::draft(federation(), 1, members).unwrap();
    STATES.iter().fold(draft, |draft, of| draft.sign(state(of), &root_key(of)).unwrap()).complete().unwrap()
}

pub fn pool(name: &str) -> PoolId {
    PoolId::parse(&format!("{HOST}/lumi/{name}")).unwrap()
}

pub fn header(of: &str, serial: u64) -> Header {
    Header {
        federation: federation(),
        epoch: 1,
        owner: state(of),
        key: gateway_key(of).public().id(),
        serial,
        kind: Kind::Command,
    }
}

pub fn seal(of: &str, serial: u64, commands: Vec<Command>) -> Envelope {
    Envelope::seal(header(of, serial), &Batch(commands).to_bytes(), &gateway_key(of)).unwrap()
}

pub fn offer(pool: PoolId, sequence: u64, nodes: u32, gpus_per_node: u32) -> Offer {
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
        nodes,
        gpus_per_node,
        task_slots: 2,
        walltime_max_s: 86_400,
        certifications: vec![],
        carbon_g_per_kwh: 50,
        price_milli_eur_per_gpu_hour: 1_000,
        city: "Kajaani".into(),
        until: None,
        keeps_leases: true,
    }
}

pub fn submit(job: JobId, gpus: u32, candidates: Vec<PoolId>) -> Submit {
    let labels = Labels { data_class: DataClass::Public, purpose: Purpose::Research, dual_use: false, project: None };
    let shape = Shape {
        gpus,
        nodes: 0,
        model: None,
        memory_gib_min: 0,
        walltime_s: 3_600,
        cpu_cores: 0,
        ram_gib: 0,
        disk_gib: 0,
    };
    Submit {
        job,
        home_gateway: gateway_name(),
        pseudonym: Pseudonym([7; 16]),
        shape,
        labels,
        payload: Digest::of(job.to_string().as_bytes()),
        priority: 5,
        restartable: true,
        exclusive: false,
        candidates: candidates.into_iter().map(Into::into).collect(),
        decided_on: vec![],
        at: Timestamp(0),
    }
}

pub fn pack_of(of: &str, sequence: u64, registry: &Registry) -> PublishPack {
    let source = PackSource {
        state: state(of),
        title: format!("pack {sequence}"),
        contact: "law@example.eu".into(),
        cedar: String::new(),
    };
    PublishPack { sequence, previous: registry.pack(source.state).map(|it| pack::digest(&it.source)), source }
}

/// Runs sentences in a new world and compares facts about it: `a GRANTED main 4, b QUEUED, free 4`.
#[track_caller]
pub fn check(sentences: &str, facts: &str) {
    World::new().tell(sentences).expect(facts);
}

impl World {
    pub fn new() -> World {
        World::of(&genesis())
    }

    pub fn of(genesis: &Genesis) -> World {
        let registry = Registry::from_genesis(genesis);
        World { registry, jobs: BTreeMap::new(), last: Outcome::Done, now: Timestamp(1_000), serial: 0, sequence: 0 }
    }

    #[track_caller]
    pub fn tell(mut self, sentences: &str) -> World {
        for sentence in sentences.split(';').map(str::trim).filter(|sentence| !sentence.is_empty()) {
            self.say(sentence);
        }
        self
    }

    #[track_caller]
    pub fn expect(&self, facts: &str) {
        for fact in facts.split(',').map(str::trim) {
            let (subject, wanted) = fact.split_once(' ').unwrap_or((fact, ""));
            let found = self.fact(subject, wanted);
            assert_eq!(format!("{subject} {found}").trim_end(), fact, "at revision {}", self.registry.revision());
        }
    }

    /// Commits one batch of a state's commands.
    pub fn commit(&mut self, of: &str, commands: Vec<Command>) -> Vec<Outcome> {
        self.serial += 1;
        let envelope = seal(of, self.serial, commands);
        let outcomes = self.registry.apply(Revision(self.registry.revision().0 + 1), &envelope, Verdict::Unknown);
        self.last = outcomes.last().cloned().unwrap();
        outcomes
    }

    pub fn gateway(of: &str) -> GatewayId {
        GatewayId { state: state(of), name: gateway_name() }
    }
}
