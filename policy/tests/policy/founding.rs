//! What the shipped packs of France, Germany and Finland say.

use policy::{Effect, Pack, decide, founding};

use crate::asking::{answer, check, request, state};

fn shipped(code: &str) -> Pack {
    let source = founding::pack(state(code)).expect("a founding state");
    Pack::compile(&source).expect("a shipped pack compiles")
}

#[test]
fn ordinary_research_runs_anywhere_within_the_three() {
    for home in founding::STATES {
        for host in founding::STATES {
            for words in ["public low", "public", "internal low", "internal high", "public education"] {
                for (action, asked, rule) in [("export", home, "out"), ("host", host, "in")] {
                    let line = format!("{action} {home} -> {host}: {words} carbon=360");
                    let expected = format!("permit by {}-research-{rule}", asked.to_lowercase());
                    assert_eq!(answer(&decide(&shipped(asked), &request(&line))), expected, "{line}");
                }
            }
        }
    }
}

#[test]
fn dual_use_for_industry_is_denied_by_every_state_with_its_own_rule() {
    for home in founding::STATES {
        for host in founding::STATES {
            for (action, asked) in [("export", home), ("host", host)] {
                let line = format!("{action} {home} -> {host}: industry dual-use");
                let expected = format!("forbidden by {}-dual-use", asked.to_lowercase());
                assert_eq!(answer(&decide(&shipped(asked), &request(&line))), expected, "{line}");
                let line = format!("{line} cleared");
                let expected = format!("permit by {}-industry", asked.to_lowercase());
                assert_eq!(answer(&decide(&shipped(asked), &request(&line))), expected, "{line}");
            }
        }
    }
}

#[test]
fn france() {
    check(
        &shipped("FR"),
        &[
            ("export FR -> FR+HDS: health", "permit by fr-health"),
            ("host FR -> FR+HDS: health", "permit by fr-health"),
            ("host FI -> FR+HDS: health", "permit by fr-health"),
            ("export FR -> FR: health", "no permit"),
            ("host FR -> FR: health", "forbidden by fr-health-hds"),
            ("host FR -> FR+HDS: health low", "no permit"),
            ("export FR -> DE+HDS+C5: health", "forbidden by fr-health-stays"),
            ("export FR -> FI+SPE: health", "forbidden by fr-health-stays"),
            ("export FR -> CH: health", "forbidden by fr-health-stays"),
            ("export FR -> NO: personal", "permit by fr-personal"),
            ("export FR -> CH: personal", "no permit"),
            ("export FR -> FI: personal industry", "no permit"),
            ("export FR -> CH: internal", "permit by fr-research-out"),
            ("export FR -> US: public", "no permit"),
            ("host US -> FR: public", "no permit"),
            ("host FI -> FR: share=59", "permit by fr-research-in"),
            ("host FI -> FR: share=60", "forbidden by fr-share"),
            ("host FR -> FR: share=100", "permit by fr-research-in"),
            ("host FI -> FR: industry dual-use share=60", "forbidden by fr-dual-use fr-share"),
            ("host IT -> FR: industry dual-use cleared", "forbidden by fr-dual-use"),
            ("host IT -> FR: industry dual-use cleared-by-FR", "forbidden by fr-dual-use"),
            ("host FI -> FR: industry share=19", "permit by fr-industry"),
            ("host FI -> FR: industry share=20", "no permit"),
            ("host CH -> FR: industry", "no permit"),
            ("host FI -> FR: dual-use", "permit by fr-research-in"),
            ("view US -> FR:", "permit by fr-view"),
        ],
    );
}

#[test]
fn germany() {
    check(
        &shipped("DE"),
        &[
            ("export DE -> DE+C5: health", "permit by de-health"),
            ("export DE -> FR+C5: health", "permit by de-health"),
            ("export DE -> FR+HDS: health", "forbidden by de-health-c5"),
            ("export DE -> CH+C5: health", "no permit"),
            ("host FI -> DE: health", "forbidden by de-health-c5"),
            ("host FI -> DE+C5: health low", "no permit"),
            ("export DE -> FI: personal", "permit by de-personal"),
            ("export DE -> GB: personal", "no permit"),
            ("host CH -> DE: personal", "no permit"),
            ("host FR -> DE: industry", "permit by de-industry"),
            ("host FR -> DE: industry personal", "no permit"),
            ("export DE -> PL: carbon=650 gpus=100 walltime_s=3600000", "floor F4"),
            ("export DE -> PL: carbon=650 gpus=100 walltime_s=360000", "permit by de-research-out"),
            ("export DE -> PL: carbon=650 gpus=1000 walltime_s=360036", "forbidden by de-carbon"),
            ("export DE -> FR: carbon=45 gpus=1000 walltime_s=2678400", "permit by de-research-out"),
            ("view FI -> DE:", "permit by de-view"),
        ],
    );
}

#[test]
fn finland() {
    check(
        &shipped("FI"),
        &[
            ("export FI -> FI+SPE: health", "permit by fi-health"),
            ("export FI -> FI: health", "forbidden by fi-health-spe"),
            ("export FI -> DE+C5: health", "forbidden by fi-health-spe"),
            ("host FR -> FI: health", "forbidden by fi-health-spe"),
            ("export FI -> IS: personal", "permit by fi-personal"),
            ("export FI -> CH: personal", "no permit"),
            ("host DE -> FI: personal", "permit by fi-personal"),
            ("export FI -> DE: carbon=401 gpus=100 walltime_s=360000", "permit by fi-research-out"),
            ("export FI -> DE: carbon=401 gpus=100 walltime_s=360036", "forbidden by fi-carbon"),
            ("export FI -> DE: carbon=400 gpus=100 walltime_s=2678400", "permit by fi-research-out"),
            ("view FR -> FI:", "permit by fi-view"),
        ],
    );
}

#[test]
fn every_shipped_rule_can_be_read_and_keeps_its_place() {
    for code in founding::STATES {
        let pack = shipped(code);
        assert!((6..=10).contains(&pack.rules().len()), "{code}");
        for rule in pack.rules() {
            assert!(rule.id.starts_with(&format!("{}-", code.to_lowercase())), "{rule:?}");
            assert!(rule.title.len() > 20 && rule.law.len() > 5, "{rule:?}");
            assert_eq!(rule.since.len(), 10, "{rule:?}");
        }
        let text = founding::pack(state(code)).unwrap().cedar;
        let places: Vec<_> = pack.rules().iter().map(|rule| text.find(&format!("@id(\"{}\")", rule.id))).collect();
        assert!(places.is_sorted(), "{code}: {places:?}");
        assert!(pack.rules().iter().any(|rule| rule.effect == Effect::Forbid), "{code}");
    }
    let dual_use = shipped("DE").rules().iter().find(|rule| rule.id == "de-dual-use").cloned();
    assert_eq!(dual_use.unwrap().contact, "ausfuhrkontrolle@entente.example.de");
}

#[test]
fn other_states_ship_no_pack() {
    assert_eq!(founding::pack(state("IT")), None);
}
