//! Shows every file of the corpus, and everything that was ever found, to its target.

use std::fs;
use std::path::{Path, PathBuf};

use targets::TARGETS;

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries.map(|entry| entry.expect("a readable folder").path()).collect()
}

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn nothing_in_the_corpus_breaks_anything() {
    for (name, target) in TARGETS.iter().copied() {
        let good = files(&fuzz().join("corpus").join(name));
        assert!(!good.is_empty(), "{name} has no corpus");
        for file in good.into_iter().chain(files(&fuzz().join("regressions").join(name))) {
            println!("{}", file.display());
            target(&fs::read(&file).expect("a readable file"));
        }
    }
}

#[test]
fn every_folder_is_of_a_target() {
    for kind in ["corpus", "regressions"] {
        for folder in files(&fuzz().join(kind)) {
            let known = TARGETS.iter().any(|(name, _)| folder.ends_with(name));
            assert!(known, "nothing reads {}", folder.display());
        }
    }
}

/// A number after the other, the same ones each time (xorshift).
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound.max(1) as u64) as usize
    }

    /// Bytes that are nearly these: some changed, some gone, some twice.
    fn spoil(&mut self, good: &[u8]) -> Vec<u8> {
        let mut bytes = good.to_vec();
        for _ in 0..=self.below(4) {
            let (at, end) = (self.below(bytes.len()), self.below(bytes.len()));
            match self.below(5) {
                0 => bytes.truncate(at),
                1 if at < end => drop(bytes.drain(at..end)),
                2 if at < end => bytes.extend_from_within(at..end),
                3 if at < bytes.len() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][self.below(5)],
                _ if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
                _ => bytes.push(0),
            }
        }
        bytes
    }
}

/// How often each file of the corpus is spoilt: seconds for all, and a search of hours is what `fuzz/run` is for.
const SPOILT: usize = 300;
/// A pack is compiled on a thread of its own, twice.
const SPOILT_PACKS: usize = 20;

#[test]
fn nothing_near_the_corpus_breaks_anything() {
    let rounds: usize = std::env::var("ENTENTE_TEST_SPOILT").ok().and_then(|it| it.parse().ok()).unwrap_or(SPOILT);
    for (name, target) in TARGETS.iter().copied() {
        let mut chance = Chance(0x9e37_79b9_7f4a_7c15);
        let mut good = files(&fuzz().join("corpus").join(name));
        good.sort();
        for file in good {
            let seed = fs::read(&file).expect("a readable file");
            for round in 0..if name == "pack" { SPOILT_PACKS } else { rounds } {
                let bytes = chance.spoil(&seed);
                if std::panic::catch_unwind(|| target(&bytes)).is_err() {
                    let found = fuzz().join("artifacts").join(format!("{name}-{round}"));
                    fs::create_dir_all(fuzz().join("artifacts")).expect("a folder");
                    fs::write(&found, &bytes).expect("a written file");
                    panic!("{}: move it to fuzz/regressions/{name} when it is mended", found.display());
                }
            }
        }
    }
}
