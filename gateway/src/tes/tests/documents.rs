//! Good documents: what is kept, what is written anew, what is asked for.

use policy::{DataClass, Purpose};
use serde_json::{Value, json};

use super::{parse, requirements, small, with};

#[test]
fn documents_like_the_specification_s_own_are_kept_as_they_are() {
    let documents = [
        small(),
        json!({
            "name": "md5", "description": "the specification's examples in one",
            "inputs": [
                {"url": "s3://my-object-store/file1", "path": "/data/file1"},
                {"url": "/path/to/my/file", "path": "/data/file2", "type": "FILE", "streamable": true},
                {"content": "{\"a\": \"\\u0000\"}\n", "path": "/data/config.json", "name": "config"},
                {"url": "gs://my-bucket/folder", "path": "/data/folder", "type": "DIRECTORY"},
            ],
            "outputs": [
                {"path": "/data/outfile", "url": "s3://my-object-store/outfile-1", "type": "FILE"},
                {"path": "/work/*.txt", "path_prefix": "/work", "url": "file:///path/to/my/folder"},
            ],
            "resources": {
                "cpu_cores": 4, "preemptible": false, "ram_gb": 8.0, "disk_gb": 40.5, "zones": ["FR", "DE/jupiter"],
                "backend_parameters": {"GPU_Count": "8"}, "backend_parameters_strict": false,
            },
            "executors": [
                {
                    "image": "quay.io/aptible/ubuntu", "command": ["/bin/md5", ""], "workdir": "/data",
                    "stdin": "/data/file1", "stdout": "/tmp/stdout.log", "stderr": "/tmp/stderr.log",
                    "env": {"BLASTDB": "/data/GRC38", "HMMERDB": "/data/hmmer"}, "ignore_error": true,
                },
                {"image": "myregistryhost:5000/fedora/httpd:version1.0", "command": ["sh", "-c", "true"]},
            ],
            "volumes": ["/vol/A"],
            "tags": {"WORKFLOW_ID": "cwl-01234", "PROJECT_GROUP": "alice-lab"},
        }),
    ];
    for document in documents {
        let submission = parse(&document);
        let payload: Value = serde_json::from_slice(&submission.payload()).expect("JSON");
        assert_eq!(payload, document);
        assert_eq!(submission.warnings(), &[] as &[String]);
    }
}

#[test]
fn what_a_client_may_write_differently_is_written_in_one_way() {
    let rows = [
        (with(|it| it["resources"] = json!({"cpu_cores": 1.5})), "/resources/cpu_cores", json!(2)),
        (with(|it| it["resources"] = json!({"cpu_cores": 3})), "/resources/cpu_cores", json!(3)),
        (with(|it| it["volumes"] = json!(["/vol/A/"])), "/volumes/0", json!("/vol/A")),
        (with(|it| it["executors"][0]["workdir"] = json!("/data/./x/")), "/executors/0/workdir", json!("/data/x")),
        (with(|it| it["name"] = Value::Null), "/name", Value::Null),
        (with(|it| it["id"] = json!(7)), "/id", Value::Null),
        (with(|it| it["state"] = json!("COMPLETE")), "/state", Value::Null),
        (with(|it| it["logs"] = json!([{"logs": []}])), "/logs", Value::Null),
        (with(|it| it["creation_time"] = json!("yesterday")), "/creation_time", Value::Null),
        (
            with(|it| it["inputs"] = json!([{"path": "/a", "content": "x", "url": "s3://b/k"}])),
            "/inputs/0/url",
            Value::Null,
        ),
        (
            with(|it| it["inputs"] = json!([{"path": "/a", "content": "", "url": "s3://b/k"}])),
            "/inputs/0/content",
            Value::Null,
        ),
        (with(|it| it["inputs"] = json!([{"path": "/a", "content": ""}])), "/inputs/0/content", json!("")),
        (
            with(|it| it["outputs"] = json!([{"path": "/a", "url": "s3://b/k", "path_prefix": "/"}])),
            "/outputs/0/path_prefix",
            Value::Null,
        ),
    ];
    for (task, pointer, expected) in rows {
        let payload: Value = serde_json::from_slice(&parse(&task).payload()).expect("JSON");
        assert_eq!(payload.pointer(pointer).unwrap_or(&Value::Null), &expected, "{task}");
    }
}

#[test]
fn requirements_come_from_resources_and_tags() {
    let plain = requirements(&small());
    assert_eq!((plain.shape.gpus, plain.shape.walltime_s, plain.priority), (0, 3_600, 5));
    assert_eq!(plain.labels.data_class, DataClass::Public);
    assert_eq!(plain.labels.purpose, Purpose::Research);
    assert!(!plain.restartable && !plain.exclusive && plain.zones.is_empty());

    let asked = requirements(&with(|it| {
        it["resources"] = json!({
            "cpu_cores": 3.2, "ram_gb": 8, "disk_gb": 0.5, "preemptible": true, "zones": ["FR", "DE/jupiter"],
            "backend_parameters": {"gpu_count": "8", "GPU_MODEL": "H100-80", "gpu_memory_gib": "80", "nodes": "2",
                                   "walltime_s": "60"},
        });
        it["tags"] = json!({"data_class": "Health", "purpose": "industry", "dual_use": "true", "project": "c-1",
                            "priority": "9", "exclusive": "true", "anything": "else"});
    }));
    let shape = &asked.shape;
    assert_eq!((shape.gpus, shape.nodes, shape.memory_gib_min, shape.walltime_s), (8, 2, 80, 60));
    assert_eq!((shape.cpu_cores, shape.ram_gib, shape.disk_gib), (4, 8, 1));
    assert_eq!(shape.model.as_deref(), Some("h100-80"));
    assert_eq!(asked.labels.data_class, DataClass::Health);
    assert_eq!(asked.labels.purpose, Purpose::Industry);
    assert_eq!(asked.labels.project.as_deref(), Some("c-1"));
    assert!(asked.labels.dual_use && asked.restartable && asked.exclusive);
    assert_eq!(asked.priority, 9);
    assert_eq!(asked.zones.iter().map(ToString::to_string).collect::<Vec<_>>(), ["FR", "DE/jupiter"]);

    let by_tags = requirements(&with(|it| {
        it["tags"] = json!({"entente.gpu_count": "8", "Entente.gpu-model": "H100", "restartable": "true"});
    }));
    assert_eq!((by_tags.shape.gpus, by_tags.shape.model.as_deref()), (8, Some("h100")));
    assert!(by_tags.restartable);
}

#[test]
fn an_unsupported_parameter_is_dropped_with_a_warning_unless_strict() {
    let task = with(|it| {
        it["resources"] = json!({"backend_parameters": {"VmSize": "huge", "gpu_count": "1"}});
    });
    let submission = parse(&task);
    let payload: Value = serde_json::from_slice(&submission.payload()).expect("JSON");
    assert_eq!(payload["resources"]["backend_parameters"], json!({"gpu_count": "1"}));
    let requirements = submission.requirements().expect("requirements");
    assert_eq!(requirements.warnings.len(), 1);
    assert!(requirements.warnings[0].contains("VmSize"), "{:?}", requirements.warnings);
}
