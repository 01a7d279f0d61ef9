//! Gateways that are stopped in order and come back, one after the other, as an update of the federation does it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use integration_tests::persistent::Persistent;
use integration_tests::{Federation, STATES, ended, eventually, gpu_task, reaches, submit, task, turns, unconfined};
use nix::sys::signal::Signal;
use serde_json::json;

use super::kills::{all_tasks, witness};

/// The model that only this state lends, for a job that has to run there.
const POOLS: [(&str, &str); 3] = [("FR", "H100"), ("DE", "A100"), ("FI", "MI250X")];
const SUBMIT_EVERY: Duration = Duration::from_millis(100);
/// Above what any machine needs to hand over, and below an election with the wait for it on a busy one.
const GAP_MAX: Duration = Duration::from_secs(2);
/// A stop with nothing in flight waits for no more than a farewell on each face, and a hand-over.
const STOP_MAX: Duration = Duration::from_secs(3);

/// A job that runs until the test lets it end: which process it is, and that it goes on, stands in its folder.
struct LongJob {
    state: &'static str,
    id: String,
    pids: std::path::PathBuf,
    ticks: std::path::PathBuf,
}

impl LongJob {
    async fn start(federation: &Federation, state: &'static str, model: &str, marks: &Path) -> LongJob {
        let [pids, ticks] = ["pids", "ticks"].map(|what| marks.join(format!("{state}.{what}")));
        let command = format!(
            "echo $$ >> {}; while [ ! -e {} ]; do printf x >> {}; sleep 0.05; done; echo through",
            pids.display(),
            marks.join("end").display(),
            ticks.display(),
        );
        let mut body = gpu_task(&["sh", "-c", &command], 1, model);
        body["resources"]["zones"] = json!([state]);
        let mut client = federation.client(state, &format!("researcher.{state}"));
        let id = submit(&mut client, &body).await;
        reaches(&mut client, &id, &["RUNNING"]).await;
        let job = LongJob { state, id, pids, ticks };
        eventually("the job runs", async || (job.ticks() > 0).then_some(())).await;
        job
    }

    fn ticks(&self) -> u64 {
        std::fs::metadata(&self.ticks).map_or(0, |it| it.len())
    }

    /// Its one process is alive and does something.
    async fn goes_on(&self, when: &str) {
        let pids = std::fs::read_to_string(&self.pids).expect("the process's number");
        assert_eq!(pids.lines().count(), 1, "{when}: {} was started again: {pids}", self.id);
        assert!(Path::new("/proc").join(pids.trim()).exists(), "{when}: {} is gone", self.id);
        let before = self.ticks();
        eventually(&format!("{when}: {} goes on", self.id), async || (self.ticks() > before).then_some(())).await;
    }

    async fn ends(&self, federation: &Federation) {
        let mut client = federation.client(self.state, &format!("researcher.{}", self.state));
        let done = ended(&mut client, &self.id).await;
        assert_eq!(done["state"], "COMPLETE", "{done}");
        assert_eq!(done["logs"][0]["logs"][0]["stdout"], "through\n", "{done}");
        assert_eq!(done["logs"].as_array().map(Vec::len), Some(1), "one attempt: {done}");
        let why = client.read(&format!("/v1/tasks/{}/why", self.id)).await.expect("a history");
        assert!(!why.to_string().contains("attempt 2"), "{why}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_gateways_are_replaced_in_turn_and_no_submission_fails_and_no_job_notices() {
    let mut federation = Federation::start_with(unconfined).await;
    let marks = tempfile::tempdir().expect("a folder");
    let mut jobs = vec![];
    for (state, model) in POOLS {
        jobs.push(LongJob::start(&federation, state, model, marks.path()).await);
    }
    let (over, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut submitters = vec![];
    for (state, model) in POOLS {
        let mut researcher = Persistent::new(&federation, &format!("researcher.{state}"));
        let (over, done, folder) = (Arc::clone(&over), Arc::clone(&done), marks.path().to_owned());
        submitters.push(tokio::spawn(async move {
            let mut accepted = BTreeMap::new();
            while !over.load(Ordering::Relaxed) {
                let key = format!("{state}-{}", accepted.len());
                let (id, _) = researcher.submit(&key, &witness(&folder, &key, model)).await;
                accepted.insert(id, key);
                done.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(SUBMIT_EVERY).await;
            }
            accepted
        }));
    }
    for state in STATES {
        let took = federation.stop(state);
        eprintln!("{state} stopped in {took:?}");
        for job in &jobs {
            job.goes_on(&format!("{state} is stopped")).await;
        }
        let before = done.load(Ordering::Relaxed);
        federation.launch(state);
        federation.answers(state).await;
        for job in &jobs {
            job.goes_on(&format!("{state} is back")).await;
        }
        let some_more = before + 2 * POOLS.len();
        eventually("researchers work", async || (done.load(Ordering::Relaxed) > some_more).then_some(())).await;
    }
    over.store(true, Ordering::Relaxed);
    let mut tasks = 0;
    for ((state, _), submitter) in POOLS.into_iter().zip(submitters) {
        let accepted = submitter.await.expect("every task was accepted in the end");
        tasks += accepted.len();
        let mut client = federation.client(state, &format!("researcher.{state}"));
        for (id, key) in &accepted {
            assert_eq!(ended(&mut client, id).await["state"], "COMPLETE", "{key}");
            let starts = std::fs::read(marks.path().join(key)).unwrap_or_default().len();
            assert_eq!(starts, 1, "{key} ran so often");
        }
        let mut known = all_tasks(&mut Persistent::new(&federation, &format!("researcher.{state}"))).await;
        known.retain(|id, _| jobs.iter().all(|job| job.id != *id));
        assert_eq!(known.len(), accepted.len(), "{state}: one task for each key");
    }
    std::fs::write(marks.path().join("end"), "").expect("a mark");
    for job in &jobs {
        job.ends(&federation).await;
    }
    eprintln!("three restarts, {tasks} tasks");
}

/// The longest time between two commits while `what` happens to the leader, as a researcher at another gateway sees it.
async fn gap(federation: &mut Federation, round: &str, what: impl FnOnce(&mut Federation, &str)) -> Duration {
    let leader = eventually("a leader", async || federation.leader("FR").await).await;
    let other = *STATES.iter().find(|state| **state != leader).expect("three states");
    let mut researcher = Persistent::at(federation, &[other], &format!("researcher.{other}"));
    let (over, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let submitter = {
        let (over, done, round) = (Arc::clone(&over), Arc::clone(&done), round.to_owned());
        tokio::spawn(async move {
            let (mut longest, mut last) = (Duration::ZERO, Instant::now());
            while !over.load(Ordering::Relaxed) {
                let key = format!("{round}-{}", done.load(Ordering::Relaxed));
                researcher.submit(&key, &task(&["true"])).await;
                longest = longest.max(last.elapsed());
                last = Instant::now();
                done.fetch_add(1, Ordering::Relaxed);
            }
            longest
        })
    };
    let more = async || {
        let before = done.load(Ordering::Relaxed);
        eventually("commits", async || (done.load(Ordering::Relaxed) > before + 5).then_some(())).await;
    };
    more().await;
    what(federation, &leader);
    more().await;
    over.store(true, Ordering::Relaxed);
    let longest = submitter.await.expect("submissions that are accepted");
    federation.launch(&leader);
    federation.answers(&leader).await;
    longest
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_stopped_hands_over_and_is_missed_for_less_than_one_that_is_killed() {
    turns::alone(async || {
        let mut federation = Federation::start_with(unconfined).await;
        let (mut stopped, mut killed) = (vec![], vec![]);
        for round in 0..3 {
            stopped.push(
                gap(&mut federation, &format!("stop-{round}"), |it, leader| {
                    it.stop(leader);
                })
                .await,
            );
            killed.push(gap(&mut federation, &format!("kill-{round}"), Federation::kill).await);
        }
        stopped.sort_unstable();
        killed.sort_unstable();
        eprintln!("no commit for {stopped:?} when the leader is stopped, {killed:?} when it is killed");
        assert!(stopped[2] < GAP_MAX, "{stopped:?}");
        // The middle ones, because a busy machine may hold up any single one.
        assert!(2 * stopped[1] < killed[1], "stopped: {stopped:?}, killed: {killed:?}");
    })
    .await;
}

/// Gateways that stand still until this is dropped.
struct Frozen<'a>(&'a Federation, Vec<&'static str>);

impl<'a> Frozen<'a> {
    fn all_but(federation: &'a Federation, state: &str) -> Frozen<'a> {
        let others: Vec<_> = STATES.into_iter().filter(|it| *it != state).collect();
        for other in &others {
            federation.signal(other, Signal::SIGSTOP);
        }
        Frozen(federation, others)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        for state in &self.1 {
            self.0.signal(state, Signal::SIGCONT);
        }
    }
}

async fn is_gone(federation: &Federation, state: &str) {
    let stat = format!("/proc/{}/stat", federation.process(state));
    eventually("the gateway ends", async || match std::fs::read_to_string(&stat) {
        Ok(stat) if !stat.contains(") Z ") => None,
        _ => Some(()),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_is_prompt_while_all_others_stand_still() {
    turns::alone(async || {
        for leads in [true, false] {
            let federation = Federation::start();
            let leader = eventually("a leader", async || federation.leader("FR").await).await;
            let state = STATES.into_iter().find(|state| (*state == leader) == leads).expect("a gateway");
            let _frozen = Frozen::all_but(&federation, state);
            let mut client = federation.client_with(state, None);
            eventually("it is alone", async || {
                let health = client.read("/v1/health").await.expect("an answer");
                (health["status"] == "no-leader").then_some(())
            })
            .await;
            let begun = Instant::now();
            federation.signal(state, Signal::SIGTERM);
            is_gone(&federation, state).await;
            let took = begun.elapsed();
            eprintln!("stopped in {took:?}; it was the leader: {leads}");
            assert!(took < STOP_MAX, "it took {took:?}; it was the leader: {leads}");
        }
    })
    .await;
}

/// Nobody takes over from this leader, so that there is time to look.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_stops_says_so_as_long_as_it_answers() {
    let federation = Federation::start();
    let leader = eventually("a leader", async || federation.leader("FR").await).await;
    let mut client = federation.client_with(&leader, None);
    assert_eq!(client.read("/v1/health").await.expect("an answer")["status"], "ok");
    let _frozen = Frozen::all_but(&federation, &leader);
    federation.signal(&leader, Signal::SIGTERM);
    eventually("it says that it stops", async || {
        let health = client.read("/v1/health").await.expect("it says so before it goes");
        (health["status"] == "stopping").then_some(())
    })
    .await;
    is_gone(&federation, &leader).await;
}
