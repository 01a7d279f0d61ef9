//! Leaves with one fault each, signed by the right authority: threat 7, at both ends of a connection.

use rcgen::ExtendedKeyUsagePurpose::{Any, ClientAuth, CodeSigning, ServerAuth};
use rcgen::{BasicConstraints, CertificateParams, CustomExtension, IsCa, Issuer, KeyPair, SanType};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::states::{DAY_S, NOW, Two, federation, gateway, moment, shows, sound_leaf};
use crate::wire::{Refused, Shows};

const URI: &str = "spiffe://fr.entente.example/gateway/fr-1";

type Fault = fn(&mut CertificateParams);

#[track_caller]
fn check(cast: &Two, what: &str, shown: &Shows, why: &str) {
    match cast.meet(shown, NOW) {
        [Err(Refused::ByServer(one)), Err(Refused::ByClient(other))] => {
            assert!(one.contains(why) && other.contains(why), "{what}: refused because {one:?} and {other:?}");
        }
        met => panic!("{what}: {met:?}"),
    }
}

#[track_caller]
fn check_all(faults: &[(&str, Fault, &str)]) {
    let cast = Two::new();
    for (what, fault, why) in faults {
        check(&cast, what, &cast.fr.forge("FR/fr-1", fault), why);
    }
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

fn dns(text: &str) -> SanType {
    SanType::DnsName(text.try_into().unwrap())
}

/// The names as raw bytes, each with its tag. Source: RFC 5280, section 4.2.1.6.
fn raw_names(params: &mut CertificateParams, names: &[(u8, &[u8])]) {
    let entry = |(tag, name): &(u8, &[u8])| [&[*tag, name.len().try_into().unwrap()], *name].concat();
    let entries: Vec<u8> = names.iter().flat_map(entry).collect();
    let content = [vec![0x30, u8::try_from(entries.len()).unwrap()], entries].concat();
    params.subject_alt_names = vec![];
    params.custom_extensions.push(CustomExtension::from_oid_content(&[2, 5, 29, 17], content));
}

const TAG_URI: u8 = 0x86;
const TAG_DNS: u8 = 0x82;

/// Without this the tests below would pass with certificates that are bad for another reason.
#[test]
fn a_sound_leaf_is_accepted() {
    let cast = Two::new();
    let sound: [(&str, Fault); 4] = [
        ("unchanged", |_| ()),
        ("with its name as raw bytes", |it| raw_names(it, &[(TAG_URI, URI.as_bytes())])),
        ("with one usage more", |it| it.extended_key_usages.push(CodeSigning)),
        ("at the end of its life", |it| it.not_after = moment(NOW)),
    ];
    for (what, change) in sound {
        assert_eq!(cast.meet(&cast.fr.forge("FR/fr-1", change), NOW), [Ok(()), Ok(())], "{what}");
    }
}

#[test]
fn one_uri_is_the_only_name() {
    const NAMES: &str = "one SPIFFE URI as its only alternative name";
    check_all(&[
        ("two URIs", |it| it.subject_alt_names.push(uri("spiffe://de.entente.example/gateway/de-1")), NAMES),
        ("two URIs, ours last", |it| it.subject_alt_names.insert(0, uri("spiffe://de.entente.example/x")), NAMES),
        ("the same URI twice", |it| it.subject_alt_names.push(uri(URI)), NAMES),
        ("a DNS name beside", |it| it.subject_alt_names.push(dns("fr-1.example")), NAMES),
        ("a DNS name before", |it| it.subject_alt_names.insert(0, dns("fr-1.example")), NAMES),
        ("an address beside", |it| it.subject_alt_names.push(SanType::IpAddress([127, 0, 0, 1].into())), NAMES),
        ("a DNS name only", |it| it.subject_alt_names = vec![dns("fr.entente.example")], NAMES),
        ("no name", |it| it.subject_alt_names.clear(), NAMES),
        ("an empty list of names", |it| raw_names(it, &[]), NAMES),
        ("our URI as a DNS name", |it| raw_names(it, &[(TAG_DNS, URI.as_bytes())]), NAMES),
        ("not UTF-8", |it| raw_names(it, &[(TAG_URI, b"spiffe://fr.entente.example/gateway/\xff")]), NAMES),
        ("not UTF-8 beside", |it| raw_names(it, &[(TAG_URI, URI.as_bytes()), (TAG_URI, b"\xc3\x28")]), NAMES),
        ("not UTF-8 before", |it| raw_names(it, &[(TAG_URI, b"\xc3\x28"), (TAG_URI, URI.as_bytes())]), NAMES),
        ("an unknown kind of name beside", |it| raw_names(it, &[(TAG_URI, URI.as_bytes()), (0x8f, b"?")]), NAMES),
    ]);
}

#[test]
fn the_uri_is_spelt_as_a_gateways() {
    let cast = Two::new();
    for text in [
        "https://fr.entente.example/gateway/fr-1",
        "SPIFFE://fr.entente.example/gateway/fr-1",
        "spiffe://FR.entente.example/gateway/fr-1",
        "spiffe://fr.Entente.example/gateway/fr-1",
        "spiffe://fr.entente.example",
        "spiffe://fr.entente.example/",
        "spiffe://fr.entente.example/gateway",
        "spiffe://fr.entente.example/gateway/",
        "spiffe://fr.entente.example/gateway/fr-1/",
        "spiffe://fr.entente.example/gateway/fr-1?x",
        "spiffe://fr.entente.example/gateway/fr-1#x",
        "spiffe://fr.entente.example/gateway/FR-1",
        "spiffe://fr.entente.example/gateway/%66r-1",
        "spiffe://fr.entente.example/gateway/../fr-1",
        "spiffe://fr.entente.example/gateway/fr-1 ",
        "spiffe://fr.entente.example//gateway/fr-1",
        "spiffe://fr.entente.example/agent/fr-1",
        "spiffe://fr.entente.example:443/gateway/fr-1",
        "spiffe://x@fr.entente.example/gateway/fr-1",
        "spiffe://fr.entente.example./gateway/fr-1",
        "spiffe://.entente.example/gateway/fr-1",
        "spiffe://entente.example/gateway/fr-1",
        "spiffe://zz.entente.example/gateway/fr-1",
        "spiffe:fr.entente.example/gateway/fr-1",
        "",
        "\0",
    ] {
        let shown = cast.fr.forge("FR/fr-1", |it| it.subject_alt_names = vec![uri(text)]);
        check(&cast, text, &shown, "is no gateway");
    }
    for text in ["spiffe://fr.other.example/gateway/fr-1", "spiffe://fr.x.entente.example/gateway/fr-1"] {
        let shown = cast.fr.forge("FR/fr-1", |it| it.subject_alt_names = vec![uri(text)]);
        check(&cast, text, &shown, "another federation");
    }
}

#[test]
fn a_leaf_is_a_leaf_for_both_ends() {
    const USAGE: &str = "not a leaf for TLS servers and clients";
    check_all(&[
        ("an authority", |it| it.is_ca = IsCa::Ca(BasicConstraints::Unconstrained), USAGE),
        ("no usage", |it| it.extended_key_usages.clear(), USAGE),
        ("clients only", |it| it.extended_key_usages = vec![ClientAuth], USAGE),
        ("servers only", |it| it.extended_key_usages = vec![ServerAuth], USAGE),
        ("any usage", |it| it.extended_key_usages = vec![Any], USAGE),
        ("any usage beside", |it| it.extended_key_usages.push(Any), USAGE),
        ("another usage", |it| it.extended_key_usages = vec![CodeSigning], USAGE),
    ]);
}

#[test]
fn a_leaf_counts_in_its_time_only() {
    const CHAIN: &str = "the chain of FR does not hold";
    check_all(&[
        ("expired", |it| it.not_after = moment(NOW - 1), "certificate expired"),
        ("not yet valid", |it| it.not_before = moment(NOW + 1), "not valid yet"),
        (
            "from its end to its beginning",
            |it| (it.not_before, it.not_after) = (moment(NOW + 9), moment(NOW - 9)),
            CHAIN,
        ),
    ]);
}

/// A state could sign leaves for ten years by other means than ours; a lost one would have to be revoked all that time.
#[test]
fn a_leaf_lives_90_days_at_most() {
    const LIFE: &str = "lives longer than 90 days";
    check_all(&[
        ("ten years", |it| it.not_after = moment(NOW + 3_650 * DAY_S), LIFE),
        ("a second more", |it| it.not_after = moment(NOW + 90 * DAY_S + 1), LIFE),
        ("long ago and for long", |it| it.not_before = moment(NOW - 91 * DAY_S), LIFE),
        ("over, after ten years", |it| (it.not_before, it.not_after) = (moment(1), moment(NOW - 1)), LIFE),
    ]);
    let cast = Two::new();
    let longest = cast.fr.ca.issue_gateway(&gateway("FR/fr-1"), NOW, 24 * 90).unwrap();
    let chain = vec![CertificateDer::from_pem_slice(longest.cert_pem.as_bytes()).unwrap()];
    let shown = shows(chain, &KeyPair::from_pem(&longest.key_pem).unwrap());
    assert_eq!(cast.meet(&shown, NOW), [Ok(()), Ok(())], "the longest that an authority issues");
}

#[test]
fn extensions_that_nobody_knows_are_refused_when_critical() {
    fn unknown(params: &mut CertificateParams, critical: bool) {
        let mut extension = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99_999, 1], vec![0x05, 0x00]);
        extension.set_criticality(critical);
        params.custom_extensions.push(extension);
    }
    check_all(&[("critical", |it| unknown(it, true), "the chain of FR does not hold")]);
    let cast = Two::new();
    let shown = cast.fr.forge("FR/fr-1", |it| unknown(it, false));
    assert_eq!(cast.meet(&shown, NOW), [Ok(()), Ok(())], "one that is not critical is not looked at");
}

/// A certificate that takes long to read is not read.
#[test]
fn a_giant_is_refused() {
    fn padding(params: &mut CertificateParams, bytes: usize) {
        let oid = &[1, 3, 6, 1, 4, 1, 99_999, 2];
        params.custom_extensions.push(CustomExtension::from_oid_content(oid, vec![0x05; bytes]));
    }
    check_all(&[("giant", |it| padding(it, 9 * 1024), "cannot be read")]);
    let cast = Two::new();
    let large = cast.fr.forge("FR/fr-1", |it| padding(it, 7 * 1024));
    assert_eq!(cast.meet(&large, NOW), [Ok(()), Ok(())], "below the limit");
}

#[test]
fn no_leaf_vouches_for_a_leaf() {
    let cast = Two::new();
    let chain_fault = "the chain of FR does not hold";
    let key = KeyPair::generate().unwrap();
    let alone = sound_leaf(URI).self_signed(&key).unwrap().der().clone();
    check(&cast, "self-signed", &shows(vec![alone.clone()], &key), chain_fault);
    let root = CertificateDer::from(cast.fr.ca.cert_der().unwrap());
    check(&cast, "self-signed, beside the root", &shows(vec![alone.clone(), root], &key), chain_fault);

    let between = sound_leaf(&gateway("FR/fr-2").spiffe(&federation()));
    let between_key = KeyPair::generate().unwrap();
    let between_cert = between.signed_by(&between_key, &cast.fr.issuer()).unwrap().der().clone();
    let leaf = sound_leaf(URI).signed_by(&key, &Issuer::new(between, between_key)).unwrap().der().clone();
    check(&cast, "signed by a leaf", &shows(vec![leaf, between_cert], &key), chain_fault);

    let own_root = shows(vec![CertificateDer::from(cast.fr.ca.cert_der().unwrap())], cast.fr.issuer().key());
    check(&cast, "the root itself", &own_root, "not a leaf for TLS servers and clients");
    check(&cast, "too many certificates", &shows(vec![alone; 6], &key), "BadEncoding");
}

#[test]
fn bytes_that_are_no_certificate_are_refused() {
    let cast = Two::new();
    let key = KeyPair::generate().unwrap();
    let sound = sound_leaf(URI).signed_by(&key, &cast.fr.issuer()).unwrap().der().to_vec();
    let more = [&sound[..], b"\0"].concat();
    for (what, der) in [("cut", &sound[..sound.len() - 1]), ("with a byte more", &more), ("text", b"certificate")] {
        check(&cast, what, &shows(vec![CertificateDer::from(der.to_vec())], &key), "cannot be read");
    }
}
