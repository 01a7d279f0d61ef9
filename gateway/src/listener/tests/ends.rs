//! Ends: of a connection that nobody uses, of a face, and of the trust in a peer.

use super::*;
use crate::listener::frames::samples::PREFACE;

#[tokio::test]
async fn an_unused_connection_ends_in_order() {
    let limits = Limits { idle: SHORT, ..Limits::public() };
    let under = start(tls::public(b"h2"), Face::Public, limits).await;
    let mut client = under.http2().await;
    let answer = patient(client.send_request(get_request("/"))).await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::OK);
    drop(answer);
    patient(async {
        while client.ready().await.is_ok() {
            tokio::task::yield_now().await
        }
    })
    .await;
}

#[tokio::test]
async fn the_end_waits_for_requests_but_not_for_ever() {
    let limits = Limits::public().with_grace(SHORT);
    let mut under = start(tls::public(b"h2"), Face::Public, limits).await;
    let _silent = TcpStream::connect(under.address).await.expect("a connection");
    let _mute = under.connect().await;
    let mut client = under.http2().await;
    let held = patient(client.send_request(get_request("/held"))).await.expect("a head");
    let endless = patient(client.send_request(get_request("/endless"))).await.expect("a head");
    under.shutdown.cancel();
    patient(&mut under.done).await.expect("no panic");
    under.dropped().await;
    drop((held, endless));
    assert!(TcpStream::connect(under.address).await.is_err(), "nobody listens any more");
}

/// An HTTP/2 client answers the ping that comes with a farewell, unless its machine stands still.
#[tokio::test]
async fn the_end_does_not_wait_for_who_is_mute() {
    const ACKNOWLEDGED: &[u8] = &[0, 0, 0, 4, 1, 0, 0, 0, 0];
    let limits = Limits::public().with_grace(Duration::from_secs(3_600));
    let mut under = start(tls::public(b"h2"), Face::Public, limits).await;
    let mut mute = under.connect().await;
    let no_settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    mute.write_all(PREFACE).await.expect("a preface");
    mute.write_all(&no_settings).await.expect("settings");
    let mut said = vec![];
    while !said.windows(ACKNOWLEDGED.len()).any(|it| it == ACKNOWLEDGED) {
        let more = patient(mute.read_buf(&mut said)).await.expect("settings of its own");
        assert_ne!(more, 0, "it is closed before: {said:?}");
    }
    under.shutdown.cancel();
    patient(&mut under.done).await.expect("no panic");
}

#[tokio::test]
async fn a_peer_is_known_by_its_certificate_and_closed_with_its_state() {
    let connections = Connections::default();
    let face = Face::Peer(connections.clone());
    let limits = Limits { requests: 1, ..Limits::peer() };
    let mut under = start(tls::peer(), face, limits).await;
    let mut client = under.http2().await;
    let answer = patient(client.send_request(get_request("/who"))).await.expect("an answer");
    let body = patient(answer.into_body().collect()).await.expect("a body").to_bytes();
    assert_eq!(body, "FR/fr-2");

    let endless = async {
        loop {
            let answer = client.send_request(get_request("/endless")).await.expect("a head");
            if answer.status() == StatusCode::OK {
                return answer;
            }
        }
    };
    let endless = patient(endless).await;
    let shed = patient(client.send_request(get_request("/who"))).await.expect("an answer");
    assert_eq!(shed.status(), StatusCode::SERVICE_UNAVAILABLE);
    let relayed = patient(client.send_request(get_request("/relay/ga4gh/tes/v1/tasks"))).await.expect("an answer");
    assert_eq!(relayed.status(), StatusCode::TOO_MANY_REQUESTS, "its researcher's client would repeat a 503");

    assert_eq!(connections.close_all_of(tls::id("DE/de-1").state), 0);
    assert_eq!(connections.close_all_of(tls::id("FR/fr-2").state), 1);
    under.dropped().await;
    drop(endless);
    let mut again = under.http2().await;
    let answer = patient(again.send_request(get_request("/who"))).await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::OK);
}
