//! Waits: clients that say nothing or take nothing are waited for so long, and nobody waits with them.

use super::*;

#[tokio::test]
async fn silent_clients_stop_nobody_and_are_cut() {
    let limits = Limits { handshake: SHORT, ..Limits::public() };
    let under = Under::public(limits).await;
    let mut silent = vec![];
    for _ in 0..20 {
        silent.push(TcpStream::connect(under.address).await.expect("a connection"));
    }
    let answer = under.exchange(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert_eq!(status(&answer), "200");
    for mut socket in silent {
        assert_eq!(until_end(&mut socket).await, "");
    }
}

#[tokio::test]
async fn silent_clients_give_way_to_those_who_speak() {
    let for_ever = Duration::from_secs(3_600);
    let limits = Limits { handshakes: 1, handshake: for_ever, ..Limits::public() };
    let under = Under::public(limits).await;
    let connect_from = async |host: u8| {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(([127, 0, 0, host], 0).into()).expect("an address of this machine");
        socket.connect(under.address).await.expect("a connection")
    };
    let mut silent = connect_from(2).await;
    let mut another = connect_from(2).await;
    assert_eq!(until_end(&mut another).await, "", "an address has only so many");
    let connector = TlsConnector::from(Arc::clone(&under.client));
    let name = ServerName::try_from(HOST).expect("a name");
    patient(connector.connect(name, connect_from(3).await)).await.expect("a handshake");
    assert_eq!(until_end(&mut silent).await, "", "the oldest gives way");
}

#[tokio::test]
async fn slow_heads_and_slow_bodies_are_cut() {
    let limits = Limits { head: SHORT, body: SHORT, ..Limits::public() };
    let under = Under::public(limits).await;
    let answer = under.exchange(b"GET / HTTP/1.1\r\nHost: a\r\nx-slow").await;
    assert!(matches!(status(&answer), "" | "408"), "{answer}");
    let head = b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc";
    let answer = under.exchange(head).await;
    assert_eq!(status(&answer), "408", "{answer}");
    assert!(answer.contains("body-too-slow"), "{answer}");
}

fn impatient() -> Limits {
    Limits { untaken: SHORT, ..Limits::public() }
}

#[tokio::test]
async fn a_reader_that_never_reads_is_cut() {
    let mut under = Under::public(impatient()).await;
    let mut stream = under.connect().await;
    let request = b"GET /endless HTTP/1.1\r\nHost: a\r\n\r\n";
    stream.write_all(request).await.expect("a request");
    under.dropped().await;
}

#[tokio::test]
async fn a_stream_that_is_never_read_is_cut_though_the_connection_lives() {
    let mut under = start(tls::public(b"h2"), Face::Public, impatient()).await;
    let mut client = under.http2().await;
    let answer = patient(client.send_request(get_request("/endless"))).await;
    let unread = answer.expect("a head");
    under.dropped().await;
    drop(unread);
}

#[tokio::test]
async fn an_http2_client_that_never_speaks_is_cut() {
    let limits = Limits { silent: SHORT, ping_every: SHORT / 4, ..Limits::public() };
    let under = start(tls::public(b"h2"), Face::Public, limits).await;
    // This one answers pings, and so outlives one that connects later and answers nothing.
    let mut client = under.http2().await;
    let mut mute = under.connect().await;
    until_end(&mut mute).await;
    let answer = patient(client.send_request(get_request("/"))).await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::OK);
}
