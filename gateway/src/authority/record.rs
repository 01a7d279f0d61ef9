//! The record: which certificates an authority has issued, and which of them it has taken back.
//!
//! Invariants: no certificate leaves the authority before it is recorded; one that was taken back is on the disk as such
//! before anybody is told, and is in every list from then on until it has ended. Two commands at once change the record one
//! after the other.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, bail};
use certs::{Certificate, LEAF_LIFE_MAX_S, Revoked, Serial};
use serde::{Deserialize, Serialize};

use super::{date, replace};

const FILE: &str = "certificates.json";
/// 2,000 entries of at most 53 bytes are 104 KiB of a bundle's 256. 16 gateways that renew both leaves each day, for 60 days
/// each, are 1,920.
const REVOKED_MAX: usize = 2_000;
/// A clock that is a day slow still takes a certificate that has ended to count.
const SLOW_CLOCK_S: u64 = 86_400;

/// A certificate that the authority has issued.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Issued {
    /// Its number.
    pub serial: Serial,
    /// `FR/fr-1`, or the first host name of a public face.
    pub name: String,
    /// Whether it is to meet peers with.
    pub is_for_peers: bool,
    /// When it ends by itself, in Unix seconds.
    pub ends_s: u64,
    /// When it was taken back, in Unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_s: Option<u64>,
}

/// All that have not ended long ago.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Record(Vec<Issued>);

/// How a certificate is named to be taken back.
#[derive(Clone, Debug)]
pub enum Named {
    /// By its number; the record must have it.
    Serial(Serial),
    /// By itself, so that one counts that was issued before there was a record. The authority's signature was checked.
    Itself(Certificate),
}

/// What became of a certificate that was to be taken back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TakenBack {
    /// The certificate, which counts no more.
    pub issued: Issued,
    /// Since long ago: nothing has changed.
    pub was_already: bool,
    /// The gateway has no other one to meet its peers with.
    pub was_the_last: bool,
}

impl Issued {
    pub(super) fn new(certificate: Certificate) -> Issued {
        let Certificate { serial, name, is_for_peers, ends_s, .. } = certificate;
        Issued { serial, name, is_for_peers, ends_s, revoked_s: None }
    }

    fn is_over(&self, now_s: u64) -> bool {
        self.ends_s.saturating_add(SLOW_CLOCK_S) < now_s
    }
}

impl Record {
    /// Reads the record of an authority's folder; one of before there were records has none.
    pub fn read(folder: &Path) -> anyhow::Result<Record> {
        let path = folder.join(FILE);
        if !path.exists() {
            return Ok(Record::default());
        }
        let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| {
            format!("{} is damaged or was edited; put the last copy of it back, and nothing is lost", path.display())
        })
    }

    /// Changes the record on disk, if the change succeeds; then it is there to stay.
    pub(super) fn change<T>(
        folder: &Path,
        now_s: u64,
        change: impl FnOnce(&mut Record) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let lock = File::open(folder).with_context(|| format!("cannot open {}", folder.display()))?;
        lock.lock().with_context(|| format!("cannot lock {}", folder.display()))?;
        let mut record = Record::read(folder)?;
        record.0.retain(|it| !it.is_over(now_s));
        let changed = change(&mut record)?;
        replace(&folder.join(FILE), &serde_json::to_vec_pretty(&record)?, 0o644)?;
        Ok(changed)
    }

    /// What is in it, in the order in which it was issued.
    pub fn issued(&self) -> &[Issued] {
        &self.0
    }

    pub(super) fn add(&mut self, issued: impl IntoIterator<Item = Issued>) {
        self.0.extend(issued);
    }

    /// Takes certificates back: all of them, or none.
    pub(super) fn take_back(&mut self, named: &[Named], now_s: u64) -> anyhow::Result<Vec<TakenBack>> {
        let mut taken = vec![];
        for named in named {
            let place = self.place_of(named)?;
            let issued = &mut self.0[place];
            if issued.ends_s < now_s {
                bail!(
                    "certificate {} of {} ended on {}: no gateway takes it any more, and there is nothing to revoke",
                    issued.serial,
                    issued.name,
                    date(issued.ends_s)
                );
            }
            let was_already = issued.revoked_s.is_some();
            issued.revoked_s.get_or_insert(now_s);
            taken.push((issued.clone(), was_already));
        }
        let revoked = self.0.iter().filter(|it| it.revoked_s.is_some()).count();
        if revoked > REVOKED_MAX {
            bail!(
                "{revoked} certificates would be revoked that have not ended, and a list has room for {REVOKED_MAX}: issue \
                 them for less hours, or evict the gateways that they are for"
            );
        }
        let was_the_last = |taken: &Issued| {
            let counts = |it: &&Issued| it.is_for_peers && it.revoked_s.is_none() && it.ends_s > now_s;
            taken.is_for_peers && !self.0.iter().filter(counts).any(|it| it.name == taken.name)
        };
        Ok(taken
            .into_iter()
            .map(|(issued, was_already)| TakenBack { was_the_last: was_the_last(&issued), issued, was_already })
            .collect())
    }

    fn place_of(&mut self, named: &Named) -> anyhow::Result<usize> {
        let serial = match named {
            Named::Serial(serial) => serial,
            Named::Itself(certificate) => &certificate.serial,
        };
        if let Some(place) = self.0.iter().position(|it| it.serial == *serial) {
            return Ok(place);
        }
        match named {
            Named::Serial(serial) => bail!(
                "this authority has no record of a certificate {serial}: `entente certs show` of its folder lists those \
                 that it has, and one that was issued before there was a record is revoked by its file, with --certificate"
            ),
            Named::Itself(certificate) => self.0.push(Issued::new(certificate.clone())),
        }
        Ok(self.0.len() - 1)
    }

    /// What the next list takes back: what the record says, and what the last lists said, so that a record that was lost or
    /// put back from an old copy gives nothing its trust again. What has ended needs no list.
    pub(super) fn to_list(&self, listed: &[Revoked], now_s: u64) -> Vec<Revoked> {
        let recorded = self.0.iter().filter(|it| !it.is_over(now_s)).filter_map(|it| {
            let at_s = it.revoked_s?;
            Some(Revoked { serial: it.serial.clone(), at_s })
        });
        let mut all: Vec<Revoked> = recorded.collect();
        for known in listed {
            let is_over = match self.0.iter().find(|it| it.serial == known.serial) {
                Some(issued) => issued.is_over(now_s),
                // It was issued before it was taken back, and no leaf lives longer.
                None => known.at_s.saturating_add(LEAF_LIFE_MAX_S + SLOW_CLOCK_S) < now_s,
            };
            if !is_over && all.iter().all(|it| it.serial != known.serial) {
                all.push(known.clone());
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_S: u64 = 1_900_000_000;
    const HOUR_S: u64 = 3_600;

    fn serial(text: &str) -> Serial {
        Serial::parse(text).expect("a serial number")
    }

    fn issued(number: &str, name: &str, ends_s: u64) -> Issued {
        Issued { serial: serial(number), name: name.into(), is_for_peers: name.contains('/'), ends_s, revoked_s: None }
    }

    fn record() -> Record {
        Record(vec![
            issued("01", "FR/fr-1", NOW_S - 1),
            issued("02", "FR/fr-1", NOW_S + HOUR_S),
            issued("03", "localhost", NOW_S + HOUR_S),
            issued("04", "FR/fr-1", NOW_S + 2 * HOUR_S),
            issued("05", "FR/fr-2", NOW_S + 2 * HOUR_S),
        ])
    }

    fn by_number(number: &str) -> Named {
        Named::Serial(serial(number))
    }

    fn listed(record: &Record, before: &[Revoked], now_s: u64) -> Vec<String> {
        record.to_list(before, now_s).iter().map(|it| it.serial.to_string()).collect()
    }

    /// `NUMBER`, with `last` or `already`.
    fn said(taken: &[TakenBack]) -> Vec<String> {
        let one = |it: &TakenBack| {
            let (last, already) = (it.was_the_last, it.was_already);
            format!("{}{}{}", it.issued.serial, if last { " last" } else { "" }, if already { " already" } else { "" })
        };
        taken.iter().map(one).collect()
    }

    #[test]
    fn what_is_taken_back_is_listed_until_it_has_ended() {
        let mut record = record();
        let mut take = |numbers: &[&str], now_s| {
            let named: Vec<_> = numbers.iter().map(|it| by_number(it)).collect();
            record.take_back(&named, now_s).map(|it| said(&it)).map_err(|it| it.to_string())
        };
        assert_eq!(take(&["02"], NOW_S), Ok(vec!["02".into()]));
        assert_eq!(take(&["03", "02"], NOW_S + 9), Ok(vec!["03".into(), "02 already".into()]));
        assert_eq!(take(&["05"], NOW_S), Ok(vec!["05 last".into()]));
        assert!(take(&["01"], NOW_S).expect_err("it has ended").contains("ended on 2030-03-17"));
        assert!(take(&["99"], NOW_S).expect_err("never issued").contains("no record of a certificate 99"));
        assert_eq!(record.issued()[1].revoked_s, Some(NOW_S), "the first time counts");

        assert_eq!(listed(&record, &[], NOW_S), ["02", "03", "05"]);
        let last_listed_s = NOW_S + HOUR_S + SLOW_CLOCK_S;
        assert_eq!(listed(&record, &[], last_listed_s), ["02", "03", "05"]);
        assert_eq!(listed(&record, &[], last_listed_s + 1), ["05"]);
    }

    #[test]
    fn the_last_certificate_of_a_gateway_is_known_from_those_that_count() {
        let mut record = record();
        let both = record.take_back(&[by_number("02"), by_number("04")], NOW_S).expect("taken back");
        assert_eq!(said(&both), ["02 last", "04 last"]);
        let public = record.take_back(&[by_number("03")], NOW_S).expect("taken back");
        assert_eq!(said(&public), ["03"], "no gateway meets its peers with it");
    }

    #[test]
    fn a_record_that_was_lost_gives_nothing_its_trust_again() {
        let before = [Revoked { serial: serial("02"), at_s: NOW_S }, Revoked { serial: serial("77"), at_s: NOW_S }];
        let none = Record::default();
        assert_eq!(listed(&none, &before, NOW_S + HOUR_S), ["02", "77"]);
        let last_listed_s = NOW_S + LEAF_LIFE_MAX_S + SLOW_CLOCK_S;
        assert_eq!(listed(&none, &before, last_listed_s), ["02", "77"]);
        assert_eq!(listed(&none, &before, last_listed_s + 1), [""; 0]);
        // An old copy knows the certificate, but not that it was taken back.
        assert_eq!(listed(&record(), &before, NOW_S + HOUR_S), ["02", "77"]);
    }

    #[test]
    fn a_change_is_on_the_disk_or_nothing_of_it_is() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let read = || Record::read(folder.path()).expect("a record").0;
        Record::change(folder.path(), NOW_S, |it| {
            it.add(record().0);
            Ok(())
        })
        .expect("recorded");
        let one_unknown = [by_number("02"), by_number("99")];
        Record::change(folder.path(), NOW_S, |it| it.take_back(&one_unknown, NOW_S)).expect_err("not recorded");
        assert_eq!(read(), record().0, "all or none");
        Record::change(folder.path(), NOW_S, |it| it.take_back(&one_unknown[..1], NOW_S)).expect("taken back");
        assert_eq!(read()[1].revoked_s, Some(NOW_S));
        // What ended long ago is forgotten.
        Record::change(folder.path(), NOW_S + HOUR_S + 2 * SLOW_CLOCK_S, |_| Ok(())).expect("changed");
        assert_eq!(read(), [], "all have ended");

        fs::write(folder.path().join(FILE), "[{").expect("a damaged file");
        let refused = Record::change(folder.path(), NOW_S, |_| Ok(())).expect_err("damaged");
        assert!(format!("{refused:#}").contains("put the last copy of it back"), "{refused:#}");
    }

    #[test]
    fn two_commands_at_once_lose_nothing() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::thread::scope(|scope| {
            for thread in 1_u8..=4 {
                let folder = folder.path();
                scope.spawn(move || {
                    for nth in 0_u8..8 {
                        let one = issued(&format!("{thread:02x}{nth:02x}"), "FR/fr-1", NOW_S + HOUR_S);
                        let added = Record::change(folder, NOW_S, |it| {
                            it.add([one]);
                            Ok(())
                        });
                        added.expect("recorded");
                    }
                });
            }
        });
        assert_eq!(Record::read(folder.path()).expect("a record").0.len(), 4 * 8);
    }
}
