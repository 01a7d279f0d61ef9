//! One order for everything: what concurrent clients of different gateways did and saw, while gateways are killed,
//! stopped and cut off.
//!
//! Every task asks for another power of two of one pool's GPUs, so that one look at the pool says of each task whether
//! it holds them. It does so from its acknowledged submission until its cancellation has been carried out, and every
//! gateway says so from its own replica.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http::Method;
use integration_tests::history::{Call, Done, is_linearizable};
use integration_tests::links::Weather;
use integration_tests::persistent::{Choices, Persistent, assert_not_now, revision_of};
use integration_tests::{Federation, STATES, TASKS, eventually, gpu_task};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::time::{interval, timeout};

const POOL: &str = "FR/jean-zay/h100-80";
/// 2^0 to 2^9 are 1,023 of 1,456 GPUs.
const TASKS_MAX: usize = 10;
const ROUNDS: usize = 3;
const READ_EVERY: Duration = Duration::from_millis(60);
const LINEARIZABLE: &str = "/v1/capacity?consistency=linearizable";

fn body(bit: usize) -> Value {
    let mut body = gpu_task(&["sleep", "1000"], 1 << bit, "H100");
    body["resources"]["zones"] = json!(["FR"]);
    body
}

/// The pool's GPUs that are held: a bit for every task.
fn held(shown: &Value) -> u64 {
    let pool = shown["pools"].as_array().expect("pools").iter().find(|it| it["pool"] == POOL).expect("the pool");
    pool["gpus"].as_u64().expect("GPUs") - pool["gpus_free"].as_u64().expect("free ones")
}

/// Everything that was done and seen, by task.
struct Histories {
    begun: Instant,
    tasks: Mutex<Vec<Vec<Done>>>,
}

impl Histories {
    fn new() -> Histories {
        Histories { begun: Instant::now(), tasks: Mutex::new(vec![vec![]; TASKS_MAX]) }
    }

    fn now(&self) -> u64 {
        self.begun.elapsed().as_micros() as u64
    }

    fn add(&self, bit: usize, call: Call, from: u64, until: Option<u64>) {
        self.tasks.lock().expect("no panic")[bit].push(Done { call, from, until });
    }

    fn saw(&self, held: u64, from: u64) {
        let until = Some(self.now());
        for bit in 0..TASKS_MAX {
            self.add(bit, Call::Holds(held >> bit & 1 == 1), from, until);
        }
    }

    /// One task: submitted through any gateway, and cancelled through any. Now and then nobody asks again after a
    /// call without an answer, which then stays open for ever.
    async fn one_task(&self, client: &mut Persistent, bit: usize, key: &str, gives_up: bool) -> Option<String> {
        let from = self.now();
        if gives_up {
            let bytes = body(bit).to_string().into_bytes();
            let answer = client.once(Method::POST, TASKS, Some(bytes), Some(key)).await;
            let Some(answer) = answer.filter(|it| it.status == 200) else {
                self.add(bit, Call::Submit, from, None);
                return None;
            };
            self.add(bit, Call::Submit, from, Some(self.now()));
            return Some(answer.json().expect("JSON")["id"].as_str().expect("an id").to_owned());
        }
        let (id, _) = client.submit(key, &body(bit)).await;
        self.add(bit, Call::Submit, from, Some(self.now()));
        Some(id)
    }

    async fn cancel(&self, client: &mut Persistent, bit: usize, id: &str) {
        let from = self.now();
        client.cancel(id).await;
        self.add(bit, Call::Cancel, from, Some(self.now()));
    }

    /// Looks until it is over; a look that was refused or lost has told nothing.
    async fn look(&self, client: &mut Persistent, over: &AtomicBool) -> usize {
        let (mut ticks, mut looks) = (interval(READ_EVERY), 0);
        while !over.load(Ordering::Relaxed) {
            ticks.tick().await;
            let from = self.now();
            let Ok(Some(answer)) =
                timeout(Duration::from_secs(6), client.once(Method::GET, LINEARIZABLE, None, None)).await
            else {
                continue;
            };
            if answer.status == 200 {
                self.saw(held(&answer.json().expect("JSON")), from);
                looks += 1;
            } else {
                assert_not_now(&answer);
            }
        }
        looks
    }

    fn check(&self, what: &str) {
        for (bit, calls) in self.tasks.lock().expect("no panic").iter().enumerate() {
            assert!(is_linearizable(calls), "{what}: no order explains what was seen of task {bit}: {calls:#?}");
        }
    }
}

/// Reads of any gateway's replica that ask for what was seen before never go back.
async fn look_forward(client: &mut Persistent, over: &AtomicBool) {
    let (mut revision, mut seen) = (0, [Some(false); TASKS_MAX]);
    let mut ticks = interval(READ_EVERY);
    while !over.load(Ordering::Relaxed) {
        ticks.tick().await;
        let path = format!("/v1/capacity?revision={revision}");
        let Ok(Some(answer)) = timeout(Duration::from_secs(6), client.once(Method::GET, &path, None, None)).await
        else {
            continue;
        };
        if answer.status != 200 {
            assert_not_now(&answer);
            continue;
        }
        assert!(revision_of(&answer) >= revision);
        revision = revision_of(&answer);
        let held = held(&answer.json().expect("JSON"));
        for (bit, stage) in seen.iter_mut().enumerate() {
            // Some(false): not yet; Some(true): holds; None: it has let go, and never holds again.
            match (held >> bit & 1 == 1, *stage) {
                (true, Some(false)) => *stage = Some(true),
                (false, Some(true)) => *stage = None,
                (holds, stage) => assert!(!(holds && stage.is_none()), "task {bit} holds again at {revision}"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_order_explains_all_that_concurrent_clients_saw_under_faults() {
    let mut choices = Choices::seeded("faults and choices");
    for round in 0..ROUNDS {
        let mut federation = Federation::start_linked(|_, text| text).await;
        let histories = Histories::new();
        let over = AtomicBool::new(false);
        let mut readers: Vec<_> = STATES.map(|state| Persistent::at(&federation, &[state], "agency")).into();
        let mut forward = Persistent::new(&federation, "agency");
        let mut workers: Vec<_> = (0..TASKS_MAX)
            .map(|bit| {
                (bit, Persistent::new(&federation, ["researcher.FI", "researcher.FR"][bit % 2]), choices.below(4) == 0)
            })
            .collect();
        let pauses: Vec<_> = (0..TASKS_MAX).map(|_| Duration::from_millis(choices.below(4_000))).collect();
        let faults = async {
            for _ in 0..4 {
                match choices.below(3) {
                    0 => {
                        let victim = choices.one_of(&STATES);
                        federation.kill(victim);
                        federation.launch(victim);
                        federation.answers(victim).await;
                    }
                    1 => {
                        let victim = choices.one_of(&STATES);
                        federation.signal(victim, Signal::SIGSTOP);
                        tokio::time::sleep(Duration::from_millis(1_500)).await;
                        federation.signal(victim, Signal::SIGCONT);
                    }
                    _ => {
                        let victim = choices.one_of(&["DE", "FI"]);
                        let way = [Weather::black_hole(), Weather { forth_is_cut: true, ..Weather::default() }];
                        let way = way[choices.below(2) as usize];
                        for other in STATES.into_iter().filter(|it| *it != victim) {
                            federation.link(victim, other).set(way);
                            federation.link(other, victim).set(way);
                        }
                        tokio::time::sleep(Duration::from_millis(1_500)).await;
                        federation.links().for_each(|link| link.set(Weather::default()));
                    }
                }
            }
        };
        let working = workers.iter_mut().zip(&pauses).map(|((bit, client, gives_up), pause)| {
            let (histories, key) = (&histories, format!("{round}-{bit}"));
            async move {
                // The clients' own rhythm, so that their calls fall into different faults.
                tokio::time::sleep(*pause / 2).await;
                let id = histories.one_task(client, *bit, &key, *gives_up).await;
                tokio::time::sleep(*pause).await;
                if let Some(id) = id {
                    histories.cancel(client, *bit, &id).await;
                }
            }
        });
        let all_work = async {
            tokio::join!(futures_util::future::join_all(working), faults);
            over.store(true, Ordering::Relaxed);
        };
        let looking = futures_util::future::join_all(readers.iter_mut().map(|reader| histories.look(reader, &over)));
        let (looks, (), ()) = tokio::join!(looking, look_forward(&mut forward, &over), all_work);
        eprintln!("round {round}: {looks:?} looks in {:?}", histories.begun.elapsed());
        assert!(looks.iter().all(|it| *it > 0), "every gateway was looked at: {looks:?}");
        histories.check(&format!("round {round}"));
    }
}

/// The history above would not pass if gateways answered from their own replicas without asking the leader.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_off_gateway_refuses_the_read_that_would_be_stale() {
    let federation = Federation::start_linked(|_, text| text).await;
    for other in ["FR", "FI"] {
        federation.link("DE", other).set(Weather::black_hole());
        federation.link(other, "DE").set(Weather::black_hole());
    }
    let mut researcher = Persistent::at(&federation, &["FI", "FR"], "researcher.FI");
    let histories = Histories::new();
    histories.one_task(&mut researcher, 3, "cut", false).await;
    let mut cut_off = Persistent::at(&federation, &["DE"], "agency");
    let refused = cut_off.once(Method::GET, LINEARIZABLE, None, None).await.expect("an answer");
    assert_eq!(refused.status, 503, "{refused:?}");
    assert_not_now(&refused);

    let from = histories.now();
    let stale = cut_off.read("/v1/capacity").await;
    histories.saw(held(&stale), from);
    assert!(!is_linearizable(&histories.tasks.lock().expect("no panic")[3]), "the checker sees a stale read");

    federation.links().for_each(|link| link.set(Weather::default()));
    let fresh = eventually("the healed gateway answers", async || {
        let answer = cut_off.once(Method::GET, LINEARIZABLE, None, None).await?;
        (answer.status == 200).then_some(answer)
    })
    .await;
    assert_eq!(held(&fresh.json().expect("JSON")), 8);
}

#[test]
fn the_checker_knows_right_from_wrong() {
    let done = |call, from, until| Done { call, from, until: Some(until) };
    let open = |call, from| Done { call, from, until: None };
    let (submit, cancel, holds, free) = (Call::Submit, Call::Cancel, Call::Holds(true), Call::Holds(false));
    for (what, is_right, calls) in [
        ("in order", true, vec![done(submit, 1, 2), done(holds, 3, 4), done(cancel, 5, 6), done(free, 7, 8)]),
        ("a late release", true, vec![done(submit, 1, 2), done(cancel, 3, 4), done(holds, 5, 6), done(free, 7, 8)]),
        ("seen while it is submitted", true, vec![done(submit, 1, 9), done(holds, 2, 3), done(holds, 4, 5)]),
        ("not yet seen while it is submitted", true, vec![done(submit, 1, 9), done(free, 2, 3), done(holds, 4, 5)]),
        ("never known, and came late", true, vec![open(submit, 1), done(free, 2, 3), done(holds, 50, 51)]),
        ("never known, and never came", true, vec![open(submit, 1), done(free, 2, 3), done(free, 50, 51)]),
        ("a stale read", false, vec![done(submit, 1, 2), done(holds, 3, 4), done(free, 5, 6)]),
        ("a lost submission", false, vec![done(submit, 1, 2), done(free, 3, 4)]),
        ("read back again", false, vec![open(submit, 1), done(holds, 2, 3), done(free, 4, 5)]),
        ("out of nothing", false, vec![done(holds, 1, 2), done(submit, 3, 4)]),
        ("back from the end", false, vec![done(submit, 1, 2), done(cancel, 3, 4), done(free, 5, 6), done(holds, 7, 8)]),
    ] {
        assert_eq!(is_linearizable(&calls), is_right, "{what}");
    }
}
