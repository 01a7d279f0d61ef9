//! Inputs and outputs over HTTP, against a server of this test.

use std::sync::{Arc, Mutex};

use federation::End;
use gateway::driver::{Isolation, Source, StageIn, StageKind, StageOut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::bench::{Bench, order};

/// What the server was asked, request line and body.
type Asked = Arc<Mutex<Vec<(String, String)>>>;

/// A server that gives every GET of `/data` the same text, takes every PUT, and sends `/moved` elsewhere.
async fn serve() -> (String, Asked) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let host = listener.local_addr().expect("an address").to_string();
    let asked = Asked::default();
    let seen = Arc::clone(&asked);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut bytes = Vec::new();
            let (line, body) = loop {
                let mut piece = [0; 4096];
                let length = stream.read(&mut piece).await.expect("data");
                assert!(length > 0, "the whole request");
                bytes.extend_from_slice(&piece[..length]);
                if let Some(request) = whole(&bytes) {
                    break request;
                }
            };
            let answer = match line.split(' ').nth(1) {
                Some("/data") => "200 OK\r\ncontent-length: 4\r\n\r\ndata",
                Some("/unwell") if is_unwell(&seen) => "503 Service Unavailable\r\ncontent-length: 0\r\n\r\n",
                // The connection ends before the body does.
                Some("/cut") if is_unwell(&seen) => "200 OK\r\ncontent-length: 9\r\n\r\ncut",
                Some("/unwell" | "/cut") if line.starts_with("PUT") => "201 Created\r\ncontent-length: 0\r\n\r\n",
                Some("/unwell" | "/cut") => "200 OK\r\ncontent-length: 4\r\n\r\ndata",
                Some("/moved") => "302 Found\r\nlocation: /data\r\ncontent-length: 0\r\n\r\n",
                _ if line.starts_with("PUT") => "201 Created\r\ncontent-length: 0\r\n\r\n",
                _ => "404 Not Found\r\ncontent-length: 0\r\n\r\n",
            };
            seen.lock().expect("a lock").push((line, body));
            let answer = format!("HTTP/1.1 {answer}");
            stream.write_all(answer.as_bytes()).await.expect("an answer");
        }
    });
    (host, asked)
}

/// The first two requests find the server so.
fn is_unwell(seen: &Asked) -> bool {
    seen.lock().expect("a lock").len() < 2
}

/// Request line and body, when they are whole.
fn whole(bytes: &[u8]) -> Option<(String, String)> {
    let text = String::from_utf8_lossy(bytes).to_string();
    let (head, body) = text.split_once("\r\n\r\n")?;
    let length = head.lines().find_map(|it| it.strip_prefix("content-length: "));
    let length: usize = length.map_or(0, |it| it.parse().expect("a length"));
    let line = head.lines().next()?.to_owned();
    (body.len() == length).then(|| (line, body.to_owned()))
}

#[tokio::test]
async fn an_allowed_host_gives_inputs_and_takes_outputs() {
    let (host, asked) = serve().await;
    let mut bench = Bench::prepare(Isolation::Process);
    bench.settings.http_hosts = vec![host.clone()];
    bench.restart();
    let mut copy = order(&["cp", "in", "out put"]);
    copy.inputs = vec![StageIn {
        path: "/work/in".into(),
        source: Source::Url(format!("http://{host}/data")),
        kind: StageKind::File,
    }];
    copy.outputs = vec![
        StageOut {
            url: format!("http://{host}/result?sign=secret"),
            path: "/work/out put".into(),
            path_prefix: None,
            kind: StageKind::File,
        },
        StageOut {
            url: format!("http://{host}/all/"),
            path: "/work/out*".into(),
            path_prefix: Some("/work".into()),
            kind: StageKind::File,
        },
    ];
    let (end, record) = bench.run(copy).await;
    assert_eq!(end, End::Complete, "{record:?}");
    let line = |it: &str| format!("{it} HTTP/1.1");
    let expected = [
        (line("GET /data"), String::new()),
        (line("PUT /result?sign=secret"), "data".into()),
        (line("PUT /all/out%20put"), "data".into()),
    ];
    assert_eq!(*asked.lock().expect("a lock"), expected);
    assert_eq!(record.outputs[0].url, format!("http://{host}/result"), "without its signature");
    assert_eq!(record.outputs[0].size_bytes, 4);
}

#[tokio::test]
async fn a_redirect_is_not_followed_and_a_missing_file_is_an_error() {
    let (host, asked) = serve().await;
    let mut bench = Bench::prepare(Isolation::Process);
    bench.settings.http_hosts = vec![host.clone()];
    bench.restart();
    for (path, reason) in [("moved", "302"), ("missing", "404")] {
        let mut task = order(&["true"]);
        task.inputs = vec![StageIn {
            path: "/work/in".into(),
            source: Source::Url(format!("http://{host}/{path}")),
            kind: StageKind::File,
        }];
        let (end, record) = bench.run(task).await;
        assert!(matches!(end, End::SystemError { .. }), "{record:?}");
        assert!(record.system_logs[0].contains(reason), "{record:?}");
    }
    assert_eq!(asked.lock().expect("a lock").len(), 2);
}

#[tokio::test]
async fn a_server_that_is_unwell_for_a_moment_is_asked_again() {
    for (from, to) in [("unwell", "out"), ("cut", "out"), ("data", "unwell")] {
        let (host, asked) = serve().await;
        let mut bench = Bench::prepare(Isolation::Process);
        bench.settings.http_hosts = vec![host.clone()];
        bench.restart();
        let mut copy = order(&["cp", "in", "out"]);
        copy.inputs = vec![StageIn {
            path: "/work/in".into(),
            source: Source::Url(format!("http://{host}/{from}")),
            kind: StageKind::File,
        }];
        copy.outputs = vec![StageOut {
            url: format!("http://{host}/{to}"),
            path: "/work/out".into(),
            path_prefix: None,
            kind: StageKind::File,
        }];
        let (end, record) = bench.run(copy).await;
        assert_eq!(end, End::Complete, "{from} {to}: {record:?}");
        let asked = asked.lock().expect("a lock");
        let last = asked.last().expect("requests");
        assert_eq!(last.1, "data", "what was sent in the end is whole");
        let more = if to == "unwell" { 3 } else { 4 };
        assert_eq!(asked.len(), more, "{asked:?}");
    }
}
