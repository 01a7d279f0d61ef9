//! What a task cannot take, and cannot see.

use federation::End;
use gateway::driver::{Isolation, RunAs};

use super::bench::{Bench, isolations, order, sh, skip_without, until};

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
    }
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
