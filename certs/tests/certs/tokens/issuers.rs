//! Issuers: whose keys count for whom, and what each may state: threats 14 and 15.

use certs::{Assurance, BadToken, BadTrust, Caller, IssuerEntry, Role, SigningKey, TrustStore};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm, KeyPair,
    RSA_PKCS1_SHA256, RSA_PKCS1_SHA512, RSA_PSS_SHA256, RsaEncoding, RsaKeyPair, RsaPublicKeyComponents,
};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
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

/// Threat 15: a clearance counts from the state that grants it.
#[test]
fn a_clearance_is_the_issuers_own_states() {
    let trust_of_state = |in_france: bool, clearances: &[&str]| {
        let clearances = clearances.iter().map(|it| it.to_string()).collect();
        let entry = IssuerEntry { clearances, ..provider(ISSUER, &[jwk(KID, &key())]) };
        if in_france { trust_of(vec![entry], vec![]) } else { trust_of(vec![], vec![entry]) }
    };
    for (stated, french, german) in [
        (json!(["health"]), &["health"][..], &["health"][..]),
        (json!(["FR:health"]), &["health"], &[]),
        (json!(["DE:health"]), &[], &["health"]),
        (json!(["FR:health", "DE:health", "health"]), &["health"], &["health"]),
        (json!(["FR:defence", "FR:FR:health", "fr:health", ":health", "FR:", "FR: health", "DE:FR:health"]), &[], &[]),
    ] {
        let token = Forged::sound().claim("clearances", stated.clone()).sign();
        for (in_france, believed) in [(true, french), (false, german)] {
            let trust = trust_of_state(in_france, &["health"]).unwrap();
            assert_eq!(verify(&trust, &token).unwrap().clearances, believed, "{stated}");
        }
    }
    for another_states in ["DE:health", "FR:health", "health:", ":"] {
        let refused = trust_of_state(true, &["defence", another_states]).map(drop);
        assert!(matches!(refused, Err(BadTrust::Issuer { .. })), "{another_states}");
    }
}

/// Threat 15: where somebody lives is for the state there to know.
#[test]
fn an_issuer_attests_residence_in_its_own_state_and_where_it_may() {
    for (may, stated, believed) in [
        (&[][..], "FR", Some("FR")),
        (&[], "DE", None),
        (&["CH"], "CH", Some("CH")),
        (&["CH"], "FR", Some("FR")),
        (&["CH", "LU"], "DE", None),
    ] {
        let residencies = may.iter().map(|code| state(code)).collect();
        let entry = IssuerEntry { residencies, ..provider(ISSUER, &[jwk(KID, &key())]) };
        let token = Forged::sound().claim("residency", json!(stated)).sign();
        assert_eq!(verify(&trust_in(vec![entry]), &token).unwrap().residency, believed.map(state), "{stated}");
    }
    let without =
        json!({"issuer": ISSUER, "jwks_json": "{}", "entitlements": [], "assurance_max": "low", "clearances": []});
    assert_eq!(serde_json::from_value::<IssuerEntry>(without).unwrap().residencies, []);
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

/// An RSA key of 2048 bits that was made for these tests, by `openssl genpkey -algorithm RSA -pkeyopt
/// rsa_keygen_bits:2048`, and protects nothing. `ring` makes no RSA keys.
fn rsa_pair() -> RsaKeyPair {
    let der = PrivatePkcs8KeyDer::from_pem_slice(include_bytes!("rsa-2048.pem")).unwrap();
    RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()).unwrap()
}

/// A key set with this key for `pinned`, and what a token is that it signed with `padding` and that says `alg`.
fn verify_rsa(pinned: Option<&str>, alg: &str, padding: &'static dyn RsaEncoding) -> Result<Caller, BadToken> {
    let pair = rsa_pair();
    let RsaPublicKeyComponents { n, e } = RsaPublicKeyComponents::<Vec<u8>>::from(pair.public());
    let mut jwk = json!({"kty": "RSA", "kid": "rsa", "n": encode(n), "e": encode(e)});
    if let Some(pinned) = pinned {
        jwk["alg"] = json!(pinned);
    }
    let trust = trust_in(vec![provider(ISSUER, &[jwk])]);
    let forged = Forged::sound().header("alg", json!(alg)).header("kid", json!("rsa"));
    let signer = |message: &[u8]| {
        let mut signature = vec![0; pair.public().modulus_len()];
        pair.sign(padding, &SystemRandom::new(), message, &mut signature).unwrap();
        signature
    };
    let token = sign(&forged.header.to_string(), &forged.claims.to_string(), signer);
    let (message, signature) = token.rsplit_once('.').unwrap();
    let another = message.replacen('.', ".e30", 1) + "." + signature;
    assert!(verify(&trust, &another).is_err(), "other claims under the same signature");
    verify(&trust, &token)
}

#[test]
fn a_genuine_rs256_signature_is_accepted() {
    assert_eq!(verify_rsa(Some("RS256"), "RS256", &RSA_PKCS1_SHA256).unwrap().subject, "alice");
    assert_eq!(verify_rsa(None, "RS256", &RSA_PKCS1_SHA256).unwrap().subject, "alice", "RS256 if nothing is said");
    assert_eq!(verify_rsa(Some("RS256"), "RS256", &RSA_PSS_SHA256), Err(BadToken::Signature));
    assert_eq!(verify_rsa(Some("RS256"), "RS256", &RSA_PKCS1_SHA512), Err(BadToken::Signature));
    assert_eq!(verify_rsa(Some("RS256"), "PS256", &RSA_PSS_SHA256), Err(BadToken::Algorithm));
}

#[test]
fn a_genuine_ps256_signature_is_accepted() {
    assert_eq!(verify_rsa(Some("PS256"), "PS256", &RSA_PSS_SHA256).unwrap().subject, "alice");
    assert_eq!(verify_rsa(Some("PS256"), "PS256", &RSA_PKCS1_SHA256), Err(BadToken::Signature));
    assert_eq!(verify_rsa(Some("PS256"), "RS256", &RSA_PKCS1_SHA256), Err(BadToken::Algorithm));
}

fn refusal_of(keys: &[Value]) -> String {
    match trust_of(vec![provider(ISSUER, keys)], vec![]) {
        Err(BadTrust::Issuer { reason, .. }) => reason,
        other => panic!("{keys:?}: {other:?}"),
    }
}

/// Threat 26, for issuers: everybody could sign for a key of small order.
#[test]
fn weak_and_ambiguous_ed25519_keys_are_refused() {
    let of = |x: Value| json!({"kty": "OKP", "crv": "Ed25519", "kid": "weak", "x": x});
    let mut one = [0; 32];
    one[0] = 1;
    let mut not_below_p = [0xff; 32];
    (not_below_p[0], not_below_p[31]) = (0xee, 0x7f);
    for (x, why) in [
        (json!(encode([0; 32])), "small order"),
        (json!(encode(one)), "small order"),
        (json!(encode(not_below_p)), "not encoded canonically"),
        (json!(encode([7; 31])), "has 32 bytes"),
        (json!(""), "has 32 bytes"),
        (json!(encode([7; 32]) + "="), "has 32 bytes"),
    ] {
        let reason = refusal_of(&[jwk(KID, &key()), of(x.clone())]);
        assert!(reason.contains("key weak") && reason.contains(why), "{x}: {reason}");
    }
}

/// A bundle goes to every state: a private key in it would be everybody's.
#[test]
fn a_set_that_shows_a_private_key_is_refused() {
    for name in ["d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"] {
        for secret in [json!(encode([7; 32])), json!(null), json!(["x"])] {
            for alone in [jwk("shown", &key()), json!({"kty": "oct"}), json!({"kty": "RSA", "use": "enc"})] {
                let mut shown = alone;
                shown[name] = secret.clone();
                let reason = refusal_of(&[jwk(KID, &key()), shown]);
                assert!(reason.contains("private") && reason.contains(name), "{name}: {reason}");
                assert!(!reason.contains(&encode([7; 32])), "a reason is shown to everybody");
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
