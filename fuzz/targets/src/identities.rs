//! Who is speaking: tokens, certificates, bundles.

use certs::{
    Assurance, Caller, Certificate, IssuerEntry, RevocationList, Revoked, Role, Serial, SignedBundle, TOKEN_BYTES_MAX,
    TOKEN_LIFE_MAX_S, TrustBundle, TrustStore,
};
use rustls_pki_types::CertificateDer;

use crate::cast;

/// A clock's error that is forgiven, in seconds.
const LEEWAY_S: u64 = 30;

/// A token from anybody. Nothing that this issuer has not signed is believed; what is believed is within what it may say.
pub fn token(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        verify(text);
    }
}

/// A token whose claims are any JSON, well signed.
pub fn claims(bytes: &[u8]) {
    let Ok(claims) = serde_json::from_slice(bytes) else {
        return;
    };
    let token = cast::issuer().mint(&claims).expect("JSON can be signed");
    verify(&token);
}

fn verify(token: &str) {
    let read = cast::TRUST.issuers().verify(token, cast::AUDIENCE, cast::NOW_S);
    assert_eq!(read, cast::TRUST.issuers().verify(token, cast::AUDIENCE, cast::NOW_S), "one token, one answer");
    if let Ok(caller) = read {
        check_caller(&caller);
        assert!(token.len() <= TOKEN_BYTES_MAX);
    }
}

fn check_caller(caller: &Caller) {
    assert_eq!(caller.state, cast::france());
    assert!(caller.assurance <= Assurance::Substantial, "an issuer states no more than it may");
    assert!(caller.roles.iter().all(|role| *role == Role::Researcher));
    assert!(caller.clearances.iter().all(|it| it == "dual-use"));
    assert!(caller.residency.is_none_or(|it| it == cast::france()));
    let life = cast::NOW_S - LEEWAY_S..=cast::NOW_S + TOKEN_LIFE_MAX_S + LEEWAY_S;
    assert!(life.contains(&caller.expires_s), "a token that counts ends within its longest life");
    assert!(!caller.subject.is_empty() && !caller.token_id.is_empty());
}

/// A peer's leaf. A gateway that is read from it stands in it, letter for letter.
pub fn peer(bytes: &[u8]) {
    let read = certs::peer_of(&[CertificateDer::from(bytes)]);
    assert_eq!(read, certs::peer_of(&[CertificateDer::from(bytes)]), "one certificate, one answer");
    let shown = Certificate::read(bytes);
    assert_eq!(shown.as_ref().is_some_and(|it| it.is_for_peers), read.is_ok() && shown.is_some());
    if let Ok(gateway) = read {
        let [start, end] = [format!("spiffe://{}.", gateway.state.lower()), format!("/gateway/{}", gateway.name)];
        let stands = |text: &str| bytes.windows(text.len()).any(|it| it == text.as_bytes());
        assert!(stands(&start) && stands(&end), "{gateway} is not what the certificate says");
    }
}

/// A bundle as it is published. What is opened is one state's and has one spelling; nothing that others say is signed by
/// this root is, but what it signed.
pub fn bundle(bytes: &[u8]) {
    let Ok(signed) = serde_json::from_slice::<SignedBundle>(bytes) else {
        return;
    };
    let written = serde_json::to_vec(&signed).expect("a bundle can be written");
    assert_eq!(serde_json::from_slice::<SignedBundle>(&written).ok(), Some(signed.clone()));
    if let Ok(opened) = signed.open_unchecked() {
        assert_eq!(opened.digest(), signed.digest(), "two names for one bundle");
        // Signed by its own root or not, another's trust takes it or says why not.
        let _refused = TrustStore::new(opened.federation.clone(), [opened]);
    }
    if let Ok(verified) = signed.verify_first() {
        assert_eq!((verified.sequence, verified.previous), (1, None));
    }
    if let Ok(verified) = signed.verify_signed_by(&cast::root().public()) {
        assert_eq!(verified, cast::bundle(), "the root of France has signed one bundle");
    }
}

/// A certificate authority, or the key set of an identity provider, in a state's bundle.
pub fn authority(bytes: &[u8]) {
    trust(TrustBundle { ca_certs_der: vec![bytes.to_vec()], ..cast::bundle() });
    if let Ok(text) = std::str::from_utf8(bytes) {
        let issuer = IssuerEntry { jwks_json: text.into(), ..cast::bundle().issuers.remove(0) };
        trust(TrustBundle { issuers: vec![issuer], ..cast::bundle() });
    }
}

/// A revocation list in a state's bundle, and as it is shown. What can be read twice says the same.
pub fn revocation(bytes: &[u8]) {
    let read = RevocationList::read(bytes);
    assert_eq!(read, RevocationList::read(bytes), "one list, one answer");
    for Revoked { serial, .. } in read.iter().flat_map(|it| &it.revoked) {
        // A list may name what no certificate has.
        if let Ok(again) = Serial::parse(&serial.to_string()) {
            assert_eq!(again, *serial, "a number reads back");
        }
    }
    trust(TrustBundle { crls_der: vec![bytes.to_vec()], ..cast::bundle() });
}

fn trust(bundle: TrustBundle) {
    let read = || TrustStore::new(cast::federation(), [bundle.clone()]).map(drop);
    assert_eq!(read(), read(), "one bundle, one answer: every replica reads it for itself");
}
