//! Handshakes: who meets whom, who refuses, and what is never negotiated.

use std::sync::Arc;

use certs::{LeafIdentity, SharedLeaf, StateCa, peer_client_config, peer_of, peer_server_config};
use rcgen::{CertificateParams, KeyPair, SanType};
use rustls::client::{ClientSessionMemoryCache, ClientSessionStore, Resumption};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::ServerSessionMemoryCache;
use rustls::{AlertDescription, ClientConfig, Connection, Error, HandshakeKind, NamedGroup, ServerConfig};

use crate::revocation::list_of;
use crate::states::{DAY_S, NOW, State, Two, federation, gateway, moment, shows, state, trust_store};
use crate::wire::{Met, Refused, Shows, client_at, deliver, flush, handshake, new_client, new_server, said, server_at};

/// fr-1's side of a call to `dialled`.
fn client(cast: &Two, leaf: SharedLeaf, dialled: &str) -> Arc<ClientConfig> {
    client_at(NOW, peer_client_config(cast.trust.clone(), leaf, gateway(dialled)), |_| ())
}

fn server(cast: &Two, leaf: SharedLeaf) -> Arc<ServerConfig> {
    server_at(NOW, peer_server_config(cast.trust.clone(), leaf), |_| ())
}

/// A call that succeeds, for tests to change one thing of: fr-1 dials de-1.
fn sound() -> (Two, Arc<ClientConfig>, Arc<ServerConfig>) {
    let cast = Two::new();
    let client = client(&cast, cast.fr.leaf("FR/fr-1"), "DE/de-1");
    let server = server(&cast, cast.de.leaf("DE/de-1"));
    (cast, client, server)
}

#[track_caller]
fn refused_by_server(met: Result<Met, Refused>, why: &str) {
    let refused = met.expect_err("the handshake must fail");
    assert!(matches!(&refused, Refused::ByServer(said) if said.contains(why)), "{refused:?} for {why:?}");
}

#[track_caller]
fn refused_by_client(met: Result<Met, Refused>, why: &str) {
    let refused = met.expect_err("the handshake must fail");
    assert!(matches!(&refused, Refused::ByClient(said) if said.contains(why)), "{refused:?} for {why:?}");
}

#[test]
fn two_gateways_meet_and_know_each_other() {
    let (_, client, server) = sound();
    let met = handshake(&client, &server).unwrap();
    assert_eq!(peer_of(met.server.peer_certificates().unwrap()), Ok(gateway("FR/fr-1")));
    assert_eq!(peer_of(met.client.peer_certificates().unwrap()), Ok(gateway("DE/de-1")));
    assert_eq!(met.server.alpn_protocol(), Some(&b"h2"[..]));
    assert_eq!(met.server.server_name(), None, "nobody learns a name from the hello");
}

/// Threat 5: the roots are those of the state that a certificate names, and never pooled.
#[test]
fn an_authority_vouches_for_its_own_state_only() {
    let (cast, client, server) = sound();
    let uri = gateway("DE/de-1").spiffe(&federation());
    let forged = cast.fr.forge("FR/fr-1", |it| it.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())]);
    // An authority with Germany's name, but without its key.
    let look_alike = cast.de.look_alike().forge("DE/de-1", |_| ());
    for forged in [forged, look_alike] {
        let as_server = server_at(NOW, server.clone(), |it| it.cert_resolver = Arc::new(forged.clone()));
        refused_by_client(handshake(&client, &as_server), "the chain of DE does not hold");
        let as_client = client_at(NOW, client.clone(), |it| it.client_auth_cert_resolver = Arc::new(forged));
        refused_by_server(handshake(&as_client, &server), "the chain of DE does not hold");
    }
    let own = cast.fr.forge("FR/fr-1", |_| ());
    let own = client_at(NOW, client, |it| it.client_auth_cert_resolver = Arc::new(own));
    assert!(handshake(&own, &server).is_ok(), "so that this test can fail");
}

/// Threat 8.
#[test]
fn a_client_reaches_the_gateway_that_it_dialled_or_nobody() {
    let (cast, client, _) = sound();
    for (other, leaf) in [("FR/fr-2", cast.fr.leaf("FR/fr-2")), ("FR/fr-1", cast.fr.leaf("FR/fr-1"))] {
        let why = format!("this is {other}, not DE/de-1");
        refused_by_client(handshake(&client, &server(&cast, leaf)), &why);
    }
}

#[test]
fn a_gateway_that_its_state_does_not_name_is_refused_at_both_ends() {
    let (cast, client, server) = sound();
    let unnamed = self::client(&cast, cast.fr.leaf("FR/fr-9"), "DE/de-1");
    refused_by_server(handshake(&unnamed, &server), "FR names no such gateway");
    let dials = self::client(&cast, cast.fr.leaf("FR/fr-1"), "DE/de-9");
    refused_by_client(handshake(&dials, &self::server(&cast, cast.de.leaf("DE/de-9"))), "DE names no such gateway");
    assert!(handshake(&client, &server).is_ok());
}

#[test]
fn a_client_without_a_certificate_is_refused() {
    let (_, client, server) = sound();
    let silent = client_at(NOW, client, |it| it.client_auth_cert_resolver = Arc::new(Shows(None)));
    refused_by_server(handshake(&silent, &server), "sent no certificates");
}

/// A certificate is public: whoever shows it must also hold its key.
#[test]
fn a_certificate_without_its_key_is_refused_at_both_ends() {
    let (cast, client, server) = sound();
    let stolen = |id: &str| {
        let leaf = CertificateDer::from_pem_slice(cast.fr.issue(id).cert_pem.as_bytes()).unwrap();
        shows(vec![leaf], &KeyPair::generate().unwrap())
    };
    let thief = client_at(NOW, client, |it| it.client_auth_cert_resolver = Arc::new(stolen("FR/fr-1")));
    refused_by_server(handshake(&thief, &server), "BadSignature");
    let thief = server_at(NOW, server, |it| it.cert_resolver = Arc::new(stolen("FR/fr-2")));
    let dials = self::client(&cast, cast.de.leaf("DE/de-1"), "FR/fr-2");
    refused_by_client(handshake(&dials, &thief), "BadSignature");
}

/// Each end's log says what its operator has to renew.
#[test]
fn both_ends_are_told_that_a_certificate_is_over_or_taken_back() {
    let (cast, client, server) = sound();
    let mut french = cast.fr.bundle(&["fr-1"]);
    french.crls_der = vec![list_of(&cast.fr, &[7])];
    cast.trust.store(trust_store([french, cast.de.bundle(&["de-1"])]));
    type Fault = fn(&mut CertificateParams);
    let faults: [(Fault, AlertDescription, &str); 4] = [
        (|it| it.not_after = moment(NOW - 1), AlertDescription::CertificateExpired, "certificate expired"),
        (|it| it.not_before = moment(NOW + 1), AlertDescription::CertificateExpired, "not valid yet"),
        (|it| it.serial_number = Some(7_u64.into()), AlertDescription::CertificateRevoked, "Revoked"),
        (|it| it.subject_alt_names.clear(), AlertDescription::CertificateUnknown, "one SPIFFE URI"),
    ];
    for (fault, alert, why) in faults {
        let shown = Arc::new(cast.fr.forge("FR/fr-1", fault));
        let faulty = client_at(NOW, client.clone(), |it| it.client_auth_cert_resolver = shown.clone());
        assert_eq!(told(new_client(&faulty), new_server(&server), why), alert, "{why}");
        let dials = self::client(&cast, cast.de.leaf("DE/de-1"), "FR/fr-1");
        let faulty = server_at(NOW, server.clone(), |it| it.cert_resolver = shown);
        assert_eq!(told(new_server(&faulty), new_client(&dials), why), alert, "{why}");
    }
}

/// What the faulty end is told by the other, which refuses it because of `why`.
#[track_caller]
fn told(mut faulty: Connection, mut strict: Connection, why: &str) -> AlertDescription {
    loop {
        if let Err(refused) = deliver(&flush(&mut faulty), &mut strict) {
            assert!(said(refused).contains(why), "{why}");
            match deliver(&flush(&mut strict), &mut faulty) {
                Err(Error::AlertReceived(alert)) => return alert,
                other => panic!("no alert but {other:?}"),
            }
        }
        assert!(strict.wants_write(), "not refused");
        deliver(&flush(&mut strict), &mut faulty).unwrap();
    }
}

#[test]
fn an_authority_counts_in_its_time_only() {
    let authority = |made_s: u64, days: u32| State {
        code: state("FR"),
        ca: StateCa::create(state("FR"), &federation(), made_s, days).unwrap(),
    };
    for (fr, refused) in [
        (authority(NOW - DAY_S, 1), None),
        (authority(NOW - DAY_S - 1, 1), Some("certificate expired")),
        (authority(NOW + 300, 1), None),
        (authority(NOW + 301, 1), Some("not valid yet")),
    ] {
        let cast = Two::new();
        cast.trust.store(trust_store([fr.bundle(&["fr-1"]), cast.de.bundle(&["de-1"])]));
        let met = cast.meet(&fr.forge("FR/fr-1", |_| ()), NOW);
        match (refused, met) {
            (None, met) => assert_eq!(met, [Ok(()), Ok(())]),
            (Some(why), [as_client, as_server]) => {
                assert!(matches!(&as_client, Err(Refused::ByServer(said)) if said.contains(why)), "{as_client:?}");
                assert!(matches!(&as_server, Err(Refused::ByClient(said)) if said.contains(why)), "{as_server:?}");
            }
        }
    }
}

#[test]
fn only_tls_1_3_is_offered_and_accepted() {
    let (_, client, server) = sound();
    let mut hello = flush(&mut new_client(&client));
    // The extension supported_versions with one version, 0x0304. Source: RFC 8446, section 4.2.1.
    let only_1_3 = [0x00, 0x2b, 0x00, 0x03, 0x02, 0x03, 0x04];
    let at = hello.windows(only_1_3.len()).position(|window| window == only_1_3).expect("only TLS 1.3 is offered");
    assert!(deliver(&hello, &mut new_server(&server)).is_ok());
    for older in [0x03, 0x02, 0x01, 0x00] {
        hello[at + only_1_3.len() - 1] = older;
        let refused = deliver(&hello, &mut new_server(&server)).unwrap_err().to_string();
        assert!(refused.contains("Tls12NotOfferedOrEnabled"), "{refused}");
    }
}

#[test]
fn peers_speak_http_2_only() {
    let (_, client, server) = sound();
    for other in ["http/1.1", "h3", "H2", "acme-tls/1"] {
        let other = client_at(NOW, client.clone(), |it| it.alpn_protocols = vec![other.into()]);
        refused_by_server(handshake(&other, &server), "doesn't support any known protocol");
    }
    let other = server_at(NOW, server, |it| it.alpn_protocols = vec![b"http/1.1".to_vec()]);
    refused_by_server(handshake(&client, &other), "doesn't support any known protocol");
}

/// Threat 6: a resumed session would not be verified again.
#[test]
fn no_session_is_resumed() {
    let (_, client, server) = sound();
    for _ in 0..3 {
        let met = handshake(&client, &server).unwrap();
        let kinds = (met.client.handshake_kind(), met.server.handshake_kind());
        assert_eq!(kinds, (Some(HandshakeKind::Full), Some(HandshakeKind::Full)));
        assert_eq!(met.client.tls13_tickets_received(), 0);
    }
}

#[test]
fn a_client_that_would_resume_gets_no_ticket() {
    let (cast, client, server) = sound();
    let tickets = Arc::new(ClientSessionMemoryCache::new(32));
    let keen = client_at(NOW, client, |it| it.resumption = Resumption::store(tickets.clone()));
    for _ in 0..2 {
        let met = handshake(&keen, &server).unwrap();
        assert_eq!(met.server.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(met.client.tls13_tickets_received(), 0);
    }
    let peer = ServerName::try_from("peer.invalid").unwrap();
    assert_eq!(tickets.kx_hint(&peer), Some(NamedGroup::X25519), "the store was in use");
    assert!(tickets.take_tls13_ticket(&peer).is_none());

    // The same with a server that gives tickets, so that this test can fail.
    let generous = server_at(NOW, peer_server_config(cast.trust.clone(), cast.de.leaf("DE/de-1")), |it| {
        it.send_tls13_tickets = 2;
        it.session_storage = ServerSessionMemoryCache::new(32);
    });
    assert_eq!(handshake(&keen, &generous).unwrap().client.tls13_tickets_received(), 2);
    assert_eq!(handshake(&keen, &generous).unwrap().server.handshake_kind(), Some(HandshakeKind::Resumed));
    let ours = self::client(&cast, cast.fr.leaf("FR/fr-1"), "DE/de-1");
    for _ in 0..2 {
        let met = handshake(&ours, &generous).unwrap();
        assert_eq!(met.client.handshake_kind(), Some(HandshakeKind::Full), "ours keeps no ticket that it is given");
    }
}

/// Each of these would be enough to resume nothing; all of them hold. Early data would arrive before the peer is verified.
#[test]
fn no_ticket_is_made_nothing_is_stored_and_no_data_is_early() {
    let (_, client, server) = sound();
    assert_eq!(server.send_tls13_tickets, 0);
    assert!(!server.session_storage.can_cache());
    assert!(!server.ticketer.enabled());
    assert!(!client.enable_early_data);
    assert_eq!(server.max_early_data_size, 0);
}

#[test]
fn another_federation_is_refused() {
    let (cast, client, server) = sound();
    let elsewhere = certs::FederationId::parse("other.example").unwrap();
    let ca = StateCa::create(state("FR"), &elsewhere, NOW, 30).unwrap();
    let leaf = ca.issue_gateway(&gateway("FR/fr-1"), NOW, 24).unwrap();
    let leaf = SharedLeaf::new(LeafIdentity::from_pem(&leaf.cert_pem, &leaf.key_pem).unwrap());
    refused_by_server(handshake(&self::client(&cast, leaf, "DE/de-1"), &server), "another federation");
    let alone = trust_store([cast.de.bundle(&["de-1"])]);
    cast.trust.store(alone);
    refused_by_server(handshake(&client, &server), "FR is no member");
}
