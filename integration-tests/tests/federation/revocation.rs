//! Certificates that are revoked: refused at once, also on connections that are open, and nobody else notices.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use integration_tests::{Federation, TASKS, ended, eventually, gpu_task, program, skip_without, submit, task, turns};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::environment::FIU;
use super::peers::{Peer, address, call, client_config, dial, own_leaf};
use super::rotation::{Load, authority, bundles_in_force, refusals, renew, renew_and_revoke, text};

/// Waits until the other end of a connection has ended it.
async fn is_ended(live: &mut Peer) {
    eventually("the live connection is ended", async || {
        let called = call(live, Method::GET, "/nothing", Bytes::new());
        match tokio::time::timeout(Duration::from_secs(5), called).await {
            Ok(Err(_)) => Some(()),
            _ => None,
        }
    })
    .await;
}

/// What Germany's gateway says to whoever shows this; it says it after the client believes that it is connected.
async fn refusal(federation: &Federation, config: Arc<ClientConfig>) -> String {
    let stream = TcpStream::connect(address(federation, "DE")).await.expect("a connection");
    let name = ServerName::try_from("gateway.invalid").expect("a name");
    match TlsConnector::from(config).connect(name, stream).await {
        Ok(mut stream) => match stream.read_u8().await {
            Ok(_) => "it is let in".into(),
            Err(cause) => cause.to_string(),
        },
        Err(cause) => cause.to_string(),
    }
}

/// Threat 6: France's certificate and its key were stolen. France renews, revokes and publishes, by hand.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_certificate_is_out_at_once_and_its_gateway_goes_on() {
    turns::alone(async || {
        let federation = Arc::new(Federation::start());
        let load = Load::start(&federation);
        let home = federation.folder().join("states/FR");
        let stolen = client_config(&federation, own_leaf(&federation, "FR"), "DE");
        let (_, mut live) = dial(&federation, Arc::clone(&stolen), "DE").await.expect("it counts");

        let said = renew_and_revoke(&federation);
        assert!(said.contains("FR/fr-1: ") && said.contains("is revoked") && said.contains("certs bundle"), "{said}");
        assert!(dial(&federation, Arc::clone(&stolen), "DE").await.is_ok(), "it counts until a bundle says otherwise");
        authority(&["bundle", text(&home)]);
        let bundle = authority(&["show", text(&home.join("bundle.json"))]);
        let serial = authority(&["show", text(&federation.folder().join("replaced.pem"))]);
        let serial = serial.split_whitespace().nth(1).expect("certificate SERIAL of NAME");
        assert!(bundle.contains(&format!("revoked     {serial} since 20")), "{bundle}");
        assert!(bundle.contains("1 certificates, next update 20"), "{bundle}");

        is_ended(&mut live).await;
        let told = refusal(&federation, stolen).await;
        assert!(told.contains("CertificateRevoked"), "{told}");
        let renewed = client_config(&federation, own_leaf(&federation, "FR"), "DE");
        assert!(dial(&federation, renewed, "DE").await.is_ok(), "the one that replaced it");
        load.goes_on().await;
        load.end(&federation).await;
        let refused = refusals(&federation);
        assert_eq!(
            refused, [""; 0],
            "France's gateway showed the new one before others knew that the old one is revoked"
        );
    })
    .await;
}

/// Whoever revokes the only certificate of a gateway is warned, and so is the gateway's operator. It is cut off, and comes back
/// by itself when it is given another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_whose_only_certificate_is_revoked_comes_back_with_a_new_one() {
    let federation = Federation::start();
    let home = federation.folder().join("states/FR");
    let current = federation.gateway_folder("FR").join("peer.pem");
    let mut germany = client_config(&federation, own_leaf(&federation, "FR"), "DE");
    let output = std::process::Command::new(program())
        .args(["certs", "revoke", text(&home), "--certificate", text(&current)])
        .output()
        .expect("the program runs");
    let warned = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && warned.contains("FR/fr-1 has no other certificate"), "{warned}");
    authority(&["bundle", text(&home)]);
    eventually("Germany has the bundle", async || (bundles_in_force(&federation) == 1).then_some(())).await;
    assert!(refusal(&federation, germany).await.contains("CertificateRevoked"));
    let log = std::fs::read_to_string(federation.log("FR")).expect("a log");
    assert!(log.contains("no other gateway lets this one in with the certificate that it shows"), "{log}");
    let mut researcher = federation.client("DE", "researcher.DE");
    let mut elsewhere = task(&["true"]);
    elsewhere["resources"] = serde_json::json!({"zones": ["DE"]});
    // If France's gateway led, there is another leader first.
    let submitted = eventually("the others go on", async || researcher.post(TASKS, &elsewhere).await.ok()).await;
    let id = submitted["id"].as_str().expect("an id");
    assert_eq!(ended(&mut researcher, id).await["state"], "COMPLETE");

    renew(&federation);
    germany = client_config(&federation, own_leaf(&federation, "FR"), "DE");
    assert!(dial(&federation, germany, "DE").await.is_ok());
    let mut researcher = federation.client("FR", "researcher.FR");
    eventually("France's gateway is back, and finds nothing wrong", async || {
        let health = researcher.read("/v1/health").await.ok()?;
        (health["status"] == "ok" && health["warnings"] == serde_json::json!([])).then_some(())
    })
    .await;
    let id = submit(&mut researcher, &gpu_task(&["true"], 1, "H100")).await;
    assert_eq!(ended(&mut researcher, &id).await["state"], "COMPLETE");
}

/// A disk that does not sync: the authority says that it has not revoked, and has not.
#[test]
fn a_revocation_is_said_when_it_is_on_the_disk() {
    if skip_without("libfiu", FIU.iter().all(|it| Path::new(it).exists())) {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (home, gateway) = (folder.path().join("authority"), folder.path().join("fr-1"));
    authority(&["init", text(&home), "--federation", "entente.example", "--state", "FR"]);
    authority(&["gateway", text(&home), "--name", "fr-1", "--host", "localhost", "--out", text(&gateway)]);
    let certificate = gateway.join("peer.pem");
    let revoke = ["revoke", text(&home), "--certificate", text(&certificate)];
    let failed = std::process::Command::new("fiu-run")
        .args(["-x", "-c", "enable name=posix/io/sync/fsync,failinfo=5"])
        .arg(program())
        .arg("certs")
        .args(revoke)
        .output()
        .expect("fiu-run runs");
    let why = String::from_utf8_lossy(&failed.stderr);
    assert!(!failed.status.success() && failed.stdout.is_empty(), "{why}");
    assert!(why.contains("certificates.json"), "{why}");
    assert!(authority(&["bundle", text(&home)]).contains("0 revoked certificates"));
    assert!(authority(&revoke).contains("is revoked"), "for the first time");
    assert!(authority(&["bundle", text(&home)]).contains("1 revoked certificates"));
}
