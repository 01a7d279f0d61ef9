//! What the write-ahead log holds after stops, tears and damage.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc;

use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage};
use proptest::prelude::*;
use tempfile::TempDir;

use super::at;
use super::founding::large_envelope;
use crate::raft::log_store::{APPEND_BYTES_MAX, LogStore};
use crate::raft::segment;
use crate::raft::segment::SEGMENT_BYTES;
use crate::raft::wal::{BadLog, Owner, Record, Recovered, Wal};
use crate::raft::wire::{WireEntry, WireLogId, WirePayload, WireVote};

const OWNER: Owner = Owner { node: 1, genesis: [7; 32] };

fn id(index: u64) -> WireLogId {
    WireLogId { term: 1, node: 1, index }
}

fn entry(index: u64, bytes: usize) -> Record {
    Record::Append(WireEntry { id: id(index), payload: WirePayload::Envelope(vec![index as u8; bytes]) })
}

fn vote(term: u64) -> Record {
    Record::Vote(WireVote { term, node: 1, committed: false })
}

/// Writes each list of records as a frame of its own, and waits for the disk.
fn write(folder: &Path, frames: &[Vec<Record>]) -> io::Result<()> {
    let (wal, _) = Wal::open(at(folder), &OWNER, SEGMENT_BYTES).unwrap();
    frames.iter().try_for_each(|records| put(&wal, records.clone()))
}

fn put(wal: &Wal, records: Vec<Record>) -> io::Result<()> {
    let (done, written) = mpsc::channel();
    wal.write(records, Some(Box::new(move |result| done.send(result).unwrap())));
    written.recv().unwrap()
}

fn read(folder: &Path) -> Result<Recovered, BadLog> {
    Wal::open(at(folder), &OWNER, SEGMENT_BYTES).map(|(_, recovered)| recovered)
}

fn indexes(recovered: &Recovered) -> Vec<u64> {
    recovered.entries.iter().map(|entry| entry.id.index).collect()
}

fn last_segment(folder: &Path) -> (std::path::PathBuf, u64) {
    let number = *segment::list(&*at(folder)).unwrap().last().unwrap();
    (folder.join(format!("{number:016x}.wal")), number)
}

/// Where the zeros behind the last frame begin.
fn end_of_frames(path: &Path) -> usize {
    let bytes = fs::read(path).unwrap();
    bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1
}

fn overwrite(path: &Path, at: usize, bytes: &[u8]) {
    OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, at as u64).unwrap();
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn what_was_acknowledged_is_there_again() {
    let folder = folder();
    let frames = vec![
        vec![vote(1), entry(0, 10), entry(1, 10)],
        vec![entry(2, 10), Record::Committed(Some(id(1)))],
        vec![Record::TruncateAfter(Some(id(1))), entry(2, 20), entry(3, 5)],
        vec![Record::Purge(id(0)), vote(2)],
    ];
    write(folder.path(), &frames).unwrap();
    for _ in 0..2 {
        let found = read(folder.path()).unwrap();
        assert_eq!(indexes(&found), [1, 2, 3]);
        assert_eq!(found.vote.unwrap().term, 2);
        assert_eq!((found.purged, found.committed), (Some(id(0)), Some(id(1))));
        assert_eq!(found.entries[1].payload, WirePayload::Envelope(vec![2; 20]), "the newer entry of that index");
    }
}

#[test]
fn a_vote_survives_the_removal_of_the_segment_that_it_was_in() {
    let folder = folder();
    let mut frames = vec![vec![vote(9)]];
    // 40 entries of 1 MiB are three segments.
    frames.extend((0..40).map(|index| vec![entry(index, 1024 * 1024 - 200)]));
    frames.push(vec![Record::Purge(id(38))]);
    write(folder.path(), &frames).unwrap();
    assert_eq!(segment::list(&*at(folder.path())).unwrap().len(), 1, "the others were purged");
    let found = read(folder.path()).unwrap();
    assert_eq!(found.vote.unwrap().term, 9);
    assert_eq!((indexes(&found), found.purged), (vec![39], Some(id(38))));
}

/// The log in segments of 4 KiB, which hold two or three frames of a KiB.
fn tiny(folder: &Path) -> Result<(Wal, Recovered), BadLog> {
    Wal::open(at(folder), &OWNER, 4_096)
}

#[test]
fn a_log_that_was_purged_before_and_after_it_began_a_segment_opens_again() {
    let folder = folder();
    let (wal, _) = tiny(folder.path()).unwrap();
    let append =
        |indexes: std::ops::Range<u64>| indexes.for_each(|index| put(&wal, vec![entry(index, 1_000)]).unwrap());
    append(0..8);
    put(&wal, vec![Record::Purge(id(5))]).unwrap();
    // The segments that begin here say 5, and their first entries are 9 and more.
    append(8..20);
    put(&wal, vec![Record::Purge(id(17))]).unwrap();
    drop(wal);
    assert!(segment::list(&*at(folder.path())).unwrap().len() <= 2, "the others were purged");
    let found = tiny(folder.path()).unwrap().1;
    assert_eq!((indexes(&found), found.purged), (vec![18, 19], Some(id(17))));
}

#[test]
fn a_segment_that_is_gone_without_a_purge_is_missed() {
    let folder = folder();
    let (wal, _) = tiny(folder.path()).unwrap();
    (0..8).for_each(|index| put(&wal, vec![entry(index, 1_000)]).unwrap());
    drop(wal);
    let first = segment::list(&*at(folder.path())).unwrap()[0];
    segment::remove(&*at(folder.path()), first).unwrap();
    assert!(matches!(tiny(folder.path()), Err(BadLog::Corrupt { .. })));
}

/// What happens to a log, and to the model of one.
#[derive(Clone, Debug)]
enum Step {
    Append {
        entries: u8,
        bytes: u16,
    },
    /// So many entries of those that are there; the rest stay.
    Truncate(u8),
    Purge(u8),
    /// A snapshot that stands for so many entries more than there are.
    Install(u8),
    Vote,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (1..6u8, 0..900u16).prop_map(|(entries, bytes)| Step::Append { entries, bytes }),
        2 => (0..4u8).prop_map(Step::Truncate),
        3 => (1..12u8).prop_map(Step::Purge),
        1 => (1..9u8).prop_map(Step::Install),
        1 => Just(Step::Vote),
        1 => Just(Step::Reopen),
    ]
}

/// The log as it must be: its vote, how far it was purged, and term and size of each entry behind that.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    term: u64,
    purged: Option<WireLogId>,
    entries: std::collections::BTreeMap<u64, (u64, usize)>,
}

impl Model {
    fn next(&self) -> u64 {
        let purged = self.purged.map_or(0, |purged| purged.index + 1);
        self.entries.last_key_value().map_or(purged, |(index, _)| index + 1)
    }

    fn id(&self, index: u64) -> Option<WireLogId> {
        let kept = self.entries.get(&index).map(|(term, _)| WireLogId { term: *term, node: 1, index });
        kept.or(self.purged.filter(|purged| purged.index == index))
    }

    /// Takes a step; gives the records that make the log take it.
    fn take(&mut self, step: &Step) -> Vec<Record> {
        match step {
            Step::Append { entries, bytes } => {
                let mut records = Vec::new();
                for index in self.next()..self.next() + u64::from(*entries) {
                    self.entries.insert(index, (self.term, usize::from(*bytes)));
                    let id = WireLogId { term: self.term, node: 1, index };
                    let payload = WirePayload::Envelope(vec![index as u8; usize::from(*bytes)]);
                    records.push(Record::Append(WireEntry { id, payload }));
                }
                records
            }
            Step::Truncate(entries) => {
                let first_gone = self.next().saturating_sub((*entries).into());
                let first_gone = first_gone.max(self.purged.map_or(0, |purged| purged.index + 1));
                self.entries.split_off(&first_gone);
                vec![Record::TruncateAfter(first_gone.checked_sub(1).and_then(|last| self.id(last)))]
            }
            Step::Purge(entries) => {
                let first = self.entries.first_key_value().map(|(index, _)| *index);
                let Some(upto) = first.map(|first| (first + u64::from(*entries)).min(self.next()) - 1) else {
                    return vec![];
                };
                let upto = self.id(upto).unwrap();
                self.entries = self.entries.split_off(&(upto.index + 1));
                self.purged = Some(upto);
                vec![Record::Purge(upto)]
            }
            Step::Install(more) => {
                let upto = WireLogId { term: self.term, node: 1, index: self.next() + u64::from(*more) };
                self.entries.clear();
                self.purged = Some(upto);
                vec![Record::Purge(upto)]
            }
            Step::Vote => {
                self.term += 1;
                vec![vote(self.term)]
            }
            Step::Reopen => vec![],
        }
    }
}

impl From<&Recovered> for Model {
    fn from(recovered: &Recovered) -> Model {
        let size = |entry: &WireEntry| match &entry.payload {
            WirePayload::Envelope(bytes) => bytes.len(),
            _ => 0,
        };
        let entries = recovered.entries.iter().map(|entry| (entry.id.index, (entry.id.term, size(entry))));
        let term = recovered.vote.map_or(0, |vote| vote.term);
        Model { term, purged: recovered.purged, entries: entries.collect() }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_was_written_is_what_is_read(steps in prop::collection::vec(step(), 1..80)) {
        let folder = folder();
        let mut model = Model::default();
        let (mut wal, _) = tiny(folder.path()).unwrap();
        for step in steps {
            put(&wal, model.take(&step)).unwrap();
            if matches!(step, Step::Reopen) {
                drop(wal);
                let (again, recovered) = tiny(folder.path()).unwrap();
                prop_assert_eq!(Model::from(&recovered), model.clone());
                wal = again;
            }
        }
        drop(wal);
        prop_assert_eq!(Model::from(&tiny(folder.path()).unwrap().1), model);
    }
}

#[tokio::test]
async fn the_log_knows_its_weight_and_is_read_in_pieces() {
    let folder = folder();
    let mut log = LogStore::open(at(folder.path()), &OWNER, SEGMENT_BYTES).unwrap();
    assert!(log.is_empty());
    let large = large_envelope("FR", 1).as_bytes().to_vec();
    let bytes = large.len();
    let entry = |index| WireEntry { id: id(index), payload: WirePayload::Envelope(large.clone()) }.open().unwrap();
    log.append((0..8).map(entry), IOFlushed::noop()).await.unwrap();
    assert_eq!(*log.weight().borrow(), 8 * bytes);
    let piece = log.limited_get_log_entries(1, 8).await.unwrap();
    assert_eq!(piece.len(), APPEND_BYTES_MAX / bytes);
    assert_eq!(log.limited_get_log_entries(7, 8).await.unwrap().len(), 1);
    log.truncate_after(Some(id(5).into())).await.unwrap();
    assert_eq!(*log.weight().borrow(), 6 * bytes);
    log.append([entry(6)], IOFlushed::noop()).await.unwrap();
    log.purge(id(3).into()).await.unwrap();
    assert_eq!(*log.weight().borrow(), 3 * bytes);
    drop(log);
    let log = LogStore::open(at(folder.path()), &OWNER, SEGMENT_BYTES).unwrap();
    assert_eq!((*log.weight().borrow(), log.is_empty()), (3 * bytes, false));
}

#[test]
fn a_torn_last_frame_is_cut_and_the_log_goes_on() {
    let whole = folder();
    write(whole.path(), &[vec![entry(0, 100)], vec![entry(1, 100)]]).unwrap();
    let (path, number) = last_segment(whole.path());
    let end = end_of_frames(&path);
    for cut in [1, 50, 100, 119] {
        let torn = folder();
        for name in ["owner".to_owned(), format!("{number:016x}.wal")] {
            fs::copy(whole.path().join(&name), torn.path().join(&name)).unwrap();
        }
        overwrite(&torn.path().join(path.file_name().unwrap()), end - cut, &vec![0; cut]);
        assert_eq!(indexes(&read(torn.path()).unwrap()), [0], "{cut} bytes are missing");
        write(torn.path(), &[vec![entry(1, 7)], vec![entry(2, 7)]]).unwrap();
        assert_eq!(indexes(&read(torn.path()).unwrap()), [0, 1, 2], "{cut} bytes were missing");
    }
}

#[test]
fn damage_before_the_last_frame_is_refused() {
    let folder = folder();
    write(folder.path(), &[vec![entry(0, 100)], vec![entry(1, 100)], vec![entry(2, 100)]]).unwrap();
    let (path, _) = last_segment(folder.path());
    let end = end_of_frames(&path);
    overwrite(&path, end - 200, &[0xaa; 4]);
    assert!(matches!(read(folder.path()), Err(BadLog::Corrupt { .. })));
}

#[test]
fn another_gateways_folder_is_refused() {
    let folder = folder();
    write(folder.path(), &[vec![vote(1)]]).unwrap();
    for owner in [Owner { node: 2, ..OWNER }, Owner { genesis: [8; 32], ..OWNER }] {
        assert!(matches!(Wal::open(at(folder.path()), &owner, SEGMENT_BYTES), Err(BadLog::AnotherOwner(_))));
    }
}

#[test]
fn after_a_failed_write_nothing_is_acknowledged() {
    let folder = folder();
    let (wal, _) = Wal::open(at(folder.path()), &OWNER, SEGMENT_BYTES).unwrap();
    put(&wal, vec![vote(1)]).unwrap();
    // A frame above every limit cannot be written; that stands for a disk that fails.
    put(&wal, vec![entry(0, 65 * 1024 * 1024)]).unwrap_err();
    put(&wal, vec![entry(0, 1)]).unwrap_err();
    drop(wal);
    assert_eq!(indexes(&read(folder.path()).unwrap()), Vec::<u64>::new());
}
