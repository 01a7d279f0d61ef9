//! Noise: whatever is done to a token, nobody becomes another caller and nothing panics.

use certs::{Caller, IssuerSet, TrustStore};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::Value;

use super::forge::{Forged, key, provider, sign, trust};
use super::verify;
use crate::states::{FEDERATION, NOW};

/// One change to a text.
#[derive(Clone, Debug)]
enum Change {
    Put(Index, char),
    Insert(Index, char),
    Remove(Index),
    Swap(Index, Index),
    Cut(Index),
    Repeat(Index, Index),
}

fn change() -> impl Strategy<Value = Change> {
    let digit = prop_oneof![9 => "[A-Za-z0-9_.-]".prop_map(|it| it.chars().next().unwrap()), 1 => any::<char>()];
    let at = any::<Index>;
    prop_oneof![
        6 => (at(), digit.clone()).prop_map(|(at, it)| Change::Put(at, it)),
        2 => (at(), digit).prop_map(|(at, it)| Change::Insert(at, it)),
        2 => at().prop_map(Change::Remove),
        2 => (at(), at()).prop_map(|(one, other)| Change::Swap(one, other)),
        1 => at().prop_map(Change::Cut),
        1 => (at(), at()).prop_map(|(one, other)| Change::Repeat(one, other)),
    ]
}

fn apply(text: &mut Vec<char>, change: &Change) {
    if text.is_empty() {
        return;
    }
    let length = text.len();
    let at = |index: &Index| index.index(length);
    match change {
        Change::Put(index, it) => {
            let at = at(index);
            text[at] = *it;
        }
        Change::Insert(index, it) => text.insert(at(index), *it),
        Change::Remove(index) => drop(text.remove(at(index))),
        Change::Swap(one, other) => text.swap(at(one), at(other)),
        Change::Cut(index) => text.truncate(at(index)),
        Change::Repeat(one, other) => {
            let (one, other) = (at(one), at(other));
            let again = text[one.min(other)..one.max(other)].to_vec();
            text.extend(again);
        }
    }
}

fn changed(text: &str, changes: &[Change]) -> String {
    let mut text = text.chars().collect();
    for change in changes {
        apply(&mut text, change);
    }
    text.into_iter().collect()
}

fn sound() -> (String, Caller) {
    let token = Forged::sound().sign();
    let caller = verify(&token).unwrap();
    (token, caller)
}

/// Any JSON, shallow.
fn json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            vec(("[a-z]{1,5}", inner), 0..4).prop_map(|it| Value::Object(it.into_iter().collect())),
        ]
    })
}

fn name() -> impl Strategy<Value = &'static str> {
    let names = ["iss", "sub", "jti", "aud", "iat", "nbf", "exp", "entitlements", "clearances", "eduperson_assurance"];
    prop::sample::select([&names[..], &["residency", "alg", "typ", "kid"]].concat())
}

fn ask(issuers: &IssuerSet, token: &str, now_s: u64) -> Option<Caller> {
    issuers.verify(token, FEDERATION, now_s).ok()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_changed_token_is_nobody_elses(changes in vec(change(), 1..4)) {
        let (token, caller) = sound();
        let changed = changed(&token, &changes);
        if let Ok(found) = verify(&changed) {
            prop_assert_eq!(found, caller);
            prop_assert_eq!(changed, token, "one caller, one spelling");
        }
    }

    #[test]
    fn claims_under_another_signature_are_nobodys(changes in vec(change(), 1..4)) {
        let (token, _) = sound();
        let claims = Forged::sound().claims.to_string();
        let changed = changed(&claims, &changes);
        prop_assume!(changed != claims);
        let signature = token.rsplit_once('.').unwrap().1;
        let forged = sign(&Forged::sound().header.to_string(), &changed, |_| vec![]);
        prop_assert!(verify(&(forged + signature)).is_err());
    }

    #[test]
    fn whatever_is_signed_is_read_without_panic(header in any::<bool>(), name in name(), value in json(), now_s: u64) {
        let forged = if header { Forged::sound().header(name, value) } else { Forged::sound().claim(name, value) };
        thread_local!(static TRUST: TrustStore = trust());
        for now_s in [NOW, now_s, 0, u64::MAX] {
            TRUST.with(|trust| ask(trust.issuers(), &forged.sign(), now_s));
        }
    }

    #[test]
    fn changed_texts_that_are_signed_are_read_without_panic(changes in vec(change(), 1..6)) {
        let sound = Forged::sound();
        let header = changed(&sound.header.to_string(), &changes);
        let claims = changed(&sound.claims.to_string(), &changes);
        let signer = |message: &[u8]| key().sign(message).to_vec();
        let _read = verify(&sign(&header, &sound.claims.to_string(), signer));
        let _read = verify(&sign(&sound.header.to_string(), &claims, signer));
    }

    #[test]
    fn any_text_is_nobodys(text in ".{0,200}") {
        prop_assert!(verify(&text).is_err());
    }

    #[test]
    fn any_key_set_is_read_without_panic(keys in vec(json(), 0..3), name in "kty|crv|alg|use|kid|x", value in json()) {
        let mut jwk = super::jwk("k", &key());
        jwk[name] = value;
        let entries = [provider("https://a.example", &keys), provider("https://b.example", &[jwk])];
        let mut bundle = crate::states::State::new("FR").bundle(&[]);
        for entry in entries {
            bundle.issuers = vec![entry];
            let _read = TrustStore::new(crate::states::federation(), [bundle.clone()]);
        }
    }
}
