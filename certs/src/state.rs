//! States and gateways: who takes part, and how each is named in a certificate.
//!
//! Invariant: a value of one of these types is well-formed; there is no other way to make one than
//! to parse it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Every officially assigned ISO 3166-1 alpha-2 code, in order.
const ASSIGNED: &str = "ADAEAFAGAIALAMAOAQARASATAUAWAXAZBABBBDBEBFBGBHBIBJBLBMBNBOBQBRBSBTBVBWBYBZ\
CACCCDCFCGCHCICKCLCMCNCOCRCUCVCWCXCYCZDEDJDKDMDODZECEEEGEHERESETFIFJFKFMFOFRGAGBGDGEGFGGGHGIGLGMGNGPGQGR\
GSGTGUGWGYHKHMHNHRHTHUIDIEILIMINIOIQIRISITJEJMJOJPKEKGKHKIKMKNKPKRKWKYKZLALBLCLILKLRLSLTLULVLYMAMCMDMEMF\
MGMHMKMLMMMNMOMPMQMRMSMTMUMVMWMXMYMZNANCNENFNGNINLNONPNRNUNZOMPAPEPFPGPHPKPLPMPNPRPSPTPWPYQARERORSRURWSA\
SBSCSDSESGSHSISJSKSLSMSNSOSRSSSTSVSXSYSZTCTDTFTGTHTJTKTLTMTNTOTRTTTVTWTZUAUGUMUSUYUZVAVCVEVGVIVNVUWFWSYE\
YTZAZMZW";

/// Longest federation name in bytes: with `xx.` in front it stays a valid DNS name.
const FEDERATION_BYTES_MAX: usize = 100;
/// Longest gateway name in bytes; a DNS label has 63, people have less patience.
const GATEWAY_NAME_BYTES_MAX: usize = 31;

/// Why a text names nobody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadName {
    /// Not an assigned code in upper case.
    #[error("{0:?} is not an ISO 3166-1 alpha-2 code in upper case, such as FR")]
    State(String),
    /// Not a DNS name in lower case.
    #[error("{0:?} is not a federation's name: a DNS name in lower case of at most 100 bytes")]
    Federation(String),
    /// Not a gateway's name.
    #[error("{0:?} is not a gateway's name: a letter, then letters, digits and dashes, all lower case, at most 31")]
    Gateway(String),
    /// Not `FR/fr-1`.
    #[error("{0:?} is not a gateway's id, such as FR/fr-1")]
    GatewayId(String),
    /// Not exactly `spiffe://<state>.<federation>/gateway/<name>`.
    #[error("{0:?} is not the SPIFFE URI of a gateway of this federation")]
    Spiffe(String),
}

/// A sovereign participant, by its ISO 3166-1 alpha-2 code.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MemberState([u8; 2]);

impl MemberState {
    /// Parses an assigned code in upper case.
    pub fn parse(text: &str) -> Result<MemberState, BadName> {
        let bad = || BadName::State(short(text));
        let code: [u8; 2] = text.as_bytes().try_into().map_err(|_| bad())?;
        let assigned = ASSIGNED.as_bytes().chunks_exact(2).any(|known| known == code);
        if assigned { Ok(MemberState(code)) } else { Err(bad()) }
    }

    /// `FR`
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("invariant: assigned codes are ASCII")
    }

    /// `fr`, as in host names.
    pub fn lower(&self) -> String {
        self.as_str().to_ascii_lowercase()
    }
}

/// A federation's name: the common end of all its trust domains.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FederationId(String);

impl FederationId {
    /// Parses a DNS name in lower case.
    pub fn parse(text: &str) -> Result<FederationId, BadName> {
        let label = |label: &str| {
            let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            (1..=63).contains(&label.len())
                && label.bytes().all(inner)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if text.len() <= FEDERATION_BYTES_MAX && text.split('.').all(label) {
            Ok(FederationId(text.to_owned()))
        } else {
            Err(BadName::Federation(short(text)))
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A gateway's name within its state.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GatewayName(String);

impl GatewayName {
    /// Parses a letter followed by letters, digits and dashes, all lower case.
    pub fn parse(text: &str) -> Result<GatewayName, BadName> {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let good = (1..=GATEWAY_NAME_BYTES_MAX).contains(&text.len())
            && text.starts_with(|first: char| first.is_ascii_lowercase())
            && text.bytes().all(inner)
            && !text.ends_with('-');
        if good { Ok(GatewayName(text.to_owned())) } else { Err(BadName::Gateway(short(text))) }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// One gateway of one state.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GatewayId {
    /// The state that it speaks for.
    pub state: MemberState,
    /// Its name there.
    pub name: GatewayName,
}

impl GatewayId {
    /// Parses `FR/fr-1`.
    pub fn parse(text: &str) -> Result<GatewayId, BadName> {
        let bad = || BadName::GatewayId(short(text));
        let (state, name) = text.split_once('/').ok_or_else(bad)?;
        Ok(GatewayId {
            state: MemberState::parse(state).map_err(|_| bad())?,
            name: GatewayName::parse(name).map_err(|_| bad())?,
        })
    }

    /// `spiffe://fr.entente.example/gateway/fr-1`
    pub fn spiffe(&self, federation: &FederationId) -> String {
        format!("spiffe://{}.{federation}/gateway/{}", self.state.lower(), self.name)
    }

    /// Parses exactly what [`GatewayId::spiffe`] writes; every other spelling is refused.
    pub fn from_spiffe(uri: &str, federation: &FederationId) -> Result<GatewayId, BadName> {
        let bad = || BadName::Spiffe(short(uri));
        let rest = uri.strip_prefix("spiffe://").ok_or_else(bad)?;
        let (domain, name) = rest.split_once("/gateway/").ok_or_else(bad)?;
        let state = domain.strip_suffix(federation.as_str()).and_then(|it| it.strip_suffix('.')).ok_or_else(bad)?;
        if state.bytes().any(|byte| !byte.is_ascii_lowercase()) {
            return Err(bad());
        }
        Ok(GatewayId {
            state: MemberState::parse(&state.to_ascii_uppercase()).map_err(|_| bad())?,
            name: GatewayName::parse(name).map_err(|_| bad())?,
        })
    }
}

/// As much of a foreign text as an error shows.
fn short(text: &str) -> String {
    text.chars().take(120).collect()
}

macro_rules! as_text {
    ($name:ident, |$value:ident| $text:expr) => {
        impl fmt::Display for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                let $value = self;
                out.pad(&$text)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, out)
            }
        }
        impl FromStr for $name {
            type Err = BadName;
            fn from_str(text: &str) -> Result<$name, BadName> {
                $name::parse(text)
            }
        }
        impl TryFrom<String> for $name {
            type Error = BadName;
            fn try_from(text: String) -> Result<$name, BadName> {
                $name::parse(&text)
            }
        }
        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.to_string()
            }
        }
    };
}

as_text!(MemberState, |it| it.as_str());
as_text!(FederationId, |it| it.0);
as_text!(GatewayName, |it| it.0);
as_text!(GatewayId, |it| format!("{}/{}", it.state, it.name));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_assigned_codes_are_states() {
        for good in ["FR", "DE", "FI", "CH", "GB"] {
            assert_eq!(MemberState::parse(good).map(|it| it.to_string()), Ok(good.to_owned()));
        }
        for bad in ["", "F", "fr", "Fr", "XX", "EU", "UK", "FRA", "ÄÖ", "F\u{0}"] {
            assert!(MemberState::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_gateway_has_one_spelling() {
        let federation = FederationId::parse("entente.example").expect("a name");
        let id = GatewayId::parse("FR/fr-1").expect("an id");
        let uri = id.spiffe(&federation);
        assert_eq!(uri, "spiffe://fr.entente.example/gateway/fr-1");
        assert_eq!(GatewayId::from_spiffe(&uri, &federation), Ok(id));
        for bad in [
            "spiffe://FR.entente.example/gateway/fr-1",
            "spiffe://fr.entente.example/gateway/",
            "spiffe://fr.entente.example/",
            "spiffe://fr.entente.example/gateway/fr-1/",
            "spiffe://fr.entente.example/gateway/fr-1?a=b",
            "spiffe://fr.entente.example/gateway/fr-1#a",
            "spiffe://fr.entente.example:443/gateway/fr-1",
            "spiffe://user@fr.entente.example/gateway/fr-1",
            "spiffe://fr.entente.example/gateway/fr%2d1",
            "spiffe://fr.other.example/gateway/fr-1",
            "spiffe://xx.entente.example/gateway/fr-1",
            "spiffe://a.fr.entente.example/gateway/fr-1",
            "https://fr.entente.example/gateway/fr-1",
        ] {
            assert!(GatewayId::from_spiffe(bad, &federation).is_err(), "{bad}");
        }
    }

    #[test]
    fn federations_are_dns_names_in_lower_case() {
        for bad in ["", ".", "a..b", "-a.b", "a-.b", "A.b", "a_b", "a b", "ä.b"] {
            assert!(FederationId::parse(bad).is_err(), "{bad:?}");
        }
    }
}
