//! Capture: what a step writes, kept as a log of bounded size, as the end of it, and as the file that the task asked for.
//! Invariant: a step that writes without end costs at most [`LOG_BYTES_MAX`] of disk for its log; it is never blocked.

use std::fs::File;
use std::io::{self, Write};

use tokio::io::{AsyncRead, AsyncReadExt};

use super::TAIL_BYTES_MAX;

/// Enough for days of progress bars; a task that wants more writes a file.
pub(super) const LOG_BYTES_MAX: u64 = 64 * 1024 * 1024;
const LOG_FULL: &[u8] = b"\n[entente: the log is full at 64 MiB; what follows is not kept]\n";
const READ_BYTES: usize = 64 * 1024;

/// One stream while it is read.
pub(super) struct Capture {
    log: File,
    log_left: u64,
    /// The file that the task named for this stream.
    copy: Option<File>,
    tail: Vec<u8>,
    fault: Option<io::Error>,
}

/// One stream when it has ended.
pub(super) struct Captured {
    /// The last [`TAIL_BYTES_MAX`] bytes; what is not UTF-8 is replaced.
    pub tail: String,
    /// The file or the log could not be written to its end.
    pub fault: Option<io::Error>,
}

impl Capture {
    pub fn new(log: File, copy: Option<File>) -> Capture {
        Capture { log, log_left: LOG_BYTES_MAX, copy, tail: Vec::new(), fault: None }
    }

    /// Reads until the last process that can write has closed the stream.
    pub async fn run(mut self, mut stream: impl AsyncRead + Unpin) -> Captured {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            match stream.read(&mut buffer).await {
                Ok(0) => break,
                Ok(length) => self.take(&buffer[..length]),
                Err(cause) => {
                    self.fault = Some(cause);
                    break;
                }
            }
        }
        Captured { tail: text(&self.tail), fault: self.fault }
    }

    fn take(&mut self, bytes: &[u8]) {
        if let Some(Err(cause)) = self.copy.as_mut().map(|copy| copy.write_all(bytes)) {
            self.fault = Some(cause);
            self.copy = None;
        }
        if self.log_left > 0 {
            let kept = bytes.len().min(self.log_left.try_into().unwrap_or(usize::MAX));
            self.log_left -= kept as u64;
            let full: &[u8] = if self.log_left == 0 { LOG_FULL } else { b"" };
            let written = self.log.write_all(&bytes[..kept]);
            if let Err(cause) = written.and_then(|()| self.log.write_all(full)) {
                self.fault = Some(cause);
                self.log_left = 0;
            }
        }
        self.tail.extend_from_slice(bytes);
        let excess = self.tail.len().saturating_sub(TAIL_BYTES_MAX);
        self.tail.drain(..excess);
    }
}

fn text(tail: &[u8]) -> String {
    // A character may have been cut in two at the front.
    let cut = tail.len() == TAIL_BYTES_MAX;
    let front = tail.iter().take(3).take_while(|byte| cut && **byte & 0xC0 == 0x80);
    let text = String::from_utf8_lossy(&tail[front.count()..]).into_owned();
    // A replacement is longer than the byte that it replaces.
    let from = text.ceil_char_boundary(text.len().saturating_sub(TAIL_BYTES_MAX));
    text[from..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn check(written: &[u8]) -> (u64, u64, Captured) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = |name| File::create(folder.path().join(name)).expect("a file");
        let size = |name| std::fs::metadata(folder.path().join(name)).expect("a file").len();
        let capture = Capture::new(file("log"), Some(file("copy")));
        let captured = capture.run(written).await;
        (size("log"), size("copy"), captured)
    }

    #[tokio::test]
    async fn a_log_is_bounded_and_a_file_is_not() {
        let excess = 1024;
        let written = vec![b'x'; LOG_BYTES_MAX as usize + excess];
        let (log, copy, captured) = check(&written).await;
        assert_eq!(log, LOG_BYTES_MAX + LOG_FULL.len() as u64);
        assert_eq!(copy, LOG_BYTES_MAX + excess as u64);
        assert_eq!(captured.tail.len(), TAIL_BYTES_MAX);
        assert!(captured.fault.is_none());
    }

    #[tokio::test]
    async fn a_tail_is_text_whatever_was_written() {
        let (_, _, captured) = check(&vec![0xFF; 2 * TAIL_BYTES_MAX]).await;
        assert!(captured.tail.len() <= TAIL_BYTES_MAX);
        let (_, _, captured) = check("xü".repeat(TAIL_BYTES_MAX).as_bytes()).await;
        assert!(!captured.tail.contains(char::REPLACEMENT_CHARACTER));
    }
}
