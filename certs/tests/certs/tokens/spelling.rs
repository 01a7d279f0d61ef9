//! Spelling: one way to write a token, names that come once, and claims of the size that people have.

use certs::BadToken::{self, Claim, Malformed, TooLarge, Twice};
use certs::{Assurance, TOKEN_BYTES_MAX};
use serde_json::{Value, json};

use super::forge::{Forged, encode, key, sign};
use super::{check, check_claims, verify};

fn signed(header: &str, claims: &str) -> String {
    sign(header, claims, |message| key().sign(message).to_vec())
}

#[test]
fn a_token_has_three_parts_of_base64url() {
    let sound = Forged::sound().sign();
    let parts: Vec<&str> = sound.split('.').collect();
    let [header, claims, signature] = parts[..] else { panic!("three parts") };
    let rows = [
        String::new(),
        ".".into(),
        "..".into(),
        "....".into(),
        header.into(),
        format!("{header}.{claims}"),
        format!("{header}.{claims}."),
        format!("{header}..{signature}"),
        format!(".{claims}.{signature}"),
        format!(".{header}.{claims}.{signature}"),
        format!("{sound}."),
        format!("{sound}.x"),
        format!("{sound}.x.y"),
        format!("{sound}="),
        format!("{sound}=="),
        format!("{header}=.{claims}.{signature}"),
        format!("{header}.{claims}=.{signature}"),
        format!("{sound}\n"),
        format!(" {sound}"),
        format!("Bearer {sound}"),
        format!("{header}.{claims}.{}+", &signature[..85]),
        format!("{header}.{claims}.{}/", &signature[..85]),
        format!("{header}+/{claims}.{signature}"),
        format!("{}+.{claims}.{signature}", &header[..header.len() - 1]),
        sound.replace('.', "\u{ff0e}"),
    ];
    for token in rows {
        check(&token, &token, Malformed);
    }
}

/// The last digit of 64 bytes carries two bits; the other four have one spelling only.
#[test]
fn a_signature_is_spelt_in_one_way() {
    let sound = Forged::sound().sign();
    let (rest, last) = sound.split_at(sound.len() - 1);
    let others = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_".chars();
    for other in others.filter(|it| *it != last.chars().next().unwrap()) {
        assert!(verify(&format!("{rest}{other}")).is_err(), "{other} instead of {last}");
    }
}

#[test]
fn a_token_has_a_size() {
    let padded = |bytes: usize| Forged::sound().claim("padding", json!("x".repeat(bytes))).sign();
    check("9 KiB", &padded(9 * 1024), TooLarge);
    check("a gap of nothing", &".".repeat(TOKEN_BYTES_MAX + 1), TooLarge);
    check("dots", &".".repeat(TOKEN_BYTES_MAX), Malformed);
    let large = padded(5_400);
    assert!((7 * 1024..=TOKEN_BYTES_MAX).contains(&large.len()));
    assert!(verify(&large).is_ok());
}

#[test]
fn no_name_comes_twice() {
    let sound = Forged::sound();
    let (header, claims) = (sound.header.to_string(), sound.claims.to_string());
    let with = |object: &str, more: &str| format!("{},{more}}}", object.strip_suffix('}').unwrap());
    let twice = |name: &str| Twice(name.to_owned());
    for (name, more) in [
        ("sub", r#""sub":"mallory""#),
        ("sub", r#""sub":"alice""#),
        ("sub", r#""\u0073ub":"mallory""#),
        ("aud", r#""aud":"entente.example""#),
        ("exp", r#""exp":1900000600"#),
        ("iss", r#""iss":"https://login.fr.example""#),
        ("residency", r#""residency":null"#),
    ] {
        check(more, &signed(&header, &with(&claims, more)), twice(name));
    }
    for (name, more) in [("alg", r#""alg":"none""#), ("kid", r#""kid":"2030-1""#), ("typ", r#""typ":"at+jwt""#)] {
        check(more, &signed(&with(&header, more), &claims), twice(name));
    }
    let short = signed(&header, &with(&claims, r#""unknown":1,"unknown":2"#));
    check("of those that nobody reads", &short, twice("unknown"));
}

#[test]
fn a_part_is_one_json_object() {
    let sound = Forged::sound();
    let (header, claims) = (sound.header.to_string(), sound.claims.to_string());
    let nested = format!(r#"{{"iss":{}{}}}"#, "[".repeat(2_000), "]".repeat(2_000));
    let unclosed = format!(r#"{{"iss":{}"#, "[".repeat(4_000));
    let bad = ["", "null", "[]", "1", "\"alice\"", "{", "{}{}", "{} x", "\u{feff}{}", "{'iss':1}", &nested, &unclosed];
    for part in bad {
        check(part, &signed(part, &claims), Malformed);
        check(part, &signed(&header, part), Malformed);
    }
    let not_utf_8 = format!("{}.{}.{}", encode(&header), encode(b"{\"iss\":\"\xff\"}"), encode([0; 64]));
    check("not UTF-8", &not_utf_8, Malformed);
}

#[test]
fn who_and_which_token_are_said() {
    for name in ["sub", "jti"] {
        let bad = [json!(null), json!(""), json!(1), json!(["alice"]), json!({}), json!("a\nb"), json!("a\u{0}b")];
        check_claims(bad.map(|value| (name, value, Claim(name))));
    }
    check_claims([("sub", json!("x".repeat(257)), Claim("sub")), ("jti", json!("x".repeat(129)), Claim("jti"))]);
    assert!(verify(&Forged::sound().claim("sub", json!("x".repeat(256))).sign()).is_ok());
    assert!(verify(&Forged::sound().claim("jti", json!("x".repeat(128))).sign()).is_ok());
}

#[test]
fn lists_are_lists_of_texts() {
    for name in ["entitlements", "clearances", "eduperson_assurance"] {
        let bad = [json!("one"), json!(1), json!({}), json!([1]), json!([[]]), json!([""]), json!(["x".repeat(257)])];
        check_claims(bad.map(|value| (name, value, Claim(name))));
    }
    check_claims([
        ("entitlements", json!(vec!["x"; 129]), Claim("entitlements")),
        ("clearances", json!(vec!["x"; 33]), Claim("clearances")),
        ("residency", json!("EU"), Claim("residency")),
        ("residency", json!("fr"), Claim("residency")),
        ("residency", json!(["FR"]), Claim("residency")),
    ]);
}

/// What is not said is not believed.
#[test]
fn nothing_is_assumed() {
    let silent = ["entitlements", "clearances", "eduperson_assurance", "residency"]
        .into_iter()
        .fold(Forged::sound(), |it, name| it.claim(name, Value::Null));
    let caller = verify(&silent.sign()).unwrap();
    assert_eq!((caller.roles, caller.clearances, caller.residency), (vec![], vec![], None));
    assert_eq!(caller.assurance, Assurance::Low);
    for other in ["https://refeds.org/assurance/IAP/HIGH", "high", "https://refeds.org/assurance/IAP/high/", "x"] {
        let forged = Forged::sound().claim("eduperson_assurance", json!([other]));
        assert_eq!(verify(&forged.sign()).unwrap().assurance, Assurance::Low, "{other}");
    }
    let unknown: Result<_, BadToken> = verify(&Forged::sound().claim("roles", json!(["operator"])).sign());
    assert_eq!(unknown.unwrap().roles, [certs::Role::Researcher], "a role is not the token's to say");
}
