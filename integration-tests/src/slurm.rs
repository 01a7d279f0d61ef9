//! Real Slurm clusters, set up as an operator does it, and a gateway that lends them.
//!
//! The gateway runs as an ordinary account from then on. Only the clusters need root.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};

use nix::unistd::{Group, User, geteuid};
use tempfile::TempDir;

use crate::turns::{self, Shared};
use crate::{Federation, skip_without};

/// Whose jobs run: Finland's, and France's own. Nobody else is anyone there.
pub const FINNISH: &str = "ent-alice";
pub const FRENCH: &str = "ent-bob";
/// The account that the gateway is.
const GATEWAY: &str = "ent-gateway";

/// A cluster with its spool, tokens and mapping. It ends with this value, or with this process.
pub struct Cluster {
    folder: TempDir,
    name: String,
    port: u16,
    /// Given back when it has ended.
    _turn: Shared,
}

/// GPUs that a cluster lends.
pub struct Pool<'a> {
    pub name: &'a str,
    pub model: &'a str,
    pub gres: &'a str,
    pub nodes: u32,
    pub gpus_per_node: u32,
}

/// Prints why a test is skipped.
pub fn skip() -> bool {
    let is_there = |program: &str| ["/usr/sbin", "/usr/bin"].iter().any(|path| Path::new(path).join(program).exists());
    if !geteuid().is_root() {
        eprintln!("only root can start a Slurm cluster");
    }
    let programs = ["slurmctld", "slurmd", "slurmrestd", "munged", "sbatch"];
    skip_without("slurm", geteuid().is_root() && programs.iter().all(|program| is_there(program)))
}

/// Makes these the factories of a state, whose gateway is killed and comes back with them.
pub async fn lend(federation: &mut Federation, state: &str, factories: &[String]) {
    federation.kill(state);
    let folder = federation.gateway_folder(state);
    let path = folder.join("gateway.toml");
    let text = std::fs::read_to_string(&path).expect("a configuration");
    let (rest, _) = text.split_once("\n[[factory]]").expect("factories");
    std::fs::write(&path, format!("{rest}\n{}", factories.concat())).expect("a written configuration");
    open_up(federation.folder().parent().expect("a folder above"), 0o711);
    open_up(&federation.folder(), 0o711);
    let owned = Command::new("chown").arg("-R").arg(format!("{GATEWAY}:")).arg(&folder).status().expect("chown");
    assert!(owned.success());
    federation.restart(state).await;
}

impl Cluster {
    /// Starts a cluster of these nodes; `options` are variables that `cluster.sh` reads.
    pub fn start(nodes: &[&str], options: &[(&str, &str)]) -> Cluster {
        let turn = turns::shared();
        let folder = tempfile::tempdir().expect("a temporary folder");
        open_up(folder.path(), 0o711);
        let port = first_port();
        let cluster = Cluster { folder, name: format!("c{port}"), port, _turn: turn };
        let mut up = cluster.script("up");
        up.args(nodes).env("NAME", &cluster.name).env("PORT", port.to_string());
        up.env("ACCOUNTS", format!("{FINNISH} {FRENCH} {GATEWAY}")).env("UNTIL", std::process::id().to_string());
        done(up.envs(options.iter().copied()));
        cluster.set_up();
        cluster
    }

    /// What `docs/slurm.md` asks of an operator.
    fn set_up(&self) {
        let make = |name: &str, owner: &User, group: u32, mode: u32| {
            let path = self.at(name);
            std::fs::create_dir(&path).expect("a folder");
            chown(&path, Some(owner.uid.as_raw()), Some(group)).expect("an owner");
            open_up(&path, mode);
        };
        let gateway = account(GATEWAY);
        make("spool", &account("root"), 0, 0o711);
        for user in [FINNISH, FRENCH] {
            let own = Group::from_name(user).expect("groups").expect("a group of his own");
            make(&format!("spool/{user}"), &gateway, own.gid.as_raw(), 0o2770);
        }
        make("tokens", &gateway, 0, 0o500);
        for user in [FINNISH, FRENCH, GATEWAY] {
            let path = self.at("tokens").join(user);
            std::fs::write(&path, done(self.script("token").arg(user))).expect("a token");
            chown(&path, Some(gateway.uid.as_raw()), None).expect("an owner");
            open_up(&path, 0o400);
        }
        make("files", &account(FINNISH), 0, 0o755);
        std::fs::write(self.at("accounts.toml"), "").expect("a mapping");
        self.map("FI", FINNISH);
        self.map("FR", FRENCH);
    }

    /// Everybody of a state is this local user from now on.
    pub fn map(&self, home: &str, user: &str) {
        let path = self.at("accounts.toml");
        let rules = std::fs::read_to_string(&path).expect("a mapping");
        std::fs::write(path, format!("{rules}[[rule]]\nhome = {home:?}\nuser = {user:?}\n\n")).expect("a mapping");
    }

    /// This cluster as a section of a gateway's configuration.
    pub fn factory(&self, name: &str, pool: &Pool<'_>) -> String {
        let Pool { name: pool, model, gres, nodes, gpus_per_node } = pool;
        format!(
            "\n[[factory]]\nname = {name:?}\ncity = \"Orsay\"\n\n\
             [[factory.pool]]\nname = {pool:?}\nmodel = {model:?}\nvendor = \"NVIDIA\"\nmemory_gib = 80\n\
             nodes = {nodes}\ngpus_per_node = {gpus_per_node}\n\
             slurm = {{ partition = \"federated\", gres = {gres:?} }}\n\n\
             [factory.slurm]\nurl = \"http://127.0.0.1:{}\"\naccount = {GATEWAY:?}\ntoken_file = \"{}/{{user}}\"\n\
             spool = {:?}\naccounts = {:?}\n",
            self.port + 90,
            self.at("tokens").display(),
            self.at("spool"),
            self.at("accounts.toml"),
        )
    }

    /// A folder where Finland's account may write.
    pub fn files(&self) -> PathBuf {
        self.at("files")
    }

    /// `n1` as Slurm calls it.
    pub fn node(&self, number: u32) -> String {
        format!("{}-n{number}", self.name)
    }

    /// `start`, `stop` or `kill` a daemon.
    pub fn daemon(&self, what: &str, which: &str) {
        done(self.script(what).arg(which));
    }

    /// A command of Slurm's, as root.
    pub fn admin(&self, words: &[&str]) -> String {
        done(self.client(&mut Command::new(words[0])).args(&words[1..]))
    }

    /// A command of Slurm's, as a local user.
    pub fn as_user(&self, user: &str, words: &[&str]) -> String {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", user, "--regid", user, "--clear-groups"]).args(words);
        done(self.client(&mut command))
    }

    /// State and user of each job that Slurm has or had of a task: `RUNNING ent-alice`.
    pub fn jobs_of(&self, task: &str) -> Vec<String> {
        let all = self.admin(&["squeue", "--noheader", "--states=all", "--format=%j %T %u"]);
        let prefix = format!("ent-{task}.");
        all.lines()
            .filter(|line| line.starts_with(&prefix))
            .filter_map(|it| Some(it.split_once(' ')?.1.into()))
            .collect()
    }

    /// The name of every job that ended well, as often as it did, in Slurm's own record of ended jobs.
    pub fn completed(&self) -> Vec<String> {
        let lines = std::fs::read_to_string(self.at("cluster/log/jobcomp.txt")).unwrap_or_default();
        let well = lines.lines().filter(|line| line.contains(" JobState=COMPLETED "));
        well.filter_map(|line| Some(line.split(" Name=").nth(1)?.split(' ').next()?.to_owned())).collect()
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn script(&self, act: &str) -> Command {
        let mut command = Command::new("bash");
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("slurm/cluster.sh")).arg(act).arg(self.at("cluster"));
        command
    }

    fn client<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env("SLURM_CONF", self.at("cluster/etc/slurm.conf")).env_remove("SLURM_JWT").current_dir("/tmp")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _down = self.script("down").status();
    }
}

/// The first of 92 free ports, above those of federations and below those of outgoing connections.
fn first_port() -> u16 {
    static STARTED: AtomicU16 = AtomicU16::new(0);
    let first = (std::process::id() % 47) as u16;
    let is_free = |port: &u16| (0..92).all(|it| std::net::TcpListener::bind(("127.0.0.1", port + it)).is_ok());
    std::iter::repeat_with(|| 28_000 + (first + STARTED.fetch_add(1, Ordering::Relaxed)) % 47 * 100)
        .take(47)
        .find(is_free)
        .expect("free ports")
}

fn account(name: &str) -> User {
    User::from_name(name).expect("accounts").expect("an account")
}

fn open_up(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("a mode");
}

/// What a command prints; it has to succeed.
fn done(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().expect("a command");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {out}{err}");
    out.trim().to_owned()
}
