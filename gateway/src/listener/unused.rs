//! Unused: connections on which nothing is asked, and which of them gives way to a newcomer when a face is nearly full.
//!
//! First those that have never asked anything, then the others, and of each kind the longest unused: most likely it never
//! will be used, and at worst its client has to connect again. If newcomers waited instead, a few thousand silent connections
//! would keep everybody out until their idle time is over.
//!
//! Invariant: what has a request in flight, or the rest of a refused one's body, is not in the line, so it never gives way.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio_util::sync::CancellationToken;

/// The line of one face. Cheap to clone; all clones are the same line.
#[derive(Clone, Debug, Default)]
pub struct Unused(Arc<Mutex<Line>>);

#[derive(Debug, Default)]
struct Line {
    ever: u64,
    /// In the order in which they give way.
    waiting: BTreeMap<Number, CancellationToken>,
    /// Have to go, and are not gone yet.
    leaving: usize,
}

/// Whether it was ever used, and when it became unused.
type Number = (bool, u64);

/// One connection's turn in the line; dropping it leaves the line.
#[derive(Debug)]
pub struct Turn {
    unused: Unused,
    number: Option<Number>,
    gives_way: CancellationToken,
    stays: bool,
}

impl Unused {
    /// For a connection that is not in the line yet.
    pub fn turn(&self) -> Turn {
        Turn { unused: self.clone(), number: None, gives_way: CancellationToken::new(), stays: false }
    }

    /// Tells one to end. `false`: all are used.
    pub fn give_way(&self) -> bool {
        let mut line = self.lock();
        match line.waiting.pop_first() {
            Some((_, first)) => {
                line.leaving += 1;
                first.cancel();
                true
            }
            None => false,
        }
    }

    /// How many have to go and are not gone yet.
    pub fn leaving(&self) -> usize {
        self.lock().leaving
    }

    fn lock(&self) -> MutexGuard<'_, Line> {
        self.0.lock().expect("invariant: nothing panics while it holds the line")
    }
}

impl Turn {
    /// Nothing is asked any more, or nothing yet: to the end of the line.
    pub fn line_up(&mut self, was_used: bool) {
        if self.number.is_some() || self.gives_way.is_cancelled() {
            return;
        }
        let mut line = self.unused.lock();
        line.ever += 1;
        let number = (was_used, line.ever);
        line.waiting.insert(number, self.gives_way.clone());
        self.number = Some(number);
    }

    /// Something is asked.
    pub fn step_out(&mut self) {
        if let Some(number) = self.number.take() {
            self.unused.lock().waiting.remove(&number);
        }
    }

    /// It has to give way, and was used before it noticed: nobody is to wait for its place.
    pub fn stay(&mut self) {
        if self.gives_way.is_cancelled() && !self.stays {
            self.stays = true;
            self.unused.lock().leaving -= 1;
        }
    }

    /// Cancelled when it has to give way.
    pub fn gives_way(&self) -> CancellationToken {
        self.gives_way.clone()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.step_out();
        self.stay();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(turns: &[Turn]) -> Vec<bool> {
        turns.iter().map(|turn| turn.gives_way.is_cancelled()).collect()
    }

    #[test]
    fn the_longest_unused_gives_way_and_the_used_never_does() {
        let unused = Unused::default();
        let mut turns = [(); 4].map(|()| unused.turn());
        let mut gone = unused.turn();
        gone.line_up(false);
        turns.iter_mut().for_each(|turn| turn.line_up(false));
        drop(gone);
        // The first is used, the second was.
        turns[0].step_out();
        turns[1].step_out();
        turns[1].line_up(true);
        for expected in [[false, false, true, false], [false, false, true, true], [false, true, true, true]] {
            assert!(unused.give_way());
            assert_eq!(given(&turns), expected);
            // Nobody gives way twice.
            turns[2].step_out();
            turns[2].line_up(false);
        }
        assert!(!unused.give_way());
        turns[0].line_up(true);
        assert!(unused.give_way());
        assert_eq!(unused.leaving(), 4);
        turns[0].stay();
        assert_eq!(unused.leaving(), 3);
        drop(turns);
        assert!(unused.lock().waiting.is_empty());
        assert_eq!(unused.leaving(), 0);
    }
}
