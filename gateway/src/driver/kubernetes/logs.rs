//! Logs: a bounded copy of what every executor wrote, gathered from an API that knows no offsets.
//!
//! The API gives lines with times, from a second on. Where the reading is, is known by the time of the last line and by
//! how many lines had it. A pod's log has both streams in one, so all of it is in the copy that answers for `stdout`.
//!
//! What was written is kept as it is: bytes, which need not be text.
//!
//! ```text
//! <job>.<n>.<executor>.log      the copy
//! <job>.<n>.<executor>.cursor   where the reading was when the copy had so many bytes; what is beyond is read again
//! ```
//! Invariant: a copy has at most [`LOG_BYTES_MAX`] and a word about it where it was cut.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::driver::TAIL_BYTES_MAX;
use crate::driver::capture::LOG_BYTES_MAX;
use crate::driver::folder::{Key, draft_name};

/// Of one answer. More than this in one second is left out.
pub(super) const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;
const FULL: &str = "\n[entente: the log is full at 64 MiB; what follows is not kept]\n";
const LEFT_OUT: &str = "\n[entente: more than 16 MiB were written in a second, and are not kept]\n";

/// Where the reading of one log is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Cursor {
    last: Option<Last>,
    /// Of the copy.
    bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Last {
    at: Timestamp,
    /// Lines with this time that were read.
    same: usize,
}

impl Cursor {
    /// Lines from here on are asked for; the API has whole seconds.
    pub fn since(&self) -> Option<Timestamp> {
        self.last.map(|last| last.at)
    }

    /// Of an answer, what was not read before, without the times. The last line counts when it is whole, or when nothing
    /// will follow.
    fn take(&mut self, answer: &[u8], is_final: bool) -> Vec<u8> {
        let lines = answer.split_inclusive(|it| *it == b'\n').filter(|line| is_final || line.ends_with(b"\n"));
        let lines: Vec<(Option<Timestamp>, &[u8])> = lines.map(parse).collect();
        let start = self.start(&lines);
        let new: Vec<u8> = lines[start..].iter().flat_map(|(_, text)| *text).copied().collect();
        if let Some(at) = lines[start..].iter().rev().find_map(|(at, _)| *at) {
            let same = lines.iter().filter(|(it, _)| *it == Some(at)).count();
            self.last = Some(Last { at, same });
        } else if new.is_empty() && answer.len() >= ANSWER_BYTES_MAX {
            return self.leave_out(answer);
        }
        new
    }

    /// The answer ends before what is new begins, or before its first line does, and so would the next one.
    fn leave_out(&mut self, answer: &[u8]) -> Vec<u8> {
        let begun = || answer.split_inclusive(|it| *it == b'\n').next().and_then(|line| parse(line).0);
        let at = self.last.map(|last| last.at).or_else(begun);
        let next = at.and_then(|at| Timestamp::from_second(at.as_second() + 1).ok());
        self.last = next.map(|at| Last { at, same: 0 }).or(self.last);
        if next.is_some() { LEFT_OUT.into() } else { Vec::new() }
    }

    /// The first line that was not read.
    fn start(&self, lines: &[(Option<Timestamp>, &[u8])]) -> usize {
        let Some(last) = self.last else {
            return 0;
        };
        let with_it = lines.iter().enumerate().filter(|(_, (at, _))| *at == Some(last.at));
        if last.same > 0
            && let Some((index, _)) = with_it.clone().nth(last.same - 1)
        {
            return index + 1;
        }
        // The line itself is gone, as logs are rotated.
        let is_new = |at: &Option<Timestamp>| at.is_some_and(|at| at > last.at || (at == last.at && last.same == 0));
        lines.iter().position(|(at, _)| is_new(at)).unwrap_or(lines.len())
    }
}

/// A line's time and its text. What has no time is the rest of a line.
fn parse(line: &[u8]) -> (Option<Timestamp>, &[u8]) {
    // A line without text has no space after its time.
    let length = line.iter().position(|it| matches!(it, b' ' | b'\n')).unwrap_or(line.len());
    let at = std::str::from_utf8(&line[..length]).ok().and_then(|it| it.parse().ok());
    let text = match line.get(length) {
        _ if at.is_none() => line,
        Some(b' ') => &line[length + 1..],
        _ => &line[length..],
    };
    (at, text)
}

/// All copies of one cluster's logs.
#[derive(Clone, Debug)]
pub(super) struct Logs {
    folder: PathBuf,
}

impl Logs {
    pub fn open(folder: &Path) -> io::Result<Logs> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        Ok(Logs { folder: folder.to_owned() })
    }

    /// Where the reading was. Nothing is lost by one that is unreadable: the log is read again.
    pub fn cursor(&self, key: Key, step: usize) -> Cursor {
        let bytes = fs::read(self.path(key, step, "cursor"));
        bytes.ok().and_then(|it| serde_json::from_slice(&it).ok()).unwrap_or_default()
    }

    /// Adds what is new in an answer to the copy.
    pub fn add(&self, key: Key, step: usize, mut cursor: Cursor, answer: &[u8], is_final: bool) -> io::Result<()> {
        let new = cursor.take(answer, is_final);
        if new.is_empty() {
            return Ok(());
        }
        let path = self.path(key, step, "log");
        let mut file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
        // What a crash left beyond the cursor comes again.
        file.set_len(cursor.bytes)?;
        file.seek(SeekFrom::Start(cursor.bytes))?;
        let room = LOG_BYTES_MAX.saturating_sub(cursor.bytes);
        let kept = new.len().min(usize::try_from(room).unwrap_or(usize::MAX));
        file.write_all(&new[..kept])?;
        cursor.bytes += kept as u64;
        if kept < new.len() && room > 0 {
            file.write_all(FULL.as_bytes())?;
            cursor.bytes = LOG_BYTES_MAX + FULL.len() as u64;
            file.set_len(cursor.bytes)?;
        }
        drop(file);
        let draft = self.folder.join(draft_name());
        fs::write(&draft, serde_json::to_vec(&cursor)?)?;
        fs::rename(draft, self.path(key, step, "cursor"))
    }

    /// A piece of the copy. One that is not there yet is empty.
    pub fn read(&self, key: Key, step: usize, offset: u64, max: usize) -> io::Result<Vec<u8>> {
        let mut file = match fs::File::open(self.path(key, step, "log")) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            opened => opened?,
        };
        file.seek(SeekFrom::Start(offset))?;
        let mut bytes = Vec::new();
        file.take(max as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// The end of the copy.
    pub fn tail(&self, key: Key, step: usize) -> io::Result<String> {
        let size = fs::metadata(self.path(key, step, "log")).map_or(0, |it| it.len());
        let bytes = self.read(key, step, size.saturating_sub(TAIL_BYTES_MAX as u64), TAIL_BYTES_MAX)?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let from = text.ceil_char_boundary(text.len().saturating_sub(TAIL_BYTES_MAX));
        Ok(text[from..].to_owned())
    }

    pub fn remove(&self, key: Key, steps: usize) -> io::Result<()> {
        for step in 0..steps {
            for kind in ["log", "cursor"] {
                match fs::remove_file(self.path(key, step, kind)) {
                    Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(cause),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn path(&self, (job, attempt): Key, step: usize, kind: &str) -> PathBuf {
        self.folder.join(format!("{job}.{attempt}.{step}.{kind}"))
    }
}

#[cfg(test)]
mod tests {
    use federation::JobId;

    use super::*;

    fn line(nanos: u32, text: &str) -> String {
        format!("2026-01-01T00:00:01.{nanos:09}Z {text}\n")
    }

    fn take(cursor: &mut Cursor, answer: &str, is_final: bool) -> String {
        String::from_utf8(cursor.take(answer.as_bytes(), is_final)).expect("text")
    }

    #[test]
    fn each_answer_adds_what_the_one_before_did_not_have() {
        let mut cursor = Cursor::default();
        let first = line(1, "a") + &line(2, "b") + &line(2, "b");
        assert_eq!(take(&mut cursor, &first, false), "a\nb\nb\n");
        assert_eq!(take(&mut cursor, &first, false), "");
        let second = first.clone() + &line(2, "b") + &line(3, "c") + "2026-01-01T00:00:02Z half";
        assert_eq!(take(&mut cursor, &second, false), "b\nc\n");
        assert_eq!(take(&mut cursor, &second, true), "half");
        assert_eq!(cursor.since().map(|it| it.to_string()).as_deref(), Some("2026-01-01T00:00:02Z"));
    }

    #[test]
    fn odd_lines_and_rotated_logs_lose_nothing_and_repeat_nothing() {
        let mut cursor = Cursor::default();
        // Empty lines, a zone of the node's own, lines out of order, and a rest of a line.
        let answer = "2026-01-01T00:00:01Z \n2026-01-01T00:00:02Z\n2026-01-01T02:00:03+02:00 x\n".to_owned();
        assert_eq!(take(&mut cursor, &answer, false), "\n\nx\n");
        let more = answer + "2026-01-01T00:00:02.5Z late\nrest\n";
        assert_eq!(take(&mut cursor, &more, false), "late\nrest\n");
        let rotated = "2026-01-01T00:00:01Z old\n2026-01-01T00:00:09Z new\n";
        assert_eq!(take(&mut cursor, rotated, false), "new\n");
        assert_eq!(take(&mut cursor, "", false), "");
    }

    #[test]
    fn bytes_that_are_no_text_are_kept_as_they_are() {
        let mut cursor = Cursor::default();
        assert_eq!(cursor.take(b"2026-01-01T00:00:01Z \xff\xfe\n\xff \n", false), b"\xff\xfe\n\xff \n");
    }

    #[test]
    fn a_second_that_is_larger_than_an_answer_is_left_out() {
        let mut cursor = Cursor::default();
        take(&mut cursor, &line(5, "a"), false);
        let answer = line(1, &"x".repeat(ANSWER_BYTES_MAX));
        assert_eq!(take(&mut cursor, &answer, false), LEFT_OUT);
        assert_eq!(take(&mut cursor, "2026-01-01T00:00:02Z b\n", false), "b\n");
        let mut first = Cursor::default();
        assert_eq!(take(&mut first, answer.trim_end(), false), LEFT_OUT);
        assert_eq!(take(&mut first, "2026-01-01T00:00:02Z b\n", false), "b\n", "and is not waited for again");
    }

    #[test]
    fn a_copy_is_read_by_offset_and_goes_on_after_a_crash() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let logs = Logs::open(&folder.path().join("logs")).expect("a folder");
        let key = (JobId::new(1, [0; 10]), 1);
        let add = |answer: &str| logs.add(key, 0, logs.cursor(key, 0), answer.as_bytes(), false).expect("written");
        assert_eq!(logs.read(key, 0, 0, 10).expect("read"), b"");
        add(&line(1, "one"));
        fs::write(folder.path().join("logs").join(format!("{}.1.0.log", key.0)), "one\ntw").expect("a crash");
        let both = line(1, "one") + &line(2, "two");
        add(&both);
        add(&both);
        assert_eq!(logs.read(key, 0, 0, 100).expect("read"), b"one\ntwo\n");
        assert_eq!(logs.read(key, 0, 5, 2).expect("read"), b"wo");
        assert_eq!(logs.tail(key, 0).expect("read"), "one\ntwo\n");
        logs.remove(key, 1).expect("removed");
        assert_eq!(fs::read_dir(folder.path().join("logs")).expect("a folder").count(), 0);
    }

    #[test]
    fn a_copy_is_bounded_and_says_so() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let logs = Logs::open(folder.path()).expect("a folder");
        let key = (JobId::new(1, [0; 10]), 1);
        for nanos in 1..8 {
            let answer = line(nanos, &"x".repeat(ANSWER_BYTES_MAX - 100));
            logs.add(key, 0, logs.cursor(key, 0), answer.as_bytes(), false).expect("written");
        }
        let size = fs::metadata(logs.path(key, 0, "log")).expect("a file").len();
        assert_eq!(size, LOG_BYTES_MAX + FULL.len() as u64);
        assert!(logs.tail(key, 0).expect("read").ends_with(FULL));
    }
}
