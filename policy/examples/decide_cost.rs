//! What a decision costs: 27 states with ten rules each are asked about one job, cached and not.
//!
//! `cargo run --release -p entente-policy --example decide_cost`

use std::error::Error;
use std::hint::black_box;
use std::time::Instant;

use certs::MemberState;
use policy::{
    Action, ContextFacts, DataClass, DecisionCache, FactoryFacts, JobFacts, Labels, Pack, Purpose, Request,
    ResearcherFacts, decide, founding,
};

const UNION: [&str; 27] = [
    "AT", "BE", "BG", "CY", "CZ", "DE", "DK", "EE", "ES", "FI", "FR", "GR", "HR", "HU", "IE", "IT", "LT", "LU", "LV",
    "MT", "NL", "PL", "PT", "RO", "SE", "SI", "SK",
];
const ROUNDS: u32 = 200;

fn main() -> Result<(), Box<dyn Error>> {
    let asked = UNION.map(ask).into_iter().collect::<Result<Vec<_>, _>>()?;
    let cache = DecisionCache::new();
    let uncached_ns = time(&asked, |_, pack, request| {
        black_box(decide(pack, request));
    });
    let cached_ns = time(&asked, |digest, pack, request| {
        black_box(cache.decide_cached(pack, digest, request));
    });
    println!("{:>10} {:>14} {:>18}", "", "one state", "27 states");
    for (name, ns) in [("not cached", uncached_ns), ("cached", cached_ns)] {
        println!("{name:>10} {ns:>11} ns {:>15.1} us", 27.0 * ns as f64 / 1_000.0);
    }
    Ok(())
}

/// Nanoseconds per decision.
fn time(asked: &[(Pack, Request)], one: impl Fn([u8; 32], &Pack, &Request)) -> u128 {
    let start = Instant::now();
    for _ in 0..ROUNDS {
        for (index, (pack, request)) in asked.iter().enumerate() {
            one([index as u8; 32], pack, request);
        }
    }
    start.elapsed().as_nanos() / u128::from(ROUNDS) / asked.len() as u128
}

/// A state with France's rules, and a job of a French researcher that it should host.
fn ask(code: &str) -> Result<(Pack, Request), Box<dyn Error>> {
    let (state, france) = (MemberState::parse(code)?, MemberState::parse("FR")?);
    let mut source = founding::pack(france).ok_or("France ships a pack")?;
    source.state = state;
    let labels = Labels {
        data_class: DataClass::Internal,
        purpose: Purpose::Research,
        dual_use: false,
        project: Some("climate".into()),
    };
    let request = Request {
        action: Action::Host,
        researcher: ResearcherFacts {
            home: france,
            assurance: 1,
            entitlements: vec!["urn:geant:example.fr:group:researchers".into()],
            clearances: vec![],
            residency: Some(france),
        },
        job: JobFacts { gpus: 8, nodes: 1, walltime_s: 3_600, labels, input_states: vec![] },
        factory: FactoryFacts {
            state,
            name: "factory".into(),
            certifications: vec!["HDS".into()],
            carbon_g_per_kwh: 45,
            price_milli_eur_per_gpu_hour: 2_000,
            model: "H100-80".into(),
        },
        context: ContextFacts { home_share_percent: 10 },
    };
    Ok((Pack::compile(&source)?, request))
}
