//! What a task cannot take, and cannot see.

use std::process::Command;

use federation::End;
use gateway::driver::{Driver, Isolation, Local, NoDriver, RunAs};
use tempfile::TempDir;

use super::bench::{Bench, isolations, order, pool, sh, skip_without, supervisor, until};

#[tokio::test]
async fn memory_and_files_have_limits() {
    for isolation in isolations() {
        let bench = Bench::new(isolation);
        let mut small = sh("dd if=/dev/zero of=/dev/null bs=2G count=1");
        small.ram_gib = 1;
        assert!(matches!(bench.run(small.clone()).await.0, End::ExecutorError { .. }));
        for (disk_gib, fits) in [(1, false), (4, true)] {
            let mut sparse = sh("dd if=/dev/zero of=sparse bs=1M seek=2048 count=1");
            sparse.disk_gib = disk_gib;
            let (end, record) = bench.run(sparse).await;
            assert_eq!(end == End::Complete, fits, "{record:?}");
        }
        let cores = bench.run(sh("ulimit -c")).await.1;
        assert_eq!(cores.executors[0].stdout, "0\n");
    }
}

/// Writes what is there already, in case it can be written.
const REWRITE: &str = "f=/proc/sys/kernel/core_pattern; v=$(cat $f); echo \"$v\" > $f";

#[tokio::test]
async fn a_task_in_bubblewrap_sees_its_own_and_the_machines_programs() {
    if !isolations().contains(&Isolation::Bubblewrap) {
        return;
    }
    let bench = Bench::new(Isolation::Bubblewrap);
    std::fs::write(bench.folder.path().join("secret"), "secret").expect("a file");
    let secret = bench.folder.path().join("secret").display().to_string();
    for forbidden in [
        vec!["cat", &secret],
        vec!["cat", "/etc/shadow"],
        vec!["touch", "/usr/x"],
        vec!["touch", "/x"],
        vec!["touch", "/etc/x"],
        vec!["sh", "-c", "echo b > /proc/sysrq-trigger"],
        vec!["sh", "-c", REWRITE],
        vec!["unshare", "-U", "true"],
        vec!["mount", "-t", "tmpfs", "none", "/tmp"],
        vec!["kill", "-0", &std::process::id().to_string()],
    ] {
        let (end, record) = bench.run(order(&forbidden)).await;
        assert!(matches!(end, End::ExecutorError { .. }), "{forbidden:?}: {record:?}");
    }
    for (script, expected) in [
        ("cut -d: -f1 /proc/net/dev | tail -n +3 | tr -d ' '", "lo\n"),
        ("id -u; hostname 2>/dev/null || cat /proc/sys/kernel/hostname", "65534\ntask\n"),
        ("grep CapEff /proc/self/status", "CapEff:\t0000000000000000\n"),
        ("cat /proc/kcore /proc/kallsyms | wc -c", "0\n"),
        ("pwd; echo \"$HOME\"", "/work\n/tmp\n"),
        ("echo fine > /tmp/a && cat /tmp/a && echo x > /dev/shm/x", "fine\n"),
        ("ls -d /home /root /var /srv 2>/dev/null; true", ""),
    ] {
        let (end, record) = bench.run(sh(script)).await;
        assert_eq!(end, End::Complete, "{script}: {record:?}");
        assert_eq!(record.executors[0].stdout, expected, "{script}");
    }
}

#[tokio::test]
async fn the_tasks_variables_do_not_reach_what_wraps_it() {
    for isolation in isolations() {
        let bench = Bench::new(isolation);
        let mut traced = sh("echo inside");
        // The loader of a program that sees this prints its own lines and runs nothing.
        traced.executors[0].env.insert("LD_TRACE_LOADED_OBJECTS".into(), "1".into());
        let (end, record) = bench.run(traced).await;
        assert_eq!(end, End::Complete, "{record:?}");
        assert!(!record.executors[0].stdout.contains("libcap"), "bubblewrap's own library: {record:?}");
    }
}

#[tokio::test]
async fn a_gateway_of_root_runs_its_tasks_as_somebody_else() {
    let missing = (!nix::unistd::geteuid().is_root()).then(|| "the tests run as another account".to_owned());
    if skip_without("root", missing) {
        return;
    }
    for isolation in isolations() {
        let mut bench = Bench::prepare(isolation);
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o711);
        std::fs::set_permissions(bench.folder.path(), open).expect("an open folder");
        bench.settings.run_as = Some(RunAs { uid: 4711, gid: 4711 });
        bench.restart();
        let order = sh("echo own > a; stat -c %u a; cat $ENTENTE_ROOT/../../order.json || echo closed");
        let (end, record) = bench.run(order).await;
        assert_eq!(end, End::Complete, "{record:?}");
        let owner = if isolation == Isolation::Process { "4711" } else { "65534" };
        assert_eq!(record.executors[0].stdout, format!("{owner}\nclosed\n"));
        let processes = bench.run(sh("grep processes /proc/self/limits | tr -s ' ' | cut -d ' ' -f 3,4")).await.1;
        assert_eq!(processes.executors[0].stdout, "16384 16384\n");
    }
}

#[tokio::test]
async fn an_account_that_cannot_run_tasks_is_found_out_at_the_start() {
    let missing = (!nix::unistd::geteuid().is_root()).then(|| "the tests run as another account".to_owned());
    if skip_without("root", missing) {
        return;
    }
    let start = |uid, gid, mode| {
        let mut bench = Bench::prepare(Isolation::Process);
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(bench.folder.path(), mode).expect("a mode");
        bench.settings.run_as = Some(RunAs { uid, gid });
        Local::start(bench.settings.clone()).map(drop)
    };
    assert!(matches!(start(4711, 4711, 0o700), Err(NoDriver::RunAsOutside { .. })));
    assert!(matches!(start(0, 4711, 0o711), Err(NoDriver::RunAs)));
    assert!(matches!(start(4711, 0, 0o711), Err(NoDriver::RunAs)));
    assert!(start(4711, 4711, 0o711).is_ok());
}

#[tokio::test]
async fn out_of_memory_a_step_goes_before_the_gateway_and_the_supervisor() {
    for isolation in isolations() {
        let bench = Bench::new(isolation);
        let job = bench.submit(sh("cat /proc/self/oom_score_adj; echo up; sleep 1000")).await;
        bench.says(job, "up").await;
        assert_eq!(bench.stdout(job).await, "1000\nup\n", "{isolation:?}");
        let score = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("a score");
        let supervisor = supervisor(&bench, job).to_string();
        until("the supervisor is not meant", || score(&supervisor) == score("self")).await;
        bench.cancel(job).await;
        bench.done(job).await;
    }
}

#[tokio::test]
async fn a_nearly_full_disk_ends_attempts_and_lends_nothing() {
    for isolation in isolations() {
        let mut bench = Bench::prepare(isolation);
        bench.settings.disk_reserve = u64::MAX;
        bench.restart();
        let (end, record) = bench.run(sh("sleep 1000")).await;
        let reason = "the machine that ran the task was nearly out of disk";
        assert_eq!(end, End::system_error(reason), "{record:?}");
        assert_eq!(record.system_logs, [reason]);
        let problem = || bench.local().capacity(&pool()).expect("a report").problem;
        until("the pool says so", || problem().is_some()).await;
        assert_eq!(bench.local().capacity(&pool()).expect("a report").lendable, []);
    }
}

/// A file system of 8 MiB.
struct Small(TempDir);

impl Small {
    fn mount() -> Result<Small, String> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut mount = Command::new("mount");
        let mounted = mount.args(["-t", "tmpfs", "-o", "size=8m", "none"]).arg(folder.path()).output();
        match mounted {
            Ok(output) if output.status.success() => Ok(Small(folder)),
            other => Err(format!("no small file system: {other:?}")),
        }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _left_mounted = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn a_task_that_fills_the_disk_keeps_its_exit_code() {
    let small = Small::mount();
    if skip_without("mounts", small.as_ref().err().cloned()) {
        return;
    }
    let small = small.expect("a file system");
    let mut bench = Bench::prepare(Isolation::Process);
    bench.settings.attempts = small.0.path().join("attempts");
    bench.restart();
    // Its output makes the record larger than what a file system may happen to have left.
    let fill = "head -c 30000 /dev/zero | tr '\\0' x; while echo more; do :; done > full 2>/dev/null; exit 7";
    let (end, record) = bench.run(sh(fill)).await;
    assert_eq!(end, End::ExecutorError { exit_code: 7 }, "{record:?}");
    assert_eq!(record.executors[0].stdout.len(), 30_000);
}

#[tokio::test]
async fn what_a_task_locks_is_removed_all_the_same() {
    let bench = Bench::new(Isolation::Process);
    let order = sh("mkdir -p a/b; touch a/b/c; chmod 0 a/b; chmod 0 a");
    let folder = bench.attempt_folder(order.job);
    let (end, record) = bench.run(order).await;
    assert_eq!(end, End::Complete, "{record:?}");
    until("the files are gone", || !folder.join("work").exists()).await;
    assert!(!folder.join("order.json").exists());
}
