//! Countries: a network of its own for each state's gateway, joined by cables, where packets can be dropped.
//!
//! Linux network namespaces; this needs root, `ip` and `nft`. Dropping it removes everything that it made. Invariant:
//! the tests' own machine reaches every gateway, however the gateways are cut off from each other.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};

use crate::{STATES, skip_without};

/// The networks of one federation.
pub struct Countries {
    /// Part of every name; interface names have at most 15 bytes.
    tag: String,
    /// `10.77.240.` for example.
    net: String,
}

impl Countries {
    /// Makes them, or says why this machine cannot.
    pub fn found() -> Option<Countries> {
        static NEXT: AtomicU8 = AtomicU8::new(0);
        let there = nix::unistd::geteuid().is_root()
            && [("ip", "netns"), ("nft", "--version")].into_iter().all(|(tool, word)| succeeds(tool, &[word]));
        if skip_without("namespaces", there) {
            return None;
        }
        let (own, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let tag = format!("e{:x}x{number:x}", own % 0x10_0000);
        let net = format!("10.{}.{}.", 64 + own % 128, (own / 128 % 32) * 8 + u32::from(number % 8));
        let countries = Countries { tag, net };
        if skip_without("namespaces", countries.build()) {
            return None;
        }
        Some(countries)
    }

    /// Every country has one address and a cable to each other one and to this machine. A bridge would be shorter, and
    /// what goes over one falls under this machine's own firewall.
    fn build(&self) -> bool {
        let (tag, net) = (&self.tag, &self.net);
        let mut steps = vec![];
        for (state, number) in STATES.into_iter().zip(1..) {
            let space = self.space(state);
            steps.extend([
                format!("ip netns add {space}"),
                format!("ip -n {space} link set lo up"),
                format!("ip link add {tag}n{number} type veth peer name {tag}f{number} netns {space}"),
                format!("ip addr add {net}254/32 dev {tag}n{number}"),
                format!("ip link set {tag}n{number} up"),
                format!("ip route add {net}{number}/32 dev {tag}n{number} src {net}254"),
                format!("ip netns exec {space} nft add table inet cut"),
                format!("ip netns exec {space} nft add chain inet cut out {{ type filter hook output priority 0 ; }}"),
            ]);
            steps.extend(self.plug(state, &format!("{tag}f{number}"), 254));
        }
        for (one, first) in STATES.into_iter().zip(1..) {
            for (other, second) in STATES.into_iter().zip(1..).skip(first) {
                let (near, far) = (format!("{tag}p{first}{second}"), format!("{tag}p{second}{first}"));
                let (space, beyond) = (self.space(one), self.space(other));
                steps.push(format!("ip link add {near} netns {space} type veth peer name {far} netns {beyond}"));
                steps.extend(self.plug(one, &near, second));
                steps.extend(self.plug(other, &far, first));
            }
        }
        steps.iter().all(|step| {
            let words: Vec<_> = step.split(' ').collect();
            succeeds(words[0], &words[1..])
        })
    }

    /// One end of a cable, in a country; at the other end is the address with this last number.
    fn plug(&self, state: &str, device: &str, far: usize) -> [String; 3] {
        let (space, own, net) = (self.space(state), self.host(state), &self.net);
        [
            format!("ip -n {space} addr add {own}/32 dev {device}"),
            format!("ip -n {space} link set {device} up"),
            format!("ip -n {space} route add {net}{far}/32 dev {device} src {own}"),
        ]
    }

    fn space(&self, state: &str) -> String {
        format!("{}-{state}", self.tag)
    }

    fn host(&self, state: &str) -> String {
        let number = STATES.iter().position(|it| *it == state).expect("a founding state") + 1;
        format!("{}{number}", self.net)
    }

    /// Where a gateway listens.
    pub fn address(&self, state: &str, port: &str) -> String {
        format!("{}:{port}", self.host(state))
    }

    /// A program inside.
    pub fn command(&self, state: &str, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.space(state)]).arg(program);
        command
    }

    /// From now on no packet of `from` gets to `to`; those the other way do.
    pub fn cut(&self, from: &str, to: &str) {
        let (space, host) = (self.space(from), self.host(to));
        let rule = ["nft", "add", "rule", "inet", "cut", "out", "ip", "daddr", &host, "drop"];
        assert!(succeeds("ip", &[&["netns", "exec", &space][..], &rule].concat()), "{from} is cut off from {to}");
    }

    /// From now on no packet of either gets to the other.
    pub fn part(&self, one: &str, other: &str) {
        self.cut(one, other);
        self.cut(other, one);
    }

    /// All packets arrive again.
    pub fn heal(&self) {
        for state in STATES {
            let flushed =
                succeeds("ip", &["netns", "exec", &self.space(state), "nft", "flush", "chain", "inet", "cut", "out"]);
            assert!(flushed, "{state} is healed");
        }
    }
}

impl Drop for Countries {
    fn drop(&mut self) {
        // With its last process a network goes by itself, and its half of each pair with it.
        for state in STATES {
            succeeds("ip", &["netns", "del", &self.space(state)]);
        }
        for number in 1..=STATES.len() {
            succeeds("ip", &["link", "del", &format!("{}n{number}", self.tag)]);
        }
    }
}

fn succeeds(program: &str, arguments: &[&str]) -> bool {
    let mut run = Command::new(program);
    run.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    run.status().is_ok_and(|it| it.success())
}
