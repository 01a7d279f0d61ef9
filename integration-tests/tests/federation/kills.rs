//! Gateways that are killed again and again while the others are in use.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::Method;
use integration_tests::persistent::{Choices, Persistent, assert_not_now};
use integration_tests::{Federation, STATES, TASKS, eventually, gpu_task, turns, unconfined};
use serde_json::{Value, json};
use tokio::time::interval;

const KILLS: usize = 60;
/// 24 readers x 40 a second, of which a machine that does nothing else answers half.
const READERS: usize = 24;
/// From the replica, from nothing, and from the caller's home, by relay if that is elsewhere.
const PATHS: [&str; 3] = ["/v1/capacity", "/v1/health", "/ga4gh/tes/v1/tasks?page_size=8"];
const READ_EVERY: Duration = Duration::from_millis(25);
const SUBMIT_EVERY: Duration = Duration::from_millis(400);
/// Fewer answers would be no load, where a machine gives twice as many before the first gateway is killed.
const ANSWERS_PER_S_MIN: u64 = 200;
/// Nowhere is less than this a load.
const ANSWERS_PER_S_LEAST: u64 = 100;
/// How long it is counted before.
const QUIET: Duration = Duration::from_secs(3);

/// A task that leaves one byte for every time that it is started.
pub(super) fn witness(folder: &std::path::Path, key: &str, model: &str) -> Value {
    let file = folder.join(key);
    let command = format!("printf x >> {}", file.display());
    let mut body = gpu_task(&["sh", "-c", &command], 1, model);
    body["name"] = json!(key);
    body
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_kills_under_load_lose_no_task_and_run_none_twice() {
    turns::alone(async || {
        let mut choices = Choices::seeded("who is killed");
        let mut federation = Federation::start_with(unconfined).await;
        let marks = tempfile::tempdir().expect("a folder");
        let (over, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut readers = vec![];
        for number in 0..READERS {
            let mut reader = Persistent::new(&federation, &format!("researcher.{}", STATES[number % 3]));
            let (over, answered) = (Arc::clone(&over), Arc::clone(&answered));
            readers.push(tokio::spawn(async move {
                let mut ticks = interval(READ_EVERY);
                for path in PATHS.into_iter().cycle().skip(number) {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    ticks.tick().await;
                    if let Some(answer) = reader.once(Method::GET, path, None, None).await {
                        if answer.status != 200 {
                            assert_not_now(&answer);
                        }
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }));
        }
        let mut submitters = vec![];
        for (state, model) in [("FR", "H100"), ("DE", "A100"), ("FI", "MI250X"), ("FI", "H100")] {
            let mut researcher = Persistent::new(&federation, &format!("researcher.{state}"));
            let (over, folder) = (Arc::clone(&over), marks.path().to_owned());
            submitters.push(tokio::spawn(async move {
                let mut ticks = interval(SUBMIT_EVERY);
                let mut accepted = vec![];
                while !over.load(Ordering::Relaxed) {
                    ticks.tick().await;
                    let key = format!("{state}-{model}-{}", accepted.len());
                    let (id, _) = researcher.submit(&key, &witness(&folder, &key, model)).await;
                    accepted.push((state, key, id));
                }
                accepted
            }));
        }
        // The machine's own measure; nothing is waited for.
        tokio::time::sleep(QUIET).await;
        let quiet_per_s = answered.swap(0, Ordering::Relaxed) / QUIET.as_secs();
        let begun = Instant::now();
        for _ in 0..KILLS {
            let victim = choices.one_of(&STATES);
            federation.kill(victim);
            federation.launch(victim);
            federation.answers(victim).await;
        }
        let took = begun.elapsed();
        over.store(true, Ordering::Relaxed);
        for reader in readers {
            reader.await.expect("only what may be answered was");
        }
        let mut accepted = vec![];
        for submitter in submitters {
            accepted.extend(submitter.await.expect("every task was accepted in the end"));
        }
        let per_s = answered.load(Ordering::Relaxed) / took.as_secs().max(1);
        eprintln!(
            "{KILLS} kills in {took:?}, {} tasks, {per_s} reads answered a second, and {quiet_per_s} before",
            accepted.len()
        );
        assert!(
            per_s >= (quiet_per_s / 2).clamp(ANSWERS_PER_S_LEAST, ANSWERS_PER_S_MIN),
            "{per_s} a second is no load, and before {quiet_per_s}"
        );

        for state in STATES {
            let keys: BTreeMap<_, _> =
                accepted.iter().filter(|it| it.0 == state).map(|(_, key, id)| (key, id)).collect();
            let mut researcher = Persistent::new(&federation, &format!("researcher.{state}"));
            let found = eventually(&format!("all tasks of {state} end"), async || {
                let found = all_tasks(&mut researcher).await;
                found
                    .values()
                    .all(|(_, state)| ["COMPLETE", "SYSTEM_ERROR", "EXECUTOR_ERROR"].contains(&state.as_str()))
                    .then_some(found)
            })
            .await;
            assert_eq!(found.len(), keys.len(), "{state}: one task for each key");
            for (key, id) in keys {
                let (name, ended) =
                    found.get(id).unwrap_or_else(|| panic!("{key} was acknowledged as {id} and is lost"));
                assert_eq!((name.as_str(), ended.as_str()), (key.as_str(), "COMPLETE"), "{id}");
                let starts = std::fs::read(marks.path().join(key)).unwrap_or_default().len();
                assert_eq!(starts, 1, "{key} ran so often");
            }
        }
    })
    .await;
}

/// Names and states by id.
pub(super) async fn all_tasks(researcher: &mut Persistent) -> BTreeMap<String, (String, String)> {
    let (mut found, mut token) = (BTreeMap::new(), String::new());
    loop {
        let page = researcher.read(&format!("{TASKS}?view=BASIC&page_size=256{token}")).await;
        for task in page["tasks"].as_array().expect("tasks") {
            let text = |name: &str| task[name].as_str().unwrap_or_default().to_owned();
            found.insert(text("id"), (text("name"), text("state")));
        }
        match page["next_page_token"].as_str() {
            Some(next) if !next.is_empty() => token = format!("&page_token={next}"),
            _ => return found,
        }
    }
}
