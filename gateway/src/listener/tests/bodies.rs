//! Bodies: bounded, plain JSON, and no reason to end a connection when they are not wanted.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::listener::frames::samples::{PREFACE, frame};

#[tokio::test]
async fn bodies_are_bounded_one_by_one_and_together() {
    let limits = Limits { body_bytes: 3_000, ..Limits::public() };
    let one_by_one = Under::public(Limits::public()).await;
    let together = Under::public(limits).await;
    for (under, bytes, expected) in [
        (&one_by_one, 4_096, "200"),
        (&one_by_one, 4_097, "413"),
        (&together, 2_500, "200"),
        (&together, 3_500, "429"),
        // What was held is given back.
        (&together, 2_500, "200"),
    ] {
        let body = "x".repeat(bytes);
        let request =
            format!("POST /echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {bytes}\r\n\r\n{body}");
        let answer = under.exchange(request.as_bytes()).await;
        assert_eq!(status(&answer), expected, "{bytes}: {answer:.500}");
    }
}

/// Most clients read no answer before they have sent all; on a connection that is reset meanwhile they would find none.
#[tokio::test]
async fn whoever_sends_all_of_a_refused_body_before_he_reads_is_told_why() {
    let sound = "POST /echo HTTP/1.1\r\nHost: a\r\n";
    let not_json = "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\n";
    let under = Under::public(Limits::public()).await;
    for (head, expected) in [(sound, "413"), (not_json, "415")] {
        let mut stream = under.connect().await;
        let body = vec![b'x'; 12 * 1_024 * 1_024];
        let head = format!("{head}Content-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        patient(stream.write_all(head.as_bytes())).await.expect("taken");
        patient(stream.write_all(&body)).await.expect("taken, though it is not wanted");
        let answer = until_end(&mut stream).await;
        assert_eq!(status(&answer), expected, "{answer:.500}");
    }
}

/// A buffer that is counted as long as it is kept.
struct Kept(Arc<AtomicUsize>);

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        b"x"
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Each piece is a view of what was read with it, and of thousands of pieces a body of one-byte pieces would keep it all.
#[tokio::test]
async fn a_body_in_tiny_pieces_keeps_no_buffer_of_theirs() {
    let kept = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let piece = |_| {
        most.fetch_max(kept.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
        Ok::<_, Infallible>(hyper::body::Frame::data(Bytes::from_owner(Kept(Arc::clone(&kept)))))
    };
    let body = http_body_util::StreamBody::new(stream::iter((0..10_000).map(piece)));
    let whole = gather(body).await.expect("a body");
    assert_eq!((whole.len(), most.load(Ordering::Relaxed)), (10_000, 1));
}

#[tokio::test]
async fn a_body_that_is_not_plain_json_is_refused_in_words() {
    let under = Under::public(Limits::public()).await;
    for (expected, headers) in [
        ("200", ""),
        ("200", "Content-Type: application/json\r\n"),
        ("415", "Content-Type: text/plain\r\n"),
        ("415", "Content-Type: application/json\r\nContent-Encoding: gzip\r\n"),
    ] {
        let request =
            format!("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nConnection: close\r\n{headers}\r\n{{}}");
        let answer = under.exchange(request.as_bytes()).await;
        assert_eq!(status(&answer), expected, "{headers:?}: {answer}");
        assert_eq!(answer.contains("application/problem+json"), expected == "415", "{answer}");
    }
}

/// More than this side may reset, in rounds of more than it remembers to have reset.
const REFUSED_IN_A_ROUND: u32 = 90;
const ROUNDS: u32 = 30;

/// A client that sends its bodies as soon as it can has them on their way when it is refused: it cannot know.
#[tokio::test]
async fn whoever_is_refused_while_his_bodies_arrive_keeps_his_connection() {
    const DATA: u8 = 0;
    const HEADERS: u8 = 1;
    const SETTINGS: u8 = 4;
    const WINDOW_UPDATE: u8 = 8;
    let (end_stream, end_headers) = (1, 4);
    // By the listener, and by what is behind it.
    for limits in [Limits { requests: 0, ..Limits::public() }, Limits::public()] {
        let under = start(tls::public(b"h2"), Face::Public, limits).await;
        let (mut reading, mut writing) = tokio::io::split(under.connect().await);
        let (count, mut answers) = watch::channel(0);
        tokio::spawn(async move {
            let mut head = [0; 9];
            while reading.read_exact(&mut head).await.is_ok() {
                let mut content = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
                reading.read_exact(&mut content).await.expect("a whole frame");
                if head[3] == HEADERS {
                    count.send_modify(|count| *count += 1);
                }
            }
        });
        // Source: RFC 7541, appendix A: POST, https, /nowhere, an authority, a content type.
        let text = |name: &[u8], text: &str| [name, &[text.len() as u8], text.as_bytes()].concat();
        let content_type = text(&[0x0f, 0x10], "application/json");
        let head = [vec![0x83, 0x87], text(&[0x04], "/nowhere"), text(&[0x01], HOST), content_type].concat();
        let room = [frame(SETTINGS, 0, 0, &[]), frame(WINDOW_UPDATE, 0, 0, &(1_u32 << 30).to_be_bytes())].concat();
        let preface = [PREFACE, &room].concat();
        writing.write_all(&preface).await.expect("an open connection");
        for round in 0..ROUNDS {
            let streams = || (0..REFUSED_IN_A_ROUND).map(|nth| 2 * (round * REFUSED_IN_A_ROUND + nth) + 1);
            let heads: Vec<u8> = streams().flat_map(|it| frame(HEADERS, end_headers, it, &head)).collect();
            writing.write_all(&heads).await.expect("an open connection");
            let all = (round + 1) * REFUSED_IN_A_ROUND;
            let answered = patient(answers.wait_for(|count| *count >= all)).await.map(drop);
            answered.unwrap_or_else(|_| panic!("the connection was ended in round {round}"));
            let bodies: Vec<u8> = streams().flat_map(|it| frame(DATA, end_stream, it, b"{}")).collect();
            writing.write_all(&bodies).await.expect("an open connection");
        }
    }
}
