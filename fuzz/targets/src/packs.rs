//! What is allowed: the texts that states publish.

use std::collections::BTreeSet;

use policy::{Pack, PackSource};

use crate::cast;

/// As documented for those who write packs.
const RULES_MAX: usize = 200;

/// A pack's text. What compiles has rules with names, and every replica reads the same ones.
pub fn pack(bytes: &[u8]) {
    let Ok(cedar) = std::str::from_utf8(bytes) else {
        return;
    };
    let source = PackSource {
        state: cast::france(),
        title: "France".into(),
        contact: "packs@entente.example".into(),
        cedar: cedar.into(),
    };
    let Ok(pack) = Pack::compile(&source) else {
        return;
    };
    let again = Pack::compile(&source).expect("what compiled once compiles again");
    assert_eq!(pack.rules(), again.rules());
    let ids: BTreeSet<_> = pack.rules().iter().map(|rule| &rule.id).collect();
    assert_eq!(ids.len(), pack.rules().len(), "a rule is known by its id");
    assert!(ids.len() <= RULES_MAX);
    for rule in pack.rules() {
        assert!(!rule.id.is_empty() && !rule.title.is_empty() && cedar.contains(&rule.id));
    }
}
