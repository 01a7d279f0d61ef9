//! `entente up`: a federation of three states on this machine, until it is told to stop.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use nix::sys::signal::{SigSet, Signal};
use tokio::sync::watch;

use crate::laptop::Laptop;

/// Where the federation of `up` and `demo` lives.
#[derive(Args, Clone, Debug)]
pub struct Place {
    /// A new or empty folder for keys, data and logs; by default a temporary one that is removed at the end
    #[arg(long)]
    pub data_dir: Option<PathBuf>,
    /// The first of six ports in a row on 127.0.0.1; by default any six that are free
    #[arg(long)]
    pub port: Option<u16>,
}

/// The folder in use; a temporary one is removed when this is dropped.
pub struct Folder {
    path: PathBuf,
    temporary: bool,
}

impl Folder {
    /// The named folder, or a fresh temporary one.
    pub fn choose(place: &Place) -> Folder {
        match &place.data_dir {
            Some(path) => Folder { path: path.clone(), temporary: false },
            None => {
                let name: [u8; 6] = certs::entropy::bytes();
                let name: String = name.iter().map(|byte| format!("{byte:02x}")).collect();
                Folder { path: std::env::temp_dir().join(format!("entente-{name}")), temporary: true }
            }
        }
    }

    /// The path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.temporary
            && let Err(cause) = std::fs::remove_dir_all(&self.path)
            && cause.kind() != std::io::ErrorKind::NotFound
        {
            progress(&format!("cannot remove {}: {cause}", self.path.display()));
        }
    }
}

/// What asks a process to end: Ctrl-C, a polite kill, a terminal that was closed, Ctrl-\\. Cheap to clone.
#[derive(Clone)]
pub struct StopSignals(watch::Receiver<bool>);

impl StopSignals {
    /// From here on they end nothing by themselves, so what is made later is also cleaned up. To be called before the
    /// first other thread starts: each inherits that it does not get them, and one of their own waits for them. With
    /// handlers, one that came while they were installed would be lost.
    pub fn listen() -> anyhow::Result<StopSignals> {
        let mut signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGQUIT].into_iter().collect();
        // Whoever starts this with `nohup` wants it to outlive the terminal.
        if !ignores_hangups() {
            signals.add(Signal::SIGHUP);
        }
        signals.thread_block()?;
        let (asked, asks) = watch::channel(false);
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            while signals.wait().is_ok() {
                asked.send_replace(true);
            }
        })?;
        Ok(StopSignals(asks))
    }

    /// Resolves at the first of them.
    pub async fn asked(&mut self) {
        if self.0.wait_for(|asked| *asked).await.is_err() {
            std::future::pending().await
        }
    }
}

/// Whether SIGHUP was ignored when this process started. Source: proc_pid_status(5), `SigIgn`: bit 0 is signal 1.
fn ignores_hangups() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    ignored.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).is_some_and(|set| set & 1 == 1)
}

/// A line of progress, on standard error so that standard output stays for results.
pub fn progress(line: &str) {
    let mut stderr = std::io::stderr();
    // A terminal that was closed takes nothing any more, and what has to be cleaned up still has to be.
    let _may_be_gone = match stderr.is_terminal() {
        true => writeln!(stderr, "\u{1b}[2m  … {line}\u{1b}[0m"),
        false => writeln!(stderr, "  ... {line}"),
    };
}

/// Starts the federation, says how to use it, and waits for the end.
pub async fn up(place: &Place, json: bool, mut stop: StopSignals) -> anyhow::Result<()> {
    let folder = Folder::choose(place);
    let mut laptop = Laptop::found(folder.path(), place.port, &progress)?;
    let result = run(&mut laptop, json, &mut stop).await;
    progress("stopping the gateways");
    laptop.stop().await;
    result
}

async fn run(laptop: &mut Laptop, json: bool, stop: &mut StopSignals) -> anyhow::Result<()> {
    // A stop that is asked for while the gateways start must not leave them behind.
    tokio::select! {
        started = laptop.start(&progress) => started?,
        () = stop.asked() => return Ok(()),
    }
    if json {
        println!("{}", laptop.describe());
    } else {
        print!("{}", welcome(laptop));
    }
    loop {
        tokio::select! {
            () = stop.asked() => return Ok(()),
            // The others go on; that is what a federation is for.
            reason = laptop.lost() => progress(&reason),
        }
    }
}

fn welcome(laptop: &Laptop) -> String {
    let mut text = String::from("\nA federation of three states is running.\n\n");
    for member in &laptop.members {
        text.push_str(&format!("  {}  {}\n", member.state, member.url));
    }
    text.push_str("\nTokens, valid for six hours:\n\n");
    for (role, path) in &laptop.tokens {
        text.push_str(&format!("  {role:<14} {}\n", path.display()));
    }
    let member = laptop.member("FI");
    text.push_str(&format!(
        "\nAs a Finnish researcher, in another terminal:\n\n\
         \x20 export ENTENTE_URL={} ENTENTE_CA={} ENTENTE_TOKEN_FILE={}\n\
         \x20 {program} capacity\n\
         \x20 {program} submit --gpus 8 --model H100 --wait -- echo hello from the federation\n\
         \x20 {program} tasks\n\
         \x20 {program} logs <task>\n\
         \x20 {program} why <task>\n\nCtrl-C stops everything.\n",
        member.url,
        member.ca_file.display(),
        laptop.tokens["researcher.FI"].display(),
        program = program(),
    ));
    text
}

/// How the user called us, for commands to copy.
fn program() -> String {
    std::env::current_exe().map_or_else(|_| "entente".into(), |path| path.display().to_string())
}
