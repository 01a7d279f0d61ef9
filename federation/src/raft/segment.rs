//! Segments: the files of the log. Frames one behind the other in a file whose length never changes, so that a sync writes
//! data and no metadata.
//!
//! ```text
//! frame    "ENTE" | length u32 | number u64 | crc32 u32 | content        little-endian
//! ```
//!
//! Invariants: frames are numbered without a gap over all segments; behind the last frame there are only zeros; the
//! checksum is salted, so that no content can pose as a frame.

use std::io;

use super::folder::{File, Folder};

/// 16 MiB of zeros take about 10 ms to make, in the background.
pub const SEGMENT_BYTES: u64 = 16 * 1024 * 1024;
/// The file that becomes the next segment.
const SPARE: &str = "spare";
const MAGIC: [u8; 4] = *b"ENTE";
const HEAD_BYTES: usize = 20;
/// No frame is larger: the writer gathers at most 8 MiB, and one record may be 1 MiB above that.
const FRAME_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A file of frames, open for writing at its end.
pub struct Segment {
    pub number: u64,
    file: Box<dyn File>,
    end: u64,
    bytes: u64,
}

/// What a segment holds, and where its frames end.
pub struct Contents {
    pub frames: Vec<Vec<u8>>,
    /// Bytes up to the end of the last good frame.
    pub end: u64,
    /// What stands behind it.
    pub tail: Tail,
}

/// What stands behind the last good frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    /// Zeros.
    Clean,
    /// Part of a frame that was being written when the machine stopped; nobody was told that it is there.
    Torn,
    /// A frame is damaged, but one behind it is whole: what was acknowledged is lost.
    Corrupt,
}

impl Segment {
    /// Begins the segment whose first frame has this number, in the spare file if that is large enough.
    pub fn begin(folder: &dyn Folder, number: u64, bytes: u64) -> io::Result<Segment> {
        if folder.open(SPARE).and_then(|it| it.size()).unwrap_or(0) < bytes {
            make_spare(folder, bytes)?;
        }
        folder.rename(SPARE, &name_of(number))?;
        folder.sync()?;
        let file = folder.open(&name_of(number))?;
        Ok(Segment { number, file, end: 0, bytes })
    }

    /// Opens a file of at least `bytes` to write behind its last good frame; what stands there is wiped first.
    pub fn open(folder: &dyn Folder, number: u64, contents: &Contents, bytes: u64) -> io::Result<Segment> {
        let file = folder.open(&name_of(number))?;
        let bytes = file.size()?.max(bytes);
        if contents.tail != Tail::Clean || file.size()? < bytes {
            let zeros = vec![0; (bytes - contents.end) as usize];
            file.write_at(&zeros, contents.end)?;
            file.sync()?;
        }
        Ok(Segment { number, file, end: contents.end, bytes })
    }

    /// Whether a frame of this content still fits.
    pub fn has_room(&self, content: usize) -> bool {
        self.end + frame_bytes(content) <= self.bytes
    }

    /// How much of the file is written.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Writes one frame and waits until it is on the disk.
    pub fn append(&mut self, number: u64, salt: u32, content: &[u8]) -> io::Result<()> {
        let frame = frame(number, salt, content)?;
        self.file.write_at(&frame, self.end)?;
        self.file.sync()?;
        self.end += frame.len() as u64;
        Ok(())
    }
}

/// Makes the file of zeros that the next segment is begun in.
pub fn make_spare(folder: &dyn Folder, bytes: u64) -> io::Result<()> {
    let file = folder.create("spare.new")?;
    let zeros = vec![0; bytes.min(1024 * 1024) as usize];
    let mut made = 0;
    while made < bytes {
        let now = (bytes - made).min(zeros.len() as u64);
        file.write_at(&zeros[..now as usize], made)?;
        made += now;
    }
    file.sync()?;
    folder.rename("spare.new", SPARE)
}

/// Removes a segment.
pub fn remove(folder: &dyn Folder, number: u64) -> io::Result<()> {
    folder.remove(&name_of(number))
}

/// The segments in a folder, in order. Files that were being made are removed.
pub fn list(folder: &dyn Folder) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for name in folder.names()? {
        match name.rsplit_once('.') {
            Some((_, "new")) => folder.remove(&name)?,
            Some((stem, "wal")) => numbers.push(u64::from_str_radix(stem, 16).map_err(|_| stray(folder, &name))?),
            _ => {}
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Reads a segment's frames, which must be numbered from `first`.
pub fn read(folder: &dyn Folder, segment: u64, first: u64, salt: u32) -> io::Result<Contents> {
    let bytes = folder.read(&name_of(segment))?;
    let (mut frames, mut at) = (Vec::new(), 0);
    while let Some((content, next)) = frame_at(&bytes, at, first + frames.len() as u64, salt) {
        frames.push(content.to_vec());
        at = next;
    }
    let rest = &bytes[at..];
    let tail = if rest.iter().all(|byte| *byte == 0) {
        Tail::Clean
    } else if any_frame_in(&bytes, at + 1, salt) {
        Tail::Corrupt
    } else {
        Tail::Torn
    };
    Ok(Contents { frames, end: at as u64, tail })
}

fn name_of(number: u64) -> String {
    format!("{number:016x}.wal")
}

fn stray(folder: &dyn Folder, name: &str) -> io::Error {
    let path = folder.path().join(name);
    io::Error::new(io::ErrorKind::InvalidData, format!("{} does not belong to the log", path.display()))
}

fn frame_bytes(content: usize) -> u64 {
    (HEAD_BYTES + content) as u64
}

fn checksum(number: u64, salt: u32, content: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(salt);
    hasher.update(&number.to_le_bytes());
    hasher.update(&(content.len() as u64).to_le_bytes());
    hasher.update(content);
    hasher.finalize()
}

pub fn frame(number: u64, salt: u32, content: &[u8]) -> io::Result<Vec<u8>> {
    let length = u32::try_from(content.len()).ok().filter(|length| *length as usize <= FRAME_BYTES_MAX);
    let length = length.ok_or_else(|| io::Error::new(io::ErrorKind::FileTooLarge, "a frame is too large"))?;
    let mut frame = Vec::with_capacity(HEAD_BYTES + content.len());
    frame.extend_from_slice(&MAGIC);
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(&number.to_le_bytes());
    frame.extend_from_slice(&checksum(number, salt, content).to_le_bytes());
    frame.extend_from_slice(content);
    Ok(frame)
}

/// The frame of this number at this place, and where the next would be.
pub fn frame_at(bytes: &[u8], at: usize, number: u64, salt: u32) -> Option<(&[u8], usize)> {
    let (found, content, next) = any_frame_at(bytes, at, salt)?;
    (found == number).then_some((content, next))
}

fn any_frame_at(bytes: &[u8], at: usize, salt: u32) -> Option<(u64, &[u8], usize)> {
    let head = bytes.get(at..at + HEAD_BYTES)?;
    let length = u32::from_le_bytes(head[4..8].try_into().ok()?) as usize;
    let number = u64::from_le_bytes(head[8..16].try_into().ok()?);
    let crc = u32::from_le_bytes(head[16..20].try_into().ok()?);
    if head[..4] != MAGIC || length > FRAME_BYTES_MAX {
        return None;
    }
    let next = at + HEAD_BYTES + length;
    let content = bytes.get(at + HEAD_BYTES..next)?;
    (checksum(number, salt, content) == crc).then_some((number, content, next))
}

pub fn any_frame_in(bytes: &[u8], from: usize, salt: u32) -> bool {
    (from..bytes.len().saturating_sub(HEAD_BYTES))
        .any(|at| bytes[at..].starts_with(&MAGIC) && any_frame_at(bytes, at, salt).is_some())
}
