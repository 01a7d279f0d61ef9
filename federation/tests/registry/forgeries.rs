//! Envelopes that must change nothing: forged, misdirected, replayed, undecodable.

use certs::{Envelope, Header, Kind, SigningKey};
use federation::{
    Batch, Command, JobId, Outcome, Rejection, Revision, Timestamp, Verdict, command::Command::WithdrawOffer, limits,
};

use crate::world::{World, bundle, gateway_key, header, offer, pool, root_key, seal, state, submit};

/// Applies an envelope to a world with one running job, and expects this answer and no trace.
#[track_caller]
fn refused(envelope: &Envelope, expected: Rejection) {
    let mut world = World::new().tell("offer 8; submit a 8; start a");
    let before = world.registry.clone();
    let next = Revision(before.revision().0 + 1);
    assert_eq!(world.registry.apply(next, envelope, Verdict::Unknown), vec![Outcome::Rejected(expected)]);
    assert_eq!(without_revision(&world.registry, next), without_revision(&before, next));
}

/// The snapshot of a registry as if it were at `revision`.
fn without_revision(registry: &federation::Registry, revision: Revision) -> Vec<u8> {
    let mut registry = registry.clone();
    if registry.revision() < revision {
        registry.advance(revision);
    }
    registry.to_bytes()
}

fn withdraw() -> Vec<Command> {
    vec![WithdrawOffer { pool: pool("main"), sequence: 99 }]
}

fn sealed(header: Header, key: &SigningKey) -> Envelope {
    Envelope::seal(header, &Batch(withdraw()).to_bytes(), key).unwrap()
}

#[test]
fn only_the_owners_key_writes_its_records() {
    // Threat 1: France signs, and says that it is Finland.
    let key = gateway_key("FR");
    refused(&sealed(Header { key: key.public().id(), ..header("FI", 50) }, &key), Rejection::UnknownKey);
    // The root key signs bundles, not commands.
    let root = root_key("FI");
    refused(&sealed(Header { key: root.public().id(), ..header("FI", 50) }, &root), Rejection::UnknownKey);
    // A state that is no member.
    refused(&sealed(Header { owner: state("SE"), ..header("FI", 50) }, &gateway_key("FI")), Rejection::UnknownKey);
}

#[test]
fn a_changed_byte_breaks_the_signature() {
    let sealed = seal("FI", 50, withdraw());
    let bytes = sealed.as_bytes();
    let mut refusals = 0;
    for place in 0..bytes.len() {
        let mut forged = bytes.to_vec();
        forged[place] ^= 1;
        let Ok(envelope) = Envelope::parse(&forged) else {
            continue;
        };
        let mut world = World::new().tell("offer 8");
        let before = world.registry.to_bytes();
        let outcome = world.registry.apply(Revision(world.registry.revision().0 + 1), &envelope, Verdict::Unknown);
        assert!(matches!(outcome[..], [Outcome::Rejected(_)]), "byte {place}: {outcome:?}");
        assert_eq!(world.registry.to_bytes().len(), before.len());
        refusals += 1;
    }
    assert!(refusals > 64, "the signature at least must have been tried");
}

#[test]
fn an_envelope_counts_in_one_place_only() {
    let elsewhere = certs::FederationId::parse("other.example").unwrap();
    let key = gateway_key("FI");
    refused(&sealed(Header { federation: elsewhere, ..header("FI", 50) }, &key), Rejection::UnknownFederation);
    refused(&sealed(Header { epoch: 2, ..header("FI", 50) }, &key), Rejection::WrongEpoch { current: 1 });
    for kind in [Kind::Bundle, Kind::Genesis, Kind::Mandate] {
        refused(&sealed(Header { kind, ..header("FI", 50) }, &key), Rejection::WrongKind);
    }
}

#[test]
fn a_body_that_is_not_a_batch_is_refused() {
    let key = gateway_key("FI");
    let mut trailing = Batch(withdraw()).to_bytes();
    trailing.push(0);
    for body in [vec![0xff; 40], trailing, vec![1, 200]] {
        refused(&Envelope::seal(header("FI", 50), &body, &key).unwrap(), Rejection::Undecodable);
    }
    let many = vec![withdraw()[0].clone(); limits::COMMANDS_PER_BATCH_MAX + 1];
    refused(&seal("FI", 50, many), Rejection::TooMany { limit: limits::COMMANDS_PER_BATCH_MAX as u64 });
}

#[test]
fn a_replay_changes_nothing_and_says_so() {
    // Threat 4: the host replays the finish of a first job's attempt; the leader replays a withdrawal.
    let mut world = World::new().tell("offer 8");
    let job = JobId::new(1, [1; 10]);
    let first = seal(
        "FR",
        500,
        vec![Command::Submit(submit(job, 4, vec![pool("main")])), Command::Cancel { job, at: Timestamp(1) }],
    );
    assert_eq!(apply(&mut world, &first), vec![Outcome::Granted { pool: pool("main"), attempt: 1 }, Outcome::Done]);
    let next = Revision(world.registry.revision().0 + 1);
    let before = without_revision(&world.registry, next);
    assert_eq!(apply(&mut world, &first), vec![Outcome::Replayed; 2]);
    assert_eq!(world.registry.to_bytes(), before);

    // Older serials of the window are still accepted, once; those behind it never.
    let late = seal("FR", 499, vec![Command::Cancel { job, at: Timestamp(1) }]);
    assert_eq!(apply(&mut world, &late), vec![Outcome::Duplicate]);
    let far = seal("FR", 500 + limits::SERIAL_WINDOW, vec![Command::Cancel { job, at: Timestamp(1) }]);
    assert_eq!(apply(&mut world, &far), vec![Outcome::Duplicate]);
    let oldest = 501;
    assert_eq!(apply(&mut world, &first), vec![Outcome::Rejected(Rejection::SerialTooOld { oldest })]);
}

#[test]
fn a_retry_does_not_make_a_rejected_job_look_accepted() {
    let mut world = World::new().tell("offer 8; pack FI");
    let known = submit(JobId::new(1, [1; 10]), 4, vec![pool("main")]);
    let stale = federation::Submit {
        job: JobId::new(2, [1; 10]),
        decided_on: vec![(state("FI"), 0)],
        ..submit(JobId::new(2, [1; 10]), 4, vec![pool("main")])
    };
    let both = vec![Command::Submit(known.clone()), Command::Submit(stale.clone())];
    let envelope = seal("FR", 500, both.clone());
    let rejected = Outcome::Rejected(Rejection::StalePolicy { state: state("FI"), current: 1 });
    let granted = Outcome::Granted { pool: pool("main"), attempt: 1 };
    assert_eq!(apply(&mut world, &envelope), vec![granted, rejected.clone()]);
    // The answer was lost, and the same envelope is sent again: the registry shows which of them is there.
    assert_eq!(apply(&mut world, &envelope), vec![Outcome::Replayed; 2]);
    assert!(world.registry.job(&known.job).is_some() && world.registry.job(&stale.job).is_none());
    // Sealed anew, each command is answered again.
    assert_eq!(apply(&mut world, &seal("FR", 501, both)), vec![Outcome::Duplicate, rejected]);
}

#[test]
fn an_older_offer_does_not_come_back() {
    let mut world = World::new();
    let publish = |sequence, nodes| vec![Command::PublishOffer(offer(pool("main"), sequence, nodes, 8))];
    assert_eq!(world.commit("FI", publish(7, 2)), vec![Outcome::Done]);
    assert_eq!(world.commit("FI", publish(7, 2)), vec![Outcome::Duplicate]);
    assert_eq!(world.commit("FI", publish(7, 3)), vec![Outcome::Rejected(Rejection::StaleSequence { current: 7 })]);
    assert_eq!(world.commit("FI", publish(6, 1)), vec![Outcome::Rejected(Rejection::StaleSequence { current: 7 })]);
}

#[test]
fn a_pack_continues_the_one_before() {
    let mut world = World::new().tell("pack FI");
    let mut next = crate::world::pack_of("FI", 2, &world.registry);
    let skipping = crate::world::pack_of("FI", 3, &world.registry);
    assert_eq!(
        world.commit("FI", vec![Command::PublishPack(skipping)]),
        vec![Outcome::Rejected(Rejection::StaleSequence { current: 1 })]
    );
    let right = next.previous.replace(certs::Digest([0; 32]));
    assert_eq!(
        world.commit("FI", vec![Command::PublishPack(next.clone())]),
        vec![Outcome::Rejected(Rejection::WrongPrevious)]
    );
    next.previous = right;
    assert_eq!(world.commit("FI", vec![Command::PublishPack(next.clone())]), vec![Outcome::Done]);
    assert_eq!(world.commit("FI", vec![Command::PublishPack(next)]), vec![Outcome::Duplicate]);
}

#[test]
fn a_job_id_belongs_to_who_used_it_first() {
    let mut world = World::new().tell("offer 8");
    let it = submit(JobId::new(1, [1; 10]), 4, vec![pool("main")]);
    world.commit("FR", vec![Command::Submit(it.clone())]);
    assert_eq!(world.commit("FR", vec![Command::Submit(it.clone())]), vec![Outcome::Duplicate]);
    assert_eq!(world.commit("DE", vec![Command::Submit(it.clone())]), vec![Outcome::Rejected(Rejection::JobIdTaken)]);
    let other = federation::Submit { payload: certs::Digest::of(b"other"), ..it };
    assert_eq!(world.commit("FR", vec![Command::Submit(other)]), vec![Outcome::Rejected(Rejection::JobIdTaken)]);
}

#[test]
fn a_rotated_key_speaks_no_more() {
    let mut world = World::new().tell("offer 8");
    let current = &world.registry.member(state("FI")).unwrap().signed.clone();
    let fresh = SigningKey::from_seed([99; 32]);
    let previous = Some(current.digest());
    let next = bundle("FI", 2, previous, &fresh).sign(&root_key("FI"));
    let trust = world.registry.trust().clone();
    assert_eq!(world.commit("DE", vec![Command::PublishBundle(next.clone())]).len(), 1);
    assert!(matches!(world.last, Outcome::Rejected(_)), "another state's bundle: {:?}", world.last);
    assert!(std::sync::Arc::ptr_eq(&trust, world.registry.trust()));
    let commands = vec![Command::PublishBundle(next), WithdrawOffer { pool: pool("main"), sequence: 2 }];
    assert_eq!(world.commit("FI", commands), vec![Outcome::Done; 2]);
    assert!(!std::sync::Arc::ptr_eq(&trust, world.registry.trust()));
    assert_eq!(world.commit("FI", withdraw()), vec![Outcome::Rejected(Rejection::UnknownKey)]);
}

fn apply(world: &mut World, envelope: &Envelope) -> Vec<Outcome> {
    world.registry.apply(Revision(world.registry.revision().0 + 1), envelope, Verdict::Unknown)
}
