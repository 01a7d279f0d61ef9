//! Shares: what one client, one address and all of them together get of a face that is full.

use super::*;

#[tokio::test]
async fn the_longest_unused_connection_gives_way_when_a_face_is_full() {
    let limits = Limits { connections: 4, ..Limits::public() };
    let under = start(tls::public(b"h2"), Face::Public, limits).await;
    let mut first = under.http2_from(2).await;
    let mut second = under.http2_from(3).await;
    let held = patient(first.send_request(get_request("/held"))).await.expect("a head");
    let mut third = under.http2_from(4).await;
    let mut newcomers = vec![];
    for host in 5..8 {
        // Each is the newest, and is answered.
        let mut newcomer = under.http2_from(host).await;
        let answer = patient(newcomer.send_request(get_request("/"))).await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::OK);
        newcomers.push(newcomer);
    }
    for gone in [&mut second, &mut third] {
        let until_gone = async {
            while gone.ready().await.is_ok() {
                tokio::task::yield_now().await
            }
        };
        patient(until_gone).await;
    }
    // Whoever waits for an answer keeps its place.
    under.release.send(true).expect("somebody waits");
    let body = patient(held.into_body().collect()).await.expect("a body").to_bytes();
    assert_eq!(body, "released");
}

/// It would be reset on what arrives, and its client would not hear why he is refused.
#[tokio::test]
async fn a_connection_on_which_a_refused_body_is_still_read_does_not_give_way() {
    let limits = Limits { connections: 2, ..Limits::public() };
    let under = start(tls::public(b"http/1.1"), Face::Public, limits).await;
    let (mut refused, mut unused) = (under.connect_from(2).await, under.connect_from(3).await);
    let post = "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 8192\r\n\r\n";
    assert_eq!(first_line(&mut refused, post).await, "HTTP/1.1 413 Payload Too Large");
    let get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    // Used later than the other, so it would be the second to go.
    assert_eq!(first_line(&mut unused, get).await, "HTTP/1.1 200 OK");
    let mut newcomer = under.connect_from(4).await;
    assert_eq!(first_line(&mut newcomer, get).await, "HTTP/1.1 200 OK");
    let rest = format!("{}{get}", "x".repeat(8_192));
    assert_eq!(first_line(&mut refused, &rest).await, "HTTP/1.1 200 OK");
}

/// The first line of the answer, which is read to its end; empty if the connection has ended.
async fn first_line(stream: &mut ClientStream<TcpStream>, request: &str) -> String {
    let exchange = async {
        let _ended = stream.write_all(request.as_bytes()).await;
        let (mut answer, mut piece) = (vec![], [0; 4_096]);
        while let Ok(bytes @ 1..) = stream.read(&mut piece).await {
            answer.extend_from_slice(&piece[..bytes]);
            let text = String::from_utf8_lossy(&answer).to_lowercase();
            let whole = text.split_once("\r\n\r\n").is_some_and(|(head, body)| {
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                length.is_some_and(|length| length.parse() == Ok(body.len()))
            });
            if whole {
                break;
            }
        }
        String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned()
    };
    patient(exchange).await
}

#[tokio::test]
async fn over_the_limit_researchers_are_told_to_come_back_until_an_answer_has_ended() {
    let limits = Limits { requests: 1, ..Limits::public() };
    let under = start(tls::public(b"h2"), Face::Public, limits).await;
    let mut client = under.http2().await;
    let first = patient(client.send_request(get_request("/held"))).await.expect("a head");
    let second = patient(client.send_request(get_request("/"))).await.expect("an answer");
    assert_eq!(second.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(second.headers()["retry-after"], "1");
    let health = patient(client.send_request(get_request("/v1/health"))).await.expect("an answer");
    assert_eq!(health.status(), StatusCode::NOT_FOUND, "it comes to the routes, which are others here");
    under.release.send(true).expect("somebody waits");
    let body = patient(first.into_body().collect()).await.expect("a body").to_bytes();
    assert_eq!(body, "released");
    let room_again = async {
        loop {
            let answer = client.send_request(get_request("/")).await.expect("an answer");
            if answer.status() == StatusCode::OK {
                return;
            }
        }
    };
    patient(room_again).await;
}

#[tokio::test]
async fn health_and_the_registrys_messages_have_places_when_all_are_taken_and_no_address_all_of_them() {
    let places = Places::new(&Limits { requests: 1, ..Limits::public() });
    let pulse = Arc::new(Pulse::new(Instant::now(), Unused::default().turn()));
    let [one, other] = [[127, 0, 0, 1], [127, 0, 0, 2]].map(IpAddr::from);
    let _all = places.take(one, "/", &pulse).expect("the only place");
    assert!(places.take(other, "/", &pulse).is_none());
    let health: Vec<_> = std::iter::from_fn(|| places.take(one, "/v1/health", &pulse)).collect();
    assert_eq!(health.len(), 8);
    assert!(places.take(other, "/v1/health", &pulse).is_some());
    assert!(places.take(one, "/raft/vote", &pulse).is_some());
}

#[tokio::test]
async fn one_address_does_not_take_every_place() {
    let limits = Limits { requests: 4, ..Limits::public() };
    let under = start(tls::public(b"h2"), Face::Public, limits).await;
    let (mut greedy, mut modest) = (under.http2_from(2).await, under.http2_from(3).await);
    let mut held = vec![];
    for _ in 0..3 {
        held.push(patient(greedy.send_request(get_request("/held"))).await.expect("a head"));
    }
    let refused = patient(greedy.send_request(get_request("/"))).await.expect("an answer");
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    let answer = patient(modest.send_request(get_request("/"))).await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::OK);
}

#[tokio::test]
async fn one_address_has_only_so_many_connections() {
    let limits = Limits { connections_per_address: 2, ..Limits::public() };
    let under = Under::public(limits).await;
    let first = under.connect().await;
    let _second = under.connect().await;
    let mut third = TcpStream::connect(under.address).await.expect("a connection");
    assert_eq!(until_end(&mut third).await, "");
    drop(first);
    let room_again = async {
        loop {
            let socket = TcpStream::connect(under.address).await.expect("a connection");
            let connector = TlsConnector::from(Arc::clone(&under.client));
            let name = ServerName::try_from(HOST).expect("a name");
            if connector.connect(name, socket).await.is_ok() {
                return;
            }
        }
    };
    patient(room_again).await;
}
