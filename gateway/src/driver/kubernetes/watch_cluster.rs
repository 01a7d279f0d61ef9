//! Watching Kubernetes: looks at what is ours and at what is free, again and again, and moves every attempt on by what is
//! seen.
//!
//! Nodes are looked at before pods and Jobs before theirs, so that what starts meanwhile is in the later look.
//! Invariant: nothing is written to Kubernetes here.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use federation::{JobId, PoolId, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::api::Trouble;
use super::capacity::{is_of, lent};
use super::entry::Entry;
use super::manifest::{ATTEMPT, JOB, factory_label, name};
use super::mapping::Mapping;
use super::next::{Look, Next, next};
use super::observed::{SeenJob, SeenPod};
use super::outcome::{Facts, conclude};
use super::seen::{Ours, Place, Stray};
use super::{Cluster, KubernetesPool, Row};
use crate::driver::folder::Key;
use crate::driver::now_ms;
use crate::driver::phase::Phase;

/// Between two looks; longer where they take long, as on a cluster with many pods.
const EVERY: Duration = Duration::from_secs(1);
const EVERY_MAX: Duration = Duration::from_secs(5);

impl Cluster {
    pub(super) async fn watch_kubernetes(self: Arc<Self>) {
        let mut due = Instant::now();
        loop {
            let begun = Instant::now();
            let is_due = begun >= due;
            let looked = match is_due {
                true => self.look_at_all().await,
                // Something of ours has moved: the whole cluster need not be read for that.
                false => self.look_at_ours().await,
            };
            if let Err(trouble) = looked {
                self.seen().unwell(&self.settings.factory.to_string(), trouble);
            }
            if is_due {
                due = Instant::now() + begun.elapsed().clamp(EVERY, EVERY_MAX);
            }
            tokio::select! {
                () = tokio::time::sleep_until(due.into()) => {}
                () = self.look.notified() => {}
            }
        }
    }

    async fn look_at_all(self: &Arc<Self>) -> Result<(), Trouble> {
        self.look_at_files().await;
        self.look_at_ours().await?;
        self.look_at_capacity().await
    }

    /// Moves every attempt on that is not done.
    async fn look_at_ours(self: &Arc<Self>) -> Result<(), Trouble> {
        let ours = self.list_ours().await?;
        for key in self.ledger.open_keys() {
            self.move_on(key, &ours).await;
        }
        let strays = self.strays(&ours);
        self.seen().strays = strays;
        self.write.notify_one();
        Ok(())
    }

    async fn list_ours(&self) -> Result<Ours, Trouble> {
        let factory = factory_label(&self.settings.factory);
        let mut ours = Ours { begun_ms: now_ms(), ..Ours::default() };
        for job in self.api.own_jobs(&factory).await? {
            let Some(place) = place_of(&job.metadata) else {
                continue;
            };
            if job.metadata.name.as_deref() == Some(&name(place.1)) {
                let seen = SeenJob::of(&job, &self.settings.factory, place.1);
                ours.jobs.insert(place, seen);
            }
        }
        for pod in self.api.own_pods(&factory).await? {
            if let Some(place) = place_of(&pod.metadata) {
                ours.pods.entry(place).or_default().push(SeenPod::of(&pod));
            }
        }
        Ok(ours)
    }

    async fn look_at_capacity(&self) -> Result<(), Trouble> {
        let at = Timestamp(now_ms());
        let nodes = self.api.nodes().await?;
        let pods = self.api.pods().await?;
        // Read after the pods, so that a Job that was made meanwhile is among them.
        let own = self.uids();
        let of = |pool: &KubernetesPool| (pool.id, lent(pool, &nodes, &pods, |pod| is_of(&own, pod)));
        let lent: Vec<(PoolId, _)> = self.settings.pools.iter().map(of).collect();
        self.seen().well(lent, at);
        Ok(())
    }

    /// Every Job that is known to be ours, by its uid, and its namespace.
    fn uids(&self) -> HashMap<String, String> {
        self.ledger.collect(|row| Some((row.entry.uid.clone()?, row.entry.namespace().to_owned())))
    }

    async fn look_at_files(self: &Arc<Self>) {
        let cluster = Arc::clone(self);
        let reading = move || {
            cluster.api.look_at_credentials();
            let path = &cluster.settings.namespaces;
            let changed = std::fs::metadata(path).and_then(|it| it.modified());
            if changed.is_ok_and(|it| it == cluster.seen().mapping_of) {
                return;
            }
            match Mapping::read(path) {
                Ok((mapping, changed)) => {
                    let mut seen = cluster.seen();
                    (seen.mapping, seen.mapping_of) = (Arc::new(mapping), changed);
                    seen.mapping_complaint = None;
                }
                Err(cause) => cluster.seen().complain(&cause),
            }
        };
        let _a_panic_is_printed = tokio::task::spawn_blocking(reading).await;
    }

    async fn move_on(self: &Arc<Self>, key: Key, ours: &Ours) {
        let Some(entry) = self.ledger.entry(key) else {
            return;
        };
        let place = (entry.namespace().to_owned(), key);
        let job = ours.jobs.get(&place);
        let uid = entry.uid.as_deref().or(job.map(|it| it.uid.as_str()));
        let pods = ours.pods_of(&place, uid, entry.pod.as_deref());
        let look = Look { begun_ms: ours.begun_ms, job, pods: &pods };
        let decided = self.ledger.decide(key, |entry, memory| {
            let next = next(entry, memory, look, now_ms());
            let deed = next.deed(job);
            (next, deed)
        });
        // That it runs is seen also while a request about it hangs.
        let started = |pod: &SeenPod| pod.started_ms().map(|it| it.clamp(pod.created_ms.min(now_ms()), now_ms()));
        let see = |row: &mut Row<Entry>| {
            row.memory.see(&row.entry, &pods);
            row.memory.pod.as_ref().and_then(started)
        };
        let started_ms = self.ledger.with(key, see).flatten();
        if let Some(started_ms) = started_ms.filter(|_| !matches!(decided, Some(Next::Conclude { .. }))) {
            self.ledger.advance(key, Phase::Running { started_ms });
        }
        let Some(next) = decided else {
            return;
        };
        self.carry_out(key, next, job).await;
    }

    async fn carry_out(self: &Arc<Self>, key: Key, next: Next, job: Option<&SeenJob>) {
        let is_noted = match next {
            Next::Wait => false,
            Next::Post | Next::MakeSecret | Next::Delete => return self.write.notify_one(),
            Next::Adopt { uid } => {
                let is_noted = self.ledger.note(key, move |entry| entry.uid = Some(uid)).await;
                self.ledger.with(key, |row| row.memory.known_at_ms = now_ms());
                is_noted
            }
            Next::Pin { uid } => self.ledger.note(key, move |entry| entry.pod = Some(uid)).await,
            Next::GiveUp(why) => {
                tracing::warn!(job = %key.0, attempt = key.1, ?why, "the attempt is given up");
                self.ledger.note(key, move |entry| entry.given_up = Some(why)).await
            }
            Next::Conclude { is_lost } => self.conclude(key, job, is_lost).await,
        };
        // What cannot be noted, as on a full disk, is tried again at the next look, and no sooner.
        if is_noted {
            self.look.notify_one();
        }
    }

    async fn conclude(self: &Arc<Self>, key: Key, job: Option<&SeenJob>, is_lost: bool) -> bool {
        let (finish, is_deleted) = (job.and_then(|it| it.finish.clone()), job.is_some_and(|it| it.is_deleted));
        let cluster = Arc::clone(self);
        let concluding = move || {
            let row = cluster.ledger.with(key, |row| (Arc::clone(&row.entry), row.memory.clone()));
            let Some((entry, memory)) = row else {
                return Ok(());
            };
            let done = conclude(Facts {
                pod: memory.pod.as_ref(),
                had_pod: entry.pod.is_some(),
                finish: finish.as_ref(),
                is_deleted,
                cancel: entry.cancel,
                given_up: entry.given_up.as_ref(),
                is_lost,
                tails: cluster.tails(key, &entry),
                are_logs_cut: memory.are_logs_cut,
                now_ms: now_ms(),
            });
            cluster.ledger.conclude(key, done)
        };
        let concluded = tokio::task::spawn_blocking(concluding).await.map_err(std::io::Error::other).and_then(|it| it);
        if let Err(cause) = &concluded {
            tracing::error!(job = %key.0, %cause, "the end cannot be noted yet");
        }
        concluded.is_ok()
    }

    /// Jobs whose end is noted, and those that nobody remembers: what is not followed must not run.
    fn strays(&self, ours: &Ours) -> Vec<Stray> {
        let mapped = self.seen().mapping.namespaces();
        let is_stray = |(namespace, key): &Place| {
            // Anybody can write our labels on a Job, but not where only we may.
            match self.ledger.with(*key, |row| (row.is_done(), row.entry.namespace() == namespace)) {
                Some((is_done, is_same)) => is_done && (is_same || mapped.contains(namespace)),
                None => mapped.contains(namespace),
            }
        };
        let strays = ours.jobs.iter().filter(|(place, job)| job.is_ours && is_stray(place));
        let of = |(place, job): (&Place, &SeenJob)| Stray {
            place: place.clone(),
            uid: job.uid.clone(),
            is_deleted: job.is_deleted,
        };
        strays.map(of).collect()
    }
}

/// The attempt that the labels of a Job or a pod name, and where it is.
fn place_of(metadata: &ObjectMeta) -> Option<Place> {
    let labels = metadata.labels.as_ref()?;
    let key = (JobId::parse(labels.get(JOB)?).ok()?, labels.get(ATTEMPT)?.parse().ok()?);
    Some((metadata.namespace.clone().unwrap_or_default(), key))
}
