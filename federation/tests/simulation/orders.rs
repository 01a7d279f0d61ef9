//! Orders: what home gives the host of one attempt.
//!
//! As `gateway/src/orders.rs` has it. The mandate is compared with the registry as the gateway does, but not sealed:
//! signatures are not what this is about.
//! Invariant: an order comes whole, late or not at all.

use std::{cell::RefCell, rc::Rc};

use federation::{Job, JobId, Mandate, Revision};

use crate::{
    bugs::Bug,
    clockwork::Bell,
    gateway::Gateway,
    history::{AttemptId, Left},
    packs,
};

/// The gateway waits twenty seconds.
const ORDER_TIMEOUT_MS: u64 = 300;
const BEHIND_TIMEOUT_MS: u64 = 150;

#[derive(Clone, Debug)]
pub struct Order {
    pub mandate: Mandate,
    pub payload: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoOrder {
    /// The other side has understood and said no.
    Final,
    /// Ask again.
    NotNow,
}

type Given = Result<Order, NoOrder>;

#[derive(Default)]
struct Reply {
    bell: Bell,
    order: RefCell<Option<Given>>,
}

impl Gateway {
    /// Fetches the order of an attempt from the job's home.
    pub async fn fetch(&self, job: &Job, attempt: u32) -> Given {
        let home = self.world.gateway_of(job.home);
        if home.index == self.index {
            return self.give(self, job.id, attempt);
        }
        let reply = Rc::<Reply>::default();
        self.ask(home, (job.id, attempt), self.read(|registry| registry.revision()), &reply);
        let deadline_ms = self.world.clock.now_ms() + ORDER_TIMEOUT_MS;
        let came = self.world.clock.wait(&reply.bell, deadline_ms, || reply.order.take()).await;
        came.unwrap_or(Err(NoOrder::NotNow))
    }

    fn ask(&self, home: Gateway, (job, attempt): AttemptId, seen: Revision, reply: &Rc<Reply>) {
        if self.is_cut_off() || self.world.goes_wrong(10) {
            return;
        }
        let (this, reply) = (self.clone(), Rc::clone(reply));
        self.world.clock.after(self.world.delay_ms(), move || {
            if home.up.get() && !home.is_cut_off() {
                let owner = home.owner();
                this.world.clone().clock.spawn(owner, async move {
                    let by_ms = home.world.clock.now_ms() + BEHIND_TIMEOUT_MS;
                    let given = match home.wait_for(seen, by_ms).await {
                        Ok(()) => home.give(&this, job, attempt),
                        Err(_behind) => Err(NoOrder::NotNow),
                    };
                    home.answer(&this, given, reply);
                });
            }
        });
    }

    fn answer(&self, to: &Gateway, given: Given, reply: Rc<Reply>) {
        if self.is_cut_off() || to.is_cut_off() || self.world.goes_wrong(10) {
            return;
        }
        let this = self.clone();
        self.world.clock.after(self.world.delay_ms(), move || {
            reply.order.replace(Some(given));
            this.world.clock.ring(&reply.bell);
        });
    }

    /// The order of an attempt for the gateway that hosts it; nobody else gets it.
    fn give(&self, to: &Gateway, job: JobId, attempt: u32) -> Given {
        let record = self.read(|registry| {
            let record = registry.job(&job)?;
            let current = record.holding().filter(|it| it.number == attempt && !record.cancel_requested)?;
            (current.host() == to.founder.id).then(|| record.clone())
        });
        let record = record.ok_or(NoOrder::Final)?;
        let task = self.disk.borrow().store.tasks.get(&job).cloned().ok_or(NoOrder::Final)?;
        let rightly = self.may_leave(&record);
        if !rightly && !self.has(Bug::HomeGivesUnasked) {
            return Err(NoOrder::Final);
        }
        self.world.history.borrow_mut().note().left.push(Left { attempt: (job, attempt), rightly });
        let pool = record.holding().expect("filtered above").pool;
        let mandate = Mandate {
            job,
            home: record.home,
            pool,
            attempt,
            pseudonym: record.pseudonym,
            researcher: packs::researcher(record.home),
            payload: record.payload,
            shape: record.shape,
            labels: packs::labels(task.class),
            input_states: vec![],
            issued_at: self.now(),
        };
        Ok(Order { mandate, payload: task.payload })
    }
}
