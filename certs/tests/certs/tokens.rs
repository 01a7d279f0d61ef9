//! Tokens signed with the right key that are refused all the same: threats 11, 12 and 13, a row each.

mod forge;
mod issuers;
mod noise;
mod spelling;

use certs::BadToken::{self, Algorithm, Claim, Header, KeyId, Malformed, Signature, Type, UnknownKey};
use certs::{Assurance, Caller, Role, TOKEN_LIFE_MAX_S};
use ring::hmac;
use serde_json::{Value, json};

use self::forge::{Forged, ISSUER, KID, RESEARCHER, encode, jwk, key, sign, trust};
use crate::states::{FEDERATION, NOW, state};

fn verify(token: &str) -> Result<Caller, BadToken> {
    thread_local!(static TRUST: certs::TrustStore = trust());
    TRUST.with(|trust| trust.issuers().verify(token, FEDERATION, NOW))
}

fn check(what: &str, token: &str, refusal: BadToken) {
    assert_eq!(verify(token), Err(refusal), "{what}");
}

fn check_headers(rows: impl IntoIterator<Item = (&'static str, Value, BadToken)>) {
    for (name, value, refusal) in rows {
        let what = format!("{name}: {value}");
        check(&what, &Forged::sound().header(name, value).sign(), refusal);
    }
}

fn check_claims(rows: impl IntoIterator<Item = (&'static str, Value, BadToken)>) {
    for (name, value, refusal) in rows {
        let what = format!("{name}: {value}");
        check(&what, &Forged::sound().claim(name, value).sign(), refusal);
    }
}

/// Without this the tests below would pass with tokens that are bad for another reason.
#[test]
fn a_sound_token_names_its_caller() {
    let caller = Caller {
        state: state("FR"),
        issuer: ISSUER.into(),
        subject: "alice".into(),
        roles: vec![Role::Researcher],
        entitlements: vec![RESEARCHER.into()],
        assurance: Assurance::Substantial,
        clearances: vec!["health".into()],
        residency: Some(state("FR")),
        token_id: "t-1".into(),
        expires_s: NOW + 600,
    };
    assert_eq!(verify(&Forged::sound().sign()), Ok(caller.clone()));
    assert_eq!(verify(&Forged::sound().header("typ", json!("application/at+jwt")).sign()), Ok(caller.clone()));
    assert_eq!(verify(&Forged::sound().claim("email", json!({"of": ["nobody"]})).sign()), Ok(caller));
}

/// Threat 11.
#[test]
fn an_algorithm_is_the_keys_own() {
    for alg in ["none", "None", "", "HS256", "HS384", "HS512", "ES512", "RS512", "PS384", "eddsa", "Ed25519", "dir"] {
        check_headers([("alg", json!(alg), Algorithm)]);
    }
    for alg in ["ES256", "ES384", "RS256", "PS256"] {
        check_headers([("alg", json!(alg), Algorithm)]);
    }
    check_headers([
        ("alg", json!(null), Algorithm),
        ("alg", json!(["EdDSA"]), Algorithm),
        ("alg", json!(1), Algorithm),
    ]);
}

#[test]
fn a_public_key_is_no_shared_secret() {
    let public = key().public();
    let secrets =
        [public.as_bytes().to_vec(), encode(public.as_bytes()).into_bytes(), jwk(KID, &key()).to_string().into()];
    for secret in secrets {
        for (alg, refusal) in [("HS256", Algorithm), ("EdDSA", Signature)] {
            let forged = Forged::sound().header("alg", json!(alg));
            let hmac_of = |message: &[u8]| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &secret), message);
            let token =
                sign(&forged.header.to_string(), &forged.claims.to_string(), |it| hmac_of(it).as_ref().to_vec());
            check(alg, &token, refusal);
        }
    }
}

#[test]
fn an_unsigned_token_is_refused() {
    let forged = Forged::sound().header("alg", json!("none"));
    let token = sign(&forged.header.to_string(), &forged.claims.to_string(), |_| vec![]);
    check("none, without a signature", &token, Malformed);
    let sound = Forged::sound();
    let signed_by = |signature: Vec<u8>| sign(&sound.header.to_string(), &sound.claims.to_string(), |_| signature);
    for length in [1, 63, 64, 65] {
        check("zeros", &signed_by(vec![0; length]), Signature);
    }
    let (token, other) = (sound.sign(), Forged::sound().claim("sub", json!("mallory")).sign());
    let (message, _) = token.rsplit_once('.').unwrap();
    let (_, signature) = other.rsplit_once('.').unwrap();
    check("of another token", &format!("{message}.{signature}"), Signature);
}

/// Threat 12: nothing in a header is a place to look for keys.
#[test]
fn a_header_has_three_members() {
    let refused = |name: &str| Header(name.to_owned());
    check_headers([
        ("jku", json!("https://evil.example/keys"), refused("jku")),
        ("x5u", json!("https://evil.example/chain"), refused("x5u")),
        ("x5c", json!(["MIIB"]), refused("x5c")),
        ("x5t", json!("abc"), refused("x5t")),
        ("jwk", jwk(KID, &key()), refused("jwk")),
        ("crit", json!(["exp"]), refused("crit")),
        ("crit", json!([]), refused("crit")),
        ("b64", json!(false), refused("b64")),
        ("b64", json!(true), refused("b64")),
        ("zip", json!("DEF"), refused("zip")),
        ("cty", json!("JWT"), refused("cty")),
        ("enc", json!("A128GCM"), refused("enc")),
        ("nonce", json!("1"), refused("nonce")),
        ("Alg", json!("none"), refused("Alg")),
        ("", json!(0), refused("")),
    ]);
    let token = Forged::sound().header(&"x".repeat(4_000), json!(0)).sign();
    check("a long name is shown in part", &token, refused(&"x".repeat(40)));
}

#[test]
fn a_kid_is_a_plain_name() {
    check_headers(
        [
            "../../etc/passwd",
            "/etc/passwd",
            "..",
            "a..b",
            "a/b",
            "a\\b",
            "a b",
            "a\0",
            "",
            "a?b",
            "a#b",
            "%2e",
            "a'--",
            "é",
        ]
        .map(|kid| ("kid", json!(kid), KeyId)),
    );
    check_headers([
        ("kid", json!("k".repeat(129)), KeyId),
        ("kid", json!(null), KeyId),
        ("kid", json!(1), KeyId),
        ("kid", json!([KID]), KeyId),
        ("kid", json!("k".repeat(128)), UnknownKey),
        ("kid", json!("2030-2"), UnknownKey),
        ("kid", json!("https:evil.example"), UnknownKey),
    ]);
}

/// Threat 13, from here on.
#[test]
fn a_token_is_an_access_token() {
    for typ in ["JWT", "jwt", "id+jwt", "at+jwt ", "", "application/", "application/application/at+jwt", "text/at+jwt"]
    {
        check_headers([("typ", json!(typ), Type)]);
    }
    check_headers([("typ", json!(null), Type), ("typ", json!(["at+jwt"]), Type), ("typ", json!(1), Type)]);
}

#[test]
fn a_token_is_for_this_federation_from_one_issuer() {
    check_claims([
        ("aud", json!(null), Claim("aud")),
        ("aud", json!([FEDERATION]), Claim("aud")),
        ("aud", json!([FEDERATION, "other.example"]), Claim("aud")),
        ("aud", json!(1), Claim("aud")),
        ("aud", json!({}), Claim("aud")),
        ("aud", json!("other.example"), BadToken::Audience),
        ("aud", json!(""), BadToken::Audience),
        ("aud", json!("Entente.example"), BadToken::Audience),
        ("iss", json!(null), Claim("iss")),
        ("iss", json!([ISSUER]), Claim("iss")),
        ("iss", json!(1), Claim("iss")),
        ("iss", json!("https://login.de.example"), BadToken::UnknownIssuer),
        ("iss", json!("https://login.fr.example/"), BadToken::UnknownIssuer),
        ("iss", json!(""), BadToken::UnknownIssuer),
    ]);
}

#[test]
fn dates_are_whole_seconds() {
    for name in ["iat", "nbf", "exp"] {
        let bad = [json!(null), json!("1900000000"), json!(1.9e9), json!(-1), json!([NOW]), json!(true), json!(1e300)];
        check_claims(bad.map(|value| (name, value, Claim(name))));
    }
}

#[test]
fn a_token_counts_in_its_time_only() {
    let dated = |iat: u64, nbf: u64, exp: u64| {
        Forged::sound().claim("iat", json!(iat)).claim("nbf", json!(nbf)).claim("exp", json!(exp)).sign()
    };
    let (past, soon) = (NOW - 60, NOW + 600);
    let rows = [
        (dated(past, past, NOW - 29), None),
        (dated(past, past, NOW - 30), Some(BadToken::Expired)),
        (dated(past, past, NOW - 31), Some(BadToken::Expired)),
        (dated(past, past, 0), Some(BadToken::Expired)),
        (dated(NOW + 30, past, soon), None),
        (dated(NOW + 31, past, soon), Some(BadToken::NotYet)),
        (dated(past, NOW + 30, soon), None),
        (dated(past, NOW + 31, soon), Some(BadToken::NotYet)),
        (dated(past, u64::MAX, u64::MAX), Some(BadToken::NotYet)),
        (dated(NOW, NOW, NOW + TOKEN_LIFE_MAX_S), None),
        (dated(NOW, NOW, NOW + TOKEN_LIFE_MAX_S + 1), Some(BadToken::LifeTooLong)),
        (dated(NOW - 1, NOW, NOW + TOKEN_LIFE_MAX_S), Some(BadToken::LifeTooLong)),
        (dated(NOW, NOW - 1, NOW + TOKEN_LIFE_MAX_S), Some(BadToken::LifeTooLong)),
        (dated(0, past, soon), Some(BadToken::LifeTooLong)),
        (dated(past, past, u64::MAX), Some(BadToken::LifeTooLong)),
        (dated(NOW + 20, NOW + 20, NOW + 10), Some(Claim("exp"))),
    ];
    for (row, (token, refusal)) in rows.into_iter().enumerate() {
        assert_eq!(verify(&token).err(), refusal, "row {row}");
    }
}
