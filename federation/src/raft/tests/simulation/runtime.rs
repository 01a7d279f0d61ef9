//! The runtime below Raft in tests: tokio's, and for a simulated member one with seeded chance, timers of its own speed
//! and tasks that a crash ends.

use std::future::Future;
use std::io;
use std::time::Duration;

use futures_util::FutureExt;
use openraft_rt::deterministic_rng::DeterministicRng;
use openraft_rt::{AsyncRuntime, Instant, OptionalSend};
use openraft_rt_tokio::TokioRuntime;

use super::life::{self, Life};
use super::watch::FairWatch;

pub type Seeded = DeterministicRng<TokioRuntime>;

#[derive(Debug)]
pub struct SimulatedRuntime(TokioRuntime);

impl AsyncRuntime for SimulatedRuntime {
    type JoinError = <TokioRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <TokioRuntime as AsyncRuntime>::Sleep;
    type Instant = <TokioRuntime as AsyncRuntime>::Instant;
    type TimeoutError = <TokioRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = <TokioRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = <Seeded as AsyncRuntime>::ThreadLocalRng;
    type Mpsc = <TokioRuntime as AsyncRuntime>::Mpsc;
    type Watch = FairWatch;
    type Oneshot = <TokioRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        match life::current() {
            Some(life) => Life::spawn(&life, future),
            None => TokioRuntime::spawn(future),
        }
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        TokioRuntime::sleep(life::skewed(duration))
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        let now = Self::Instant::now();
        let left = if deadline > now { deadline - now } else { Duration::ZERO };
        TokioRuntime::sleep_until(now + life::skewed(left))
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(duration: Duration, future: F) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(life::skewed(duration), future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(deadline: Self::Instant, future: F) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(error: &Self::JoinError) -> bool {
        TokioRuntime::is_panic(error)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        let seed = life::current().map_or_else(|| u64::from_le_bytes(certs::entropy::bytes()), |life| life.next());
        let drawn = Seeded::scope(seed, async { Seeded::thread_rng() });
        drawn.now_or_never().expect("invariant: drawing waits for nothing")
    }

    fn new(threads: usize) -> Self {
        SimulatedRuntime(TokioRuntime::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }

    #[allow(clippy::manual_async_fn)]
    fn spawn_blocking<F, T>(work: F) -> impl Future<Output = Result<T, io::Error>> + Send
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        async {
            if life::is_simulated() {
                return Ok(work());
            }
            TokioRuntime::spawn_blocking(work).await
        }
    }
}
