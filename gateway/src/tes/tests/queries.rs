//! Views, lists and filters.

use federation::{JobId, Timestamp};
use serde_json::json;

use super::{parse, with};
use crate::tes::filter::{BadQuery, ListQuery, PageToken};
use crate::tes::model::{ExecutorLog, State, TaskLog};
use crate::tes::view::{self, View};

#[test]
fn queries_are_read_or_refused() {
    let list = |query: &str| ListQuery::parse(Some(query));
    let nothing = ListQuery::parse(None).expect("no query");
    assert_eq!((nothing.page_size, nothing.view, nothing.tags.len()), (256, View::Minimal, 0));
    let token = PageToken(JobId::new(1_795_522_620_250, [7; 10]));
    let all = list(&format!(
        "name_prefix=a%20b%2B+c&state=RUNNING&page_size=2047&view=FULL&page_token={}\
         &tag_key=x&tag_value=1&tag_key=y&tag_value=&tag_key=z",
        token.to_text()
    ))
    .expect("a query");
    assert_eq!(all.name_prefix.as_deref(), Some("a b+ c"));
    assert_eq!((all.state, all.page_size, all.view), (Some(State::Running), 2_047, View::Full));
    assert_eq!(all.page_token, Some(token));
    let tag = |key: &str, value: Option<&str>| (key.to_owned(), value.map(str::to_owned));
    assert_eq!(all.tags, [tag("x", Some("1")), tag("y", None), tag("z", None)]);
    assert_eq!(list("state=&view=&page_token=&name_prefix=&page_size="), Ok(nothing));
    assert_eq!(View::from_query(Some("view=BASIC")), Ok(View::Basic));
    for (query, expected) in [
        ("view=WHOLE", BadQuery::View("WHOLE".into())),
        ("view=full", BadQuery::View("full".into())),
        ("state=DONE", BadQuery::State("DONE".into())),
        ("page_size=2048", BadQuery::PageSize("2048".into())),
        ("page_size=0", BadQuery::PageSize("0".into())),
        ("page_size=-1", BadQuery::PageSize("-1".into())),
        ("page_size=%2B1", BadQuery::PageSize("+1".into())),
        ("page_size=99999999999999999999", BadQuery::PageSize("99999999999999999999".into())),
        ("page_size=1&page_size=2", BadQuery::Twice("page_size")),
        ("page_token=zzz", BadQuery::PageToken),
        ("page_token=MTpqb2JfMQ", BadQuery::PageToken),
        ("tag_value=1", BadQuery::Tags),
        ("colour=red", BadQuery::Unknown("colour".into())),
        ("name_prefix=%ff", BadQuery::Encoding),
        ("name_prefix=%2", BadQuery::Encoding),
        ("name_prefix=%zz", BadQuery::Encoding),
    ] {
        assert_eq!(list(query), Err(expected), "{query}");
    }
}

#[test]
fn filters_match_as_the_specification_s_table_says() {
    for (query, tags, expected) in [
        ("tag_key=foo&tag_value=bar", json!({"foo": "bar"}), true),
        ("tag_key=foo&tag_value=bar", json!({"foo": "bat"}), false),
        ("tag_key=foo&tag_value=", json!({"foo": ""}), true),
        ("tag_key=foo&tag_value=bar&tag_key=baz&tag_value=bat", json!({"foo": "bar", "baz": "bat"}), true),
        ("tag_key=foo&tag_value=bar", json!({"foo": "bar", "baz": "bat"}), true),
        ("tag_key=foo&tag_value=bar&tag_key=baz&tag_value=bat", json!({"foo": "bar"}), false),
        ("tag_key=foo", json!({"foo": "bar"}), true),
        ("tag_key=foo", json!({}), false),
        ("name_prefix=ru", json!({}), true),
        ("name_prefix=un", json!({}), false),
        ("state=RUNNING", json!({}), true),
        ("state=QUEUED", json!({}), false),
    ] {
        let submission = parse(&with(|it| {
            it["name"] = json!("run");
            it["tags"] = tags.clone();
        }));
        let query = ListQuery::parse(Some(query)).expect("a query");
        let task = submission.task();
        assert_eq!(query.matches(task.name.as_deref(), &task.tags, State::Running), expected, "{query:?} {tags}");
    }
}

#[test]
fn views_show_what_the_specification_says() {
    let task = with(|it| {
        it["inputs"] = json!([{"path": "/a", "content": "secret"}]);
    });
    let submission = parse(&task);
    let log = TaskLog {
        logs: vec![ExecutorLog {
            stdout: Some("out".into()),
            stderr: Some("err".into()),
            exit_code: 3,
            ..ExecutorLog::default()
        }],
        system_logs: vec!["warned".into()],
        ..TaskLog::default()
    };
    let show = |view| {
        let known = view::Known {
            id: "job_1".into(),
            state: State::ExecutorError,
            created_at: Timestamp(1_795_522_620_250),
            logs: vec![log.clone()],
        };
        serde_json::to_value(view::show(&submission, known, view)).expect("JSON")
    };
    assert_eq!(show(View::Minimal), json!({"id": "job_1", "state": "EXECUTOR_ERROR"}));
    let basic = show(View::Basic);
    assert_eq!(basic["creation_time"], "2026-11-24T12:17:00.250Z");
    assert_eq!(basic["inputs"], json!([{"path": "/a"}]));
    assert_eq!(basic["logs"], json!([{"logs": [{"exit_code": 3}], "outputs": []}]));
    let full = show(View::Full);
    assert_eq!(full["inputs"][0]["content"], "secret");
    assert_eq!(full["logs"][0]["logs"][0]["stdout"], "out");
    assert_eq!(full["logs"][0]["system_logs"], json!(["warned"]));
}

#[test]
fn times_are_rfc_3339() {
    for (ms, text) in [
        (0, "1970-01-01T00:00:00.000Z"),
        (951_782_399_999, "2000-02-28T23:59:59.999Z"),
        (951_782_400_000, "2000-02-29T00:00:00.000Z"),
        (1_709_251_199_000, "2024-02-29T23:59:59.000Z"),
        (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        (u64::MAX, "9999-12-31T23:59:59.999Z"),
    ] {
        assert_eq!(view::rfc3339(Timestamp(ms)), text);
    }
}
