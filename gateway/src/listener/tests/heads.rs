//! Heads: ambiguous and oversized ones are refused, and none says who is speaking.

use super::*;

#[tokio::test]
async fn ambiguous_and_oversized_heads_are_refused() {
    let under = Under::public(Limits::public()).await;
    let many: String = (0..100).map(|number| format!("x-{number}: y\r\n")).collect();
    let large = format!("x: {}\r\n", "y".repeat(20_000));
    let rows = [
        ("200", "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".to_owned()),
        ("400", "GET / HTTP/1.1\r\n\r\n".to_owned()),
        ("400", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".to_owned()),
        ("400", "GET /a/../b HTTP/1.1\r\nHost: a\r\n\r\n".to_owned()),
        ("400", "GET /%2e%2E/b HTTP/1.1\r\nHost: a\r\n\r\n".to_owned()),
        ("501", "TRACE / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned()),
        ("501", "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n".to_owned()),
        (
            "400",
            "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
                .to_owned(),
        ),
        (
            "400",
            "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"
                .to_owned(),
        ),
        ("200", "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned()),
        ("431", format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n")),
        ("431", format!("GET / HTTP/1.1\r\nHost: a\r\n{large}\r\n")),
    ];
    for (expected, request) in rows {
        let answer = under.exchange(request.as_bytes()).await;
        assert_eq!(status(&answer), expected, "{request:.200}\n{answer}");
    }
}

#[tokio::test]
async fn a_smuggled_request_is_never_answered() {
    let under = Under::public(Limits::public()).await;
    let smuggled = "GET /headers HTTP/1.1\r\nHost: a\r\nsmuggled: yes\r\n\r\n";
    for head in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Transfer-Encoding: chunked\r\n",
    ] {
        let request = format!("POST /echo HTTP/1.1\r\nHost: a\r\n{head}\r\n0\r\n\r\n{smuggled}");
        let answer = under.exchange(request.as_bytes()).await;
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
        assert!(!answer.contains("smuggled"), "{answer}");
    }
}

#[tokio::test]
async fn claims_of_identity_do_not_reach_the_app() {
    let under = Under::public(Limits::public()).await;
    let request = "GET /headers HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: me\r\nForwarded: for=me\r\n\
                   X-Forwarded-Client-Cert: me\r\nX-Entente-Caller: me\r\nX-Real-IP: me\r\n\
                   Accept: text/plain\r\nConnection: close\r\n\r\n";
    let answer = under.exchange(request.as_bytes()).await;
    let (_, names) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let mut names: Vec<_> = names.lines().collect();
    names.sort_unstable();
    assert_eq!(names, ["accept", "connection", "host"]);
}
