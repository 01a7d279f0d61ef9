//! A leader that stands still for a while, as a machine does that is moved or has no memory left, and then goes on
//! as if nothing had been.

use std::collections::BTreeMap;
use std::time::Duration;

use http::Method;
use integration_tests::persistent::{Persistent, assert_not_now, revision_of};
use integration_tests::{Federation, STATES, TASKS, ended, eventually, gpu_task, turns};
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::time::Instant;

const LINEARIZABLE: &str = "/v1/capacity?consistency=linearizable";

/// What every pool had free at every revision that was seen, wherever it was read: two leaders that both act would
/// give one revision two contents.
#[derive(Default)]
struct OneHistory(BTreeMap<u64, BTreeMap<String, u64>>);

impl OneHistory {
    fn see(&mut self, shown: &Value) {
        let pools = shown["pools"].as_array().expect("pools").iter();
        let free = pools.map(|it| (it["pool"].to_string(), it["gpus_free"].as_u64().expect("GPUs"))).collect();
        let revision = shown["revision"].as_u64().expect("a revision");
        let known = self.0.entry(revision).or_insert_with(|| BTreeMap::clone(&free));
        assert_eq!(*known, free, "revision {revision} has one content");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_stood_still_reads_nothing_stale_and_does_nothing_alone() {
    turns::alone(async || {
        let federation = Federation::start();
        let mut history = OneHistory::default();
        for seconds in [1, 3, 10] {
            let leader = eventually("a leader", async || federation.leader("FR").await).await;
            let others: Vec<_> = STATES.into_iter().filter(|it| *it != leader).collect();
            let mut at_leader = federation.client(&leader, "agency");
            // Its connection is open before, so that it is answered first.
            at_leader.read(LINEARIZABLE).await.expect("a read");
            let mut submits_at_leader = Persistent::at(&federation, &[&leader], &format!("researcher.{leader}"));
            submits_at_leader.read(TASKS).await;

            federation.signal(&leader, Signal::SIGSTOP);
            let goes_on_at = Instant::now() + Duration::from_secs(seconds);
            let mut researcher = Persistent::at(&federation, &others, &format!("researcher.{}", others[0]));
            let key = format!("meanwhile-{seconds}");
            let is_short = seconds < 10;
            // A few seconds may be too short for another leader and the tries at the old one: then the write waits for it.
            let meanwhile = async { researcher.submit(&key, &gpu_task(&["true"], 1, "H100")).await };
            let going_on = async {
                tokio::time::sleep_until(goes_on_at).await;
                federation.signal(&leader, Signal::SIGCONT);
            };
            let (acknowledged, answer, alone) = if is_short {
                let (acknowledged, ()) = tokio::join!(meanwhile, going_on);
                let answer = at_leader.call(Method::GET, LINEARIZABLE, None, &[]).await.expect("an answer");
                (acknowledged, answer, None)
            } else {
                let acknowledged = meanwhile.await;
                assert!(Instant::now() < goes_on_at, "the others go on without it");
                let read = at_leader.call(Method::GET, LINEARIZABLE, None, &[]);
                let body = gpu_task(&["true"], 1, "H100").to_string().into_bytes();
                let submitted = submits_at_leader.once(Method::POST, TASKS, Some(body), Some("alone"));
                let (answer, alone, ()) = tokio::join!(read, submitted, going_on);
                (acknowledged, answer.expect("an answer"), alone)
            };
            if answer.status == 200 {
                assert!(revision_of(&answer) >= acknowledged.1, "{seconds} s: a stale read");
                history.see(&answer.json().expect("JSON"));
            } else {
                assert_not_now(&answer);
            }
            if let Some(alone) = alone.filter(|it| it.status != 200) {
                assert_not_now(&alone);
            }
            // All of them, now: each asks who leads, and none may know less than what was acknowledged.
            for state in STATES {
                let mut reader = Persistent::at(&federation, &[state], "agency");
                for path in [LINEARIZABLE, "/v1/capacity"] {
                    history.see(&reader.read(path).await);
                }
                let shown = reader.read(LINEARIZABLE).await;
                assert!(shown["revision"].as_u64() >= Some(acknowledged.1), "{state} after {seconds} s");
            }
            let mut owner = federation.client(others[0], &format!("researcher.{}", others[0]));
            assert_eq!(ended(&mut owner, &acknowledged.0).await["state"], "COMPLETE");
            // What was asked of it under one key is one task, whatever the first answer was.
            let (id, _) = submits_at_leader.submit("alone", &gpu_task(&["true"], 1, "H100")).await;
            let mut owner = federation.client(&leader, &format!("researcher.{leader}"));
            assert_eq!(ended(&mut owner, &id).await["state"], "COMPLETE");
        }
    })
    .await;
}
