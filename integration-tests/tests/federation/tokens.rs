//! Hostile tokens at the public face, each signed as its row says.

use certs::TokenIssuer;
use http::Method;
use integration_tests::{Federation, TASKS};
use serde_json::{Value, json};

fn issuer(federation: &Federation, state: &str) -> TokenIssuer {
    let path = federation.about()["issuers"][state].as_str().expect("a key file");
    let pem = std::fs::read_to_string(path).expect("a key");
    let url = format!("https://login.{}.entente.example", state.to_lowercase());
    TokenIssuer::from_pkcs8_pem(&url, "demo-1", &pem).expect("an issuer")
}

fn claims(state: &str) -> Value {
    let now = gateway::authority::now_s();
    json!({
        "iss": format!("https://login.{}.entente.example", state.to_lowercase()),
        "aud": "entente.example",
        "sub": "mallory",
        "jti": "m-1",
        "iat": now,
        "nbf": now,
        "exp": now + 600,
        "entitlements": ["urn:geant:entente.example:group:researchers"],
    })
}

async fn status(federation: &Federation, token: &str) -> u16 {
    let mut client = federation.client_with("DE", Some(token));
    let answer = client.call(Method::GET, TASKS, None, &[]).await.expect("an answer");
    answer.status.as_u16()
}

#[tokio::test]
async fn a_good_token_is_accepted_and_each_hostile_one_refused() {
    let federation = Federation::start();
    let fr = issuer(&federation, "FR");
    let good = fr.mint(&claims("FR")).expect("a token");
    assert_eq!(status(&federation, &good).await, 200);

    let now = gateway::authority::now_s();
    let changes: &[(&str, &str, Value)] = &[
        ("another audience", "aud", json!("elsewhere.example")),
        ("two audiences", "aud", json!(["entente.example", "elsewhere.example"])),
        ("no audience", "aud", Value::Null),
        ("expired", "exp", json!(now - 31)),
        ("not yet valid", "nbf", json!(now + 3_600)),
        ("issued in the future", "iat", json!(now + 3_600)),
        ("a life of years", "exp", json!(now + 10 * 365 * 86_400)),
        ("dates in words", "exp", json!("never")),
        ("no id", "jti", Value::Null),
        ("no subject", "sub", Value::Null),
        ("another state's issuer", "iss", json!("https://login.de.entente.example")),
        ("an unknown issuer", "iss", json!("https://login.example")),
        ("two issuers", "iss", json!(["https://login.fr.entente.example"])),
    ];
    for (what, claim, value) in changes {
        let mut hostile = claims("FR");
        match value {
            Value::Null => {
                hostile.as_object_mut().expect("claims").remove(*claim);
            }
            value => hostile[*claim] = value.clone(),
        }
        let token = fr.mint(&hostile).expect("a token");
        assert_eq!(status(&federation, &token).await, 401, "{what}");
    }

    let none = good.replacen(good.split('.').next().expect("a header"), "eyJhbGciOiJub25lIn0", 1);
    let cut = good.rsplit_once('.').expect("a signature").0;
    for (what, token) in
        [("alg none", none.as_str()), ("no signature", cut), ("no token at all", "a"), ("a giant", &"a".repeat(10_000))]
    {
        assert_eq!(status(&federation, token).await, 401, "{what}");
    }
}

#[tokio::test]
async fn forwarded_identity_headers_make_nobody_anyone() {
    let federation = Federation::start();
    let mut anyone = federation.client_with("DE", None);
    for name in ["x-forwarded-client-cert", "x-forwarded-user", "x-entente-caller", "forwarded"] {
        let header = (
            name.parse().expect("a header name"),
            "spiffe://de.entente.example/gateway/de-1".parse().expect("a value"),
        );
        let answer = anyone.call(Method::GET, TASKS, None, &[header]).await.expect("an answer");
        assert_eq!(answer.status, 401, "{name}");
    }
}
