//! Later registries that are what became of an earlier one, and some that are not.

use std::sync::Arc;

use certs::{Digest, MemberState};
use policy::{DataClass, Labels, PackSource, Purpose};

use super::founding::{STATES, bundle_after, gateway, genesis, key, sealed};
use crate::apply::Verdict;
use crate::candidate::Candidate;
use crate::command::{Command, Rerank, Submit};
use crate::id::{JobId, PoolId, Pseudonym};
use crate::job::JobState;
use crate::offer::{DeviceModel, Offer};
use crate::pack::{self, PublishPack};
use crate::raft::hindsight::{Contradiction, check};
use crate::reason::Reason;
use crate::registry::Registry;
use crate::shape::Shape;
use crate::silence::Silence;
use crate::time::{Revision, Timestamp};
use crate::{attempt::End, usage::Flow};

fn state(text: &str) -> MemberState {
    gateway(text).state
}

/// A federation's life: the same steps for the same seed.
struct Life {
    registry: Registry,
    chance: u64,
    serial: u64,
    jobs: u64,
}

impl Life {
    fn new(seed: u64) -> Life {
        Life { registry: Registry::from_genesis(&genesis()), chance: seed, serial: 0, jobs: 0 }
    }

    /// Knuth's MMIX generator.
    fn below(&mut self, bound: u64) -> u64 {
        self.chance = self.chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.chance >> 33) % bound
    }

    fn step(&mut self) {
        let of = STATES[self.below(3) as usize];
        let open: Vec<_> = self.registry.jobs().filter(|job| !job.state.is_final()).map(|job| job.id).collect();
        let (of, command) = match self.below(4) {
            0 => (of, self.terms(of)),
            1 => (of, self.submit(of)),
            _ if open.is_empty() => return,
            _ => {
                let job = open[self.below(open.len() as u64) as usize];
                self.progress(job)
            }
        };
        self.serial += 1;
        let envelope = sealed(of, self.serial, vec![command], &key(of));
        self.registry.apply(Revision(self.registry.revision.0 + 1), &envelope, Verdict::Verified);
    }

    fn terms(&mut self, of: &str) -> Command {
        let pool = PoolId::parse(&format!("{of}/site/pool-{}", self.below(2))).unwrap();
        let sequence = self.registry.offer(&pool).map_or(1, |known| known.offer.sequence + 1);
        match self.below(6) {
            0 => Command::PublishPack(self.pack(of)),
            1 => Command::PublishBundle(bundle_after(&self.registry.member(state(of)).unwrap().bundle)),
            2 => Command::WithdrawOffer { pool, sequence },
            _ => Command::PublishOffer(offer(pool, sequence, 1 + self.below(3) as u32)),
        }
    }

    fn submit(&mut self, of: &str) -> Command {
        self.jobs += 1;
        let (candidates, decided_on) = self.decided();
        let job = JobId::new(self.jobs, [of.as_bytes()[1]; 10]);
        Command::Submit(submit(job, self.below(9) as u32, candidates, decided_on))
    }

    /// The next thing that happens to a job, by whoever may say so.
    fn progress(&mut self, job: JobId) -> (&'static str, Command) {
        let known = self.registry.job(&job).unwrap();
        let (home, state, at) = (known.home, known.state, Timestamp(self.serial * 60_000));
        let held = known.holding().map(|attempt| (attempt.pool.state(), attempt.number));
        let text = |of: MemberState| STATES.into_iter().find(|it| gateway(it).state == of).unwrap();
        match (held, state, self.below(8)) {
            (_, _, 0) => (text(home), Command::Cancel { job, at }),
            (Some((host, attempt)), JobState::Granted, 1) => {
                (text(host), Command::Decline { job, attempt, reason: Reason::new("busy"), below: None, at })
            }
            (Some((host, attempt)), JobState::Granted, _) => (text(host), Command::Start { job, attempt, at }),
            (Some((host, attempt)), JobState::Starting, _) => (text(host), Command::Run { job, attempt, at }),
            (Some((host, attempt)), _, _) => (text(host), Command::Finish { job, attempt, end: End::Complete, at }),
            (None, _, _) => {
                let (candidates, decided_on) = self.decided();
                (text(home), Command::Rerank(Rerank { job, candidates, decided_on, reason: None }))
            }
        }
    }

    /// Every pool, on the packs as they are.
    fn decided(&self) -> (Vec<Candidate>, Vec<(MemberState, u64)>) {
        let candidates = self.registry.offers().map(|it| it.offer.pool.into()).collect();
        (candidates, STATES.map(|of| (state(of), pack::sequence(&self.registry, state(of)))).to_vec())
    }

    fn pack(&self, of: &str) -> PublishPack {
        let before = self.registry.pack(state(of));
        let source = PackSource {
            state: state(of),
            title: format!("after {}", self.serial),
            contact: "law@example.eu".into(),
            cedar: String::new(),
        };
        let previous = before.map(|it| it.digest);
        PublishPack { sequence: before.map_or(1, |it| it.sequence + 1), previous, source }
    }
}

pub fn offer(pool: PoolId, sequence: u64, nodes: u32) -> Offer {
    let model = DeviceModel {
        name: "H100".into(),
        vendor: "NVIDIA".into(),
        memory_gib: 80,
        scheduler_units: 1,
        partition: None,
    };
    Offer {
        pool,
        served_by: gateway("DE").name,
        sequence,
        model,
        nodes,
        gpus_per_node: 4,
        task_slots: 2,
        walltime_max_s: 7_200,
        certifications: vec![],
        carbon_g_per_kwh: 50,
        price_milli_eur_per_gpu_hour: 2_000,
        city: "Kajaani".into(),
        until: None,
        keeps_leases: true,
    }
}

pub fn submit(job: JobId, gpus: u32, candidates: Vec<Candidate>, decided_on: Vec<(MemberState, u64)>) -> Submit {
    let labels = Labels { data_class: DataClass::Public, purpose: Purpose::Research, dual_use: false, project: None };
    let shape = Shape {
        gpus,
        nodes: 0,
        model: None,
        memory_gib_min: 0,
        walltime_s: 3_600,
        cpu_cores: 0,
        ram_gib: 0,
        disk_gib: 0,
    };
    Submit {
        job,
        home_gateway: gateway("DE").name,
        pseudonym: Pseudonym([7; 16]),
        shape,
        labels,
        payload: Digest::of(job.to_string().as_bytes()),
        priority: 5,
        restartable: true,
        exclusive: false,
        candidates,
        decided_on,
        at: Timestamp(0),
    }
}

#[test]
fn what_became_of_a_registry_contradicts_nothing() {
    for seed in 0..4 {
        let mut life = Life::new(seed);
        let mut seen = vec![life.registry.clone()];
        for _ in 0..12 {
            (0..40).for_each(|_| life.step());
            seen.push(life.registry.clone());
        }
        let later = &life.registry;
        assert!(later.jobs().any(|job| job.state == JobState::Complete) && later.offers().len() > 2);
        for (place, earlier) in seen.iter().enumerate() {
            for later in &seen[place..] {
                let between = format!("seed {seed}: {} and {}", earlier.revision, later.revision);
                assert_eq!(check(earlier, later), Ok(()), "{between}");
            }
        }
    }
}

#[test]
fn what_was_attested_is_not_forgotten() {
    let mut life = Life::new(1);
    (0..200).for_each(|_| life.step());
    let (mut mine, about) = (life.registry.clone(), gateway("FI"));
    let silence = Silence { quiet: [state("FR")].into(), gone: [].into() };
    mine.silences.insert(about.clone(), silence);
    let mut theirs = mine.clone();
    theirs.silences.get_mut(&about).unwrap().quiet.insert(state("DE"));
    assert_eq!(check(&mine, &theirs), Ok(()), "another state has attested it since");
    theirs.silences.clear();
    assert_eq!(check(&mine, &theirs), Err(Contradiction::Silence(about.to_string())));
    // Unless it was heard since.
    theirs.revision = Revision(theirs.revision.0 + 1);
    let reported =
        theirs.offers.values_mut().find(|it| it.offer.served_by == about.name && it.offer.pool.state() == about.state);
    reported.unwrap().reported_at = theirs.revision;
    assert_eq!(check(&mine, &theirs), Ok(()));
}

/// Threat 3: each of these would do somebody a favour.
#[test]
fn what_was_seen_is_not_unseen() {
    let mut life = Life::new(1);
    (0..200).for_each(|_| life.step());
    let mine = life.registry.clone();
    (0..20).for_each(|_| life.step());
    let theirs = life.registry.clone();
    let refused = |change: &dyn Fn(&mut Registry)| {
        let mut doctored = theirs.clone();
        change(&mut doctored);
        check(&mine, &doctored).expect_err("a doctored registry")
    };
    let fr = state("FR");
    let settled = |since: Revision| since <= mine.revision;

    assert_eq!(refused(&|it| it.epoch = 2), Contradiction::Federation);
    let first = Registry::from_genesis(&genesis()).members[&fr].clone();
    let old_bundle = |it: &mut Registry| drop(it.members.insert(fr, first.clone()));
    assert_eq!(refused(&old_bundle), Contradiction::Member(fr), "an old bundle brings back a revoked key");
    assert_eq!(refused(&|it| it.packs.remove(&fr).map_or((), drop)), Contradiction::Pack(fr));
    let laxer = |it: &mut Registry| {
        let pack = it.packs.get_mut(&fr).unwrap();
        pack.source.cedar = "permit(principal, action, resource);".into();
        pack.digest = pack::digest(&pack.source);
        pack.at_revision = pack.at_revision.min(mine.revision);
    };
    assert_eq!(refused(&laxer), Contradiction::Pack(fr));
    assert_eq!(refused(&|it| it.packs.get_mut(&fr).unwrap().digest = Digest::of(b"x")), Contradiction::Pack(fr));

    let pool = theirs.offers().find(|it| settled(it.published_at)).unwrap().offer.pool;
    let cheaper = |it: &mut Registry| it.offers.get_mut(&pool).unwrap().offer.price_milli_eur_per_gpu_hour = 1;
    assert_eq!(refused(&cheaper), Contradiction::Offer(pool));
    let tomorrow = Revision(theirs.revision.0 + 1);
    assert_eq!(refused(&|it| it.offers.get_mut(&pool).unwrap().published_at = tomorrow), Contradiction::Offer(pool));

    let job = theirs.jobs().find(|it| settled(it.changed_at) && it.state.is_final()).unwrap().id;
    let with = |change: fn(&mut crate::job::Job)| {
        move |it: &mut Registry| change(Arc::make_mut(it.jobs.get_mut(&job).unwrap()))
    };
    for doctored in [
        with(|it| it.home = gateway("FR").state),
        with(|it| it.pseudonym = Pseudonym([8; 16])),
        with(|it| it.shape.gpus += 1),
        with(|it| it.labels.dual_use = true),
        with(|it| it.payload = Digest::of(b"something else")),
        with(|it| it.state = JobState::Queued),
        with(|it| (it.state, it.changed_at) = (JobState::Queued, Revision(215))),
        with(|it| it.end = Some(End::Canceled)),
        with(|it| it.attempts.clear()),
        with(|it| it.attempts.iter_mut().for_each(|attempt| attempt.leased = !attempt.leased)),
        with(|it| it.submitted_at = Revision(u64::MAX)),
        with(|it| it.candidates = vec![PoolId::parse("FI/site/pool-0").unwrap().into(); 1_000]),
    ] {
        // Fields that happened to be so already prove nothing.
        let mut changed = theirs.clone();
        doctored(&mut changed);
        if changed.jobs[&job] != theirs.jobs[&job] {
            assert_eq!(refused(&doctored), Contradiction::Job(job));
        }
    }

    let id = key("FR").public().id();
    assert_eq!(refused(&|it| it.serials.remove(&id).map_or((), drop)), Contradiction::Serials(fr));
    assert_eq!(refused(&|it| it.serials.get_mut(&id).unwrap().highest = 0), Contradiction::Serials(fr));
    let (home, host) = *theirs.usage.keys().next().unwrap();
    let nothing = |it: &mut Registry| *it.usage.get_mut(&(home, host)).unwrap() = Flow::default();
    assert_eq!(refused(&nothing), Contradiction::Usage { home, host });
}
