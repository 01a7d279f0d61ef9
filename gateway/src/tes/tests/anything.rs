//! Documents and queries by chance: nothing panics, and what is accepted survives its own payload.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{small, with};
use crate::tes::{ListQuery, Submission};

/// JSON that looks a little like a task.
fn any_task() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        "(/[a-z.*]{0,3}){1,3}".prop_map(Value::from),
        "(s3|file)://[a-z/.%]{0,9}".prop_map(Value::from),
    ];
    let name = "(name|executors|image|command|env|inputs|outputs|path|url|content|path_prefix|resources|zones|tags\
                |backend_parameters|gpu_count|cpu_cores|ram_gb|volumes|type|[a-z]{1,3})";
    leaf.prop_recursive(6, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map(name, inner, 0..6).prop_map(|it| Value::Object(it.into_iter().collect())),
        ]
    })
}

/// Whatever is accepted has to survive its own payload.
fn check_anything(body: &[u8]) {
    let Ok(submission) = Submission::parse(body) else {
        return;
    };
    let again = Submission::from_payload(&submission.payload()).expect("a payload parses");
    assert_eq!(again.payload(), submission.payload());
    assert_eq!(again.task(), submission.task());
    if let (Ok(one), Ok(other)) = (submission.requirements(), again.requirements()) {
        assert_eq!(one.shape, other.shape);
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
        check_anything(&body);
    }

    #[test]
    fn arbitrary_documents_never_panic(task in any_task()) {
        check_anything(task.to_string().as_bytes());
    }

    #[test]
    fn a_task_with_one_arbitrary_member_never_panics(
        part in any_task(),
        place in prop::sample::select(vec!["/inputs", "/outputs", "/resources", "/tags", "/executors/0/env",
                                           "/executors/0/command", "/executors/0/workdir", "/name", "/volumes"]),
    ) {
        let mut task = small();
        for member in ["inputs", "outputs", "resources", "tags", "name", "volumes"] {
            task[member] = Value::Null;
        }
        task["executors"][0]["env"] = Value::Null;
        task["executors"][0]["workdir"] = Value::Null;
        *task.pointer_mut(place).expect("a place") = part;
        check_anything(task.to_string().as_bytes());
    }

    #[test]
    fn amounts_survive_their_payload(ram_gb in 0.0..1e6f64, cpu_cores in 0.0..1e3f64) {
        let task = with(|it| it["resources"] = json!({"ram_gb": ram_gb, "cpu_cores": cpu_cores}));
        check_anything(task.to_string().as_bytes());
    }

    #[test]
    fn arbitrary_queries_never_panic(query in "[a-z_=&%0-9+]{0,60}|\\PC{0,30}") {
        let _either_is_fine = ListQuery::parse(Some(&query));
    }
}
