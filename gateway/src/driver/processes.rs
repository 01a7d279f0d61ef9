//! The processes of an attempt, as `/proc` shows them: found, asked to end, and killed.
//!
//! A supervisor is a child subreaper, so whatever its steps start stays below it in the tree of processes,
//! also what detached itself. Only when the supervisor itself is killed are its processes found by other marks.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{Pid, getpid};
use serde::{Deserialize, Serialize};

use super::folder::Key;

/// Between two looks at processes that have been killed.
const GONE_POLL: Duration = Duration::from_millis(5);
/// Passes in which a process that keeps forking is stopped before everything is killed.
const FREEZE_PASSES_MAX: usize = 32;

/// A process, and when it began: its number alone may be given away again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Birth {
    pub pid: i32,
    pub boot: String,
    /// In the kernel's ticks since that boot. 0: not known.
    #[serde(default)]
    pub start: u64,
}

impl Birth {
    /// This process.
    pub fn own() -> Birth {
        let pid = getpid().as_raw();
        Birth { pid, boot: boot(), start: process(pid).ok().flatten().map_or(0, |it| it.start) }
    }
}

/// One line of the table of processes.
#[derive(Clone, Copy, Debug)]
struct Process {
    parent: i32,
    session: i32,
    zombie: bool,
    /// In ticks since the boot.
    start: u64,
}

type Table = BTreeMap<i32, Process>;

/// Everything below this process in the tree, without itself.
pub(super) fn descendants() -> BTreeSet<i32> {
    below(&table(), BTreeSet::from([getpid().as_raw()]))
}

/// Asks everything below this process to end, except `spared`; how many were asked.
pub(super) fn terminate_descendants(spared: Option<i32>) -> usize {
    let mut asked = descendants();
    asked.retain(|pid| Some(*pid) != spared);
    asked.iter().for_each(|pid| signal(*pid, Signal::SIGTERM));
    asked.len()
}

/// Kills everything below this process and returns when it is gone. The caller has no child to wait for.
pub(super) async fn kill_descendants() {
    loop {
        let doomed = freeze(descendants);
        if doomed.is_empty() {
            return;
        }
        for pid in &doomed {
            signal(*pid, Signal::SIGKILL);
        }
        reap_orphans(None);
        tokio::time::sleep(GONE_POLL).await;
    }
}

/// Collects dead processes that were handed to this one, except the child that somebody waits for.
pub(super) fn reap_orphans(awaited: Option<i32>) {
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    // One look costs nothing; all processes of the machine are listed only when there is somebody to collect.
    match waitid(Id::All, look) {
        Ok(WaitStatus::StillAlive) | Err(_) => return,
        Ok(_) => {}
    }
    let own = getpid().as_raw();
    for (pid, process) in table() {
        if process.parent == own && process.zombie && Some(pid) != awaited {
            let _somebody_was_faster = waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG));
        }
    }
}

/// Kills what a supervisor left when it was killed; `true` when nothing of it is left.
///
/// Found by the attempt's marks in the environment, by a working folder inside of the attempt's, and by the
/// session that the supervisor led. In bubblewrap nothing is ever left: its processes die with their parent.
pub(super) fn kill_leftovers(key: Key, folder: &Path, supervisor: &Birth) -> bool {
    if supervisor.boot != boot() {
        return true;
    }
    let doomed = freeze(|| leftovers(key, folder, supervisor));
    for pid in &doomed {
        signal(*pid, Signal::SIGKILL);
    }
    doomed.is_empty()
}

fn leftovers((job, attempt): Key, folder: &Path, supervisor: &Birth) -> BTreeSet<i32> {
    let table = table();
    let marks = [format!("ENTENTE_JOB={job}").into_bytes(), format!("ENTENTE_ATTEMPT={attempt}").into_bytes()];
    let ours = |pid: i32, process: &Process| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let marked = marks.iter().all(|mark| environment.split(|byte| *byte == 0).any(|it| it == mark));
        let inside = fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|it| it.starts_with(folder));
        marked || inside || is_in_session(&table, supervisor, process)
    };
    let found: BTreeSet<i32> =
        table.iter().filter(|(pid, process)| !process.zombie && ours(**pid, process)).map(|(pid, _)| *pid).collect();
    let mut all = below(&table, found.clone());
    all.extend(found);
    all.retain(|pid| table.get(pid).is_some_and(|it| !it.zombie));
    all.remove(&getpid().as_raw());
    all
}

/// Whether a process belongs to the session that a supervisor led.
///
/// A number is not given away as long as a session has it. So if a process that began at another time has the
/// supervisor's number, the session is that process's; and what began before the supervisor is nobody's of it.
fn is_in_session(table: &Table, supervisor: &Birth, process: &Process) -> bool {
    // A supervisor that nobody has collected yet still has its number.
    let led_by_another = table.get(&supervisor.pid).is_some_and(|it| it.start != supervisor.start);
    process.session == supervisor.pid && process.start >= supervisor.start && !led_by_another
}

/// Stops processes until no new ones appear, so that none can fork away from the kill that follows.
fn freeze(find: impl Fn() -> BTreeSet<i32>) -> BTreeSet<i32> {
    let mut frozen = BTreeSet::new();
    for _ in 0..FREEZE_PASSES_MAX {
        let found = find();
        let fresh: Vec<i32> = found.difference(&frozen).copied().collect();
        if fresh.is_empty() {
            return found;
        }
        for pid in fresh {
            signal(pid, Signal::SIGSTOP);
            frozen.insert(pid);
        }
    }
    find()
}

fn below(table: &Table, roots: BTreeSet<i32>) -> BTreeSet<i32> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for (pid, process) in table {
        children.entry(process.parent).or_default().push(*pid);
    }
    let mut found = BTreeSet::new();
    let mut waiting: Vec<i32> = roots.into_iter().collect();
    while let Some(pid) = waiting.pop() {
        for child in children.get(&pid).into_iter().flatten() {
            if found.insert(*child) {
                waiting.push(*child);
            }
        }
    }
    found
}

fn table() -> Table {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Table::new();
    };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid: i32| Some((pid, process(pid).ok()??))).collect()
}

/// Source: proc_pid_stat(5). The name, in parentheses, may contain anything, also parentheses.
fn process(pid: i32) -> io::Result<Option<Process>> {
    let stat = fs::read(format!("/proc/{pid}/stat"))?;
    let stat = String::from_utf8_lossy(&stat);
    let parsed = stat.rsplit_once(')').and_then(|(_, rest)| {
        let mut fields = rest.split_whitespace();
        let state = fields.next()?;
        let parent = fields.next()?.parse().ok()?;
        let session = fields.nth(1)?.parse().ok()?;
        // The session is field 6 of the manual's list, the start field 22.
        let start = fields.nth(15)?.parse().ok()?;
        Some(Process { parent, session, zombie: matches!(state, "Z" | "X"), start })
    });
    Ok(parsed)
}

fn signal(pid: i32, signal: Signal) {
    let _already_gone = kill(Pid::from_raw(pid), signal);
}

/// Which boot of the machine this is.
pub(super) fn boot() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn what_a_child_starts_is_below_us() {
        let mut child = Command::new("sh")
            .args(["-c", "sleep 1000 & echo started; wait"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("a child");
        let mut line = [0; 8];
        let mut stdout = child.stdout.take().expect("a pipe");
        io::Read::read_exact(&mut stdout, &mut line).expect("a line");
        let pid = child.id() as i32;
        let found = below(&table(), BTreeSet::from([pid]));
        assert_eq!(found.len(), 1, "the sleep");
        assert!(descendants().contains(&pid));
        for pid in found {
            signal(pid, Signal::SIGKILL);
        }
        child.wait().expect("an end");
    }

    #[test]
    fn a_session_is_known_by_when_its_leader_began() {
        let supervisor = Birth { pid: 10, boot: boot(), start: 500 };
        let process = |session, start| Process { parent: 1, session, zombie: false, start };
        let check = |leader: Option<Process>, member: Process| {
            let mut table = Table::from([(11, member)]);
            table.extend(leader.map(|it| (10, it)));
            is_in_session(&table, &supervisor, &member)
        };
        let dead = Process { zombie: true, ..process(10, 500) };
        assert!(check(None, process(10, 600)), "its leader is gone");
        assert!(check(Some(dead), process(10, 600)), "its leader is dead and not collected");
        assert!(!check(Some(process(10, 900)), process(10, 950)), "another has the number by now");
        assert!(!check(None, process(10, 400)), "older than the supervisor");
        assert!(!check(None, process(9, 600)), "another session");
    }

    #[test]
    fn this_process_began_before_its_children() {
        let own = Birth::own();
        assert!(own.start > 0);
        let mut child = Command::new("sleep").arg("1000").spawn().expect("a child");
        let seen = process(child.id() as i32).expect("a line").expect("a process");
        assert!(seen.start >= own.start);
        assert_eq!(seen.parent, own.pid);
        child.kill().expect("a kill");
        child.wait().expect("an end");
    }
}
