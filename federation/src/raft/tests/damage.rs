//! What a disk can do to a member's folder, and what comes of it: each has its own outcome, none loses what was acknowledged.

use std::io;
use std::sync::{Arc, mpsc};

use openraft::storage::{RaftSnapshotBuilder, RaftStateMachine};

use super::founding::genesis;
use super::simulation::disk::{Disk, Wrong};
use crate::raft::folder::Folder;
use crate::raft::segment;
use crate::raft::state_machine::StateMachine;
use crate::raft::wal::{BadLog, Owner, Record, Wal};
use crate::raft::wire::{WireEntry, WireLogId, WirePayload};

const OWNER: Owner = Owner { node: 1, genesis: [7; 32] };
const SEGMENT: u64 = 16 * 1024;

fn entry(index: u64) -> Vec<Record> {
    let id = WireLogId { term: 1, node: 1, index };
    vec![Record::Append(WireEntry { id, payload: WirePayload::Envelope(vec![1 + index as u8; 1_000]) })]
}

fn put(wal: &Wal, index: u64) -> io::Result<()> {
    let (done, written) = mpsc::channel();
    wal.write(entry(index), Some(Box::new(move |result| done.send(result).unwrap())));
    written.recv().unwrap()
}

fn open(folder: &Arc<dyn Folder>) -> Result<(Wal, Vec<u64>), BadLog> {
    let (wal, recovered) = Wal::open(Arc::clone(folder), &OWNER, SEGMENT)?;
    Ok((wal, recovered.entries.iter().map(|entry| entry.id.index).collect()))
}

/// A folder with so many entries, of which 15 fill a segment.
fn holding(entries: u64) -> (Arc<Disk>, Arc<dyn Folder>) {
    let disk = Disk::new(1, false);
    let folder = disk.folder();
    let (wal, _) = open(&folder).unwrap();
    (0..entries).for_each(|index| put(&wal, index).unwrap());
    drop(wal);
    (disk, folder)
}

fn segments(folder: &Arc<dyn Folder>) -> Vec<String> {
    segment::list(&**folder).unwrap().iter().map(|number| format!("{number:016x}.wal")).collect()
}

/// Changes bytes below everybody, as a disk does.
fn overwrite(folder: &Arc<dyn Folder>, name: &str, at: usize, bytes: &[u8]) {
    let file = folder.open(name).unwrap();
    file.write_at(bytes, at as u64).unwrap();
    file.sync().unwrap();
}

#[track_caller]
fn is_corrupt(folder: &Arc<dyn Folder>, what: &str) {
    let error = open(folder).map(|(_, found)| found).expect_err(what);
    assert!(matches!(error, BadLog::Corrupt { .. }), "{what}: {error}");
    let text = error.to_string();
    assert!(text.contains("damaged in segment") && text.contains("join anew"), "{text}");
}

#[test]
fn a_last_record_that_is_cut_at_any_byte_is_gone_and_no_other() {
    let (_, folder) = holding(3);
    let name = segments(&folder).pop().unwrap();
    let bytes = folder.read(&name).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let begin = bytes.windows(4).rposition(|window| window == b"ENTE").unwrap();
    assert!(end - begin > 1_000);
    for cut in begin..end {
        overwrite(&folder, &name, 0, &bytes);
        overwrite(&folder, &name, cut, &vec![0; end - cut]);
        assert_eq!(open(&folder).unwrap().1, [0, 1], "cut at {cut}");
    }
}

#[test]
fn a_page_of_zeros_before_the_end_is_refused() {
    for page in [0, 1, 2] {
        let (_, folder) = holding(15);
        let name = segments(&folder).remove(0);
        overwrite(&folder, &name, page * 4_096, &[0; 4_096]);
        is_corrupt(&folder, "a page of zeros");
    }
}

#[test]
fn a_flipped_bit_is_refused_in_a_sealed_segment_and_before_the_last_record() {
    for (which, upto) in [(0, 15_000), (1, 3_000)] {
        let (_, folder) = holding(20);
        let name = segments(&folder).remove(which);
        let bytes = folder.read(&name).unwrap();
        for at in (0..upto).step_by(701) {
            overwrite(&folder, &name, at, &[bytes[at] ^ 0x10]);
            is_corrupt(&folder, &format!("a bit of byte {at} of segment {which}"));
            overwrite(&folder, &name, at, &[bytes[at]]);
        }
        assert_eq!(open(&folder).unwrap().1, Vec::from_iter(0..20));
    }
}

/// Nothing is acknowledged from then on, whatever the disk says later; what was acknowledged is there after a restart.
#[test]
fn a_disk_that_fails_stops_the_log_for_good() {
    for wrong in [Wrong::Full, Wrong::FailsToWrite, Wrong::FailsToSync] {
        // In the middle of a segment, and where the next one begins.
        for entries in [3, 15] {
            let (disk, folder) = holding(entries);
            let (wal, _) = open(&folder).unwrap();
            disk.set_wrong(Some(wrong));
            let failed = put(&wal, entries).unwrap_err();
            assert_eq!(wrong == Wrong::Full, failed.kind() == io::ErrorKind::StorageFull, "{failed}");
            disk.set_wrong(None);
            let refused = put(&wal, entries).unwrap_err().to_string();
            assert!(refused.contains("has failed before"), "{refused}");
            drop(wal);
            disk.crash();
            disk.start();
            let found = open(&folder).unwrap().1;
            assert!(
                found == Vec::from_iter(0..entries) || found == Vec::from_iter(0..=entries),
                "{wrong:?}: {found:?}"
            );
        }
    }
}

/// A segment is gone on with to its end, for which nothing is opened.
#[test]
fn a_log_without_a_descriptor_for_its_next_segment_stops_for_good() {
    let (disk, folder) = holding(3);
    let (wal, _) = open(&folder).unwrap();
    disk.set_wrong(Some(Wrong::OpensNothing));
    (3..15).for_each(|index| put(&wal, index).unwrap());
    let failed = put(&wal, 15).unwrap_err();
    assert!(failed.to_string().contains("Too many open files"), "{failed}");
    disk.set_wrong(None);
    let refused = put(&wal, 15).unwrap_err().to_string();
    assert!(refused.contains("has failed before"), "{refused}");
    drop(wal);
    disk.crash();
    disk.start();
    assert_eq!(open(&folder).unwrap().1, Vec::from_iter(0..15));
}

/// An entry that is known to be committed before it is written here begins a segment, and the power goes at any operation.
#[test]
fn a_segment_that_begins_promises_no_entry_that_is_not_there() {
    let mut cuts = 0;
    loop {
        let (disk, folder) = holding(15);
        let (wal, _) = open(&folder).unwrap();
        let mut records = entry(15);
        records.push(Record::Committed(Some(WireLogId { term: 1, node: 1, index: 15 })));
        disk.cut_power_after(cuts);
        let (done, written) = mpsc::channel();
        wal.write(records, Some(Box::new(move |result| done.send(result).unwrap())));
        let is_written = written.recv().unwrap().is_ok();
        drop(wal);
        disk.crash();
        disk.start();
        let (_, recovered) = Wal::open(Arc::clone(&folder), &OWNER, SEGMENT).unwrap();
        let last = recovered.entries.back().unwrap().id;
        assert!(
            recovered.committed.is_none_or(|it| it.index <= last.index),
            "{:?} of {last:?} after {cuts} operations",
            recovered.committed
        );
        if is_written {
            break assert_eq!((recovered.committed, last.index), (Some(last), 15));
        }
        cuts += 1;
    }
    assert!(cuts > 3, "the power went after {cuts} operations");
}

#[tokio::test]
async fn a_snapshot_that_cannot_be_written_leaves_the_one_before() {
    for wrong in [Wrong::Full, Wrong::FailsToWrite, Wrong::FailsToSync] {
        let disk = Disk::new(1, false);
        let mut machine = StateMachine::open(disk.folder(), &genesis()).unwrap();
        let id = |index| WireLogId { term: 1, node: 1, index };
        let meta = |index| {
            let membership = super::script::everybody();
            let meta = crate::raft::wire::WireMeta { last: Some(id(index)), membership_at: Some(id(0)), membership };
            meta.open().unwrap()
        };
        let bytes = |index| {
            let mut registry = machine.shared().read(Clone::clone);
            registry.advance(crate::time::Revision(index));
            registry.to_bytes().into()
        };
        let (first, second): (bytes::Bytes, bytes::Bytes) = (bytes(3), bytes(9));
        machine.install_snapshot(&meta(3), first).await.unwrap();
        disk.set_wrong(Some(wrong));
        machine.install_snapshot(&meta(9), second).await.unwrap_err();
        let _not_newer = machine.get_snapshot_builder().await.build_snapshot().await;
        disk.crash();
        disk.start();
        let again = StateMachine::open(disk.folder(), &genesis()).unwrap();
        assert_eq!(again.shared().read(|registry| registry.revision().0), 3, "{wrong:?}");
    }
}

#[test]
fn another_releases_folder_is_refused_and_says_so() {
    for version in [0, 2] {
        let (_, folder) = holding(2);
        overwrite(&folder, "owner", 0, &[version]);
        let text = open(&folder).map(|(_, found)| found).unwrap_err().to_string();
        assert!(text.contains("another release") && text.contains(&format!("version {version}")), "{text}");
    }
}

#[test]
fn another_gateways_or_federations_folder_is_refused_and_says_so() {
    let (_, folder) = holding(2);
    for owner in [Owner { node: 2, ..OWNER }, Owner { genesis: [8; 32], ..OWNER }] {
        let refused = Wal::open(Arc::clone(&folder), &owner, SEGMENT).map(|_| ()).unwrap_err();
        let text = refused.to_string();
        assert!(text.contains("another gateway or federation") && text.contains("its own data folder"), "{text}");
    }
}
