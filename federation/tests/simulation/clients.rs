//! Clients: each wants one task done, asks until it is told yes or that nowhere takes it, and sometimes changes its
//! mind.
//!
//! A request or its answer may be lost; a client repeats itself under the same key, sometimes twice at once, and
//! sometimes after it was told yes.
//! Invariant: a client uses one key for one task, and its payload is nobody else's.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use federation::{End, JobId};
use policy::DataClass;
use serde::{Deserialize, Serialize};

use crate::{
    clockwork::{Bell, Owner},
    gateway::Gateway,
    home::{Refusal, Submission},
    invariants::{Invariant, Violation},
    world::World,
};

const ANSWER_TIMEOUT_MS: u64 = 1_000;
const RETRY_MS: u64 = 300;
/// A client that hears this often that nowhere takes its task, believes it.
const NOWHERE_MAX: u32 = 3;

/// What is in a payload: what the task will do when it runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Task {
    key: String,
    pub run_ms: u64,
    fails: bool,
}

#[derive(Default)]
struct Reply {
    bell: Bell,
    answer: Cell<Option<Result<JobId, Refusal>>>,
}

impl Task {
    pub fn from_payload(payload: &[u8]) -> Task {
        postcard::from_bytes(payload).expect("a payload of the simulation")
    }

    pub fn end(&self) -> End {
        if self.fails { End::ExecutorError { exit_code: 1 } } else { End::Complete }
    }
}

impl World {
    /// All that will be asked, at moments while things go wrong.
    pub fn invite_clients(self: &Rc<World>) {
        for nth in 0..self.size.jobs {
            let (submission, home) = (self.any_submission(nth), self.any_gateway());
            let arrives_ms = self.chance.below(self.size.faults_ms * 3 / 4);
            self.clients.set(self.clients.get() + 1);
            let world = Rc::clone(self);
            self.clock.spawn(Owner::Client, async move {
                world.clock.sleep(arrives_ms).await;
                ask_until_answered(&home, Rc::new(submission)).await;
                world.clients.set(world.clients.get() - 1);
            });
        }
    }

    fn any_submission(&self, nth: usize) -> Submission {
        let chance = &self.chance;
        let key = format!("key-{nth}");
        let long = chance.one_in(self.size.long_once_in);
        let run_ms = if long { chance.between(1_000, self.size.run_ms) } else { chance.between(1, 900) };
        let task = Task { key: key.clone(), run_ms, fails: chance.one_in(6) };
        let gpus: u32 = chance.pick(&[0, 1, 1, 2, 3, 4, 4, 6, 8]);
        let spread = gpus > 0 && gpus.is_multiple_of(2) && chance.one_in(3);
        Submission {
            key,
            payload: postcard::to_stdvec(&task).expect("a task serialises"),
            gpus,
            nodes: if spread { 2 } else { 0 },
            walltime_s: (run_ms / 1_000) as u32 + 1,
            class: chance.pick(&[DataClass::Public, DataClass::Public, DataClass::Internal]),
            priority: chance.pick(&[4, 5, 5, 6]),
            exclusive: chance.one_in(2),
            restartable: chance.one_in(2),
        }
    }
}

async fn ask_until_answered(home: &Gateway, submission: Rc<Submission>) {
    let (world, chance) = (&home.world, &home.world.chance);
    let mut nowhere = 0;
    let job = loop {
        match ask(home, &submission).await {
            Some(Ok(job)) => break job,
            Some(Err(Refusal::Nowhere)) if nowhere == NOWHERE_MAX => return,
            Some(Err(Refusal::Nowhere)) => nowhere += 1,
            Some(Err(Refusal::NotNow)) | None => {}
        }
        world.clock.sleep(chance.between(1, RETRY_MS)).await;
    };
    if chance.one_in(4) {
        world.clock.sleep(chance.between(1, 1_000)).await;
        let again = ask(home, &submission).await;
        note_second_answer(home, job, again);
    }
    if chance.one_in(4) {
        world.clock.sleep(chance.between(1, 2_000)).await;
        cancel(home, job).await;
    }
}

/// Who was told yes is told of the same task again, or to ask later. Told no he would not know what to believe.
fn note_second_answer(home: &Gateway, job: JobId, again: Option<Result<JobId, Refusal>>) {
    match again {
        Some(Ok(other)) if other != job => {
            let text = format!("a key was {job}, and is {other}");
            home.world.found(Err(Violation { invariant: Invariant::OneTaskPerKey, text }));
        }
        Some(Err(Refusal::Nowhere)) => {
            home.world.say(|| format!("{job} was acknowledged, and is now said to fit nowhere"));
            home.world.history.borrow_mut().note().contradicted += 1;
        }
        _ => {}
    }
}

/// One try, or two at once; the first answer that comes.
async fn ask(home: &Gateway, submission: &Rc<Submission>) -> Option<Result<JobId, Refusal>> {
    let (world, reply) = (&home.world, Rc::<Reply>::default());
    let copies = if world.goes_wrong(5) { 2 } else { 1 };
    for _ in 0..copies {
        if world.goes_wrong(8) {
            continue;
        }
        let (home, submission, reply) = (home.clone(), Rc::clone(submission), Rc::clone(&reply));
        world.clock.after(world.delay_ms(), move || serve(home, submission, reply));
    }
    world.clock.wait(&reply.bell, world.clock.now_ms() + ANSWER_TIMEOUT_MS, || reply.answer.take()).await
}

fn serve(home: Gateway, submission: Rc<Submission>, reply: Rc<Reply>) {
    if !home.up.get() {
        return;
    }
    let (owner, world) = (home.owner(), Rc::clone(&home.world));
    world.clock.spawn(owner, async move {
        let answer = home.submit(&submission).await;
        if !home.world.goes_wrong(8) {
            let world = Rc::clone(&home.world);
            home.world.clock.after(home.world.delay_ms(), move || {
                reply.answer.set(Some(answer));
                world.clock.ring(&reply.bell);
            });
        }
    });
}

/// A cancellation is asked for once, when its home is there.
async fn cancel(home: &Gateway, job: JobId) {
    let done = Rc::new((Bell::default(), RefCell::new(false)));
    while !home.up.get() {
        home.world.clock.sleep(RETRY_MS).await;
    }
    let (this, heard) = (home.clone(), Rc::clone(&done));
    home.world.clock.spawn(home.owner(), async move {
        this.cancel(job).await;
        heard.1.replace(true);
        this.world.clock.ring(&heard.0);
    });
    let deadline_ms = home.world.clock.now_ms() + ANSWER_TIMEOUT_MS;
    home.world.clock.wait(&done.0, deadline_ms, || done.1.borrow().then_some(())).await;
}
