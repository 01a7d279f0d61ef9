//! Bytes of a release: what its members wrote and sent, in `federation/tests/frozen/`, and what that means. A release that
//! reads them reads the folders and the messages of the one that made them.
//!
//! ```text
//! ENTENTE_FREEZE=1 cargo test -p entente-federation --lib frozen      makes the files anew, after a format has changed
//! ```

use std::fs;
use std::path::PathBuf;
use std::sync::mpsc;

use bytes::Bytes;
use certs::Envelope;
use policy::PackSource;

use super::at;
use super::founding::{bundle_after, envelope, gateway, genesis, key, sealed};
use super::hindsight::{offer, submit};
use super::script::everybody;
use crate::attempt::End;
use crate::candidate::Ceiling;
use crate::command::{Batch, Command, Rerank};
use crate::id::{JobId, PoolId};
use crate::offer::{CapacityReport, NodeCount};
use crate::pack::PublishPack;
use crate::raft::types::Applied;
use crate::raft::wal::{Head, Owner, Record, Recovered, Wal};
use crate::raft::wire::{
    WireAcquainted, WireAppend, WireAppended, WireEntry, WireInstalled, WireLogId, WireMeta, WirePayload, WireProposed,
    WireQuestion, WireReadIndex, WireSnapshot, WireTransfer, WireVote, WireVoteRequest, WireVoted, encode,
};
use crate::reason::Reason;
use crate::registry::Registry;
use crate::silence::Attest;
use crate::time::{Revision, Timestamp};

const SEGMENT: u64 = 8 * 1024;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/frozen")
}

/// The bytes in the file, or these bytes if the files are being made.
fn frozen(name: &str, bytes: &[u8]) -> Vec<u8> {
    let path = folder().join(name);
    if std::env::var_os("ENTENTE_FREEZE").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
    }
    fs::read(&path).unwrap_or_else(|cause| panic!("{}: {cause}", path.display()))
}

fn id(index: u64) -> WireLogId {
    WireLogId { term: 2, node: 1, index }
}

fn vote(committed: bool) -> WireVote {
    WireVote { term: 2, node: 1, committed }
}

fn owner() -> Owner {
    Owner { node: 1, genesis: genesis().digest().0 }
}

fn entry(index: u64, payload: WirePayload) -> WireEntry {
    WireEntry { id: id(index), payload }
}

fn entries() -> Vec<WireEntry> {
    let signed = WirePayload::Envelope(envelope("DE", 1).as_bytes().to_vec());
    vec![entry(0, WirePayload::Membership(everybody())), entry(1, WirePayload::Blank), entry(2, signed)]
}

/// Every kind of record; each segment begins with a head.
fn write_log() {
    let folder = folder().join("log");
    let _not_there_yet = fs::remove_dir_all(&folder);
    let (wal, _) = Wal::open(at(&folder), &owner(), SEGMENT).unwrap();
    let gone = entry(3, WirePayload::Blank);
    let appends = entries().into_iter().chain([gone]).map(Record::Append);
    let frames = [
        vec![Record::Vote(vote(true))],
        appends.collect(),
        vec![Record::TruncateAfter(Some(id(2))), Record::Committed(Some(id(2))), Record::Purge(id(0))],
        vec![Record::Head(Head { vote: Some(vote(true)), purged: Some(id(0)), committed: Some(id(2)) })],
    ];
    for records in frames {
        let (done, written) = mpsc::channel();
        wal.write(records, Some(Box::new(move |result| done.send(result).unwrap())));
        written.recv().unwrap().unwrap();
    }
}

#[test]
fn a_log_of_this_release_is_read() {
    if std::env::var_os("ENTENTE_FREEZE").is_some() {
        write_log();
    }
    // A log that is open is written to.
    let copy = tempfile::tempdir().unwrap();
    for file in fs::read_dir(folder().join("log")).unwrap().map(Result::unwrap) {
        fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
    }
    let (_, found) = Wal::open(at(copy.path()), &owner(), SEGMENT).unwrap();
    let entries = entries().split_off(1).into();
    let expected = Recovered { vote: Some(vote(true)), purged: Some(id(0)), committed: Some(id(2)), entries };
    assert_eq!(found, expected);
}

/// With a pack, an offer, a report of it, a job on it, and a silence.
#[test]
fn a_snapshot_of_this_release_is_read() {
    let mut registry = Registry::from_genesis(&genesis());
    let commands: Vec<Command> = commands().into_iter().map(|(_, command)| command).collect();
    let (first, second) = (sealed("DE", 1, commands, &key("DE")), sealed("FR", 2, vec![attest()], &key("FR")));
    registry.apply(Revision(2), &first, crate::apply::Verdict::Unknown);
    registry.apply(Revision(3), &second, crate::apply::Verdict::Unknown);
    let bytes = frozen("registry", &registry.to_bytes());
    let found = Registry::from_bytes(&bytes).unwrap();
    assert_eq!((found.revision(), found.root()), (Revision(3), registry.root()));
    assert_eq!(found.last_serial(&key("DE").public().id()), Some(1));
    assert!(found.pack(gateway("DE").state).is_some() && found.offer(&pool()).is_some());
    assert!(found.jobs().any(|job| job.id == job_id()));
    assert_eq!(found.to_bytes(), registry.to_bytes());
}

fn pool() -> PoolId {
    PoolId::parse("DE/main/gpu").unwrap()
}

fn job_id() -> JobId {
    JobId::new(1, [1; 10])
}

fn attest() -> Command {
    Command::Attest(Attest { about: gateway("FI"), heard_at: Revision(0), gone: true })
}

/// Every kind.
fn commands() -> Vec<(&'static str, Command)> {
    let (job, at, pool) = (job_id(), Timestamp(1), pool());
    let state = gateway("DE").state;
    let registry = Registry::from_genesis(&genesis());
    let bundle = registry.member(state).unwrap().bundle.clone();
    let source = PackSource { state, title: "One".into(), contact: "law@example.eu".into(), cedar: String::new() };
    let decided_on = vec![(state, 1)];
    let reason = Reason::new("the pool is too warm");
    let lendable = vec![NodeCount { gpus: 4, nodes: 2 }];
    let rerank = Rerank { job, candidates: vec![], decided_on: decided_on.clone(), reason: Some(reason.clone()) };
    let lost = End::Lost { reason: reason.clone() };
    vec![
        ("withdraw-offer", Command::WithdrawOffer { pool, sequence: 2 }),
        ("cancel", Command::Cancel { job, at }),
        ("start", Command::Start { job, attempt: 1, at }),
        ("run", Command::Run { job, attempt: 1, at }),
        ("finish", Command::Finish { job, attempt: 1, end: End::ExecutorError { exit_code: 3 }, at }),
        ("finish-lost", Command::Finish { job, attempt: 1, end: lost, at }),
        ("publish-bundle", Command::PublishBundle(bundle_after(&bundle))),
        ("rerank", Command::Rerank(rerank)),
        (
            "decline",
            Command::Decline { job, attempt: 1, reason: reason.clone(), below: Some(Ceiling::parse(60).unwrap()), at },
        ),
        ("publish-pack", Command::PublishPack(PublishPack { sequence: 1, previous: None, source })),
        ("publish-offer", Command::PublishOffer(offer(pool, 1, 2))),
        ("report-capacity", Command::ReportCapacity(CapacityReport { pool, lendable, at, problem: Some(reason) })),
        ("submit", Command::Submit(submit(job, 4, vec![pool.into()], decided_on))),
        ("attest", attest()),
    ]
}

#[test]
fn envelopes_of_this_release_are_read() {
    for (name, command) in commands() {
        let bytes = frozen(&format!("command/{name}"), sealed("DE", 7, vec![command.clone()], &key("DE")).as_bytes());
        let envelope = Envelope::parse(&bytes).unwrap();
        envelope.verify(&key("DE").public()).unwrap();
        assert_eq!(Batch::from_bytes(envelope.body()), Some(Batch(vec![command])), "{name}");
    }
}

fn messages() -> Vec<(&'static str, Bytes)> {
    let (request, last) = (vote(false), Some(id(2)));
    let append = WireAppend { vote: vote(true), previous: None, entries: entries(), committed: last, follows: true };
    let meta = WireMeta { last, membership_at: Some(id(0)), membership: everybody() };
    let piece = WireSnapshot { vote: vote(true), meta, total_bytes: 9, offset: 3, data: vec![1, 2, 3] };
    let applied = Applied { revision: Revision(2), outcomes: vec![crate::command::Outcome::Replayed] };
    vec![
        ("append", encode(&append)),
        ("appended", encode(&WireAppended::Success)),
        ("appended-conflict", encode(&WireAppended::Conflict)),
        ("appended-higher", encode(&WireAppended::HigherVote(request))),
        ("vote", encode(&WireVoteRequest { vote: request, last, transfer: true })),
        ("voted", encode(&WireVoted { vote: request, granted: true, last })),
        ("transfer", encode(&WireTransfer { from: vote(true), to: 2, last })),
        ("snapshot", encode(&piece)),
        ("installed-more", encode(&WireInstalled::More)),
        ("installed", encode(&WireInstalled::Done(vote(true)))),
        ("proposed", encode(&WireProposed::Applied(applied))),
        ("proposed-not-leader", encode(&WireProposed::NotLeader)),
        ("proposed-unknown", encode(&WireProposed::Unknown)),
        ("question-read-index", encode(&WireQuestion::ReadIndex)),
        ("question-acquainted", encode(&WireQuestion::Acquainted)),
        ("read-index", encode::<WireReadIndex>(&Some(300))),
        ("acquainted", encode::<WireAcquainted>(&None)),
    ]
}

/// Equal bytes: postcard has one form for a value.
#[test]
fn messages_of_this_release_are_what_is_sent() {
    for (name, bytes) in messages() {
        assert_eq!(frozen(&format!("message/{name}"), &bytes), bytes, "{name}");
    }
}
