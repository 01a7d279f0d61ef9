//! What comes in and goes out, and what does not.

use std::fs;
use std::os::unix::fs::symlink;

use federation::End;
use gateway::driver::{Driver, DriverError, Isolation, Source, StageIn, StageKind, StageOut, WorkOrder};

use super::bench::{Bench, isolations, order, sh};

fn input(path: &str, url: String, kind: StageKind) -> StageIn {
    StageIn { path: path.into(), source: Source::Url(url), kind }
}

fn content(path: &str, bytes: &[u8]) -> StageIn {
    StageIn { path: path.into(), source: Source::Content(bytes.into()), kind: StageKind::File }
}

fn output(path: &str, url: String, kind: StageKind) -> StageOut {
    StageOut { url, path: path.into(), path_prefix: None, kind }
}

#[tokio::test]
async fn a_file_goes_in_through_a_step_and_out() {
    for isolation in isolations() {
        let bench = Bench::new(isolation);
        fs::write(bench.files().join("in"), "from a file\n").expect("a file");
        let mut both = order(&["cat", "-", "b c"]);
        both.inputs = vec![input("/in/a", bench.url("in"), StageKind::File), content("/work/b c", b"from content\n")];
        both.executors[0].stdin = Some("/in/a".into());
        both.executors[0].stdout = Some("/out/deep/o".into());
        both.outputs = vec![output("/out/deep/o", bench.url("new/out"), StageKind::File)];
        let (end, record) = bench.run(both).await;
        assert_eq!(end, End::Complete, "{record:?}");
        let written = fs::read_to_string(bench.files().join("new/out")).expect("an output");
        assert_eq!(written, "from a file\nfrom content\n");
        assert_eq!(record.executors[0].stdout, written, "the log has it too");
        let [delivered] = &record.outputs[..] else { panic!("{record:?}") };
        assert_eq!((delivered.path.as_str(), delivered.size_bytes), ("/out/deep/o", 25));
    }
}

#[tokio::test]
async fn folders_and_wildcards_are_delivered() {
    for isolation in isolations() {
        let bench = Bench::new(isolation);
        let tree = bench.files().join("tree/deep");
        fs::create_dir_all(&tree).expect("a folder");
        fs::write(tree.join("a.txt"), "a").expect("a file");
        fs::write(tree.join("b.dat"), "b").expect("a file");
        symlink("../../..", tree.join("up")).expect("a link");
        let mut copy = order(&["cp", "-r", "../in/tree/.", "out"]);
        copy.inputs = vec![input("/in/tree", bench.url("tree"), StageKind::Directory)];
        copy.outputs = vec![
            output("/work/out", bench.url("all"), StageKind::Directory),
            StageOut {
                url: bench.url("some"),
                path: "/work/o*/deep/*.txt".into(),
                path_prefix: Some("/work/out".into()),
                kind: StageKind::File,
            },
        ];
        let (end, record) = bench.run(copy).await;
        assert_eq!(end, End::Complete, "{record:?}");
        let names: Vec<&str> = record.outputs.iter().map(|it| it.path.as_str()).collect();
        assert_eq!(names, ["/work/out/deep/a.txt", "/work/out/deep/b.dat", "/work/out/deep/a.txt"]);
        assert_eq!(fs::read_to_string(bench.files().join("all/deep/b.dat")).expect("a file"), "b");
        assert_eq!(fs::read_to_string(bench.files().join("some/deep/a.txt")).expect("a file"), "a");
        assert!(!bench.files().join("some/deep/b.dat").exists());
    }
}

/// A task with this input is refused, or ends in an error without having started.
async fn is_kept_out(bench: &Bench, url: String, kind: StageKind) {
    let mut order = sh("echo ran");
    order.inputs = vec![input("/in/a", url.clone(), kind)];
    let job = order.job;
    match bench.local().submit(order).await {
        Err(DriverError::Refused(_)) => {}
        Err(other) => panic!("{url}: {other}"),
        Ok(()) => {
            let (end, record) = bench.done(job).await;
            assert!(matches!(end, End::SystemError { .. }), "{url}: {record:?}");
            assert_eq!(record.executors, [], "{url}");
        }
    }
}

#[tokio::test]
async fn no_input_comes_from_outside_of_the_allowed_folder() {
    let bench = Bench::new(Isolation::Process);
    let outside = bench.folder.path().join("secret");
    fs::create_dir(&outside).expect("a folder");
    fs::write(outside.join("key"), "secret").expect("a file");
    symlink(outside.join("key"), bench.files().join("link")).expect("a link");
    symlink("../secret", bench.files().join("folder")).expect("a link");
    let above = bench.folder.path().display().to_string();
    for url in [
        format!("file://{above}/secret/key"),
        bench.url("../secret/key"),
        bench.url("%2e%2e/secret/key"),
        bench.url("link"),
        bench.url("folder/key"),
        "file:///etc/passwd".into(),
        "file:///proc/self/environ".into(),
        "http://127.0.0.1:1/x".into(),
        "ftp://data.example/x".into(),
        bench.url("missing"),
    ] {
        is_kept_out(&bench, url, StageKind::File).await;
    }
    is_kept_out(&bench, bench.url("folder"), StageKind::Directory).await;
}

async fn is_kept_in(isolation: Isolation, mut order: WorkOrder, path: &str) {
    let bench = Bench::new(isolation);
    let secret = bench.folder.path().join("secret");
    fs::write(&secret, "secret").expect("a file");
    for step in &mut order.executors {
        for word in &mut step.command {
            *word = word.replace("SECRET", &secret.display().to_string());
        }
    }
    order.outputs = vec![output(path, bench.url("stolen"), StageKind::File)];
    let (_, record) = bench.run(order).await;
    assert!(!bench.files().join("stolen").exists(), "{record:?}");
    assert_eq!(fs::read_to_string(&secret).expect("a file"), "secret", "{record:?}");
}

#[tokio::test]
async fn no_link_that_a_task_makes_leads_outside() {
    for isolation in isolations() {
        is_kept_in(isolation, sh("ln -s SECRET out"), "/work/out").await;
        is_kept_in(isolation, sh("ln -s ../../../../secret out"), "/work/out").await;
        is_kept_in(isolation, sh("ln -s /proc/self/root/etc out"), "/work/out/passwd").await;
        // The next step's stream would be written by the supervisor, outside of every sandbox.
        let mut next = sh("ln -s SECRET out");
        let mut writer = next.executors[0].clone();
        writer.command = vec!["echo".into(), "overwritten".into()];
        writer.stdout = Some("/work/out".into());
        next.executors.push(writer);
        is_kept_in(isolation, next, "/work/none").await;
    }
}

#[tokio::test]
async fn no_output_goes_outside_of_the_allowed_folder() {
    let bench = Bench::new(Isolation::Process);
    let outside = bench.folder.path().join("outside");
    fs::create_dir(&outside).expect("a folder");
    symlink(&outside, bench.files().join("link")).expect("a link");
    for name in ["link/a", "../outside/a"] {
        let mut order = sh("echo x > a");
        order.outputs = vec![output("/work/a", bench.url(name), StageKind::File)];
        let job = order.job;
        if bench.local().submit(order).await.is_ok() {
            assert!(matches!(bench.done(job).await.0, End::SystemError { .. }));
        }
        assert_eq!(fs::read_dir(&outside).expect("a folder").count(), 0, "{name}");
    }
}

#[tokio::test]
async fn an_output_that_was_not_written_is_an_error_of_its_own_name() {
    let bench = Bench::new(Isolation::Process);
    let mut order = sh("true");
    order.outputs = vec![output("/work/a", bench.url("a"), StageKind::File)];
    let (end, record) = bench.run(order).await;
    assert_eq!(end, End::system_error("output 0 was not written"));
    assert_eq!(record.system_logs, ["/work/a was not written"]);
}

#[tokio::test]
async fn a_failed_task_still_delivers_what_it_has() {
    let bench = Bench::new(Isolation::Process);
    let mut order = sh("echo found > a; exit 7");
    order.outputs =
        vec![output("/work/a", bench.url("a"), StageKind::File), output("/work/b", bench.url("b"), StageKind::File)];
    let (end, record) = bench.run(order).await;
    assert_eq!(end, End::ExecutorError { exit_code: 7 });
    assert_eq!(fs::read_to_string(bench.files().join("a")).expect("an output"), "found\n");
    assert!(record.system_logs[0].contains("/work/b"), "{record:?}");
}

#[tokio::test]
async fn the_reason_of_an_end_names_nothing_of_the_task() {
    for (bring, stdin, deliver, reason) in [
        (Some("secret"), None, None, "input 0 could not be brought"),
        (None, Some("/in/secret"), None, "executor 0 could not be run"),
        (None, None, Some(("/work/secret-absent", "a")), "output 0 was not written"),
        (None, None, Some(("/work/secret-folder", "a")), "output 0 could not be delivered"),
        (None, None, Some(("/work/secret-loop", "a")), "output 0 could not be delivered"),
        (None, None, Some(("/work/secret-file", "taken")), "output 0 could not be delivered"),
    ] {
        let bench = Bench::new(Isolation::Process);
        fs::create_dir(bench.files().join("taken")).expect("a folder");
        let mut order = sh("mkdir secret-folder; ln -s secret-loop secret-loop; echo secret > secret-file");
        order.inputs.extend(bring.map(|name| input("/in/a", bench.url(name), StageKind::File)));
        order.executors[0].stdin = stdin.map(str::to_owned);
        order.outputs.extend(deliver.map(|(path, name)| output(path, bench.url(name), StageKind::File)));
        let (end, record) = bench.run(order).await;
        assert_eq!(end, End::system_error(reason), "{record:?}");
        assert!(record.system_logs.concat().contains("secret"), "its researcher reads more: {record:?}");
    }
}

#[tokio::test]
async fn what_a_task_leaves_does_not_flood_its_record() {
    let bench = Bench::new(Isolation::Process);
    let mut order = sh("mkdir out; for i in $(seq 1000); do ln -s nowhere out/$i; done");
    order.outputs = vec![output("/work/out", bench.url("out"), StageKind::Directory)];
    let (end, record) = bench.run(order).await;
    assert_eq!(end, End::Complete, "{record:?}");
    assert_eq!(record.system_logs.len(), 101);
    assert_eq!(record.system_logs[100], "900 more");
}
