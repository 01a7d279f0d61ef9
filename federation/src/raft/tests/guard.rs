//! Hostile peers at the Raft port. Each message is well-formed; stock Raft would act on it.

use std::collections::BTreeSet;
use std::sync::Arc;

use certs::SigningKey;

use super::founding::{envelope, gateway, genesis, node, signed_by};
use crate::apply::Verdict;
use crate::raft::guard::{Guard, Refused};
use crate::raft::state_machine::StateMachine;
use crate::raft::types::Payload;
use crate::raft::wire::{WireAppend, WireEntry, WireLogId, WireMembership, WireMeta, WirePayload, WireVote};
use crate::registry::Registry;

fn guard() -> (Guard, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let machine = StateMachine::open(folder.path(), &genesis()).unwrap();
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
fn a_leader_cannot_forge_or_misplace_entries() {
    let (guard, _folder) = guard();
    let de = node("DE");
    let genuine = envelope("FR", 1);
    let end = genuine.as_bytes().len();
    for place in [end - 70, end - 1] {
        let mut bytes = genuine.as_bytes().to_vec();
        bytes[place] ^= 1;
        let refused = guard.append(de, append(WirePayload::Envelope(bytes)), 1).unwrap_err();
        assert!(matches!(refused, Refused::Signature | Refused::Envelope), "byte {place}: {refused}");
    }
    let mut gap = append(WirePayload::Blank);
    gap.entries[0].id.index = 7;
    assert_eq!(guard.append(de, gap, 1).unwrap_err(), Refused::Entries);
    let mut of_the_future = append(WirePayload::Blank);
    of_the_future.entries[0].id.term = 2;
    assert_eq!(guard.append(de, of_the_future, 1).unwrap_err(), Refused::Entries);
    assert_eq!(
        guard.proposal(&gateway("DE"), genuine.as_bytes()).unwrap_err(),
        Refused::NotTheOwner(gateway("FR").state)
    );
    assert!(guard.proposal(&gateway("FR"), genuine.as_bytes()).is_ok());
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
    registry.advance(crate::time::Revision(5));
    let meta = |index| WireMeta {
        last: Some(WireLogId { term: 1, node: 1, index }),
        membership_at: None,
        membership: sound.clone(),
    };
    assert_eq!(guard.snapshot(&meta(5), &registry.to_bytes()), Ok(()));
    assert!(guard.snapshot(&meta(6), &registry.to_bytes()).is_err(), "of another revision");
    assert!(guard.snapshot(&meta(5), &registry.to_bytes()[1..]).is_err(), "cut");
    let member = registry.members.values_mut().next().unwrap();
    member.bundle.root_key = SigningKey::from_seed([99; 32]).public();
    assert!(guard.snapshot(&meta(5), &registry.to_bytes()).is_err(), "a bundle that its state has not signed");
}
