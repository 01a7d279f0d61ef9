//! Packs: a few real ones that differ in what they permit, and what each says.
//!
//! None of them reads more of a request than its action, its data class and the share, so answers are remembered by
//! these: a run of the policy engine costs a thousand times what everything else in a step does.
//! Invariant: every answer was once the policy engine's.

use std::{collections::BTreeMap, sync::Mutex};

use certs::MemberState;
use federation::Registry;
use policy::{
    Action, ContextFacts, DataClass, Decision, FactoryFacts, JobFacts, Labels, Pack, PackSource, Permit, Purpose,
    Request, ResearcherFacts,
};

/// What a pack permits beside what no other rule forbids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    Everything,
    /// Hosts nothing internal.
    HostsPublic,
    /// Hosts nobody who holds half of a pool.
    HostsShares,
    HostsNothing,
    /// Lets nothing internal leave.
    ExportsPublic,
}

pub const RULES: [Rule; 5] =
    [Rule::Everything, Rule::HostsPublic, Rule::HostsShares, Rule::HostsNothing, Rule::ExportsPublic];
const SHARE_PERCENT: u32 = 50;

const BASE: &str = r#"@id("all") @title("All") @law("none") @since("2025-01-01") @contact("law@example.eu")
permit (principal, action, resource);
"#;

impl Rule {
    fn cedar(self) -> String {
        let (action, when) = match self {
            Rule::Everything => return BASE.into(),
            Rule::HostsPublic => ("host", r#"context.data_class == DataClass::"internal""#.to_string()),
            Rule::HostsShares => ("host", format!("context.home_share_percent >= {SHARE_PERCENT}")),
            Rule::HostsNothing => ("host", "true".into()),
            Rule::ExportsPublic => ("export", r#"context.data_class == DataClass::"internal""#.into()),
        };
        format!(
            "{BASE}@id(\"not\") @title(\"Not\") @law(\"none\") @since(\"2025-01-01\") @contact(\"law@example.eu\")\n\
             forbid (principal, action == Action::\"{action}\", resource) when {{ {when} }};"
        )
    }

    pub fn title(self) -> &'static str {
        match self {
            Rule::Everything => "Everything",
            Rule::HostsPublic => "Hosts what is public",
            Rule::HostsShares => "Hosts up to a share",
            Rule::HostsNothing => "Hosts nothing",
            Rule::ExportsPublic => "Exports what is public",
        }
    }

    /// A pack of this rule. Its title says which, so that it is found without reading the text.
    pub fn source(self, state: MemberState) -> PackSource {
        PackSource { state, title: self.title().into(), contact: "law@example.eu".into(), cedar: self.cedar() }
    }

    fn of(source: &PackSource) -> Rule {
        RULES.into_iter().find(|rule| source.title == rule.title()).expect("a pack of the simulation")
    }
}

/// What decides a question: the rest of a request makes no difference to these packs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Question {
    pub home: MemberState,
    pub class: DataClass,
}

/// What a state's pack, as a replica has it, says about a pool of `host`; `None` is a denial.
pub fn permit(
    registry: &Registry,
    of: MemberState,
    action: Action,
    question: Question,
    host: MemberState,
    share_percent: u32,
) -> Option<Permit> {
    let rule = Rule::of(&registry.pack(of)?.source);
    type Asked = (MemberState, Rule, &'static str, Question, MemberState, bool);
    let many = share_percent >= SHARE_PERCENT;
    static ANSWERS: Mutex<BTreeMap<Asked, Option<Permit>>> = Mutex::new(BTreeMap::new());
    let mut answers = ANSWERS.lock().unwrap();
    let key = (of, rule, action.as_str(), question, host, many);
    answers.entry(key).or_insert_with(|| ask(of, rule, action, question, host, many)).clone()
}

fn ask(
    of: MemberState,
    rule: Rule,
    action: Action,
    question: Question,
    host: MemberState,
    many: bool,
) -> Option<Permit> {
    let pack = Pack::compile(&rule.source(of)).expect("a pack of the simulation compiles");
    let request = Request {
        action,
        researcher: researcher(question.home),
        job: JobFacts { gpus: 1, nodes: 0, walltime_s: 60, labels: labels(question.class), input_states: vec![] },
        factory: FactoryFacts {
            state: host,
            name: "factory".into(),
            certifications: vec![],
            carbon_g_per_kwh: 50,
            price_milli_eur_per_gpu_hour: 1_000,
            model: "H100".into(),
        },
        context: ContextFacts { home_share_percent: if many { SHARE_PERCENT } else { 0 } },
    };
    match policy::decide(&pack, &request) {
        Decision::Permit(permit) => Some(permit),
        Decision::Denial(_) => None,
    }
}

pub fn researcher(home: MemberState) -> ResearcherFacts {
    ResearcherFacts { home, assurance: 2, entitlements: vec![], clearances: vec![], residency: None }
}

pub fn labels(data_class: DataClass) -> Labels {
    Labels { data_class, purpose: Purpose::Research, dual_use: false, project: None }
}

#[test]
fn the_packs_differ_as_their_names_say() {
    let state = |text| MemberState::parse(text).unwrap();
    let says = |rule, action, class, many| {
        // Only a job's home is asked whether it may leave, and only the pool's state whether it may come.
        let home = state(if action == Action::Export { "FI" } else { "DE" });
        ask(state("FI"), rule, action, Question { home, class }, state("FI"), many).is_some()
    };
    for rule in RULES {
        let (host, export) = (Action::Host, Action::Export);
        let expected = [rule != Rule::HostsNothing, rule != Rule::HostsNothing && rule != Rule::HostsPublic];
        assert_eq!(
            [DataClass::Public, DataClass::Internal].map(|it| says(rule, host, it, false)),
            expected,
            "{rule:?}"
        );
        assert_eq!(says(rule, export, DataClass::Internal, false), rule != Rule::ExportsPublic, "{rule:?}");
        let many = !matches!(rule, Rule::HostsNothing | Rule::HostsShares);
        assert_eq!(says(rule, host, DataClass::Public, true), many, "{rule:?}");
    }
}
