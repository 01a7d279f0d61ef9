//! Heads: what a request has to look like before anything else looks at it.
//!
//! Everything here is either refused by hyper already or let through by it; a reverse proxy would
//! refuse the rest, and a gateway may stand without one.
//!
//! Invariant: behind this there is exactly one host, no way out of a path, and no header in which
//! somebody else claims to know who is speaking.

use http::header::{HOST, HeaderName};
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderMap, Method, Version};

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
    if !path.starts_with('/') || climbs(path) || here || lower.contains("%00") {
        return Err(Problem::new(Code::BadHead, "write the path without `.`, `..` and NUL; it is not resolved here"));
    }
    Ok(())
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
        ] {
            assert_eq!(check_one(version, method, uri, headers), expected, "{method} {uri} {headers:?}");
        }
        let large = "x".repeat(HEAD_BYTES_MAX);
        assert!(!check_one(h1, "GET", "/", &[("host", "a"), ("x", &large)]));
        let many = [("host", "a")].into_iter().chain([("x", "y"); HEADERS_MAX]);
        assert!(!check_one(h1, "GET", "/", &many.collect::<Vec<_>>()));
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
