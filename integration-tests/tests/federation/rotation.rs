//! Keys and certificates that are replaced and revoked while researchers work: not one request fails, and nobody has to
//! restart.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use http::Method;
use integration_tests::{Federation, TASKS, ended, eventually, gpu_task, program, turns};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const ROTATIONS: usize = 20;

/// What an authority is asked on the command line.
#[track_caller]
pub(super) fn authority(arguments: &[&str]) -> String {
    let output = Command::new(program()).arg("certs").args(arguments).output().expect("the program runs");
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "certs {arguments:?}: {why}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(super) fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// New certificates of FR's, for its two faces, from its own authority.
pub(super) fn renew(federation: &Federation) {
    let (home, out) = (federation.folder().join("states/FR"), federation.gateway_folder("FR"));
    let hosts = ["--host", "localhost", "--host", "127.0.0.1"];
    authority(&[&["gateway", text(&home), "--name", "fr-1", "--out", text(&out)], &hosts[..]].concat());
}

/// The certificate that FR's public face shows whoever connects now.
async fn shown(federation: &Federation) -> Option<Vec<u8>> {
    let config = certs::public_client_config(&federation.ca("FR")).expect("a CA");
    let address = federation.url("FR").strip_prefix("https://").expect("a url");
    let stream = TcpStream::connect(address).await.ok()?;
    let name = ServerName::try_from("127.0.0.1").expect("a name");
    let stream = TlsConnector::from(config).connect(name, stream).await.ok()?;
    Some(stream.get_ref().1.peer_certificates()?.first()?.to_vec())
}

/// Researchers who submit and list until they are told to stop, each time on a new connection. Their failures, in words.
pub(super) struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    researchers: Vec<tokio::task::JoinHandle<(Vec<String>, Vec<String>)>>,
    /// One of France who reads all the time, and through Germany's gateway: what is on its way when the gateways' connections
    /// end is asked again.
    relayed: tokio::task::JoinHandle<Vec<String>>,
}

impl Load {
    pub(super) fn start(federation: &Arc<Federation>) -> Load {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let researcher = |state: &'static str| {
            let (federation, stop, done) = (Arc::clone(federation), Arc::clone(&stop), Arc::clone(&done));
            tokio::spawn(async move {
                let (mut ids, mut failures) = (vec![], vec![]);
                let mut body = gpu_task(&["true"], 1, "H100");
                body["resources"]["zones"] = serde_json::json!(["FR"]);
                while !stop.load(Ordering::Relaxed) {
                    let mut client = federation.client(state, &format!("researcher.{state}"));
                    match client.post(TASKS, &body).await {
                        Ok(answer) => ids.push(answer["id"].as_str().expect("an id").to_owned()),
                        Err(why) => failures.push(format!("{state} submits: {why:#}")),
                    }
                    if let Err(why) = client.call(Method::GET, TASKS, None, &[]).await.and_then(|it| it.json()) {
                        failures.push(format!("{state} lists: {why:#}"));
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
                (ids, failures)
            })
        };
        let researchers = ["FR", "DE"].map(researcher).into();
        let (away, ending) = (Arc::clone(federation), Arc::clone(&stop));
        let relayed = tokio::spawn(async move {
            let mut failures = vec![];
            let mut client = away.client("DE", "researcher.FR");
            while !ending.load(Ordering::Relaxed) {
                if let Err(why) = client.call(Method::GET, TASKS, None, &[]).await.and_then(|it| it.json()) {
                    failures.push(format!("a researcher of FR lists at DE's gateway: {why:#}"));
                }
            }
            failures
        });
        Load { stop, done, researchers, relayed }
    }

    /// Waits until each researcher has most likely made a request since now.
    pub(super) async fn goes_on(&self) {
        let before = self.done.load(Ordering::Relaxed);
        eventually("researchers work", async || (self.done.load(Ordering::Relaxed) > before + 4).then_some(())).await;
    }

    /// Every task that was taken has to end well, and nothing may have failed.
    pub(super) async fn end(self, federation: &Federation) {
        self.stop.store(true, Ordering::Relaxed);
        let failures = self.relayed.await.expect("a researcher");
        assert!(failures.is_empty(), "{}: {failures:#?}", failures.len());
        for (state, researcher) in ["FR", "DE"].into_iter().zip(self.researchers) {
            let (ids, failures) = researcher.await.expect("a researcher");
            assert!(failures.is_empty(), "{} of {}: {failures:#?}", failures.len(), ids.len());
            let mut client = federation.client(state, &format!("researcher.{state}"));
            for id in &ids {
                assert_eq!(ended(&mut client, id).await["state"], "COMPLETE", "{id}");
            }
        }
    }
}

/// How often Germany's gateway has taken over a new bundle of France.
pub(super) fn bundles_in_force(federation: &Federation) -> usize {
    let log = std::fs::read_to_string(federation.log("DE")).unwrap_or_default();
    log.lines().filter(|line| line.contains("trust bundle has changed") && line.contains("state=FR")).count()
}

/// Takes back the certificate that FR's gateway meets its peers with after it was replaced; returns what the program says.
pub(super) fn renew_and_revoke(federation: &Federation) -> String {
    let (home, replaced) = (federation.folder().join("states/FR"), federation.folder().join("replaced.pem"));
    std::fs::copy(federation.gateway_folder("FR").join("peer.pem"), &replaced).expect("a copy");
    renew(federation);
    authority(&["revoke", text(&home), "--certificate", text(&replaced)])
}

/// How often another gateway has refused a certificate of France's because it is revoked.
pub(super) fn refusals(federation: &Federation) -> Vec<String> {
    let logs = ["DE", "FI"].map(|state| std::fs::read_to_string(federation.log(state)).expect("a log"));
    let refused = |line: &&str| line.contains("Revoked");
    logs.iter().flat_map(|log| log.lines().filter(refused)).map(str::to_owned).collect()
}

/// Both faces of France's gateway get new certificates, the one that it met its peers with before is revoked, and a second
/// signing key is stated and taken back again; the one that it signs with stays. With each bundle every connection of
/// France's gateway is made anew, and each time it shows what is not revoked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_and_certificates_change_twenty_times_and_no_request_fails() {
    turns::alone(async || {
        let federation = Arc::new(Federation::start());
        let load = Load::start(&federation);
        let home = federation.folder().join("states/FR");
        for rotation in 0..ROTATIONS {
            let before = shown(&federation).await.expect("a certificate");
            renew_and_revoke(&federation);
            if rotation % 2 == 0 {
                let other = federation.folder().join(format!("second-key-{rotation}"));
                let arguments = ["gateway", text(&home), "--name", "fr-1", "--host", "localhost", "--another-key"];
                authority(&[&arguments[..], &["--out", text(&other)]].concat());
            } else {
                let bundle = authority(&["show", text(&home.join("bundle.json"))]);
                let key = bundle.lines().rfind(|line| line.contains("gateway")).expect("a second key");
                authority(&["retire", text(&home), "--key", key.split_whitespace().last().expect("a key")]);
            }
            authority(&["bundle", text(&home)]);
            eventually(&format!("the certificate of round {rotation} is shown"), async || {
                shown(&federation).await.filter(|it| *it != before).map(drop)
            })
            .await;
            eventually(&format!("the bundle of round {rotation} is in force"), async || {
                (bundles_in_force(&federation) == rotation + 1).then_some(())
            })
            .await;
            load.goes_on().await;
        }
        load.end(&federation).await;
        let bundle = authority(&["show", text(&home.join("bundle.json"))]);
        let revoked = bundle.lines().filter(|line| line.trim_start().starts_with("revoked")).count();
        assert_eq!(revoked, ROTATIONS, "{bundle}");
        assert_eq!(refusals(&federation), [""; 0], "France's gateway never shows what is revoked");
    })
    .await;
}
