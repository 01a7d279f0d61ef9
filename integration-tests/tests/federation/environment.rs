//! What goes wrong around one gateway: its disk, its clock, its folder. It stops before it lies or says what is wrong, the
//! others go on, nothing that was acknowledged is lost, and when the fault is gone so are its consequences.

use std::path::{Path, PathBuf};
use std::process::Command;

use gateway::cli::client::Client;
use integration_tests::{
    Federation, TASKS, ended, eventually, gpu_task, look, post_raw, reaches, skip_without, submit, task, unconfined,
};
use serde_json::{Value, json};

pub(super) const FIU: [&str; 2] = ["/usr/lib/fiu/fiu_run_preload.so", "/usr/lib/fiu/fiu_posix_preload.so"];
/// A gateway's last words.
const STOPPED: &str = "stopping before anything untrue is said";

/// Runs a program of the system that has to succeed.
#[track_caller]
fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().expect("a program of the system");
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {why}");
}

/// What a client knows of its submissions.
#[derive(Default)]
struct Submitted {
    acknowledged: Vec<String>,
    /// Their idempotency keys; whether these are tasks nobody has said.
    unanswered: Vec<String>,
}

fn named(name: &str) -> Vec<u8> {
    let mut body = task(&["true"]);
    body["name"] = json!(name);
    body["description"] = json!("x".repeat(12_000));
    body.to_string().into_bytes()
}

impl Submitted {
    /// Submits one task after the other until the gateway is gone.
    async fn until_gone(&mut self, client: &mut Client, prefix: &str) {
        for number in 0.. {
            assert!(number < 4_000, "the gateway takes everything, although its disk fails");
            let key = format!("{prefix}-{number}");
            let header = [(http::HeaderName::from_static("idempotency-key"), key.parse().expect("a value"))];
            match client.call(http::Method::POST, TASKS, Some(named(&key)), &header).await {
                Ok(answer) if answer.status.is_success() => {
                    let task: Value = answer.json().expect("a task");
                    self.acknowledged.push(task["id"].as_str().expect("an id").to_owned());
                }
                Ok(answer) => {
                    assert!(answer.status.is_server_error() || answer.status == 429, "{answer:?}");
                    self.unanswered.push(key);
                }
                Err(_gone) => return self.unanswered.push(key),
            }
        }
    }

    /// Every acknowledged task is there and ends well; what had no answer is one task when it is repeated.
    async fn check(&self, client: &mut Client) {
        for id in &self.acknowledged {
            assert_eq!(ended(client, id).await["state"], "COMPLETE");
        }
        for key in self.unanswered.iter().rev().take(3) {
            let id = eventually("a repeated submission is taken", async || {
                let answer = post_raw(client, named(key), &[("idempotency-key", key)]).await;
                let task: Value = answer.json().ok()?;
                Some(task["id"].as_str()?.to_owned())
            })
            .await;
            assert_eq!(ended(client, &id).await["state"], "COMPLETE");
            let same = client.read(&format!("{TASKS}?name_prefix={key}")).await.expect("a list");
            let same = same["tasks"].as_array().expect("tasks");
            let exactly = same.iter().filter(|it| it["id"] == id.as_str()).count();
            assert_eq!((exactly, same.len()), (1, 1), "{key}: {same:?}");
        }
    }
}

/// The other two place and run a job.
async fn others_go_on(federation: &Federation) {
    let mut client = federation.client("DE", "researcher.DE");
    let mut body = gpu_task(&["echo", "still here"], 4, "H100");
    body["resources"]["zones"] = json!(["FR"]);
    let id = eventually("the others place a job", async || {
        let answer = client.post(TASKS, &body).await.ok()?;
        Some(answer["id"].as_str()?.to_owned())
    })
    .await;
    let done = ended(&mut client, &id).await;
    assert_eq!(done["state"], "COMPLETE", "{done}");
}

#[track_caller]
fn assert_stopped(federation: &Federation, status: std::process::ExitStatus) {
    let log = std::fs::read_to_string(federation.log("FI")).expect("a log");
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains(STOPPED), "{log}");
}

#[tokio::test]
async fn a_gateway_whose_disk_fails_stops_before_it_lies() {
    if skip_without("libfiu", FIU.iter().all(|it| Path::new(it).exists())) {
        return;
    }
    let mut federation = Federation::start();
    for (round, fault) in [
        "enable name=posix/io/sync/fdatasync,failinfo=5",
        "enable name=posix/io/rw/pwrite,failinfo=28",
        "enable_random name=posix/io/rw/pwrite,probability=0.02,failinfo=5",
    ]
    .into_iter()
    .enumerate()
    {
        federation.kill("FI");
        let _log_of_the_round_before = std::fs::remove_file(federation.log("FI"));
        let control = federation.folder().join(format!("fiu-{round}"));
        let control = control.to_str().expect("a path in UTF-8");
        federation.restart_with("FI", &[("LD_PRELOAD", &FIU.join(" ")), ("FIU_CTRL_FIFO", control)]).await;
        let mut client = federation.client("FI", "researcher.FI");
        let mut submitted = Submitted::default();
        submitted.acknowledged.push(submit(&mut client, &task(&["true"])).await);
        run("fiu-ctrl", &["-c", fault, "-f", control, &federation.process("FI").to_string()]);
        submitted.until_gone(&mut client, &format!("fault-{round}")).await;
        let status = federation.ends().await;
        assert_stopped(&federation, status);
        others_go_on(&federation).await;
        federation.restart("FI").await;
        submitted.check(&mut federation.client("FI", "researcher.FI")).await;
    }
}

/// A file system of its own, which goes with this value.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn at(folder: &Path) -> SmallDisk {
        run("mount", &["-t", "tmpfs", "-o", "size=64m", "small", folder.to_str().expect("a path in UTF-8")]);
        SmallDisk(folder.to_owned())
    }

    /// Whether this process may mount.
    fn is_possible() -> bool {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "small"]).arg(folder.path()).output();
        let is_possible = mounted.is_ok_and(|it| it.status.success());
        if is_possible {
            drop(SmallDisk(folder.path().to_owned()));
        }
        is_possible
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _left_behind = Command::new("umount").arg("--lazy").arg(&self.0).output();
    }
}

#[tokio::test]
async fn a_gateway_whose_disk_is_full_stops_and_goes_on_when_there_is_room() {
    if skip_without("mount", SmallDisk::is_possible()) {
        return;
    }
    let mut federation = Federation::start();
    federation.kill("FI");
    let data = federation.gateway_folder("FI").join("data");
    let aside = federation.gateway_folder("FI").join("aside");
    std::fs::rename(&data, &aside).expect("the data is moved");
    std::fs::create_dir(&data).expect("a folder");
    let disk = SmallDisk::at(&data);
    run("cp", &["-a", &format!("{}/.", aside.display()), data.to_str().expect("a path in UTF-8")]);
    federation.restart("FI").await;
    let mut client = federation.client("FI", "researcher.FI");
    let mut submitted = Submitted::default();
    submitted.acknowledged.push(submit(&mut client, &task(&["true"])).await);
    // Somebody else's file takes the rest.
    let filler = data.join("filler");
    let full = std::io::copy(&mut std::io::repeat(1), &mut std::fs::File::create(&filler).expect("a file"));
    assert_eq!(full.map_err(|it| it.kind()).err(), Some(std::io::ErrorKind::StorageFull));
    submitted.until_gone(&mut client, "full").await;
    let status = federation.ends().await;
    assert_stopped(&federation, status);
    others_go_on(&federation).await;
    std::fs::remove_file(filler).expect("room again");
    federation.restart("FI").await;
    submitted.check(&mut federation.client("FI", "researcher.FI")).await;
    federation.kill("FI");
    drop(disk);
}

/// The library that moves a program's clock.
fn faketime() -> Option<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib").ok()?;
    folders.filter_map(|it| Some(it.ok()?.path().join("faketime/libfaketimeMT.so.1"))).find(|it| it.exists())
}

/// FI's first pool, as DE sees it.
async fn pool_of_finland(federation: &Federation) -> Value {
    let capacity = federation.client("DE", "researcher.DE").read("/v1/capacity").await.expect("reads go on");
    let pools = capacity["pools"].as_array().expect("pools");
    pools.iter().find(|it| it["state"] == "FI" && it["gpus"] != 0).expect("a pool in Finland").clone()
}

/// A task in Finland that ends when it is let go, and leaves a mark when it has ended.
fn witness(go: &Path, over: &Path) -> Value {
    let waits = format!("while [ ! -e {} ]; do sleep 0.1; done", go.display());
    let script = format!("echo started; {waits}; echo ended; touch {}", over.display());
    let mut body = gpu_task(&["sh", "-c", &script], 1, "MI250X");
    body["resources"]["zones"] = json!(["FI"]);
    body
}

/// How a gateway's clock is wrong.
struct WrongClock {
    /// As faketime has it.
    fake: &'static str,
    /// Also the clock that nobody sets, by which timeouts are counted.
    also_monotonic: bool,
    seen: Seen,
    /// Why the gateway takes no token.
    why_no_token: Option<&'static str>,
}

/// What follows from it, at other gateways and at its own.
enum Seen {
    /// It takes part, and its reports are from the future.
    Ahead,
    /// It takes part, and its reports look old.
    Behind,
    /// It takes part, and its reports are further in the future every time.
    Fast,
    /// No certificate is valid for it, and this is what its log says: it is as if it were cut off.
    CutOff(&'static str),
}

const WRONG_CLOCKS: [WrongClock; 6] = [
    WrongClock { fake: "+300s", also_monotonic: false, seen: Seen::Ahead, why_no_token: None },
    WrongClock { fake: "-300s", also_monotonic: false, seen: Seen::Behind, why_no_token: Some("is a clock wrong?") },
    WrongClock { fake: "-300s", also_monotonic: true, seen: Seen::Behind, why_no_token: Some("is a clock wrong?") },
    // Its timeouts are over in a tenth of their time.
    WrongClock { fake: "+0 x10", also_monotonic: true, seen: Seen::Fast, why_no_token: None },
    WrongClock {
        fake: "+40d",
        also_monotonic: false,
        seen: Seen::CutOff("certificate expired"),
        why_no_token: Some("the token has expired"),
    },
    WrongClock {
        fake: "-40d",
        also_monotonic: false,
        seen: Seen::CutOff("certificate not valid yet"),
        why_no_token: Some("is a clock wrong?"),
    },
];

/// Milliseconds by which 300 s are seen; a report is at most a few seconds old.
const ABOUT_300_S: std::ops::Range<u64> = 280_000..320_000;

impl WrongClock {
    fn variables<'a>(&self, library: &'a str) -> [(&'static str, &'a str); 3] {
        let only_wall = if self.also_monotonic { "0" } else { "1" };
        [("LD_PRELOAD", library), ("FAKETIME", self.fake), ("FAKETIME_DONT_FAKE_MONOTONIC", only_wall)]
    }

    /// Waits until it is seen in Germany, in Finland's health and in Finland's log.
    async fn is_seen(&self, federation: &Federation) {
        let (mut health, mut earlier) = (federation.client_with("FI", None), None);
        eventually(&format!("{} is seen", self.fake), async || {
            let pool = pool_of_finland(federation).await;
            let health = health.read("/v1/health").await.ok()?;
            let [age, ahead] = ["age_ms", "clock_ahead_ms"].map(|it| pool[it].as_u64().expect("milliseconds"));
            let (problem, is_quiet) = (pool["problem"].as_str(), pool["quiet"] == true);
            let takes_part = health["status"] == "ok" && !is_quiet;
            let is_so = match self.seen {
                Seen::Ahead => takes_part && age == 0 && ABOUT_300_S.contains(&ahead) && problem.is_none(),
                Seen::Behind => {
                    let is_said = problem.is_some_and(|it| it.ends_with("or its clock is behind"));
                    takes_part && ahead == 0 && ABOUT_300_S.contains(&age) && is_said
                }
                Seen::Fast => {
                    let first = *earlier.get_or_insert(ahead);
                    takes_part && age == 0 && ahead > first + 20_000 && problem.is_none()
                }
                Seen::CutOff(why) => {
                    let log = std::fs::read_to_string(federation.log("FI")).unwrap_or_default();
                    let is_said = problem.is_some_and(|it| it.starts_with("most states have not heard of its gateway"));
                    health["status"] == "no-leader" && is_quiet && is_said && log.contains(why)
                }
            };
            is_so.then_some(())
        })
        .await;
    }

    /// What Finland's gateway takes of a researcher, and what it refuses.
    async fn is_asked(&self, federation: &Federation) -> Option<String> {
        let mut there = federation.client("FI", "researcher.FI");
        let Some(why) = self.why_no_token else {
            return Some(submit(&mut there, &task(&["true"])).await);
        };
        let answer = post_raw(&mut there, task(&["true"]).to_string().into_bytes(), &[]).await;
        let said = String::from_utf8_lossy(&answer.body);
        assert!(answer.status == 401 && said.contains(why), "{}: {said}", self.fake);
        None
    }
}

#[tokio::test]
async fn a_wrong_clock_is_seen_ends_nothing_and_heals() {
    let library = faketime();
    if skip_without("faketime", library.is_some()) {
        return;
    }
    let library = library.expect("it is there").display().to_string();
    let mut federation = Federation::start_with(unconfined).await;
    let marks = tempfile::tempdir().expect("a folder");
    for (row, wrong) in WRONG_CLOCKS.iter().enumerate() {
        let fake = wrong.fake;
        let [go, over] = ["go", "over"].map(|what| marks.path().join(format!("{row}.{what}")));
        let mut client = federation.client("DE", "researcher.DE");
        let runs = submit(&mut client, &witness(&go, &over)).await;
        reaches(&mut client, &runs, &["RUNNING"]).await;
        federation.kill("FI");
        let _log_of_the_row_before = std::fs::remove_file(federation.log("FI"));
        federation.launch_with("FI", &wrong.variables(&library));
        wrong.is_seen(&federation).await;
        let taken = wrong.is_asked(&federation).await;
        others_go_on(&federation).await;
        std::fs::write(&go, "").expect("a file");
        eventually("its job ends there", async || over.exists().then_some(())).await;
        let is_cut_off = matches!(wrong.seen, Seen::CutOff(_));
        if is_cut_off {
            // What its host does not report is not over.
            assert_eq!(look(&mut client, &runs).await["state"], "RUNNING", "{fake}");
        } else {
            let done = ended(&mut client, &runs).await;
            assert_eq!(done["state"], "COMPLETE", "{fake}: {done}");
        }

        federation.kill("FI");
        federation.restart("FI").await;
        let done = ended(&mut client, &runs).await;
        assert_eq!(done["state"], "COMPLETE", "{fake}: {done}");
        assert_eq!(done["logs"][0]["logs"][0]["stdout"], "started\nended\n", "{fake}: it ran once, and to its end");
        assert_eq!(done["logs"].as_array().map(Vec::len), Some(1), "{fake}: {done}");
        if let Some(taken) = taken {
            let done = ended(&mut federation.client("FI", "researcher.FI"), &taken).await;
            assert_eq!(done["state"], "COMPLETE", "{fake}: {done}");
        }
        let again = submit(&mut client, &witness(&go, &over)).await;
        assert_eq!(ended(&mut client, &again).await["state"], "COMPLETE", "{fake}");
        eventually("the pool looks well again", async || {
            let pool = pool_of_finland(&federation).await;
            (pool["clock_ahead_ms"].as_u64()? < 2_000 && pool["problem"].is_null()).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_gateway_refuses_the_data_folder_of_another() {
    let mut federation = Federation::start();
    let mut client = federation.client("FI", "researcher.FI");
    let id = submit(&mut client, &task(&["true"])).await;
    ended(&mut client, &id).await;
    federation.kill("FI");
    federation.kill("DE");
    let [of_finland, of_germany] = ["FI", "DE"].map(|it| federation.gateway_folder(it).join("data"));
    let aside = federation.gateway_folder("FI").join("aside");
    std::fs::rename(&of_finland, &aside).expect("the data is moved");
    let path = |it: &Path| it.to_str().expect("a path in UTF-8").to_owned();
    run("cp", &["-a", &path(&of_germany), &path(&of_finland)]);
    federation.launch("FI");
    let status = federation.ends().await;
    let log = std::fs::read_to_string(federation.log("FI")).expect("a log");
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("belongs to"), "{log}");
    std::fs::remove_dir_all(&of_finland).expect("the copy is removed");
    std::fs::rename(&aside, &of_finland).expect("the data is moved back");
    federation.restart("DE").await;
    federation.restart("FI").await;
    let mut client = federation.client("FI", "researcher.FI");
    assert_eq!(ended(&mut client, &id).await["state"], "COMPLETE");
    others_go_on(&federation).await;
}
