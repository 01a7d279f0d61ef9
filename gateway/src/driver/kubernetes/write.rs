//! Writing to Kubernetes: one request at a time, and what is noted before and after it.
//!
//! Apart from the looks, so that a write that hangs keeps nothing from being seen.
//! Invariant: before a Job is asked for, the journal says so; so after a crash at any instruction, an attempt that may be
//! in Kubernetes is known to be.

use std::sync::Arc;

use super::Cluster;
use super::api::Trouble;
use super::entry::Deed;
use super::manifest::{name, secret};
use super::observed::SeenJob;
use super::outcome::GivenUp;
use super::seen::Stray;
use super::tries::Prospect;
use crate::driver::folder::Key;
use crate::driver::now_ms;

impl Cluster {
    pub(super) async fn write_to_kubernetes(self: Arc<Self>) {
        loop {
            if let Some((key, deed)) = self.ledger.take_wanted() {
                match deed {
                    Deed::Post => self.post(key).await,
                    Deed::MakeSecret => self.make_secret(key).await,
                    Deed::Delete { uid } => self.delete(key, &uid).await,
                }
                self.ledger.put_down(key);
                // This does not spin: what failed, also a note on a full disk, is not due again for a while.
                self.look.notify_one();
                continue;
            }
            // Not within the condition, which would hold the lock.
            let stray = self.seen().strays.pop();
            match stray {
                Some(stray) => self.sweep(&stray).await,
                None => self.write.notified().await,
            }
        }
    }

    async fn post(self: &Arc<Self>, key: Key) {
        let is_wanted = || self.ledger.entry(key).filter(|entry| !entry.is_over());
        let posted_ms = now_ms();
        if is_wanted().is_none() || !self.ledger.note(key, move |entry| entry.posted_ms = Some(posted_ms)).await {
            return self.later(key);
        }
        // It may have been cancelled meanwhile.
        let Some(entry) = is_wanted() else {
            return;
        };
        let Some(work) = &entry.work else {
            return;
        };
        match self.api.create_job(&work.namespace, &work.job).await {
            Ok(job) => {
                tracing::info!(job = %key.0, attempt = key.1, "Kubernetes has the Job");
                let uid = job.metadata.uid.filter(|it| !it.is_empty());
                self.ledger.note(key, move |entry| entry.uid = uid).await;
                self.ledger.with(key, |row| {
                    row.memory.known_at_ms = now_ms();
                    row.memory.tries.taken();
                });
            }
            Err(trouble) if trouble.is_there_already() => self.meet(key, work.namespace.clone()).await,
            Err(trouble) => self.failed(key, posted_ms, trouble).await,
        }
    }

    /// There is one of its name: its own, or, without its labels, somebody else's, which no list of ours shows.
    async fn meet(self: &Arc<Self>, key: Key, namespace: String) {
        let is_foreign = match self.api.job(&namespace, &name(key)).await {
            Ok(job) => !SeenJob::of(&job, &self.settings.factory, key).is_ours,
            Err(_) => false,
        };
        self.later(key);
        if is_foreign {
            self.ledger.note(key, |entry| entry.given_up = Some(GivenUp::NameTaken)).await;
        }
    }

    fn later(&self, key: Key) {
        self.ledger.with(key, |row| row.memory.tries.later(now_ms()));
    }

    /// The API server does not take it: for good, or for now.
    async fn failed(self: &Arc<Self>, key: Key, sent_ms: u64, trouble: Trouble) {
        let prospect = self.ledger.with(key, |row| row.memory.tries.failed(sent_ms, &trouble, now_ms()));
        if prospect == Some(Prospect::Hopeless) {
            let why = GivenUp::Refused { text: trouble.to_string() };
            self.ledger.note(key, move |entry| entry.given_up = Some(why)).await;
        } else {
            tracing::warn!(job = %key.0, %trouble, "Kubernetes does not take the Job yet");
        }
    }

    async fn make_secret(self: &Arc<Self>, key: Key) {
        let Some(entry) = self.ledger.entry(key) else {
            return;
        };
        let (Some(work), Some(uid)) = (&entry.work, &entry.uid) else {
            return;
        };
        let (secret, sent_ms) = (secret(&self.settings.factory, key, uid, &work.inputs), now_ms());
        match self.api.create_secret(&work.namespace, &secret).await {
            Err(trouble) if !trouble.is_there_already() => self.failed(key, sent_ms, trouble).await,
            // It is there. One that is not ours has other keys or contents only if who may write there wants it so.
            _ => {
                self.ledger.with(key, |row| {
                    row.memory.is_secret_made = true;
                    row.memory.tries.taken();
                });
            }
        }
    }

    async fn delete(self: &Arc<Self>, key: Key, uid: &str) {
        let Some(entry) = self.ledger.entry(key) else {
            return;
        };
        match self.api.delete_job(entry.namespace(), &name(key), uid).await {
            Ok(()) => drop(self.ledger.with(key, |row| row.memory.deleted_ms = Some(now_ms()))),
            Err(trouble) => tracing::warn!(job = %key.0, %trouble, "the Job cannot be deleted yet"),
        }
        self.ledger.with(key, |row| row.memory.delete_tried_ms = Some(now_ms()));
    }

    async fn sweep(&self, stray: &Stray) {
        let Stray { place: (namespace, key), uid, is_deleted } = stray;
        let name = name(*key);
        let swept = async {
            if !is_deleted {
                self.api.delete_job(namespace, &name, uid).await?;
            }
            self.api.release_job(namespace, &name, uid).await
        };
        match swept.await {
            Err(trouble) if trouble.code() != Some(404) && trouble.code() != Some(409) => {
                tracing::warn!(job = %key.0, %trouble, "a Job that is over cannot be removed yet");
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use super::super::api::tests::server;
    use super::super::api::{ANSWER_TIMEOUT, Api};
    use super::super::manifest::tests::order;
    use super::super::settings::tests::settings;
    use super::*;
    use crate::driver::cluster::Scheduler;

    const EMPTY: &str = r#"{"kind":"List","apiVersion":"v1","metadata":{},"items":[]}"#;

    /// Runs a driver with one order until `until`, which must come while a request may still hang.
    async fn run(folder: &std::path::Path, api: Api, spoil: impl FnOnce(), until: impl Fn() -> bool) -> Arc<Cluster> {
        let cluster = Arc::new(Cluster::with(settings(folder), api).expect("a cluster"));
        cluster.submit(order()).expect("taken");
        spoil();
        let tasks = [
            tokio::spawn(Arc::clone(&cluster).watch_kubernetes()),
            tokio::spawn(Arc::clone(&cluster).write_to_kubernetes()),
        ];
        let waiting = async {
            while !until() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let waited = tokio::time::timeout(ANSWER_TIMEOUT - Duration::from_secs(1), waiting).await;
        tasks.iter().for_each(tokio::task::JoinHandle::abort);
        assert_eq!(waited, Ok(()));
        cluster
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_write_that_hangs_keeps_nothing_from_being_seen() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (posts, looks) = (Arc::<AtomicU32>::default(), Arc::<AtomicU32>::default());
        let (posted, looked) = (Arc::clone(&posts), Arc::clone(&looks));
        let api = server(move |method, path| {
            if method == "POST" {
                posted.fetch_add(1, Ordering::Relaxed);
                return None;
            }
            // Those before the request show nothing.
            if path.ends_with("/nodes") && posted.load(Ordering::Relaxed) > 0 {
                looked.fetch_add(1, Ordering::Relaxed);
            }
            Some((200, EMPTY.to_owned()))
        });
        let cluster = run(folder.path(), api, || (), || looks.load(Ordering::Relaxed) >= 3).await;
        assert_eq!(posts.load(Ordering::Relaxed), 1);
        let problem = cluster.report(order().pool).expect("a report").problem.map(|it| it.to_string());
        assert_eq!(problem.as_deref(), Some("the cluster has 0 such nodes, the offer says 2"));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_disk_that_takes_no_note_is_not_tried_without_a_pause() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (looks, all) = (Arc::<AtomicU32>::default(), Arc::<AtomicU32>::default());
        let (looked, looked_at_all) = (Arc::clone(&looks), Arc::clone(&all));
        let api = server(move |method, path| {
            assert_eq!(method, "GET", "nothing is asked for that is not noted");
            looked.fetch_add(path.ends_with("/jobs").into(), Ordering::Relaxed);
            looked_at_all.fetch_add(path.ends_with("/nodes").into(), Ordering::Relaxed);
            Some((200, EMPTY.to_owned()))
        });
        let spoil = || std::fs::remove_dir_all(folder.path().join("journal")).expect("a lost disk");
        run(folder.path(), api, spoil, || all.load(Ordering::Relaxed) >= 3).await;
        let looks = looks.load(Ordering::Relaxed);
        assert!((3..12).contains(&looks), "{looks}: one beside each try");
    }
}
