//! Keys that sign records: Ed25519. They are not the keys of TLS, so a stolen leaf publishes nothing.
//!
//! Invariant: a [`PublicKey`] is a canonical encoding and not of small order, so a signature that it verifies cannot be
//! repudiated by its owner.

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::digest::{Digest, from_hex, to_hex};

/// What PKCS#8 puts in front of an Ed25519 seed. Source: RFC 8410, section 7.
const PKCS8_HEAD: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// The y coordinates of the eight points of small order; the top bit is the sign of x.
/// Source: the torsion subgroup of edwards25519, as in "Taming the many EdDSAs", table 5.
const SMALL_ORDER: [[u8; 32]; 5] = [
    zeros_but_first(0),
    zeros_but_first(1),
    [
        0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98, 0xf0, 0xd5, 0xdf,
        0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53, 0xfc, 0x05,
    ],
    [
        0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67, 0x0f, 0x2a, 0x20,
        0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac, 0x03, 0x7a,
    ],
    below_p(0xec),
];

const fn zeros_but_first(first: u8) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[0] = first;
    bytes
}

/// p = 2^255 - 19 is this with 0xed.
const fn below_p(first: u8) -> [u8; 32] {
    let mut bytes = [0xff; 32];
    bytes[0] = first;
    bytes[31] = 0x7f;
    bytes
}

/// Why bytes are no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadKey {
    /// Not 32 bytes.
    #[error("an Ed25519 public key has 32 bytes")]
    Length,
    /// y is not below p.
    #[error("the key is not encoded canonically")]
    NotCanonical,
    /// One of the eight weak points.
    #[error("the key is of small order: everybody could sign for it")]
    SmallOrder,
    /// Not an Ed25519 private key in PKCS#8 PEM.
    #[error("not an Ed25519 private key in PKCS#8 PEM")]
    Private,
}

/// Verifies signatures.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; 32]);

/// Names a public key: the first half of its digest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId([u8; 16]);

/// Makes signatures. Never shown, never serialised but by [`SigningKey::to_pkcs8_pem`].
#[derive(Clone)]
pub struct SigningKey(Arc<Pair>);

struct Pair {
    seed: [u8; 32],
    pair: Ed25519KeyPair,
}

impl PublicKey {
    /// Takes a canonical encoding that is not of small order.
    pub fn parse(bytes: &[u8]) -> Result<PublicKey, BadKey> {
        let key: [u8; 32] = bytes.try_into().map_err(|_| BadKey::Length)?;
        let mut y = key;
        y[31] &= 0x7f;
        if SMALL_ORDER.contains(&y) {
            return Err(BadKey::SmallOrder);
        }
        let not_below_p = y[1..] == below_p(0)[1..] && y[0] >= 0xed;
        if not_below_p { Err(BadKey::NotCanonical) } else { Ok(PublicKey(key)) }
    }

    /// The encoding.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The key's name.
    pub fn id(&self) -> KeyId {
        let digest = Digest::of(&self.0);
        KeyId(digest.0[..16].try_into().expect("invariant: half of 32 bytes"))
    }

    /// Whether this is the owner's signature over the message.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.0).verify(message, signature).is_ok()
    }
}

impl SigningKey {
    /// The key of this seed; every seed is one.
    pub fn from_seed(seed: [u8; 32]) -> SigningKey {
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).expect("invariant: every 32 bytes are a seed");
        SigningKey(Arc::new(Pair { seed, pair }))
    }

    /// Reads what [`SigningKey::to_pkcs8_pem`] and `openssl genpkey -algorithm ed25519` write.
    pub fn from_pkcs8_pem(pem: &str) -> Result<SigningKey, BadKey> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| BadKey::Private)?;
        let seed = der.secret_pkcs8_der().strip_prefix(&PKCS8_HEAD).ok_or(BadKey::Private)?;
        Ok(SigningKey::from_seed(seed.try_into().map_err(|_| BadKey::Private)?))
    }

    /// PKCS#8 in PEM.
    pub fn to_pkcs8_pem(&self) -> String {
        format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", STANDARD.encode(self.to_pkcs8_der()))
    }

    pub(crate) fn to_pkcs8_der(&self) -> Vec<u8> {
        [&PKCS8_HEAD[..], &self.0.seed].concat()
    }

    /// The public part.
    pub fn public(&self) -> PublicKey {
        let bytes = self.0.pair.public_key().as_ref();
        PublicKey(bytes.try_into().expect("invariant: a public key has 32 bytes"))
    }

    /// Signs; the same message gives the same signature.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        let signature = self.0.pair.sign(message);
        signature.as_ref().try_into().expect("invariant: an Ed25519 signature has 64 bytes")
    }
}

/// The name under which a federation knows a person of an issuer: only the state that holds the secret can tell who it
/// is, and the same person is the same name.
///
/// A short secret could be found by trying; the type leaves only whole ones.
/// ```compile_fail,E0308
/// certs::hmac_pseudonym(b"", "https://login.fr.example", "alice");
/// ```
pub fn hmac_pseudonym(secret: &[u8; 32], issuer: &str, subject: &str) -> [u8; 16] {
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret);
    let mut context = ring::hmac::Context::with_key(&key);
    context.update(b"entente pseudonym v1\0");
    // The length keeps `a` + `bc` apart from `ab` + `c`.
    context.update(&(issuer.len() as u64).to_be_bytes());
    context.update(issuer.as_bytes());
    context.update(subject.as_bytes());
    context.sign().as_ref()[..16].try_into().expect("invariant: half of a SHA-256 tag")
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "SigningKey({})", self.public().id())
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "PublicKey({})", self.id())
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        to_hex(&self.0, out)
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        to_hex(&self.0[..4], out)
    }
}

/// Base64 in formats for people; a bad key does not deserialise.
impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if to.is_human_readable() { to.serialize_str(&STANDARD.encode(self.0)) } else { self.0.serialize(to) }
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<PublicKey, D::Error> {
        let bytes = if from.is_human_readable() {
            STANDARD.decode(String::deserialize(from)?).map_err(de::Error::custom)?
        } else {
            <[u8; 32]>::deserialize(from)?.to_vec()
        };
        PublicKey::parse(&bytes).map_err(de::Error::custom)
    }
}

impl Serialize for KeyId {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if to.is_human_readable() { to.collect_str(self) } else { self.0.serialize(to) }
    }
}

impl<'de> Deserialize<'de> for KeyId {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<KeyId, D::Error> {
        let mut bytes = [0; 16];
        if from.is_human_readable() {
            let text = String::deserialize(from)?;
            from_hex(&text, &mut bytes).ok_or_else(|| de::Error::custom("a key id is 32 hexadecimal digits"))?;
        } else {
            bytes = <[u8; 16]>::deserialize(from)?;
        }
        Ok(KeyId(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_verifies_its_own_signatures_only() {
        let (key, other) = (SigningKey::from_seed([1; 32]), SigningKey::from_seed([2; 32]));
        let signature = key.sign(b"message");
        assert!(key.public().verify(b"message", &signature));
        assert!(!key.public().verify(b"messagE", &signature));
        assert!(!key.public().verify(b"message", &signature[1..]));
        assert!(!other.public().verify(b"message", &signature));
    }

    #[test]
    fn a_private_key_reads_back_from_pem() {
        let key = SigningKey::from_seed(entropy());
        let again = SigningKey::from_pkcs8_pem(&key.to_pkcs8_pem()).unwrap();
        assert_eq!(again.public(), key.public());
        for bad in ["", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"] {
            assert_eq!(SigningKey::from_pkcs8_pem(bad).unwrap_err(), BadKey::Private);
        }
    }

    fn entropy() -> [u8; 32] {
        crate::entropy::bytes()
    }

    /// Threat 26.
    #[test]
    fn weak_and_ambiguous_public_keys_are_refused() {
        for mut point in SMALL_ORDER {
            assert_eq!(PublicKey::parse(&point), Err(BadKey::SmallOrder));
            point[31] |= 0x80;
            assert_eq!(PublicKey::parse(&point), Err(BadKey::SmallOrder), "with the other sign");
        }
        for first in 0xed..=0xff {
            assert_eq!(PublicKey::parse(&below_p(first)), Err(BadKey::NotCanonical));
        }
        assert_eq!(PublicKey::parse(&[7; 31]), Err(BadKey::Length));
        assert!(PublicKey::parse(SigningKey::from_seed([3; 32]).public().as_bytes()).is_ok());
        let json = format!("\"{}\"", STANDARD.encode([0; 32]));
        assert!(serde_json::from_str::<PublicKey>(&json).is_err(), "nor do they deserialise");
    }

    #[test]
    fn a_pseudonym_keeps_people_apart_and_secrets_matter() {
        let it = |secret: u8, issuer, subject| hmac_pseudonym(&[secret; 32], issuer, subject);
        assert_eq!(it(1, "a", "bc"), it(1, "a", "bc"));
        assert_ne!(it(1, "a", "bc"), it(1, "ab", "c"));
        assert_ne!(it(1, "a", "bc"), it(2, "a", "bc"));
    }
}
