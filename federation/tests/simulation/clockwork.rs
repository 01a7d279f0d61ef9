//! Simulated time, what is to happen in it, and the tasks that wait for it.
//!
//! A task is an `async` function that waits for nothing but simulated time and [`Bell`]s. One is polled at a time,
//! when an event says so; events of the same moment come in the order in which they were entered.
//! Invariants: no thread, no clock of the machine; a task whose owner has crashed is never polled again.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll, Waker},
};

type TaskId = u64;
type Work = Pin<Box<dyn Future<Output = ()>>>;

/// Whose task it is, so that it ends when he crashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    Gateway(usize),
    Client,
}

enum Event {
    Wake(TaskId),
    Do(Box<dyn FnOnce()>),
}

#[derive(Default)]
pub struct Clockwork {
    now_ms: Cell<u64>,
    issued: Cell<u64>,
    current: Cell<TaskId>,
    agenda: RefCell<BTreeMap<(u64, u64), Event>>,
    tasks: RefCell<BTreeMap<TaskId, (Owner, Work)>>,
}

/// What tasks wait for: whoever changes something rings it, and they look again.
#[derive(Default)]
pub struct Bell(RefCell<Vec<TaskId>>);

impl Clockwork {
    /// Milliseconds since the run began.
    pub fn now_ms(&self) -> u64 {
        self.now_ms.get()
    }

    pub fn after(&self, ms: u64, what: impl FnOnce() + 'static) {
        self.enter(self.now_ms() + ms, Event::Do(Box::new(what)));
    }

    pub fn spawn(&self, owner: Owner, work: impl Future<Output = ()> + 'static) {
        let task = self.number();
        self.tasks.borrow_mut().insert(task, (owner, Box::pin(work)));
        self.enter(self.now_ms(), Event::Wake(task));
    }

    /// A crash: what the owner was doing is broken off wherever it is.
    pub fn end_tasks_of(&self, owner: Owner) {
        let ended: Vec<_> = self.tasks.borrow_mut().extract_if(.., |_, task| task.0 == owner).collect();
        drop(ended);
    }

    /// Carries out the next event; false when nothing is to happen any more.
    pub fn step(&self) -> bool {
        let Some(((at, _), event)) = self.agenda.borrow_mut().pop_first() else {
            return false;
        };
        self.now_ms.set(at);
        match event {
            Event::Do(what) => what(),
            Event::Wake(task) => self.poll(task),
        }
        true
    }

    /// Drops everything, and with it whatever the tasks hold.
    pub fn clear(&self) {
        let (tasks, agenda) = (self.tasks.take(), self.agenda.take());
        drop((tasks, agenda));
    }

    pub async fn sleep(&self, ms: u64) {
        self.wait(&Bell::default(), self.now_ms() + ms, || None::<()>).await;
    }

    /// What `look` finds, looked for now and whenever the bell rings; `None` at the deadline.
    pub async fn wait<T>(&self, bell: &Bell, deadline_ms: u64, mut look: impl FnMut() -> Option<T>) -> Option<T> {
        let mut waits = false;
        poll_fn(|_| {
            let found = look();
            if found.is_some() || self.now_ms() >= deadline_ms {
                return Poll::Ready(found);
            }
            let current = self.current.get();
            bell.0.borrow_mut().push(current);
            if !std::mem::replace(&mut waits, true) {
                self.enter(deadline_ms, Event::Wake(current));
            }
            Poll::Pending
        })
        .await
    }

    pub fn ring(&self, bell: &Bell) {
        for task in bell.0.take() {
            self.enter(self.now_ms(), Event::Wake(task));
        }
    }

    fn poll(&self, task: TaskId) {
        let Some((owner, mut work)) = self.tasks.borrow_mut().remove(&task) else {
            return;
        };
        self.current.set(task);
        if work.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            self.tasks.borrow_mut().insert(task, (owner, work));
        }
    }

    fn enter(&self, at_ms: u64, event: Event) {
        let number = self.number();
        self.agenda.borrow_mut().insert((at_ms, number), event);
    }

    fn number(&self) -> u64 {
        self.issued.set(self.issued.get() + 1);
        self.issued.get()
    }
}
