//! A watch channel that wakes whoever waits in the order in which they began to. Tokio's wakes them in a random order,
//! whose seed cannot be set. It is Raft's, by the traits of its runtime, and this crate's, by the names that tokio gives
//! the same things (`probe.rs`).

use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard};
use std::task::{Poll, Waker};

use openraft_rt::watch::{RecvError, SendError, Watch, WatchReceiver, WatchSender};
use openraft_rt::{OptionalSend, OptionalSync};

pub struct FairWatch;

struct Shared<T> {
    value: RwLock<T>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    version: u64,
    senders: usize,
    receivers: usize,
    waiting: Vec<(u64, Waker)>,
}

impl<T> Shared<T> {
    fn tell(&self, change: impl FnOnce(&mut State)) {
        let woken = {
            let mut state = self.state.lock().unwrap();
            change(&mut state);
            std::mem::take(&mut state.waiting)
        };
        woken.into_iter().for_each(|(_, waker)| waker.wake());
    }

    fn receiver(self: &Arc<Self>) -> Receiver<T> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let mut state = self.state.lock().unwrap();
        state.receivers += 1;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Receiver { shared: Arc::clone(self), number, seen: state.version }
    }
}

pub struct Sender<T>(Arc<Shared<T>>);

impl<T> Sender<T> {
    pub fn new(init: T) -> Sender<T> {
        let state = State { senders: 1, ..State::default() };
        Sender(Arc::new(Shared { value: RwLock::new(init), state: Mutex::new(state) }))
    }

    pub fn subscribe(&self) -> Receiver<T> {
        self.0.receiver()
    }

    pub fn send_replace(&self, value: T) -> T {
        let before = std::mem::replace(&mut *self.0.value.write().unwrap(), value);
        self.0.tell(|state| state.version += 1);
        before
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.state.lock().unwrap().senders += 1;
        Sender(Arc::clone(&self.0))
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let is_last = self.0.state.lock().unwrap().senders == 1;
        if is_last {
            self.0.tell(|state| state.senders = 0);
        } else {
            self.0.state.lock().unwrap().senders -= 1;
        }
    }
}

pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
    number: u64,
    seen: u64,
}

impl<T> Receiver<T> {
    pub fn borrow(&self) -> RwLockReadGuard<'_, T> {
        self.shared.value.read().unwrap()
    }

    pub async fn changed(&mut self) -> Result<(), RecvError> {
        poll_fn(|context| {
            let mut state = self.shared.state.lock().unwrap();
            if state.version != self.seen {
                self.seen = state.version;
                return Poll::Ready(Ok(()));
            }
            if state.senders == 0 {
                return Poll::Ready(Err(RecvError(())));
            }
            let waker = context.waker().clone();
            match state.waiting.iter_mut().find(|(number, _)| *number == self.number) {
                Some((_, before)) => *before = waker,
                None => state.waiting.push((self.number, waker)),
            }
            Poll::Pending
        })
        .await
    }

    pub async fn wait_for(&mut self, mut is: impl FnMut(&T) -> bool) -> Result<(), RecvError> {
        loop {
            self.seen = self.shared.state.lock().unwrap().version;
            if is(&self.borrow()) {
                return Ok(());
            }
            self.changed().await?;
        }
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        let mut receiver = self.shared.receiver();
        receiver.seen = self.seen;
        receiver
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock().unwrap();
        state.receivers -= 1;
        state.waiting.retain(|(number, _)| *number != self.number);
    }
}

impl Watch for FairWatch {
    type Sender<T: OptionalSend + OptionalSync> = Sender<T>;
    type Receiver<T: OptionalSend + OptionalSync> = Receiver<T>;
    type Ref<'a, T: OptionalSend + 'a> = RwLockReadGuard<'a, T>;

    fn channel<T: OptionalSend + OptionalSync>(init: T) -> (Sender<T>, Receiver<T>) {
        let sender = Sender::new(init);
        let receiver = sender.0.receiver();
        (sender, receiver)
    }
}

impl<T: OptionalSend + OptionalSync> WatchSender<FairWatch, T> for Sender<T> {
    fn send(&self, value: T) -> Result<(), SendError<T>> {
        if self.0.state.lock().unwrap().receivers == 0 {
            return Err(SendError(value));
        }
        *self.0.value.write().unwrap() = value;
        self.0.tell(|state| state.version += 1);
        Ok(())
    }

    fn send_if_modified<F: FnOnce(&mut T) -> bool>(&self, modify: F) -> bool {
        let modified = modify(&mut self.0.value.write().unwrap());
        if modified {
            self.0.tell(|state| state.version += 1);
        }
        modified
    }

    fn borrow_watched(&self) -> RwLockReadGuard<'_, T> {
        self.0.value.read().unwrap()
    }

    fn subscribe(&self) -> Receiver<T> {
        self.0.receiver()
    }
}

impl<T: OptionalSend + OptionalSync> WatchReceiver<FairWatch, T> for Receiver<T> {
    async fn changed(&mut self) -> Result<(), RecvError> {
        Receiver::changed(self).await
    }

    fn borrow_watched(&self) -> RwLockReadGuard<'_, T> {
        self.shared.value.read().unwrap()
    }

    fn borrow_and_update(&mut self) -> RwLockReadGuard<'_, T> {
        self.seen = self.shared.state.lock().unwrap().version;
        self.shared.value.read().unwrap()
    }
}
