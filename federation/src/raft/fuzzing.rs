//! A door for whoever throws bytes at the peer protocol and at the log: what is private here, as functions of bytes.
//!
//! Each function panics if the bytes are read in a way that breaks an invariant of the format, and does nothing else.

use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::segment;
use super::wire::{
    self, WireAcquainted, WireAppend, WireAppended, WireEntry, WireInstalled, WireMeta, WireProposed, WireQuestion,
    WireReadIndex, WireSnapshot, WireTransfer, WireVoteRequest, WireVoted,
};

/// Reads the bytes as each message of the peer protocol. What is read can be written, and is the same when it is read again.
pub fn messages(bytes: &[u8]) {
    if let Some(append) = message::<WireAppend>(bytes) {
        let _refused = append.open();
    }
    if let Some(entry) = message::<WireEntry>(bytes) {
        let written = WireEntry { id: entry.id, payload: entry.payload.clone() };
        if let Ok(opened) = entry.open() {
            assert_eq!(WireEntry::from(&opened), written, "an entry is another after Raft had it");
        }
    }
    if let Some(meta) = message::<WireMeta>(bytes) {
        let _refused = meta.open();
    }
    message::<WireAppended>(bytes);
    message::<WireVoteRequest>(bytes);
    message::<WireVoted>(bytes);
    message::<WireTransfer>(bytes);
    message::<WireSnapshot>(bytes);
    message::<WireInstalled>(bytes);
    message::<WireProposed>(bytes);
    message::<WireQuestion>(bytes);
    message::<WireReadIndex>(bytes);
    message::<WireAcquainted>(bytes);
}

fn message<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) -> Option<T> {
    let message: T = wire::decode(bytes).ok()?;
    let written = wire::encode(&message);
    assert_eq!(wire::decode::<T>(&written).as_ref(), Ok(&message), "a message is another when it is read again");
    Some(message)
}

/// Reads the bytes as a segment of the log. The frames that are found are those that would be written, at their places.
pub fn frames(bytes: &[u8]) {
    let salt = 7;
    let (mut at, mut number) = (0, 0);
    while let Some((content, next)) = segment::frame_at(bytes, at, number, salt) {
        let written = segment::frame(number, salt, content).expect("a frame that was read is not too large");
        assert_eq!(written, bytes[at..next], "a frame is another when it is written again");
        (at, number) = (next, number + 1);
    }
    let _damaged_or_torn = segment::any_frame_in(bytes, at + 1, salt);
}

/// A segment with these frames, for [`frames`].
pub fn segment_of(contents: &[&[u8]]) -> Vec<u8> {
    let frame = |(number, content): (u64, &&[u8])| segment::frame(number, 7, content).expect("a small frame");
    (0..).zip(contents).flat_map(frame).collect()
}

/// Messages as members send them: an append with an envelope and an empty one, a vote, an answer, a piece of a snapshot.
pub fn examples(envelope: &[u8], snapshot: &[u8]) -> Vec<Vec<u8>> {
    use super::wire::{WireLogId, WireMembership, WirePayload, WireVote};
    let vote = WireVote { term: 3, node: 1, committed: true };
    let id = |index| WireLogId { term: 3, node: 1, index };
    let membership = WireMembership { voters: vec![[1, 2, 3].into()], nodes: [1, 2, 3].into() };
    let entry = |index, payload| WireEntry { id: id(index), payload };
    let entries = vec![
        entry(8, WirePayload::Blank),
        entry(9, WirePayload::Envelope(envelope.to_vec())),
        entry(10, WirePayload::Membership(membership.clone())),
    ];
    let append =
        WireAppend { vote, previous: Some(id(7)), entries: entries.clone(), committed: Some(id(7)), follows: true };
    let heartbeat = WireAppend { entries: vec![], follows: false, ..append.clone() };
    let meta = WireMeta { last: Some(id(10)), membership_at: Some(id(0)), membership };
    let piece = WireSnapshot { vote, meta: meta.clone(), total_bytes: 4_096, offset: 0, data: snapshot.to_vec() };
    let mut all = vec![wire::encode(&append), wire::encode(&heartbeat), wire::encode(&piece), wire::encode(&meta)];
    all.extend(entries.iter().map(wire::encode));
    all.push(wire::encode(&WireAppended::HigherVote(vote)));
    all.push(wire::encode(&WireVoteRequest { vote, last: Some(id(10)), transfer: false }));
    all.push(wire::encode(&WireVoted { vote, granted: true, last: Some(id(10)) }));
    all.push(wire::encode(&WireTransfer { from: vote, to: 2, last: Some(id(10)) }));
    all.push(wire::encode(&WireInstalled::Done(vote)));
    all.push(wire::encode(&WireQuestion::Acquainted));
    all.into_iter().map(|it| it.to_vec()).collect()
}
