//! What researchers send: tasks and queries.

use federation::JobId;
use gateway::tes::task::NAME_BYTES_MAX;
use gateway::tes::{BODY_BYTES_MAX, ListQuery, PageToken, Submission};

/// A task document. What is accepted survives its own payload, and no path in it leads out.
pub fn task(bytes: &[u8]) {
    let Ok(submission) = Submission::parse(bytes) else {
        return;
    };
    assert!(bytes.len() <= BODY_BYTES_MAX);
    let again = Submission::from_payload(&submission.payload()).expect("a payload parses");
    assert_eq!(again.payload(), submission.payload());
    assert_eq!(again.task(), submission.task());
    let shape = |it: &Submission| it.requirements().map(|it| it.shape).ok();
    assert_eq!(shape(&submission), shape(&again), "home and host ask for the same");
    let task = submission.task();
    assert!(task.name.as_ref().is_none_or(|it| it.len() <= NAME_BYTES_MAX && !it.chars().any(char::is_control)));
    let paths = task.inputs.iter().map(|it| &it.path).chain(task.outputs.iter().map(|it| &it.path));
    for path in paths.chain(&task.volumes) {
        assert!(path.starts_with('/') && path.len() > 1, "{path:?} is below the root");
        assert!(path[1..].split('/').all(|it| !["", ".", ".."].contains(&it)), "{path:?} has one spelling");
        assert!(!path.chars().any(char::is_control));
    }
    assert!(!task.executors.is_empty(), "a task does something");
    assert!(task.id.is_none() && task.state.is_none() && task.logs.is_empty(), "a client says nothing of the server's");
}

/// A query of the list of tasks, its page tokens and ids.
pub fn query(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(query) = ListQuery::parse(Some(text)) {
        assert!((1..=2_047).contains(&query.page_size));
        assert!(query.tags.len() <= 64);
        assert_eq!(ListQuery::parse(Some(text)), Ok(query));
    }
    if let Ok(token) = PageToken::parse(text) {
        assert_eq!(PageToken::parse(&token.to_text()), Ok(token));
        assert_eq!(token.to_text(), text, "a page token has one spelling");
    }
    if let Ok(id) = JobId::parse(text) {
        assert_eq!(id.to_string(), text, "an id has one spelling");
    }
}
