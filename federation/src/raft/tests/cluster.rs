//! Three members in one process: they agree, they lose one, it comes back.

use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::founding::{STATES, envelope, gateway, large_envelope};
use super::wires::{SOON, Wires};
use crate::raft::wire::{self, WireProposed};
use crate::raft::{Consensus, Rpc};
use crate::time::Revision;

/// The place of the leader, and of the others.
fn roles(members: &[Consensus]) -> (usize, Vec<usize>) {
    let leader = (members[0].leader().unwrap() - 1) as usize;
    (leader, (0..3).filter(|place| *place != leader).collect())
}

fn are_equal<'a>(members: impl IntoIterator<Item = &'a Consensus>) -> bool {
    let roots: HashSet<_> = members.into_iter().map(|it| it.read(|registry| registry.root())).collect();
    roots.len() == 1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_agree_and_go_on_without_one() {
    let wires = Wires::new();
    let mut members = wires.start_all().await;

    // Everybody proposes his own; everybody sees all of it.
    let mut last = Revision(0);
    for (member, state) in members.iter().zip(STATES) {
        let applied = member.propose(envelope(state, 1)).await.unwrap();
        assert_eq!(applied.outcomes.len(), 1);
        last = last.max(applied.revision);
    }
    for member in &members {
        member.wait_for(last, SOON).await.unwrap();
        assert!(member.linearize(SOON).await.unwrap() >= last);
    }
    assert!(are_equal(&members), "replicas at one revision are equal");

    // The leader is cut off; the others elect another and go on, and it accepts nothing.
    let (alone, others) = roles(&members);
    wires.cut(members[alone].node());
    let mut committed = last;
    for serial in 2..6 {
        for place in &others {
            let applied = members[*place].propose(envelope(STATES[*place], serial)).await.unwrap();
            committed = committed.max(applied.revision);
        }
    }
    let proposed = members[alone].propose(envelope(STATES[alone], 2)).await;
    assert!(proposed.is_err(), "a leader without a quorum acknowledges nothing");

    // It is back and has everything; a replay of what it proposed changes nothing.
    wires.heal();
    members[alone].wait_for(committed, SOON).await.unwrap();

    // One stops and starts again from its folder.
    let place = others[0];
    wires.stop(members.remove(place)).await;
    let again = wires.start(STATES[place]).await.unwrap();
    let applied = again.propose(envelope(STATES[place], 9)).await.unwrap();
    for member in members.iter().chain([&again]) {
        member.wait_for(applied.revision, SOON).await.unwrap();
    }
    assert!(are_equal(members.iter().chain([&again])));
}

/// A leader sends before it syncs, so the others can hold what a killed one has lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_has_lost_what_it_sent_gives_no_number_out_twice() {
    let wires = Wires::patient();
    let mut members = wires.start_all().await;
    let (leader, others) = roles(&members);
    let synced = tempfile::tempdir().unwrap();
    let folder = wires.folder_of(STATES[leader]);
    copy(&folder, synced.path());
    let sent = members[leader].propose(envelope(STATES[leader], 1)).await.unwrap();
    for place in &others {
        members[*place].wait_for(sent.revision, SOON).await.unwrap();
    }

    wires.stop(members[leader].clone()).await;
    std::fs::remove_dir_all(&folder).unwrap();
    copy(synced.path(), &folder);
    members[leader] = wires.start(STATES[leader]).await.unwrap();

    let mut last = sent.revision;
    for (member, state) in members.iter().zip(STATES) {
        let applied = member.propose(envelope(state, 2)).await.unwrap();
        assert!(applied.revision > sent.revision, "another entry has the number of one that was acknowledged");
        last = last.max(applied.revision);
    }
    for member in &members {
        member.wait_for(last, SOON).await.unwrap();
    }
    assert!(are_equal(&members));
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to.join(entry.file_name())),
            false => drop(std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
        }
    }
}

/// A lease would still hold here. It is counted with the leader's own timers, which the others may not share.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_reads_nothing() {
    let wires = Wires::patient();
    let members = wires.start_all().await;
    let (leader, _) = roles(&members);
    members[leader].linearize(SOON).await.unwrap();
    wires.cut(members[leader].node());
    assert!(members[leader].linearize(Duration::from_millis(300)).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_that_another_leader_discards_is_not_called_undone() {
    let wires = Wires::patient();
    let members = wires.start_all().await;
    let (leader, others) = roles(&members);
    wires.cut(members[leader].node());
    let (asked, asker) = (members[leader].clone(), STATES[others[0]]);
    let body = Bytes::copy_from_slice(envelope(asker, 7).as_bytes());
    let asking = tokio::spawn(async move { asked.handle(gateway(asker), Rpc::Propose, body).await });
    // The others elect another leader, whose entries take the place.
    members[others[1]].propose(envelope(STATES[others[1]], 1)).await.unwrap();
    wires.heal();
    let answer = asking.await.unwrap().unwrap();
    assert_eq!(wire::decode(&answer), Ok(WireProposed::Unknown));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_leader_does_not_answer_is_proposed_to_its_successor() {
    let wires = Wires::new();
    let members = wires.start_all().await;
    let (leader, others) = roles(&members);
    wires.swallow(members[leader].node(), Rpc::Propose);
    let (asker, begun) = (others[0], Instant::now());
    let proposer = members[asker].clone();
    let proposing = tokio::spawn(async move { proposer.propose(envelope(STATES[asker], 1)).await });
    wires.is_sent(Rpc::Propose).await;
    members[leader].hand_over().await;
    let applied = proposing.await.unwrap().unwrap();
    let took = begun.elapsed();
    assert_eq!(applied.outcomes.len(), 1);
    assert!(took < Duration::from_secs(3), "{took:?}: that is the old leader's whole time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_has_only_so_many_envelopes_in_hand() {
    let wires = Wires::patient();
    let members = wires.start_all().await;
    let (leader, others) = roles(&members);
    wires.cut(members[leader].node());
    let (asked, asker) = (members[leader].clone(), STATES[others[0]]);
    let propose = |serial| {
        let body = Bytes::copy_from_slice(envelope(asker, serial).as_bytes());
        let asked = asked.clone();
        async move { asked.handle(gateway(asker), Rpc::Propose, body).await.unwrap() }
    };
    // Without a quorum none of these is answered.
    let waiting: Vec<_> = (1..9).map(|serial| tokio::spawn(propose(serial))).collect();
    // Until all of them are in hand, another one waits, too.
    let refused = async {
        loop {
            if let Ok(answer) = tokio::time::timeout(Duration::from_millis(300), propose(9)).await {
                return answer;
            }
        }
    };
    let one_too_many = tokio::time::timeout(SOON, refused).await.unwrap();
    assert_eq!(wire::decode(&one_too_many), Ok(WireProposed::NotLeader));
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
}

/// This thread is the gateways' runtime; Raft has others.
#[tokio::test(flavor = "current_thread")]
async fn a_gateway_that_is_busy_brings_no_election() {
    let wires = Wires::patient();
    let members = wires.start_all().await;
    // A machine that stands still brings one, too, but not always.
    for serial in 1..4 {
        let before = (members[0].leader(), wires.sent(Rpc::PreVote));
        // What keeps it busy, and longer than an election takes: nothing is waited for.
        std::thread::sleep(Duration::from_secs(3));
        members[0].propose(envelope("DE", serial)).await.unwrap();
        if (members[0].leader(), wires.sent(Rpc::PreVote)) == before {
            return;
        }
    }
    panic!("an election each time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_heavy_log_is_cut_and_who_missed_it_gets_a_snapshot() {
    let limit = 4 * 1024 * 1024;
    let wires = Wires::with_logs_of(limit);
    let members = wires.start_all().await;
    let (leader, others) = roles(&members);
    wires.cut(members[others[0]].node());
    let mut last = Revision(0);
    for serial in 1..9 {
        last = members[leader].propose(large_envelope(STATES[leader], serial)).await.unwrap().revision;
    }
    let mut weight = members[leader].log().weight();
    tokio::time::timeout(SOON, weight.wait_for(|bytes| *bytes <= limit)).await.unwrap().unwrap();
    wires.heal();
    for member in &members {
        member.wait_for(last, SOON).await.unwrap();
    }
    assert!(wires.sent(Rpc::Snapshot) > 0, "what it missed is gone from the leader's log");
    assert!(are_equal(&members));
}
