//! Heads: what a request has to look like before anything else looks at it.
//!
//! Everything here is either refused by hyper already or let through by it; a reverse proxy would
//! refuse the rest, and a gateway may stand without one.
//!
//! Invariant: behind this there is exactly one host, no way out of a path, and no header in which
//! somebody else claims to know who is speaking.

use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HOST, HeaderName};
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Method, Version};

use super::limits::{HEAD_BYTES_MAX, HEADERS_MAX};
use crate::error::{Code, Problem};
use crate::tes::climbs;

/// The methods that any path here could take.
const METHODS: [Method; 7] =
    [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS];

/// Headers by which proxies say who is speaking. Here that comes from TLS and tokens alone.
const IDENTITY_HEADERS: [&str; 8] = [
    "forwarded",
    "x-real-ip",
    "x-client-cert",
    "x-remote-user",
    "remote-user",
    "x-original-url",
    "x-rewrite-url",
    "client-cert",
];
/// The same, by how their names begin; the last two would be ours.
const IDENTITY_PREFIXES: [&str; 5] = ["x-forwarded-", "x-ssl-", "ssl-client-", "x-entente-", "entente-"];

/// Refuses a head that is ambiguous or too large.
pub fn check(head: &Parts) -> Result<(), Problem> {
    if !METHODS.contains(&head.method) {
        return Err(Problem::new(Code::MethodRefused, "use GET or POST"));
    }
    check_size(&head.headers)?;
    check_host(head)?;
    check_path(head)
}

/// Refuses a body that says it is something else than plain JSON. Who says nothing means JSON.
pub fn check_media(headers: &HeaderMap) -> Result<(), Problem> {
    let bad = |detail| Err(Problem::new(Code::UnsupportedMediaType, detail));
    // Read as it is, a packed body would be called broken JSON.
    if headers.get_all(CONTENT_ENCODING).iter().any(|it| !is_named(it, "identity")) {
        return bad("send the body without a Content-Encoding; it is not unpacked here");
    }
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    match (types.next(), types.next()) {
        (None, _) => Ok(()),
        (Some(one), None) if is_named(one, "application/json") => Ok(()),
        _ => bad("send JSON, and `Content-Type: application/json`"),
    }
}

/// Whether a header's value is this, in any case and with any parameters.
fn is_named(value: &HeaderValue, name: &str) -> bool {
    let essence = value.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default();
    essence.trim_ascii().eq_ignore_ascii_case(name.as_bytes())
}

/// Removes headers that claim to know who is speaking.
pub fn drop_identity(headers: &mut HeaderMap) {
    let claimed: Vec<HeaderName> = headers
        .keys()
        .filter(|name| {
            let name = name.as_str();
            IDENTITY_HEADERS.contains(&name) || IDENTITY_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        })
        .cloned()
        .collect();
    for name in claimed {
        headers.remove(name);
    }
}

fn check_size(headers: &HeaderMap) -> Result<(), Problem> {
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if headers.len() > HEADERS_MAX || bytes > HEAD_BYTES_MAX {
        return Err(Problem::new(
            Code::HeadTooLarge,
            format!("send at most {HEADERS_MAX} headers of {HEAD_BYTES_MAX} bytes in all"),
        ));
    }
    Ok(())
}

fn check_host(head: &Parts) -> Result<(), Problem> {
    let bad = |detail| Err(Problem::new(Code::BadHead, detail));
    let mut hosts = head.headers.get_all(HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (_, Some(_)) => return bad("send one Host header, not several"),
        (None, None) => None,
        (Some(host), None) => match Authority::try_from(host.as_bytes()) {
            Ok(host) if !host.as_str().contains('@') => Some(host),
            _ => return bad("the Host header is no host name with an optional port"),
        },
    };
    let is_http2 = head.version == Version::HTTP_2;
    match (host, head.uri.authority()) {
        (None, Some(_)) if is_http2 => Ok(()),
        (None, _) => bad("send a Host header"),
        // `Authority` compares without regard to case.
        (Some(host), Some(named)) if host != *named => {
            bad("the Host header and the request's target name different hosts")
        }
        (Some(_), _) => Ok(()),
    }
}

fn check_path(head: &Parts) -> Result<(), Problem> {
    let path = head.uri.path();
    let lower = path.to_ascii_lowercase();
    let segments = lower.replace("%2e", ".");
    let here = segments.split('/').any(|segment| segment == ".");
    if has_broken_escape(path) {
        return Err(Problem::new(
            Code::BadHead,
            "write `%` in the path with the two hexadecimal digits that belong to it",
        ));
    }
    if !path.starts_with('/') || climbs(path) || here || lower.contains("%00") {
        return Err(Problem::new(Code::BadHead, "write the path without `.`, `..` and NUL; it is not resolved here"));
    }
    Ok(())
}

/// What comes behind would be read in one way here and in another way by a proxy.
fn has_broken_escape(path: &str) -> bool {
    let mut escapes = path.as_bytes().split(|byte| *byte == b'%');
    escapes.next();
    let is_whole = |rest: &[u8]| rest.len() >= 2 && rest[..2].iter().all(u8::is_ascii_hexdigit);
    !escapes.all(is_whole)
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn check_one(version: Version, method: &str, uri: &str, headers: &[(&str, &str)]) -> bool {
        let mut request = Request::builder().version(version).method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (head, ()) = request.body(()).expect("a request").into_parts();
        check(&head).is_ok()
    }

    #[test]
    fn heads_are_checked() {
        let h1 = Version::HTTP_11;
        let h2 = Version::HTTP_2;
        let host: &[_] = &[("host", "a.example:8443")];
        let none: &[(&str, &str)] = &[];
        for (expected, version, method, uri, headers) in [
            (true, h1, "GET", "/v1/tasks?view=FULL", host),
            (true, h1, "POST", "/v1/tasks/job_1%3Acancel", host),
            (true, h1, "GET", "https://A.example:8443/", host),
            (true, h2, "GET", "https://a.example/", none),
            (true, h2, "GET", "https://a.example/", &[("host", "a.example")]),
            (true, h1, "GET", "/a/..b/c..", host),
            (false, h1, "GET", "/", none),
            (false, h1, "GET", "https://a.example/", none),
            (false, h1, "GET", "https://b.example/", host),
            (false, h2, "GET", "https://a.example/", &[("host", "b.example")]),
            (false, h1, "GET", "/", &[("host", "a"), ("host", "a")]),
            (false, h1, "GET", "/", &[("host", "")]),
            (false, h1, "GET", "/", &[("host", "user@a")]),
            (false, h1, "GET", "/", &[("host", "a b")]),
            (false, h1, "TRACE", "/", host),
            (false, h1, "CONNECT", "a.example:443", host),
            (false, h1, "BREW", "/", host),
            (false, h1, "OPTIONS", "*", host),
            (false, h1, "GET", "/a/../b", host),
            (false, h1, "GET", "/..", host),
            (false, h1, "GET", "/a/./b", host),
            (false, h1, "GET", "/a/%2E%2e/b", host),
            (false, h1, "GET", "/a%2f..%5cb", host),
            (false, h1, "GET", "/a%00", host),
            (true, h1, "GET", "/a%25", host),
            (false, h1, "GET", "/a%", host),
            (false, h1, "GET", "/a%2", host),
            (false, h1, "GET", "/a%zz/b", host),
            (false, h1, "GET", "/%%41", host),
        ] {
            assert_eq!(check_one(version, method, uri, headers), expected, "{method} {uri} {headers:?}");
        }
        let large = "x".repeat(HEAD_BYTES_MAX);
        assert!(!check_one(h1, "GET", "/", &[("host", "a"), ("x", &large)]));
        let many = [("host", "a")].into_iter().chain([("x", "y"); HEADERS_MAX]);
        assert!(!check_one(h1, "GET", "/", &many.collect::<Vec<_>>()));
    }

    #[test]
    fn only_plain_json_is_taken() {
        let json = ("content-type", "application/json");
        let rows: [(bool, &[_]); 11] = [
            (true, &[]),
            (true, &[json]),
            (true, &[("content-type", "Application/JSON ; charset=utf-8")]),
            (true, &[json, ("content-encoding", "identity")]),
            (false, &[("content-type", "")]),
            (false, &[("content-type", "text/plain")]),
            (false, &[("content-type", "application/jsonp")]),
            (false, &[json, json]),
            (false, &[json, ("content-encoding", "gzip")]),
            (false, &[json, ("content-encoding", "identity, gzip")]),
            (false, &[("content-encoding", "identity"), ("content-encoding", "gzip")]),
        ];
        for (expected, headers) in rows {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.append(*name, value.parse().expect("a value"));
            }
            let checked = check_media(&map);
            assert_eq!(checked.is_ok(), expected, "{headers:?}");
            assert!(checked.err().is_none_or(|bad| bad.code() == Code::UnsupportedMediaType), "{headers:?}");
        }
    }

    #[test]
    fn claims_of_identity_are_removed_and_nothing_else() {
        let mut headers = HeaderMap::new();
        for name in [
            "x-forwarded-for",
            "x-forwarded-client-cert",
            "forwarded",
            "x-real-ip",
            "x-entente-caller",
            "entente-revision",
            "x-ssl-client-s-dn",
            "remote-user",
            "authorization",
            "idempotency-key",
        ] {
            headers.insert(name, "me".parse().expect("a value"));
        }
        headers.append("x-forwarded-for", "you".parse().expect("a value"));
        drop_identity(&mut headers);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["authorization", "idempotency-key"]);
    }
}
