//! Bad documents: each mistake gets its code and points at the member to change.

use serde_json::{Value, json};

use super::{small, with};
use crate::error::{Code, Problem};
use crate::tes::{BODY_BYTES_MAX, Submission};

/// Refused while it is parsed or while its requirements are read.
fn check(task: &Value, code: Code, pointer: &str) {
    let parsed = Submission::parse(task.to_string().as_bytes());
    let bad = parsed.and_then(|it| it.requirements().map(|_| it)).expect_err(&format!("{task:.500} is wrong"));
    let found = (bad.mistake.code(), bad.pointer.as_str());
    assert_eq!(found, (code, pointer), "{bad}: {task:.500}");
    let document = Problem::from(bad).document();
    assert_eq!(document["pointer"], pointer);
    let detail = document["detail"].as_str().expect("a detail");
    assert!((10..1_000).contains(&detail.len()), "{detail}");
}

/// A task with one of everything, and this value at this place.
fn at(pointer: &str, value: &Value) -> Value {
    let mut task = with(|it| {
        it["inputs"] = json!([{"path": "/in", "url": "s3://b/in"}]);
        it["outputs"] = json!([{"path": "/out", "url": "s3://b/out"}]);
        it["resources"] = json!({"backend_parameters": {}});
        it["tags"] = json!({});
        it["volumes"] = json!([]);
    });
    let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
    let parent = task.pointer_mut(parent).expect("a place");
    match parent {
        Value::Array(list) => list.push(value.clone()),
        object => object[name.replace("~1", "/").replace("~0", "~")] = value.clone(),
    }
    task
}

fn long(bytes: usize) -> Value {
    "x".repeat(bytes).into()
}

#[test]
fn bad_bodies_are_refused() {
    let large = vec![b' '; BODY_BYTES_MAX + 1];
    for (body, code, pointer) in [
        (&b""[..], Code::NotJson, ""),
        (b"[]", Code::WrongType, ""),
        (b"null", Code::WrongType, ""),
        (b"\"task\"", Code::WrongType, ""),
        (b"{}", Code::MissingMember, "/executors"),
        (br#"{"executors":[],"executors":[]}"#, Code::DuplicateMember, "/executors"),
        (br#"{"tags":{"a":"1","a":"2"}}"#, Code::DuplicateMember, "/tags/a"),
        (&large, Code::BodyTooLarge, ""),
    ] {
        let bad = Submission::parse(body).expect_err("a bad body");
        assert_eq!((bad.mistake.code(), bad.pointer.as_str()), (code, pointer));
    }
}

#[test]
fn bad_tasks() {
    let many_tags: Value = (0..65).map(|it| (it.to_string(), json!(""))).collect();
    for (pointer, value, code) in [
        ("/colour", json!("red"), Code::UnknownMember),
        ("/a~1b~0", json!(1), Code::UnknownMember),
        ("/name", json!(7), Code::WrongType),
        ("/name", long(257), Code::TooLong),
        ("/name", json!("a\nb"), Code::BadValue),
        ("/description", long(20_000), Code::TooLong),
        ("/executors", json!(null), Code::MissingMember),
        ("/executors", json!([]), Code::BadValue),
        ("/executors", json!({}), Code::WrongType),
        ("/executors", json!(vec![small()["executors"][0].clone(); 65]), Code::TooMany),
        ("/executors/1", json!(7), Code::WrongType),
        ("/volumes/0", json!("/"), Code::BadValue),
        ("/volumes/0", json!("a"), Code::BadValue),
        ("/tags", json!(["a"]), Code::WrongType),
        ("/tags", many_tags, Code::TooMany),
        ("/tags/a", json!(1), Code::WrongType),
        ("/tags/a", json!(null), Code::WrongType),
        ("/tags/a", long(5_000), Code::TooLong),
    ] {
        check(&at(pointer, &value), code, pointer);
    }
}

#[test]
fn bad_executors() {
    let large: Vec<Value> = vec![long(100_000); 11];
    for (name, value, code) in [
        ("colour", json!("red"), Code::UnknownMember),
        ("image", json!(null), Code::MissingMember),
        ("image", json!(""), Code::BadValue),
        ("image", json!("--privileged"), Code::BadValue),
        ("image", json!("a b"), Code::BadValue),
        ("image", json!("a;reboot"), Code::BadValue),
        ("image", json!("/images/../../etc/shadow"), Code::BadValue),
        ("image", long(513), Code::TooLong),
        ("command", json!(null), Code::MissingMember),
        ("command", json!([]), Code::BadValue),
        ("command", json!([""]), Code::BadValue),
        ("command", json!("sh -c true"), Code::WrongType),
        ("command", json!(vec!["a"; 4_097]), Code::TooMany),
        ("command", large.into(), Code::TooLong),
        ("command/2", json!(1), Code::WrongType),
        ("command/2", json!("b\0c"), Code::BadValue),
        ("command/2", long(131_072), Code::TooLong),
        ("env", json!([]), Code::WrongType),
        ("workdir", json!("data"), Code::BadValue),
        ("stdin", json!("/a/../b"), Code::BadValue),
        ("stdout", json!("/"), Code::BadValue),
        ("ignore_error", json!("true"), Code::WrongType),
    ] {
        let pointer = format!("/executors/0/{name}");
        check(&at(&pointer, &value), code, &pointer);
    }
    for (name, value, code) in [
        ("A=B", json!("c"), Code::BadValue),
        ("", json!("c"), Code::BadValue),
        ("1A", json!("c"), Code::BadValue),
        ("Ä", json!("c"), Code::BadValue),
        ("A", json!("c\0d"), Code::BadValue),
        ("A", json!(1), Code::WrongType),
        ("A", long(131_071), Code::TooLong),
    ] {
        let pointer = format!("/executors/0/env/{name}");
        check(&at("/executors/0/env", &json!({name: value})), code, &pointer);
    }
}

#[test]
fn bad_files() {
    for (value, code, name) in [
        (json!({"path": "/a"}), Code::MissingMember, "url"),
        (json!({"path": "/a", "url": ""}), Code::MissingMember, "url"),
        (json!({"url": "s3://b/k"}), Code::MissingMember, "path"),
        (json!({"url": "s3://b/k", "path": "a"}), Code::BadValue, "path"),
        (json!({"content": "x", "path": "/a/../../etc/passwd"}), Code::BadValue, "path"),
        (json!({"content": "x", "path": "/a\0"}), Code::BadValue, "path"),
        (json!({"content": "x", "path": "//etc/passwd"}), Code::BadValue, "path"),
        (json!({"content": "x", "path": "/./sys/x"}), Code::BadValue, "path"),
        (json!({"content": "x", "path": "/in"}), Code::Contradiction, "path"),
        (json!({"content": "x", "path": "//./in/"}), Code::Contradiction, "path"),
        (json!({"content": "x", "path": long(4_096)}), Code::TooLong, "path"),
        (json!({"url": "bucket/k", "path": "/a"}), Code::BadValue, "url"),
        (json!({"url": "file:///srv/../etc/shadow", "path": "/a"}), Code::BadValue, "url"),
        (json!({"content": "x", "path": "/a", "type": "DIRECTORY"}), Code::Contradiction, "type"),
        (json!({"content": "x", "path": "/a", "type": "SOCKET"}), Code::BadValue, "type"),
        (json!({"content": 7, "path": "/a"}), Code::WrongType, "content"),
        (json!({"content": "x", "path": "/a", "mode": "600"}), Code::UnknownMember, "mode"),
    ] {
        check(&at("/inputs/1", &value), code, &format!("/inputs/1/{name}"));
    }
    for (value, code, name) in [
        (json!({"path": "/a"}), Code::MissingMember, "url"),
        (json!({"path": "/a", "url": ""}), Code::BadValue, "url"),
        (json!({"path": "/a", "url": "k"}), Code::BadValue, "url"),
        (json!({"path": "/a/*", "url": "s3://b/"}), Code::MissingMember, "path_prefix"),
        (json!({"path": "/a/[0]", "path_prefix": "/b", "url": "s3://b/"}), Code::BadValue, "path_prefix"),
        (json!({"path": "/a/b?/c", "path_prefix": "/a/b?", "url": "s3://b/"}), Code::BadValue, "path_prefix"),
        (json!({"path": "/a/*", "path_prefix": "/", "url": "s3://b/"}), Code::BadValue, "path_prefix"),
        (json!({"path": "/a?/b", "path_prefix": "/a?", "url": "s3://b/"}), Code::BadValue, "path"),
        (json!({"path": "/lib64/x", "url": "s3://b/"}), Code::BadValue, "path"),
    ] {
        check(&at("/outputs/1", &value), code, &format!("/outputs/1/{name}"));
    }
}

#[test]
fn bad_resources() {
    for (name, value, code) in [
        ("gpus", json!(8), Code::UnknownMember),
        ("cpuCores", json!(8), Code::UnknownMember),
        ("cpu_cores", json!(-1), Code::OutOfRange),
        ("cpu_cores", json!("4"), Code::WrongType),
        ("cpu_cores", json!(1e10), Code::OutOfRange),
        ("ram_gb", json!(-0.1), Code::OutOfRange),
        ("ram_gb", json!(1e300), Code::OutOfRange),
        ("disk_gb", json!("8"), Code::WrongType),
        ("preemptible", json!(1), Code::WrongType),
        ("zones", json!("FR"), Code::WrongType),
        ("backend_parameters", json!([]), Code::WrongType),
        ("backend_parameters/gpu_count", json!(8), Code::WrongType),
    ] {
        let pointer = format!("/resources/{name}");
        check(&at(&pointer, &value), code, &pointer);
    }
    for (zones, wrong) in [(json!(["XX"]), 0), (json!(["FR", "fr"]), 1), (json!(["FR/"]), 0)] {
        let pointer = format!("/resources/zones/{wrong}");
        check(&at("/resources/zones", &zones), Code::BadValue, &pointer);
    }
    let strict = json!({"backend_parameters": {"VmSize": "huge"}, "backend_parameters_strict": true});
    let pointer = "/resources/backend_parameters/VmSize";
    check(&at("/resources", &strict), Code::UnsupportedBackendParameter, pointer);
}

#[test]
fn bad_numbers_of_gpus() {
    let numbers = ["1152921504606846976", "-1", "+8", " 8", "8 ", "1e3", "0x8", "eight", "", "٨", "100001", "8.0"];
    for number in numbers {
        for pointer in ["/resources/backend_parameters/gpu_count", "/tags/entente.gpu_count"] {
            check(&at(pointer, &json!(number)), Code::OutOfRange, pointer);
        }
    }
}

#[test]
fn bad_parameters_and_labels() {
    for (key, value, code) in [
        ("walltime_s", "0", Code::OutOfRange),
        ("walltime_s", "99999999999", Code::OutOfRange),
        ("gpu_memory_gib", "5000", Code::OutOfRange),
        ("gpu_memory_gib", "80", Code::Contradiction),
        ("nodes", "10001", Code::OutOfRange),
        ("nodes", "2", Code::Contradiction),
        ("gpu_model", "h100", Code::Contradiction),
        ("gpu_model", "h100;reboot", Code::BadValue),
        ("gpu_model", "", Code::BadValue),
        ("gpu_model", "---", Code::BadValue),
        ("gpu_model", "a-name-of-more-than-32-characters", Code::BadValue),
    ] {
        let pointer = format!("/resources/backend_parameters/{key}");
        check(&at(&pointer, &json!(value)), code, &pointer);
    }
    let long_project = "p".repeat(41);
    for (key, value, code) in [
        ("entente.gpu_cont", "8", Code::BadValue),
        ("data_class", "secret", Code::BadValue),
        ("Data-Class", "secret", Code::BadValue),
        ("purpose", "", Code::BadValue),
        ("dual_use", "maybe", Code::BadValue),
        ("project", "My Project", Code::BadValue),
        ("project", &long_project, Code::BadValue),
        ("priority", "10", Code::OutOfRange),
        ("priority", "high", Code::OutOfRange),
        ("exclusive", "1", Code::BadValue),
    ] {
        let pointer = format!("/tags/{key}");
        check(&at(&pointer, &json!(value)), code, &pointer);
    }
}

#[test]
fn a_task_has_paths_in_few_folders_of_the_root() {
    let inputs = |tops: usize| {
        let inputs: Vec<_> = (0..tops).map(|top| json!({"path": format!("/d{top}/x"), "content": "x"})).collect();
        with(|it| it["inputs"] = inputs.into())
    };
    let most = inputs(64).to_string();
    assert!(Submission::parse(most.as_bytes()).is_ok());
    check(&inputs(65), Code::Contradiction, "");
}

#[test]
fn a_label_is_known_however_it_is_parted_and_a_slip_in_it_is_refused() {
    let labels = |key: &str| {
        let task = with(|it| it["tags"] = json!({key: "health"}));
        Submission::parse(task.to_string().as_bytes()).and_then(|it| it.requirements()).map(|it| it.labels)
    };
    for key in ["data_class", "Data-Class", "dataClass", "data.class", " data_class", "DATA CLASS"] {
        assert_eq!(labels(key).map(|it| it.data_class), Ok(policy::DataClass::Health), "{key}");
    }
    for key in [
        "data_clаss",
        "dаtа_clаss",
        "data_classification",
        "entente_data_class",
        "data_clas",
        "dat_aclas",
        "data_classs",
        "dual_us",
        "dualusе",
        "purposes",
    ] {
        let pointer = format!("/tags/{key}");
        check(&with(|it| it["tags"] = json!({key: "health"})), Code::BadValue, &pointer);
    }
    for key in ["dataset", "database", "class", "usage", "propose-to", "team", "données"] {
        assert!(labels(key).is_ok(), "{key}");
    }
}

#[test]
fn what_is_asked_twice_must_agree() {
    for (parameters, tags, pointer) in [
        (json!({"gpu_count": "8", "GPU_COUNT": "8"}), json!({}), "/resources/backend_parameters/gpu_count"),
        (json!({"gpu_count": "8", "nodes": "3"}), json!({}), "/resources/backend_parameters/nodes"),
        (json!({"gpu_count": "8"}), json!({"entente.gpu_count": "4"}), "/tags/entente.gpu_count"),
        (json!({}), json!({"data_class": "health", "data-class": "public"}), "/tags/data_class"),
    ] {
        let task = with(|it| {
            it["resources"] = json!({"backend_parameters": parameters});
            it["tags"] = tags;
        });
        check(&task, Code::Contradiction, pointer);
    }
}
