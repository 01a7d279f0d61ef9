//! What a proposer is told. "Nothing was done" must be true whenever it is said.

use bytes::Bytes;

use super::founding::envelope;
use super::script::{self, Script, follow_de};
use crate::raft::types::Applied;
use crate::raft::wire::{self, WireProposed};
use crate::raft::{ProposeError, TransportError};
use crate::time::Revision;

type Answer = Result<Bytes, TransportError>;

async fn check(answers: &[Answer], expected: Result<Applied, ProposeError>) {
    let folder = tempfile::tempdir().unwrap();
    // The first question is whether anybody knows this gateway.
    let nobody = Err(TransportError::Unreachable("not yet".into()));
    let before = [nobody.clone(), nobody];
    let transport = Script::new(before.into_iter().chain(answers.iter().cloned()));
    let member = script::start(folder.path(), transport).await;
    follow_de(&member, 1).await;
    assert_eq!(member.propose(envelope("FI", 1)).await, expected, "after {answers:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_be_done_is_not_called_undone() {
    let applied = Applied { revision: Revision(2), outcomes: vec![] };
    let done = Ok(wire::encode(&WireProposed::Applied(applied.clone())));
    let not_leader: Answer = Ok(wire::encode(&WireProposed::NotLeader));
    let unknown: Answer = Ok(wire::encode(&WireProposed::Unknown));
    let unreadable: Answer = Ok(Bytes::from_static(b"\x01\xff\xff"));
    let lost: Answer = Err(TransportError::Timeout);
    let refused: Answer = Err(TransportError::Refused("no".into()));
    let no = || ProposeError::Refused("no".into());

    check(std::slice::from_ref(&done), Ok(applied.clone())).await;
    check(&[not_leader.clone(), done.clone()], Ok(applied.clone())).await;
    check(std::slice::from_ref(&refused), Err(no())).await;
    check(&[not_leader, refused.clone()], Err(no())).await;
    for maybe in [lost, unknown, unreadable] {
        check(&[maybe.clone(), done.clone()], Ok(applied.clone())).await;
        check(&[maybe, refused.clone()], Err(ProposeError::Unknown)).await;
    }
}
