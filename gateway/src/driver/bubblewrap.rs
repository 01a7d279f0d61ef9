//! Bubblewrap's command line: an own file system made of the machine's programs, read-only, and of the attempt's
//! folders; own processes, an own user, no capabilities and, unless the factory says otherwise, no network.
//!
//! Invariant: what a task can write is its own folders, `/dev/shm` up to a limit, and `/dev/null` and its like.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Seek, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Stdio;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use tokio::process::Command;

use super::folder::Folder;
use super::order::{Order, OrderStep};
use super::sandbox::{PATH, RunAs, environment};

/// Folders that hold mount points and nothing else: a folder is a page.
const MOUNT_POINTS_BYTES: &str = "4194304";
/// Shared memory of a task that does not state its memory. GPU programs exchange batches there.
const SHM_DEFAULT_GIB: u32 = 2;
/// Of the machine's settings only what programs need to start: no accounts, no keys, no names of hosts.
const ETC: [&str; 8] = [
    "alternatives",
    "ca-certificates",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "mime.types",
    "ssl/certs",
];
const ETC_NETWORK: [&str; 3] = ["hosts", "nsswitch.conf", "resolv.conf"];
const ACCOUNTS: &str = "root:x:0:0::/:/bin/sh\ntask:x:65534:65534::/tmp:/bin/sh\n";
const GROUPS: &str = "root:x:0:\ntask:x:65534:\n";
/// Of `/proc`, what changes or betrays the machine. The tasks of a gateway that runs as root own these files
/// as far as the kernel's check of owners goes, and not all of them ask for capabilities as well.
const PROC_READ_ONLY: [&str; 5] = ["bus", "fs", "irq", "sys", "sysrq-trigger"];
const PROC_HIDDEN_FILES: [&str; 14] = [
    "iomem",
    "ioports",
    "kallsyms",
    "kcore",
    "keys",
    "kmsg",
    "kpagecgroup",
    "kpagecount",
    "kpageflags",
    "mtrr",
    "sched_debug",
    "slabinfo",
    "timer_list",
    "vmallocinfo",
];
const PROC_HIDDEN_FOLDERS: [&str; 3] = ["acpi", "asound", "scsi"];

/// Words of a command line.
#[derive(Default)]
struct Words(Vec<OsString>);

impl Words {
    fn add<const N: usize>(&mut self, words: [&dyn AsRef<OsStr>; N]) {
        self.0.extend(words.map(|word| word.as_ref().to_owned()));
    }

    /// The same path inside as outside.
    fn same(&mut self, option: &str, path: &str) {
        self.add([&option, &path, &path]);
    }
}

/// The command that runs a step, and what must stay open until it is started.
///
/// Options travel by a descriptor and not as arguments, which every user of the machine can read. The task's
/// variables are options too: bubblewrap itself must not see them (`LD_PRELOAD`), since it is not yet inside.
pub(super) fn command(order: &Order, step: &OrderStep, folder: &Folder) -> io::Result<(Command, File)> {
    let mut words = machine(order.rules.network);
    accounts(&mut words, &folder.work())?;
    devices(&mut words, &order.devices, order.ram_gib);
    for top in order.tops() {
        words.add([&"--bind", &folder.root().join(&top), &format!("/{top}")]);
    }
    words.add([&"--remount-ro", &"/"]);
    words.add([&"--chdir", &step.workdir.as_str()]);
    for (name, value) in environment(order, step, OsStr::new("")) {
        words.add([&"--setenv", &name, &value]);
    }
    let file = inherited(&words, &folder.work().join("options"))?;
    let mut command = Command::new("bwrap");
    command
        .env_clear()
        .env("PATH", PATH)
        .arg("--args")
        .arg(file.as_raw_fd().to_string())
        .arg("--")
        .args(starter(&step.command))
        .args(&step.command)
        .current_dir("/");
    Ok((command, file))
}

/// What starts a step's program: bubblewrap ends with 1 if it is not there, as any program may; `env` ends with 127 as a
/// shell does. It would take a name with `=` for a variable.
fn starter(command: &[String]) -> &'static [&'static str] {
    match command.first() {
        Some(program) if !program.contains('=') => &["/usr/bin/env", "--"],
        _ => &[],
    }
}

/// Runs a program that does nothing in the sandbox that tasks get.
pub(super) fn try_out(run_as: Option<RunAs>) -> Result<(), String> {
    let mut words = machine(false);
    devices(&mut words, &[], 0);
    words.add([&"--remount-ro", &"/", &"--", &"/usr/bin/env"]);
    // Where it runs as this account, what is named by its path is spawned. To search for a name this process would be forked,
    // with the locks that its other threads hold at that moment, which nobody in the new one lets go.
    let mut command = std::process::Command::new("/usr/bin/env");
    command.arg("bwrap").args(&words.0).env_clear().env("PATH", PATH);
    command.stdin(Stdio::null()).stdout(Stdio::null()).current_dir("/");
    if let Some(account) = run_as {
        use std::os::unix::process::CommandExt;
        command.uid(account.uid).gid(account.gid);
    }
    match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(cause) => Err(format!("/usr/bin/env does not start: {cause}")),
    }
}

/// What is the same for all tasks: walls, programs, `/proc`.
fn machine(network: bool) -> Words {
    let mut words = Words::default();
    words.add([&"--unshare-all", &"--unshare-user", &"--disable-userns"]);
    if network {
        words.add([&"--share-net"]);
    }
    words.add([&"--die-with-parent", &"--new-session", &"--cap-drop", &"ALL"]);
    words.add([&"--uid", &"65534", &"--gid", &"65534"]);
    words.add([&"--hostname", &"task", &"--clearenv"]);
    words.add([&"--size", &MOUNT_POINTS_BYTES, &"--tmpfs", &"/"]);
    words.same("--ro-bind", "/usr");
    for top in ["/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"] {
        match fs::read_link(top) {
            Ok(target) => words.add([&"--symlink", &target, &top]),
            Err(_) => words.same("--ro-bind-try", top),
        }
    }
    for name in ETC.iter().chain(ETC_NETWORK.iter().filter(|_| network)) {
        words.same("--ro-bind-try", &format!("/etc/{name}"));
    }
    words.add([&"--proc", &"/proc"]);
    for name in PROC_READ_ONLY {
        words.same("--ro-bind-try", &format!("/proc/{name}"));
    }
    let there = |name: &&str| Path::new("/proc").join(name).exists();
    for name in PROC_HIDDEN_FILES.into_iter().filter(there) {
        words.add([&"--ro-bind", &"/dev/null", &format!("/proc/{name}")]);
    }
    for name in PROC_HIDDEN_FOLDERS.into_iter().filter(there) {
        let path = format!("/proc/{name}");
        words.add([&"--size", &"4096", &"--tmpfs", &path, &"--remount-ro", &path]);
    }
    words
}

fn accounts(words: &mut Words, work: &Path) -> io::Result<()> {
    for (name, content) in [("passwd", ACCOUNTS), ("group", GROUPS)] {
        let file = work.join(name);
        fs::write(&file, content)?;
        words.add([&"--ro-bind", &file, &format!("/etc/{name}")]);
    }
    Ok(())
}

/// `/dev` with shared memory and NVIDIA's files of these GPUs, as far as they exist: bubblewrap takes 9,000 words, and a
/// pool may be declared with more GPUs than that.
fn devices(words: &mut Words, numbers: &[u32], ram_gib: u32) {
    let shm_gib = if ram_gib == 0 { SHM_DEFAULT_GIB } else { ram_gib };
    let shm_bytes = (u64::from(shm_gib) << 30).to_string();
    words.add([&"--dev", &"/dev"]);
    words.add([&"--size", &shm_bytes, &"--tmpfs", &"/dev/shm"]);
    let shared = ["nvidiactl", "nvidia-uvm", "nvidia-uvm-tools"];
    let shared = shared.iter().filter(|_| !numbers.is_empty());
    let own = numbers.iter().map(|number| format!("nvidia{number}"));
    let paths = shared.map(|it| it.to_string()).chain(own).map(|name| format!("/dev/{name}"));
    for path in paths.filter(|path| Path::new(path).exists()) {
        words.same("--dev-bind-try", &path);
    }
    words.add([&"--remount-ro", &"/dev"]);
}

/// A file with these words, each ended by a zero byte, that the next child inherits.
fn inherited(words: &Words, path: &Path) -> io::Result<File> {
    let mut file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
    // It holds the task's variables, and the child has it open.
    fs::remove_file(path)?;
    for word in &words.0 {
        file.write_all(word.as_encoded_bytes())?;
        file.write_all(&[0])?;
    }
    file.rewind()?;
    fcntl(&file, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bubblewrap takes 9,000 words. None of these devices is on the machine that tests this.
    #[test]
    fn a_large_gang_takes_no_words_for_devices_that_are_not_there() {
        let mut words = Words::default();
        devices(&mut words, &(1_000..12_000).collect::<Vec<_>>(), 0);
        assert!(words.0.len() < 100, "{} words", words.0.len());
    }
}
