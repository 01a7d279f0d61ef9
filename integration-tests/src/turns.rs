//! Whose turn it is: a test that measures has this machine to itself, all others share it.
//!
//! A time, a rate or a size is asked of a gateway, not of what other tests let the machine do meanwhile. The folder of the
//! tests' programs is the lock, so that turns hold between processes too. Invariant: while a test is [`alone`], no
//! federation and no cluster of another test is there.

use std::cell::Cell;
use std::fs::File;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::FutureExt;

thread_local! {
    /// Whether the test of this thread is alone; it starts its federations from here.
    static IS_ALONE: Cell<bool> = const { Cell::new(false) };
}

/// How often a measurement is tried on a machine that stands still again and again.
const TRIES: usize = 3;
/// A machine whose threads all rest for so long stood still: that is an election.
const STOOD_STILL: Duration = Duration::from_millis(400);

/// The machine is shared until this is dropped.
pub struct Shared {
    _lock: Option<File>,
}

/// Waits until nobody is alone, unless this test is.
pub fn shared() -> Shared {
    let lock = (!IS_ALONE.get()).then(|| {
        let lock = open();
        lock.lock_shared().expect("a folder to lock");
        lock
    });
    Shared { _lock: lock }
}

/// Waits until nobody shares the machine, and measures. To be called before this test starts anything, and on its own
/// thread. Where the machine itself stood still meanwhile, a failure says nothing of a gateway: then it is measured again.
pub async fn alone(measure: impl AsyncFn()) {
    let _alone = Alone::begin();
    tried(measure, watched).await;
}

/// Measures; `watch` begins to look at the machine, and then says how long it stood still at most.
async fn tried<Longest: Fn() -> Duration>(measure: impl AsyncFn(), watch: impl Fn() -> Longest) {
    for _ in 1..TRIES {
        let longest = watch();
        let Err(failure) = AssertUnwindSafe(measure()).catch_unwind().await else { return };
        let longest = longest();
        if longest < STOOD_STILL {
            resume_unwind(failure);
        }
        eprintln!("this machine stood still for {longest:?}: once more");
    }
    measure().await;
}

/// The machine is this test's until this is dropped.
struct Alone {
    _lock: File,
    /// It ends on its own thread.
    _here: PhantomData<*const ()>,
}

impl Alone {
    fn begin() -> Alone {
        assert!(!IS_ALONE.get(), "this test is alone already");
        let lock = open();
        lock.lock().expect("a folder to lock");
        IS_ALONE.set(true);
        Alone { _lock: lock, _here: PhantomData }
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        IS_ALONE.set(false);
    }
}

fn open() -> File {
    let program = std::env::current_exe().expect("a test knows its own file");
    File::open(program.parent().expect("a folder")).expect("the folder of this program")
}

/// A thread that does nothing but rest sees how much longer that takes than it should.
fn watched() -> impl Fn() -> Duration {
    let longest_ms = Arc::new(AtomicU64::new(0));
    let seen = Arc::downgrade(&longest_ms);
    std::thread::spawn(move || {
        let rest = Duration::from_millis(20);
        let mut since = Instant::now();
        while let Some(longest_ms) = seen.upgrade() {
            let late = since.elapsed().saturating_sub(rest);
            longest_ms.fetch_max(late.as_millis() as u64, Ordering::Relaxed);
            since = Instant::now();
            drop(longest_ms);
            std::thread::sleep(rest);
        }
    });
    move || Duration::from_millis(longest_ms.load(Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails so often, on a machine that stands still for so long each time: how often it is tried, and whether it fails.
    async fn check(failures: usize, stood_still: Duration) -> (usize, bool) {
        let calls = Cell::new(0);
        let measure = async || {
            calls.set(calls.get() + 1);
            assert!(calls.get() > failures, "a failure that is wanted here");
        };
        let outcome = AssertUnwindSafe(tried(measure, || move || stood_still)).catch_unwind().await;
        (calls.get(), outcome.is_err())
    }

    #[tokio::test]
    async fn a_failure_counts_unless_the_machine_stood_still_and_in_the_end_in_any_case() {
        let short = STOOD_STILL - Duration::from_millis(1);
        assert_eq!(check(0, STOOD_STILL).await, (1, false));
        assert_eq!(check(1, short).await, (1, true), "at once");
        assert_eq!(check(1, STOOD_STILL).await, (2, false), "once more");
        assert_eq!(check(TRIES, STOOD_STILL).await, (TRIES, true), "not for ever");
    }
}
