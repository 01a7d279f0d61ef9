//! What was last seen of a cluster: its Jobs and pods, what its pools lend, and what is wrong.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use federation::{CapacityReport, PoolId, Reason, Timestamp};

use super::api::Trouble;
use super::capacity::Lent;
use super::mapping::{BadMapping, Mapping};
use super::observed::{SeenJob, SeenPod};
use crate::driver::folder::Key;

/// A cluster that says nothing for this long lends nothing.
pub(super) const SILENCE: Duration = Duration::from_secs(10);

/// What was lent so long ago is not known any more, however long a look takes.
const LENT_MS: u64 = 60_000;

/// A Job's place: names are free again in another namespace.
pub(super) type Place = (String, Key);

/// One look at what is ours.
#[derive(Default)]
pub(super) struct Ours {
    pub begun_ms: u64,
    pub jobs: HashMap<Place, SeenJob>,
    /// By the labels that their Job gave them.
    pub pods: HashMap<Place, Vec<SeenPod>>,
}

impl Ours {
    /// Pods of a Job, and the one that is known to run the attempt: somebody may have taken it from its Job.
    pub fn pods_of(&self, place: &Place, job: Option<&str>, pinned: Option<&str>) -> Vec<SeenPod> {
        let is_its = |it: &&SeenPod| {
            let is_of_job = job.is_some() && it.owner.as_deref() == job;
            is_of_job || pinned == Some(it.uid.as_str())
        };
        self.pods.get(place).into_iter().flatten().filter(is_its).cloned().collect()
    }
}

/// A Job that is to be removed: its end is noted, or nobody remembers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stray {
    pub place: Place,
    pub uid: String,
    pub is_deleted: bool,
}

/// Memory of the last looks. Everything in it may be a moment old.
pub(super) struct Seen {
    pub mapping: Arc<Mapping>,
    pub mapping_of: SystemTime,
    /// Why the mapping's file could not be used when it was last read: said once.
    pub mapping_complaint: Option<String>,
    /// As they were in the last look; the writer takes them one by one.
    pub strays: Vec<Stray>,
    lent: BTreeMap<PoolId, (Lent, Timestamp)>,
    is_known: bool,
    /// Since when looks at everything have failed, and why the last one did.
    trouble: Option<(Instant, Trouble)>,
}

impl Seen {
    pub fn new(mapping: Mapping, mapping_of: SystemTime) -> Seen {
        Seen {
            mapping: Arc::new(mapping),
            mapping_of,
            mapping_complaint: None,
            strays: Vec::new(),
            lent: BTreeMap::new(),
            is_known: false,
            trouble: None,
        }
    }

    /// Everything was looked at.
    pub fn well(&mut self, lent: Vec<(PoolId, Lent)>, at: Timestamp) {
        if let Some((_, trouble)) = self.trouble.take() {
            tracing::info!(%trouble, "Kubernetes answers again");
        } else if !self.is_known {
            tracing::info!("Kubernetes answers");
        }
        self.is_known = true;
        self.lent.extend(lent.into_iter().map(|(pool, lent)| (pool, (lent, at))));
    }

    pub fn unwell(&mut self, cluster: &str, trouble: Trouble) {
        let is_news = self.trouble.as_ref().is_none_or(|(_, before)| before.to_string() != trouble.to_string());
        if is_news {
            tracing::warn!(cluster, %trouble, "Kubernetes could not be looked at");
        }
        let since = self.trouble.as_ref().map_or_else(Instant::now, |(since, _)| *since);
        self.trouble = Some((since, trouble));
    }

    /// The mapping stays as it was.
    pub fn complain(&mut self, cause: &BadMapping) {
        let text = cause.to_string();
        if self.mapping_complaint.as_ref() != Some(&text) {
            tracing::warn!(%cause, "the mapping stays as it was");
            self.mapping_complaint = Some(text);
        }
    }

    /// What a pool lends, as far as that may be believed; `None`: not known yet. A large cluster may be looked at for
    /// longer than it may be silent.
    pub fn report(&self, pool: PoolId, now: Timestamp, silence: Duration) -> Option<CapacityReport> {
        let failing = self.trouble.as_ref().map_or(Duration::ZERO, |(since, _)| since.elapsed());
        let lent = self.lent.get(&pool);
        let is_old = lent.is_some_and(|(_, at)| now.0.saturating_sub(at.0) > LENT_MS);
        if silence.max(failing) > SILENCE || is_old {
            let public = self.trouble.as_ref().map(|(_, trouble)| trouble.public());
            let problem = public.unwrap_or_else(|| "Kubernetes does not answer".to_owned());
            return Some(CapacityReport { pool, lendable: vec![], at: now, problem: Some(Reason::new(&problem)) });
        }
        let (lent, at) = lent?;
        let problem = lent.problem.as_deref().map(Reason::new);
        Some(CapacityReport { pool, lendable: lent.lendable.clone(), at: *at, problem })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_an_attempts_by_its_job_or_because_it_was_known() {
        let place = || ("climate".to_owned(), (federation::JobId::new(1, [0; 10]), 1));
        let of = |uid: &str, owner: Option<&str>| SeenPod {
            uid: uid.to_owned(),
            owner: owner.map(str::to_owned),
            ..super::super::observed::tests::pod(serde_json::json!({}))
        };
        let pods = vec![of("a", Some("job")), of("b", None), of("c", Some("other"))];
        let ours = Ours { pods: [(place(), pods)].into(), ..Ours::default() };
        let found = |job, pinned| {
            ours.pods_of(&place(), job, pinned).into_iter().map(|it| it.uid).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(found(Some("job"), None), "a");
        assert_eq!(found(Some("job"), Some("b")), "a b", "also one that was orphaned");
        assert_eq!(found(None, None), "");
    }

    #[test]
    fn silence_is_believed_after_a_while_and_says_why() {
        let pool = PoolId::parse("FR/jean-zay/h100-80").expect("a pool");
        let mut seen = Seen::new(Mapping::default(), SystemTime::UNIX_EPOCH);
        let report = |seen: &Seen, silence| seen.report(pool, Timestamp(7), silence);
        let (none, long) = (Duration::ZERO, SILENCE * 2);
        let problem = |seen: &Seen, silence| report(seen, silence).expect("a report").problem.map(|it| it.to_string());
        assert_eq!(report(&seen, none), None, "not known yet");
        assert_eq!(problem(&seen, long).as_deref(), Some("Kubernetes does not answer"));
        seen.well(vec![(pool, Lent::default())], Timestamp(3));
        assert_eq!(report(&seen, none).expect("a report").at, Timestamp(3));
        seen.unwell("c", Trouble::NoAnswer("tcp connect to secret.example".into()));
        assert_eq!(problem(&seen, none), None, "running jobs stay, and nothing is hurried");
        assert_eq!(problem(&seen, long).as_deref(), Some("Kubernetes does not answer"));
        // Other requests are answered all the while.
        let refused = Trouble::Answer { code: 401, reason: String::new(), text: "secret".into() };
        seen.trouble = Some((Instant::now() - long, refused));
        assert_eq!(problem(&seen, none).as_deref(), Some("the gateway cannot prove to Kubernetes who it is"));
        seen.well(vec![], Timestamp(9));
        assert_eq!(problem(&seen, none), None);
        let late = seen.report(pool, Timestamp(3 + LENT_MS + 1), none).expect("a report");
        assert!(late.problem.is_some(), "a look that never ends");
    }
}
