//! Trust: what the states' bundles say together.
//!
//! Invariants: the roots of a state vouch for gateways of that state only, and are never pooled; a signing key belongs to
//! one gateway of one state; an issuer belongs to one state.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, RwLock};

use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, OwnedCertRevocationList, RevocationOptionsBuilder,
};

use crate::bundle::TrustBundle;
use crate::keys::{KeyId, PublicKey};
use crate::peer::{BadPeer, gateway_in};
use crate::state::{FederationId, GatewayId, GatewayName, MemberState};
use crate::token::IssuerSet;

/// Why bundles make no trust together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadTrust {
    /// A bundle of another federation.
    #[error("the bundle of {0} is for another federation")]
    Federation(MemberState),
    /// Two bundles of one state.
    #[error("{0} has two bundles")]
    Twice(MemberState),
    /// A CA certificate that is none.
    #[error("a CA certificate of {0} cannot be used")]
    Ca(MemberState),
    /// A revocation list that is none.
    #[error("a revocation list of {0} cannot be read")]
    Crl(MemberState),
    /// Two gateways with one key.
    #[error("{0} and {1} have a signing key in common")]
    SharedKey(MemberState, MemberState),
    /// Two states with one issuer.
    #[error("{0} and {1} claim the same issuer")]
    SharedIssuer(MemberState, MemberState),
    /// An issuer's entry that cannot be used.
    #[error("an issuer of {state} cannot be used: {reason}")]
    Issuer {
        /// Whose.
        state: MemberState,
        /// In words.
        reason: String,
    },
}

/// Which end of a connection the certificate is shown by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Server,
    Client,
}

/// Why a certificate is not believed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Untrusted {
    #[error(transparent)]
    Peer(#[from] BadPeer),
    #[error("the certificate is for another federation")]
    Federation,
    #[error("{0} is no member of this federation")]
    NoMember(MemberState),
    #[error("this is {found}, not {expected}")]
    AnotherGateway { found: GatewayId, expected: GatewayId },
    #[error("{0} names no such gateway in its bundle")]
    NotNamed(MemberState),
    #[error("the chain of {state} does not hold: {cause}")]
    Chain { state: MemberState, cause: webpki::Error },
}

/// Everything that says who is who.
#[derive(Debug)]
pub struct TrustStore {
    federation: FederationId,
    states: BTreeMap<MemberState, StateTrust>,
    keys: HashMap<(MemberState, KeyId), (GatewayName, PublicKey)>,
    issuers: IssuerSet,
}

#[derive(Debug)]
struct StateTrust {
    roots: Vec<TrustAnchor<'static>>,
    crls: Vec<CertRevocationList<'static>>,
}

impl TrustStore {
    /// Puts the states' bundles together. The bundles were verified before; here they are held against each other.
    pub fn new(
        federation: FederationId,
        bundles: impl IntoIterator<Item = TrustBundle>,
    ) -> Result<TrustStore, BadTrust> {
        let mut store =
            TrustStore { federation, states: BTreeMap::new(), keys: HashMap::new(), issuers: IssuerSet::default() };
        let mut owners: HashMap<KeyId, MemberState> = HashMap::new();
        for bundle in bundles {
            let state = bundle.state;
            if bundle.federation != store.federation {
                return Err(BadTrust::Federation(state));
            }
            if store.states.insert(state, StateTrust::read(&bundle)?).is_some() {
                return Err(BadTrust::Twice(state));
            }
            for gateway in bundle.gateways {
                let id = gateway.key.id();
                if let Some(other) = owners.insert(id, state) {
                    return Err(BadTrust::SharedKey(other, state));
                }
                store.keys.insert((state, id), (gateway.name, gateway.key));
            }
            for issuer in &bundle.issuers {
                store.issuers.add(state, issuer)?;
            }
        }
        Ok(store)
    }

    /// The federation that this is about.
    pub fn federation(&self) -> &FederationId {
        &self.federation
    }

    /// Whose signing key this is within a state, and the key.
    pub fn gateway_key(&self, state: MemberState, id: &KeyId) -> Option<(&GatewayName, &PublicKey)> {
        self.keys.get(&(state, *id)).map(|(name, key)| (name, key))
    }

    /// Everybody whose tokens count.
    pub fn issuers(&self) -> &IssuerSet {
        &self.issuers
    }

    /// The gateway that a chain speaks for: the roots are those of the state that it names, and no others.
    pub(crate) fn verify_gateway(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        end: End,
        now: UnixTime,
    ) -> Result<GatewayId, Untrusted> {
        let (gateway, federation) = gateway_in(leaf)?;
        if federation != self.federation {
            return Err(Untrusted::Federation);
        }
        let state = gateway.state;
        let trust = self.states.get(&state).ok_or(Untrusted::NoMember(state))?;
        let broken = |cause| Untrusted::Chain { state, cause };
        let leaf = EndEntityCert::try_from(leaf).map_err(broken)?;
        let usage = match end {
            End::Server => KeyUsage::server_auth(),
            End::Client => KeyUsage::client_auth(),
        };
        let crls: Vec<_> = trust.crls.iter().collect();
        let revocation = RevocationOptionsBuilder::new(&crls)
            .ok()
            .map(|it| it.with_expiration_policy(ExpirationPolicy::Enforce).build());
        leaf.verify_for_usage(webpki::ALL_VERIFICATION_ALGS, &trust.roots, intermediates, now, usage, revocation, None)
            .map_err(broken)?;
        Ok(gateway)
    }

    /// Whether the state still names this gateway; one that it dropped is evicted.
    pub fn names(&self, gateway: &GatewayId) -> bool {
        self.keys.iter().any(|((state, _), (name, _))| *state == gateway.state && *name == gateway.name)
    }
}

impl StateTrust {
    fn read(bundle: &TrustBundle) -> Result<StateTrust, BadTrust> {
        let state = bundle.state;
        let root = |der: &Vec<u8>| {
            let der = CertificateDer::from(der.as_slice());
            let anchor = webpki::anchor_from_trusted_cert(&der).map_err(|_| BadTrust::Ca(state))?;
            Ok(anchor.to_owned())
        };
        let crl = |der: &Vec<u8>| {
            let crl = OwnedCertRevocationList::from_der(der).map_err(|_| BadTrust::Crl(state))?;
            Ok(CertRevocationList::from(crl))
        };
        Ok(StateTrust {
            roots: bundle.ca_certs_der.iter().map(root).collect::<Result<_, _>>()?,
            crls: bundle.crls_der.iter().map(crl).collect::<Result<_, _>>()?,
        })
    }
}

/// The trust in force; what is verified after a [`SharedTrust::store`] is verified with the new one.
#[derive(Clone, Debug)]
pub struct SharedTrust(Arc<RwLock<Arc<TrustStore>>>);

impl SharedTrust {
    /// Begins with this trust.
    pub fn new(trust: impl Into<Arc<TrustStore>>) -> SharedTrust {
        SharedTrust(Arc::new(RwLock::new(trust.into())))
    }

    /// The trust in force.
    pub fn load(&self) -> Arc<TrustStore> {
        Arc::clone(&self.0.read().expect("invariant: nothing panics while it holds the trust"))
    }

    /// Another one is in force from now on.
    pub fn store(&self, trust: Arc<TrustStore>) {
        *self.0.write().expect("invariant: nothing panics while it holds the trust") = trust;
    }
}
