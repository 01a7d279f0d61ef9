//! `entente up` and what it leaves behind: nothing, however it ends, if the system lets it do something.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use integration_tests::{Federation, eventually, program, turns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn signal(pid: u32, what: Signal) {
    kill(Pid::from_raw(pid as i32), what).expect("a running process");
}

fn is_running(pid: i64) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// Those of these signals that are not ignored here, as hangups are under `nohup`, and Ctrl-C is behind a script's `&`. What is
/// ignored here is ignored by what is started from here.
fn heard<const N: usize>(signals: [Signal; N]) -> Vec<Signal> {
    let status = std::fs::read_to_string("/proc/self/status").expect("this process");
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).expect("a set of signals");
    let ignored = u64::from_str_radix(ignored.trim(), 16).expect("a number");
    signals.into_iter().filter(|signal| ignored >> (*signal as i32 - 1) & 1 == 0).collect()
}

#[tokio::test]
async fn a_start_that_is_stopped_at_any_moment_leaves_no_keys() {
    let _turn = turns::shared();
    let signals = heard([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT]);
    for (round, delay_ms) in [0, 5, 10, 20, 40, 80, 160, 320, 640, 1_280].into_iter().enumerate() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut up = Command::new(program())
            .arg("up")
            .env("TMPDIR", folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        // As of a terminal that was closed.
        drop(up.stderr.take());
        // The time is what is tried out; nothing is waited for.
        tokio::time::sleep(Duration::from_millis(delay_ms)).await;
        signal(up.id(), signals[round % signals.len()]);
        up.wait().expect("an ended program");
        let left: Vec<_> = folder.path().read_dir().expect("a folder").collect();
        assert!(left.is_empty(), "{left:?} after {delay_ms} ms");
    }
}

#[tokio::test]
async fn no_gateway_outlives_the_up_that_started_it() {
    let federation = Federation::start();
    let gateways: Vec<i64> = ["FR", "DE", "FI"]
        .iter()
        .map(|state| federation.about()["processes"][state].as_i64().expect("a pid"))
        .collect();
    assert!(gateways.iter().all(|pid| is_running(*pid)));
    signal(federation.up(), Signal::SIGKILL);
    eventually("they have stopped", async || gateways.iter().all(|pid| !is_running(*pid)).then_some(())).await;
}

#[tokio::test]
async fn what_is_in_the_way_is_named_and_left_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("keep"), "mine").expect("a file");
    let fails = |arguments: &[&str]| {
        let output = Command::new(program()).arg("up").args(arguments).output().expect("the program starts");
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        String::from_utf8(output.stderr).expect("text")
    };
    let path = |name: &str| folder.path().join(name).to_str().expect("text").to_owned();
    assert!(fails(&["--data-dir", &path("")]).contains("holds files already"));
    assert_eq!(folder.path().read_dir().expect("a folder").count(), 1);

    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let said = fails(&["--data-dir", &path("new"), "--port", &port]);
    assert!(said.contains(&format!("port {port} of 127.0.0.1 is taken")) || said.contains("leaves no six"), "{said}");
    assert!(fails(&["--port", "65533"]).contains("--port 65533 leaves no six ports"));
    assert!(!Path::new(&path("new")).exists());
}
