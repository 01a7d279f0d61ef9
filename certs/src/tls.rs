//! TLS: 1.3 only, with an explicit provider, and for peers the federation's own idea of who may speak.
//!
//! Invariants: a peer session is never resumed, because a resumed one would not be verified again; a client reaches the
//! gateway that it dialled or nobody; proof of possession is always checked.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    ServerConfig, SignatureScheme,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::leaf::SharedLeaf;
use crate::state::GatewayId;
use crate::trust::{End, SharedTrust, Untrusted};

/// Peers speak HTTP/2 and nothing else.
const PEER_ALPN: &[&[u8]] = &[b"h2"];
/// Public faces speak both.
const PUBLIC_ALPN: &[&[u8]] = &[b"h2", b"http/1.1"];
/// A chain of ours has one certificate.
const INTERMEDIATES_MAX: usize = 4;

/// The text holds no certificate authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no certificate authority in the PEM text")]
pub struct BadCa;

/// For the peer face: only gateways of this federation get in, and no session is resumed.
pub fn peer_server_config(trust: SharedTrust, leaf: SharedLeaf) -> Arc<ServerConfig> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect(SPEAKS_TLS13)
        .with_client_cert_verifier(Arc::new(PeerVerifier { trust, dialled: None }))
        .with_cert_resolver(Arc::new(leaf));
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.alpn_protocols = protocols(PEER_ALPN);
    Arc::new(config)
}

/// For calling a peer: shows our leaf and accepts the dialled gateway only.
pub fn peer_client_config(trust: SharedTrust, leaf: SharedLeaf, dialled: GatewayId) -> Arc<ClientConfig> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect(SPEAKS_TLS13)
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PeerVerifier { trust, dialled: Some(dialled) }))
        .with_client_cert_resolver(Arc::new(leaf));
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    // The peer is known by its SPIFFE URI; its DNS name is nobody's business.
    config.enable_sni = false;
    config.alpn_protocols = protocols(PEER_ALPN);
    Arc::new(config)
}

/// For the public face: people show tokens, not certificates.
pub fn public_server_config(leaf: SharedLeaf) -> Arc<ServerConfig> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect(SPEAKS_TLS13)
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(leaf));
    config.max_early_data_size = 0;
    config.alpn_protocols = protocols(PUBLIC_ALPN);
    Arc::new(config)
}

/// For calling a public face whose CA is at hand. The protocol is for the caller to offer.
pub fn public_client_config(ca_pem: &str) -> Result<Arc<ClientConfig>, BadCa> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        roots.add(certificate.map_err(|_| BadCa)?).map_err(|_| BadCa)?;
    }
    if roots.is_empty() {
        return Err(BadCa);
    }
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect(SPEAKS_TLS13)
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

const SPEAKS_TLS13: &str = "invariant: the provider speaks TLS 1.3";

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn protocols(names: &[&[u8]]) -> Vec<Vec<u8>> {
    names.iter().map(|name| name.to_vec()).collect()
}

/// Verifies the other gateway, at either end.
#[derive(Debug)]
struct PeerVerifier {
    trust: SharedTrust,
    /// Whom the client meant to reach.
    dialled: Option<GatewayId>,
}

impl PeerVerifier {
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        end: End,
        now: UnixTime,
    ) -> Result<(), Error> {
        if intermediates.len() > INTERMEDIATES_MAX {
            return Err(Error::InvalidCertificate(CertificateError::BadEncoding));
        }
        let trust = self.trust.load();
        let found = trust.verify_gateway(leaf, intermediates, end, now).map_err(refusal)?;
        match &self.dialled {
            Some(expected) if found != *expected => {
                Err(refusal(Untrusted::AnotherGateway { found, expected: expected.clone() }))
            }
            _ if !trust.names(&found) => Err(refusal(Untrusted::NotNamed(found.state))),
            _ => Ok(()),
        }
    }

    fn algorithms() -> WebPkiSupportedAlgorithms {
        rustls::crypto::ring::default_provider().signature_verification_algorithms
    }
}

/// The reason, in our words where the other end cannot help it. That a certificate is over or taken back is said in TLS's
/// words, because each kind has an alert of its own: the other end's log then tells its operator what to renew.
fn refusal(untrusted: Untrusted) -> Error {
    let reason = match untrusted {
        Untrusted::Chain { cause: webpki::Error::CertExpired { time, not_after }, .. } => {
            CertificateError::ExpiredContext { time, not_after }
        }
        Untrusted::Chain { cause: webpki::Error::CertNotValidYet { time, not_before }, .. } => {
            CertificateError::NotValidYetContext { time, not_before }
        }
        Untrusted::Chain { cause: webpki::Error::CertRevoked, .. } => CertificateError::Revoked,
        other => CertificateError::Other(OtherError(Arc::new(other))),
    };
    Error::InvalidCertificate(reason)
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(leaf, intermediates, End::Server, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is never spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &PeerVerifier::algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        PeerVerifier::algorithms().supported_schemes()
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(leaf, intermediates, End::Client, now).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls12_signature(self, message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls13_signature(self, message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        PeerVerifier::algorithms().supported_schemes()
    }
}
