//! Revocation: what a state's list takes back, and lists that are none.

use certs::{
    BadTrust, CannotIssue, Certificate, LeafIdentity, RevocationList, Revoked, StateCa, TrustBundle, TrustStore,
};
use proptest::prelude::*;
use rcgen::{
    CertificateParams, CertificateRevocationListParams, CrlDistributionPoint, CrlIssuingDistributionPoint, CrlScope,
    KeyIdMethod, RevocationReason, RevokedCertParams, SerialNumber,
};

use crate::states::{DAY_S, NOW, State, Two, federation, gateway, moment, state, trust_store};
use crate::wire::Refused;

const REVOKED: u64 = 4_711;
const OTHER: u64 = 4_712;
const LIST_LIFE_S: u64 = 600;

/// A list of this authority that takes back these serial numbers.
pub fn list_of(signer: &State, serials: &[u64]) -> Vec<u8> {
    let revoked = |serial: &u64| RevokedCertParams {
        serial_number: SerialNumber::from(*serial),
        revocation_time: moment(NOW - 60),
        reason_code: Some(RevocationReason::KeyCompromise),
        invalidity_date: None,
    };
    let mut list = empty_list();
    list.revoked_certs = serials.iter().map(revoked).collect();
    list.signed_by(&signer.issuer()).unwrap().der().to_vec()
}

/// A list that says that it is about users' certificates.
fn scoped_list() -> Vec<u8> {
    let distribution_point = CrlDistributionPoint { uris: vec!["http://fr.example/list".into()] };
    let mut list = empty_list();
    list.issuing_distribution_point =
        Some(CrlIssuingDistributionPoint { distribution_point, scope: Some(CrlScope::UserCertsOnly) });
    list.signed_by(&State::new("FR").issuer()).unwrap().der().to_vec()
}

fn empty_list() -> CertificateRevocationListParams {
    CertificateRevocationListParams {
        this_update: moment(NOW - 60),
        next_update: moment(NOW + LIST_LIFE_S),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: vec![],
        key_identifier_method: KeyIdMethod::Sha256,
    }
}

fn with_lists(state: &State, crls_der: Vec<Vec<u8>>) -> TrustBundle {
    TrustBundle { crls_der, ..state.bundle(&["fr-1"]) }
}

/// France and Germany, France with these lists.
fn cast_with(lists: impl FnOnce(&Two) -> Vec<Vec<u8>>) -> Two {
    let cast = Two::new();
    let french = with_lists(&cast.fr, lists(&cast));
    cast.trust.store(trust_store([french, cast.de.bundle(&["de-1"])]));
    cast
}

/// fr-1's leaf of this serial number meets de-1 at this time.
fn meet(cast: &Two, serial: u64, now_s: u64) -> [Result<(), Refused>; 2] {
    let numbered = |it: &mut CertificateParams| it.serial_number = Some(SerialNumber::from(serial));
    cast.meet(&cast.fr.forge("FR/fr-1", numbered), now_s)
}

#[track_caller]
fn check_refused(met: [Result<(), Refused>; 2], why: &str) {
    match met {
        [Err(Refused::ByServer(one)), Err(Refused::ByClient(other))] => {
            assert!(one.contains(why) && other.contains(why), "{one}; {other}");
        }
        met => panic!("{met:?}"),
    }
}

const CHAIN: &str = "the chain of FR does not hold";
const ACCEPTED: [Result<(), Refused>; 2] = [Ok(()), Ok(())];

#[test]
fn a_list_takes_back_what_it_names() {
    let cast = cast_with(|it| vec![list_of(&it.fr, &[REVOKED])]);
    check_refused(meet(&cast, REVOKED, NOW), "Revoked");
    assert_eq!(meet(&cast, OTHER, NOW), ACCEPTED);
    let without = cast_with(|_| vec![]);
    assert_eq!(meet(&without, REVOKED, NOW), ACCEPTED, "it is the list that refuses");
}

/// What an authority takes back by the number that it finds in the certificate, every gateway refuses; and the gateway that
/// shows it is told why.
#[test]
fn an_authoritys_own_list_takes_back_what_it_issued() {
    let cast = Two::new();
    let (taken, kept) = (cast.fr.issue("FR/fr-1"), cast.fr.issue("FR/fr-1"));
    let certificate = Certificate::read_pem(&taken.cert_pem).unwrap();
    assert_eq!((&certificate.name[..], certificate.is_for_peers), ("FR/fr-1", true));
    let revoked = [Revoked { serial: certificate.serial, at_s: NOW - 5 }];
    let list = cast.fr.ca.revocation_list(2, &revoked, NOW).unwrap();
    let read = RevocationList::read(&list).unwrap();
    assert_eq!((&read.revoked[..], read.authority), (&revoked[..], certificate.authority));
    cast.trust.store(trust_store([with_lists(&cast.fr, vec![list]), cast.de.bundle(&["de-1"])]));

    let refused = |leaf: &certs::IssuedLeaf, now_s| {
        let identity = LeafIdentity::from_pem(&leaf.cert_pem, &leaf.key_pem).unwrap();
        cast.trust.load().refuses(&identity, now_s)
    };
    assert_eq!(refused(&taken, NOW), Some("FR has revoked it".into()));
    assert_eq!(refused(&kept, NOW), None);
    assert!(refused(&kept, NOW + DAY_S + 1).unwrap().contains("has expired"));
    assert!(cast.fr.ca.has_issued(&taken.cert_pem) && !cast.fr.look_alike().ca.has_issued(&taken.cert_pem));
    let german = cast.de.ca.issue_gateway(&gateway("DE/de-1"), NOW, 1).unwrap();
    assert!(!cast.fr.ca.has_issued(&german.cert_pem) && !cast.fr.ca.has_issued("no certificate"));
}

/// A list that ran out before its authority would shut out everybody whom the authority vouches for, and with them whoever
/// could publish the next one.
#[test]
fn an_authoritys_own_list_counts_as_long_as_the_authority() {
    let mut cast = Two::new();
    cast.fr.ca = StateCa::create(state("FR"), &federation(), NOW - DAY_S + 60, 1).unwrap();
    let ends_s = Certificate::read_pem(&cast.fr.ca.cert_pem).unwrap().ends_s;
    assert_eq!(ends_s, NOW + 60);
    let list = cast.fr.ca.revocation_list(1, &[], NOW).unwrap();
    assert_eq!(RevocationList::read(&list).unwrap().ends_s, Some(ends_s));
    cast.trust.store(trust_store([with_lists(&cast.fr, vec![list]), cast.de.bundle(&["de-1"])]));
    assert_eq!(meet(&cast, OTHER, ends_s - 1), ACCEPTED);
    let over = cast.fr.ca.revocation_list(2, &[], ends_s);
    assert!(matches!(over, Err(CannotIssue::AuthorityEnded)), "{over:?}");
}

#[test]
fn a_list_that_is_over_vouches_for_nobody() {
    let cast = cast_with(|it| vec![list_of(&it.fr, &[])]);
    assert_eq!(meet(&cast, OTHER, NOW + LIST_LIFE_S - 1), ACCEPTED);
    check_refused(meet(&cast, OTHER, NOW + LIST_LIFE_S + 1), CHAIN);
}

#[test]
fn a_list_that_is_not_the_authoritys_vouches_for_nobody() {
    let of_another_state = cast_with(|it| vec![list_of(&it.de, &[])]);
    check_refused(meet(&of_another_state, OTHER, NOW), CHAIN);
    let by_another_key = cast_with(|it| vec![list_of(&it.fr.look_alike(), &[])]);
    check_refused(meet(&by_another_key, OTHER, NOW), CHAIN);
}

/// While one authority replaces another, each has a list, and neither's locks out whom the other vouches for.
#[test]
fn two_authorities_have_a_list_each() {
    let (cast, next) = (Two::new(), State::new("FR"));
    let mut french = with_lists(&cast.fr, vec![list_of(&cast.fr, &[REVOKED]), list_of(&next, &[OTHER])]);
    french.ca_certs_der.push(next.ca.cert_der().unwrap());
    cast.trust.store(trust_store([french, cast.de.bundle(&["de-1"])]));
    let meet_of = |authority: &State, serial: u64| {
        let numbered = |it: &mut CertificateParams| it.serial_number = Some(SerialNumber::from(serial));
        cast.meet(&authority.forge("FR/fr-1", numbered), NOW)
    };
    assert_eq!(meet_of(&cast.fr, OTHER), ACCEPTED);
    assert_eq!(meet_of(&next, REVOKED), ACCEPTED);
    check_refused(meet_of(&cast.fr, REVOKED), "Revoked");
    check_refused(meet_of(&next, OTHER), "Revoked");
}

#[test]
fn two_authorities_of_one_name_are_no_trust() {
    let fr = State::new("FR");
    let mut bundle = fr.bundle(&["fr-1"]);
    bundle.ca_certs_der.push(fr.look_alike().ca.cert_der().unwrap());
    let refused = TrustStore::new(federation(), [bundle.clone()]).map(drop);
    assert_eq!(refused, Err(BadTrust::SharedSubject(state("FR"))));
    bundle.ca_certs_der[1] = bundle.ca_certs_der[0].clone();
    let refused = TrustStore::new(federation(), [bundle]).map(drop);
    assert_eq!(refused, Err(BadTrust::SharedSubject(state("FR"))), "nor is one that is there twice");
}

#[test]
fn a_state_takes_back_its_own_only() {
    let cast = Two::new();
    let german = TrustBundle { crls_der: vec![list_of(&cast.de, &[REVOKED])], ..cast.de.bundle(&["de-1"]) };
    cast.trust.store(trust_store([cast.fr.bundle(&["fr-1"]), german]));
    let french = cast.fr.forge("FR/fr-1", |it| it.serial_number = Some(SerialNumber::from(REVOKED)));
    assert_eq!(cast.meet(&french, NOW)[0], Ok(()), "a German list says nothing about a French leaf");
}

/// Threat 9: the list comes from another state, and is read where all of them are put together.
fn read(list: Vec<u8>) -> Result<(), BadTrust> {
    thread_local!(static FR: State = State::new("FR"));
    let bundle = FR.with(|fr| with_lists(fr, vec![list]));
    TrustStore::new(federation(), [bundle]).map(drop)
}

fn unreadable() -> Result<(), BadTrust> {
    Err(BadTrust::Crl(state("FR")))
}

#[test]
fn what_is_no_list_is_refused() {
    let sound = list_of(&State::new("FR"), &[REVOKED]);
    assert_eq!(read(sound.clone()), Ok(()));
    assert_eq!(read(scoped_list()), Ok(()));
    let cut = (0..sound.len()).map(|length| sound[..length].to_vec());
    let longer = [&sound[..], b"\0"].concat();
    let deep = [[0x30, 0x80].repeat(10_000), vec![0; 20_000]].concat();
    let claims_4_gib = vec![0x30, 0x84, 0xff, 0xff, 0xff, 0xff];
    for list in cut.chain([longer, deep, claims_4_gib, b"-----BEGIN X509 CRL-----".to_vec()]) {
        assert_eq!(read(list), unreadable());
    }
}

/// The part that says what a list is about has a parser of its own. Source: RFC 5280, section 5.2.5.
#[test]
fn whatever_a_list_is_about_it_is_read_or_refused() {
    let sound = scoped_list();
    let only_users = [0x81, 0x01, 0xff];
    let at = sound.windows(3).position(|window| window == only_users).expect("the list is about users");
    for tag in 0x80..=0xbf {
        for value in (0..=255).step_by(5) {
            let mut list = sound.clone();
            list[at..at + 3].copy_from_slice(&[tag, 1, value]);
            let read = read(list);
            assert!(read == Ok(()) || read == unreadable(), "{tag:#x} {value:#x}: {read:?}");
        }
    }
}

proptest! {
    #[test]
    fn random_bytes_are_no_list(bytes in proptest::collection::vec(any::<u8>(), 0..2_000)) {
        prop_assert_eq!(read(bytes), unreadable());
    }

    #[test]
    fn a_changed_list_is_read_or_refused(at in any::<prop::sample::Index>(), byte: u8, more in any::<prop::sample::Index>(), other: u8) {
        thread_local!(static SOUND: Vec<u8> = scoped_list());
        let mut list = SOUND.with(Vec::clone);
        let (at, more) = (at.index(list.len()), more.index(list.len()));
        (list[at], list[more]) = (byte, other);
        let read = read(list);
        prop_assert!(read == Ok(()) || read == unreadable(), "{read:?}");
    }
}
