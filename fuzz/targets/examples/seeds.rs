//! Writes the corpus anew: real documents, from which the search begins. `cargo run -p entente-fuzz-targets --example seeds`

use std::convert::Infallible;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use certs::{
    Digest, Envelope, FederationId, GatewayId, GatewayName, Header, Kind, MemberState, Revoked, Serial, SignedBundle,
    StateCa,
};
use federation::raft::fuzzing;
use federation::{
    Batch, CapacityReport, Command, DeviceModel, End, GatewayRecord, Genesis, GenesisDraft, GenesisMember, JobId,
    NodeCount, Offer, PoolId, Pseudonym, PublishPack, Registry, Revision, Shape, Submit, Timestamp, Verdict,
};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use policy::{DataClass, Labels, Purpose};
use rcgen::{
    CertificateParams, CertificateRevocationListParams, KeyIdMethod, KeyPair, RevokedCertParams, SerialNumber,
};
use serde_json::{Value, json};
use targets::cast;
use tokio::io::{AsyncReadExt, AsyncWriteExt, split};
use tokio::sync::Notify;

fn write(target: &str, name: &str, bytes: &[u8]) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus").join(target);
    fs::create_dir_all(&folder).expect("a folder");
    fs::write(folder.join(name), bytes).expect("a written seed");
}

fn json(value: &Value) -> Vec<u8> {
    serde_json::to_vec(value).expect("JSON")
}

fn main() {
    requests();
    openings();
    tasks();
    tokens();
    certificates();
    let signed = cast::bundle().sign(&cast::root());
    write("bundle", "first.json", &serde_json::to_vec(&signed).expect("a bundle"));
    let genesis = agree(signed);
    for state in ["FR", "DE", "FI"] {
        let pack = policy::founding::pack(MemberState::parse(state).expect("a state")).expect("a founding pack");
        write("pack", &format!("{state}.cedar"), pack.cedar.as_bytes());
    }
    records(&genesis);
}

/// Without a cut before the 256th byte.
const WHOLE: [u8; 4] = [255; 4];

fn requests() {
    let known = "Host: 127.0.0.1:8443\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n";
    let get = format!("GET /v1/health HTTP/1.1\r\n{known}\r\n");
    let post = |headers: &str, body: &str| {
        let of_tasks = "POST /ga4gh/tes/v1/tasks HTTP/1.1\r\n";
        format!("{of_tasks}{known}Authorization: Bearer a.b.c\r\nContent-Type: application/json\r\n{headers}\r\n{body}")
    };
    let chunked = post("Transfer-Encoding: chunked\r\n", "2\r\n{}\r\n0\r\n\r\n");
    let long = format!("X-Long: {0}\r\nContent-Length:{0}0\r\n", " ".repeat(200));
    for (name, cuts, said) in [
        ("get", WHOLE, get.clone()),
        ("post", WHOLE, post("Content-Length: 17\r\nExpect: 100-continue\r\n", r#"{"executors": []}"#)),
        ("several", WHOLE, [&post("Content-Length: 2\r\n", "{}"), "\r\n", &get, &get, &chunked].concat()),
        ("chunked", WHOLE, [&chunked, get.as_str()].concat()),
        ("twice", WHOLE, [&get, &*post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n")].concat()),
        ("long", [9, 0, 99, 3], post(&long, "")),
        ("http1.0", WHOLE, "GET / HTTP/1.0\nContent-Length: 3\nConnection: keep-alive\n\nabcGET / HTTP/1.0\n\n".into()),
    ] {
        write("framing", name, &[&cuts, said.as_bytes()].concat());
    }
}

#[tokio::main(flavor = "current_thread")]
async fn openings() {
    // So many frames are allowed at once, and for each hundredth of a second; in pieces of 32 bytes; before every other
    // piece such a while passes, and before the others a piece of an answer is taken.
    let setup = [20, 1, 31, 31, 31, 31, 10, 0, 0, 1, 10, 0, 0, 1];
    for (name, method, path, body) in [
        ("get", "GET", "/v1/health", ""),
        ("post", "POST", "/ga4gh/tes/v1/tasks", r#"{"executors": []}"#),
        ("large-answer", "GET", "/large", ""),
        ("cancel", "GET", "/never", ""),
    ] {
        let request = Request::builder().method(method).uri(format!("https://localhost{path}"));
        let request = request.body(Full::new(Bytes::from_static(body.as_bytes()))).expect("a request");
        write("frames", name, &[&setup, &client_says(request).await[..]].concat());
    }
}

/// Everything that a client says to a real server for the sake of one request.
async fn client_says(request: Request<Full<Bytes>>) -> Vec<u8> {
    let [(client, heard), (passed_on, server)] = [tokio::io::duplex(65_536), tokio::io::duplex(65_536)];
    let (mut heard, mut to_client) = split(heard);
    let (mut from_server, mut passed_on) = split(passed_on);
    let hearing = tokio::spawn(async move {
        let mut said = vec![];
        loop {
            let before = said.len();
            if heard.read_buf(&mut said).await.expect("memory") == 0 {
                return said;
            }
            // The server may be gone already.
            let _gone = passed_on.write_all(&said[before..]).await;
        }
    });
    tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
    let asked_in_vain = Arc::new(Notify::new());
    let notify = Arc::clone(&asked_in_vain);
    let service = service_fn(move |request: Request<Incoming>| {
        let notify = Arc::clone(&notify);
        async move {
            match request.uri().path() {
                "/never" => {
                    notify.notify_one();
                    std::future::pending().await
                }
                "/large" => Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(vec![b'x'; 1 << 20]))),
                _ => Ok(Response::new(Full::default())),
            }
        }
    });
    let serving =
        hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(server), service);
    let serving = tokio::spawn(serving);
    let handshake = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .adaptive_window(true)
        .handshake(TokioIo::new(client));
    let (mut asking, connection) = handshake.await.expect("a handshake");
    let connection = tokio::spawn(connection);
    let answer = async { asking.send_request(request).await.expect("an answer").into_body().collect().await };
    tokio::select! {
        answer = answer => drop(answer.expect("a body")),
        () = asked_in_vain.notified() => {}
    }
    drop(asking);
    let _over = connection.await;
    serving.abort();
    hearing.await.expect("what was said")
}

fn tasks() {
    write("task", "small.json", &json(&json!({"executors": [{"image": "alpine", "command": ["echo", "hello"]}]})));
    write(
        "task",
        "whole.json",
        &json(&json!({
            "name": "train", "description": "all members",
            "inputs": [{"url": "s3://bucket/a", "path": "/data/a", "type": "FILE"}, {"path": "/data/b", "content": "text"}],
            "outputs": [{"url": "file:///srv/out", "path": "/data/out/*.bin", "path_prefix": "/data/out", "type": "FILE"}],
            "resources": {"cpu_cores": 4, "ram_gb": 12.5, "disk_gb": 40, "preemptible": true, "zones": ["FR", "DE"],
                "backend_parameters": {"gpu_count": "8", "gpu_model": "H100", "walltime_s": "3600"}},
            "executors": [{"image": "i", "command": ["sh", "-c", "true"], "workdir": "/data", "stdin": "/data/a",
                "stdout": "/data/o", "stderr": "/data/e", "env": {"A": "b"}, "ignore_error": true}],
            "volumes": ["/vol"], "tags": {"data_class": "health", "purpose": "research"}
        })),
    );
    write(
        "query",
        "filters",
        b"name_prefix=a%20b&state=RUNNING&tag_key=k&tag_value=v+w&tag_key=l&page_size=10&view=FULL",
    );
    let job = JobId::new(cast::NOW_S * 1_000, [7; 10]);
    write("query", "job", job.to_string().as_bytes());
    write("query", "page", gateway::tes::PageToken(job).to_text().as_bytes());
    write("query", "second-page", format!("page_token={}", gateway::tes::PageToken(job).to_text()).as_bytes());
}

fn tokens() {
    let claims = json!({
        "iss": cast::issuer().issuer(), "aud": cast::AUDIENCE, "sub": "ada", "jti": "1",
        "iat": cast::NOW_S, "nbf": cast::NOW_S, "exp": cast::NOW_S + 600,
        "entitlements": ["urn:geant:entente.example:group:researchers"],
        "eduperson_assurance": ["https://refeds.org/assurance/IAP/high"], "clearances": ["FR:dual-use", "secret"],
    });
    write("claims", "researcher.json", &json(&claims));
    write("token", "researcher", cast::issuer().mint(&claims).expect("a token").as_bytes());
}

fn certificates() {
    let id = |text: &str| GatewayId::parse(text).expect("an id");
    let ca = StateCa::create(cast::france(), &cast::federation(), cast::NOW_S, 365).expect("an authority");
    let der = |pem: &str| {
        use rustls_pki_types::{CertificateDer, pem::PemObject};
        CertificateDer::from_pem_slice(pem.as_bytes()).expect("a certificate").to_vec()
    };
    write("authority", "ca.der", &ca.cert_der().expect("a certificate"));
    write("authority", "jwks.json", cast::issuer().jwks_json().as_bytes());
    let leaf = ca.issue_gateway(&id("FR/fr-1"), cast::NOW_S, 24).expect("a leaf");
    write("peer", "gateway.der", &der(&leaf.cert_pem));
    let public = ca.issue_public(&["localhost".into(), "127.0.0.1".into()], cast::NOW_S, 24).expect("a leaf");
    write("peer", "public.der", &der(&public.cert_pem));
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::CrlSign];
    let issuer = rcgen::Issuer::new(params, key);
    let moment = |s: u64| time::OffsetDateTime::from_unix_timestamp(s as i64).expect("a time");
    let revoked = RevokedCertParams {
        serial_number: SerialNumber::from(4_711),
        revocation_time: moment(cast::NOW_S),
        reason_code: None,
        invalidity_date: None,
    };
    let list = CertificateRevocationListParams {
        this_update: moment(cast::NOW_S),
        next_update: moment(cast::NOW_S + 600),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: vec![revoked],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    write("revocation", "one.crl", list.signed_by(&issuer).expect("a list").der());
    let serials = ["1267", "3f01", "7f0000000000000000000000000000000000000f"];
    let revoked = serials.map(|it| Revoked { serial: Serial::parse(it).expect("a number"), at_s: cast::NOW_S });
    write("revocation", "authority.crl", &ca.revocation_list(2, &revoked, cast::NOW_S).expect("a list"));
}

fn gateway_name() -> GatewayName {
    GatewayName::parse("fr-1").expect("a name")
}

/// Alone in its federation.
fn agree(bundle: SignedBundle) -> Genesis {
    let gateways = vec![GatewayRecord {
        id: GatewayId { state: cast::france(), name: gateway_name() },
        node_id: 1,
        peer_address: "127.0.0.1:1".into(),
        api_url: "https://127.0.0.1:2".into(),
    }];
    let federation: FederationId = cast::federation();
    let draft = Genesis::draft(federation, 1, vec![GenesisMember { bundle, gateways }]).expect("a draft");
    let draft: GenesisDraft = draft.sign(cast::france(), &cast::root()).expect("a signature");
    write("genesis", "france.json", &serde_json::to_vec(&draft).expect("a genesis"));
    draft.complete().expect("everybody has signed")
}

fn records(genesis: &Genesis) {
    let pool = PoolId::parse("FR/jean-zay/main").expect("a pool");
    let pack = policy::founding::pack(cast::france()).expect("a pack");
    let jobs = [1, 2, 3].map(|it| JobId::new(cast::NOW_S * 1_000 + it, [7; 10]));
    let mut commands = vec![
        Command::PublishPack(PublishPack { sequence: 1, previous: None, source: pack }),
        Command::PublishOffer(offer(pool)),
        Command::ReportCapacity(CapacityReport {
            pool,
            lendable: vec![NodeCount { gpus: 4, nodes: 3 }],
            at: Timestamp(cast::NOW_S * 1_000),
            problem: None,
        }),
    ];
    commands.extend(jobs.iter().zip([8, 4, 8]).map(|(job, gpus)| Command::Submit(submit(*job, gpus, pool))));
    let at = Timestamp(cast::NOW_S * 1_000 + 9);
    commands.push(Command::Start { job: jobs[0], attempt: 1, at });
    commands.push(Command::Run { job: jobs[0], attempt: 1, at });
    commands.push(Command::Cancel { job: jobs[1], at });
    let end = Command::Finish { job: jobs[0], attempt: 1, end: End::Complete, at };
    let batch = Batch(commands).to_bytes();
    write("batch", "day", &batch);
    let mut registry = Registry::from_genesis(genesis);
    write("snapshot", "founded", &registry.to_bytes());
    let header = Header {
        federation: cast::federation(),
        epoch: 1,
        owner: cast::france(),
        key: cast::key().public().id(),
        serial: 1,
        kind: Kind::Command,
    };
    let seal = |serial, body: &[u8]| {
        Envelope::seal(Header { serial, ..header.clone() }, body, &cast::key()).expect("an envelope")
    };
    let first = seal(1, &batch);
    println!("{:?}", registry.apply(Revision(1), &first, Verdict::Unknown));
    let small = seal(2, &Batch(vec![end]).to_bytes());
    write("envelope", "day", first.as_bytes());
    write("envelope", "end", small.as_bytes());
    write("snapshot", "day", &registry.to_bytes());
    println!("{:?}", registry.apply(Revision(2), &small, Verdict::Unknown));
    write("snapshot", "evening", &registry.to_bytes());
    for (number, message) in fuzzing::examples(small.as_bytes(), b"a piece").iter().enumerate() {
        write("message", &format!("{number:02}"), message);
    }
    let log = fuzzing::segment_of(&[b"one", small.as_bytes(), b""]);
    write("log", "three", &[log, vec![0; 64]].concat());
}

fn offer(pool: PoolId) -> Offer {
    let model = DeviceModel {
        name: "H100 SXM5 80GB".into(),
        vendor: "NVIDIA".into(),
        memory_gib: 80,
        scheduler_units: 1,
        partition: None,
    };
    Offer {
        pool,
        served_by: gateway_name(),
        sequence: 1,
        model,
        nodes: 4,
        gpus_per_node: 4,
        task_slots: 2,
        walltime_max_s: 86_400,
        certifications: vec!["HDS".into()],
        carbon_g_per_kwh: 50,
        price_milli_eur_per_gpu_hour: 1_000,
        city: "Orsay".into(),
        until: None,
        keeps_leases: true,
    }
}

fn submit(job: JobId, gpus: u32, pool: PoolId) -> Submit {
    let shape = Shape {
        gpus,
        nodes: 0,
        model: None,
        memory_gib_min: 0,
        walltime_s: 3_600,
        cpu_cores: 0,
        ram_gib: 0,
        disk_gib: 0,
    };
    Submit {
        job,
        home_gateway: gateway_name(),
        pseudonym: Pseudonym([7; 16]),
        shape,
        labels: Labels { data_class: DataClass::Public, purpose: Purpose::Research, dual_use: false, project: None },
        payload: Digest::of(job.to_string().as_bytes()),
        priority: 5,
        restartable: true,
        exclusive: false,
        candidates: vec![pool.into()],
        decided_on: vec![(cast::france(), 1)],
        at: Timestamp(0),
    }
}
