//! Peers: which gateway a certificate speaks for. One strict profile, for both ends of a connection.
//!
//! Invariant: exactly one subject alternative name, a SPIFFE URI of a gateway, in a leaf that may be used for what it is
//! used for, and that lives no longer than a leaf may. The library that builds the chain skips names that it cannot read; here they are counted.

use rustls_pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::issue::LEAF_LIFE_MAX_S;
use crate::state::{FederationId, GatewayId};

/// A leaf of ours has about 700 bytes.
const LEAF_BYTES_MAX: usize = 8 * 1024;

/// Why a certificate speaks for no gateway.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPeer {
    /// No certificate came.
    #[error("the peer showed no certificate")]
    None,
    /// Not X.509, or too large.
    #[error("the peer's certificate cannot be read")]
    Unreadable,
    /// Not exactly one URI.
    #[error("the peer's certificate must have one SPIFFE URI as its only alternative name")]
    Names,
    /// The URI is not a gateway's.
    #[error("the peer's certificate names {0:?}, which is no gateway")]
    NotAGateway(String),
    /// A certificate authority, or one without the right usages.
    #[error("the peer's certificate is not a leaf for TLS servers and clients")]
    Usage,
    /// One that lives longer would have to be revoked when it is lost.
    #[error("the peer's certificate lives longer than {} days", LEAF_LIFE_MAX_S / 86_400)]
    Life,
}

/// The gateway that a verified connection's certificates speak for.
pub fn peer_of(certificates: &[CertificateDer<'_>]) -> Result<GatewayId, BadPeer> {
    let leaf = certificates.first().ok_or(BadPeer::None)?;
    let (gateway, _) = gateway_in(leaf)?;
    Ok(gateway)
}

/// The gateway that a leaf names, and its federation; says nothing about who issued it.
pub(crate) fn gateway_in(leaf: &CertificateDer<'_>) -> Result<(GatewayId, FederationId), BadPeer> {
    if leaf.len() > LEAF_BYTES_MAX {
        return Err(BadPeer::Unreadable);
    }
    let (rest, leaf) = X509Certificate::from_der(leaf).map_err(|_| BadPeer::Unreadable)?;
    if !rest.is_empty() {
        return Err(BadPeer::Unreadable);
    }
    check_usage(&leaf)?;
    let validity = leaf.validity();
    let life_s = validity.not_after.timestamp().saturating_sub(validity.not_before.timestamp());
    // Whether it has begun and is not over is for the library that builds the chain.
    if life_s > LEAF_LIFE_MAX_S as i64 {
        return Err(BadPeer::Life);
    }
    let names = leaf.subject_alternative_name().map_err(|_| BadPeer::Names)?.ok_or(BadPeer::Names)?;
    let [GeneralName::URI(uri)] = names.value.general_names[..] else {
        return Err(BadPeer::Names);
    };
    let bad = || BadPeer::NotAGateway(uri.chars().take(120).collect());
    let domain = uri.strip_prefix("spiffe://").and_then(|rest| rest.split('/').next()).ok_or_else(bad)?;
    let (_, federation) = domain.split_once('.').ok_or_else(bad)?;
    let federation = FederationId::parse(federation).map_err(|_| bad())?;
    let gateway = GatewayId::from_spiffe(uri, &federation).map_err(|_| bad())?;
    Ok((gateway, federation))
}

fn check_usage(leaf: &X509Certificate<'_>) -> Result<(), BadPeer> {
    let basic = leaf.basic_constraints().map_err(|_| BadPeer::Usage)?;
    let extended = leaf.extended_key_usage().map_err(|_| BadPeer::Usage)?.ok_or(BadPeer::Usage)?;
    let is_ca = basic.is_some_and(|it| it.value.ca);
    let usages = extended.value;
    let for_both = usages.server_auth && usages.client_auth && !usages.any;
    if is_ca || !for_both { Err(BadPeer::Usage) } else { Ok(()) }
}
