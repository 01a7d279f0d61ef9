//! A gateway that is killed again and again, at any instruction: every attempt is one job of Slurm's, and runs once.
//!
//! The driver lives in a process of its own here, which is an ordinary account through and through.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use federation::{End, JobId};
use gateway::driver::{AttemptStatus, SlurmSettings, TokenSource, start_slurm};

use super::bench::{Bench, Like, USERS, account, missing, name, script, settings_in, sh, skip_without};

const JOBS: u64 = 200;
/// Where a driver's process finds its cluster and its folder; without it, there is nothing for it to do.
const HOST: &str = "ENTENTE_TEST_SLURM_HOST";

#[test]
fn two_hundred_jobs_run_once_each_however_often_the_gateway_is_killed() {
    if std::env::var(HOST).is_ok() || skip_without("slurm", missing()) {
        return;
    }
    let bench = Bench::prepare(Like { nodes: &["h100:4", "h100:4"], options: &[("CPUS", "64")] });
    give_tokens(&bench);
    let mut host = start(&bench);
    let (mut kills, mut next) = (0, Instant::now() + Duration::from_millis(300));
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = host.try_wait().expect("a child") {
            break status;
        }
        // Often while jobs are submitted, seldom afterwards: then there is only waiting to be disturbed.
        if Instant::now() >= next {
            host.kill().expect("a child");
            host.wait().expect("a child");
            kills += 1;
            host = start(&bench);
            let [low, high] = certs::entropy::bytes::<2>();
            let spread = Duration::from_millis(u64::from(u16::from_le_bytes([low, high])) % 400);
            let calm = if kills < 40 { Duration::from_millis(60) } else { Duration::from_secs(30) };
            next = Instant::now() + calm + spread;
        }
        assert!(begun.elapsed() < Duration::from_secs(900), "after {kills} kills they are still not done");
        std::thread::sleep(Duration::from_millis(10));
    };
    let log = || std::fs::read_to_string(bench.folder.path().join("host.log")).unwrap_or_default();
    assert!(status.success(), "{}", log());
    assert!(kills >= 10, "only {kills} kills");

    let ran = std::fs::read_to_string(bench.files().join("lines")).expect("a file");
    let mut times: BTreeMap<&str, u32> = BTreeMap::new();
    ran.lines().for_each(|line| *times.entry(line).or_default() += 1);
    let listed = bench.cluster.admin(&["squeue", "--noheader", "--states=all", "--format=%j"]);
    let mut jobs: BTreeMap<&str, u32> = BTreeMap::new();
    listed.lines().for_each(|line| *jobs.entry(line).or_default() += 1);
    for number in 0..JOBS {
        let job = id(number);
        let story = || log().lines().filter(|line| line.contains(&job.to_string())).collect::<Vec<_>>().join("\n");
        assert_eq!(times.get(job.to_string().as_str()), Some(&1), "{job}, {kills} kills: runs of it\n{}", story());
        assert_eq!(jobs.get(name(job).as_str()), Some(&1), "{job}, {kills} kills: jobs of it\n{}", story());
    }
    eprintln!("{JOBS} jobs, {kills} kills, {:?}", begun.elapsed());
}

/// Not a test of its own: the process that is killed.
#[test]
fn host() {
    let Ok(folder) = std::env::var(HOST) else {
        return;
    };
    assert!(!nix::unistd::geteuid().is_root());
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(drive(PathBuf::from(folder)));
}

async fn drive(folder: PathBuf) {
    tracing_subscriber::fmt().with_ansi(false).init();
    let driver = start_slurm(read_settings(&folder)).expect("a driver");
    let lines = folder.join("files/lines");
    for number in 0..JOBS {
        let mut order = sh(&format!("echo $ENTENTE_JOB >>{}", lines.display()));
        (order.job, order.gpus) = (id(number), (number % 2) as u32);
        driver.submit(order).await.expect("taken");
    }
    let mut changes = driver.changes();
    loop {
        changes.borrow_and_update();
        let ends: Vec<AttemptStatus> = (0..JOBS).map(|number| driver.poll(&id(number), 1)).collect();
        let is_bad = |it: &&AttemptStatus| matches!(it, AttemptStatus::Done { end, .. } if *end != End::Complete);
        assert_eq!(ends.iter().find(is_bad), None);
        if ends.iter().all(|it| matches!(it, AttemptStatus::Done { .. })) {
            return;
        }
        changes.changed().await.expect("a driver that lives");
    }
}

fn start(bench: &Bench) -> Child {
    let gateway = account("ent-gateway");
    let log =
        std::fs::File::options().append(true).create(true).open(bench.folder.path().join("host.log")).expect("a log");
    // Becomes the program, with the same number.
    Command::new("setpriv")
        .args(["--reuid", gateway.name.as_str(), "--regid", gateway.name.as_str(), "--clear-groups"])
        .arg(std::env::current_exe().expect("this program"))
        .args(["--exact", "slurm::killed::host", "--nocapture"])
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env(HOST, bench.folder.path())
        .env("ENTENTE_TEST_SLURM_URL", bench.cluster.url())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a log"))
        .stderr(log)
        .spawn()
        .expect("a child")
}

/// What a cron job of the operator's would do.
fn give_tokens(bench: &Bench) {
    let folder = bench.folder.path().join("tokens");
    std::fs::create_dir(&folder).expect("a folder");
    for user in USERS {
        let token = Command::new("bash").arg(script()).arg("token").arg(bench.cluster.path()).arg(user).output();
        std::fs::write(folder.join(user), token.expect("a token").stdout).expect("a file");
    }
}

fn read_settings(folder: &Path) -> SlurmSettings {
    SlurmSettings {
        url: std::env::var("ENTENTE_TEST_SLURM_URL").expect("a url"),
        tokens: TokenSource::File(format!("{}/tokens/{{user}}", folder.display())),
        ..settings_in(folder)
    }
}

fn id(number: u64) -> JobId {
    JobId::new(1_000_000 + number, [7; 10])
}
