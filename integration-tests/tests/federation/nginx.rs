//! Requests that are malformed or ambiguous, in comparison with nginx.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use futures_util::future::join_all;
use integration_tests::{Federation, PATIENCE, TASKS, eventually, skip_without, task};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::strangers::{public, strange_client, tls};

/// nginx with the configuration that it comes with, in front of another one that answers everything: so it reads bodies.
struct Nginx {
    process: Child,
    folder: tempfile::TempDir,
}

impl Nginx {
    fn found() -> Option<Nginx> {
        let there = Command::new("nginx").arg("-v").stderr(Stdio::null()).status().is_ok_and(|it| it.success());
        if skip_without("nginx", there) {
            return None;
        }
        let folder = tempfile::tempdir().expect("a folder");
        let at = folder.path().display();
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|what| format!("{what}_temp_path {at}/{what};"))
            .concat();
        let account = if nix::unistd::geteuid().is_root() { "user root;" } else { "" };
        let text = format!(
            "daemon off; worker_processes 1; pid {at}/pid; error_log {at}/error.log; {account}
             events {{ worker_connections 512; }}
             http {{ access_log off; keepalive_timeout 0; {temporary}
               server {{ listen unix:{at}/back; location / {{ return 200 fine; }} }}
               server {{ listen unix:{at}/front; location / {{ proxy_pass http://unix:{at}/back; }} }} }}"
        );
        let config = folder.path().join("nginx.conf");
        std::fs::write(&config, text).expect("a configuration");
        let mut command = Command::new("nginx");
        command.arg("-p").arg(folder.path()).arg("-c").arg(config).stdin(Stdio::null()).stderr(Stdio::null());
        Some(Nginx { process: command.spawn().expect("nginx starts"), folder })
    }

    async fn connect(&self) -> UnixStream {
        let path = self.folder.path().join("front");
        eventually("nginx listens", async || UnixStream::connect(&path).await.ok()).await
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // In order, so that its worker goes with it.
        let pid = nix::unistd::Pid::from_raw(self.process.id() as i32);
        let _already_gone = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _status = self.process.wait();
    }
}

/// Everything that is answered until the other side ends it.
async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, bytes: &[u8]) -> Vec<u8> {
    // It may be refused before it is read to its end.
    let _refused_early = stream.write_all(bytes).await;
    let mut answer = vec![];
    let _cut_off = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an end");
    answer
}

/// The status, if one is said. 0: an answer without one, as of HTTP/0.9. Nothing: closed in silence.
fn status(answer: &[u8]) -> Option<u16> {
    if answer.is_empty() {
        return None;
    }
    let text = String::from_utf8_lossy(answer);
    let said = text.strip_prefix("HTTP/").and_then(|it| it.split(' ').nth(1)?.parse().ok());
    Some(said.unwrap_or(0))
}

/// Refused for its form, and not for what it asks: a handler would say 401, 404 or 405.
fn is_refused(status: Option<u16>) -> bool {
    status.is_none_or(|it| it >= 400 && ![401, 403, 404, 405].contains(&it))
}

/// What is asked, after the request line; `CONTROL` marks what both have to take.
fn rows(token: &str) -> Vec<(&'static str, bool, Vec<u8>)> {
    let mut rows = vec![];
    let mut add = |what, control, text: String| rows.push((what, control, text.into_bytes()));
    let close = "Connection: close\r\n";
    let get = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: a\r\n{close}\r\n");
    let headed = |headers: &str| format!("GET /v1/health HTTP/1.1\r\n{headers}{close}\r\n");
    let line = |line: &str| format!("{line}\r\nHost: a\r\n{close}\r\n");
    let body = task(&["true"]).to_string();
    let post = |headers: &str, body: &str| {
        let known = format!("Authorization: Bearer {token}\r\nContent-Type: application/json\r\n");
        format!("POST {TASKS} HTTP/1.1\r\nHost: a\r\n{known}{close}{headers}\r\n{body}")
    };
    let length = body.len();
    let of_length = format!("Content-Length: {length}\r\n");
    let chunked = "Transfer-Encoding: chunked\r\n";
    let in_chunks = |size: &str, end: &str| post(chunked, &format!("{size}\r\n{body}{end}0\r\n\r\n"));
    let whole = format!("{length:x}\r\n{body}\r\n0\r\n\r\n");

    add("a GET", true, get("/v1/health"));
    add("a body with its length", true, post(&of_length, &body));
    add("a body in chunks", true, post(chunked, &whole));

    add("no Host", false, headed(""));
    add("two Hosts", false, headed("Host: a\r\nHost: b\r\n"));
    add("the same Host twice", false, headed("Host: a\r\nHost: a\r\n"));
    add("a Host with a path", false, headed("Host: a/b\r\n"));
    add("a Host with a space", false, headed("Host: a b\r\n"));
    add("an empty Host", false, headed("Host:\r\n"));
    add("HTTP/1.0 without Host", false, format!("GET /v1/health HTTP/1.0\r\n{close}\r\n"));

    add("length, then chunks", false, post(&format!("{of_length}{chunked}"), &whole));
    add("chunks, then length", false, post(&format!("{chunked}{of_length}"), &whole));
    add("two lengths", false, post(&format!("{of_length}Content-Length: 1\r\n"), &body));
    add("the same length twice", false, post(&format!("{of_length}{of_length}"), &body));
    add("a list of lengths", false, post(&format!("Content-Length: {length}, {length}\r\n"), &body));
    add("a length with a sign", false, post(&format!("Content-Length: +{length}\r\n"), &body));
    add("a negative length", false, post("Content-Length: -1\r\n", &body));
    add("a length in hex", false, post(&format!("Content-Length: 0x{length:x}\r\n"), &body));
    add("a length that overflows", false, post("Content-Length: 18446744073709551617\r\n", &body));
    add("an empty length", false, post("Content-Length:\r\n", &body));
    add("another coding first", false, post("Transfer-Encoding: gzip, chunked\r\n", &whole));
    add("another coding last", false, post("Transfer-Encoding: chunked, gzip\r\n", &whole));
    add("chunked twice", false, post("Transfer-Encoding: chunked, chunked\r\n", &whole));
    add("two codings", false, post(&format!("{chunked}{chunked}"), &whole));
    add("an unknown coding", false, post("Transfer-Encoding: xchunked\r\n", &whole));
    add("a coding after a tab", false, post("Transfer-Encoding:\x0bchunked\r\n", &whole));
    add("chunks in HTTP/1.0", false, post(chunked, &whole).replacen("HTTP/1.1", "HTTP/1.0", 1));

    add("a chunk of no size", false, in_chunks("", "\r\n"));
    add("a chunk of letters", false, in_chunks("xyz", "\r\n"));
    add("a chunk of negative size", false, in_chunks(&format!("-{length:x}"), "\r\n"));
    add("a chunk size with 0x", false, in_chunks(&format!("0x{length:x}"), "\r\n"));
    add("a chunk size that overflows", false, in_chunks(&format!("1{length:016x}"), "\r\n"));
    add("a chunk that is longer than it says", false, in_chunks(&format!("{:x}", length - 1), "\r\n"));
    add("a chunk without an end of line", false, in_chunks(&format!("{length:x}"), ""));
    add("a chunk size before a bare CR", false, post(chunked, &whole.replacen("\r\n", "\r", 1)));

    add("a folded header", false, headed("Host: a\r\nX-A: b\r\n c\r\n"));
    add("a folded first header", false, headed(" Host: a\r\nHost: a\r\n"));
    add("a header without a colon", false, headed("Host: a\r\nX-A\r\n"));
    add("a header without a name", false, headed("Host: a\r\n: b\r\n"));
    add("a space before the colon", false, headed("Host : a\r\nHost: a\r\n"));
    add("a bare CR in a header", false, headed("Host: a\r\nX-A: b\rX-C: d\r\n"));
    add("a bare CR at the end of a header", false, headed("Host: a\r\nX-A: b\r"));
    add("a NUL in a header", false, headed("Host: a\r\nX-A: b\0c\r\n"));
    add("a NUL in a header's name", false, headed("Host: a\r\nX\0A: b\r\n"));
    add("bare LF everywhere", false, get("/v1/health").replace("\r\n", "\n"));
    add("a CR before CRLF", false, headed("Host: a\r\nX-A: b\r\r\n"));
    add("a header of 64 KiB", false, headed(&format!("Host: a\r\nX-A: {}\r\n", "b".repeat(65_536))));
    add("a target of 64 KiB", false, get(&format!("/v1/health?a={}", "b".repeat(65_536))));

    add("CONNECT", false, line("CONNECT a:443 HTTP/1.1"));
    add("CONNECT to a path", false, line("CONNECT /v1/health HTTP/1.1"));
    add("TRACE", false, line("TRACE /v1/health HTTP/1.1"));
    add("a method in small letters", false, line("get /v1/health HTTP/1.1"));
    add("a method that is no token", false, line("G(T /v1/health HTTP/1.1"));
    add("no method", false, line(" /v1/health HTTP/1.1"));
    add("no target", false, line("GET HTTP/1.1"));

    add("a way up and out", false, get("/../../v1/health"));
    add("a coded way up and out", false, get("/%2e%2e/v1/health"));
    add("a half coded way up and out", false, get("/.%2E/v1/health"));
    add("a way down and further up", false, get("/v1/../../v1/health"));
    add("a NUL in the target", false, get("/v1/health\0"));
    add("a coded NUL in the target", false, get("/v1/health%00"));
    add("a broken escape", false, get("/v1/%zz"));
    add("half an escape", false, get("/v1/health%"));
    add("a space in the target", false, get("/v1/he alth"));
    add("a tab in the target", false, get("/v1/he\talth"));
    add("a CR in the target", false, get("/v1/he\ralth"));
    add("a target without a slash", false, get("v1/health"));
    add("another host in the target", false, get("http://b/v1/health"));
    add("a scheme without a host", false, get("http:///v1/health"));
    add("a star", false, get("*"));

    add("HTTP/0.9", false, "GET /v1/health\r\n".into());
    add("HTTP/1.2", false, line("GET /v1/health HTTP/1.2"));
    add("HTTP/2.0", false, line("GET /v1/health HTTP/2.0"));
    add("HTTP/9.9", false, line("GET /v1/health HTTP/9.9"));
    add("HTTP/11.1", false, line("GET /v1/health HTTP/11.1"));
    add("half a version", false, line("GET /v1/health HTTP/1."));
    add("another protocol", false, line("GET /v1/health HTTQ/1.1"));
    add("a protocol in small letters", false, line("GET /v1/health http/1.1"));
    add("a tab before the version", false, line("GET /v1/health\tHTTP/1.1"));
    add("something after the version", false, line("GET /v1/health HTTP/1.1 x"));
    add("no end of the request line but CR", false, get("/v1/health").replacen("\r\n", "\r", 1));
    rows
}

/// Below that many rows nginx would have become something else.
const NGINX_REFUSES_MIN: usize = 35;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_nginx_refuses_is_refused_here() {
    let Some(nginx) = Nginx::found() else { return };
    let federation = Federation::start();
    let (address, client) = (public(&federation, "FR"), strange_client(&federation, "FR", "http/1.1"));
    let rows = rows(&federation.token("researcher.FR"));
    // All at once: some wait for more until their time is over.
    let asked = rows.iter().map(async |(_, _, bytes)| {
        let there = async { exchange(nginx.connect().await, bytes).await };
        let here = async {
            let socket = TcpStream::connect(address).await.expect("a connection");
            exchange(tls(Arc::clone(&client), socket).await.expect("a handshake"), bytes).await
        };
        let (there, here) = tokio::join!(there, here);
        (status(&there), status(&here))
    });
    let answers = join_all(asked).await;
    let (mut laxer, mut refused) = (vec![], 0);
    for ((what, control, _), (there, here)) in rows.iter().zip(answers) {
        let nginx_refuses = there.is_none_or(|it| it >= 400);
        refused += usize::from(nginx_refuses);
        eprintln!("{what}: nginx {there:?}, here {here:?}");
        if *control {
            assert_eq!((there, here), (Some(200), Some(200)), "{what}");
        } else if nginx_refuses && !is_refused(here) {
            laxer.push(format!("{what}: nginx {there:?}, here {here:?}"));
        }
    }
    eprintln!("nginx refuses {refused} of {}", rows.len());
    assert!(laxer.is_empty(), "{laxer:#?}");
    assert!(refused >= NGINX_REFUSES_MIN, "nginx refuses {refused} only");
    let mut reader = federation.client_with("FR", None);
    assert_eq!(reader.read("/v1/health").await.expect("an answer")["status"], "ok", "others are served");
}
