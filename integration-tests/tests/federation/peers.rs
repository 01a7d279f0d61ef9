//! Hostile peers at a running gateway: every row is a well-formed message or handshake that must come to nothing.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use certs::{FederationId, GatewayId, LeafIdentity, SharedLeaf, SharedTrust, StateCa};
use federation::Genesis;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use integration_tests::{Federation, ended, eventually, gpu_task, program, submit};
use rustls::{ClientConfig, HandshakeKind};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

pub(super) type Peer = SendRequest<Full<Bytes>>;

fn id(state: &str) -> GatewayId {
    GatewayId::parse(&format!("{state}/{}-1", state.to_lowercase())).expect("an id")
}

fn genesis(federation: &Federation) -> Genesis {
    let bytes = std::fs::read(federation.folder().join("genesis.json")).expect("a genesis");
    serde_json::from_slice(&bytes).expect("a genesis that every state has signed")
}

pub(super) fn address(federation: &Federation, state: &str) -> String {
    let genesis = genesis(federation);
    let record = genesis.gateways().find(|it| it.id == id(state)).expect("a founding gateway");
    record.peer_address.clone()
}

fn node(federation: &Federation, state: &str) -> u64 {
    let genesis = genesis(federation);
    genesis.gateways().find(|it| it.id == id(state)).expect("a founding gateway").node_id
}

pub(super) fn own_leaf(federation: &Federation, state: &str) -> SharedLeaf {
    let read = |name: &str| std::fs::read_to_string(federation.gateway_folder(state).join(name)).expect("a file");
    SharedLeaf::new(LeafIdentity::from_pem(&read("peer.pem"), &read("peer.key")).expect("a leaf"))
}

/// The client side that `leaf` shows, dialling `to`.
pub(super) fn client_config(federation: &Federation, leaf: SharedLeaf, to: &str) -> Arc<ClientConfig> {
    let trust = SharedTrust::new(Arc::clone(genesis(federation).trust()));
    certs::peer_client_config(trust, leaf, id(to))
}

/// What became of a handshake: the kind, and an HTTP/2 connection over it.
pub(super) async fn dial(
    federation: &Federation,
    config: Arc<ClientConfig>,
    to: &str,
) -> Result<(HandshakeKind, Peer), String> {
    let reason = |cause: &dyn std::fmt::Display| cause.to_string();
    let stream = TcpStream::connect(address(federation, to)).await.map_err(|it| reason(&it))?;
    let name = ServerName::try_from("gateway.invalid").expect("a name");
    let stream = TlsConnector::from(config).connect(name, stream).await.map_err(|it| reason(&it))?;
    let kind = stream.get_ref().1.handshake_kind().expect("a finished handshake");
    let (mut peer, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(|it| reason(&it))?;
    tokio::spawn(connection);
    // A server refuses a client's certificate only after the client believes that it is connected.
    call(&mut peer, Method::GET, "/nothing", Bytes::new()).await?;
    Ok((kind, peer))
}

async fn as_gateway(federation: &Federation, of: &str, to: &str) -> Peer {
    let config = client_config(federation, own_leaf(federation, of), to);
    dial(federation, config, to).await.expect("a connection").1
}

pub(super) async fn call(
    peer: &mut Peer,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<(StatusCode, Bytes), String> {
    let request = Request::builder()
        .method(method)
        .uri(format!("https://peer.invalid{path}"))
        .body(Full::new(body))
        .map_err(|cause| cause.to_string())?;
    peer.ready().await.map_err(|cause| cause.to_string())?;
    let answer = peer.send_request(request).await.map_err(|cause| cause.to_string())?;
    let status = answer.status();
    let body = answer.into_body().collect().await.map_err(|cause| cause.to_string())?;
    Ok((status, body.to_bytes()))
}

/// An empty append of the peer protocol, version 1: vote (term, node, committed), three absent parts, and no
/// predecessor to wait for.
fn append(term: &[u8], node: u64) -> Bytes {
    let node = u8::try_from(node).expect("a small number");
    [&[1][..], term, &[node, 1, 0, 0, 0, 0]].concat().into()
}

/// 2^64 - 1 as a variable-length number.
const LAST_TERM: &[u8] = &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];

/// Threats 1 and 2.
#[tokio::test]
async fn a_forged_append_moves_nobody() {
    let federation = Federation::start();
    let mut peer = as_gateway(&federation, "DE", "FR").await;
    let (de, fi) = (node(&federation, "DE"), node(&federation, "FI"));
    for (what, body, says) in [
        ("in another's name", append(&[2], fi), "is not the one that sent this"),
        ("in the last term", append(LAST_TERM, de), "too far"),
        ("in noise", Bytes::from_static(&[1, 0xff, 0xff]), "cannot be read"),
        ("in another version", Bytes::from_static(&[9, 0]), "version"),
        ("in nothing", Bytes::new(), "cannot be read"),
    ] {
        let (status, body) = call(&mut peer, Method::POST, "/raft/append", body).await.expect("an answer");
        assert_eq!(status, StatusCode::FORBIDDEN, "{what}");
        assert!(String::from_utf8_lossy(&body).contains(says), "{what}: {body:?}");
    }
    // An envelope of France that Germany asks to commit.
    let (status, _) =
        call(&mut peer, Method::POST, "/raft/propose", Bytes::from_static(b"no envelope")).await.expect("an answer");
    assert_eq!(status, StatusCode::FORBIDDEN);

    let mut client = federation.client("FR", "researcher.FR");
    let id = submit(&mut client, &gpu_task(&["echo", "fine"], 1, "H100")).await;
    assert_eq!(ended(&mut client, &id).await["state"], "COMPLETE", "the federation goes on");
}

/// Threats 5, 7 and 8.
#[tokio::test]
async fn only_the_states_own_authority_makes_its_gateways() {
    let federation = Federation::start();
    let name = FederationId::parse("entente.example").expect("a name");
    let now = gateway::authority::now_s();
    let rogue = StateCa::create(id("DE").state, &name, now, 1).expect("an authority");
    let leaf = rogue.issue_gateway(&id("DE"), now, 1).expect("a leaf");
    let forged = SharedLeaf::new(LeafIdentity::from_pem(&leaf.cert_pem, &leaf.key_pem).expect("a leaf"));
    let config = client_config(&federation, forged, "FR");
    assert!(dial(&federation, config, "FR").await.is_err(), "another CA in Germany's name");

    let public = |name: &str| std::fs::read_to_string(federation.gateway_folder("DE").join(name)).expect("a file");
    let public = LeafIdentity::from_pem(&public("public.pem"), &public("public.key")).expect("a leaf");
    let config = client_config(&federation, SharedLeaf::new(public), "FR");
    assert!(dial(&federation, config, "FR").await.is_err(), "a web certificate of the right CA");

    let trust = SharedTrust::new(Arc::clone(genesis(&federation).trust()));
    let config = certs::peer_client_config(trust, own_leaf(&federation, "DE"), id("FI"));
    let misled = dial(&federation, config, "FR").await;
    assert!(misled.is_err_and(|why| why.contains("FR/fr-1")), "France answers for Finland");

    let anonymous = certs::public_client_config(&federation.ca("FR")).expect("a config");
    assert!(dial(&federation, anonymous, "FR").await.is_err(), "no certificate at all");
}

/// Threat 6.
#[tokio::test]
async fn an_evicted_gateway_is_out_at_once_and_cannot_resume() {
    let federation = Federation::start();
    // A client that would resume if it were let.
    let mut config = (*client_config(&federation, own_leaf(&federation, "FI"), "FR")).clone();
    config.resumption = rustls::client::Resumption::in_memory_sessions(8);
    let config = Arc::new(config);
    let mut live = None;
    for _ in 0..3 {
        let (kind, peer) = dial(&federation, Arc::clone(&config), "FR").await.expect("still a member");
        assert_eq!(kind, HandshakeKind::Full, "no session is resumed");
        live = Some(peer);
    }
    let mut live = live.expect("a connection");

    // Finland's authority drops the gateway from its statement and signs the next bundle.
    let authority = federation.folder().join("states/FI");
    let path = authority.join("authority.json");
    let mut statement: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).expect("a statement")).expect("JSON");
    statement["gateways"] = serde_json::json!([]);
    std::fs::write(&path, statement.to_string()).expect("a written statement");
    let signed = std::process::Command::new(program())
        .args(["certs", "bundle"])
        .arg(&authority)
        .output()
        .expect("the program starts");
    assert!(signed.status.success(), "{}", String::from_utf8_lossy(&signed.stderr));

    eventually("the live connection is closed", async || {
        let called = call(&mut live, Method::GET, "/nothing", Bytes::new());
        match tokio::time::timeout(Duration::from_secs(5), called).await {
            Ok(Err(_)) => Some(()),
            _ => None,
        }
    })
    .await;
    let again = dial(&federation, config, "FR").await;
    assert!(again.is_err(), "neither anew nor by an old session");
    let mut client = federation.client("DE", "researcher.DE");
    let id = submit(&mut client, &gpu_task(&["echo", "fine"], 1, "H100")).await;
    assert_eq!(ended(&mut client, &id).await["state"], "COMPLETE", "the others go on");
}

/// Threat 16, and what belongs to home and host alone.
#[tokio::test]
async fn orders_records_and_logs_are_for_home_and_host_alone() {
    let federation = Federation::start();
    let mut client = federation.client("FI", "researcher.FI");
    let mut task = gpu_task(&["echo", "secret"], 1, "H100");
    task["resources"]["zones"] = serde_json::json!(["FR"]);
    let id = submit(&mut client, &task).await;
    ended(&mut client, &id).await;
    for (to, path) in [
        ("FI", format!("/orders/{id}/1")),
        ("FR", format!("/attempts/{id}/1/record")),
        ("FR", format!("/attempts/{id}/1/logs?executor=0&pipe=stdout&offset=0&max=100")),
    ] {
        let mut germany = as_gateway(&federation, "DE", to).await;
        let (status, body) = call(&mut germany, Method::GET, &path, Bytes::new()).await.expect("an answer");
        assert_eq!(status, StatusCode::FORBIDDEN, "{path}");
        assert!(!body.windows(6).any(|it| it == b"secret"), "{path}");
    }
    // A peer is no researcher: a relayed request without a token is nobody's.
    let mut germany = as_gateway(&federation, "DE", "FI").await;
    let (status, _) = call(&mut germany, Method::GET, "/relay/v1/tasks", Bytes::new()).await.expect("an answer");
    assert_eq!(status, StatusCode::UNAUTHORIZED);
}
