//! Networks that are cut: what goes on, what is refused, and that nobody has to mend anything afterwards.
//!
//! Every gateway has a network of its own, and packets are dropped between them. The one that is cut off is the leader.

use std::path::Path;
use std::time::{Duration, Instant};

use http::Method;
use integration_tests::countries::Countries;
use integration_tests::persistent::{Persistent, assert_not_now};
use integration_tests::{Federation, STATES, TASKS, ended, eventually, gpu_task, reaches, submit, turns, unconfined};
use serde_json::Value;

/// From the first packet that arrives again to the last gateway that commits again.
const CONVERGED_AFTER_MAX: Duration = Duration::from_secs(20);
const SUBMISSIONS: usize = 3;

/// A GPU that the state itself lends.
fn own_model(state: &str) -> &'static str {
    match state {
        "FR" => "H100",
        "DE" => "A100",
        _ => "MI250X",
    }
}

/// A task that leaves a byte when it starts and ends when it is told to.
fn held(folder: &Path, model: &str) -> Value {
    let folder = folder.display();
    let command = format!("printf x >> {folder}/starts; while [ ! -e {folder}/go ]; do sleep 0.1; done");
    gpu_task(&["sh", "-c", &command], 1, model)
}

/// A federation whose leader is about to be cut off, with a job of its own that runs.
struct Story {
    federation: Federation,
    victim: String,
    others: Vec<&'static str>,
    folder: tempfile::TempDir,
    running: String,
    /// Tasks of the victim beside the running one and those that were refused first.
    more: usize,
}

impl Story {
    async fn begin(federation: Federation) -> Story {
        let victim = eventually("a leader", async || federation.leader("FR").await).await;
        let others = STATES.into_iter().filter(|it| *it != victim).collect();
        let folder = tempfile::tempdir().expect("a folder");
        let mut owner = federation.client(&victim, &format!("researcher.{victim}"));
        let running = submit(&mut owner, &held(folder.path(), own_model(&victim))).await;
        reaches(&mut owner, &running, &["RUNNING"]).await;
        Story { federation, victim, others, folder, running, more: 0 }
    }

    fn role(&self) -> String {
        format!("researcher.{}", self.victim)
    }

    /// While it lasts: the cut-off gateway promises nothing and shows what it knows; the others go on.
    async fn is_cut(&self) {
        let refusals = (0..SUBMISSIONS).map(|number| async move {
            let mut client = Persistent::at(&self.federation, &[&self.victim], &self.role());
            let body = gpu_task(&["true"], 1, own_model(&self.victim)).to_string().into_bytes();
            client
                .once(Method::POST, TASKS, Some(body), Some(&format!("cut-{number}")))
                .await
                .expect("an answer in time")
        });
        let goes_on = async {
            let mut researcher =
                Persistent::at(&self.federation, &self.others, &format!("researcher.{}", self.others[0]));
            let body = gpu_task(&["true"], 1, own_model(self.others[0]));
            let (id, _) = researcher.submit("meanwhile", &body).await;
            let mut owner = self.federation.client(self.others[0], &format!("researcher.{}", self.others[0]));
            assert_eq!(ended(&mut owner, &id).await["state"], "COMPLETE");
        };
        let shows = async {
            let mut reader = self.federation.client(&self.victim, "agency");
            eventually("reads go on and show their age", async || {
                let shown = reader.read("/v1/capacity").await.expect("reads go on");
                let pools = shown["pools"].as_array().expect("pools");
                pools.iter().any(|it| it["age_ms"].as_u64() > Some(4_000)).then_some(())
            })
            .await;
        };
        let (refused, (), ()) = tokio::join!(futures(refusals), goes_on, shows);
        for answer in refused {
            assert_ne!(answer.status, 200, "nothing is promised alone");
            assert_not_now(&answer);
        }
    }

    /// Afterwards all is as before without anybody's help.
    async fn heals(self) {
        let begun = Instant::now();
        self.federation.countries().heal();
        let mut client = Persistent::at(&self.federation, &[&self.victim], &self.role());
        for number in 0..SUBMISSIONS {
            let (id, _) =
                client.submit(&format!("cut-{number}"), &gpu_task(&["true"], 1, own_model(&self.victim))).await;
            let mut owner = self.federation.client(&self.victim, &self.role());
            assert_eq!(ended(&mut owner, &id).await["state"], "COMPLETE");
        }
        let mut seen = vec![];
        for state in STATES {
            let mut reader = Persistent::at(&self.federation, &[state], "agency");
            let shown = reader.read("/v1/capacity?consistency=linearizable").await;
            let pools = shown["pools"].as_array().expect("pools").iter();
            seen.push(pools.map(|it| (it["pool"].to_string(), it["gpus_free"].as_u64())).collect::<Vec<_>>());
        }
        assert!(seen.iter().all(|it| *it == seen[0]), "{seen:?}");
        let took = begun.elapsed();
        eprintln!("{} was cut off; converged {took:?} after", self.victim);
        assert!(took < CONVERGED_AFTER_MAX, "{took:?}");

        let mut owner = self.federation.client(&self.victim, &self.role());
        let task = owner.read(&format!("{TASKS}/{}", self.running)).await.expect("a task");
        assert_eq!(task["state"], "RUNNING", "a job does not notice");
        std::fs::write(self.folder.path().join("go"), "").expect("a written file");
        assert_eq!(ended(&mut owner, &self.running).await["state"], "COMPLETE");
        let starts = std::fs::read(self.folder.path().join("starts")).expect("a start");
        assert_eq!(starts.len(), 1);
        let tasks = owner.read(&format!("{TASKS}?page_size=256")).await.expect("a list");
        let listed = tasks["tasks"].as_array().map_or(0, Vec::len);
        assert_eq!(listed, 1 + SUBMISSIONS + self.more, "one task for each key");
    }
}

async fn futures<T>(all: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    futures_util::future::join_all(all).await
}

async fn federation() -> Option<Federation> {
    Some(Federation::start_in(Countries::found()?, unconfined).await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_promises_nothing_and_comes_back_by_itself() {
    turns::alone(async || {
        let Some(federation) = federation().await else { return };
        let story = Story::begin(federation).await;
        for other in &story.others {
            story.federation.countries().part(&story.victim, other);
        }
        story.is_cut().await;
        story.heals().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_cannot_be_heard_is_replaced() {
    turns::alone(async || {
        let Some(federation) = federation().await else { return };
        let story = Story::begin(federation).await;
        for other in &story.others {
            story.federation.countries().cut(&story.victim, other);
        }
        story.is_cut().await;
        story.heals().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_cannot_hear_is_replaced() {
    turns::alone(async || {
        let Some(federation) = federation().await else { return };
        let story = Story::begin(federation).await;
        for other in &story.others {
            story.federation.countries().cut(other, &story.victim);
        }
        story.is_cut().await;
        story.heals().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_flaps_harms_nothing() {
    turns::alone(async || {
        let Some(federation) = federation().await else { return };
        let mut story = Story::begin(federation).await;
        story.more = 8;
        let flapping = async {
            for _ in 0..8 {
                for other in &story.others {
                    story.federation.countries().part(&story.victim, other);
                }
                // The fault's own rhythm: longer than an election, shorter than a keep-alive.
                tokio::time::sleep(Duration::from_millis(700)).await;
                story.federation.countries().heal();
                tokio::time::sleep(Duration::from_millis(700)).await;
            }
        };
        let submitting = futures((0..story.more).map(|number| {
            let mut researcher = Persistent::new(&story.federation, &story.role());
            let task = gpu_task(&["true"], 1, own_model(&story.victim));
            async move { researcher.submit(&format!("flapping-{number}"), &task).await.0 }
        }));
        let (ids, ()) = tokio::join!(submitting, flapping);
        let mut owner = story.federation.client(&story.victim, &story.role());
        for id in ids {
            assert_eq!(ended(&mut owner, &id).await["state"], "COMPLETE");
        }
        story.heals().await;
    })
    .await;
}
