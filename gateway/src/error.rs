//! Problems: what a client sees when something does not work. The one place where failures become
//! status codes and prose.
//!
//! A [`Problem`] is an RFC 9457 document that answers three more questions: which stable code, whose
//! fault, and whether trying again makes sense and when.
//!
//! Invariant: a code, once released, keeps its text, status and meaning; every code is in [`Code::ALL`].

use axum::response::{IntoResponse, Response};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, StatusCode};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::tes::{BadQuery, BadTask};

/// Longest `detail` in bytes. Details may quote a client's own text, which has no limit.
const DETAIL_BYTES_MAX: usize = 1_024;
/// The members that every problem has; an extension never replaces one of them.
const OWN_MEMBERS: [&str; 7] = ["type", "title", "status", "detail", "code", "fault", "retry"];

/// Who has to change something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// The request.
    Client,
    /// The gateway that answers.
    ThisGateway,
    /// A gateway behind the one that answers.
    OtherGateway,
    /// The member states together: no quorum, no permission, no capacity.
    Federation,
}

/// One row of the table of codes.
struct Row {
    text: &'static str,
    status: StatusCode,
    fault: Fault,
    /// Seconds after which the same request may succeed; `None`: it never will.
    retry_after_s: Option<u32>,
    title: &'static str,
}

/// Makes the enum and its table from one list, so that neither can forget a row of the other.
macro_rules! codes {
    ($($name:ident = $text:literal $status:ident $fault:ident $retry:expr, $title:literal;)*) => {
        /// A stable code: what programs look at.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code {
            $(#[doc = $title] $name,)*
        }

        impl Code {
            /// Every code, in the order of the table.
            pub const ALL: &'static [Code] = &[$(Code::$name),*];

            fn row(self) -> Row {
                match self {
                    $(Code::$name => Row {
                        text: $text,
                        status: StatusCode::$status,
                        fault: Fault::$fault,
                        retry_after_s: $retry,
                        title: $title,
                    },)*
                }
            }
        }
    };
}

// A TES client repeats a request after any 5xx, also a submission: overload is 429.
codes! {
    // The request itself.
    BadRequest = "bad-request" BAD_REQUEST Client None, "The request is not understood";
    BadHead = "bad-head" BAD_REQUEST Client None, "The request's head is ambiguous or malformed";
    HeadTooLarge = "head-too-large" REQUEST_HEADER_FIELDS_TOO_LARGE Client None, "The request has too many headers";
    MethodRefused = "method-refused" NOT_IMPLEMENTED Client None, "This server does not know the method";
    MethodNotAllowed = "method-not-allowed" METHOD_NOT_ALLOWED Client None, "The path does not take this method";
    NoSuchPath = "no-such-path" NOT_FOUND Client None, "There is nothing at this path";
    NotFound = "not-found" NOT_FOUND Client None, "There is no such thing, or it is not yours to see";
    BodyTooLarge = "body-too-large" PAYLOAD_TOO_LARGE Client None, "The body is too large";
    UnsupportedMediaType = "unsupported-media-type" UNSUPPORTED_MEDIA_TYPE Client None, "The body is not sent as plain JSON";
    BodyTooSlow = "body-too-slow" REQUEST_TIMEOUT Client Some(1), "The body did not arrive in time";
    BodyBroken = "body-broken" BAD_REQUEST Client None, "The body broke off";
    BadQuery = "bad-query" BAD_REQUEST Client None, "The query is not understood";

    // The task in it.
    NotJson = "not-json" BAD_REQUEST Client None, "The body is not JSON";
    TooDeep = "too-deep" BAD_REQUEST Client None, "The body is nested too deeply or has too many values";
    DuplicateMember = "duplicate-member" BAD_REQUEST Client None, "A member occurs twice";
    UnknownMember = "unknown-member" BAD_REQUEST Client None, "A member is not part of TES 1.1";
    MissingMember = "missing-member" BAD_REQUEST Client None, "A required member is missing";
    WrongType = "wrong-type" BAD_REQUEST Client None, "A member has the wrong JSON type";
    TooLong = "too-long" BAD_REQUEST Client None, "A text is too long";
    TooMany = "too-many" BAD_REQUEST Client None, "A list or map has too many entries";
    BadValue = "bad-value" BAD_REQUEST Client None, "A value is not allowed";
    OutOfRange = "out-of-range" BAD_REQUEST Client None, "A number is out of range";
    Contradiction = "contradiction" BAD_REQUEST Client None, "Two parts of the task contradict each other";
    UnsupportedBackendParameter = "unsupported-backend-parameter" BAD_REQUEST Client None, "A backend parameter is not supported";

    // The caller.
    NoToken = "no-token" UNAUTHORIZED Client None, "An access token is needed";
    InvalidToken = "invalid-token" UNAUTHORIZED Client None, "The access token is not accepted";
    RoleMissing = "role-missing" FORBIDDEN Client None, "The caller lacks the role that this needs";
    IdempotencyInProgress = "idempotency-in-progress" CONFLICT Client Some(1), "The same request is still being worked on";
    IdempotencyMismatch = "idempotency-mismatch" UNPROCESSABLE_ENTITY Client None, "The Idempotency-Key belongs to another body";
    TooManyOpenTasks = "too-many-open-tasks" TOO_MANY_REQUESTS Client Some(60), "Too many tasks are open";
    Overloaded = "overloaded" TOO_MANY_REQUESTS ThisGateway Some(1), "This gateway has more requests than it works on";

    // The federation's answer.
    EveryStateDenied = "every-state-denied" FORBIDDEN Federation None, "No state permits it";
    NoPoolFits = "no-pool-fits" BAD_REQUEST Client None, "No pool can ever run it";
    Rejected = "rejected" CONFLICT Federation None, "The registry rejected the change";
    NotCommittedYet = "not-committed-yet" CONFLICT Federation Some(1), "The registry has not taken the task yet";
    PolicyMoving = "policy-moving" CONFLICT Federation Some(1), "A state's policy changed meanwhile";
    NoLeader = "no-leader" SERVICE_UNAVAILABLE Federation Some(2), "The federation cannot commit right now";
    OutcomeUnknown = "outcome-unknown" SERVICE_UNAVAILABLE Federation Some(2), "It is not known whether the change was made";
    EnvelopeRefused = "envelope-refused" INTERNAL_SERVER_ERROR ThisGateway None, "The registry refused this gateway's signature";

    // Gateways.
    NotHome = "not-home" MISDIRECTED_REQUEST OtherGateway None, "The request was relayed to a state that is not its caller's home";
    HomeUnreachable = "home-unreachable" SERVICE_UNAVAILABLE OtherGateway Some(2), "The caller's home gateway did not answer";
    HostUnreachable = "host-unreachable" BAD_GATEWAY OtherGateway Some(2), "The gateway that runs the task did not answer";
    PeerOverloaded = "peer-overloaded" SERVICE_UNAVAILABLE ThisGateway Some(1), "This gateway has more requests of peers than it works on";
    StoreBusy = "store-busy" TOO_MANY_REQUESTS ThisGateway Some(1), "The disk does not keep up";
    StoreFailed = "store-failed" INTERNAL_SERVER_ERROR ThisGateway None, "This gateway's store failed";
    Internal = "internal" INTERNAL_SERVER_ERROR ThisGateway None, "This gateway made a mistake";
}

impl Code {
    /// The code as it stands in documents: lower case with dashes.
    pub fn as_str(self) -> &'static str {
        self.row().text
    }

    /// One line for people that does not depend on the occasion.
    pub fn title(self) -> &'static str {
        self.row().title
    }

    /// The HTTP status that goes with it.
    pub fn status(self) -> StatusCode {
        self.row().status
    }

    /// Whose fault it is.
    pub fn fault(self) -> Fault {
        self.row().fault
    }

    /// Seconds after which the same request may succeed; `None`: it never will.
    pub fn retry_after_s(self) -> Option<u32> {
        self.row().retry_after_s
    }

    /// A URI that names the kind of problem and leads nowhere: `urn:entente:problem:no-leader`.
    pub fn type_uri(self) -> String {
        format!("urn:entente:problem:{}", self.as_str())
    }
}

/// A failure as a client sees it. `Display` gives the detail.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{detail}")]
pub struct Problem {
    code: Code,
    detail: String,
    retry_after_s: Option<u32>,
    extensions: Map<String, Value>,
}

impl Problem {
    /// A problem of this kind; `detail` says in one sentence what happened and what to change.
    pub fn new(code: Code, detail: impl Into<String>) -> Problem {
        let mut detail = detail.into();
        detail.truncate(detail.floor_char_boundary(DETAIL_BYTES_MAX));
        Problem { code, detail, retry_after_s: code.retry_after_s(), extensions: Map::new() }
    }

    /// Adds a member of its own to the document. The standard members cannot be replaced.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Problem {
        if !OWN_MEMBERS.contains(&name) {
            self.extensions.insert(name.to_owned(), value.into());
        }
        self
    }

    /// Says when to try again, in whole seconds, at least one.
    #[must_use]
    pub fn retry_after_s(mut self, seconds: u32) -> Problem {
        self.retry_after_s = Some(seconds.max(1));
        self
    }

    /// Its code.
    pub fn code(&self) -> Code {
        self.code
    }

    /// The document, as it is sent.
    pub fn document(&self) -> Value {
        let mut retry = json!({"may": self.retry_after_s.is_some()});
        if let Some(seconds) = self.retry_after_s {
            retry["after_s"] = seconds.into();
        }
        let mut document = json!({
            "type": self.code.type_uri(),
            "title": self.code.title(),
            "status": self.code.status().as_u16(),
            "detail": self.detail,
            "code": self.code.as_str(),
            "fault": self.code.fault(),
            "retry": retry,
        });
        for (name, value) in &self.extensions {
            document[name] = value.clone();
        }
        document
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = self.document().to_string();
        let mut response = (self.code.status(), body).into_response();
        let headers = response.headers_mut();
        let problem_json = HeaderValue::from_static("application/problem+json");
        headers.insert(CONTENT_TYPE, problem_json);
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = self.retry_after_s {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.code.status() == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<BadTask> for Problem {
    fn from(bad: BadTask) -> Problem {
        Problem::new(bad.mistake.code(), bad.to_string()).with("pointer", bad.pointer)
    }
}

impl From<BadQuery> for Problem {
    fn from(bad: BadQuery) -> Problem {
        Problem::new(Code::BadQuery, bad.to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_code_has_one_text_and_a_status_that_is_a_failure() {
        let texts: HashSet<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(texts.len(), Code::ALL.len());
        for code in Code::ALL {
            let text = code.as_str();
            assert!(text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'), "{text}");
            assert!(code.status().is_client_error() || code.status().is_server_error(), "{text}");
            let blames_client = code.fault() == Fault::Client;
            assert!(!(blames_client && code.status().is_server_error() && code.retry_after_s().is_some()), "{text}");
        }
    }

    #[test]
    fn a_document_says_what_the_table_says() {
        for (code, fault, may, header) in [
            (Code::NoLeader, "federation", true, Some("2")),
            (Code::UnknownMember, "client", false, None),
            (Code::StoreFailed, "this-gateway", false, None),
            (Code::HomeUnreachable, "other-gateway", true, Some("2")),
        ] {
            let problem = Problem::new(code, "what to change");
            let document = problem.document();
            assert_eq!(document["type"], code.type_uri());
            assert_eq!(document["status"], code.status().as_u16());
            assert_eq!(document["fault"], fault);
            assert_eq!(document["retry"]["may"], may);
            let response = problem.into_response();
            assert_eq!(response.headers()["content-type"], "application/problem+json");
            assert_eq!(response.headers().get("retry-after").map(|it| it.to_str().expect("text")), header);
        }
    }

    #[test]
    fn the_api_documents_every_code_as_it_is() {
        let api = include_str!("../../docs/api.md");
        for code in Code::ALL {
            let fault = json!(code.fault());
            let retry = code.retry_after_s().map_or_else(|| "no".to_owned(), |seconds| format!("after {seconds} s"));
            let (text, status) = (code.as_str(), code.status().as_u16());
            let row =
                format!("| `{text}` | {status} | {} | {retry} | {} |", fault.as_str().expect("text"), code.title());
            assert!(api.contains(&row), "docs/api.md has no row {row}");
        }
    }

    #[test]
    fn extensions_are_added_and_replace_nothing() {
        let problem =
            Problem::new(Code::NotFound, "no").with("pools", json!([1])).with("status", 200).with("code", "fine");
        let document = problem.document();
        assert_eq!(document["pools"], json!([1]));
        assert_eq!(document["status"], 404);
        assert_eq!(document["code"], "not-found");
    }

    #[test]
    fn a_detail_is_cut_between_characters() {
        let long = "ä".repeat(DETAIL_BYTES_MAX);
        let problem = Problem::new(Code::BadRequest, format!("x{long}"));
        assert!(problem.to_string().len() <= DETAIL_BYTES_MAX);
    }

    #[test]
    fn an_unauthorized_answer_names_the_scheme() {
        let response = Problem::new(Code::NoToken, "send one").into_response();
        assert_eq!(response.headers()["www-authenticate"], "Bearer");
    }
}
