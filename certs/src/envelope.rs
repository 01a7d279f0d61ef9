//! Envelopes: bytes signed by the key of the state that owns what is inside.
//!
//! ```text
//! 1 (format) | postcard(header, body) | Ed25519 signature, 64 bytes
//! ```
//!
//! Invariants: the signed bytes are the stored bytes, nothing is serialised again; an [`Envelope`] parsed, but only
//! [`Envelope::verify`] says who signed it.

use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::keys::{KeyId, PublicKey, SigningKey};
use crate::state::{FederationId, MemberState};

/// A full batch of commands with packs inside is below this; 64 of them in flight are 64 MiB.
pub const ENVELOPE_BYTES_MAX: usize = 1024 * 1024;
/// First byte: the format.
const FORMAT: u8 = 1;
const SIGNATURE_BYTES: usize = 64;
/// Keeps these signatures from meaning anything elsewhere.
const DOMAIN: &[u8] = b"entente envelope v1\0";

/// What an envelope says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Where it counts.
    pub federation: FederationId,
    /// Raised when a federation of this name is founded anew.
    pub epoch: u64,
    /// The state that speaks.
    pub owner: MemberState,
    /// Which of its keys signed.
    pub key: KeyId,
    /// Rises with each envelope of a key; names it once.
    pub serial: u64,
    /// What the body is.
    pub kind: Kind,
}

/// What a body is; a signature over one kind means nothing as another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// Commands to the registry.
    Command,
    /// A statement about a job for its host.
    Mandate,
    /// A state's trust bundle.
    Bundle,
    /// The founding agreement.
    Genesis,
}

/// Why bytes are no envelope, or not this key's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadEnvelope {
    /// Above the limit.
    #[error("the envelope is larger than {ENVELOPE_BYTES_MAX} bytes")]
    TooLarge,
    /// A format of another release.
    #[error("the envelope has format {0}; this gateway reads {FORMAT}")]
    Format(u8),
    /// Cut short, trailing bytes, or not as this release would have written it.
    #[error("the bytes are not an envelope")]
    Malformed,
    /// The header names another key than the one that is to sign.
    #[error("the header names another key than the one that signs")]
    AnotherKey,
    /// The signature does not match.
    #[error("the signature is not the named key's over these bytes")]
    Signature,
}

/// Signed bytes, taken apart. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    bytes: Arc<[u8]>,
    header: Arc<Header>,
    body: Range<usize>,
}

impl Envelope {
    /// Signs a body. The header must name this key.
    pub fn seal(header: Header, body: &[u8], key: &SigningKey) -> Result<Envelope, BadEnvelope> {
        if header.key != key.public().id() {
            return Err(BadEnvelope::AnotherKey);
        }
        let mut bytes = postcard::to_extend(&(&header, Bytes(body)), vec![FORMAT])
            .expect("invariant: a header in memory always serialises");
        let end = bytes.len();
        if end + SIGNATURE_BYTES > ENVELOPE_BYTES_MAX {
            return Err(BadEnvelope::TooLarge);
        }
        let signature = key.sign(&signed_message(&bytes));
        bytes.extend_from_slice(&signature);
        Ok(Envelope { bytes: bytes.into(), header: Arc::new(header), body: end - body.len()..end })
    }

    /// Takes bytes apart; says nothing about who signed them.
    pub fn parse(bytes: &[u8]) -> Result<Envelope, BadEnvelope> {
        if bytes.len() > ENVELOPE_BYTES_MAX {
            return Err(BadEnvelope::TooLarge);
        }
        let end = bytes.len().checked_sub(SIGNATURE_BYTES).ok_or(BadEnvelope::Malformed)?;
        let (format, content) = bytes[..end].split_first().ok_or(BadEnvelope::Malformed)?;
        if *format != FORMAT {
            return Err(BadEnvelope::Format(*format));
        }
        let (header, rest) = postcard::take_from_bytes::<Header>(content).map_err(|_| BadEnvelope::Malformed)?;
        let (body, rest) = postcard::take_from_bytes::<&[u8]>(rest).map_err(|_| BadEnvelope::Malformed)?;
        // One meaning, one spelling: numbers written longer than needed are refused.
        let canonical =
            postcard::to_extend(&(&header, Bytes(body)), vec![FORMAT]).is_ok_and(|written| written == bytes[..end]);
        if !rest.is_empty() || !canonical {
            return Err(BadEnvelope::Malformed);
        }
        let body = end - body.len()..end;
        Ok(Envelope { bytes: bytes.into(), header: Arc::new(header), body })
    }

    /// Whether this key signed these bytes.
    pub fn verify(&self, key: &PublicKey) -> Result<(), BadEnvelope> {
        if self.header.key != key.id() {
            return Err(BadEnvelope::AnotherKey);
        }
        let (signed, signature) = self.bytes.split_at(self.bytes.len() - SIGNATURE_BYTES);
        if key.verify(&signed_message(signed), signature) { Ok(()) } else { Err(BadEnvelope::Signature) }
    }

    /// What it says about itself.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// What it carries.
    pub fn body(&self) -> &[u8] {
        &self.bytes[self.body.clone()]
    }

    /// All of it, as signed, stored and sent.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

fn signed_message(bytes: &[u8]) -> Vec<u8> {
    [DOMAIN, bytes].concat()
}

/// Written as a byte string, not as a list of numbers.
struct Bytes<'a>(&'a [u8]);

impl Serialize for Bytes<'_> {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_bytes(self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> SigningKey {
        SigningKey::from_seed([5; 32])
    }

    fn header() -> Header {
        Header {
            federation: FederationId::parse("entente.example").unwrap(),
            epoch: 1,
            owner: MemberState::parse("FR").unwrap(),
            key: key().public().id(),
            serial: 300,
            kind: Kind::Command,
        }
    }

    #[test]
    fn what_was_sealed_is_what_is_read() {
        let sealed = Envelope::seal(header(), b"body", &key()).unwrap();
        let read = Envelope::parse(sealed.as_bytes()).unwrap();
        assert_eq!((read.header(), read.body()), (&header(), &b"body"[..]));
        assert_eq!(read.verify(&key().public()), Ok(()));
        assert_eq!(read.verify(&SigningKey::from_seed([6; 32]).public()), Err(BadEnvelope::AnotherKey));
    }

    #[test]
    fn one_changed_bit_is_another_envelope_and_nobodys() {
        let sealed = Envelope::seal(header(), b"body", &key()).unwrap();
        for place in 0..sealed.as_bytes().len() {
            let mut bytes = sealed.as_bytes().to_vec();
            bytes[place] ^= 1;
            let accepted = Envelope::parse(&bytes).is_ok_and(|it| it.verify(&key().public()).is_ok());
            assert!(!accepted, "byte {place}");
        }
    }

    #[test]
    fn sizes_are_bounded_and_the_header_names_the_signer() {
        let large = vec![0; ENVELOPE_BYTES_MAX];
        assert_eq!(Envelope::seal(header(), &large, &key()), Err(BadEnvelope::TooLarge));
        assert_eq!(Envelope::parse(&[large, vec![0]].concat()), Err(BadEnvelope::TooLarge));
        let other = SigningKey::from_seed([6; 32]);
        assert_eq!(Envelope::seal(header(), b"", &other), Err(BadEnvelope::AnotherKey));
        assert_eq!(Envelope::parse(&[9; 80]), Err(BadEnvelope::Format(9)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_read_back_the_same(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(envelope) = Envelope::parse(&bytes) {
                prop_assert_eq!(envelope.as_bytes(), &bytes[..]);
            }
        }
    }
}
