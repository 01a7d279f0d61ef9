//! TLS for tests: one state's authority, made anew.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use certs::{
    FederationId, GatewayId, GatewayKey, IssuedLeaf, LeafIdentity, SharedLeaf, SharedTrust, SigningKey, StateCa,
    TrustBundle, TrustStore, gateway_key_proof,
};
use rustls::{ClientConfig, ServerConfig};

/// The name in the public certificate.
pub const HOST: &str = "localhost";

/// Both ends of one face.
pub struct Ends {
    pub server: Arc<ServerConfig>,
    pub client: Arc<ClientConfig>,
}

/// The public face, with a client that offers one protocol.
pub fn public(alpn: &[u8]) -> Ends {
    let ca = authority();
    let leaf = ca.issue_public(&[HOST.to_owned()], now_s(), 1).expect("a certificate");
    let client = certs::public_client_config(&ca.cert_pem).expect("a config");
    let mut client = (*client).clone();
    client.alpn_protocols = vec![alpn.to_vec()];
    Ends { server: certs::public_server_config(shared(&leaf)), client: Arc::new(client) }
}

/// The peer face of FR/fr-1, with FR/fr-2 as client.
pub fn peer() -> Ends {
    let peering = Peering::new();
    let client = certs::peer_client_config(peering.trust(), peering.leaf("FR/fr-2"), id("FR/fr-1"));
    Ends { server: peering.server("FR/fr-1"), client }
}

/// One state that vouches for FR/fr-1 and FR/fr-2.
pub struct Peering {
    ca: StateCa,
    bundle: TrustBundle,
}

impl Peering {
    pub fn new() -> Peering {
        let ca = authority();
        let bundle = TrustBundle {
            federation: federation(),
            state: id("FR/fr-1").state,
            sequence: 1,
            previous: None,
            root_key: SigningKey::from_seed([1; 32]).public(),
            ca_certs_der: vec![ca.cert_der().expect("a certificate")],
            gateways: vec![key("FR/fr-1", 2), key("FR/fr-2", 3)],
            issuers: vec![],
            crls_der: vec![],
        };
        Peering { ca, bundle }
    }

    pub fn trust(&self) -> SharedTrust {
        SharedTrust::new(TrustStore::new(federation(), [self.bundle.clone()]).expect("a trust store"))
    }

    pub fn leaf(&self, gateway: &str) -> SharedLeaf {
        shared(&self.ca.issue_gateway(&id(gateway), now_s(), 1).expect("a certificate"))
    }

    pub fn server(&self, gateway: &str) -> Arc<ServerConfig> {
        certs::peer_server_config(self.trust(), self.leaf(gateway))
    }
}

pub fn id(text: &str) -> GatewayId {
    GatewayId::parse(text).expect("an id")
}

/// Trust names only gateways that have shown their signing key.
fn key(gateway: &str, seed: u8) -> GatewayKey {
    let GatewayId { state, name } = id(gateway);
    let key = SigningKey::from_seed([seed; 32]);
    GatewayKey { proof: gateway_key_proof(&federation(), state, &name, &key), key: key.public(), name }
}

fn authority() -> StateCa {
    StateCa::create(id("FR/fr-1").state, &federation(), now_s(), 1).expect("an authority")
}

fn federation() -> FederationId {
    FederationId::parse("entente.example").expect("a name")
}

fn shared(leaf: &IssuedLeaf) -> SharedLeaf {
    SharedLeaf::new(LeafIdentity::from_pem(&leaf.cert_pem, &leaf.key_pem).expect("a leaf"))
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_secs()
}
