//! Links that are slow, that break off, or that swallow everything: what works all the same, and what is noticed.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use http::Method;
use integration_tests::links::Weather;
use integration_tests::persistent::{Persistent, assert_not_now};
use integration_tests::{Federation, STATES, TASKS, ended, eventually, gpu_task, reaches, turns};
use serde_json::{Value, json};

/// Interval and timeout of the peers' keep-alive are 2 s + 4 s; a relay gives up after 9 s by itself.
const NOTICED_AFTER_MAX: Duration = Duration::from_millis(8_500);

fn unchanged(_: &str, text: String) -> String {
    text
}

/// Timers for links as long as Europe's.
fn wide(_: &str, text: String) -> String {
    format!("timers = \"wan\"\n{text}")
}

fn abroad(command: &[&str]) -> Value {
    let mut body = gpu_task(command, 4, "H100");
    body["resources"]["zones"] = json!(["FR"]);
    body
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_and_jittery_links_only_take_longer() {
    let federation = Federation::start_linked(wide).await;
    let slow = Weather {
        delay: Duration::from_millis(20),
        jitter: Duration::from_millis(60),
        bytes_per_s: Some(2_000_000),
        ..Weather::default()
    };
    federation.links().for_each(|link| link.set(slow));
    let begun = Instant::now();
    for state in STATES {
        let mut researcher = Persistent::new(&federation, "researcher.FI");
        let mut client = federation.client(state, "researcher.FI");
        let (done, _) = researcher.submit(&format!("done-{state}"), &abroad(&["echo", "far away"])).await;
        let (stopped, _) = researcher.submit(&format!("stopped-{state}"), &abroad(&["sleep", "1000"])).await;
        let task = ended(&mut client, &done).await;
        assert_eq!(task["state"], "COMPLETE", "{task}");
        assert_eq!(task["logs"][0]["logs"][0]["stdout"], "far away\n", "{task}");
        reaches(&mut client, &stopped, &["RUNNING"]).await;
        researcher.cancel(&stopped).await;
        assert_eq!(ended(&mut client, &stopped).await["state"], "CANCELED");
        let mut agency = Persistent::at(&federation, &[state], "agency");
        agency.read("/v1/capacity?consistency=linearizable").await;
    }
    eprintln!("six tasks over slow links took {:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_break_off_make_no_task_twice() {
    let federation = Federation::start_linked(unchanged).await;
    let submissions = (0..24).map(|number| {
        let mut researcher = Persistent::new(&federation, "researcher.FI");
        async move { researcher.submit(&format!("key-{number}"), &abroad(&["echo", "once"])).await.0 }
    });
    let breaking = async {
        loop {
            federation.links().for_each(|link| link.reset());
            // The fault's own rhythm: shorter than a handshake and a commit together.
            tokio::time::sleep(Duration::from_millis(40)).await;
        }
    };
    // Some are under way while the connections break, and the last when they do no more.
    let all = join_all(submissions);
    tokio::pin!(all);
    let broken = tokio::time::timeout(Duration::from_secs(5), async {
        tokio::select! { it = &mut all => it, () = breaking => vec![] }
    })
    .await;
    let ids: BTreeSet<String> = match broken {
        Ok(ids) => ids.into_iter().collect(),
        Err(_) => all.await.into_iter().collect(),
    };
    assert_eq!(ids.len(), 24);
    let mut client = federation.client("FI", "researcher.FI");
    for id in &ids {
        let task = ended(&mut client, id).await;
        assert_eq!(
            (&task["state"], &task["logs"][0]["logs"][0]["stdout"]),
            (&json!("COMPLETE"), &json!("once\n")),
            "{task}"
        );
    }
    let listed = client.read(&format!("{TASKS}?page_size=256")).await.expect("a list");
    let listed = listed["tasks"].as_array().expect("tasks").iter().filter_map(|it| it["id"].as_str());
    assert_eq!(listed.map(str::to_owned).collect::<BTreeSet<_>>(), ids, "one task for each key");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_swallows_everything_is_noticed_and_holds_up_nobody_else() {
    turns::alone(async || {
        let federation = Federation::start_linked(unchanged).await;
        // Whoever leads is not the one that falls silent for the entry, or the entry could not commit.
        let leader = eventually("a leader", async || federation.leader("FR").await).await;
        let others: Vec<_> = STATES.into_iter().filter(|it| *it != leader).collect();
        let (entry, silent) = (others[0], others[1]);
        let foreign = format!("researcher.{silent}");
        // A relay's connection is open and idle before it goes dark.
        Persistent::at(&federation, &[entry], &foreign).read(TASKS).await;
        federation.link(entry, silent).set(Weather::black_hole());
        let begun = Instant::now();

        let relayed = async {
            let mut client = Persistent::at(&federation, &[entry], &foreign);
            let body = gpu_task(&["true"], 1, "H100").to_string().into_bytes();
            let answer = client.once(Method::POST, TASKS, Some(body), Some("dark")).await.expect("an answer in time");
            (answer, begun.elapsed())
        };
        let others_go_on = async {
            let mut own = Persistent::at(&federation, &[entry], &format!("researcher.{entry}"));
            let mut led = Persistent::at(&federation, &[entry], &format!("researcher.{leader}"));
            let mut slowest = Duration::ZERO;
            for number in 0..20 {
                for client in [&mut own, &mut led] {
                    let asked = Instant::now();
                    client.submit(&format!("bright-{number}"), &gpu_task(&["true"], 1, "H100")).await;
                    slowest = slowest.max(asked.elapsed());
                }
            }
            slowest
        };
        let ((answer, after), slowest) = tokio::join!(relayed, others_go_on);
        let said: Value = serde_json::from_slice(&answer.body).expect("a problem");
        assert_eq!((answer.status.as_u16(), &said["code"]), (503, &json!("outcome-unknown")), "{said}");
        assert_not_now(&answer);
        assert!(after < NOTICED_AFTER_MAX, "{after:?}");
        assert!(slowest < Duration::from_secs(2), "others waited {slowest:?}");
        // From now on its connection is known to be of no use: what is asked is not sent, and the log says why.
        let problem = Persistent::at(&federation, &[entry], &foreign).once(Method::GET, TASKS, None, None).await;
        let problem = problem.expect("an answer in time");
        assert_not_now(&problem);
        let said: Value = serde_json::from_slice(&problem.body).expect("a problem");
        assert_eq!(said["code"], "home-unreachable", "{said}");
        let log = std::fs::read_to_string(federation.gateway_folder(entry).join("gateway.log")).expect("a log");
        let lost = format!("peer={silent}/");
        assert!(
            log.lines().any(|line| line.contains("a peer is lost") && line.contains(&lost) && line.contains("silent"))
        );
        eprintln!("noticed after {after:?}; others waited {slowest:?} at most");

        federation.link(entry, silent).set(Weather::default());
        let (id, _) =
            Persistent::at(&federation, &[entry], &foreign).submit("dark", &gpu_task(&["true"], 1, "H100")).await;
        let mut owner = federation.client(silent, &foreign);
        assert_eq!(ended(&mut owner, &id).await["state"], "COMPLETE");
        let listed = owner.read(TASKS).await.expect("a list");
        assert_eq!(listed["tasks"].as_array().map(Vec::len), Some(1), "{listed}");
    })
    .await;
}
