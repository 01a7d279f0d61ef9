//! What no pack can switch off: the floor, and errors that are denials.

use policy::{Action, Answer, Decision, DenialReason, decide, no_pack};

use crate::asking::{check, compiled, request, state};

const ALL: &str = "permit (principal, action, resource);";

#[test]
fn the_floor_holds_under_a_pack_that_permits_everything() {
    check(
        &compiled("FR", &[ALL]),
        &[
            ("export FR -> FR: defence", "floor F1"),
            ("host DE -> FR: defence high", "floor F1"),
            ("view DE -> FR: defence", "permit by r1"),
            ("export FR -> US: personal", "floor F2"),
            ("export FR -> UA: health", "floor F2"),
            ("export FR -> CH: health", "permit by r1"),
            ("export FR -> NO: personal", "permit by r1"),
            ("export FR -> US: internal", "permit by r1"),
            ("export FR -> DE: dual-use low", "floor F3"),
            ("export FR -> DE: dual-use", "permit by r1"),
            ("export FR -> DE: gpus=100000 walltime_s=2678400 share=100", "permit by r1"),
            ("export FR -> DE: gpus=100001", "floor F4"),
            ("export FR -> DE: gpus=4294967295 walltime_s=4294967295", "floor F4"),
            ("export FR -> DE: nodes=100001", "floor F4"),
            ("export FR -> DE: walltime_s=2678401", "floor F4"),
            ("export FR -> DE: share=101", "floor F4"),
            ("export FR -> DE: carbon=10001", "floor F4"),
            ("export FR -> DE: price=1000001", "floor F4"),
            ("export FR -> DE: assurance=3", "floor F4"),
            ("view DE -> FR: gpus=100001", "floor F4"),
        ],
    );
}

#[test]
fn a_request_of_endless_texts_is_denied() {
    let pack = compiled("FR", &[ALL]);
    let mut wide = request("host DE -> FR:");
    wide.researcher.entitlements = vec![String::new(); 1_000_000];
    let mut long = request("host DE -> FR:");
    long.job.labels.project = Some("x".repeat(1_000_000));
    let mut far = request("host DE -> FR:");
    far.job.input_states = vec![state("DE"); 1_000_000];
    for request in [wide, long, far] {
        let Decision::Denial(denial) = decide(&pack, &request) else {
            panic!("permitted");
        };
        assert_eq!(denial.rules[0].id, "F4");
    }
}

/// Cedar skips a policy that fails: without the wrapper, each of these forbids would be a permit.
#[test]
fn an_overflow_in_any_rule_is_a_denial() {
    let overflowing = "context.gpus * context.walltime_s * 1000000000";
    for (policies, expected) in [
        (
            vec![ALL.into(), format!("forbid (principal, action, resource) when {{ {overflowing} > 5 }};")],
            "error in r2",
        ),
        (
            vec![ALL.into(), format!("permit (principal, action, resource) when {{ {overflowing} > 5 }};")],
            "error in r2",
        ),
        (
            vec![format!("forbid (principal, action, resource) unless {{ {overflowing} < 5 }};"), ALL.into()],
            "error in r1",
        ),
    ] {
        let policies: Vec<&str> = policies.iter().map(String::as_str).collect();
        let pack = compiled("FR", &policies);
        check(&pack, &[("host FI -> FR: gpus=100000 walltime_s=2678400", expected)]);
        check(&pack, &[("host FI -> FR: gpus=4294967295 walltime_s=4294967295", "floor F4")]);
    }
}

/// Threat 15: a clearance counts as the home's, whatever it is called.
#[test]
fn a_clearance_comes_with_the_state_that_grants_it() {
    let pack = compiled(
        "DE",
        &["permit (principal, action, resource) when { principal.clearances.contains(\"FR:dual-use\") };"],
    );
    check(
        &pack,
        &[
            ("host FR -> DE: cleared", "permit by r1"),
            ("host FR -> DE:", "no permit"),
            ("host FI -> DE: cleared", "no permit"),
            ("host FI -> DE: cleared-by-FR", "no permit"),
            ("host DE -> DE: cleared cleared-by-FR", "no permit"),
            ("export DE -> FR: cleared cleared-by-FR", "no permit"),
        ],
    );
    let bare = "permit (principal, action, resource) when { principal.clearances.contains(\"dual-use\") };";
    check(
        &compiled("FR", &[bare]),
        &[("host FR -> FR: cleared", "no permit"), ("host DE -> FR: cleared", "no permit")],
    );
}

#[test]
fn an_answer_names_the_rules_with_their_titles_and_laws() {
    let forbid = "forbid (principal, action, resource) when { context.gpus > 4 };";
    let pack = compiled("FR", &[ALL, forbid, forbid]);
    let Decision::Denial(denial) = decide(&pack, &request("host FI -> FR: gpus=5")) else {
        panic!("permitted");
    };
    assert_eq!((denial.state, denial.action, &denial.reason), (state("FR"), Action::Host, &DenialReason::Rule));
    let shown: Vec<_> = denial.rules.iter().map(|it| (&*it.title, &*it.law, &*it.contact)).collect();
    assert_eq!(shown, [("Rule 2", "Law 2", "law@example.eu"), ("Rule 3", "Law 3", "law@example.eu")]);
    check(&pack, &[("host FI -> FR: gpus=4", "permit by r1")]);
}

#[test]
fn a_state_without_rules_or_without_a_pack_denies() {
    check(&compiled("FR", &[]), &[("host FI -> FR:", "no permit"), ("view FI -> FR:", "no permit")]);
    let Decision::Denial(denial) = no_pack(state("IT"), Action::Host) else {
        panic!("permitted");
    };
    assert_eq!(denial.reason, DenialReason::PolicyMissing);
}

#[test]
fn a_decision_is_written_down_as_an_answer() {
    let pack = compiled("FR", &[ALL]);
    for line in ["host FI -> FR:", "host FI -> FR: defence", "host FI -> DE:"] {
        let decision = decide(&pack, &request(line));
        let json = serde_json::to_string(&decision).unwrap();
        let read: Answer = serde_json::from_str(&json).unwrap();
        assert_eq!(read, Answer::from(&decision), "{json}");
        assert_eq!(read.permitted, decision.is_permit());
    }
    let json = serde_json::to_value(decide(&pack, &request("host FI -> FR: defence"))).unwrap();
    assert_eq!(json["reason"], serde_json::json!({"floor": "F1"}));
}
