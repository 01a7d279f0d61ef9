//! Hanging files: what a disk that does not answer looks like to whoever reads from it.

use std::path::PathBuf;
use std::time::Duration;

/// Turns an event that does not come into a failure.
const PATIENCE: Duration = Duration::from_secs(60);

/// A file that is being read, and never to its end.
pub struct Hanging {
    path: PathBuf,
    _writer: std::fs::File,
}

impl Hanging {
    /// Puts such a file there; comes when somebody reads it.
    pub async fn at(path: PathBuf) -> Hanging {
        let pipe = path.with_extension("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        std::fs::rename(&pipe, &path).expect("it is put there");
        let (say, said) = tokio::sync::oneshot::channel();
        // Opens when it is opened for reading, too.
        let there = path.clone();
        std::thread::spawn(move || say.send(std::fs::OpenOptions::new().write(true).open(there)));
        let opened = tokio::time::timeout(PATIENCE, said).await.expect("it is read").expect("no panic");
        Hanging { path, _writer: opened.expect("an open pipe") }
    }
}

/// Whoever reads it gets to its end, and finds no such file the next time.
impl Drop for Hanging {
    fn drop(&mut self) {
        std::fs::remove_file(&self.path).expect("it is there");
    }
}
