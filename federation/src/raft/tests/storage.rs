//! What the write-ahead log holds after stops, tears and damage.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc;

use tempfile::TempDir;

use crate::raft::segment;
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
    let (wal, _) = Wal::open(folder, &OWNER).unwrap();
    for records in frames {
        let (done, written) = mpsc::channel();
        wal.write(records.clone(), Some(Box::new(move |result| done.send(result).unwrap())));
        written.recv().unwrap()?;
    }
    Ok(())
}

fn read(folder: &Path) -> Result<Recovered, BadLog> {
    Wal::open(folder, &OWNER).map(|(_, recovered)| recovered)
}

fn indexes(recovered: &Recovered) -> Vec<u64> {
    recovered.entries.iter().map(|entry| entry.id.index).collect()
}

fn last_segment(folder: &Path) -> (std::path::PathBuf, u64) {
    let number = *segment::list(folder).unwrap().last().unwrap();
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
    assert_eq!(segment::list(folder.path()).unwrap().len(), 1, "the others were purged");
    let found = read(folder.path()).unwrap();
    assert_eq!(found.vote.unwrap().term, 9);
    assert_eq!((indexes(&found), found.purged), (vec![39], Some(id(38))));
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
        assert!(matches!(Wal::open(folder.path(), &owner), Err(BadLog::AnotherOwner(_))));
    }
}

#[test]
fn after_a_failed_write_nothing_is_acknowledged() {
    let folder = folder();
    let (wal, _) = Wal::open(folder.path(), &OWNER).unwrap();
    let put = |records: Vec<Record>| {
        let (done, written) = mpsc::channel();
        wal.write(records, Some(Box::new(move |result| done.send(result).unwrap())));
        written.recv().unwrap()
    };
    put(vec![vote(1)]).unwrap();
    // A frame above every limit cannot be written; that stands for a disk that fails.
    put(vec![entry(0, 65 * 1024 * 1024)]).unwrap_err();
    put(vec![entry(0, 1)]).unwrap_err();
    drop(wal);
    assert_eq!(indexes(&read(folder.path()).unwrap()), Vec::<u64>::new());
}
