//! Trust: what the states' bundles say together.
//!
//! Invariants: the roots of a state vouch for gateways of that state only, and are never pooled; a signing key belongs to
//! one gateway of one state; an issuer belongs to one state.
//!
//! What a bundle says is parsed once, when it comes; a bundle that follows leaves the other states' as they are.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, OwnedCertRevocationList, RevocationOptionsBuilder,
};
use x509_parser::prelude::{ASN1Time, FromDer, X509Certificate};

use crate::bundle::TrustBundle;
use crate::keys::{KeyId, PublicKey};
use crate::leaf::LeafIdentity;
use crate::peer::{BadPeer, gateway_in};
use crate::state::{FederationId, GatewayId, GatewayName, MemberState};
use crate::token::{Issuer, IssuerSet};

/// Why bundles make no trust together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadTrust {
    /// A bundle of another federation.
    #[error("the bundle of {0} is for another federation")]
    Federation(MemberState),
    /// Two bundles of one state.
    #[error("{0} has two bundles")]
    Twice(MemberState),
    /// A CA certificate that is none: a leaf, or no certificate at all.
    #[error("a CA certificate of {0} cannot be used")]
    Ca(MemberState),
    /// Two CAs of one name. Revocation lists name their CA, so one's list would lock out whom the other vouches for.
    #[error("two CA certificates of {0} have the same subject")]
    SharedSubject(MemberState),
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
    /// A parser panicked on what the state published.
    #[error("the bundle of {0} cannot be read: a parser failed on it")]
    ParserFailed(MemberState),
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

/// Everything that says who is who. A copy shares what was parsed.
#[derive(Clone, Debug)]
pub struct TrustStore {
    federation: FederationId,
    states: BTreeMap<MemberState, Arc<StateTrust>>,
    /// Those of all states, by name.
    issuers: IssuerSet,
}

/// What one state's bundle says, as it was parsed.
#[derive(Debug)]
struct StateTrust {
    roots: Vec<TrustAnchor<'static>>,
    /// When each root counts, at the same place.
    lives: Vec<Life>,
    crls: Vec<CertRevocationList<'static>>,
    keys: BTreeMap<KeyId, (GatewayName, PublicKey)>,
    issuers: Vec<Arc<Issuer>>,
}

/// From when to when, both included.
#[derive(Clone, Copy, Debug)]
struct Life {
    not_before: UnixTime,
    not_after: UnixTime,
}

impl TrustStore {
    /// Puts the states' bundles together. The bundles were verified before; here they are held against each other.
    pub fn new(
        federation: FederationId,
        bundles: impl IntoIterator<Item = TrustBundle>,
    ) -> Result<TrustStore, BadTrust> {
        let mut store = TrustStore { federation, states: BTreeMap::new(), issuers: IssuerSet::default() };
        for bundle in bundles {
            store.add(&bundle)?;
        }
        Ok(store)
    }

    /// The same with this bundle instead of what its state said before; nothing else is parsed again.
    pub fn with(&self, bundle: &TrustBundle) -> Result<TrustStore, BadTrust> {
        let mut store = self.clone();
        if store.states.remove(&bundle.state).is_some() {
            store.issuers.remove_all_of(bundle.state);
        }
        store.add(bundle)?;
        Ok(store)
    }

    /// Holds a bundle against those that are there.
    fn add(&mut self, bundle: &TrustBundle) -> Result<(), BadTrust> {
        let state = bundle.state;
        if bundle.federation != self.federation {
            return Err(BadTrust::Federation(state));
        }
        if self.states.contains_key(&state) {
            return Err(BadTrust::Twice(state));
        }
        let trust = guarded(state, || StateTrust::read(bundle))?;
        let shares_a_key = |(_, other): &(_, &Arc<StateTrust>)| trust.keys.keys().any(|id| other.keys.contains_key(id));
        if let Some((other, _)) = self.states.iter().find(shares_a_key) {
            return Err(BadTrust::SharedKey(*other, state));
        }
        for issuer in &trust.issuers {
            self.issuers.add(Arc::clone(issuer))?;
        }
        self.states.insert(state, Arc::new(trust));
        Ok(())
    }

    /// The federation that this is about.
    pub fn federation(&self) -> &FederationId {
        &self.federation
    }

    /// Whose signing key this is within a state, and the key.
    pub fn gateway_key(&self, state: MemberState, id: &KeyId) -> Option<(&GatewayName, &PublicKey)> {
        self.states.get(&state)?.keys.get(id).map(|(name, key)| (name, key))
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
        let path = leaf
            .verify_for_usage(webpki::ALL_VERIFICATION_ALGS, &trust.roots, intermediates, now, usage, revocation, None)
            .map_err(broken)?;
        // The library takes an anchor to count for ever.
        trust.life_of(path.anchor()).holds_at(now).map_err(broken)?;
        Ok(gateway)
    }

    /// Why no gateway would let in one that shows this leaf, if that is so.
    pub fn refuses(&self, leaf: &LeafIdentity, now_s: u64) -> Option<String> {
        let now = UnixTime::since_unix_epoch(Duration::from_secs(now_s));
        match self.verify_gateway(leaf.leaf(), &[], End::Client, now) {
            Ok(gateway) if self.names(&gateway) => None,
            Ok(gateway) => Some(Untrusted::NotNamed(gateway.state).to_string()),
            Err(Untrusted::Chain { state, cause }) => Some(match cause {
                webpki::Error::CertRevoked => format!("{state} has revoked it"),
                webpki::Error::CertExpired { .. } => "it, or the authority that issued it, has expired".into(),
                webpki::Error::CrlExpired { .. } => format!("a revocation list of {state} is over"),
                webpki::Error::UnknownRevocationStatus => {
                    format!("{state} has revocation lists, but none of its authority")
                }
                cause => Untrusted::Chain { state, cause }.to_string(),
            }),
            Err(other) => Some(other.to_string()),
        }
    }

    /// Whether the state still names this gateway; one that it dropped is evicted.
    pub fn names(&self, gateway: &GatewayId) -> bool {
        let trust = self.states.get(&gateway.state);
        trust.is_some_and(|it| it.keys.values().any(|(name, _)| *name == gateway.name))
    }
}

impl StateTrust {
    fn read(bundle: &TrustBundle) -> Result<StateTrust, BadTrust> {
        let state = bundle.state;
        let crl = |der: &Vec<u8>| {
            let crl = OwnedCertRevocationList::from_der(der).map_err(|_| BadTrust::Crl(state))?;
            Ok(CertRevocationList::from(crl))
        };
        let (mut roots, mut lives) = (Vec::<TrustAnchor<'static>>::new(), vec![]);
        for der in &bundle.ca_certs_der {
            let (root, life) = read_root(der).ok_or(BadTrust::Ca(state))?;
            if roots.iter().any(|other| other.subject == root.subject) {
                return Err(BadTrust::SharedSubject(state));
            }
            roots.push(root);
            lives.push(life);
        }
        let mut keys = BTreeMap::new();
        for gateway in &bundle.gateways {
            if keys.insert(gateway.key.id(), (gateway.name.clone(), gateway.key)).is_some() {
                return Err(BadTrust::SharedKey(state, state));
            }
        }
        Ok(StateTrust {
            roots,
            lives,
            crls: bundle.crls_der.iter().map(crl).collect::<Result<_, _>>()?,
            keys,
            issuers: bundle.issuers.iter().map(|it| Issuer::read(state, it).map(Arc::new)).collect::<Result<_, _>>()?,
        })
    }

    fn life_of(&self, anchor: &TrustAnchor<'_>) -> Life {
        let place = self.roots.iter().position(|root| root == anchor);
        self.lives[place.expect("invariant: a path ends at one of the roots that it was looked for from")]
    }
}

impl Life {
    fn holds_at(self, now: UnixTime) -> Result<(), webpki::Error> {
        let Life { not_before, not_after } = self;
        if now < not_before {
            Err(webpki::Error::CertNotValidYet { time: now, not_before })
        } else if now > not_after {
            Err(webpki::Error::CertExpired { time: now, not_after })
        } else {
            Ok(())
        }
    }
}

/// A certificate that may vouch for others. The library that builds chains takes every certificate for an anchor, whatever
/// it says about itself: even a gateway's leaf.
fn read_root(der: &[u8]) -> Option<(TrustAnchor<'static>, Life)> {
    let (rest, certificate) = X509Certificate::from_der(der).ok()?;
    let is_ca = certificate.basic_constraints().ok()?.is_some_and(|it| it.value.ca);
    if !is_ca || !rest.is_empty() {
        return None;
    }
    let validity = certificate.validity();
    let life = Life { not_before: moment(&validity.not_before)?, not_after: moment(&validity.not_after)? };
    let anchor = webpki::anchor_from_trusted_cert(&CertificateDer::from(der)).ok()?.to_owned();
    Some((anchor, life))
}

fn moment(time: &ASN1Time) -> Option<UnixTime> {
    u64::try_from(time.timestamp()).ok().map(|unix_s| UnixTime::since_unix_epoch(Duration::from_secs(unix_s)))
}

/// Reads what another state published. It is read where a command is applied, so a parser that panicked on it would stop
/// every replica, and again at each start. Its panic is a refusal instead: the same bytes give the same one everywhere.
/// Nothing outlives the panic half-done, because reading changes nothing.
fn guarded<T>(state: MemberState, read: impl FnOnce() -> Result<T, BadTrust>) -> Result<T, BadTrust> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or(Err(BadTrust::ParserFailed(state)))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::{Assurance, GatewayKey, IssuerEntry};
    use crate::issue::StateCa;
    use crate::keys::SigningKey;
    use crate::token::TokenIssuer;

    fn bundle(code: &str, root: u8, keys: &[u8]) -> TrustBundle {
        let (federation, state) = (FederationId::parse("entente.example").unwrap(), MemberState::parse(code).unwrap());
        let gateway = |seed: &u8| {
            let (name, key) = (GatewayName::parse(&format!("it-{seed}")).unwrap(), SigningKey::from_seed([*seed; 32]));
            let proof = crate::gateway_key_proof(&federation, state, &name, &key);
            GatewayKey { name, key: key.public(), proof }
        };
        let pem = SigningKey::from_seed([root; 32]).to_pkcs8_pem();
        let provider = TokenIssuer::from_pkcs8_pem(&format!("https://{root}.example"), "1", &pem).unwrap();
        TrustBundle {
            federation: federation.clone(),
            state,
            sequence: 1,
            previous: None,
            root_key: SigningKey::from_seed([root; 32]).public(),
            ca_certs_der: vec![StateCa::create(state, &federation, 1_900_000_000, 1).unwrap().cert_der().unwrap()],
            gateways: keys.iter().map(gateway).collect(),
            issuers: vec![IssuerEntry {
                issuer: provider.issuer().to_owned(),
                jwks_json: provider.jwks_json(),
                entitlements: vec![],
                assurance_max: Assurance::Low,
                clearances: vec![],
                residencies: vec![],
            }],
            crls_der: vec![],
        }
    }

    #[test]
    fn a_bundle_replaces_its_states_and_leaves_the_others_as_they_were_parsed() {
        let (fr, de, next) = (bundle("FR", 1, &[11, 12]), bundle("DE", 2, &[21]), bundle("FR", 3, &[12, 13]));
        let before = TrustStore::new(fr.federation.clone(), [fr.clone(), de.clone()]).unwrap();
        let after = before.with(&next).unwrap();
        assert!(Arc::ptr_eq(&before.states[&de.state], &after.states[&de.state]), "not parsed again");
        assert!(!Arc::ptr_eq(&before.states[&fr.state], &after.states[&fr.state]));
        let id = |seed: u8| SigningKey::from_seed([seed; 32]).public().id();
        let known = |it: &TrustStore| [11, 12, 13].map(|seed| it.gateway_key(fr.state, &id(seed)).is_some());
        assert_eq!((known(&before), known(&after)), ([true, true, false], [false, true, true]));
        assert!(after.gateway_key(de.state, &id(21)).is_some());

        let anew = TrustStore::new(fr.federation.clone(), [next.clone(), de.clone()]).unwrap();
        assert_eq!(after.issuers().urls(), anew.issuers().urls());
        assert_eq!(after.issuers().urls(), ["https://2.example", "https://3.example"]);
        assert!(anew.with(&fr).unwrap().with(&next).is_ok(), "nothing of a replaced bundle stands in the way");
    }

    #[test]
    fn a_bundle_that_collides_with_anothers_changes_nothing() {
        let (fr, de) = (bundle("FR", 1, &[11]), bundle("DE", 2, &[21]));
        let store = TrustStore::new(fr.federation.clone(), [fr.clone(), de.clone()]).unwrap();
        let refused = |bundle: &TrustBundle| store.with(bundle).map(drop);
        assert_eq!(refused(&bundle("FR", 3, &[21])), Err(BadTrust::SharedKey(de.state, fr.state)));
        assert_eq!(refused(&bundle("FR", 2, &[11])), Err(BadTrust::SharedIssuer(de.state, fr.state)));
        let federation = FederationId::parse("other.example").unwrap();
        assert_eq!(refused(&TrustBundle { federation, ..fr.clone() }), Err(BadTrust::Federation(fr.state)));
        assert_eq!(refused(&TrustBundle { crls_der: vec![vec![0]], ..fr.clone() }), Err(BadTrust::Crl(fr.state)));
        assert_eq!(store.issuers().urls(), ["https://1.example", "https://2.example"]);
        assert_eq!(
            TrustStore::new(fr.federation.clone(), [fr.clone(), fr.clone()]).map(drop),
            Err(BadTrust::Twice(fr.state))
        );
    }

    #[test]
    fn a_parser_that_panics_is_a_refusal() {
        let france = MemberState::parse("FR").unwrap();
        let panics = || -> Result<(), BadTrust> { panic!("index out of bounds") };
        assert_eq!(guarded(france, panics), Err(BadTrust::ParserFailed(france)));
        assert_eq!(guarded(france, || Ok(1)), Ok(1));
        assert_eq!(guarded::<()>(france, || Err(BadTrust::Crl(france))), Err(BadTrust::Crl(france)));
    }
}
