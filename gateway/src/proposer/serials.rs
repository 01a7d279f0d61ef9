//! Serials: the numbers of this gateway's envelopes, each given out once.
//!
//! The registry takes a second envelope of one serial for a repetition of the first and carries it out no more, so a
//! serial that was used before a restart must not come again. Neither the clock (it may step back) nor the replica (it
//! may be behind, or an envelope still under way) can promise that; a file can, in which a block of serials is reserved
//! before the first of them is used.
//!
//! Invariant: a serial that was given out is below the number in the file, and the number in the file only rises.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Serials reserved at once: at a thousand envelopes a second, one sync in a quarter of an hour.
const BLOCK: u64 = 1_000_000;
const FILE: &str = "serials";

/// Gives them out.
#[derive(Debug)]
pub struct Serials {
    file: PathBuf,
    next: u64,
    /// All below are reserved.
    reserved: u64,
}

impl Serials {
    /// Serials from `at_least` on, above all that were given out from this folder before.
    pub fn open(folder: &Path, at_least: u64) -> io::Result<Serials> {
        let file = folder.join(FILE);
        let reserved = match fs::read_to_string(&file) {
            Ok(text) => text.trim().parse().map_err(|_| {
                io::Error::other(format!("{} does not hold the number that this gateway wrote there", file.display()))
            })?,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => 0,
            Err(cause) => return Err(cause),
        };
        Ok(Serials { file, next: at_least.max(reserved), reserved })
    }

    /// The next one. Waits for the disk once in [`BLOCK`] times.
    pub fn take(&mut self) -> io::Result<u64> {
        let serial = self.next;
        if serial >= self.reserved {
            let reserved = serial.checked_add(BLOCK).ok_or_else(|| io::Error::other("there are no more serials"))?;
            self.reserve(reserved)?;
            self.reserved = reserved;
        }
        self.next += 1;
        Ok(serial)
    }

    fn reserve(&self, below: u64) -> io::Result<()> {
        let new = self.file.with_extension("new");
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(below.to_string().as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, &self.file)?;
        let folder = self.file.parent().unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_serial_comes_twice_though_the_clock_steps_back() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (mut last, mut taken) = (0, 0);
        for clock in [5_000_000, 1_000, 0, 4_999_999, 90_000_000, 3] {
            let mut serials = Serials::open(folder.path(), clock).expect("serials");
            for _ in 0..3 {
                let serial = serials.take().expect("a serial");
                assert!(serial > last && serial >= clock, "{serial} after {last}, by the clock at {clock}");
                (last, taken) = (serial, taken + 1);
            }
        }
        assert_eq!(taken, 18);
    }

    #[test]
    fn a_block_that_is_used_up_is_followed_by_another() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut serials = Serials::open(folder.path(), 7).expect("serials");
        serials.next = 7 + BLOCK - 1;
        serials.reserved = 7 + BLOCK;
        let pair = [serials.take().expect("the last"), serials.take().expect("the next block's first")];
        assert_eq!(pair, [6 + BLOCK, 7 + BLOCK]);
        drop(serials);
        let again = Serials::open(folder.path(), 0).expect("serials").take().expect("a serial");
        assert!(again > pair[1]);
    }

    #[test]
    fn a_serial_that_cannot_be_reserved_is_not_given_out() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let inside = folder.path().join("inside");
        fs::create_dir(&inside).expect("a folder");
        let mut serials = Serials::open(&inside, 1).expect("serials");
        fs::remove_dir(&inside).expect("gone");
        assert!(serials.take().is_err());
        fs::write(folder.path().join(FILE), "not a number").expect("written");
        assert!(Serials::open(folder.path(), 1).is_err(), "who knows what was given out");
    }
}
