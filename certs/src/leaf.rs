//! Leaves: the certificate and key with which a gateway meets others, replaced while it runs.

use std::fmt;
use std::sync::{Arc, RwLock};

use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{SignatureScheme, crypto::ring::sign::any_supported_type};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::revocation::Certificate;

/// A chain and its key that belong together.
#[derive(Clone)]
pub struct LeafIdentity(Arc<CertifiedKey>);

/// Why two texts are no identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadLeaf {
    /// No certificate in the PEM.
    #[error("there is no certificate in the PEM text")]
    Certificate,
    /// No usable private key.
    #[error("there is no usable private key in the PEM text")]
    Key,
    /// Of two pairs.
    #[error("the certificate is for another key")]
    AnotherKey,
}

impl LeafIdentity {
    /// A chain, leaf first, and its private key, both PEM.
    pub fn from_pem(cert_pem: &str, key_pem: &str) -> Result<LeafIdentity, BadLeaf> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(cert_pem.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|_| BadLeaf::Certificate)?;
        if chain.is_empty() {
            return Err(BadLeaf::Certificate);
        }
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|_| BadLeaf::Key)?;
        let key = any_supported_type(&key).map_err(|_| BadLeaf::Key)?;
        let certified = CertifiedKey::new(chain, key);
        certified.keys_match().map_err(|_| BadLeaf::AnotherKey)?;
        Ok(LeafIdentity(Arc::new(certified)))
    }
}

impl LeafIdentity {
    /// What the leaf says about itself, if it can be read.
    pub fn certificate(&self) -> Option<Certificate> {
        Certificate::read(self.leaf())
    }

    pub(crate) fn leaf(&self) -> &CertificateDer<'static> {
        self.0.cert.first().expect("invariant: an identity has a certificate")
    }
}

impl PartialEq for LeafIdentity {
    fn eq(&self, other: &LeafIdentity) -> bool {
        self.0.cert == other.0.cert
    }
}

impl fmt::Debug for LeafIdentity {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "LeafIdentity({} certificates)", self.0.cert.len())
    }
}

/// The leaf in use; connections made after a [`SharedLeaf::store`] show the new one.
#[derive(Clone, Debug)]
pub struct SharedLeaf(Arc<RwLock<Arc<LeafIdentity>>>);

impl SharedLeaf {
    /// Begins with this leaf.
    pub fn new(leaf: LeafIdentity) -> SharedLeaf {
        SharedLeaf(Arc::new(RwLock::new(Arc::new(leaf))))
    }

    /// The leaf in use.
    pub fn load(&self) -> Arc<LeafIdentity> {
        Arc::clone(&self.0.read().expect("invariant: nothing panics while it holds the leaf"))
    }

    /// Uses another one from now on.
    pub fn store(&self, leaf: Arc<LeafIdentity>) {
        *self.0.write().expect("invariant: nothing panics while it holds the leaf") = leaf;
    }
}

impl ResolvesServerCert for SharedLeaf {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.load().0))
    }
}

impl ResolvesClientCert for SharedLeaf {
    fn resolve(&self, _root_hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.load().0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}
