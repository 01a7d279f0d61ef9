//! A run: members, what is between them, who asks them, and what happens to them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};

use super::chance::Chance;
use super::disk::{Disk, Wrong};
use super::life::Life;
use super::record::{Counts, Invariant, Record};
use crate::apply::Verdict;
use crate::command::Outcome;
use crate::raft::consensus::Sizes;
use crate::raft::tests::founding::{ALL, envelope, gateway, genesis_of, key};
use crate::raft::{Consensus, NodeId, RaftConfig, Rpc, Timers, Transport, TransportError};
use crate::time::Revision;

/// Things go wrong for so long.
const TROUBLE: Duration = Duration::from_secs(48);
/// And then nothing does; by now there is a leader, and what is proposed commits.
const PEACE: Duration = Duration::from_secs(12);
const SIZES: Sizes = Sizes { log_bytes_max: 256 * 1024, segment_bytes: 16 * 1024, snapshot_entries: 60 };

#[derive(Clone, Copy, Debug)]
pub struct Setting {
    pub states: usize,
    pub text: bool,
    pub bug: Option<&'static str>,
    pub watched: Option<Invariant>,
}

pub struct Report {
    pub violation: Option<(Invariant, String)>,
    pub counts: Counts,
    pub digest: u64,
    pub lines: Vec<String>,
}

/// Makes one run.
pub fn run(seed: u64, setting: Setting) -> Report {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let world = World::found(seed, setting);
        let whole = async {
            world.everybody_starts().await;
            world.trouble().await;
            world.peace().await;
        };
        tokio::select! {
            biased;
            () = whole => {}
            () = world.look() => {}
        }
        let lives: Vec<_> = world.seats.values().filter_map(|seat| seat.lock().unwrap().life.take()).collect();
        lives.iter().for_each(|life| life.end());
        let violation = world.record.violation();
        let (counts, digest, lines) = world.record.end();
        Report { violation, counts, digest, lines }
    })
}

struct World {
    setting: Setting,
    chance: Chance,
    record: Arc<Record>,
    seats: BTreeMap<NodeId, Mutex<Seat>>,
    /// From whom to whom nothing arrives.
    blocked: Mutex<BTreeSet<(NodeId, NodeId)>>,
    /// Of a hundred messages so many are lost.
    loss: Mutex<u64>,
    trouble_is_over: Mutex<bool>,
    lives: std::sync::atomic::AtomicU64,
}

struct Seat {
    disk: Arc<Disk>,
    life: Option<Arc<Life>>,
    member: Option<(u64, Consensus)>,
    comes_back_at: Option<Instant>,
    pace: u64,
}

struct Wire {
    from: NodeId,
    world: Arc<World>,
}

impl Transport for Wire {
    fn call(
        &self,
        to: NodeId,
        rpc: Rpc,
        body: Bytes,
        at_most: Duration,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>> {
        let (world, from) = (Arc::clone(&self.world), self.from);
        Box::pin(async move {
            let crossing = world.cross(from, to, rpc, body);
            timeout(at_most, crossing).await.unwrap_or(Err(TransportError::Timeout))
        })
    }
}

fn state(node: NodeId) -> &'static str {
    ALL[node as usize - 1]
}

impl World {
    fn found(seed: u64, setting: Setting) -> Arc<World> {
        let chance = Chance::seeded(seed);
        let seat = |node: u64| {
            let disk = Disk::new(chance.next(), setting.bug == Some("syncs are ignored"));
            let pace = chance.between(900, 1_100);
            (node, Mutex::new(Seat { disk, life: None, member: None, comes_back_at: None, pace }))
        };
        let seats = (1..=setting.states as u64).map(seat).collect();
        let record = Arc::new(Record::new(setting.text, setting.watched));
        let (blocked, loss, trouble_is_over, lives) = Default::default();
        Arc::new(World { setting, chance, record, seats, blocked, loss, trouble_is_over, lives })
    }

    // Messages.

    async fn cross(
        self: &Arc<World>,
        from: NodeId,
        to: NodeId,
        rpc: Rpc,
        body: Bytes,
    ) -> Result<Bytes, TransportError> {
        self.record.count(|counts| {
            counts.messages += 1;
            counts.snapshots += u64::from(rpc == Rpc::Snapshot);
        });
        let hash = crc32fast::hash(&body);
        self.record.say(|| format!("{from} -> {to} {} {hash:08x}", rpc.as_str()));
        if self.setting.bug == Some("votes are lost") && rpc == Rpc::Vote && self.record.floor_is_above(20) {
            std::future::pending::<()>().await;
        }
        self.travel(from, to).await;
        if !self.is_over() && self.chance.one_in(50) {
            let (world, again) = (Arc::clone(self), body.clone());
            tokio::spawn(async move {
                world.travel(from, to).await;
                let _whoever_hears_it = world.hand(from, to, rpc, again);
            });
        }
        let answer = self.hand(from, to, rpc, body).ok_or_else(|| TransportError::Unreachable("it is down".into()))?;
        let answer = answer.await.map_err(|_| TransportError::Timeout)?;
        self.travel(to, from).await;
        self.record.say(|| match &answer {
            Ok(bytes) => format!("{from} <- {to} {} {:?}", rpc.as_str(), &bytes[..bytes.len().min(8)]),
            Err(refused) => format!("{from} <- {to} {} refused: {refused}", rpc.as_str()),
        });
        answer.map_err(TransportError::Refused)
    }

    /// Resolves when a message has arrived, if it ever does.
    async fn travel(&self, from: NodeId, to: NodeId) {
        let lost = self.chance.below(100) < *self.loss.lock().unwrap();
        let late = !self.is_over() && self.chance.one_in(60);
        let us = if late { self.chance.between(20_000, 900_000) } else { self.chance.between(500, 8_000) };
        sleep(Duration::from_micros(us)).await;
        if lost || self.blocked.lock().unwrap().contains(&(from, to)) {
            std::future::pending().await
        }
    }

    /// Gives a message to a member that lives.
    fn hand(
        self: &Arc<World>,
        from: NodeId,
        to: NodeId,
        rpc: Rpc,
        body: Bytes,
    ) -> Option<oneshot::Receiver<Result<Bytes, String>>> {
        let (life, member) = {
            let seat = self.seats.get(&to)?.lock().unwrap();
            (seat.life.clone()?, seat.member.clone()?.1)
        };
        let (answered, answer) = oneshot::channel();
        Life::spawn(&life, async move {
            let result = member.handle(gateway(state(from)), rpc, body).await;
            let _nobody_waits = answered.send(result.map_err(|refused| refused.to_string()));
        });
        Some(answer)
    }

    // Lives.

    async fn everybody_starts(self: &Arc<World>) {
        for node in self.seats.keys().rev() {
            self.start(*node);
        }
        let asked = timeout(Duration::from_secs(20), async {
            for node in self.seats.keys() {
                while !self.proposes_once(*node).await {
                    sleep(Duration::from_millis(100)).await;
                }
            }
        });
        if asked.await.is_err() {
            self.record.break_(Invariant::ItGoesOn, || "nobody leads after the founding".into());
        }
    }

    async fn proposes_once(&self, node: NodeId) -> bool {
        let Some((_, member)) = self.seats[&node].lock().unwrap().member.clone() else {
            return false;
        };
        let serial = self.record.proposes(state(node));
        match member.propose(envelope(state(node), serial)).await {
            Ok(applied) => self.record.is_acknowledged(state(node), serial, &applied),
            Err(_) => return false,
        }
        true
    }

    /// Begins a life from what the disk has.
    fn start(self: &Arc<World>, node: NodeId) {
        let number = self.lives.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut seat = self.seats[&node].lock().unwrap();
        seat.disk.start();
        let planted = self.setting.bug.filter(|bug| *bug != "an entry is skipped" || node == 2 && number > 6);
        let (disk, record) = (Arc::clone(&seat.disk), Arc::clone(&self.record));
        let life = Life::begin(node, seat.pace, planted, disk, record, self.chance.next());
        self.record.say(|| format!("node {node} starts"));
        seat.life = Some(Arc::clone(&life));
        let world = Arc::clone(self);
        let living = Arc::clone(&life);
        Life::spawn(&living, async move {
            let config = RaftConfig { node, data_dir: "simulated".into(), timers: Timers::local() };
            let wire = Arc::new(Wire { from: node, world: Arc::clone(&world) });
            let folder = life.disk.folder();
            let started = Consensus::start_in(folder, SIZES, config, genesis_of(world.setting.states), wire).await;
            let member = match started {
                Ok(member) => member,
                Err(_) if life.disk.is_off() => return,
                Err(cause) if life.disk.is_wrong() => return Arc::clone(&world).ends(node, life, &cause.to_string()),
                Err(cause) => return world.record.break_(Invariant::ItGoesOn, || format!("node {node}: {cause}")),
            };
            world.seats[&node].lock().unwrap().member = Some((number, member.clone()));
            if let Err(cause) = member.initialize_if_first().await {
                world.record.say(|| format!("node {node} founds nothing: {cause}"));
            }
            for _ in 0..2 {
                Life::spawn(&life, Arc::clone(&world).propose(node, member.clone()));
            }
            Life::spawn(&life, Arc::clone(&world).read(node, member.clone()));
            let cause = member.failed().await;
            Arc::clone(&world).ends(node, life, &cause.to_string());
        });
    }

    /// As a gateway does when its disk fails it. Not from within its life.
    fn ends(self: Arc<World>, node: NodeId, life: Arc<Life>, cause: &str) {
        self.record.say(|| format!("node {node} has failed: {cause}"));
        self.record.count(|counts| counts.failed_disks += 1);
        tokio::spawn(async move { self.crash(node, Some(&life)) });
    }

    /// Ends a life, and lets another begin after a while.
    fn crash(&self, node: NodeId, only: Option<&Arc<Life>>) {
        let mut seat = self.seats[&node].lock().unwrap();
        if only.is_some_and(|only| !seat.life.as_ref().is_some_and(|life| Arc::ptr_eq(life, only))) {
            return;
        }
        let Some(life) = seat.life.take() else {
            return;
        };
        life.end();
        let gone = seat.member.take();
        seat.disk.crash();
        seat.comes_back_at = Some(Instant::now() + Duration::from_millis(self.chance.between(100, 4_000)));
        drop(seat);
        drop(gone);
        self.record.say(|| format!("node {node} crashes"));
        self.record.count(|counts| counts.crashes += 1);
    }

    /// Whoever has been down for long enough comes back, whoever has no power goes down, and all are looked at.
    async fn look(self: &Arc<World>) {
        while self.record.violation().is_none() {
            sleep(Duration::from_millis(20)).await;
            for (node, seat) in &self.seats {
                let (off, due, member) = {
                    let seat = seat.lock().unwrap();
                    let due = seat.life.is_none() && seat.comes_back_at.is_some_and(|at| at <= Instant::now());
                    (seat.life.is_some() && seat.disk.is_off(), due, seat.member.clone())
                };
                if off {
                    self.crash(*node, None);
                } else if due {
                    self.start(*node);
                } else if let Some((life, member)) = member {
                    self.record.sees(life, *node, member.sight());
                }
            }
        }
    }

    // Clients.

    fn pause(&self) -> Duration {
        let slower = if self.setting.states > 5 { 8 } else { 1 };
        Duration::from_millis(self.chance.between(10, 300) * slower)
    }

    async fn propose(self: Arc<World>, node: NodeId, member: Consensus) {
        loop {
            sleep(self.pause()).await;
            let serial = self.record.proposes(state(node));
            match member.propose(envelope(state(node), serial)).await {
                Ok(applied) => self.record.is_acknowledged(state(node), serial, &applied),
                Err(_) => self.record.count(|counts| counts.unanswered += 1),
            }
        }
    }

    async fn read(self: Arc<World>, node: NodeId, member: Consensus) {
        loop {
            sleep(self.pause()).await;
            let of = state(1 + self.chance.below(self.setting.states as u64));
            let floor = self.record.floor();
            let is_local = self.setting.bug == Some("reads are local");
            if is_local || member.linearize(Duration::from_secs(2)).await.is_ok() {
                let key = key(of).public().id();
                let (revision, serial) =
                    member.read(|registry| (registry.revision(), registry.last_serial(&key).unwrap_or(0)));
                self.record.has_read(node, floor, revision.0, of, serial);
            }
        }
    }

    // Trouble.

    fn is_over(&self) -> bool {
        *self.trouble_is_over.lock().unwrap()
    }

    fn anybody(&self) -> NodeId {
        1 + self.chance.below(self.setting.states as u64)
    }

    async fn trouble(self: &Arc<World>) {
        let end = Instant::now() + TROUBLE;
        while Instant::now() < end && self.record.violation().is_none() {
            sleep(Duration::from_millis(self.chance.between(50, 2_000))).await;
            self.record.count(|counts| counts.faults += 1);
            self.something_goes_wrong().await;
        }
    }

    async fn something_goes_wrong(self: &Arc<World>) {
        let (one, other) = (self.anybody(), self.anybody());
        let what = self.chance.below(16);
        self.record.say(|| format!("fault {what} at {one}, {other}"));
        let disk = || Arc::clone(&self.seats[&one].lock().unwrap().disk);
        match what {
            0 => self.block([(one, other)]),
            1 => self.block([(one, other), (other, one)]),
            2 => self.block(self.seats.keys().flat_map(|node| [(one, *node), (*node, one)])),
            3 => self.block(self.seats.keys().map(|node| (*node, one))),
            4 => {
                let side: BTreeSet<NodeId> = self.seats.keys().copied().filter(|_| self.chance.one_in(2)).collect();
                let apart = |(a, b): &(NodeId, NodeId)| side.contains(a) != side.contains(b);
                let pairs = self.seats.keys().flat_map(|a| self.seats.keys().map(|b| (*a, *b)));
                self.block(pairs.filter(apart).collect::<Vec<_>>());
            }
            // A link that comes and goes.
            5 => {
                for _ in 0..self.chance.between(2, 6) {
                    self.block([(one, other), (other, one)]);
                    sleep(Duration::from_millis(self.chance.between(20, 400))).await;
                    self.blocked.lock().unwrap().clear();
                    sleep(Duration::from_millis(self.chance.between(20, 400))).await;
                }
            }
            6 => *self.loss.lock().unwrap() = self.chance.pick(&[0, 2, 10, 40]),
            7 | 8 => self.crash(one, None),
            9 => {
                let all: Vec<NodeId> = self.seats.keys().copied().collect();
                let spared = self.chance.one_in(2);
                all.into_iter().filter(|_| !spared || self.chance.one_in(2)).for_each(|node| self.crash(node, None));
            }
            10 => disk().cut_power_after(self.chance.below(12)),
            11 => disk().set_slow_us(if self.chance.one_in(2) { 300_000 } else { 400 }),
            12 => {
                let wrong =
                    self.chance.pick(&[Wrong::Full, Wrong::FailsToWrite, Wrong::FailsToSync, Wrong::OpensNothing]);
                disk().set_wrong(Some(wrong));
            }
            13 => {
                let member = self.seats[&one].lock().unwrap().member.clone();
                if let Some((_, member)) = member {
                    member.hand_over().await;
                }
            }
            _ => self.heal(),
        }
    }

    fn block(&self, pairs: impl IntoIterator<Item = (NodeId, NodeId)>) {
        self.blocked.lock().unwrap().extend(pairs);
    }

    fn heal(&self) {
        self.blocked.lock().unwrap().clear();
        *self.loss.lock().unwrap() = 0;
    }

    // Peace.

    /// Nothing goes wrong any more: everybody is back, commits, and has the same.
    async fn peace(self: &Arc<World>) {
        *self.trouble_is_over.lock().unwrap() = true;
        self.heal();
        self.record.say(|| "peace".into());
        for seat in self.seats.values() {
            let seat = seat.lock().unwrap();
            seat.disk.set_slow_us(400);
            seat.disk.set_wrong(None);
            seat.disk.keep_power();
        }
        let back = timeout(PEACE, async {
            for node in self.seats.keys() {
                while !self.proposes_once(*node).await {
                    sleep(Duration::from_millis(100)).await;
                }
            }
        });
        if back.await.is_err() {
            return self.record.break_(Invariant::ItGoesOn, || format!("not everybody commits within {PEACE:?}"));
        }
        self.are_equal().await;
    }

    async fn are_equal(self: &Arc<World>) {
        let members: Vec<_> = self.seats.values().filter_map(|seat| seat.lock().unwrap().member.clone()).collect();
        let mut bytes: BTreeMap<Revision, Vec<u8>> = BTreeMap::new();
        // Clients go on meanwhile: what is acknowledged from here on need not be there yet.
        let acknowledged = self.record.acknowledged();
        for (_, member) in &members {
            if member.linearize(Duration::from_secs(5)).await.is_err() {
                return self.record.break_(Invariant::ItGoesOn, || "a member is not up to date".into());
            }
        }
        for (_, member) in &members {
            let (revision, found) = member.read(|registry| (registry.revision(), registry.to_bytes()));
            if bytes.entry(revision).or_insert_with(|| found.clone()) != &found {
                let node = member.node();
                self.record.break_(Invariant::ReplicasAreEqual, || format!("node {node} differs at {revision:?}"));
            }
        }
        let mut registry = members[0].1.read(Clone::clone);
        for (state, serial) in acknowledged {
            let again = Revision(registry.revision().0 + 1);
            let outcomes = registry.apply(again, &envelope(&state, serial), Verdict::Verified);
            // Serials that the registry has no room for any more are below the last ones by a thousand; no run has so many.
            if outcomes != [Outcome::Replayed] {
                self.record.break_(Invariant::AcknowledgedStays, || format!("{state} {serial} is gone: {outcomes:?}"));
            }
        }
    }
}
