//! Threads of one cluster that may block: so many, and no more.
//!
//! A factory's shared file system may hang for hours, all of it or a part, and whoever waits for it waits on one of the few
//! hundred threads that all of the gateway shares.
//! Invariants: what has begun runs to its end, also when its caller goes away; what hangs keeps its place until it no longer
//! does; what has not begun is given up with its caller.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard};

use futures_util::future::{BoxFuture, FutureExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinError, JoinHandle};

use super::folder::Key;

/// The places of those that wait for the same.
pub(super) struct Threads {
    places: Arc<Semaphore>,
    /// Attempts for which something is under way that [`Threads::try_run`] began.
    busy: Arc<Mutex<HashSet<Key>>>,
}

/// An attempt's turn, until this is dropped.
struct Turn {
    key: Key,
    busy: Arc<Mutex<HashSet<Key>>>,
}

impl Threads {
    pub fn new(at_most: usize) -> Threads {
        Threads { places: Arc::new(Semaphore::new(at_most)), busy: Arc::default() }
    }

    /// Runs it when there is a place.
    pub fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> BoxFuture<'static, Result<T, JoinError>> {
        let places = Arc::clone(&self.places);
        let running = async move {
            let place = places.acquire_owned().await.expect("invariant: places are never closed");
            on(place, work).await
        };
        running.boxed()
    }

    /// Runs it if there is a place now, and nothing else of the attempt's is under way: one whose files hang takes no
    /// place of others.
    pub fn try_run<T: Send + 'static>(
        &self,
        key: Key,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<JoinHandle<T>> {
        let place = Arc::clone(&self.places).try_acquire_owned().ok()?;
        if !lock(&self.busy).insert(key) {
            return None;
        }
        let turn = Turn { key, busy: Arc::clone(&self.busy) };
        Some(on(place, move || {
            let _turn = turn;
            work()
        }))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        lock(&self.busy).remove(&self.key);
    }
}

fn on<T: Send + 'static>(place: OwnedSemaphorePermit, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    tokio::task::spawn_blocking(move || {
        let _place = place;
        work()
    })
}

fn lock(busy: &Mutex<HashSet<Key>>) -> MutexGuard<'_, HashSet<Key>> {
    busy.lock().expect("invariant: nothing panics while it holds the busy ones")
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use federation::JobId;

    use super::*;

    /// Work that hangs until the sender is gone.
    fn hanging() -> (mpsc::Sender<()>, impl Fn() -> Box<dyn FnOnce() + Send>) {
        let (answer, hangs) = mpsc::channel::<()>();
        let hangs = Arc::new(Mutex::new(hangs));
        let hang = move || {
            let hangs = Arc::clone(&hangs);
            let work = move || {
                let _ended = hangs.lock().expect("no panic").recv();
            };
            Box::new(work) as Box<dyn FnOnce() + Send>
        };
        (answer, hang)
    }

    fn on_three_threads(test: impl Future) {
        let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(3).build().expect("a runtime");
        runtime.block_on(test);
    }

    #[test]
    fn what_hangs_takes_so_many_threads_and_no_more() {
        on_three_threads(async {
            let threads = Threads::new(2);
            let (answer, hang) = hanging();
            let mut all: Vec<_> = (0..20).map(|_| threads.run(hang())).collect();
            assert!(all.iter_mut().all(|it| it.now_or_never().is_none()));
            // Nobody waits for most of them any more; they never begin.
            all.truncate(3);
            assert!(threads.try_run((JobId::new(1, [0; 10]), 1), || ()).is_none(), "there is no place");
            tokio::task::spawn_blocking(|| ()).await.expect("a thread for others");
            drop(answer);
            for hung in all {
                hung.await.expect("it has run");
            }
            assert_eq!(threads.places.available_permits(), 2);
        });
    }

    #[test]
    fn one_attempt_whose_files_hang_takes_no_place_of_others() {
        on_three_threads(async {
            let threads = Threads::new(2);
            let [stuck, other] = [1, 2].map(|number| (JobId::new(number, [0; 10]), 1));
            let (answer, hang) = hanging();
            let hung = threads.try_run(stuck, hang()).expect("a place");
            assert!(threads.try_run(stuck, || ()).is_none(), "its earlier look has not come back");
            for _ in 0..3 {
                threads.try_run(other, || ()).expect("a place").await.expect("it has run");
            }
            drop(answer);
            hung.await.expect("it has run");
            threads.try_run(stuck, || ()).expect("its turn").await.expect("it has run");
        });
    }
}
