//! Records: what an attempt did and wrote, as its researcher sees it. Nobody else does.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::fault::Fault;

/// The end of a stream that a record keeps: 32 KiB x 2 streams x [`STEPS_MAX`] executors = 4 MiB.
pub const TAIL_BYTES_MAX: usize = 32 * 1024;
/// Executors of one task: as many as a TES document may have.
pub(super) const STEPS_MAX: usize = 64;
/// Paths and URLs of the outputs that a record names.
pub(super) const OUTPUT_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Lines of a record's system log.
const NOTES_MAX: usize = 100;
/// Bytes of one of them: 100 x 4 KiB = 400 KiB.
const NOTE_BYTES_MAX: usize = 4 * 1024;
/// Everything that a record holds: 4 MiB + 2 MiB + 400 KiB, and metadata. Half of the 16 MiB that gateways take from
/// each other in one answer.
pub const RECORD_BYTES_MAX: usize = 8 * 1024 * 1024;
const _: () = {
    let streams = 2 * STEPS_MAX * TAIL_BYTES_MAX;
    let metadata = 1024 * 1024;
    assert!(streams + OUTPUT_BYTES_MAX + (NOTES_MAX + 2) * NOTE_BYTES_MAX + metadata <= RECORD_BYTES_MAX);
};
/// The largest piece of a log that is read at once.
pub const LOG_CHUNK_BYTES_MAX: usize = 1024 * 1024;

/// What an attempt did, as far as it got. Times in Unix milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptRecord {
    /// When staging began.
    pub begin_ms: u64,
    /// When the first step started.
    pub running_ms: Option<u64>,
    /// When everything was over.
    pub end_ms: Option<u64>,
    /// Steps that have ended, in order.
    pub executors: Vec<ExecutorRecord>,
    /// What was delivered, as far as it has room.
    pub outputs: Vec<OutputRecord>,
    /// Lines for people, without line breaks. They may name paths, URLs and commands.
    pub system_logs: Vec<String>,
    /// `isolation`, `network`, `devices`, `host`, `image`.
    pub metadata: BTreeMap<String, String>,
}

/// One step that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecutorRecord {
    /// 128 + the signal's number for one that was killed, 127 for a program that was not found.
    pub exit_code: i32,
    pub start_ms: u64,
    pub end_ms: u64,
    /// The last [`TAIL_BYTES_MAX`] bytes; so for `stderr`.
    pub stdout: String,
    pub stderr: String,
}

/// One delivered file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputRecord {
    /// Without the query, which may hold a signature.
    pub url: String,
    pub path: String,
    pub size_bytes: u64,
}

/// One stream of one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogStream {
    /// From 0.
    pub executor: u32,
    pub pipe: Pipe,
}

/// Which of a step's two streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pipe {
    Stdout,
    Stderr,
}

impl AttemptRecord {
    /// In place of one that cannot be read.
    pub(super) fn unreadable(cause: std::io::Error) -> AttemptRecord {
        let lines = [Fault::Unreadable.to_string(), one_line(&cause.to_string())];
        AttemptRecord { system_logs: lines.into(), ..AttemptRecord::default() }
    }
}

impl Pipe {
    pub fn as_str(self) -> &'static str {
        match self {
            Pipe::Stdout => "stdout",
            Pipe::Stderr => "stderr",
        }
    }
}

/// A piece of a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogChunk {
    pub bytes: Vec<u8>,
    /// Where the next piece begins.
    pub next_offset: u64,
    /// Nothing will follow.
    pub end: bool,
}

/// Lines for the system log of a record: as many as it has room for, and how many there were.
#[derive(Debug, Default)]
pub(super) struct Notes {
    lines: Vec<String>,
    left_out: usize,
}

impl Notes {
    pub fn add(&mut self, line: &str) {
        if self.lines.len() == NOTES_MAX {
            self.left_out += 1;
        } else {
            self.lines.push(one_line(line));
        }
    }

    pub fn append(&mut self, notes: Notes) {
        notes.lines.iter().for_each(|line| self.add(line));
        self.left_out += notes.left_out;
    }

    /// The lines, with `last` at their end, which always has room.
    pub fn lines(&self, last: Option<&str>) -> Vec<String> {
        let mut lines = self.lines.clone();
        if self.left_out > 0 {
            lines.push(format!("{} more", self.left_out));
        }
        lines.extend(last.map(one_line));
        lines
    }
}

/// A text as one line of a record's system log.
pub(super) fn one_line(text: &str) -> String {
    let mut line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    line.truncate(line.floor_char_boundary(NOTE_BYTES_MAX));
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_bounded_and_say_so() {
        let mut notes = Notes::default();
        notes.add("a\nb");
        (0..NOTES_MAX + 41).for_each(|number| notes.add(&number.to_string()));
        let lines = notes.lines(Some("the end"));
        assert_eq!((lines[0].as_str(), lines.len()), ("a b", NOTES_MAX + 2));
        assert_eq!(lines[NOTES_MAX..], ["42 more", "the end"]);
        notes.add(&"ü".repeat(NOTE_BYTES_MAX));
        assert!(notes.lines(Some(&"ü".repeat(NOTE_BYTES_MAX))).iter().all(|line| line.len() <= NOTE_BYTES_MAX));
    }
}
