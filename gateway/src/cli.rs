//! The command line: one program for operators, researchers and agencies.
//!
//! Commands print tables for people and JSON with `-o json`. Exit codes: 0 done, 1 refused or
//! failed, 2 wrong usage, and for `submit --wait` and `tasks --wait` 3 when the task itself failed.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand, ValueEnum};
use nix::sys::signal::SigSet;

mod bench;
mod capacity;
mod certs;
pub mod client;
mod demo;
mod explain;
mod gateway;
mod health;
mod table;
mod tasks;
mod up;

use client::Connect;
use up::StopSignals;

/// What is still being written when everything else has ended may take so long.
const LAST_WRITES: Duration = Duration::from_secs(5);

/// Lend GPUs between national AI factories, each under its own state's rules.
#[derive(Parser)]
#[command(name = "entente", version, about, long_about = None)]
struct Entente {
    #[command(flatten)]
    connect: Connect,
    /// What to print
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    output: Output,
    #[command(subcommand)]
    command: Verb,
}

/// For people or for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Aligned columns.
    Table,
    /// The API's own JSON.
    Json,
}

#[derive(Subcommand)]
enum Verb {
    /// Start a federation of three states on this machine and show what it does
    Demo(up::Place),
    /// Start a federation of three states on this machine and keep it running
    Up {
        #[command(flatten)]
        place: up::Place,
        /// Print one line of JSON when ready, for scripts
        #[arg(long)]
        json: bool,
    },
    /// Run one member state's gateway
    Gateway {
        /// The gateway's configuration
        #[arg(long)]
        config: PathBuf,
        /// Stop when standard input ends, so that a parent that dies leaves no gateway behind
        #[arg(long)]
        while_stdin_is_open: bool,
    },
    /// Submit a task: a TES document, or flags and a command
    Submit(tasks::Submit),
    /// List your tasks, or show one
    Tasks(tasks::Tasks),
    /// Print what a task wrote
    Logs(tasks::Logs),
    /// Say why a task runs where it runs, or why it doesn't
    Why {
        /// The task's id
        task: String,
    },
    /// Cancel a task
    Cancel {
        /// The task's id
        task: String,
    },
    /// Show what every state lends and how old each figure is
    Capacity,
    /// Say whether a gateway can do its work; for health checks, no token needed
    Health {
        /// Fail unless it knows the rules of this many states
        #[arg(long, default_value_t = 1)]
        packs: u64,
    },
    /// Say where a task could run, without submitting it
    Explain(tasks::Submit),
    /// A state's authority: keys, certificates, trust bundles, genesis
    #[command(subcommand)]
    Certs(certs::Certs),
    /// Measure
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Run one attempt of a job; started by the local driver
    #[command(hide = true)]
    RunAttempt {
        /// The attempt's folder
        folder: PathBuf,
    },
}

/// Parses the arguments and does what they say.
pub fn run() -> ExitCode {
    let entente = Entente::parse();
    if let Verb::RunAttempt { folder } = &entente.command {
        // A gateway waits for signals that all of its threads block, and what it starts inherits that; a task must not.
        if let Err(cause) = SigSet::empty().thread_set_mask() {
            return fail(&anyhow::anyhow!("cannot let signals through: {cause}"));
        }
        return crate::driver::run_attempt(folder);
    }
    let stop = match entente.command.cleans_up().then(StopSignals::listen).transpose() {
        Ok(stop) => stop,
        Err(error) => return fail(&error),
    };
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(cause) => return fail(&anyhow::anyhow!("cannot start: {cause}")),
    };
    let done = runtime.block_on(act(entente, stop));
    // What waits for a disk that does not answer is not waited for.
    runtime.shutdown_timeout(LAST_WRITES);
    match done {
        Ok(code) => code,
        Err(error) => fail(&error),
    }
}

impl Verb {
    /// Whether it has something to do before it may end.
    fn cleans_up(&self) -> bool {
        matches!(self, Verb::Demo(_) | Verb::Up { .. } | Verb::Gateway { .. } | Verb::Bench(_))
    }
}

async fn act(entente: Entente, stop: Option<StopSignals>) -> anyhow::Result<ExitCode> {
    let Entente { connect, output, command } = entente;
    let stop = || stop.context("what cleans up listens to the signals that stop it");
    match command {
        Verb::Demo(place) => demo::demo(&place, stop()?).await?,
        Verb::Up { place, json } => up::up(&place, json, stop()?).await?,
        Verb::Gateway { config, while_stdin_is_open } => {
            return gateway::gateway(&config, while_stdin_is_open, stop()?).await;
        }
        Verb::Submit(it) => return tasks::submit(&mut connect.client()?, &it, output).await,
        Verb::Tasks(it) => return tasks::tasks(&mut connect.client()?, &it, output).await,
        Verb::Logs(it) => tasks::logs(&mut connect.client()?, &it).await?,
        Verb::Why { task } => explain::why(&mut connect.client()?, &task, output).await?,
        Verb::Cancel { task } => tasks::cancel(&mut connect.client()?, &task).await?,
        Verb::Capacity => capacity::capacity(&mut connect.client()?, output).await?,
        Verb::Health { packs } => health::health(&mut connect.client()?, packs, output).await?,
        Verb::Explain(it) => explain::explain(&mut connect.client()?, &it, output).await?,
        Verb::Certs(it) => certs::certs(&it)?,
        Verb::Bench(it) => bench::bench(&it, stop()?).await?,
        Verb::RunAttempt { .. } => unreachable!("handled before the runtime started"),
    }
    Ok(ExitCode::SUCCESS)
}

/// The error and its causes, once, for people.
fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("entente: {error:#}");
    ExitCode::FAILURE
}
