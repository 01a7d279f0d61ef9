//! Digests: what names content without showing it. SHA-256, in hexadecimal where people read it.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// SHA-256 of some bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

/// The text is not 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a digest is 64 hexadecimal digits in lower case")]
pub struct BadDigest;

impl Digest {
    /// The digest of these bytes.
    pub fn of(bytes: &[u8]) -> Digest {
        let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
        Digest(digest.as_ref().try_into().expect("invariant: SHA-256 has 32 bytes"))
    }

    /// Reads what [`fmt::Display`] writes.
    pub fn parse(text: &str) -> Result<Digest, BadDigest> {
        let mut bytes = [0; 32];
        from_hex(text, &mut bytes).ok_or(BadDigest)?;
        Ok(Digest(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        to_hex(&self.0, out)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        to_hex(&self.0[..4], out)
    }
}

/// Text in formats for people, 32 bytes in those for machines.
impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if to.is_human_readable() { to.collect_str(self) } else { self.0.serialize(to) }
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Digest, D::Error> {
        if from.is_human_readable() {
            Digest::parse(&String::deserialize(from)?).map_err(de::Error::custom)
        } else {
            <[u8; 32]>::deserialize(from).map(Digest)
        }
    }
}

pub(crate) fn to_hex(bytes: &[u8], out: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(out, "{byte:02x}"))
}

/// Fills the bytes from exactly twice as many digits.
pub(crate) fn from_hex(text: &str, bytes: &mut [u8]) -> Option<()> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    if text.len() != 2 * bytes.len() {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_reads_back_from_text_and_from_bytes() {
        let digest = Digest::of(b"abc");
        assert_eq!(digest.to_string(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(Digest::parse(&digest.to_string()), Ok(digest));
        let json = serde_json::to_string(&digest).unwrap();
        assert_eq!(serde_json::from_str::<Digest>(&json).unwrap(), digest);
        let bytes = postcard::to_stdvec(&digest).unwrap();
        assert_eq!(bytes.len(), 32);
        assert_eq!(postcard::from_bytes::<Digest>(&bytes).unwrap(), digest);
    }

    #[test]
    fn other_texts_are_no_digests() {
        let good = Digest::of(b"").to_string();
        for bad in ["", &good[1..], &good.to_uppercase(), &format!("{good}0"), &good.replace('e', "é")] {
            assert_eq!(Digest::parse(bad), Err(BadDigest), "{bad}");
        }
    }
}
