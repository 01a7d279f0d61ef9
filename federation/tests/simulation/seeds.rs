//! Seeds: which runs are made, by how many at once, and what is said of one that fails.
//! Invariant: how many run at once changes nothing about any of them.

use std::{ops::Range, time::Instant};

use crate::{
    sights::Sights,
    size::Size,
    world::{Setting, run},
};

/// Runs that are made by default, of the small federation.
pub const SEEDS: u64 = 10_000;
const REPEAT: &str = "cargo test -p entente-federation --test simulation every_seed -- --nocapture";

/// Says which seed it was when something panics on the way.
struct Announced<'a>(u64, &'a Size);

impl Drop for Announced<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {} of {} states; repeat it with\n  {}", self.0, self.1.states, repeat(self.0, self.1));
        }
    }
}

fn repeat(seed: u64, size: &Size) -> String {
    format!("ENTENTE_SIM_STATES={} ENTENTE_SIM_SEED={seed} {REPEAT}", size.states)
}

/// `ENTENTE_SIM_SEED`: one seed, with its trace printed.
pub fn one_seed() -> Option<u64> {
    Some(std::env::var("ENTENTE_SIM_SEED").ok()?.parse().expect("ENTENTE_SIM_SEED is a number"))
}

/// `ENTENTE_SIM_SEEDS`: `from..to`, or how many.
pub fn many_seeds() -> Option<Range<u64>> {
    let text = std::env::var("ENTENTE_SIM_SEEDS").ok()?;
    let number = |text: &str| text.parse::<u64>().expect("ENTENTE_SIM_SEEDS is a number, or two with `..` between");
    Some(text.split_once("..").map_or_else(|| 0..number(&text), |(from, to)| number(from)..number(to)))
}

/// `ENTENTE_SIM_STATES`: 3, 5 or 27.
pub fn asked_size() -> Option<usize> {
    Some(std::env::var("ENTENTE_SIM_STATES").ok()?.parse().expect("ENTENTE_SIM_STATES is 3, 5 or 27"))
}

/// One run for people: its trace is printed, and so is what it finds.
pub fn tell(seed: u64, size: &'static Size) {
    let _announced = Announced(seed, size);
    let report = run(seed, Setting { text: true, ..Setting::of(size) });
    report.lines.iter().for_each(|line| println!("{line}"));
    println!("seed {seed}: trace {:016x}; {}", report.digest, report.sights);
    assert!(report.violation.is_none(), "seed {seed}: {}", report.violation.expect("checked"));
}

/// Makes every run, and fails with the first seed that breaks an invariant.
pub fn check(seeds: Range<u64>, size: &'static Size) -> Sights {
    let (begun, count) = (Instant::now(), seeds.end.saturating_sub(seeds.start));
    let at_once = std::thread::available_parallelism().map_or(1, |it| it.get() as u64);
    let sights = std::thread::scope(|scope| {
        let shares = (0..at_once).map(|nth| {
            let seeds = seeds.clone().skip(nth as usize).step_by(at_once as usize);
            scope.spawn(move || seeds.fold(Sights::default(), |sum, seed| sum.and(&sound(seed, size))))
        });
        let shares: Vec<_> = shares.collect();
        shares.into_iter().fold(Sights::default(), |sum, share| sum.and(&share.join().expect("every run is sound")))
    });
    let took_s = begun.elapsed().as_secs_f64();
    let (states, per_s) = (size.states, count as f64 / took_s);
    println!("{count} seeds of {states} states in {took_s:.1} s, {per_s:.0} seeds/s, {at_once} at once; {sights}");
    sights
}

fn sound(seed: u64, size: &'static Size) -> Sights {
    let _announced = Announced(seed, size);
    let report = run(seed, Setting::of(size));
    assert!(report.violation.is_none(), "seed {seed}: {}", report.violation.expect("checked"));
    report.sights
}
