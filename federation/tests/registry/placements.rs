//! Where a job should go, and why nowhere.

use certs::GatewayName;
use federation::{
    Candidate, Ceiling, Command, Fit, NoPlacement, Offer, PoolId, Shape, Timestamp, Zone, place, placement::verdicts,
};
use policy::{
    Action, ContextFacts, DataClass, Decision, FactoryFacts, JobFacts, Labels, Pack, PackSource, Permit, Purpose,
    Request, ResearcherFacts, decide,
};

use crate::world::{World, genesis_with_a_second_host, offer, pool, state, submit};

/// A host's permit, from a pack that permits everything.
fn permit(pool: &PoolId) -> Permit {
    permit_to(Action::Host, pool)
}

fn permit_to(action: Action, pool: &PoolId) -> Permit {
    let source = PackSource {
        state: pool.state(),
        title: "Everything".into(),
        contact: "law@example.eu".into(),
        cedar: r#"@id("all") @title("All") @law("none") @since("2025-01-01") @contact("law@example.eu")
                  permit (principal, action, resource);"#
            .into(),
    };
    let labels = Labels { data_class: DataClass::Public, purpose: Purpose::Research, dual_use: false, project: None };
    let request = Request {
        action,
        researcher: ResearcherFacts {
            home: state("FI"),
            assurance: 2,
            entitlements: vec![],
            clearances: vec![],
            residency: None,
        },
        job: JobFacts { gpus: 1, nodes: 1, walltime_s: 60, labels, input_states: vec![] },
        factory: FactoryFacts {
            state: pool.state(),
            name: pool.factory.name.to_string(),
            certifications: vec![],
            carbon_g_per_kwh: 50,
            price_milli_eur_per_gpu_hour: 0,
            model: "H100".into(),
        },
        context: ContextFacts { home_share_percent: 0 },
    };
    match decide(&Pack::compile(&source).unwrap(), &request) {
        Decision::Permit(permit) => permit,
        Decision::Denial(denial) => panic!("a pack that permits everything denied: {denial:?}"),
    }
}

/// A world with five pools of Finland and one of Germany, each better than `plain` in one thing.
fn world() -> World {
    let mut world = World::new();
    let plain = |name| offer(pool(name), 1, 2, 8);
    let mut offers = vec![plain("plain"), plain("clean"), plain("cheap"), plain("small"), plain("busy")];
    offers[1].carbon_g_per_kwh = 5;
    offers[2].price_milli_eur_per_gpu_hour = 1;
    offers[3].model.memory_gib = 40;
    (offers[3].model.name, offers[3].nodes) = ("A100 40GB".into(), 1);
    world.commit("FI", offers.into_iter().map(Command::PublishOffer).collect());
    let jupiter = Offer { nodes: 4, walltime_max_s: 600, ..offer(german(), 1, 4, 4) };
    world.commit("DE", vec![Command::PublishOffer(jupiter)]);
    world.tell("submit z 16 on busy")
}

fn german() -> PoolId {
    PoolId::parse("DE/julich/jupiter").unwrap()
}

fn shape(gpus: u32, memory_gib_min: u32) -> Shape {
    Shape { memory_gib_min, ..submit(federation::JobId::new(0, [0; 10]), gpus, vec![]).shape }
}

/// Places a shape with every pool permitted; the answer in words.
fn placed(shape: &Shape, zones: &[&str]) -> String {
    let world = world();
    let permits: Vec<_> = world.registry.offers().map(|it| (it.offer.pool.into(), permit(&it.offer.pool))).collect();
    let zones: Vec<Zone> = zones.iter().map(|zone| Zone::parse(zone).unwrap()).collect();
    match place(&world.registry, state("FR"), shape, &permits, &zones) {
        Ok(placement) => {
            let names: Vec<&str> = placement.candidates.iter().map(|it| it.pool.name.as_str()).collect();
            format!("{} now: {}", placement.fit_now, names.join(" "))
        }
        Err(nowhere) => nowhere.to_string(),
    }
}

#[test]
fn pools_are_ranked() {
    // Now before later; then less spare memory, less carbon, lower price, more free GPUs, the name.
    assert_eq!(placed(&shape(4, 80), &["FI"]), "3 now: clean cheap plain busy");
    assert_eq!(placed(&shape(4, 40), &["FI"]), "4 now: small clean cheap plain busy");
    assert_eq!(placed(&shape(4, 0), &["DE", "FI/lumi"]), "4 now: small clean cheap plain busy");
    assert_eq!(placed(&Shape { walltime_s: 600, ..shape(4, 80) }, &["DE"]), "1 now: jupiter");
    assert_eq!(placed(&Shape { model: Some("a100".into()), ..shape(4, 0) }, &[]), "1 now: small");
}

#[test]
fn nowhere_has_a_reason() {
    let model = |name: &str| Shape { model: Some(name.into()), ..shape(1, 0) };
    assert_eq!(placed(&model("mi300x"), &[]), NoPlacement::NoSuchDevice.to_string());
    assert_eq!(placed(&shape(1, 141), &[]), NoPlacement::TooLittleMemory { max_gib: 80 }.to_string());
    assert_eq!(placed(&shape(17, 0), &[]), NoPlacement::TooLarge { largest_gang: 16 }.to_string());
    assert_eq!(placed(&shape(4, 0), &["DE"]), NoPlacement::WalltimeTooLong { max_s: 600 }.to_string());
    assert_eq!(placed(&shape(4, 0), &["FR"]), NoPlacement::NothingOffered.to_string());
    assert_eq!(placed(&shape(4, 0), &["SE"]), NoPlacement::ZoneUnknown("SE".into()).to_string());
    assert_eq!(placed(&shape(4, 0), &["FI/nowhere"]), NoPlacement::ZoneUnknown("FI/nowhere".into()).to_string());
}

#[test]
fn only_the_hosts_own_permit_counts() {
    let registry = world().registry;
    let try_with = |permits: &[(PoolId, Permit)]| {
        let permits: Vec<_> = permits.iter().map(|(pool, permit)| ((*pool).into(), permit.clone())).collect();
        place(&registry, state("FR"), &shape(4, 0), &permits, &[])
    };
    assert_eq!(try_with(&[]), Err(NoPlacement::NothingPermitted));
    assert_eq!(try_with(&[(pool("plain"), permit(&german()))]), Err(NoPlacement::NothingPermitted));
    let export = permit_to(Action::Export, &pool("plain"));
    assert_eq!(try_with(&[(pool("plain"), export)]), Err(NoPlacement::NothingPermitted));
    let one = try_with(&[(pool("plain"), permit(&pool("plain")))]).unwrap();
    assert_eq!(one.candidates, vec![pool("plain").into()]);
}

#[test]
fn what_is_below_no_ceiling_now_is_for_later() {
    let world = World::new().tell("offer 10x8; offer 8 on x; submit a 48");
    let mut permits = ["main", "x"].map(|name| (Candidate::from(pool(name)), permit(&pool(name))));
    let mut now = |home: &str, percent| {
        permits[0].0.below = Some(Ceiling::parse(percent).unwrap());
        let placed = place(&world.registry, state(home), &shape(4, 0), &permits, &[]).unwrap();
        let names: Vec<_> = placed.candidates.iter().map(|it| it.pool.name.to_string()).collect();
        format!("{} now: {}", placed.fit_now, names.join(" "))
    };
    assert_eq!(now("FR", 61), "2 now: main x");
    assert_eq!(now("FR", 60), "1 now: x main");
    assert_eq!(now("DE", 60), "2 now: main x");
}

#[test]
fn every_pool_has_a_verdict() {
    let registry = world().registry;
    let found = verdicts(&registry, &shape(12, 80), &[]);
    let of = |name: &PoolId| found.iter().find(|(pool, _)| pool == name).map(|(_, fit)| fit.clone());
    assert_eq!(of(&pool("plain")), Some(Fit::FitsNow));
    assert_eq!(of(&pool("busy")), Some(Fit::FitsLater { free: 0 }));
    assert_eq!(of(&pool("small")), Some(Fit::TooLittleMemory { memory_gib: 40 }));
    assert_eq!(of(&german()), Some(Fit::WalltimeTooLong { max_s: 600 }));
}

#[test]
fn a_silent_host_comes_last_and_is_called_so() {
    let said = "offer 8; report 1x8; submit a 4; quiet DE; quiet FR";
    let registry = World::new().tell(said).registry;
    assert_eq!(registry.fit(&pool("main"), &shape(4, 0)), Some(Fit::Silent));
    // Another gateway's pool is full, and goes before.
    let mut world = World::of(&genesis_with_a_second_host()).tell("offer 8; report 1x8; quiet DE; quiet FR");
    let known = world.registry.offer(&pool("main")).unwrap().offer.clone();
    let busy = Offer { pool: pool("busy"), served_by: GatewayName::parse("gw-2").unwrap(), ..known };
    world.commit("FI", vec![Command::PublishOffer(busy)]);
    world.commit("FI", vec![Command::Submit(submit(federation::JobId::new(1, [1; 10]), 8, vec![pool("busy")]))]);
    let permits = ["main", "busy"].map(|name| (pool(name).into(), permit(&pool(name))));
    let placed = place(&world.registry, state("FR"), &shape(8, 0), &permits, &[]).unwrap();
    assert_eq!((placed.candidates, placed.fit_now), (vec![pool("busy").into(), pool("main").into()], 0));
}

#[test]
fn an_offer_that_ends_takes_only_what_ends_before() {
    let mut world = World::new();
    let ending = Offer { until: Some(Timestamp(4_000_000)), ..offer(pool("main"), 1, 1, 8) };
    world.commit("FI", vec![Command::PublishOffer(ending)]);
    let fit = |world: &World| world.registry.fit(&pool("main"), &shape(1, 0)).unwrap();
    assert_eq!(fit(&world), Fit::FitsNow);
    let later = world.tell("wait 1000; report 1x8");
    assert_eq!(fit(&later), Fit::EndsTooSoon { until: Timestamp(4_000_000) });
}

#[test]
fn a_device_answers_to_its_words() {
    let model = offer(pool("main"), 1, 1, 8).model;
    for asked in ["h100", "H100", "nvidia-h100", "NVIDIA H100 SXM5", "sxm5 80gb"] {
        assert!(model.answers_to(asked), "{asked}");
    }
    for asked in ["h10", "h1000", "a100", "h100 80gb", "amd h100", "h100 sxm5 80gb extra"] {
        assert!(!model.answers_to(asked), "{asked}");
    }
}
