//! The ledger of a cluster's driver: what its journal and its memory have of every attempt.
//!
//! Some tasks look at a cluster and decide, one writes to it, callers come from anywhere; here they meet.
//! Invariants: the journal first, then memory; what is done stays as it is; a decision and the request that follows from
//! it are one step, and about an attempt one request is in hand at a time, so nothing is asked of a cluster because of
//! what has changed since. Memory's lock is held for looks and changes, never over a disk or a request.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use federation::End;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use super::folder::{Done, Key};
use super::journal::Journal;
use super::phase::Phase;
use super::{AttemptRecord, AttemptStatus};

/// What a driver's journal has of one attempt.
pub(super) trait Entry: Clone + PartialEq + Serialize + DeserializeOwned + Send + Sync + 'static {
    /// What is known of it only since the gateway started.
    type Memory: Send + 'static;
    /// A request to the cluster about it.
    type Deed: Send + 'static;

    /// Of an attempt that was cancelled before it came: there is nothing to run.
    fn buried() -> Self;

    /// What is known of one that is taken up.
    fn memory(&self) -> Self::Memory;

    /// Notes that somebody asked for the stop.
    fn cancel(&mut self);

    /// Whether others wait for this request.
    fn goes_first(deed: &Self::Deed) -> bool;
}

/// All attempts of one cluster.
pub(super) struct Ledger<E: Entry> {
    journal: Journal<E>,
    rows: Mutex<BTreeMap<Key, Row<E>>>,
    /// Held while the journal and memory change together. Only for threads that may block.
    claims: Mutex<()>,
    /// Held while an attempt comes or goes, with whatever files it has elsewhere. That may take as long as a shared file
    /// system takes, so nothing else waits for it. Taken before the claims.
    gate: Mutex<()>,
    turns: Mutex<Turns>,
    changes: watch::Sender<u64>,
}

/// Whose turn it is at the writer: however often some ask again, everybody is asked for.
#[derive(Default)]
struct Turns {
    /// What was last taken goes before others, so these are next.
    is_others: bool,
    /// Which attempt was last taken of those that do not go first, and of those that do.
    last: [Option<Key>; 2],
}

/// One attempt as it was when somebody last looked.
pub(super) struct Row<E: Entry> {
    pub entry: Arc<E>,
    pub memory: E::Memory,
    phase: Phase,
    /// What the writer has to ask the cluster for.
    wanted: Option<E::Deed>,
    /// The writer is at it.
    in_hand: bool,
}

impl<E: Entry> Row<E> {
    fn new(entry: E, phase: Phase) -> Row<E> {
        Row { memory: entry.memory(), entry: Arc::new(entry), phase, wanted: None, in_hand: false }
    }

    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    pub fn is_done(&self) -> bool {
        self.phase.is_done()
    }
}

impl<E: Entry> Ledger<E> {
    /// Takes up every attempt that an earlier gateway left in the folder. One whose entry is damaged keeps none of the
    /// others from going on.
    pub fn open(folder: &Path) -> io::Result<Ledger<E>> {
        let journal = Journal::open(folder)?;
        let mut rows = BTreeMap::new();
        for found in journal.load()? {
            let row = match (found.entry, found.done) {
                (Ok(entry), None) => Row::new(entry, Phase::Starting),
                (Ok(entry), Some(done)) => Row::new(entry, Phase::of(&done)),
                (Err(cause), _) => {
                    let (job, attempt) = found.key;
                    tracing::error!(%job, attempt, %cause, "an entry of the journal is unreadable");
                    Row::new(E::buried(), Phase::of(&Err(cause)))
                }
            };
            rows.insert(found.key, row);
        }
        Ok(Ledger {
            journal,
            rows: Mutex::new(rows),
            claims: Mutex::default(),
            gate: Mutex::default(),
            turns: Mutex::default(),
            changes: watch::Sender::new(0),
        })
    }

    pub fn status(&self, key: Key) -> AttemptStatus {
        self.with(key, |row| row.phase.clone()).map_or(AttemptStatus::Unknown, AttemptStatus::from)
    }

    pub fn keys(&self) -> Vec<Key> {
        self.rows().keys().copied().collect()
    }

    /// Those that are not done.
    pub fn open_keys(&self) -> Vec<Key> {
        self.rows().iter().filter(|(_, row)| !row.is_done()).map(|(key, _)| *key).collect()
    }

    /// What is found in each row, done or not, for those of which something is.
    pub fn collect<T, C: FromIterator<T>>(&self, find: impl FnMut(&Row<E>) -> Option<T>) -> C {
        self.rows().values().filter_map(find).collect()
    }

    pub fn entry(&self, key: Key) -> Option<Arc<E>> {
        self.with(key, |row| Arc::clone(&row.entry))
    }

    /// Looks at a row, or changes what memory alone has, as long as it is there.
    pub fn with<T>(&self, key: Key, change: impl FnOnce(&mut Row<E>) -> T) -> Option<T> {
        self.rows().get_mut(&key).map(change)
    }

    /// Held by whoever brings or takes away an attempt's files elsewhere.
    pub fn gate(&self) -> MutexGuard<'_, ()> {
        self.gate.lock().expect("invariant: nothing panics while an attempt comes or goes")
    }

    /// Takes an attempt, and asks for `wanted` if anything; `false` if there is one already, or was and is cancelled.
    pub fn take(&self, key: Key, entry: E, wanted: Option<E::Deed>) -> io::Result<bool> {
        let _claim = self.claim();
        if self.entry(key).is_some() {
            return Ok(false);
        }
        self.journal.write(key, &entry)?;
        self.insert(key, Row { wanted, ..Row::new(entry, Phase::Starting) });
        Ok(true)
    }

    /// Notes that somebody asked for the stop; the entry, if that is news for one that goes on. An order that is still on
    /// its way will find that it came too late.
    pub fn cancel(&self, key: Key) -> io::Result<Option<Arc<E>>> {
        let claim = self.claim();
        match self.with(key, |row| row.is_done()) {
            Some(true) => Ok(None),
            Some(false) => self.change(&claim, key, E::cancel),
            None => {
                let done = Done { end: End::Canceled, record: AttemptRecord::default() };
                let entry = E::buried();
                self.journal.write(key, &entry)?;
                self.journal.conclude(key, &done)?;
                self.insert(key, Row::new(entry, Phase::of(&Ok(done))));
                Ok(None)
            }
        }
    }

    /// Changes an entry, if it is there; whether that could be noted.
    pub async fn note(self: &Arc<Self>, key: Key, change: impl FnOnce(&mut E) + Send + 'static) -> bool {
        let ledger = Arc::clone(self);
        let noting = move || ledger.change(&ledger.claim(), key, change).map(drop);
        let noted = tokio::task::spawn_blocking(noting).await.map_err(io::Error::other).and_then(|it| it);
        if let Err(cause) = &noted {
            tracing::error!(job = %key.0, attempt = key.1, %cause, "nothing is done that cannot be noted");
        }
        noted.is_ok()
    }

    fn change(&self, _claim: &MutexGuard<'_, ()>, key: Key, change: impl FnOnce(&mut E)) -> io::Result<Option<Arc<E>>> {
        let Some(entry) = self.entry(key) else {
            return Ok(None);
        };
        let mut changed = (*entry).clone();
        change(&mut changed);
        if changed == *entry {
            return Ok(None);
        }
        self.journal.write(key, &changed)?;
        let changed = Arc::new(changed);
        self.with(key, |row| row.entry = Arc::clone(&changed));
        Ok(Some(changed))
    }

    /// Decides about an attempt that is not done, and on the request that follows in place of any that is still wanted.
    /// `None` while a request about it is in hand: what comes of that is not known yet.
    pub fn decide<T>(&self, key: Key, decide: impl FnOnce(&E, &mut E::Memory) -> (T, Option<E::Deed>)) -> Option<T> {
        self.with(key, |row| {
            if row.is_done() || row.in_hand {
                return None;
            }
            let (decided, deed) = decide(&row.entry, &mut row.memory);
            row.wanted = deed;
            Some(decided)
        })
        .flatten()
    }

    /// The next request for the writer: one that others wait for and one of the others in turn, each kind by age and round
    /// and round. It is in hand from here to [`Ledger::put_down`].
    pub fn take_wanted(&self) -> Option<(Key, E::Deed)> {
        let mut rows = self.rows();
        let mut turns = self.turns.lock().expect("invariant: nothing panics while it says whose turn it is");
        let is_first = |row: &Row<E>| row.wanted.as_ref().is_some_and(E::goes_first);
        let wanted = rows.iter_mut().filter(|(_, row)| row.wanted.is_some() && !row.is_done() && !row.in_hand);
        let (key, row) = wanted.min_by_key(|(key, row)| {
            let first = is_first(row);
            let had_its_turn = turns.last[usize::from(first)].is_some_and(|last| **key <= last);
            (first == turns.is_others, had_its_turn, **key)
        })?;
        let first = is_first(row);
        (turns.is_others, turns.last[usize::from(first)]) = (first, Some(*key));
        row.in_hand = true;
        row.wanted.take().map(|deed| (*key, deed))
    }

    pub fn put_down(&self, key: Key) {
        self.with(key, |row| row.in_hand = false);
    }

    /// An attempt has moved on.
    pub fn advance(&self, key: Key, phase: Phase) {
        if self.with(key, |row| row.phase.advance(phase)) == Some(true) {
            self.tick();
        }
    }

    /// Notes how an attempt ended, once.
    pub fn conclude(&self, key: Key, done: Done) -> io::Result<()> {
        let _claim = self.claim();
        if self.with(key, |row| row.is_done()) != Some(false) {
            return Ok(());
        }
        self.journal.conclude(key, &done)?;
        self.advance(key, Phase::of(&Ok(done)));
        Ok(())
    }

    /// What was noted of an attempt that is done.
    pub fn done(&self, key: Key) -> io::Result<Done> {
        self.journal.done(key)
    }

    /// Removes one that is done, after its files; `false` if it is not done.
    pub fn forget(&self, key: Key, remove: impl FnOnce(&E) -> io::Result<()>) -> io::Result<bool> {
        let _gate = self.gate();
        let Some((entry, is_done)) = self.with(key, |row| (Arc::clone(&row.entry), row.is_done())) else {
            return Ok(true);
        };
        if is_done {
            remove(&entry)?;
            let _claim = self.claim();
            self.journal.remove(key)?;
            self.rows().remove(&key);
            self.tick();
        }
        Ok(is_done)
    }

    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Something else that is told of has changed.
    pub fn tick(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    fn insert(&self, key: Key, row: Row<E>) {
        self.rows().insert(key, row);
        self.tick();
    }

    fn claim(&self) -> MutexGuard<'_, ()> {
        self.claims.lock().expect("invariant: nothing panics while it makes a claim")
    }

    fn rows(&self) -> MutexGuard<'_, BTreeMap<Key, Row<E>>> {
        self.rows.lock().expect("invariant: nothing panics while it holds the attempts")
    }
}

#[cfg(test)]
mod tests {
    use federation::JobId;
    use serde::Deserialize;

    use super::*;

    #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
    struct Note {
        posted: u32,
        is_cancelled: bool,
    }

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Deed {
        Post,
        Stop,
    }

    impl Entry for Note {
        type Memory = ();
        type Deed = Deed;

        fn buried() -> Note {
            Note { is_cancelled: true, ..Note::default() }
        }

        fn memory(&self) {}

        fn cancel(&mut self) {
            self.is_cancelled = true;
        }

        fn goes_first(deed: &Deed) -> bool {
            *deed == Deed::Stop
        }
    }

    fn key(number: u64) -> Key {
        (JobId::new(number, [0; 10]), 1)
    }

    fn done() -> Done {
        Done { end: End::Complete, record: AttemptRecord::default() }
    }

    fn open(folder: &tempfile::TempDir) -> Arc<Ledger<Note>> {
        Arc::new(Ledger::open(folder.path()).expect("a ledger"))
    }

    fn with(count: u64) -> (tempfile::TempDir, Arc<Ledger<Note>>) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let ledger = open(&folder);
        for number in 1..=count {
            assert!(ledger.take(key(number), Note::default(), None).expect("noted"));
        }
        (folder, ledger)
    }

    /// What a look says as long as nothing was posted.
    fn post(entry: &Note, (): &mut ()) -> ((), Option<Deed>) {
        ((), (entry.posted == 0).then_some(Deed::Post))
    }

    #[tokio::test]
    async fn nothing_is_asked_for_twice_because_of_what_was_so_before() {
        let (_folder, ledger) = with(1);
        ledger.decide(key(1), post).expect("decided");
        assert_eq!(ledger.take_wanted(), Some((key(1), Deed::Post)));
        // The looks go on beside the writer.
        assert_eq!(ledger.decide(key(1), post), None, "it is in hand");
        assert!(ledger.note(key(1), |entry| entry.posted += 1).await);
        ledger.put_down(key(1));
        assert_eq!(ledger.take_wanted(), None);
        ledger.decide(key(1), post).expect("decided, with what the writer has noted");
        assert_eq!(ledger.take_wanted(), None);
    }

    #[test]
    fn a_later_decision_takes_the_place_of_an_earlier_one() {
        let (_folder, ledger) = with(1);
        ledger.decide(key(1), post).expect("decided");
        ledger.decide(key(1), |_, ()| ((), None)).expect("decided");
        assert_eq!(ledger.take_wanted(), None);
    }

    #[test]
    fn what_others_wait_for_is_asked_for_first_and_then_by_age() {
        let (_folder, ledger) = with(3);
        ledger.decide(key(2), post).expect("decided");
        ledger.decide(key(1), post).expect("decided");
        ledger.decide(key(3), |_, ()| ((), Some(Deed::Stop))).expect("decided");
        let order: Vec<(Key, Deed)> = std::iter::from_fn(|| ledger.take_wanted()).collect();
        assert_eq!(order, [(key(3), Deed::Stop), (key(1), Deed::Post), (key(2), Deed::Post)]);
    }

    #[test]
    fn however_often_some_ask_again_everybody_has_his_turn() {
        let (_folder, ledger) = with(4);
        let ask_again = || {
            for number in [1, 2] {
                ledger.decide(key(number), |_, ()| ((), Some(Deed::Stop))).expect("decided");
            }
            for number in [3, 4] {
                ledger.decide(key(number), post).expect("decided");
            }
        };
        let take = || {
            ask_again();
            let (taken, _) = ledger.take_wanted().expect("wanted");
            ledger.put_down(taken);
            taken
        };
        let order: Vec<Key> = std::iter::repeat_with(take).take(6).collect();
        assert_eq!(order, [1, 3, 2, 4, 1, 3].map(key));
    }

    #[test]
    fn an_attempt_is_taken_once_and_not_after_its_cancellation() {
        let (_folder, ledger) = with(1);
        assert!(!ledger.take(key(1), Note::default(), Some(Deed::Post)).expect("looked"));
        assert_eq!(ledger.cancel(key(2)).expect("noted"), None);
        assert!(!ledger.take(key(2), Note::default(), Some(Deed::Post)).expect("looked"));
        assert_eq!(ledger.status(key(2)), AttemptStatus::Done { end: End::Canceled, started_ms: None });
        assert!(ledger.cancel(key(1)).expect("noted").expect("news").is_cancelled);
        assert_eq!(ledger.cancel(key(1)).expect("looked"), None, "no news");
        assert_eq!(ledger.take_wanted(), None);
    }

    #[test]
    fn what_is_done_stays_as_it_is() {
        let (_folder, ledger) = with(1);
        ledger.conclude(key(1), done()).expect("noted");
        let other = Done { end: End::Canceled, record: AttemptRecord::default() };
        ledger.conclude(key(1), other).expect("no news");
        assert_eq!(ledger.done(key(1)).expect("noted"), done());
        assert_eq!(ledger.cancel(key(1)).expect("no news"), None);
        assert_eq!(ledger.decide(key(1), post), None);
        assert!(ledger.open_keys().is_empty());
    }

    #[test]
    fn a_later_gateway_takes_up_what_an_earlier_one_left() {
        let (folder, ledger) = with(3);
        ledger.cancel(key(1)).expect("noted");
        ledger.conclude(key(2), done()).expect("noted");
        assert!(!ledger.forget(key(1), |_| panic!("it goes on")).expect("looked"));
        drop(ledger);
        std::fs::write(folder.path().join(format!("{}.1.json", key(3).0)), "{").expect("damaged");
        let ledger = open(&folder);
        assert_eq!(ledger.open_keys(), [key(1)]);
        assert!(ledger.entry(key(1)).expect("a row").is_cancelled);
        assert_eq!(ledger.status(key(2)), AttemptStatus::Done { end: End::Complete, started_ms: None });
        assert!(matches!(ledger.status(key(3)), AttemptStatus::Done { end: End::SystemError { .. }, .. }));
        for number in [2, 2, 3] {
            assert!(ledger.forget(key(number), |_| Ok(())).expect("removed"));
        }
        assert_eq!(open(&folder).keys(), [key(1)]);
    }
}
