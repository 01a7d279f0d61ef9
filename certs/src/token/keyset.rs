//! Key sets: an issuer's public keys, each for exactly one algorithm. Source: RFC 7517.
//!
//! Invariants: no key of a set is private or shared, because a bundle is replicated to every state; no Ed25519 key is weak.

use std::collections::{BTreeMap, HashMap};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::{BadToken, provider};
use crate::keys::{BadKey, PublicKey};

const KEYS_MAX: usize = 32;
const JWKS_BYTES_MAX: usize = 64 * 1024;
const KID_BYTES_MAX: usize = 128;
/// Base64url digits of a modulus of 2048 bits.
const RSA_DIGITS_MIN: usize = 342;
/// What only a private or a shared key has. Source: RFC 7518, sections 6.2.2, 6.3.2 and 6.4; RFC 8037, section 2; the
/// seeds of AKP keys.
const PRIVATE_MEMBERS: [&str; 9] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"];

/// Why a set cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadKeySet {
    #[error("its key set is not a JSON Web Key Set, or is too large")]
    Unreadable,
    #[error(
        "its key set shows a private or shared key (member {0:?}): replace that key, and publish the public part only"
    )]
    Private(&'static str),
    #[error("its key {kid} cannot be used: {bad}")]
    Key { kid: String, bad: BadKey },
    #[error("two of its keys have the kid {0}")]
    Twice(String),
    #[error("its key set has no key that signs: Ed25519, P-256, P-384, or RSA of 2048 bits and more, with a kid")]
    Empty,
}

/// The names of each key's members.
#[derive(Deserialize)]
struct Names {
    keys: Vec<BTreeMap<String, IgnoredAny>>,
}

/// Public keys by `kid`.
#[derive(Debug)]
pub struct KeySet(HashMap<String, (Algorithm, DecodingKey)>);

impl KeySet {
    /// Reads a set. Keys for encryption and of kinds that nobody should sign with are left out. A private key is not: who
    /// publishes one is told so, and not helped to spread it.
    pub fn parse(json: &str) -> Result<KeySet, BadKeySet> {
        if json.len() > JWKS_BYTES_MAX {
            return Err(BadKeySet::Unreadable);
        }
        let names: Names = serde_json::from_str(json).map_err(|_| BadKeySet::Unreadable)?;
        let is_shown = |member: &&str| names.keys.iter().any(|key| key.contains_key(*member));
        if let Some(member) = PRIVATE_MEMBERS.into_iter().find(is_shown) {
            return Err(BadKeySet::Private(member));
        }
        let set: JwkSet = serde_json::from_str(json).map_err(|_| BadKeySet::Unreadable)?;
        if set.keys.len() > KEYS_MAX {
            return Err(BadKeySet::Unreadable);
        }
        let mut keys = HashMap::new();
        for jwk in &set.keys {
            let Some((kid, algorithm, key)) = signing_key(jwk)? else { continue };
            if keys.insert(kid.clone(), (algorithm, key)).is_some() {
                return Err(BadKeySet::Twice(kid));
            }
        }
        if keys.is_empty() { Err(BadKeySet::Empty) } else { Ok(KeySet(keys)) }
    }

    /// Whether the key of this name signed, with the algorithm that it is for.
    pub fn verify(&self, kid: &str, algorithm: Algorithm, signed: &str, signature: &str) -> Result<(), BadToken> {
        let (pinned, key) = self.0.get(kid).ok_or(BadToken::UnknownKey)?;
        if *pinned != algorithm {
            return Err(BadToken::Algorithm);
        }
        provider::install();
        match jsonwebtoken::crypto::verify(signature, signed.as_bytes(), key, algorithm) {
            Ok(true) => Ok(()),
            Ok(false) => Err(BadToken::Signature),
            Err(_) => Err(BadToken::Malformed),
        }
    }
}

/// A name and not a path, a query or a script.
pub fn is_plain(kid: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:=".contains(&byte);
    !kid.is_empty() && kid.len() <= KID_BYTES_MAX && kid.bytes().all(plain) && !kid.contains("..")
}

/// The key with its name and its algorithm, if it is one to sign with.
fn signing_key(jwk: &Jwk) -> Result<Option<(String, Algorithm, DecodingKey)>, BadKeySet> {
    let common = &jwk.common;
    let Some(kid) = common.key_id.as_ref().filter(|kid| is_plain(kid)) else {
        return Ok(None);
    };
    if common.public_key_use.as_ref().is_some_and(|it| *it != PublicKeyUse::Signature) {
        return Ok(None);
    }
    let algorithm = match (&jwk.algorithm, common.key_algorithm) {
        (AlgorithmParameters::OctetKeyPair(it), None | Some(KeyAlgorithm::EdDSA))
            if it.curve == EllipticCurve::Ed25519 =>
        {
            // Everybody could sign for a point of small order.
            let point = URL_SAFE_NO_PAD.decode(&it.x).unwrap_or_default();
            PublicKey::parse(&point).map_err(|bad| BadKeySet::Key { kid: kid.clone(), bad })?;
            Algorithm::EdDSA
        }
        (AlgorithmParameters::EllipticCurve(it), None | Some(KeyAlgorithm::ES256))
            if it.curve == EllipticCurve::P256 =>
        {
            Algorithm::ES256
        }
        (AlgorithmParameters::EllipticCurve(it), None | Some(KeyAlgorithm::ES384))
            if it.curve == EllipticCurve::P384 =>
        {
            Algorithm::ES384
        }
        (AlgorithmParameters::RSA(it), stated) if it.n.len() >= RSA_DIGITS_MIN => match stated {
            None | Some(KeyAlgorithm::RS256) => Algorithm::RS256,
            Some(KeyAlgorithm::PS256) => Algorithm::PS256,
            Some(_) => return Ok(None),
        },
        _ => return Ok(None),
    };
    Ok(DecodingKey::from_jwk(jwk).ok().map(|key| (kid.clone(), algorithm, key)))
}
