//! Hostile peers at the Raft port. Each message is well-formed; stock Raft would act on it.

use std::collections::BTreeSet;
use std::sync::Arc;

use certs::SigningKey;

use super::at;
use super::founding::{envelope, gateway, genesis, key, node, signed_by};
use crate::apply::Verdict;
use crate::command::{Batch, Command, Outcome, Rejection};
use crate::id::JobId;
use crate::raft::guard::{Guard, Refused};
use crate::raft::state_machine::StateMachine;
use crate::raft::types::Payload;
use crate::raft::wire::{WireAppend, WireEntry, WireLogId, WireMembership, WireMeta, WirePayload, WireVote};
use crate::registry::Registry;
use crate::time::{Revision, Timestamp};

fn guard() -> (Guard, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let machine = StateMachine::open(at(folder.path()), &genesis()).unwrap();
    (Guard::new(machine.shared(), Arc::new(genesis())), folder)
}

fn leading(state: &str, term: u64) -> WireVote {
    WireVote { term, node: node(state), committed: true }
}

/// An append of the leader DE in term 1 with one entry behind index 4.
fn append(payload: WirePayload) -> WireAppend {
    let id = |index| WireLogId { term: 1, node: node("DE"), index };
    WireAppend {
        vote: leading("DE", 1),
        previous: Some(id(4)),
        entries: vec![WireEntry { id: id(5), payload }],
        committed: None,
        follows: false,
    }
}

fn sealed(envelope: &certs::Envelope) -> WirePayload {
    WirePayload::Envelope(envelope.as_bytes().to_vec())
}

#[test]
fn a_leaders_append_passes_with_its_signatures_checked() {
    let (guard, _folder) = guard();
    let request = guard.append(node("DE"), append(sealed(&envelope("FR", 1))), 1).unwrap();
    let Payload::Normal(proposal) = &request.entries[0].payload else { panic!("an envelope went in") };
    assert_eq!(proposal.verdict, Verdict::Verified);
    // A key that nobody here knows may come with an entry that is not applied yet; apply decides.
    let stranger = signed_by("FR", 1, &SigningKey::from_seed([77; 32]));
    let request = guard.append(node("DE"), append(sealed(&stranger)), 1).unwrap();
    let Payload::Normal(proposal) = &request.entries[0].payload else { panic!("an envelope went in") };
    assert_eq!(proposal.verdict, Verdict::Unknown);
}

/// Threat 2.
#[test]
fn nobody_leads_in_anothers_name_or_in_the_last_term() {
    let (guard, _folder) = guard();
    let good = || append(WirePayload::Blank);
    let (de, fr) = (node("DE"), node("FR"));
    assert!(guard.append(de, good(), 1).is_ok());
    assert_eq!(guard.append(fr, good(), 1).unwrap_err(), Refused::NotTheSender { claimed: de, sender: fr });
    let last = WireAppend { vote: leading("DE", u64::MAX), ..good() };
    assert_eq!(guard.append(de, last, 1).unwrap_err(), Refused::TermJump { found: u64::MAX, current: 1 });
    let candidate = WireAppend { vote: WireVote { committed: false, ..leading("DE", 1) }, ..good() };
    assert_eq!(guard.append(de, candidate, 1).unwrap_err(), Refused::NotElected);
    let own = WireVote { term: 2, node: 9, committed: false };
    assert_eq!(guard.vote(9, own, 1).unwrap_err(), Refused::NotAVoter(9));
    assert_eq!(
        guard.sender(&certs::GatewayId::parse("FR/gw-9").unwrap()).unwrap_err().to_string(),
        "the registry knows no gateway FR/gw-9"
    );
}

/// Threats 1 and 4.
#[test]
fn a_forged_entry_enters_the_log_and_changes_nothing() {
    let (guard, _folder) = guard();
    let genuine = envelope("FR", 1);
    let end = genuine.as_bytes().len();
    for place in [end - 70, end - 1] {
        let mut bytes = genuine.as_bytes().to_vec();
        bytes[place] ^= 1;
        // Refused by some and taken by others, before and after a key becomes known, it would halt the federation.
        let request = guard.append(node("DE"), append(WirePayload::Envelope(bytes)), 1).unwrap();
        let Payload::Normal(proposal) = &request.entries[0].payload else { panic!("an envelope went in") };
        let mut registry = Registry::from_genesis(&genesis());
        let outcomes = registry.apply(Revision(5), &proposal.envelope, proposal.verdict);
        assert_eq!(outcomes, [Outcome::Rejected(Rejection::BadSignature)], "byte {place}");
        let mut untouched = Registry::from_genesis(&genesis());
        untouched.advance(Revision(5));
        assert!(registry.agrees_with(&untouched), "byte {place}");
    }
}

#[test]
fn a_leader_cannot_misplace_entries() {
    let (guard, _folder) = guard();
    let check = |change: &dyn Fn(&mut WireAppend)| {
        let mut message = append(WirePayload::Blank);
        change(&mut message);
        assert_eq!(guard.append(node("DE"), message, 1).unwrap_err(), Refused::Entries);
    };
    check(&|it| it.entries[0].id.index = 7);
    check(&|it| it.entries[0].id.term = 2);
    check(&|it| it.entries[0].id.node = 9);
    // In term 1 DE leads, with a lower number than FR, so that none of FR's can be before DE's.
    check(&|it| it.previous = Some(WireLogId { term: 1, node: node("FR"), index: 4 }));
    check(&|it| it.committed = Some(WireLogId { term: 2, node: node("DE"), index: 4 }));
    check(&|it| it.committed = Some(WireLogId { term: 1, node: node("DE"), index: u64::MAX }));
    check(&|it| (it.previous.as_mut().unwrap().index, it.entries) = (u64::MAX, vec![]));
    let cut = envelope("FR", 1).as_bytes()[1..].to_vec();
    assert_eq!(guard.append(node("DE"), append(WirePayload::Envelope(cut)), 1).unwrap_err(), Refused::Envelope);
}

#[test]
fn what_apply_would_reject_is_not_proposed() {
    let (guard, _folder) = guard();
    let check = |envelope: &certs::Envelope, expected: Result<Verdict, Refused>| {
        let proposed = guard.proposal(&gateway("FR"), envelope.as_bytes());
        assert_eq!(proposed.map(|(_, verdict)| verdict), expected);
    };
    check(&envelope("FR", 1), Ok(Verdict::Verified));
    check(&envelope("DE", 1), Err(Refused::NotTheOwner(gateway("DE").state)));
    let stranger = SigningKey::from_seed([77; 32]);
    check(&signed_by("FR", 1, &stranger), Err(Refused::UnknownKey(gateway("FR").state)));
    let sealed = |change: &dyn Fn(&mut certs::Header), body: &[u8]| {
        let mut header = envelope("FR", 1).header().clone();
        change(&mut header);
        certs::Envelope::seal(header, body, &key("FR")).unwrap()
    };
    let body = envelope("FR", 1).body().to_vec();
    check(&sealed(&|it| it.epoch = 2, &body), Err(Refused::Commands));
    check(&sealed(&|it| it.kind = certs::Kind::Mandate, &body), Err(Refused::Commands));
    check(&sealed(&|_| {}, &[body.clone(), vec![0]].concat()), Err(Refused::Commands));
    check(&sealed(&|_| {}, &[0xff; 9]), Err(Refused::Commands));
    let many = Batch(vec![Command::Cancel { job: JobId::new(1, [1; 10]), at: Timestamp(1) }; 1_025]);
    check(&sealed(&|_| {}, &many.to_bytes()), Err(Refused::Commands));
    let mut forged = envelope("FR", 1).as_bytes().to_vec();
    *forged.last_mut().unwrap() ^= 1;
    check(&certs::Envelope::parse(&forged).unwrap(), Err(Refused::Signature));
}

/// Threat 3.
#[test]
fn membership_and_snapshots_are_held_against_what_the_states_signed() {
    let (guard, _folder) = guard();
    let all = BTreeSet::from([1, 2, 3]);
    let membership =
        |voters: Vec<BTreeSet<u64>>, nodes: &BTreeSet<u64>| WireMembership { voters, nodes: nodes.clone() };
    let sound = membership(vec![all.clone()], &all);
    assert!(guard.append(1, append(WirePayload::Membership(sound.clone())), 1).is_ok());
    for doctored in [
        membership(vec![BTreeSet::from([1])], &all),
        membership(vec![all.clone(), BTreeSet::from([1])], &all),
        membership(vec![all.clone()], &BTreeSet::from([1, 2, 3, 4])),
        membership(vec![BTreeSet::from([1, 2, 3, 4])], &BTreeSet::from([1, 2, 3, 4])),
    ] {
        let refused = guard.append(1, append(WirePayload::Membership(doctored)), 1).unwrap_err();
        assert_eq!(refused, Refused::Membership);
    }

    let mut registry = Registry::from_genesis(&genesis());
    registry.advance(Revision(5));
    let id = |term, node, index| Some(WireLogId { term, node, index });
    let meta = WireMeta { last: id(1, 1, 5), membership_at: id(0, 1, 0), membership: sound };
    let bytes = registry.to_bytes();
    assert_eq!(guard.snapshot(leading("DE", 1), &meta, &bytes), Ok(()));
    assert!(guard.snapshot(leading("DE", 1), &WireMeta { last: id(1, 1, 6), ..meta.clone() }, &bytes).is_err());
    assert!(guard.snapshot(leading("DE", 1), &meta, &bytes[1..]).is_err(), "cut");
    let member = registry.members.values_mut().next().unwrap();
    member.bundle.root_key = SigningKey::from_seed([99; 32]).public();
    let unsigned = guard.snapshot(leading("DE", 1), &meta, &registry.to_bytes());
    assert!(unsigned.is_err(), "a bundle that its state has not signed");
}

/// Threat 3. Stock Raft aborts at some of these.
#[test]
fn a_snapshot_stands_for_what_its_leader_can_have() {
    let (guard, _folder) = guard();
    let all = BTreeSet::from([1, 2, 3]);
    let id = |term, node, index| Some(WireLogId { term, node, index });
    let meta = WireMeta {
        last: id(3, 1, 9),
        membership_at: id(0, 1, 0),
        membership: WireMembership { voters: vec![all.clone()], nodes: all },
    };
    let check = |vote: WireVote, change: &dyn Fn(&mut WireMeta), good: bool| {
        let mut meta = meta.clone();
        change(&mut meta);
        assert_eq!(guard.snapshot_meta(vote, &meta).is_ok(), good, "{vote:?} {meta:?}");
    };
    check(leading("DE", 3), &|_| {}, true);
    check(leading("FI", 3), &|_| {}, true);
    check(WireVote { committed: false, ..leading("DE", 3) }, &|_| {}, false);
    check(leading("DE", 2), &|_| {}, false);
    check(leading("DE", 3), &|it| it.last = id(3, 2, 9), false);
    check(leading("DE", 3), &|it| it.last = id(3, 1, u64::MAX), false);
    check(leading("DE", 3), &|it| it.last = None, false);
    check(leading("DE", 3), &|it| it.membership_at = None, false);
    check(leading("DE", 3), &|it| it.membership_at = id(3, 1, 10), false);
    check(leading("DE", 3), &|it| it.membership.voters = vec![BTreeSet::from([1])], false);
}
