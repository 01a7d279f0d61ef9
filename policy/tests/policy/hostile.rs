//! What a pack may not do, and packs that mean harm.

use policy::{BadPack, BadText, Pack};

use crate::asking::{answer, compiled, pack, request, source, state};

const ALL: &str = "permit (principal, action, resource)";

/// Compiles a pack with one rule and compares the error's beginning.
fn check_rule(policy: &str, expected: &str) {
    check_text(&pack("FR", &[policy]).cedar, expected);
}

fn check_text(cedar: &str, expected: &str) {
    let shown: String = cedar.chars().take(200).collect();
    match Pack::compile(&source("FR", cedar)) {
        Ok(_) => assert_eq!(expected, "compiles", "{shown}"),
        Err(bad) => assert!(bad.to_string().starts_with(expected), "{bad}\n{shown}"),
    }
}

#[test]
fn nested_texts_of_300_bytes_and_of_60_kib_are_refused_and_abort_nothing() {
    let deep = |result| assert!(matches!(result, Err(BadPack::Text(BadText::TooDeep { .. }))), "{result:?}");
    for bytes in [300, 60 * 1_024] {
        for (opener, closer) in [("(", ")"), ("[", "]"), ("{a: ", "}"), ("!(", ")"), ("-(", ")")] {
            let times = bytes / (opener.len() + closer.len());
            let nested = format!("{}a{}", opener.repeat(times), closer.repeat(times));
            deep(Pack::compile(&pack("FR", &[&format!("{ALL} when {{ {nested} }};")])));
            deep(Pack::compile(&source("FR", &opener.repeat(bytes / opener.len()))));
        }
        for link in ["!", "-", "a||", "a&&", "a.", "a+", "a*", "a==", "if a then b else "] {
            // Three hundred bytes of the longest links are a chain of fewer than 64; those are twice as long.
            let chain = link.repeat(bytes.max(65 * link.len()) / link.len());
            deep(Pack::compile(&pack("FR", &[&format!("{ALL} when {{ {chain}a }};")])));
        }
    }
}

/// Tokio's worker threads have 2 MiB; a quarter of it is left to the callers.
#[test]
fn the_deepest_rule_that_compiles_is_asked_on_a_small_stack() {
    for (prefix, link, last, closer) in [
        ("", "context.dual_use || ", "true", ""),
        ("", "context.dual_use && ", "true", ""),
        ("", "context.dual_use == (", "true", ")"),
        ("", "!(", "context.dual_use", ")"),
        ("", "if context.dual_use then false else ", "true", ""),
        ("0 < ", "context.gpus + ", "1", ""),
        ("0 < ", "-(", "context.gpus", ")"),
    ] {
        let deep = |links: usize| {
            let condition = format!("{prefix}{}{last}{}", link.repeat(links), closer.repeat(links));
            let rule = format!("{ALL} when {{ {condition} }};");
            Pack::compile(&pack("FR", &[&rule])).ok()
        };
        let links = (1..100).rev().find(|links| deep(*links).is_some()).expect("one link is shallow");
        assert!(links >= 5, "{link}: only {links}");
        let deepest = deep(links).expect("it compiled before");
        let ask = move || answer(&policy::decide(&deepest, &request("host FI -> FR:")));
        let thread = std::thread::Builder::new().stack_size(1_536 << 10).spawn(ask);
        let answered = thread.expect("a thread").join().expect("no panic");
        assert!(!answered.starts_with("error"), "{link} x {links}: {answered}");
    }
}

#[test]
fn a_rule_says_what_it_is() {
    let named = "@id(\"a\") @title(\"b\") @law(\"c\")";
    check_text(&format!("{named} {ALL};"), "compiles");
    check_text("", "compiles");
    for (annotations, expected) in [
        ("", "rule 1: the annotation @id is missing"),
        ("@id(\"a\")", "a: the annotation @title is missing"),
        ("@id(\"a\") @title(\"b\")", "a: the annotation @law is missing"),
        ("@id(\"a\") @title(\"b\") @law(\"\")", "a: the law is not well-formed"),
        ("@id @title(\"b\") @law(\"c\")", "rule 1: the id is not well-formed"),
        ("@id(\"A b\") @title(\"b\") @law(\"c\")", "rule 1: the id is not well-formed"),
        ("@id(\"a\") @title(\"b\\nc\") @law(\"c\")", "a: the title is not well-formed"),
        ("@id(\"a\") @title(\"b\\u{202e}c\") @law(\"c\")", "a: the title is not well-formed"),
        ("@id(\"a\") @title(\"b\") @law(\"c\") @since(\"2025-13-01\")", "a: the since is not well-formed"),
        ("@id(\"a\") @title(\"b\") @law(\"c\") @since(\"tomorrow\")", "a: the since is not well-formed"),
        ("@id(\"a\") @title(\"b\") @law(\"c\") @since(\"2025-01-31\")", "compiles"),
        ("@id(\"a\") @title(\"b\") @law(\"c\") @author(\"me\")", "a: @author is not an annotation"),
        ("@id(\"a\") @id(\"b\") @title(\"b\") @law(\"c\")", "the pack cannot be read"),
    ] {
        check_text(&format!("{annotations} {ALL};"), expected);
    }
    check_text(&format!("{named} {ALL}; {named} {ALL};"), "two rules have the id a");
    let long = format!("@id(\"a\") @title(\"{}\") @law(\"c\") {ALL};", "x".repeat(201));
    check_text(&long, "a: the title is not well-formed");
}

#[test]
fn a_rule_fits_the_schema() {
    for (policy, expected) in [
        ("permit (principal == ?principal, action, resource);", "the pack has a template"),
        ("permit (principal, action, resource in ?resource);", "the pack has a template"),
        ("permit (principal, action == Action::\"delete\", resource);", "the pack does not fit"),
        ("permit (principal, action, resource) when { principal.name == \"x\" };", "the pack does not fit"),
        ("permit (principal, action, resource) when { context.gpus == \"8\" };", "the pack does not fit"),
        ("permit (principal, action, resource) when { context.data_class == \"health\" };", "the pack does not fit"),
        (
            "permit (principal, action, resource) when { context.data_class == DataClass::\"helth\" };",
            "the pack does not fit",
        ),
        (
            "permit (principal, action, resource) when { context.purpose == DataClass::\"health\" };",
            "the pack has a warning",
        ),
        ("permit (principal == User::\"x\", action, resource);", "the pack does not fit"),
        ("permit (principal, action, resource) when { false };", "the pack has a warning"),
        ("permit (principal, action, resource) when { context.gpus };", "the pack does not fit"),
        ("permit (principal, action, resource)", "the pack cannot be read"),
        ("allow (principal, action, resource);", "the pack cannot be read"),
        ("pérmit (principal, action, resource);", "line 2: the character U+00E9"),
        (
            "permit (principal, action, resource) when { resource.name == \"\u{202e}\" };",
            "line 2: the character U+202E",
        ),
        ("permit (principal, action, resource) when { resource.name == \"Jülich\" };", "compiles"),
        ("permit (principal, action, resource) when { resource == Factory::\"FR/jean-zay\" };", "compiles"),
    ] {
        check_rule(policy, expected);
    }
}

/// Rules of a second each, if strings could be as long as a pack.
#[test]
fn long_strings_are_refused_before_a_parser_sees_them() {
    let like = |bytes: usize| {
        let (text, pattern) = ("a".repeat(bytes), "*a".repeat(bytes / 2 - 1) + "*b");
        format!("{ALL} when {{ \"{text}\" like \"{pattern}\" || resource.name like \"{pattern}\" }};")
    };
    let refused = Pack::compile(&pack("FR", &[&like(20 * 1_024)]));
    assert_eq!(refused.unwrap_err(), BadPack::Text(BadText::LongString { line: 2 }));
    check_rule(&like(258), "line 2: the string has more than 256 bytes");
    check_rule(&like(256), "compiles");
}

#[test]
fn a_pack_has_at_most_200_rules() {
    let rules = |count: usize| vec!["permit (principal, action, resource);"; count];
    assert_eq!(compiled("FR", &rules(200)).rules().len(), 200);
    let many = Pack::compile(&pack("FR", &rules(201)));
    assert_eq!(many.unwrap_err(), BadPack::TooManyRules(201));
    let long = format!("// {}", "x".repeat(64 * 1_024));
    check_text(&long, "the text has");
}

#[test]
fn a_packs_own_title_and_contact_are_lines() {
    for (title, contact) in [("", "a"), ("a", ""), ("a\nb", "a"), ("a", "\u{202e}")] {
        let mut bad = source("FR", "");
        (bad.title, bad.contact) = (title.into(), contact.into());
        assert!(matches!(Pack::compile(&bad), Err(BadPack::BadLine { .. })), "{title:?} {contact:?}");
    }
}

#[test]
fn a_pack_speaks_only_for_its_state() {
    let pack = compiled("FR", &["permit (principal, action, resource);"]);
    for (line, expected) in [
        ("host FR -> DE:", "floor F0"),
        ("host FI -> FR:", "permit by r1"),
        ("export FI -> FR:", "floor F0"),
        ("export FR -> DE:", "permit by r1"),
        ("view FR -> DE:", "floor F0"),
        ("view DE -> FR:", "permit by r1"),
    ] {
        let decision = policy::decide(&pack, &request(line));
        assert_eq!(answer(&decision), expected, "{line}");
    }
    assert_eq!(pack.state(), state("FR"));
}
