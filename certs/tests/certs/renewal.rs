//! Renewal: leaves and trust that are replaced while a gateway runs, and count from the next connection on.

use std::sync::Arc;

use certs::{
    BadLeaf, BadTrust, CannotIssue, LeafIdentity, StateCa, TrustBundle, TrustStore, peer_client_config,
    peer_server_config,
};
use rcgen::{CertificateParams, DnType, KeyPair};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::states::{NOW, State, Two, federation, gateway, state, trust_store};
use crate::wire::{Refused, client_at, handshake, server_at};

/// A new leaf of this gateway, and its certificate as the other end sees it.
fn renew(state: &State, id: &str) -> (Arc<LeafIdentity>, CertificateDer<'static>) {
    let leaf = state.issue(id);
    let shown = CertificateDer::from_pem_slice(leaf.cert_pem.as_bytes()).unwrap();
    (Arc::new(LeafIdentity::from_pem(&leaf.cert_pem, &leaf.key_pem).unwrap()), shown)
}

#[test]
fn a_renewed_leaf_is_shown_to_the_next_connection() {
    let cast = Two::new();
    let (fr, de) = (cast.fr.leaf("FR/fr-1"), cast.de.leaf("DE/de-1"));
    let client = peer_client_config(cast.trust.clone(), fr.clone(), gateway("DE/de-1"));
    let client = client_at(NOW, client, |_| ());
    let server = server_at(NOW, peer_server_config(cast.trust.clone(), de.clone()), |_| ());
    let before = handshake(&client, &server).unwrap();
    for _ in 0..2 {
        let ((fr_next, fr_shown), (de_next, de_shown)) = (renew(&cast.fr, "FR/fr-1"), renew(&cast.de, "DE/de-1"));
        fr.store(fr_next.clone());
        de.store(de_next);
        assert_eq!(fr.load(), fr_next);
        let met = handshake(&client, &server).unwrap();
        assert_eq!(met.server.peer_certificates(), Some(&[fr_shown][..]));
        assert_eq!(met.client.peer_certificates(), Some(&[de_shown][..]));
        assert_ne!(met.server.peer_certificates(), before.server.peer_certificates());
    }
}

/// Threat 6: whoever is evicted does not come back.
#[test]
fn a_gateway_that_its_state_dropped_is_refused_from_the_next_handshake_on() {
    let cast = Two::new();
    let dials = |from: &State, id: &str, to: &str| {
        client_at(NOW, peer_client_config(cast.trust.clone(), from.leaf(id), gateway(to)), |_| ())
    };
    let answers = |of: &State, id: &str| server_at(NOW, peer_server_config(cast.trust.clone(), of.leaf(id)), |_| ());
    let (fr_1, fr_2) = (dials(&cast.fr, "FR/fr-1", "DE/de-1"), dials(&cast.fr, "FR/fr-2", "DE/de-1"));
    let to_fr_1 = dials(&cast.de, "DE/de-1", "FR/fr-1");
    let (de_1, fr_1_answers) = (answers(&cast.de, "DE/de-1"), answers(&cast.fr, "FR/fr-1"));
    for (client, server) in [(&fr_1, &de_1), (&fr_2, &de_1), (&to_fr_1, &fr_1_answers)] {
        assert!(handshake(client, server).is_ok());
    }

    let before = cast.trust.load();
    cast.trust.store(trust_store([cast.fr.bundle(&["fr-2"]), cast.de.bundle(&["de-1"])]));
    let why = "FR names no such gateway in its bundle".to_owned();
    assert_eq!(handshake(&fr_1, &de_1).unwrap_err(), Refused::ByServer(why.clone()));
    assert_eq!(handshake(&to_fr_1, &fr_1_answers).unwrap_err(), Refused::ByClient(why));
    assert!(handshake(&fr_2, &de_1).is_ok(), "the others stay");

    cast.trust.store(trust_store([cast.de.bundle(&["de-1"])]));
    let why = "FR is no member of this federation".to_owned();
    assert_eq!(handshake(&fr_2, &de_1).unwrap_err(), Refused::ByServer(why), "a state that left");

    cast.trust.store(before);
    assert!(handshake(&fr_1, &de_1).is_ok(), "named again");
}

/// Old and new authority count together while one replaces the other, and the old one no longer afterwards.
#[test]
fn an_authority_is_replaced_without_a_gap() {
    let cast = Two::new();
    let next = State::new("FR");
    let call = |leaf| {
        let client = client_at(NOW, peer_client_config(cast.trust.clone(), leaf, gateway("DE/de-1")), |_| ());
        let server = server_at(NOW, peer_server_config(cast.trust.clone(), cast.de.leaf("DE/de-1")), |_| ());
        handshake(&client, &server).is_ok()
    };
    let leaves = || [cast.fr.leaf("FR/fr-1"), next.leaf("FR/fr-1")];
    assert_eq!(leaves().map(call), [true, false]);
    let mut both = next.bundle(&["fr-1"]);
    both.ca_certs_der.push(cast.fr.ca.cert_der().unwrap());
    cast.trust.store(trust_store([both, cast.de.bundle(&["de-1"])]));
    assert_eq!(leaves().map(call), [true, true]);
    cast.trust.store(trust_store([next.bundle(&["fr-1"]), cast.de.bundle(&["de-1"])]));
    assert_eq!(leaves().map(call), [false, true]);
}

/// Whatever it signed would be believed by nobody.
#[test]
fn an_authority_has_the_key_of_its_certificate() {
    let (fr, other) = (State::new("FR").ca, State::new("FR").ca);
    let load = |cert_pem: &str, key_pem: &str| StateCa::load(cert_pem, key_pem).map(|it| it.cert_pem);
    assert_eq!(load(&fr.cert_pem, &fr.key_pem).unwrap(), fr.cert_pem);
    assert!(matches!(load(&fr.cert_pem, &other.key_pem), Err(CannotIssue::AnotherKey)));
    let leaf = State::new("FR").issue("FR/fr-1");
    assert!(matches!(load(&leaf.cert_pem, &leaf.key_pem), Err(CannotIssue::NotAnAuthority)), "a leaf with its key");
}

/// The library that builds chains takes any certificate for an anchor.
#[test]
fn only_an_authority_is_a_root() {
    let fr = State::new("FR");
    let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec();
    let with_root = |root: Vec<u8>| {
        let bundle = TrustBundle { ca_certs_der: vec![root], ..fr.bundle(&["fr-1"]) };
        TrustStore::new(federation(), [bundle]).map(drop)
    };
    let own = fr.ca.cert_der().unwrap();
    assert_eq!(with_root(own.clone()), Ok(()));
    let leaf = der(&fr.issue("FR/fr-1").cert_pem);
    let key = KeyPair::generate().unwrap();
    let mut plain = CertificateParams::default();
    plain.distinguished_name.push(DnType::CommonName, "Entente CA of FR");
    let plain = plain.self_signed(&key).unwrap().der().to_vec();
    for bad in [leaf, plain, own[1..].to_vec(), [&own[..], b"\0"].concat(), vec![]] {
        assert_eq!(with_root(bad), Err(BadTrust::Ca(state("FR"))));
    }
}

/// Half a renewal is noticed before it is in use.
#[test]
fn a_certificate_and_a_key_that_do_not_belong_together_are_no_leaf() {
    let fr = State::new("FR");
    let (one, other) = (fr.issue("FR/fr-1"), fr.issue("FR/fr-1"));
    let read = |cert_pem: &str, key_pem: &str| LeafIdentity::from_pem(cert_pem, key_pem).map(drop);
    assert_eq!(read(&one.cert_pem, &one.key_pem), Ok(()));
    assert_eq!(read(&one.cert_pem, &other.key_pem), Err(BadLeaf::AnotherKey));
    assert_eq!(read(&one.cert_pem, &KeyPair::generate().unwrap().serialize_pem()), Err(BadLeaf::AnotherKey));
    assert_eq!(read("", &one.key_pem), Err(BadLeaf::Certificate));
    assert_eq!(read(&one.key_pem, &one.key_pem), Err(BadLeaf::Certificate));
    assert_eq!(read(&one.cert_pem, ""), Err(BadLeaf::Key));
    assert_eq!(read(&one.cert_pem, &one.cert_pem), Err(BadLeaf::Key));
}
