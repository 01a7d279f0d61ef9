//! Watching logs: copies what executors have written, again and again, to the end of each.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};

use super::entry::Entry;
use super::manifest::container_name;
use super::next::unread;
use super::observed::SeenStep;
use super::{Cluster, Row};
use crate::driver::folder::Key;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(1);
/// Logs that are read at the same time.
const LOGS_AT_ONCE: usize = 8;

/// A log that is to be read.
struct Wanted {
    key: Key,
    step: usize,
    namespace: String,
    pod: String,
    has_ended: bool,
}

impl Cluster {
    pub(super) async fn watch_logs(self: Arc<Self>) {
        loop {
            let wanted: Vec<_> = self.ledger.open_keys().into_iter().flat_map(|key| self.wanted_logs(key)).collect();
            let reading = wanted.into_iter().map(|it| Arc::clone(&self).gather(it));
            stream::iter(reading).buffer_unordered(LOGS_AT_ONCE).collect::<Vec<()>>().await;
            tokio::time::sleep(EVERY).await;
        }
    }

    fn wanted_logs(&self, key: Key) -> Vec<Wanted> {
        let of = |row: &mut Row<Entry>| {
            let Some(pod) = &row.memory.pod else {
                return vec![];
            };
            let wanted = |step: usize| Wanted {
                key,
                step,
                namespace: row.entry.namespace().to_owned(),
                pod: pod.name.clone(),
                has_ended: matches!(pod.steps[step], SeenStep::Ended { .. }),
            };
            unread(&row.memory).into_iter().map(wanted).collect()
        };
        self.ledger.with(key, of).unwrap_or_default()
    }

    async fn gather(self: Arc<Self>, wanted: Wanted) {
        let Wanted { key, step, namespace, pod, has_ended } = wanted;
        let cluster = Arc::clone(&self);
        let Ok(cursor) = tokio::task::spawn_blocking(move || cluster.logs.cursor(key, step)).await else {
            return;
        };
        let answer = match self.api.log(&namespace, &pod, container_name(step), cursor.since()).await {
            Ok(answer) => answer,
            Err(trouble) => {
                // That a log was not to be had is in the record; a node that does not answer is no news each second.
                return tracing::debug!(job = %key.0, step, %trouble, "a log cannot be read yet");
            }
        };
        let (cluster, is_cut) = (Arc::clone(&self), answer.len() >= super::logs::ANSWER_BYTES_MAX);
        let adding = move || cluster.logs.add(key, step, cursor, &answer, has_ended && !is_cut);
        match tokio::task::spawn_blocking(adding).await {
            Ok(Ok(())) if has_ended && !is_cut => {
                self.ledger.with(key, |row| row.memory.read.insert(step));
                self.look.notify_one();
            }
            Ok(Ok(())) => {}
            Ok(Err(cause)) => tracing::warn!(job = %key.0, %cause, "a log cannot be kept"),
            Err(_a_panic_is_printed) => {}
        }
    }
}
