//! Requests and answers as one line each, so that a test is a table.
//!
//! A request: `export FR -> DE+C5: health research high`. What is not said is a job of 8 GPUs for
//! an hour with public data for research, by a researcher of substantial assurance.
//! An answer: `permit by a b`, `forbidden by a`, `no permit`, `error in a`, `floor F2`.

use policy::{
    Action, ContextFacts, DataClass, Decision, DenialReason, FactoryFacts, JobFacts, Labels, Pack, PackSource, Purpose,
    Request, ResearcherFacts, decide,
};

pub fn state(code: &str) -> certs::MemberState {
    certs::MemberState::parse(code).expect("a state")
}

/// A pack with a rule of each text, called `r1`, `r2`, ..
pub fn pack(code: &str, policies: &[&str]) -> PackSource {
    let annotated = policies
        .iter()
        .enumerate()
        .map(|(index, policy)| format!("@id(\"r{0}\") @title(\"Rule {0}\") @law(\"Law {0}\")\n{policy}\n", index + 1));
    source(code, &annotated.collect::<String>())
}

pub fn source(code: &str, cedar: &str) -> PackSource {
    PackSource { state: state(code), title: "A pack".into(), contact: "law@example.eu".into(), cedar: cedar.into() }
}

pub fn compiled(code: &str, policies: &[&str]) -> Pack {
    Pack::compile(&pack(code, policies)).expect("a pack that compiles")
}

pub fn request(line: &str) -> Request {
    let (route, words) = line.split_once(':').expect("a colon");
    let [action, home, "->", place] = route.split(' ').collect::<Vec<_>>()[..] else {
        panic!("not `action home -> place`: {route}");
    };
    let mut place = place.split('+');
    let factory = FactoryFacts {
        state: state(place.next().expect("a state")),
        name: "factory".into(),
        certifications: place.map(str::to_owned).collect(),
        carbon_g_per_kwh: 100,
        price_milli_eur_per_gpu_hour: 2_000,
        model: "H100-80".into(),
    };
    let labels = Labels { data_class: DataClass::Public, purpose: Purpose::Research, dual_use: false, project: None };
    let mut request = Request {
        action: Action::ALL.into_iter().find(|it| it.as_str() == action).expect("an action"),
        researcher: ResearcherFacts {
            home: state(home),
            assurance: 1,
            entitlements: vec!["urn:geant:example.eu:group:researchers".into()],
            clearances: vec![],
            residency: None,
        },
        job: JobFacts { gpus: 8, nodes: 0, walltime_s: 3_600, labels, input_states: vec![] },
        factory,
        context: ContextFacts { home_share_percent: 0 },
    };
    for word in words.split_whitespace() {
        say(&mut request, word);
    }
    request
}

fn say(request: &mut Request, word: &str) {
    let labels = &mut request.job.labels;
    if let Some(class) = DataClass::parse(word) {
        labels.data_class = class;
    } else if let Some(purpose) = Purpose::parse(word) {
        labels.purpose = purpose;
    } else if let Some((what, number)) = word.split_once('=') {
        let number: u32 = number.parse().expect("a number");
        match what {
            "gpus" => request.job.gpus = number,
            "nodes" => request.job.nodes = number,
            "walltime_s" => request.job.walltime_s = number,
            "share" => request.context.home_share_percent = number,
            "carbon" => request.factory.carbon_g_per_kwh = number,
            "price" => request.factory.price_milli_eur_per_gpu_hour = number,
            "assurance" => request.researcher.assurance = number as u8,
            other => panic!("no such number: {other}"),
        }
    } else {
        match word {
            "dual-use" => labels.dual_use = true,
            "cleared" => request.researcher.clearances.push("dual-use".into()),
            "cleared-by-FR" => request.researcher.clearances.push("FR:dual-use".into()),
            "low" => request.researcher.assurance = 0,
            "high" => request.researcher.assurance = 2,
            other => panic!("no such word: {other}"),
        }
    }
}

pub fn answer(decision: &Decision) -> String {
    let rules = |words: &str| {
        let ids = decision.rules().iter().map(|rule| format!(" {}", rule.id));
        format!("{words}{}", ids.collect::<String>())
    };
    match decision {
        Decision::Permit(_) => rules("permit by"),
        Decision::Denial(denial) => match &denial.reason {
            DenialReason::Rule => rules("forbidden by"),
            DenialReason::NoPermit => "no permit".into(),
            DenialReason::Error(policy) => format!("error in {policy}"),
            DenialReason::Floor(rule) => format!("floor {rule}"),
            DenialReason::PolicyMissing => "no pack".into(),
        },
    }
}

/// Puts each request to the pack and compares the answers.
pub fn check(pack: &Pack, table: &[(&str, &str)]) {
    for (line, expected) in table {
        let decision = decide(pack, &request(line));
        assert_eq!(&answer(&decision), expected, "{}: {line}", pack.state());
    }
}
