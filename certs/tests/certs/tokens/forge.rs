//! A forge: tokens made by hand, part by part, so that they can be wrong in every way and still be signed.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use certs::{Assurance, IssuerEntry, Role, SigningKey, TrustStore};
use serde_json::{Value, json};

use crate::states::{FEDERATION, NOW, State};

pub const ISSUER: &str = "https://login.fr.example";
pub const KID: &str = "2030-1";
pub const RESEARCHER: &str = "urn:geant:entente.example:group:researchers#login.fr.example";

/// The key of France's provider.
pub fn key() -> SigningKey {
    SigningKey::from_seed([7; 32])
}

/// What a token says, before it is signed.
pub struct Forged {
    pub header: Value,
    pub claims: Value,
}

impl Forged {
    /// A token that is accepted.
    pub fn sound() -> Forged {
        Forged {
            header: json!({"alg": "EdDSA", "typ": "at+jwt", "kid": KID}),
            claims: json!({
                "iss": ISSUER, "sub": "alice", "jti": "t-1", "aud": FEDERATION,
                "iat": NOW - 60, "nbf": NOW - 60, "exp": NOW + 600,
                "entitlements": [RESEARCHER], "clearances": ["health"],
                "eduperson_assurance": ["https://refeds.org/assurance/IAP/medium"], "residency": "FR",
            }),
        }
    }

    /// With another value; null takes the member away.
    pub fn header(mut self, name: &str, value: Value) -> Forged {
        set(&mut self.header, name, value);
        self
    }

    pub fn claim(mut self, name: &str, value: Value) -> Forged {
        set(&mut self.claims, name, value);
        self
    }

    pub fn sign(&self) -> String {
        self.sign_by(&key())
    }

    pub fn sign_by(&self, key: &SigningKey) -> String {
        sign(&self.header.to_string(), &self.claims.to_string(), |message| key.sign(message).to_vec())
    }
}

fn set(object: &mut Value, name: &str, value: Value) {
    let members = object.as_object_mut().unwrap();
    match value {
        Value::Null => members.remove(name),
        value => members.insert(name.to_owned(), value),
    };
}

/// Any two texts, signed in any way.
pub fn sign(header: &str, claims: &str, signer: impl FnOnce(&[u8]) -> Vec<u8>) -> String {
    let message = format!("{}.{}", encode(header), encode(claims));
    let signature = encode(signer(message.as_bytes()));
    format!("{message}.{signature}")
}

pub fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// An Ed25519 key as a key set has it.
pub fn jwk(kid: &str, key: &SigningKey) -> Value {
    json!({"kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": kid, "x": encode(key.public().as_bytes())})
}

/// A provider that may state a medium assurance and health clearances, with these keys.
pub fn provider(issuer: &str, keys: &[Value]) -> IssuerEntry {
    IssuerEntry {
        issuer: issuer.to_owned(),
        jwks_json: json!({"keys": keys}).to_string(),
        entitlements: vec![(RESEARCHER.to_owned(), Role::Researcher)],
        assurance_max: Assurance::Substantial,
        clearances: vec!["health".to_owned()],
        residencies: vec![],
    }
}

/// France with these providers.
pub fn trust_in(providers: Vec<IssuerEntry>) -> TrustStore {
    let mut bundle = State::new("FR").bundle(&[]);
    bundle.issuers = providers;
    TrustStore::new(bundle.federation.clone(), [bundle]).unwrap()
}

/// France with the provider of [`Forged::sound`].
pub fn trust() -> TrustStore {
    trust_in(vec![provider(ISSUER, &[jwk(KID, &key())])])
}
