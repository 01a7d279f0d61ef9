//! The house: who names what. Cargo keeps crates apart; this keeps to what Cargo cannot.

use std::path::{Path, PathBuf};

/// Rust sources below a folder of the project.
fn sources(below: &str) -> Vec<PathBuf> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|it| it == "rs") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(below), &mut found);
    assert!(!found.is_empty(), "{below} has sources");
    found
}

/// A source's code: what stands before its tests, without comments.
fn code(path: &Path) -> String {
    let text = std::fs::read_to_string(path).expect("a source");
    let before_tests = text.split("#[cfg(test)]").next().unwrap_or_default();
    before_tests.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn check(below: &str, except: &[&str], words: &[&str]) {
    for path in sources(below) {
        let name = path.to_string_lossy().into_owned();
        if except.iter().any(|it| name.contains(it)) {
            continue;
        }
        let code = code(&path);
        for word in words {
            assert!(!code.contains(word), "{name} says `{word}`");
        }
    }
}

#[test]
fn the_consensus_library_is_named_in_one_folder() {
    for below in ["certs/src", "policy/src", "gateway/src", "federation/src"] {
        check(below, &["federation/src/raft"], &["openraft::"]);
    }
}

#[test]
fn cryptography_is_named_in_certs() {
    for below in ["policy/src", "federation/src", "gateway/src"] {
        check(below, &[], &["use ring", " ring::", "webpki::", "jsonwebtoken"]);
    }
}

#[test]
fn policies_are_evaluated_in_policy() {
    for below in ["certs/src", "federation/src", "gateway/src"] {
        check(below, &[], &["cedar_policy"]);
    }
}

#[test]
fn the_pure_crates_read_no_clock_no_file_and_no_randomness() {
    let impure = ["SystemTime", "Instant::now", "std::fs", "File::", "tokio::", "SystemRandom", "thread_rng"];
    check("policy/src", &[], &impure);
    check("federation/src", &["federation/src/raft"], &impure);
    check("certs/src", &["entropy.rs"], &impure);
}

/// Of every promise somebody can look up how it is shown.
#[test]
fn every_test_of_the_failure_charter_exists() {
    let read = |path: &Path| std::fs::read_to_string(path).expect("a file");
    let charter = read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/failure-charter.md"));
    let named: Vec<(&str, &str)> = charter.split('`').filter_map(|it| it.split_once("::")).collect();
    assert!(named.len() > 40, "the charter names its tests");
    let folders = ["certs", "federation", "gateway", "integration-tests", "fuzz/targets"];
    let sources: Vec<PathBuf> = folders.into_iter().flat_map(sources).collect();
    for (file, test) in named {
        let of_that_name = sources.iter().filter(|path| path.file_stem().is_some_and(|stem| stem == file));
        let has_it = |path: &PathBuf| read(path).contains(&format!("fn {test}("));
        assert!(of_that_name.into_iter().any(has_it), "there is no {file}::{test}");
    }
}
