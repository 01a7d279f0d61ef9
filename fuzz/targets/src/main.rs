//! The search of `fuzz/run`: libFuzzer with one target, the one that `ENTENTE_FUZZ_TARGET` names.

#![no_main]

use std::sync::LazyLock;

static NAME: LazyLock<String> =
    LazyLock::new(|| std::env::var("ENTENTE_FUZZ_TARGET").expect("ENTENTE_FUZZ_TARGET names a target"));

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| targets::run(&NAME, bytes));
