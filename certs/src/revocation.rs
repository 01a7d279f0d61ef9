//! Revocation: certificates that their state takes back before they end, and the list that says so.
//!
//! A list counts as long as the bundle that carries it. Which bundle is the newest is known from the registry and not from
//! a date, so a list is made to last as long as its authority: one that ran out would shut its state out.

use std::fmt;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use x509_parser::prelude::{ASN1Time, CertificateRevocationList, FromDer, X509Certificate, X509Name};

use crate::digest::{from_hex, to_hex};
use crate::peer::gateway_in;

/// Source: RFC 5280, section 4.1.2.2.
const SERIAL_BYTES_MAX: usize = 20;

/// A certificate's number, which its authority gives no other. In text, hexadecimal digits in lower case.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Serial(
    /// Without leading zeros.
    Vec<u8>,
);

/// The text is no serial number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a serial number is 1 to {} hexadecimal digits, as `entente certs show` writes them", 2 * SERIAL_BYTES_MAX)]
pub struct BadSerial;

impl Serial {
    /// Reads hexadecimal digits, as other tools write them, too: in capitals, or with colons.
    pub fn parse(text: &str) -> Result<Serial, BadSerial> {
        let digits = text.trim().replace(':', "").to_ascii_lowercase();
        let digits = if digits.len() % 2 == 1 { format!("0{digits}") } else { digits };
        if digits.is_empty() || digits.len() > 2 * SERIAL_BYTES_MAX {
            return Err(BadSerial);
        }
        let mut bytes = vec![0; digits.len() / 2];
        from_hex(&digits, &mut bytes).ok_or(BadSerial)?;
        Ok(Serial::from_bytes(&bytes))
    }

    fn from_bytes(bytes: &[u8]) -> Serial {
        Serial(bytes.iter().copied().skip_while(|byte| *byte == 0).collect())
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { out.write_str("00") } else { to_hex(&self.0, out) }
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

impl Serialize for Serial {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Serial {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Serial, D::Error> {
        Serial::parse(&String::deserialize(from)?).map_err(de::Error::custom)
    }
}

/// A certificate that its state has taken back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoked {
    /// Which.
    pub serial: Serial,
    /// Since when, in Unix seconds.
    pub at_s: u64,
}

/// What a revocation list says. Whether its authority signed it, trust says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevocationList {
    /// Whose it is: the authority's common name.
    pub authority: String,
    /// What it takes back.
    pub revoked: Vec<Revoked>,
    /// When it was made, in Unix seconds.
    pub begins_s: u64,
    /// Until when it counts, in Unix seconds; one that does not say so counts for ever.
    pub ends_s: Option<u64>,
}

impl RevocationList {
    /// Reads a list, DER.
    pub fn read(der: &[u8]) -> Option<RevocationList> {
        let (rest, list) = CertificateRevocationList::from_der(der).ok()?;
        if !rest.is_empty() {
            return None;
        }
        let revoked = list.iter_revoked_certificates().map(|it| {
            Some(Revoked { serial: Serial::from_bytes(it.raw_serial()), at_s: unix_s(&it.revocation_date)? })
        });
        Some(RevocationList {
            authority: common_name(list.issuer()),
            revoked: revoked.collect::<Option<_>>()?,
            begins_s: unix_s(&list.last_update())?,
            ends_s: match list.next_update() {
                Some(time) => Some(unix_s(&time)?),
                None => None,
            },
        })
    }
}

/// What a certificate says about itself, for people and for records; nothing says that it is true.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Its number.
    pub serial: Serial,
    /// For gateways, `FR/fr-1`; else a name in words.
    pub name: String,
    /// Whether it is a gateway's, to meet its peers with.
    pub is_for_peers: bool,
    /// The common name of the authority that it names.
    pub authority: String,
    /// When it begins, in Unix seconds.
    pub begins_s: u64,
    /// When it ends, in Unix seconds.
    pub ends_s: u64,
}

impl Certificate {
    /// Reads the first certificate of a PEM text.
    pub fn read_pem(text: &str) -> Option<Certificate> {
        Certificate::read(&CertificateDer::from_pem_slice(text.as_bytes()).ok()?)
    }

    /// Reads a certificate, DER.
    pub fn read(der: &[u8]) -> Option<Certificate> {
        let (rest, certificate) = X509Certificate::from_der(der).ok()?;
        if !rest.is_empty() {
            return None;
        }
        let gateway = gateway_in(&CertificateDer::from(der)).ok();
        Some(Certificate {
            serial: Serial::from_bytes(certificate.raw_serial()),
            is_for_peers: gateway.is_some(),
            name: gateway.map_or_else(|| common_name(certificate.subject()), |(gateway, _)| gateway.to_string()),
            authority: common_name(certificate.issuer()),
            begins_s: unix_s(&certificate.validity().not_before)?,
            ends_s: unix_s(&certificate.validity().not_after)?,
        })
    }
}

fn common_name(name: &X509Name<'_>) -> String {
    let name = name.iter_common_name().next().and_then(|it| it.as_str().ok());
    // It goes to a terminal.
    name.unwrap_or("(no name)").chars().filter(|it| !it.is_control()).take(120).collect()
}

fn unix_s(time: &ASN1Time) -> Option<u64> {
    u64::try_from(time.timestamp()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serials_are_read_as_other_tools_write_them() {
        for (text, read) in [
            ("3f01", Some("3f01")),
            ("3F:01", Some("3f01")),
            ("f01", Some("0f01")),
            ("00ff", Some("ff")),
            ("0", Some("00")),
            (&"7f".repeat(20), Some(&"7f".repeat(20)[..])),
            ("", None),
            ("3g", None),
            ("é1", None),
            (&"7f".repeat(21), None),
        ] {
            assert_eq!(Serial::parse(text).ok().map(|it| it.to_string()).as_deref(), read, "{text:?}");
        }
    }
}
