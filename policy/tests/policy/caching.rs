//! The cache answers as the pack would.

use std::sync::Arc;

use policy::DecisionCache;

use crate::asking::{answer, compiled, request};

#[test]
fn an_answer_is_remembered_for_its_pack_only() {
    let cache = DecisionCache::default();
    let strict = compiled("FR", &["permit (principal, action, resource) when { context.gpus < 8 };"]);
    let loose = compiled("FR", &["permit (principal, action, resource);"]);
    let request = request("host FI -> FR:");
    let first = cache.decide_cached(&strict, [1; 32], &request);
    let again = cache.decide_cached(&strict, [1; 32], &request);
    assert!(Arc::ptr_eq(&first, &again));
    assert_eq!(answer(&first), "no permit");
    assert_eq!(answer(&cache.decide_cached(&loose, [2; 32], &request)), "permit by r1");
    assert!(Arc::ptr_eq(&first, &cache.decide_cached(&strict, [1; 32], &request)));
}

#[test]
fn requests_that_differ_in_one_fact_are_different() {
    let cache = DecisionCache::new();
    let pack = compiled(
        "FR",
        &[
            "permit (principal, action, resource);",
            "forbid (principal, action, resource) when { context.home_share_percent > 50 };",
        ],
    );
    for (line, expected) in [
        ("host FI -> FR: share=50", "permit by r1"),
        ("host FI -> FR: share=51", "forbidden by r2"),
        ("host FI -> FR: share=50", "permit by r1"),
        ("host FI -> FR: share=50 defence", "floor F1"),
        ("export FI -> FR: share=50", "floor F0"),
    ] {
        assert_eq!(answer(&cache.decide_cached(&pack, [0; 32], &request(line))), expected, "{line}");
    }
}
