//! Mandates: who may speak for a researcher, and about which job.

use certs::{Digest, Envelope, Header, Kind};
use federation::{BadMandate, Mandate, Timestamp};
use policy::ResearcherFacts;

use crate::world::{POOL, World, federation as name, gateway_key, header, pool, state};

fn researcher_of(home: &str) -> ResearcherFacts {
    ResearcherFacts { home: state(home), assurance: 1, entitlements: vec![], clearances: vec![], residency: None }
}

/// A French job that Finland hosts, and the mandate for it.
fn world() -> (World, Mandate) {
    let world = World::new().tell("offer 8; submit a 4 by FR");
    let job = world.registry.job(&world.jobs["a"]).unwrap();
    let mandate = Mandate {
        job: job.id,
        home: job.home,
        pool: pool(POOL),
        attempt: 1,
        pseudonym: job.pseudonym,
        researcher: researcher_of("FR"),
        payload: job.payload,
        shape: job.shape.clone(),
        labels: job.labels.clone(),
        input_states: vec![state("DE")],
        issued_at: Timestamp(5),
    };
    (world, mandate)
}

#[test]
fn a_mandate_is_for_one_attempt_of_one_job() {
    let (world, mandate) = world();
    let job = world.registry.job(&world.jobs["a"]).unwrap();
    assert_eq!(mandate.matches(job), Ok(()));
    let differs = |mandate: Mandate, what| assert_eq!(mandate.matches(job), Err(BadMandate::Mismatch(what)));
    differs(Mandate { attempt: 2, ..mandate.clone() }, "attempt");
    differs(Mandate { pool: pool("b"), ..mandate.clone() }, "attempt");
    differs(Mandate { home: state("DE"), ..mandate.clone() }, "home");
    differs(Mandate { payload: Digest::of(b"?"), ..mandate.clone() }, "payload");
}

#[test]
fn a_mandate_speaks_for_its_signers_state_only() {
    let (world, mandate) = world();
    let seal = |mandate: &Mandate, of| mandate.seal(name(), 1, 1, &gateway_key(of)).unwrap();
    let open = |envelope: Envelope| Mandate::open(&envelope, world.registry.trust(), 1);
    assert_eq!(open(seal(&mandate, "FR")).unwrap(), mandate);

    // Germany signs as if it were France; France vouches for a German researcher.
    assert_eq!(open(seal(&mandate, "DE")), Err(BadMandate::UnknownKey));
    let foreign = Mandate { researcher: researcher_of("DE"), ..mandate.clone() };
    assert_eq!(open(seal(&foreign, "FR")), Err(BadMandate::NotHome));
    // Germany outside, France as home inside.
    let header = Header { kind: Kind::Mandate, ..header("DE", 1) };
    let body = postcard::to_stdvec(&foreign).unwrap();
    let inside = Envelope::seal(header, &body, &gateway_key("DE")).unwrap();
    assert_eq!(open(inside), Err(BadMandate::NotHome));

    let another_epoch = Mandate::open(&seal(&mandate, "FR"), world.registry.trust(), 2);
    assert_eq!(another_epoch, Err(BadMandate::WrongEnvelope));
    assert_eq!(open(crate::world::seal("FR", 1, vec![])), Err(BadMandate::WrongEnvelope));
}
