//! The program `entente`.

use std::path::Path;
use std::process::ExitCode;

/// Only what the local driver starts.
fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    match &arguments[..] {
        [_, verb, folder] if verb == "run-attempt" => gateway::driver::run_attempt(Path::new(folder)),
        _ => ExitCode::from(2),
    }
}
