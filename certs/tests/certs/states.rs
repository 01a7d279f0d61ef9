//! The cast: states with their authorities and gateways, and the trust that their bundles make.

use std::sync::Arc;

use certs::{
    FederationId, GatewayId, GatewayKey, GatewayName, IssuedLeaf, LeafIdentity, MemberState, SharedLeaf, SharedTrust,
    SigningKey, StateCa, TrustBundle, TrustStore, gateway_key_proof, peer_client_config, peer_server_config,
};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::wire::{Refused, Shows, client_at, handshake, server_at};

/// Every clock of these tests stands here, in Unix seconds.
pub const NOW: u64 = 1_900_000_000;
pub const DAY_S: u64 = 86_400;
pub const FEDERATION: &str = "entente.example";

pub fn federation() -> FederationId {
    FederationId::parse(FEDERATION).unwrap()
}

pub fn state(code: &str) -> MemberState {
    MemberState::parse(code).unwrap()
}

pub fn gateway(id: &str) -> GatewayId {
    GatewayId::parse(id).unwrap()
}

/// A state's authority.
pub struct State {
    pub code: MemberState,
    pub ca: StateCa,
}

impl State {
    pub fn new(code: &str) -> State {
        State { code: state(code), ca: StateCa::create(state(code), &federation(), NOW, 30).unwrap() }
    }

    /// A bundle that names these gateways, and no issuers.
    pub fn bundle(&self, gateways: &[&str]) -> TrustBundle {
        TrustBundle {
            federation: federation(),
            state: self.code,
            sequence: 1,
            previous: None,
            root_key: SigningKey::from_seed([1; 32]).public(),
            ca_certs_der: vec![self.ca.cert_der().unwrap()],
            gateways: gateways.iter().map(|name| self.gateway_key(name)).collect(),
            issuers: vec![],
            crls_der: vec![],
        }
    }

    fn gateway_key(&self, name: &str) -> GatewayKey {
        let mut seed = [0; 32];
        seed[..2].copy_from_slice(self.code.as_str().as_bytes());
        seed[2..2 + name.len()].copy_from_slice(name.as_bytes());
        let (key, name) = (SigningKey::from_seed(seed), GatewayName::parse(name).unwrap());
        let proof = gateway_key_proof(&federation(), self.code, &name, &key);
        GatewayKey { name, key: key.public(), proof }
    }

    /// A sound leaf of one of its gateways.
    pub fn issue(&self, id: &str) -> IssuedLeaf {
        self.ca.issue_gateway(&gateway(id), NOW, 24).unwrap()
    }

    /// The same, as connections show it.
    pub fn leaf(&self, id: &str) -> SharedLeaf {
        let leaf = self.issue(id);
        SharedLeaf::new(LeafIdentity::from_pem(&leaf.cert_pem, &leaf.key_pem).unwrap())
    }
}

impl State {
    /// An authority of the same name with a key of its own.
    pub fn look_alike(&self) -> State {
        let der = self.ca.cert_der().unwrap();
        let (_, own) = X509Certificate::from_der(&der).unwrap();
        let name = own.subject().iter_common_name().next().unwrap().as_str().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        (params.not_before, params.not_after) = (moment(NOW - 300), moment(NOW + 30 * DAY_S));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let domain = format!("spiffe://{}.{FEDERATION}", self.code.lower());
        params.subject_alt_names = vec![SanType::URI(domain.try_into().unwrap())];
        let key = KeyPair::generate().unwrap();
        let cert_pem = params.self_signed(&key).unwrap().pem();
        State { code: self.code, ca: StateCa::load(&cert_pem, &key.serialize_pem()).unwrap() }
    }

    /// A gateway's leaf as [`State::issue`] makes it, but for this change, signed by this state's authority.
    pub fn forge(&self, id: &str, change: impl FnOnce(&mut CertificateParams)) -> Shows {
        let mut params = sound_leaf(&gateway(id).spiffe(&federation()));
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.issuer()).unwrap();
        shows(vec![leaf.der().clone()], &key)
    }

    pub fn issuer(&self) -> Issuer<'static, KeyPair> {
        Issuer::from_ca_cert_pem(&self.ca.cert_pem, KeyPair::from_pem(&self.ca.key_pem).unwrap()).unwrap()
    }
}

pub fn sound_leaf(uri: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "a gateway");
    params.not_before = moment(NOW - 300);
    params.not_after = moment(NOW + 3_600);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
    params
}

pub fn moment(unix_s: u64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(unix_s.try_into().unwrap()).unwrap()
}

/// A chain as an attacker shows it, without any of the checks of [`LeafIdentity`].
pub fn shows(chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> Shows {
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    Shows(Some(Arc::new(CertifiedKey::new(chain, any_supported_type(&key).unwrap()))))
}

pub fn trust_store(bundles: impl IntoIterator<Item = TrustBundle>) -> Arc<TrustStore> {
    Arc::new(TrustStore::new(federation(), bundles).unwrap())
}

/// France with fr-1 and fr-2, Germany with de-1.
pub struct Two {
    pub fr: State,
    pub de: State,
    pub trust: SharedTrust,
}

impl Two {
    pub fn new() -> Two {
        let (fr, de) = (State::new("FR"), State::new("DE"));
        let trust = SharedTrust::new(trust_store([fr.bundle(&["fr-1", "fr-2"]), de.bundle(&["de-1"])]));
        Two { fr, de, trust }
    }

    /// fr-1 meets de-1 and shows this instead of its leaf: once as client and once as server.
    pub fn meet(&self, shown: &Shows, now_s: u64) -> [Result<(), Refused>; 2] {
        let (fr, de) = (self.fr.leaf("FR/fr-1"), self.de.leaf("DE/de-1"));
        let dials_de = peer_client_config(self.trust.clone(), fr.clone(), gateway("DE/de-1"));
        let dials_fr = peer_client_config(self.trust.clone(), de.clone(), gateway("FR/fr-1"));
        let answers_fr = peer_server_config(self.trust.clone(), de);
        let answers_de = peer_server_config(self.trust.clone(), fr);
        let as_client = client_at(now_s, dials_de, |it| it.client_auth_cert_resolver = Arc::new(shown.clone()));
        let as_server = server_at(now_s, answers_de, |it| it.cert_resolver = Arc::new(shown.clone()));
        [
            handshake(&as_client, &server_at(now_s, answers_fr, |_| ())).map(drop),
            handshake(&client_at(now_s, dials_fr, |_| ()), &as_server).map(drop),
        ]
    }
}
