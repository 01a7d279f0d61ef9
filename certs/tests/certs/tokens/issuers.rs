//! Issuers: whose keys count for whom, and what each may state: threats 14 and 15.

use certs::{Assurance, BadToken, BadTrust, Caller, IssuerEntry, Role, SigningKey, TrustStore};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm, KeyPair,
};
use serde_json::{Value, json};

use super::forge::{Forged, ISSUER, KID, RESEARCHER, encode, jwk, key, provider, sign, trust_in};
use crate::states::{FEDERATION, NOW, State, federation, state};

const GERMAN: &str = "https://login.de.example";

fn german_key() -> SigningKey {
    SigningKey::from_seed([8; 32])
}

fn verify(trust: &TrustStore, token: &str) -> Result<Caller, BadToken> {
    trust.issuers().verify(token, FEDERATION, NOW)
}

/// France and Germany with these providers.
fn trust_of(french: Vec<IssuerEntry>, german: Vec<IssuerEntry>) -> Result<TrustStore, BadTrust> {
    let (mut fr, mut de) = (State::new("FR").bundle(&[]), State::new("DE").bundle(&[]));
    (fr.issuers, de.issuers) = (french, german);
    TrustStore::new(federation(), [fr, de])
}

/// Threat 14.
#[test]
fn a_key_speaks_for_its_own_issuer_only() {
    for german_kid in [KID, "2030-de"] {
        let french = provider(ISSUER, &[jwk(KID, &key())]);
        let german = provider(GERMAN, &[jwk(german_kid, &german_key())]);
        let trust = trust_of(vec![french], vec![german]).unwrap();
        let as_german = Forged::sound().claim("iss", json!(GERMAN)).header("kid", json!(german_kid));
        assert_eq!(verify(&trust, &as_german.sign_by(&german_key())).unwrap().state, state("DE"));
        let as_french = Forged::sound().header("kid", json!(german_kid)).sign_by(&german_key());
        let refusal = if german_kid == KID { BadToken::Signature } else { BadToken::UnknownKey };
        assert_eq!(verify(&trust, &as_french), Err(refusal));
    }
}

#[test]
fn a_caller_is_of_the_issuers_state() {
    let french = provider(ISSUER, &[jwk(KID, &key())]);
    let trust = trust_of(vec![french.clone()], vec![]).unwrap();
    let says_german = Forged::sound().claim("residency", json!("DE")).claim("state", json!("DE")).sign();
    assert_eq!(verify(&trust, &says_german).unwrap().state, state("FR"));
    let of_germany = trust_of(vec![], vec![french]).unwrap();
    assert_eq!(verify(&of_germany, &Forged::sound().sign()).unwrap().state, state("DE"));
}

#[test]
fn an_issuer_belongs_to_one_state() {
    let entry = |key: &SigningKey| provider(ISSUER, &[jwk(KID, key)]);
    let shared = trust_of(vec![entry(&key())], vec![entry(&german_key())]).map(drop);
    assert_eq!(shared, Err(BadTrust::SharedIssuer(state("FR"), state("DE"))));
    let twice = trust_of(vec![entry(&key()), entry(&german_key())], vec![]).map(drop);
    assert_eq!(twice, Err(BadTrust::SharedIssuer(state("FR"), state("FR"))));
}

/// Threat 15.
#[test]
fn an_issuer_states_no_more_than_it_may() {
    let urn = |level: &str| format!("https://refeds.org/assurance/IAP/{level}");
    for (max, stated, believed) in [
        (Assurance::Low, "high", Assurance::Low),
        (Assurance::Low, "medium", Assurance::Low),
        (Assurance::Substantial, "high", Assurance::Substantial),
        (Assurance::Substantial, "low", Assurance::Low),
        (Assurance::High, "medium", Assurance::Substantial),
        (Assurance::High, "high", Assurance::High),
    ] {
        let entry = IssuerEntry { assurance_max: max, ..provider(ISSUER, &[jwk(KID, &key())]) };
        let token = Forged::sound().claim("eduperson_assurance", json!([urn("low"), urn(stated)])).sign();
        assert_eq!(verify(&trust_in(vec![entry]), &token).unwrap().assurance, believed, "{stated} below {max:?}");
    }
    for (may, stated, believed) in [
        (&["health"][..], json!(["defence", "health", "HEALTH", "health "]), &["health"][..]),
        (&[], json!(["health"]), &[]),
        (&["health", "defence"], json!(["defence"]), &["defence"]),
    ] {
        let clearances = may.iter().map(|it| it.to_string()).collect();
        let entry = IssuerEntry { clearances, ..provider(ISSUER, &[jwk(KID, &key())]) };
        let token = Forged::sound().claim("clearances", stated).sign();
        assert_eq!(verify(&trust_in(vec![entry]), &token).unwrap().clearances, believed);
    }
}

#[test]
fn a_role_comes_from_the_entitlement_that_gives_it() {
    let entitlements = [("urn:x:op", Role::Operator), (RESEARCHER, Role::Researcher), ("urn:x:also", Role::Researcher)];
    let entitlements = entitlements.map(|(urn, role)| (urn.to_owned(), role)).to_vec();
    let trust = trust_in(vec![IssuerEntry { entitlements, ..provider(ISSUER, &[jwk(KID, &key())]) }]);
    for (stated, roles) in [
        (json!([]), vec![]),
        (json!(["operator", "urn:x:OP", "urn:x:op "]), vec![]),
        (json!(["urn:x:also", RESEARCHER]), vec![Role::Researcher]),
        (json!(["urn:x:op", "urn:x:also"]), vec![Role::Researcher, Role::Operator]),
    ] {
        let token = Forged::sound().claim("entitlements", stated).sign();
        assert_eq!(verify(&trust, &token).unwrap().roles, roles);
    }
}

struct Curve {
    alg: &'static str,
    pair: EcdsaKeyPair,
}

impl Curve {
    fn new(alg: &'static str, with: &'static EcdsaSigningAlgorithm) -> Curve {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(with, &random).unwrap();
        Curve { alg, pair: EcdsaKeyPair::from_pkcs8(with, pkcs8.as_ref(), &random).unwrap() }
    }

    fn jwk(&self, crv: &str) -> Value {
        let point = &self.pair.public_key().as_ref()[1..];
        let (x, y) = point.split_at(point.len() / 2);
        json!({"kty": "EC", "crv": crv, "kid": self.alg, "x": encode(x), "y": encode(y)})
    }

    /// Signed by this key with a header that says `alg` and `kid`.
    fn token(&self, alg: &str, kid: &str) -> String {
        let forged = Forged::sound().header("alg", json!(alg)).header("kid", json!(kid));
        let signer = |message: &[u8]| self.pair.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec();
        sign(&forged.header.to_string(), &forged.claims.to_string(), signer)
    }
}

#[test]
fn each_key_verifies_its_own_algorithm_only() {
    let p256 = Curve::new("ES256", &ECDSA_P256_SHA256_FIXED_SIGNING);
    let p384 = Curve::new("ES384", &ECDSA_P384_SHA384_FIXED_SIGNING);
    let trust = trust_in(vec![provider(ISSUER, &[jwk("EdDSA", &key()), p256.jwk("P-256"), p384.jwk("P-384")])]);
    let ed25519 = |alg: &str, kid: &str| Forged::sound().header("alg", json!(alg)).header("kid", json!(kid)).sign();
    for kid in ["EdDSA", "ES256", "ES384"] {
        for alg in ["EdDSA", "ES256", "ES384"] {
            for (signer, token) in
                [("EdDSA", ed25519(alg, kid)), ("ES256", p256.token(alg, kid)), ("ES384", p384.token(alg, kid))]
            {
                let refusal = match () {
                    () if alg != kid => Some(BadToken::Algorithm),
                    () if signer != kid => Some(BadToken::Signature),
                    () => None,
                };
                assert_eq!(verify(&trust, &token).err(), refusal, "{alg} named with {kid}, signed by {signer}");
            }
        }
    }
}

#[test]
fn keys_that_nobody_should_sign_with_are_left_out() {
    let rsa = |bytes: usize| json!({"kty": "RSA", "kid": "rsa", "n": encode(vec![0xff; bytes]), "e": "AQAB"});
    let with = |mut key: Value, name: &str, value: Value| {
        key[name] = value;
        key
    };
    let ed25519 = jwk("other", &key());
    let left_out = [
        json!({"kty": "oct", "kid": "oct", "alg": "HS256", "k": encode([1; 32])}),
        json!({"kty": "AKP", "kid": "akp", "alg": "ML-DSA-65", "pub": "AAAA"}),
        json!({"kty": "EC", "crv": "secp256k1", "kid": "k1", "x": "AAAA", "y": "AAAA"}),
        json!({"kty": "OKP", "crv": "X25519", "kid": "x", "x": encode([1; 32])}),
        rsa(128),
        with(rsa(256), "alg", json!("RS512")),
        with(rsa(256), "alg", json!("RSA-OAEP")),
        with(rsa(256), "use", json!("enc")),
        with(ed25519.clone(), "alg", json!("HS256")),
        with(ed25519.clone(), "use", json!("enc")),
        with(ed25519.clone(), "kid", json!("../../keys")),
        with(ed25519.clone(), "kid", json!(null)),
    ];
    for other in left_out {
        let alone = trust_of(vec![provider(ISSUER, std::slice::from_ref(&other))], vec![]).map(drop);
        assert!(matches!(alone, Err(BadTrust::Issuer { .. })), "{other}: {alone:?}");
        let beside = trust_of(vec![provider(ISSUER, &[other.clone(), jwk(KID, &key())])], vec![]);
        let beside = beside.unwrap_or_else(|bad| panic!("{other}: {bad}"));
        assert!(verify(&beside, &Forged::sound().sign()).is_ok(), "{other}");
    }
    let same_kid = trust_of(vec![provider(ISSUER, &[jwk(KID, &key()), jwk(KID, &german_key())])], vec![]).map(drop);
    assert!(matches!(same_kid, Err(BadTrust::Issuer { .. })), "one kid, one key");
    let rs256 = provider(ISSUER, &[rsa(256), jwk(KID, &key())]);
    let token = Forged::sound().header("alg", json!("RS256")).header("kid", json!("rsa")).sign();
    assert_eq!(verify(&trust_in(vec![rs256]), &token), Err(BadToken::Signature), "one of 2048 bits is asked");
}
