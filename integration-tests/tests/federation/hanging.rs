//! File systems that do not answer, for real: mounts whose own program stands still. What does not come from there goes on,
//! and when they answer again nothing is lost and nothing has run twice.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use integration_tests::{
    Federation, PATIENCE, ended, eventually, gpu_task, look, reaches, skip_without, submit, unconfined,
};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::minor;
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A folder that shows what is in another one, as long as the program behind it answers.
struct Mount {
    program: Child,
    at: PathBuf,
    /// Where the kernel says of all such mounts how many wait for their programs.
    control: TempDir,
    /// The file of this one there.
    waiting: PathBuf,
}

impl Mount {
    fn of(source: &Path, at: &Path) -> std::io::Result<Mount> {
        std::fs::create_dir_all(source)?;
        std::fs::create_dir_all(at)?;
        let control = tempfile::tempdir()?;
        let mut bindfs = Command::new("bindfs");
        bindfs.arg("-f").arg(source).arg(at).stdout(Stdio::null()).stderr(Stdio::null());
        let mut mount = Mount { program: bindfs.spawn()?, at: at.to_owned(), control, waiting: PathBuf::new() };
        let begun = Instant::now();
        while !mount.is_there() {
            if mount.program.try_wait()?.is_some() || begun.elapsed() > PATIENCE {
                return Err(std::io::Error::other("nothing is mounted"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Command::new("mount").args(["-t", "fusectl", "control"]).arg(mount.control.path()).output()?;
        // A connection is named by the number of its file system.
        mount.waiting = mount.control.path().join(minor(at.metadata()?.dev()).to_string()).join("waiting");
        std::fs::metadata(&mount.waiting)?;
        Ok(mount)
    }

    fn is_there(&self) -> bool {
        let mounts = std::fs::read_to_string("/proc/self/mounts").expect("a Linux machine");
        mounts.lines().any(|it| it.split(' ').nth(1) == self.at.to_str())
    }

    /// Whether this process may mount, and has what to mount.
    fn is_possible() -> bool {
        let folder = tempfile::tempdir().expect("a temporary folder");
        Mount::of(&folder.path().join("source"), &folder.path().join("at")).is_ok()
    }

    /// From now on whoever asks it for anything waits.
    fn hang(&self) {
        self.signal(Signal::SIGSTOP);
    }

    fn answer(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, what: Signal) {
        kill(Pid::from_raw(self.program.id().cast_signed()), what).expect("the mount's program is there");
    }

    /// Waits until somebody waits for it, which lasts until it goes on.
    async fn is_waited_for(&self) {
        eventually("somebody waits for a file", async || {
            let waiting = std::fs::read_to_string(&self.waiting).expect("a number");
            waiting.trim().parse().is_ok_and(|it: u32| it > 0).then_some(())
        })
        .await;
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _already_gone = self.program.kill();
        let _status = self.program.wait();
        for mounted in [self.at.as_path(), self.control.path()] {
            let _left_behind = Command::new("umount").arg("--lazy").arg(mounted).output();
        }
    }
}

/// A stop that waits for nothing but its last writes takes five seconds.
const STOP_MAX: Duration = Duration::from_secs(30);

/// A task of this state's.
fn task_in(state: &str, model: &str, script: &str) -> Value {
    let mut body = gpu_task(&["sh", "-c", script], 1, model);
    body["resources"]["zones"] = json!([state]);
    body
}

/// France's pack, by its sequence in Germany.
async fn pack_is_published(federation: &Federation, sequence: u64) {
    let mut client = federation.client("DE", "researcher.DE");
    eventually("the pack is published", async || {
        let pack = client.read("/v1/policies/FR").await.ok()?;
        (pack["sequence"] == sequence).then_some(())
    })
    .await;
}

async fn assert_lends_and_is_well(federation: &Federation) {
    let mut client = federation.client("FR", "researcher.FR");
    let id = submit(&mut client, &task_in("FR", "H100", "true")).await;
    assert_eq!(ended(&mut client, &id).await["state"], "COMPLETE");
    let health = client.read("/v1/health").await.expect("health is answered");
    assert_eq!(health["status"], "ok", "{health}");
}

#[tokio::test]
async fn what_a_state_publishes_may_hang_and_its_gateway_goes_on() {
    if skip_without("bindfs", Mount::is_possible()) {
        return;
    }
    let mut federation = Federation::start();
    federation.kill("FR");
    let (folder, of_state) = (federation.gateway_folder("FR"), federation.folder().join("states/FR"));
    let (source, at) = (folder.join("source"), folder.join("published"));
    let mount = Mount::of(&source, &at).expect("a mount");
    let path = folder.join("gateway.toml");
    let mut text = std::fs::read_to_string(&path).expect("a configuration");
    for name in ["policy.cedar", "peer.pem", "peer.key", "public.pem", "public.key"] {
        std::fs::rename(folder.join(name), source.join(name)).expect("it is moved");
        text = text.replace(&format!("\"{name}\""), &format!("\"published/{name}\""));
    }
    std::fs::copy(of_state.join("bundle.json"), source.join("bundle.json")).expect("it is copied");
    text = text.replace(&format!("{:?}", of_state.join("bundle.json")), "\"published/bundle.json\"");
    assert_eq!(text.matches("\"published/").count(), 6, "{text}");
    std::fs::write(&path, text).expect("a written configuration");
    federation.restart("FR").await;
    pack_is_published(&federation, 1).await;

    let change = |number: u64| {
        let pack = source.join("policy.cedar");
        let text = std::fs::read_to_string(&pack).expect("a pack");
        std::fs::write(pack, format!("{text}// Change {number}.\n")).expect("a changed pack");
    };
    mount.hang();
    change(1);
    mount.is_waited_for().await;
    assert_lends_and_is_well(&federation).await;
    mount.answer();
    pack_is_published(&federation, 2).await;

    mount.hang();
    change(2);
    mount.is_waited_for().await;
    let took = federation.stop("FR");
    assert!(took < STOP_MAX, "{took:?} to stop a gateway whose files hang");
    federation.launch("FR");
    mount.is_waited_for().await;
    let took = federation.stop("FR");
    assert!(took < STOP_MAX, "{took:?} to stop a gateway that has not started");
    mount.answer();
    federation.restart("FR").await;
    pack_is_published(&federation, 3).await;
    assert_lends_and_is_well(&federation).await;
}

/// Leaves a mark for each time that it runs.
fn marks(folder: &Path, name: &str) -> String {
    format!("echo {name} >> {}", folder.join(name).display())
}

#[tokio::test]
async fn attempts_whose_files_hang_wait_and_run_once() {
    if skip_without("bindfs", Mount::is_possible()) {
        return;
    }
    let mut federation = Federation::start();
    federation.kill("FR");
    let (folder, marked) = (federation.gateway_folder("FR"), federation.folder().join("marked"));
    std::fs::create_dir(&marked).expect("a folder");
    let mount = Mount::of(&folder.join("source"), &folder.join("attempts")).expect("a mount");
    let path = folder.join("gateway.toml");
    let text = unconfined("FR", std::fs::read_to_string(&path).expect("a configuration"));
    let text = text.replace("[local]\n", "[local]\nattempts_dir = \"attempts\"\n");
    std::fs::write(&path, text).expect("a written configuration");
    federation.restart("FR").await;

    let mut client = federation.client("FR", "researcher.FR");
    let go = federation.folder().join("go");
    let waits = format!("while [ ! -e {} ]; do sleep 0.1; done; {}", go.display(), marks(&marked, "runs"));
    let runs = submit(&mut client, &task_in("FR", "H100", &waits)).await;
    reaches(&mut client, &runs, &["RUNNING"]).await;
    mount.hang();
    let waits = submit(&mut client, &task_in("FR", "H100", &marks(&marked, "waits"))).await;
    mount.is_waited_for().await;
    std::fs::write(&go, "").expect("a file");
    eventually("the task that ran is over", async || std::fs::exists(marked.join("runs")).ok()?.then_some(())).await;
    // Through the gateway whose tasks' files hang.
    let elsewhere = submit(&mut client, &task_in("DE", "GH200", "true")).await;
    assert_eq!(ended(&mut client, &elsewhere).await["state"], "COMPLETE");
    let health = client.read("/v1/health").await.expect("health is answered");
    assert_eq!(health["status"], "ok", "{health}");
    for id in [&runs, &waits] {
        let task = look(&mut client, id).await;
        assert!(!["COMPLETE", "EXECUTOR_ERROR", "SYSTEM_ERROR"].contains(&task["state"].as_str().expect("a state")));
    }
    mount.answer();
    for (id, name) in [(&runs, "runs"), (&waits, "waits")] {
        assert_eq!(ended(&mut client, id).await["state"], "COMPLETE");
        assert_eq!(std::fs::read_to_string(marked.join(name)).expect("a mark"), format!("{name}\n"));
    }
}
