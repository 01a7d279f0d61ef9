//! Whatever is asked and whatever is published, an answer comes and nothing panics.

use certs::MemberState;
use policy::{
    Action, ContextFacts, DataClass, Decision, FactoryFacts, JobFacts, Labels, Pack, Purpose, Request, ResearcherFacts,
    decide, founding, states,
};
use proptest::prelude::*;
use proptest::sample::select;

use crate::asking::source;

fn any_state() -> impl Strategy<Value = MemberState> {
    select(vec!["FR", "DE", "FI", "NO", "CH", "US"]).prop_map(|code| MemberState::parse(code).expect("a state"))
}

/// Half in range, half as large as it gets.
fn number(range: u32) -> impl Strategy<Value = u32> {
    prop_oneof![0..=range, any::<u32>(), Just(u32::MAX)]
}

fn texts() -> impl Strategy<Value = Vec<String>> {
    let known = select(vec!["HDS", "C5", "SPE", "dual-use", ""]).prop_map(str::to_owned);
    prop::collection::vec(prop_oneof![known, ".{0,40}"], 0..4)
}

fn any_researcher() -> impl Strategy<Value = ResearcherFacts> {
    (any_state(), 0..4_u8, texts(), texts(), prop::option::of(any_state())).prop_map(
        |(home, assurance, entitlements, clearances, residency)| ResearcherFacts {
            home,
            assurance,
            entitlements,
            clearances,
            residency,
        },
    )
}

fn any_job() -> impl Strategy<Value = JobFacts> {
    let labels =
        (select(DataClass::ALL.to_vec()), select(Purpose::ALL.to_vec()), any::<bool>(), prop::option::of(".{0,40}"))
            .prop_map(|(data_class, purpose, dual_use, project)| Labels { data_class, purpose, dual_use, project });
    let inputs = prop::collection::vec(any_state(), 0..3);
    (number(100_000), number(10), number(2_678_400), labels, inputs).prop_map(
        |(gpus, nodes, walltime_s, labels, input_states)| JobFacts { gpus, nodes, walltime_s, labels, input_states },
    )
}

fn any_factory() -> impl Strategy<Value = FactoryFacts> {
    (any_state(), ".{0,20}", texts(), number(900), number(9_000), ".{0,20}").prop_map(
        |(state, name, certifications, carbon, price, model)| FactoryFacts {
            state,
            name,
            certifications,
            carbon_g_per_kwh: carbon,
            price_milli_eur_per_gpu_hour: price,
            model,
        },
    )
}

fn any_request() -> impl Strategy<Value = Request> {
    let action = select(Action::ALL.to_vec());
    (action, any_researcher(), any_job(), any_factory(), number(100)).prop_map(
        |(action, researcher, job, factory, home_share_percent)| Request {
            action,
            researcher,
            job,
            factory,
            context: ContextFacts { home_share_percent },
        },
    )
}

fn packs() -> Vec<Pack> {
    let compiled = |code| {
        let state = MemberState::parse(code).expect("a state");
        Pack::compile(&founding::pack(state).expect("a founding state")).expect("a shipped pack")
    };
    founding::STATES.map(compiled).into()
}

#[test]
fn random_requests_are_answered_and_no_permit_breaks_the_floor() {
    let packs = packs();
    let requests = (any_request(), select(vec![0, 1, 2]));
    proptest!(ProptestConfig::with_cases(400), |((request, asked) in requests)| {
        let pack: &Pack = &packs[asked];
        let decision = decide(pack, &request);
        prop_assert_eq!(&decision, &decide(pack, &request));
        if let Decision::Permit(permit) = &decision {
            let factory = request.factory.state;
            let job = &request.job;
            prop_assert_eq!((permit.state, permit.action), (pack.state(), request.action));
            prop_assert_eq!(request.concerned(), pack.state());
            prop_assert!(job.gpus <= 100_000 && job.walltime_s <= 2_678_400);
            prop_assert!(!permit.rules.is_empty());
            if request.action != Action::View {
                prop_assert!(job.labels.purpose != Purpose::Defence);
                prop_assert!(!job.labels.data_class.is_personal() || states::in_eea(factory));
            }
        }
    });
}

#[test]
fn requests_in_range_fit_the_schema() {
    let packs = packs();
    proptest!(ProptestConfig::with_cases(200), |(request in any_request())| {
        let mut request = request;
        request.factory.state = packs[0].state();
        request.action = Action::View;
        request.researcher.assurance %= 3;
        (request.job.gpus, request.job.nodes, request.job.walltime_s) = (1, 1, 1);
        request.factory.carbon_g_per_kwh %= 1_000;
        request.factory.price_milli_eur_per_gpu_hour %= 1_000;
        request.context.home_share_percent %= 101;
        prop_assert!(decide(&packs[0], &request).is_permit());
    });
}

/// Words that packs are made of, in any order.
fn any_text() -> impl Strategy<Value = String> {
    let words = select(vec![
        "permit",
        "forbid",
        "(",
        ")",
        "{",
        "}",
        "[",
        "]",
        "principal",
        "action",
        "resource",
        "when",
        "unless",
        "context.gpus",
        "&&",
        "||",
        "!",
        "-",
        "*",
        ",",
        ";",
        "==",
        "in",
        "has",
        "like",
        "is",
        "if",
        "then",
        "else",
        "true",
        "1",
        "\"",
        "\"a\"",
        "\\",
        "//",
        "\n",
        "@id(\"a\")",
        "@title(\"b\")",
        "@law(\"c\")",
        "Action::\"host\"",
        "::",
        ".",
        "?principal",
        "é",
        "\r",
        "\u{202e}",
    ]);
    let soup = prop::collection::vec(words, 0..60).prop_map(|words| words.join(" "));
    prop_oneof![soup, ".{0,200}"]
}

#[test]
fn random_packs_compile_or_are_refused() {
    proptest!(ProptestConfig::with_cases(300), |(cedar in any_text())| {
        let _either = Pack::compile(&source("FR", &cedar));
    });
}
