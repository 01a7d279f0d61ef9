//! A client that does not give up: it asks one gateway after the other until one says yes.
//!
//! Every submission has an `Idempotency-Key`, so that its repeats are the same task. Invariant: what a gateway may
//! answer while others are killed, stopped or cut off is yes, or not now and when to ask again; all else fails the test.

use std::time::{Duration, Instant};

use gateway::cli::client::{Answer, Client};
use http::{HeaderName, HeaderValue, Method};
use serde_json::Value;

use crate::{Federation, PATIENCE, STATES, TASKS};

/// A gateway that says nothing for so long is left for the next one.
const ONE_TRY: Duration = Duration::from_secs(12);
/// Between two tries; the gateways ask for a second or two, which would only make the tests longer.
const PAUSE: Duration = Duration::from_millis(50);

/// One researcher and all gateways.
pub struct Persistent {
    clients: Vec<Client>,
    turn: usize,
}

impl Persistent {
    /// A researcher who asks these gateways in turn.
    pub fn at(federation: &Federation, states: &[&str], role: &str) -> Persistent {
        Persistent { clients: states.iter().map(|state| federation.client(state, role)).collect(), turn: 0 }
    }

    /// A researcher who asks every gateway in turn.
    pub fn new(federation: &Federation, role: &str) -> Persistent {
        Persistent::at(federation, &STATES, role)
    }

    /// The task's id and the revision that holds it.
    pub async fn submit(&mut self, key: &str, task: &Value) -> (String, u64) {
        let answer = self.until_yes(Method::POST, TASKS, Some(task.to_string().into_bytes()), Some(key)).await;
        let id = answer.json().expect("JSON")["id"].as_str().expect("an id").to_owned();
        (id, revision_of(&answer))
    }

    /// Asks for a task's end.
    pub async fn cancel(&mut self, id: &str) {
        self.until_yes(Method::POST, &format!("{TASKS}/{id}:cancel"), Some(b"{}".to_vec()), None).await;
    }

    /// A document.
    pub async fn read(&mut self, path: &str) -> Value {
        self.until_yes(Method::GET, path, None, None).await.json().expect("JSON")
    }

    /// One try at the next gateway: its answer, or nothing if it gave none in time.
    pub async fn once(
        &mut self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        key: Option<&str>,
    ) -> Option<Answer> {
        self.turn = (self.turn + 1) % self.clients.len();
        let headers: Vec<_> = key
            .map(|key| {
                (HeaderName::from_static("idempotency-key"), HeaderValue::from_str(key).expect("a header value"))
            })
            .into_iter()
            .collect();
        let call = self.clients[self.turn].call(method, path, body, &headers);
        tokio::time::timeout(ONE_TRY, call).await.ok()?.ok()
    }

    async fn until_yes(&mut self, method: Method, path: &str, body: Option<Vec<u8>>, key: Option<&str>) -> Answer {
        let begun = Instant::now();
        let mut last = None;
        while begun.elapsed() < PATIENCE {
            match self.once(method.clone(), path, body.clone(), key).await {
                Some(answer) if answer.status.is_success() => return answer,
                Some(answer) => {
                    assert_not_now(&answer);
                    last = Some(answer);
                }
                None => {}
            }
            tokio::time::sleep(PAUSE).await;
        }
        panic!("not within {} s: {method} {path}; the last answer was {last:?}", PATIENCE.as_secs());
    }
}

/// The revision that an answer names.
pub fn revision_of(answer: &Answer) -> u64 {
    let header = answer.headers.get("entente-revision").expect("a revision").to_str().expect("text");
    header.parse().expect("a number")
}

/// "Not now" is 409, 429 or 503, and says when to ask again.
pub fn assert_not_now(answer: &Answer) {
    let body = String::from_utf8_lossy(&answer.body);
    assert!([409, 429, 503].contains(&answer.status.as_u16()), "{}: {body}", answer.status);
    assert!(answer.headers.contains_key("retry-after"), "{}: {body}", answer.status);
}

/// A seed that the test prints, and the choices that follow from it; `ENTENTE_TEST_SEED` repeats them.
pub struct Choices(u64);

impl Choices {
    /// Prints the seed.
    pub fn seeded(what: &str) -> Choices {
        let given = std::env::var("ENTENTE_TEST_SEED").ok().and_then(|it| it.parse().ok());
        let seed = given.unwrap_or_else(|| u64::from_le_bytes(certs::entropy::bytes()));
        eprintln!("{what}: ENTENTE_TEST_SEED={seed}");
        Choices(seed)
    }

    /// Below `end` (SplitMix64).
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }

    /// One of these.
    pub fn one_of<'a>(&mut self, all: &[&'a str]) -> &'a str {
        all[self.below(all.len() as u64) as usize]
    }
}
