//! The federation that the bytes are thrown at: two states with known keys, so that what was found once is found again.

use std::sync::LazyLock;

use certs::{
    Assurance, FederationId, GatewayKey, GatewayName, IssuerEntry, MemberState, Role, SigningKey, TokenIssuer,
    TrustBundle, TrustStore, gateway_key_proof,
};

/// What tokens are for.
pub const AUDIENCE: &str = "entente.example";
/// The time of every token here, in Unix seconds.
pub const NOW_S: u64 = 1_800_000_000;
const ISSUER: &str = "https://login.fr.entente.example";
const RESEARCHERS: &str = "urn:geant:entente.example:group:researchers";

/// France, whose issuer may state little.
pub static TRUST: LazyLock<TrustStore> =
    LazyLock::new(|| TrustStore::new(federation(), [bundle()]).expect("the bundle of France"));

/// The federation.
pub fn federation() -> FederationId {
    FederationId::parse(AUDIENCE).expect("a name")
}

/// France.
pub fn france() -> MemberState {
    MemberState::parse("FR").expect("a state")
}

/// Its root.
pub fn root() -> SigningKey {
    SigningKey::from_seed([1; 32])
}

/// The key of its gateway.
pub fn key() -> SigningKey {
    SigningKey::from_seed([2; 32])
}

/// Its identity provider.
pub fn issuer() -> TokenIssuer {
    TokenIssuer::from_pkcs8_pem(ISSUER, "demo-1", &SigningKey::from_seed([3; 32]).to_pkcs8_pem()).expect("an issuer")
}

/// Its first bundle.
pub fn bundle() -> TrustBundle {
    let name = GatewayName::parse("fr-1").expect("a name");
    let proof = gateway_key_proof(&federation(), france(), &name, &key());
    TrustBundle {
        federation: federation(),
        state: france(),
        sequence: 1,
        previous: None,
        root_key: root().public(),
        ca_certs_der: vec![],
        gateways: vec![GatewayKey { name, key: key().public(), proof }],
        issuers: vec![IssuerEntry {
            issuer: ISSUER.into(),
            jwks_json: issuer().jwks_json(),
            entitlements: vec![(RESEARCHERS.into(), Role::Researcher)],
            assurance_max: Assurance::Substantial,
            clearances: vec!["dual-use".into()],
            residencies: vec![],
        }],
        crls_der: vec![],
    }
}
