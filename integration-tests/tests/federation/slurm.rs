//! Real Slurm clusters as France's factories: what the other states see of them, and what they do for them.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use gateway::cli::client::Client;
use http::Method;
use integration_tests::slurm::{Cluster, FINNISH, FRENCH, Pool, lend, skip};
use integration_tests::{Federation, PATIENCE, TASKS, ended, eventually, gpu_task, post_raw, reaches, submit, turns};
use serde_json::{Value, json};

const H100: Pool = Pool { name: "h100-80", model: "H100-80", gres: "gpu:h100", nodes: 2, gpus_per_node: 4 };
const H100_POOL: &str = "FR/jean-zay/h100-80";
/// What the project promises.
const SEEN_WITHIN: Duration = Duration::from_secs(3);

/// A federation whose France lends two nodes of four GPUs, when all of it is seen in Germany.
async fn with_slurm(options: &[(&str, &str)]) -> (Cluster, Federation) {
    let cluster = Cluster::start(&["h100:4", "h100:4"], options);
    let mut federation = Federation::start();
    lend(&mut federation, "FR", &[cluster.factory("jean-zay", &H100)]).await;
    frees(&mut federation.client("DE", "agency"), H100_POOL, 8).await;
    (cluster, federation)
}

/// A task that only France may run.
fn in_france(script: &str, gpus: u32, model: &str) -> Value {
    let mut body = gpu_task(&["sh", "-c", script], gpus, model);
    body["resources"]["zones"] = json!(["FR"]);
    body
}

/// Waits until a pool is shown with so many free GPUs.
async fn frees(client: &mut Client, pool: &str, gpus: u64) -> Value {
    eventually(&format!("{pool} has {gpus} GPUs free"), async || {
        shown(client, pool).await.filter(|it| it["gpus_free"] == gpus && it["age_ms"].is_u64())
    })
    .await
}

async fn shown(client: &mut Client, pool: &str) -> Option<Value> {
    let capacity = client.read("/v1/capacity").await.ok()?;
    capacity["pools"].as_array()?.iter().find(|it| it["pool"] == pool).cloned()
}

/// What a log has from an offset on: the text, where it goes on, and whether that is all.
async fn log(client: &mut Client, id: &str, offset: usize) -> (String, usize, bool) {
    let path = format!("/v1/tasks/{id}/logs?executor=0&pipe=stdout&offset={offset}");
    let answer = client.call(Method::GET, &path, None, &[]).await.expect("an answer");
    assert_eq!(answer.status, 200, "{answer:?}");
    let header = |name: &str| answer.headers[name].to_str().expect("text").to_owned();
    let text = String::from_utf8(answer.body.to_vec()).expect("text");
    (text, header("entente-next-offset").parse().expect("a number"), header("entente-end") == "true")
}

fn system_logs(task: &Value) -> String {
    task["logs"][0]["system_logs"].to_string()
}

#[tokio::test]
async fn a_finnish_task_runs_on_french_slurm_as_its_own_account() {
    if skip() {
        return;
    }
    let (cluster, federation) = with_slurm(&[]).await;
    let mut finland = federation.client("FI", "researcher.FI");
    let go = cluster.files().join("go");
    let script = format!(
        "id -un; echo $CUDA_VISIBLE_DEVICES; while [ ! -e {} ]; do sleep 0.1; done; echo went; echo aside >&2; exit 3",
        go.display()
    );
    let id = submit(&mut finland, &in_france(&script, 2, "H100")).await;

    let mut germany = federation.client("DE", "researcher.FI");
    let begin = format!("{FINNISH}\n0,1\n");
    reaches(&mut germany, &id, &["RUNNING"]).await;
    eventually("its output is read while it runs", async || {
        let (text, next, end) = log(&mut germany, &id, 0).await;
        (text == begin).then(|| assert_eq!((next, end), (begin.len(), false)))
    })
    .await;
    assert_eq!(cluster.jobs_of(&id), [format!("RUNNING {FINNISH}")]);
    std::fs::write(go, "").expect("a file");

    let done = ended(&mut germany, &id).await;
    assert_eq!(done["state"], "EXECUTOR_ERROR", "{done}");
    assert_eq!(done["logs"][0]["metadata"]["pool"], H100_POOL);
    let step = &done["logs"][0]["logs"][0];
    assert_eq!(step["exit_code"], 3, "{done}");
    assert_eq!(step["stdout"], format!("{begin}went\n"), "{done}");
    assert_eq!(step["stderr"], "aside\n", "{done}");
    assert_eq!(log(&mut germany, &id, begin.len()).await, ("went\n".into(), begin.len() + 5, true));
    assert!(!cluster.jobs_of(&id)[0].starts_with("RUNNING"), "Slurm has its nodes back");

    let mut france = federation.client("FR", "researcher.FR");
    let own = submit(&mut france, &in_france("id -un", 1, "H100")).await;
    let done = ended(&mut france, &own).await;
    assert_eq!(done["state"], "COMPLETE", "{done}");
    assert_eq!(done["logs"][0]["logs"][0]["stdout"], format!("{FRENCH}\n"), "{done}");
}

#[tokio::test]
async fn whoever_has_no_account_there_is_told_so() {
    if skip() {
        return;
    }
    let (cluster, federation) = with_slurm(&[]).await;
    let mut germany = federation.client("DE", "researcher.DE");
    let id = submit(&mut germany, &in_france("id -un", 1, "H100")).await;
    let done = ended(&mut germany, &id).await;
    assert_eq!(done["state"], "SYSTEM_ERROR", "{done}");
    let expected = format!(
        "attempt 1 on {H100_POOL} was declined: \
         this factory has no local account for the researcher: its operator can map one"
    );
    assert!(system_logs(&done).contains(&expected), "{done}");
    assert!(cluster.jobs_of(&id).is_empty(), "Slurm never heard of it");

    cluster.map("DE", FRENCH);
    eventually("the mapping is read, and the next task runs", async || {
        let id = submit(&mut germany, &in_france("id -un", 1, "H100")).await;
        let done = ended(&mut germany, &id).await;
        (done["state"] == "COMPLETE").then(|| assert_eq!(done["logs"][0]["logs"][0]["stdout"], format!("{FRENCH}\n")))
    })
    .await;
}

#[tokio::test]
async fn what_france_cannot_lend_is_seen_in_germany_within_three_seconds() {
    if skip() {
        return;
    }
    turns::alone(async || {
        let (cluster, federation) = with_slurm(&[]).await;
        let mut germany = federation.client("DE", "agency");
        let mut slowest = Duration::ZERO;
        let mut seen = async |what: &str, since: Instant, gpus: u64| {
            let pool = frees(&mut germany, H100_POOL, gpus).await;
            let took = since.elapsed();
            assert!(took < SEEN_WITHIN, "{what} was seen after {took:?}");
            slowest = slowest.max(took);
            pool
        };
        let node = format!("NodeName={}", cluster.node(2));
        for (state, gpus) in [("drain", 4), ("resume", 8), ("drain", 4), ("resume", 8), ("down", 4), ("resume", 8)] {
            let since = Instant::now();
            cluster.admin(&["scontrol", "update", &node, &format!("State={state}"), "Reason=test"]);
            let pool = seen(state, since, gpus).await;
            let problem = (gpus == 4).then_some("1 of 2 nodes are down, drained or reserved");
            assert_eq!(pool["problem"], json!(problem), "{pool}");
        }
        let words = ["sbatch", "--parsable", "--partition=local", "--output=/dev/null", "--gres=gpu:h100:3"];
        let local = cluster.as_user(FRENCH, &[&words[..], &["--wrap=sleep 1000"]].concat());
        eventually("the local job runs", async || {
            (cluster.admin(&["squeue", "--noheader", "--format=%T", "--jobs", &local]) == "RUNNING").then_some(())
        })
        .await;
        let pool = seen("a local job", Instant::now(), 5).await;
        assert_eq!(pool["problem"], Value::Null, "local users are no problem");
        assert_eq!(pool["largest_free_on_a_node"], 4);
        cluster.admin(&["scancel", &local]);
        seen("its end", Instant::now(), 8).await;
        eprintln!("the slowest was seen after {slowest:?}");
    })
    .await;
}

/// An epilogue that ends when it may: as long as it runs, Slurm has not given the node back.
fn epilogue() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).expect("a mode");
    let (script, may) = (folder.path().join("epilogue"), folder.path().join("may"));
    let waits =
        format!("#!/bin/sh\nwhile [ -e {} ] && [ ! -e {} ]; do sleep 0.1; done\n", script.display(), may.display());
    std::fs::write(&script, waits).expect("a script");
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).expect("a mode");
    (folder, may)
}

#[tokio::test]
async fn a_cancelled_task_is_canceled_when_slurm_has_released_its_gpus() {
    if skip() {
        return;
    }
    let (folder, may) = epilogue();
    let conf = format!("Epilog={}", folder.path().join("epilogue").display());
    let (cluster, federation) = with_slurm(&[("CONF", &conf)]).await;
    let mut finland = federation.client("FI", "researcher.FI");
    let mut germany = federation.client("DE", "researcher.FI");
    let id = submit(&mut finland, &in_france("echo up; sleep 1000", 8, "H100")).await;
    reaches(&mut germany, &id, &["RUNNING"]).await;
    germany.post(&format!("{TASKS}/{id}:cancel"), &json!({})).await.expect("an answer");
    eventually("only Slurm holds it", async || (cluster.jobs_of(&id)[0].starts_with("COMPLETING")).then_some(())).await;

    // The driver looks every second.
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(4) {
        let task = germany.read(&format!("{TASKS}/{id}")).await.expect("a task");
        assert_eq!(task["state"], "CANCELING", "{task}");
        let pool = shown(&mut germany, H100_POOL).await.expect("a pool");
        assert_eq!(pool["gpus_free"], 0, "{pool}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(cluster.jobs_of(&id), [format!("COMPLETING {FINNISH}")]);
    std::fs::write(may, "").expect("a file");
    let done = ended(&mut germany, &id).await;
    assert_eq!(done["state"], "CANCELED", "{done}");
    assert!(!cluster.jobs_of(&id)[0].starts_with("COMPLETING"));
    frees(&mut germany, H100_POOL, 8).await;
}

#[tokio::test]
async fn one_gateway_lends_two_clusters() {
    if skip() {
        return;
    }
    let first = Cluster::start(&["h100:4", "h100:4"], &[]);
    let second = Cluster::start(&["a100:8"], &[]);
    let a100 = Pool { name: "a100-80", model: "A100-80", gres: "gpu:a100", nodes: 1, gpus_per_node: 8 };
    let mut federation = Federation::start();
    let factories = [first.factory("jean-zay", &H100), second.factory("adastra", &a100)];
    lend(&mut federation, "FR", &factories).await;
    let mut germany = federation.client("DE", "researcher.FI");
    frees(&mut germany, H100_POOL, 8).await;
    frees(&mut germany, "FR/adastra/a100-80", 8).await;

    let [go, script] = [first.files().join("go"), second.files().join("go")]
        .map(|go| format!("while [ ! -e {} ]; do sleep 0.1; done; echo $CUDA_VISIBLE_DEVICES", go.display()));
    let on_first = submit(&mut germany, &in_france(&go, 4, "H100")).await;
    let on_second = submit(&mut germany, &in_france(&script, 8, "A100")).await;
    for id in [&on_first, &on_second] {
        reaches(&mut germany, id, &["RUNNING"]).await;
    }
    assert_eq!((first.jobs_of(&on_first).len(), second.jobs_of(&on_first).len()), (1, 0));
    assert_eq!((first.jobs_of(&on_second).len(), second.jobs_of(&on_second).len()), (0, 1));

    // One that is down takes nothing from the other, also when the gateway starts meanwhile.
    first.daemon("stop", "slurmctld");
    federation.kill("FR");
    federation.restart("FR").await;
    std::fs::write(second.files().join("go"), "").expect("a file");
    let done = ended(&mut germany, &on_second).await;
    assert_eq!(done["state"], "COMPLETE", "{done}");
    assert_eq!(done["logs"][0]["logs"][0]["stdout"], "0,1,2,3,4,5,6,7\n");
    let task = germany.read(&format!("{TASKS}/{on_first}")).await.expect("a task");
    assert_eq!(task["state"], "RUNNING", "{task}");
    eventually("Germany reads why", async || {
        let down = shown(&mut germany, H100_POOL).await?;
        down["problem"].as_str().is_some_and(|it| it.contains("Slurm")).then_some(())
    })
    .await;
    first.daemon("start", "slurmctld");
    std::fs::write(first.files().join("go"), "").expect("a file");
    let done = ended(&mut germany, &on_first).await;
    assert_eq!(done["state"], "COMPLETE", "{done}");
    frees(&mut germany, H100_POOL, 8).await;
    frees(&mut germany, "FR/adastra/a100-80", 8).await;
}

const JOBS: usize = 200;

#[tokio::test]
async fn two_hundred_tasks_run_once_each_however_often_frances_gateway_is_killed() {
    if skip() {
        return;
    }
    let cluster = Cluster::start(&["h100:8", "h100:8"], &[("CPUS", "64")]);
    let pool = Pool { gpus_per_node: 8, ..H100 };
    let mut federation = Federation::start();
    lend(&mut federation, "FR", &[cluster.factory("jean-zay", &pool)]).await;
    let mut finland = federation.client("FI", "researcher.FI");
    frees(&mut finland, H100_POOL, 16).await;

    let lines = cluster.files().join("lines");
    let body = in_france(&format!("echo $ENTENTE_JOB >>{}", lines.display()), 1, "H100").to_string().into_bytes();
    let (begun, kills, is_over) = (Instant::now(), Cell::new(0_u64), Cell::new(false));
    let working = async {
        let mut ids: Vec<String> = vec![];
        for number in 0..JOBS {
            // France's rule: another state's jobs have 60 % of a pool at most, and here that is nine of sixteen GPUs.
            if let Some(earlier) = number.checked_sub(8) {
                let id = &ids[earlier];
                let done = until_ended(&mut finland, id).await;
                done.unwrap_or_else(|task| panic!("it does not end: {task}; {:?}", cluster.jobs_of(id)));
            }
            let key = format!("task-{number}");
            let id = eventually("the task is acknowledged", async || {
                let answer = post_raw(&mut finland, body.clone(), &[("idempotency-key", &key)]).await;
                let task: Value = answer.json().ok()?;
                Some(task["id"].as_str()?.to_owned())
            });
            ids.push(id.await);
        }
        eprintln!("acknowledged after {:?} and {} kills", begun.elapsed(), kills.get());
        for id in &ids {
            let done = until_ended(&mut finland, id).await;
            let done = done.unwrap_or_else(|task| panic!("it does not end: {task}; {:?}", cluster.jobs_of(id)));
            assert_eq!(done["state"], "COMPLETE", "{done}");
        }
        is_over.set(true);
        ids
    };
    let killing = async {
        while !is_over.get() {
            federation.kill("FR");
            federation.restart("FR").await;
            kills.set(kills.get() + 1);
            // It is left alone for longer and longer, so that it gets on also where everything takes its time.
            let [low, high] = certs::entropy::bytes::<2>();
            let spread = u64::from(u16::from_le_bytes([low, high])) % 1_500;
            tokio::time::sleep(Duration::from_millis(50 + 20 * kills.get() + spread)).await;
        }
    };
    let (ids, ()) = tokio::join!(working, killing);
    assert!(kills.get() >= 10, "only {} kills", kills.get());

    let ran = std::fs::read_to_string(lines).expect("a file");
    let (mut witnessed, mut completed): (BTreeMap<&str, u32>, BTreeMap<String, u32>) = Default::default();
    ran.lines().for_each(|line| *witnessed.entry(line).or_default() += 1);
    cluster.completed().into_iter().for_each(|name| *completed.entry(name).or_default() += 1);
    assert_eq!((witnessed.len(), completed.len()), (JOBS, JOBS), "{completed:?}");
    for id in &ids {
        assert_eq!(witnessed.get(id.as_str()), Some(&1), "{id} by its own witness");
        assert_eq!(completed.get(&format!("ent-{id}.1")), Some(&1), "{id} by Slurm's record");
    }
    eprintln!("{JOBS} tasks, {} kills, {:?}", kills.get(), begun.elapsed());
}

/// [`ended`], or what was seen last of a task that does not end.
async fn until_ended(client: &mut Client, id: &str) -> Result<Value, Value> {
    let since = Instant::now();
    let mut seen = Value::Null;
    while since.elapsed() < PATIENCE {
        if let Ok(task) = client.read(&format!("{TASKS}/{id}?view=FULL")).await {
            seen = task;
        }
        if ["COMPLETE", "EXECUTOR_ERROR", "SYSTEM_ERROR", "CANCELED"].map(Value::from).contains(&seen["state"]) {
            return Ok(seen);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Err(seen)
}
