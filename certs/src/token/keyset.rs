//! Key sets: an issuer's public keys, each for exactly one algorithm. Source: RFC 7517.

use std::collections::HashMap;

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};

use super::{BadToken, provider};

const KEYS_MAX: usize = 32;
const JWKS_BYTES_MAX: usize = 64 * 1024;
const KID_BYTES_MAX: usize = 128;
/// Base64url digits of a modulus of 2048 bits.
const RSA_DIGITS_MIN: usize = 342;

/// Why a set cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadKeySet {
    #[error("its key set is not a JSON Web Key Set, or is too large")]
    Unreadable,
    #[error("two of its keys have the kid {0}")]
    Twice(String),
    #[error("its key set has no key that signs: Ed25519, P-256, P-384, or RSA of 2048 bits and more, with a kid")]
    Empty,
}

/// Public keys by `kid`.
#[derive(Debug)]
pub struct KeySet(HashMap<String, (Algorithm, DecodingKey)>);

impl KeySet {
    /// Reads a set. Keys for encryption and of kinds that nobody should sign with are left out.
    pub fn parse(json: &str) -> Result<KeySet, BadKeySet> {
        if json.len() > JWKS_BYTES_MAX {
            return Err(BadKeySet::Unreadable);
        }
        let set: JwkSet = serde_json::from_str(json).map_err(|_| BadKeySet::Unreadable)?;
        if set.keys.len() > KEYS_MAX {
            return Err(BadKeySet::Unreadable);
        }
        let mut keys = HashMap::new();
        for (kid, algorithm, key) in set.keys.iter().filter_map(signing_key) {
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

fn signing_key(jwk: &Jwk) -> Option<(String, Algorithm, DecodingKey)> {
    let common = &jwk.common;
    let kid = common.key_id.as_ref().filter(|kid| is_plain(kid))?;
    if common.public_key_use.as_ref().is_some_and(|it| *it != PublicKeyUse::Signature) {
        return None;
    }
    let algorithm = match (&jwk.algorithm, common.key_algorithm) {
        (AlgorithmParameters::OctetKeyPair(it), None | Some(KeyAlgorithm::EdDSA))
            if it.curve == EllipticCurve::Ed25519 =>
        {
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
            Some(_) => return None,
        },
        _ => return None,
    };
    Some((kid.clone(), algorithm, DecodingKey::from_jwk(jwk).ok()?))
}
