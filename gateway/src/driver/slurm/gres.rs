//! Generic resources and lists of hosts, as Slurm writes them.
//!
//! `gpu:h100:4(S:0-1),gpu:a100:2` is what a node has, `gpu:h100:2(IDX:0,3)` what of it is in use.
//! Parsing never fails: what is not understood counts as nothing.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

/// More hosts than that are not listed: a pool has at most 10,000 nodes.
const HOSTS_MAX: usize = 20_000;
const GRES_BYTES_MAX: usize = 64;

/// What a pool's GPUs are called: a name, and mostly a type. `gpu:h100`, `gpu`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GresName {
    name: String,
    kind: Option<String>,
}

/// Why a text does not name a resource.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a name of GPUs as Slurm has them, such as gpu:h100 or gpu")]
pub struct BadGres(String);

impl GresName {
    pub fn parse(text: &str) -> Result<GresName, BadGres> {
        let sound = |word: &str| {
            let known = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
            !word.is_empty() && word.len() <= GRES_BYTES_MAX && word.chars().all(known)
        };
        let (name, kind) = match text.split_once(':') {
            Some((name, kind)) => (name, Some(kind)),
            None => (text, None),
        };
        if !sound(name) || !kind.is_none_or(sound) {
            return Err(BadGres(text.to_owned()));
        }
        Ok(GresName { name: name.to_owned(), kind: kind.map(str::to_owned) })
    }

    /// How many of these a text of Slurm's speaks of. A name without a type means every type.
    pub fn count_in(&self, text: &str) -> u32 {
        entries(text)
            .filter(|it| it.name == self.name && (self.kind.is_none() || it.kind == self.kind.as_deref()))
            .fold(0, |sum, it| sum.saturating_add(it.count))
    }

    /// `h100`, if there is one.
    pub fn kind(&self) -> Option<&str> {
        self.kind.as_deref()
    }

    /// `gpu`.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for GresName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Some(kind) => write!(out, "{}:{kind}", self.name),
            None => out.write_str(&self.name),
        }
    }
}

impl Serialize for GresName {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GresName {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<GresName, D::Error> {
        GresName::parse(&String::deserialize(input)?).map_err(D::Error::custom)
    }
}

struct Entry<'a> {
    name: &'a str,
    kind: Option<&'a str>,
    count: u32,
}

fn entries(text: &str) -> impl Iterator<Item = Entry<'_>> {
    split_outside(text, '(', ')').filter_map(|entry| {
        let words = entry.split('(').next().unwrap_or_default().trim();
        let mut words = words.split(':');
        let name = words.next().filter(|it| !it.is_empty())?;
        let (kind, count) = match (words.next(), words.next()) {
            (Some(count), None) => (None, count),
            (Some(kind), Some(count)) => (Some(kind), count),
            (None, _) => (None, "1"),
        };
        Some(Entry { name, kind, count: parse_count(count)? })
    })
}

/// Large counts are written in thousands: `2K`.
fn parse_count(text: &str) -> Option<u32> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "" => 1,
        "K" | "k" => 1_024,
        "M" | "m" => 1_024 * 1_024,
        _ => return None,
    };
    digits.parse::<u32>().ok()?.checked_mul(factor)
}

/// The hosts that a list such as `n[1-3,05],gpu7` names, in its order.
pub(super) fn hosts(list: &str) -> Vec<String> {
    let mut hosts = Vec::new();
    for word in split_outside(list, '[', ']') {
        expand("", word.trim(), &mut hosts);
    }
    hosts
}

/// One word may have several brackets: `rack[1-2]n[1-4]`.
fn expand(before: &str, rest: &str, hosts: &mut Vec<String>) {
    if hosts.len() >= HOSTS_MAX {
        return;
    }
    let bracket = rest.split_once('[').and_then(|(plain, more)| Some((plain, more.split_once(']')?)));
    let Some((plain, (ranges, after))) = bracket else {
        if !before.is_empty() || !rest.is_empty() {
            hosts.push(format!("{before}{rest}"));
        }
        return;
    };
    for range in ranges.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (Ok(from), Ok(to)) = (first.parse::<u64>(), last.parse::<u64>()) else {
            continue;
        };
        for number in (from..=to).take(HOSTS_MAX) {
            // The width of the first is that of all: `[08-10]`.
            expand(&format!("{before}{plain}{number:0width$}", width = first.len()), after, hosts);
        }
    }
}

/// Parts between the commas that are not in brackets.
fn split_outside(text: &str, open: char, close: char) -> impl Iterator<Item = &str> {
    let mut inside = false;
    text.split(move |c: char| {
        inside = (inside || c == open) && c != close;
        c == ',' && !inside
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_are_counted_by_name_and_type() {
        let check = |name: &str, text: &str| GresName::parse(name).expect("a name").count_in(text);
        for (name, text, expected) in [
            ("gpu:h100", "gpu:h100:4", 4),
            ("gpu:h100", "gpu:h100:4(S:0-1)", 4),
            ("gpu:h100", "gpu:h100:2(IDX:0,3),gpu:a100:1(IDX:4)", 2),
            ("gpu:a100", "gpu:h100:2(IDX:0,3),gpu:a100:1(IDX:4)", 1),
            ("gpu", "gpu:h100:2(IDX:0,3),gpu:a100:1(IDX:4)", 3),
            ("gpu", "gpu:3", 3),
            ("gpu:h100", "gpu:3", 0),
            ("gpu", "gpu", 1),
            ("gpu:h100", "gpu:h100:0(IDX:N/A)", 0),
            ("gpu:1g.10gb", "gpu:1g.10gb:7(S:0),mps:2K", 7),
            ("mps", "gpu:h100:4,mps:2K", 2_048),
            ("gpu", "(null)", 0),
            ("gpu", "N/A", 0),
            ("gpu", "", 0),
            ("gpu", "gpu:h100:many,,:4,(", 0),
        ] {
            assert_eq!(check(name, text), expected, "{name} in {text}");
        }
    }

    #[test]
    fn a_name_has_at_most_a_type() {
        for text in ["", ":h100", "gpu:", "gpu:h100:4", "gpu h100", "gpu,gpu"] {
            assert!(GresName::parse(text).is_err(), "{text:?}");
        }
        assert_eq!(GresName::parse("gpu:h100").expect("a name").to_string(), "gpu:h100");
    }

    #[test]
    fn lists_of_hosts_are_written_out() {
        for (list, expected) in [
            ("c1-n1", "c1-n1"),
            ("c1-n[1-3]", "c1-n1 c1-n2 c1-n3"),
            ("n[08-10],gpu7", "n08 n09 n10 gpu7"),
            ("n[1,3-4]", "n1 n3 n4"),
            ("r[1-2]n[1-2]", "r1n1 r1n2 r2n1 r2n2"),
            ("n[1-2]x,y", "n1x n2x y"),
            ("", ""),
            ("n[a-b]", ""),
            ("n[3-1]", ""),
        ] {
            assert_eq!(hosts(list).join(" "), expected, "{list}");
        }
        assert!(hosts("n[1-99999999999]").len() <= HOSTS_MAX);
        assert!(hosts("a[1-200]b[1-200]c[1-200]").len() <= HOSTS_MAX);
    }
}
