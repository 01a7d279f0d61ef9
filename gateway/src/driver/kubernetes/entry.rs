//! Entries: what the journal has of an attempt, as far as it must survive the gateway.
//!
//! Invariant: an entry is durable before Kubernetes is asked for anything, and says so before each try.

use std::collections::BTreeMap;

use federation::PoolId;
use k8s_openapi::api::batch::v1::Job;
use serde::{Deserialize, Serialize};

use super::next::Memory;
use super::outcome::GivenUp;
use crate::driver::ledger;

/// One attempt, as far as it must survive the gateway.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// `None`: cancelled before it came, so there is nothing to run.
    pub work: Option<Work>,
    /// When the API was last asked to take it. Whatever came of it, a Job may exist since then.
    pub posted_ms: Option<u64>,
    /// Of the Job that the API has made of it.
    pub uid: Option<String>,
    /// Of the one pod that may run it.
    pub pod: Option<String>,
    /// Somebody asked for the stop.
    pub cancel: bool,
    /// The driver itself ended it.
    pub given_up: Option<GivenUp>,
}

/// What Kubernetes is asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Work {
    pub pool: PoolId,
    pub namespace: String,
    pub job: Job,
    /// Contents of inputs, by their key in the Secret.
    #[serde(with = "base64_texts")]
    pub inputs: BTreeMap<String, Vec<u8>>,
    pub steps: usize,
    pub walltime_s: u32,
    pub start_s: u64,
}

/// A request to Kubernetes about one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Deed {
    Post,
    MakeSecret,
    /// Of the Job with this uid.
    Delete {
        uid: String,
    },
}

impl Entry {
    pub fn new(work: Work) -> Entry {
        Entry { work: Some(work), posted_ms: None, uid: None, pod: None, cancel: false, given_up: None }
    }

    /// Nobody wants it to run any more.
    pub fn is_over(&self) -> bool {
        self.cancel || self.given_up.is_some() || self.work.is_none()
    }

    pub fn namespace(&self) -> &str {
        self.work.as_ref().map_or("", |work| work.namespace.as_str())
    }
}

impl ledger::Entry for Entry {
    type Memory = Memory;
    type Deed = Deed;

    fn buried() -> Entry {
        Entry { work: None, posted_ms: None, uid: None, pod: None, cancel: true, given_up: None }
    }

    fn memory(&self) -> Memory {
        Memory::of(self)
    }

    fn cancel(&mut self) {
        self.cancel = true;
    }

    /// What ends a Job frees its GPUs.
    fn goes_first(deed: &Deed) -> bool {
        matches!(deed, Deed::Delete { .. })
    }
}

/// Bytes in JSON as base64: a third larger, not four times as large.
mod base64_texts {
    use std::collections::BTreeMap;

    use base64::{Engine, engine::general_purpose::STANDARD};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(all: &BTreeMap<String, Vec<u8>>, out: S) -> Result<S::Ok, S::Error> {
        out.collect_map(all.iter().map(|(name, bytes)| (name, STANDARD.encode(bytes))))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<BTreeMap<String, Vec<u8>>, D::Error> {
        let texts = BTreeMap::<String, String>::deserialize(input)?;
        let decode = |(name, text)| Ok((name, STANDARD.decode(text).map_err(D::Error::custom)?));
        texts.into_iter().map(decode).collect()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::super::manifest;
    use super::super::manifest::tests::{mapped, order};
    use super::super::settings::tests::pool;
    use super::*;

    pub fn work() -> Work {
        let pool = pool(2, 4, 1);
        let made = manifest::make(&order(), &pool, &mapped(), None, Duration::from_secs(600)).expect("a job");
        Work {
            pool: pool.id,
            namespace: "climate".into(),
            job: made.job,
            inputs: [("input-0".to_owned(), b"\0hello".to_vec())].into(),
            steps: 2,
            walltime_s: 3_600,
            start_s: 600,
        }
    }

    #[test]
    fn an_entry_is_read_as_it_was_written() {
        let entry = Entry { posted_ms: Some(5), uid: Some("u".into()), ..Entry::new(work()) };
        let text = serde_json::to_string(&entry).expect("JSON");
        assert!(text.contains("AGhlbGxv"), "inputs are base64: {text}");
        assert_eq!(serde_json::from_str::<Entry>(&text).expect("an entry"), entry);
    }
}
