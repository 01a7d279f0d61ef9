//! The write-ahead log: entries, votes and truncations in one order, on the disk before anybody is told.
//!
//! One thread writes. What waits together becomes one frame and one sync. Each segment begins with what must never be
//! lost with an older one: whose log it is, the vote, how far it was purged and committed.
//!
//! Invariants: a record is acknowledged after its frame is synced; after the first failed write or sync nothing is
//! acknowledged any more; a torn last frame is cut, a damaged one before the last is refused.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::folder::Folder;
use super::probe;
use super::segment::{self, Segment, Tail};
use super::wire::{BadWire, WireEntry, WireLogId, WirePayload, WireVote, decode, encode};

/// Gathered into one frame at most, entries above it go into the next.
const FRAME_BYTES: usize = 8 * 1024 * 1024;
const RECORDS_PER_FRAME: usize = 4_096;
/// Room for a segment's first frame.
const HEAD_BYTES: usize = 512;
/// Names the folder's owner and the salt of its checksums.
const OWNER_FILE: &str = "owner";

/// Whose log a folder holds. Another gateway's is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    pub node: u64,
    /// Digest of the genesis.
    pub genesis: [u8; 32],
}

/// One change of the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Record {
    Append(WireEntry),
    Vote(WireVote),
    /// Entries behind this one are gone.
    TruncateAfter(Option<WireLogId>),
    /// Entries up to this one are in a snapshot.
    Purge(WireLogId),
    /// Everything up to here was committed; written with whatever comes next.
    Committed(Option<WireLogId>),
    /// First in every segment.
    Head(Head),
}

/// What a segment repeats of those before it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Head {
    pub vote: Option<WireVote>,
    pub purged: Option<WireLogId>,
    pub committed: Option<WireLogId>,
}

/// What a log holds when it is opened.
#[derive(Debug, Default, PartialEq)]
pub struct Recovered {
    pub vote: Option<WireVote>,
    pub purged: Option<WireLogId>,
    pub committed: Option<WireLogId>,
    /// In order, without a gap, behind `purged`.
    pub entries: VecDeque<WireEntry>,
}

/// Why a folder's log cannot be used.
#[derive(Debug, Error)]
pub enum BadLog {
    #[error("the log in {folder} cannot be read: {cause}")]
    Io { folder: PathBuf, cause: io::Error },
    #[error(
        "the log in {0} belongs to another gateway or federation; give this gateway its own data folder, or an empty one"
    )]
    AnotherOwner(PathBuf),
    #[error(
        "the log in {folder} is damaged in segment {segment:016x}: what was acknowledged is lost there. Do not repair it by \
         hand; keep the folder for inspection and let this gateway join anew"
    )]
    Corrupt { folder: PathBuf, segment: u64 },
    #[error("the log in {folder} was written by another release: {cause}")]
    Version { folder: PathBuf, cause: BadWire },
}

/// Called with the result once a record is synced.
pub type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

enum Order {
    Write { records: Vec<Record>, done: Option<Done> },
    Stop,
}

/// A log open for writing. Dropping it writes what waits and closes it.
pub struct Wal {
    orders: UnboundedSender<Order>,
    writer: Option<JoinHandle<()>>,
}

impl Wal {
    /// Opens or begins the log in a folder.
    pub fn open(folder: Arc<dyn Folder>, owner: &Owner, segment_bytes: u64) -> Result<(Wal, Recovered), BadLog> {
        let salt = claim(&*folder, owner)?;
        let (recovered, files) = recover(&*folder, salt, segment_bytes)?;
        let (orders, waiting) = unbounded_channel();
        let path = folder.path().to_owned();
        let writer = Writer {
            folder,
            segment_bytes,
            salt,
            next_frame: files.next_frame,
            head: Head { vote: recovered.vote, purged: recovered.purged, committed: recovered.committed },
            sealed: files.sealed,
            current: files.current,
            current_last: files.current_last,
            spare: None,
            failed: false,
        };
        let writer = writer.begin(waiting).map_err(|cause| BadLog::Io { folder: path, cause })?;
        Ok((Wal { orders, writer }, recovered))
    }

    /// Writes records in order; `done` hears when they are on the disk, or that they never will be.
    pub fn write(&self, records: Vec<Record>, done: Option<Done>) {
        if let Err(lost) = self.orders.send(Order::Write { records, done })
            && let Order::Write { done: Some(done), .. } = lost.0
        {
            done(Err(stopped()));
        }
    }
}

impl Drop for Wal {
    fn drop(&mut self) {
        let _already_gone = self.orders.send(Order::Stop);
        if let Some(writer) = self.writer.take() {
            let _panicked = writer.join();
        }
    }
}

fn stopped() -> io::Error {
    io::Error::other("the log has failed before and accepts nothing more")
}

/// Makes the folder this owner's, or finds that it is. Gives the salt of its checksums.
fn claim(folder: &dyn Folder, owner: &Owner) -> Result<u32, BadLog> {
    let failed = |cause| BadLog::Io { folder: folder.path().to_owned(), cause };
    match folder.read(OWNER_FILE) {
        Ok(bytes) => {
            let (found, salt): (Owner, u32) =
                decode(&bytes).map_err(|cause| BadLog::Version { folder: folder.path().to_owned(), cause })?;
            if found == *owner { Ok(salt) } else { Err(BadLog::AnotherOwner(folder.path().to_owned())) }
        }
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
            if !segment::list(folder).map_err(failed)?.is_empty() {
                return Err(BadLog::AnotherOwner(folder.path().to_owned()));
            }
            let salt = u32::from_le_bytes(certs::entropy::bytes());
            let written = || {
                let file = folder.create("owner.new")?;
                file.write_at(&encode(&(owner, salt)), 0)?;
                file.sync()?;
                folder.rename("owner.new", OWNER_FILE)?;
                folder.sync()
            };
            written().map_err(failed)?;
            Ok(salt)
        }
        Err(cause) => Err(failed(cause)),
    }
}

/// The files behind what was recovered.
struct Files {
    sealed: VecDeque<(u64, u64)>,
    current: Option<Segment>,
    current_last: u64,
    next_frame: u64,
}

fn recover(folder: &dyn Folder, salt: u32, segment_bytes: u64) -> Result<(Recovered, Files), BadLog> {
    let failed = |cause| BadLog::Io { folder: folder.path().to_owned(), cause };
    let numbers = segment::list(folder).map_err(failed)?;
    let mut recovered = Recovered::default();
    let mut files = Files { sealed: VecDeque::new(), current: None, current_last: 0, next_frame: 0 };
    for (place, number) in numbers.iter().enumerate() {
        let corrupt = || BadLog::Corrupt { folder: folder.path().to_owned(), segment: *number };
        let is_last = place + 1 == numbers.len();
        if place == 0 {
            // Earlier segments may have been removed: the first frame says its own number.
            files.next_frame = *number;
        }
        let contents = segment::read(folder, *number, files.next_frame, salt).map_err(failed)?;
        if contents.tail == Tail::Corrupt || (contents.tail == Tail::Torn && !is_last) {
            return Err(corrupt());
        }
        if contents.frames.is_empty() && !is_last || *number != files.next_frame {
            return Err(corrupt());
        }
        let mut last_index = 0;
        for frame in &contents.frames {
            let records: Vec<Record> =
                decode(frame).map_err(|cause| BadLog::Version { folder: folder.path().to_owned(), cause })?;
            for record in records {
                if let Record::Append(entry) = &record {
                    last_index = last_index.max(entry.id.index);
                }
                recovered.replay(record).ok_or_else(corrupt)?;
            }
        }
        files.next_frame += contents.frames.len() as u64;
        if is_last {
            files.current = Some(Segment::open(folder, *number, &contents, segment_bytes).map_err(failed)?);
            files.current_last = last_index;
        } else {
            files.sealed.push_back((*number, last_index));
        }
    }
    if !recovered.begins_where_it_was_purged() {
        let first = numbers.first().copied().unwrap_or_default();
        return Err(BadLog::Corrupt { folder: folder.path().to_owned(), segment: first });
    }
    Ok((recovered, files))
}

impl Recovered {
    /// Takes over one record; `None` if it cannot follow what is there.
    fn replay(&mut self, record: Record) -> Option<()> {
        match record {
            Record::Append(entry) => {
                let index = entry.id.index;
                if self.purged.is_some_and(|purged| index <= purged.index) {
                    return Some(());
                }
                // The first may stand anywhere: entries before it were in segments that a later purge removed, and the
                // head of this one says only how far the log was purged when the segment began.
                if self.entries.back().is_some_and(|last| index != last.id.index + 1) {
                    return None;
                }
                self.entries.push_back(entry);
            }
            Record::Vote(vote) => self.vote = Some(vote),
            Record::TruncateAfter(last) => {
                let kept = |entry: &WireEntry| last.is_some_and(|last| entry.id.index <= last.index);
                while self.entries.back().is_some_and(|entry| !kept(entry)) {
                    self.entries.pop_back();
                }
            }
            Record::Purge(upto) => self.purge(upto),
            Record::Committed(committed) => self.committed = committed,
            Record::Head(head) => {
                self.vote = head.vote;
                self.committed = head.committed;
                if let Some(purged) = head.purged {
                    self.purge(purged);
                }
            }
        }
        Some(())
    }

    /// Whether nothing is missing between what was purged and the first entry. True of every whole log once all of its
    /// records are read, but not before.
    fn begins_where_it_was_purged(&self) -> bool {
        let first = self.purged.map_or(0, |purged| purged.index + 1);
        self.entries.front().is_none_or(|entry| entry.id.index == first)
    }

    fn purge(&mut self, upto: WireLogId) {
        while self.entries.front().is_some_and(|entry| entry.id.index <= upto.index) {
            self.entries.pop_front();
        }
        self.purged = Some(upto);
    }
}

/// What writes, on a thread of its own.
struct Writer {
    folder: Arc<dyn Folder>,
    segment_bytes: u64,
    salt: u32,
    next_frame: u64,
    head: Head,
    /// Full segments and the last index in each.
    sealed: VecDeque<(u64, u64)>,
    current: Option<Segment>,
    current_last: u64,
    /// The next segment, while it is being filled with zeros.
    spare: Option<JoinHandle<io::Result<()>>>,
    failed: bool,
}

impl Writer {
    fn begin(self, orders: UnboundedReceiver<Order>) -> io::Result<Option<JoinHandle<()>>> {
        if probe::is_simulated() {
            probe::spawn_simulated(self.run_simulated(orders));
            return Ok(None);
        }
        thread::Builder::new().name("log".into()).spawn(move || self.run(orders)).map(Some)
    }

    fn run(mut self, mut orders: UnboundedReceiver<Order>) {
        while let Some(first) = orders.blocking_recv() {
            let (records, dones, stop) = gather(first, &mut orders);
            tell(&self.commit(records), dones);
            if stop {
                self.join_spare();
                return;
            }
        }
    }

    /// The same as a task; a disk that takes time gives a crash its chance before a frame and behind it.
    async fn run_simulated(mut self, mut orders: UnboundedReceiver<Order>) {
        while let Some(first) = orders.recv().await {
            probe::disk_takes_time().await;
            let (records, dones, stop) = gather(first, &mut orders);
            let result = self.commit(records);
            probe::disk_takes_time().await;
            tell(&result, dones);
            if stop {
                return;
            }
        }
    }

    fn commit(&mut self, records: Vec<Record>) -> io::Result<()> {
        if self.failed {
            return Err(stopped());
        }
        let written = self.write(records);
        // After a failed sync nobody knows what is on the disk: the page cache may claim what the disk lost.
        self.failed |= written.is_err();
        written
    }

    fn write(&mut self, records: Vec<Record>) -> io::Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        let must_sync = records.iter().any(|record| !matches!(record, Record::Committed(_)));
        let mut purged = None;
        let mut last = self.current_last;
        let mut head = self.head.clone();
        for record in &records {
            match record {
                Record::Append(entry) => last = last.max(entry.id.index),
                Record::Vote(vote) => head.vote = Some(*vote),
                Record::Purge(upto) => {
                    head.purged = Some(*upto);
                    purged = Some(*upto);
                }
                Record::Committed(committed) => head.committed = *committed,
                Record::TruncateAfter(_) | Record::Head(_) => {}
            }
        }
        if !must_sync {
            // Rides with the next frame, in its head or as the last of its kind.
            self.head = head;
            return Ok(());
        }
        let content = encode(&with_committed(records, head.committed));
        // A segment that begins here repeats what is written already: were it to say that an entry of this frame is committed, and
        // the power went before the frame, the log would be said to be longer than it is.
        self.room_for(content.len())?;
        self.head = head;
        let segment = self.current.as_mut().expect("invariant: there is room, so there is a segment");
        segment.append(self.next_frame, self.salt, &content)?;
        self.next_frame += 1;
        self.current_last = last;
        self.prepare_spare();
        if let Some(upto) = purged {
            self.remove_before(upto.index)?;
        }
        Ok(())
    }

    /// Makes sure that a frame of this content fits into the current segment, by beginning another.
    fn room_for(&mut self, content: usize) -> io::Result<()> {
        if self.current.as_ref().is_some_and(|it| it.has_room(content) && it.end() > 0) {
            return Ok(());
        }
        let empty = self.current.take_if(|it| it.has_room(content + HEAD_BYTES) && it.end() == 0);
        if let Some(full) = self.current.take() {
            self.sealed.push_back((full.number, self.current_last));
        }
        self.join_spare();
        let mut segment = match empty {
            Some(segment) => segment,
            None => {
                let bytes = self.segment_bytes.max((content + HEAD_BYTES) as u64);
                Segment::begin(&*self.folder, self.next_frame, bytes)?
            }
        };
        let head = Record::Head(self.head.clone());
        segment.append(self.next_frame, self.salt, &encode(&vec![head]))?;
        self.next_frame += 1;
        self.current_last = 0;
        self.current = Some(segment);
        Ok(())
    }

    /// Fills the next segment with zeros while this one is being written, once it is half full.
    fn prepare_spare(&mut self) {
        let half_full = self.current.as_ref().is_some_and(|it| it.end() > self.segment_bytes / 2);
        if half_full && self.spare.is_none() && !probe::is_simulated() {
            let (folder, bytes) = (Arc::clone(&self.folder), self.segment_bytes);
            let making = thread::Builder::new().name("log-spare".into());
            self.spare = making.spawn(move || segment::make_spare(&*folder, bytes)).ok();
        }
    }

    fn join_spare(&mut self) {
        if let Some(making) = self.spare.take() {
            // If it could not be made, beginning the segment tries again and says why not.
            let _made_again_if_missing = making.join();
        }
    }

    /// Removes segments whose entries are all purged. The current one stays: it repeats the vote.
    fn remove_before(&mut self, index: u64) -> io::Result<()> {
        let before = self.sealed.len();
        while let Some((number, _)) = self.sealed.front().filter(|(_, last)| *last <= index) {
            segment::remove(&*self.folder, *number)?;
            self.sealed.pop_front();
        }
        if self.sealed.len() == before { Ok(()) } else { self.folder.sync() }
    }
}

/// Takes what waits, up to a frame's worth, so that it shares one sync.
fn gather(first: Order, orders: &mut UnboundedReceiver<Order>) -> (Vec<Record>, Vec<Done>, bool) {
    let (mut gathered, mut dones, mut bytes) = (Vec::new(), Vec::new(), 0);
    let mut next = Some(first);
    while let Some(order) = next {
        match order {
            Order::Stop => return (gathered, dones, true),
            Order::Write { records, done } => {
                bytes += records.iter().map(size).sum::<usize>();
                gathered.extend(records);
                dones.extend(done);
            }
        }
        let full = bytes >= FRAME_BYTES || gathered.len() >= RECORDS_PER_FRAME;
        next = if full { None } else { orders.try_recv().ok() };
    }
    (gathered, dones, false)
}

fn tell(result: &io::Result<()>, dones: Vec<Done>) {
    for done in dones {
        done(result.as_ref().copied().map_err(|cause| io::Error::new(cause.kind(), cause.to_string())));
    }
}

fn size(record: &Record) -> usize {
    match record {
        Record::Append(WireEntry { payload: WirePayload::Envelope(bytes), .. }) => bytes.len(),
        _ => 64,
    }
}

/// Only the newest commit index counts, and only as a hint.
fn with_committed(mut records: Vec<Record>, committed: Option<WireLogId>) -> Vec<Record> {
    records.retain(|record| !matches!(record, Record::Committed(_)));
    records.extend(committed.is_some().then_some(Record::Committed(committed)));
    records
}
