//! Expiry: what makes others refuse this gateway, now or soon, said while there is time to mend it. In the log when it begins
//! and once a day, and in `/v1/health` as long as it is so.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use certs::{Certificate, LeafIdentity, RevocationList, TrustBundle, TrustStore};

use crate::authority::date;
use crate::leaves::Leaves;

const DAY_S: u64 = 86_400;
/// An end is announced when a third of a life is left, and no earlier than this.
pub const ANNOUNCED_MAX_S: u64 = 30 * DAY_S;
/// How often the log repeats what is still so.
const REPEAT: Duration = Duration::from_secs(DAY_S);

/// What this gateway's operator has to know; cheap to clone, and all clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Warnings(Arc<Mutex<BTreeMap<String, Instant>>>);

impl Warnings {
    /// What is so now.
    pub fn read(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    /// This is so now, and nothing else; what is new goes to the log.
    pub fn set(&self, now: Vec<String>) {
        let mut known = self.lock();
        known.retain(|warning, said| now.contains(warning) && said.elapsed() < REPEAT);
        for warning in now {
            known.entry(warning).or_insert_with_key(|warning| {
                tracing::warn!(warning, "certificates need attention");
                Instant::now()
            });
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Instant>> {
        self.0.lock().expect("invariant: nothing panics while it holds the warnings")
    }
}

/// What is wrong with this gateway's certificates and its state's newest bundle, or soon will be.
pub fn what_ends(leaves: &Leaves, trust: &TrustStore, bundle: &TrustBundle, now_s: u64) -> Vec<String> {
    let (peer, public) = (leaves.peer.shown.load(), leaves.public.shown.load());
    let mut all = of_leaves(&peer, &public, trust, now_s);
    all.extend(of_bundle(bundle, now_s));
    all
}

fn of_leaves(peer: &LeafIdentity, public: &LeafIdentity, trust: &TrustStore, now_s: u64) -> Vec<String> {
    let ends = |what: &str, leaf: &LeafIdentity| {
        let it = leaf.certificate()?;
        let soon = ends_soon(it.begins_s, it.ends_s, now_s);
        soon.then(|| format!("the {what} certificate {} ends on {}: renew it", it.serial, date(it.ends_s)))
    };
    let peer = match trust.refuses(peer, now_s) {
        Some(why) => Some(format!("no other gateway lets this one in with its peer certificate: {why}; renew it")),
        None => ends("peer", peer),
    };
    peer.into_iter().chain(ends("public", public)).collect()
}

/// A list that ends with its authority has nothing to say of its own.
fn of_bundle(bundle: &TrustBundle, now_s: u64) -> Vec<String> {
    let state = bundle.state;
    let authorities: Vec<_> = bundle.ca_certs_der.iter().filter_map(|it| Certificate::read(it)).collect();
    let mut all = vec![];
    for it in authorities.iter().filter(|it| ends_soon(it.begins_s, it.ends_s, now_s)) {
        all.push(format!("the certificate authority {} of {state} ends on {}", it.name, date(it.ends_s)));
    }
    for list in bundle.crls_der.iter().filter_map(|it| RevocationList::read(it)) {
        let Some(ends_s) = list.ends_s else { continue };
        let outlives = authorities.iter().any(|it| it.name == list.authority && it.ends_s <= ends_s);
        if !outlives && ends_soon(list.begins_s, ends_s, now_s) {
            all.push(format!(
                "the revocation list of {} ends on {}, and then no gateway of {state} is let in anywhere: publish a bundle \
                 with a newer one before",
                list.authority,
                date(ends_s)
            ));
        }
    }
    all
}

/// Also what has ended already.
fn ends_soon(begins_s: u64, ends_s: u64, now_s: u64) -> bool {
    let announced_s = (ends_s.saturating_sub(begins_s) / 3).min(ANNOUNCED_MAX_S);
    now_s.saturating_add(announced_s) >= ends_s
}

#[cfg(test)]
mod tests {
    use certs::{FederationId, GatewayId, GatewayKey, IssuedLeaf, MemberState, Revoked, SigningKey, StateCa};

    use super::*;

    const NOW_S: u64 = 1_900_000_000;
    const HOUR_S: u64 = 3_600;

    struct France {
        ca: StateCa,
        bundle: TrustBundle,
    }

    /// An authority of 30 days, of which `gone_days` are over, and a bundle that names fr-1.
    fn france(gone_days: u64) -> France {
        let federation = FederationId::parse("entente.example").expect("a name");
        let state = MemberState::parse("FR").expect("a state");
        let ca = StateCa::create(state, &federation, NOW_S - gone_days * DAY_S, 30).expect("an authority");
        let (name, key) = (id().name, SigningKey::from_seed([7; 32]));
        let proof = certs::gateway_key_proof(&federation, state, &name, &key);
        let bundle = TrustBundle {
            federation,
            state,
            sequence: 1,
            previous: None,
            root_key: SigningKey::from_seed([1; 32]).public(),
            ca_certs_der: vec![ca.cert_der().expect("a certificate")],
            gateways: vec![GatewayKey { name, key: key.public(), proof }],
            issuers: vec![],
            crls_der: vec![],
        };
        France { ca, bundle }
    }

    fn id() -> GatewayId {
        GatewayId::parse("FR/fr-1").expect("an id")
    }

    fn identity(leaf: &IssuedLeaf) -> LeafIdentity {
        LeafIdentity::from_pem(&leaf.cert_pem, &leaf.key_pem).expect("a leaf")
    }

    /// What is said of leaves of these hours, and of the bundle.
    fn said(it: &France, peer_hours: u32, public_hours: u32, now_s: u64) -> Vec<String> {
        let peer = identity(&it.ca.issue_gateway(&id(), NOW_S, peer_hours).expect("a leaf"));
        let public = identity(&it.ca.issue_public(&["localhost".into()], NOW_S, public_hours).expect("a leaf"));
        let trust = TrustStore::new(it.bundle.federation.clone(), [it.bundle.clone()]).expect("a trust store");
        [of_leaves(&peer, &public, &trust, now_s), of_bundle(&it.bundle, now_s)].concat()
    }

    #[track_caller]
    fn check(said: &[String], expected: &[&str]) {
        assert_eq!(said.len(), expected.len(), "{said:?}");
        for (said, expected) in said.iter().zip(expected) {
            assert!(said.contains(expected), "{said:?} does not contain {expected:?}");
        }
    }

    #[test]
    fn an_end_is_announced_when_a_third_of_a_life_is_left() {
        let it = france(0);
        check(&said(&it, 24, 24, NOW_S), &[]);
        check(&said(&it, 24, 24, NOW_S + 15 * HOUR_S), &[]);
        check(&said(&it, 24, 24, NOW_S + 16 * HOUR_S), &["the peer certificate", "the public certificate"]);
        check(&said(&it, 24, 48, NOW_S + 16 * HOUR_S), &["the peer certificate"]);
        check(&said(&it, 12, 48, NOW_S + 13 * HOUR_S), &["no other gateway lets this one in"]);
        check(&said(&france(19), 24, 24, NOW_S), &[]);
        check(&said(&france(20), 24, 24, NOW_S), &["the certificate authority Entente CA of FR"]);
        // Of ten years only the last month.
        let life_s = 3_650 * DAY_S;
        assert!(!ends_soon(0, life_s, life_s - 31 * DAY_S) && ends_soon(0, life_s, life_s - 30 * DAY_S));
    }

    #[test]
    fn a_certificate_that_is_revoked_is_said_by_the_gateway_that_shows_it() {
        let mut it = france(0);
        let peer = it.ca.issue_gateway(&id(), NOW_S, 24).expect("a leaf");
        let public = identity(&it.ca.issue_public(&["localhost".into()], NOW_S, 24).expect("a leaf"));
        let serial = identity(&peer).certificate().expect("a certificate").serial;
        let list = it.ca.revocation_list(2, &[Revoked { serial, at_s: NOW_S }], NOW_S).expect("a list");
        it.bundle.crls_der = vec![list];
        let trust = TrustStore::new(it.bundle.federation.clone(), [it.bundle.clone()]).expect("a trust store");
        check(&of_leaves(&identity(&peer), &public, &trust, NOW_S), &["FR has revoked it; renew it"]);
        // The list of this authority ends with it, and so is never the first to be announced.
        check(&of_bundle(&it.bundle, NOW_S + 29 * DAY_S), &["the certificate authority"]);
        check(&said(&it, 24, 24, NOW_S), &[]);
    }

    /// One that another tool has made.
    #[test]
    fn a_list_that_ends_before_its_authority_is_announced() {
        let mut it = france(0);
        let TrustBundle { federation, state, .. } = it.bundle.clone();
        let made = StateCa::create(state, &federation, NOW_S, 3).expect("an authority");
        it.bundle.crls_der = vec![made.revocation_list(1, &[], NOW_S).expect("a list")];
        check(&of_bundle(&it.bundle, NOW_S + DAY_S), &[]);
        let announced = of_bundle(&it.bundle, NOW_S + 2 * DAY_S);
        check(&announced, &["and then no gateway of FR is let in anywhere"]);
    }

    #[test]
    fn what_is_so_is_said_once_and_gone_when_it_is_mended() {
        let warnings = Warnings::default();
        let said = |warnings: &Warnings| warnings.lock().clone();
        warnings.set(vec!["a".into(), "b".into()]);
        let first = said(&warnings);
        warnings.set(vec!["b".into(), "c".into()]);
        assert_eq!(warnings.read(), ["b", "c"]);
        assert_eq!(said(&warnings)["b"], first["b"], "not said again");
        warnings.set(vec![]);
        assert_eq!(warnings.read(), [""; 0]);
    }
}
