//! Faults: what goes wrong, until nothing does any more.
//!
//! Lost, late and doubled messages are where messages are sent; here are the larger ones: gateways that crash and
//! come back, are cut off, or whose replica falls behind; wall clocks that are set; no leader; packs that move and
//! offers that are withdrawn; local users who take GPUs; nodes that fail.
//! Invariant: from [`World::calm_down`] on nothing goes wrong, and what was lost comes back.

use std::rc::Rc;

use crate::{
    gateway::Gateway,
    machine::Configured,
    packs::RULES,
    size::{GPUS_PER_NODE, NODES},
    world::World,
};

const SKEW_MAX_MS: u64 = 60_000;

impl World {
    pub fn let_things_go_wrong(self: &Rc<World>) {
        let (rest_ms, world) = (self.chance.between(1, 2 * self.size.fault_every_ms), Rc::clone(self));
        self.clock.after(rest_ms, move || {
            if world.clock.now_ms() < world.size.faults_ms {
                world.one_fault();
                world.let_things_go_wrong();
            } else {
                world.calm_down();
            }
        });
    }

    fn one_fault(self: &Rc<World>) {
        let (gateway, chance) = (self.any_gateway(), &self.chance);
        let longest_ms = self.size.outage_ms + 1_000;
        let (until_ms, state) = (self.clock.now_ms() + chance.between(100, longest_ms), gateway.state());
        match chance.below(16) {
            0 | 1 => gateway.crash_for(chance.between(self.size.outage_ms / 100, self.size.outage_ms)),
            2 | 3 => {
                self.say(|| format!("{state} is cut off until {until_ms}"));
                gateway.cut_until_ms.set(until_ms);
            }
            4 | 5 => {
                self.say(|| format!("the replica of {state} stalls until {until_ms}"));
                gateway.stalled_until_ms.set(until_ms);
            }
            6 => gateway.set_clock(chance.below(2 * SKEW_MAX_MS) as i64 - SKEW_MAX_MS as i64),
            7 => {
                self.say(|| format!("nobody leads until {until_ms}"));
                self.leaderless_until_ms.set(until_ms);
            }
            8..11 => gateway.configure(Configured { rule: chance.pick(&RULES), ..gateway.configured.get() }),
            11 => {
                let configured = gateway.configured.get();
                gateway.configure(Configured { offered: !configured.offered, ..configured });
            }
            12..15 => gateway.let_local_users_take(),
            _ => gateway.kill_any_process(),
        }
    }

    fn calm_down(self: &Rc<World>) {
        self.say(|| "from here on nothing goes wrong".into());
        self.calm.set(true);
        for gateway in self.gateways() {
            gateway.configure(Configured { offered: true, ..gateway.configured.get() });
            gateway.factory.borrow_mut().local_users_take([0; NODES as usize]);
            gateway.restart();
            gateway.catch_up_later(self.head_revision());
            gateway.ring();
        }
    }
}

impl Gateway {
    fn crash_for(&self, ms: u64) {
        if self.up.get() {
            self.crash();
            let this = self.clone();
            self.world.clock.after(ms, move || this.restart());
        }
    }

    fn set_clock(&self, skew_ms: i64) {
        self.world.say(|| format!("the clock of {} is set to {skew_ms} ms", self.state()));
        if skew_ms < self.skew_ms.replace(skew_ms) {
            let mut history = self.world.history.borrow_mut();
            let here = history.runs.iter_mut().filter(|run| run.pool == self.founder.pool);
            here.for_each(|run| run.clock_set_back = true);
        }
    }

    fn configure(&self, configured: Configured) {
        let Configured { rule, offered } = configured;
        self.world.say(|| format!("{} is configured: {rule:?}, offered {offered}", self.state()));
        self.configured.set(configured);
    }

    fn let_local_users_take(&self) {
        let taken = std::array::from_fn(|_| self.world.chance.below(u64::from(GPUS_PER_NODE) + 1) as u32);
        self.world.say(|| format!("local users of {} take {taken:?}", self.state()));
        self.factory.borrow_mut().local_users_take(taken);
        self.ring();
    }
}
